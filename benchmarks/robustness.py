"""How a network that has seen many doses and defoci copes with any of them, and one that has not.

    python benchmarks/robustness.py [--steps N] [--channels N N N] [--samples N] [--tests N]
        [--json FILE] [--picture FILE]

Two segmentation networks learn from as many slices of the same content, that of `cotrain.py`: mixed
ones of 10 to 150 e/Å² and 2 to 8 µm, and plain ones of 80 e/Å² and 5 µm alone. Both are tested on
slices of each dose at 5 µm, and of each defocus at 80 e/Å². Dice is the mean over classes.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cotrain import CONTENT, test_network, train_network
from unseen.commands import simulate
from unseen.machine import describe_machine
from unseen.tables import print_table

DOSES = (10, 30, 80, 150)
DEFOCI = (2, 3.5, 5, 6.5, 8)
USUAL = (80, 5)
OPTICS = """
[microscope]
tilt_min = -60
tilt_max = 60
tilt_step = 3
dose_e_per_a2 = {dose}
defocus_um = {defocus}
"""
TRAINED = {"mixed": ("[10, 150]", "[2.0, 8.0]"), "plain": USUAL}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--channels", type=int, nargs="+", default=[8, 12, 16])
    parser.add_argument("--samples", type=int, default=24, help="slices to learn from")
    parser.add_argument("--tests", type=int, default=3, help="slices of each setting")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--picture", type=Path)
    given = parser.parse_args()
    print(f"machine: {describe_machine()}; {given.steps} steps, channels {given.channels}\n")
    settings = [(dose, USUAL[1]) for dose in DOSES]
    settings += [(USUAL[0], value) for value in DEFOCI if value != USUAL[1]]
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        tests = {
            (dose, defocus): simulate(
                folder, f"test_{dose}_{defocus}", make_recipe("test", "5000, 9999", dose, defocus),
                given.tests,
            )
            for dose, defocus in settings
        }  # fmt: skip
        for run, (dose, defocus) in TRAINED.items():
            text = make_recipe("learn", "1000, 4999", dose, defocus)
            data = simulate(folder, run, text, given.samples + 1)
            chosen = folder / f"{run}_chosen"
            chosen.mkdir()
            for path in data[1:]:
                (chosen / path.name).symlink_to(path)
            model = train_network(folder / f"model_{run}", [str(chosen)], data[0], given)
            for (one, other), paths in tests.items():
                dice = test_network(model, paths)["dice"]
                rows.append({"run": run, "dose": one, "defocus": other, "dice": dice})
                print(rows[-1], file=sys.stderr, flush=True)
    print_table(
        ["dose (e/Å²)", "defocus (µm)", *TRAINED],
        (
            [dose, defocus, *(find(rows, run, dose, defocus) for run in TRAINED)]
            for dose, defocus in settings
        ),
    )
    for run in TRAINED:
        values = [row["dice"] for row in rows if row["run"] == run]
        print(f"{run}: least {min(values):.3f}, mean {np.mean(values):.3f}")
    if given.json:
        content = {"machine": describe_machine(), "steps": given.steps, "rows": rows}
        given.json.write_text(json.dumps(content, indent=1), "utf-8")
    if given.picture:
        draw(rows, given.picture)
    return 0


def make_recipe(name: str, crowd: str, dose: object, defocus: object) -> str:
    """Content of the benchmark of co-training, with other optics."""
    optics = OPTICS.format(dose=dose, defocus=defocus)
    return f'name = "{name}"\n' + CONTENT.replace("CROWD", crowd) + optics


def find(rows: Sequence[dict[str, Any]], run: str, dose: float, defocus: float) -> float:
    wanted = {"run": run, "dose": dose, "defocus": defocus}
    return next(row["dice"] for row in rows if wanted.items() <= row.items())


def draw(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Dice against dose, and against defocus."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    figure, panels = plt.subplots(1, 2, figsize=(8, 3.2), sharey=True, layout="constrained")
    for run in TRAINED:
        doses = [find(rows, run, dose, USUAL[1]) for dose in DOSES]
        defoci = [find(rows, run, USUAL[0], value) for value in DEFOCI]
        for panel, x, y in zip(panels, (DOSES, DEFOCI), (doses, defoci), strict=True):
            panel.plot(x, y, "o-", label=f"trained on {run} optics")
    panels[0].set(xlabel="dose (e/Å²), at 5 µm", ylabel="Dice, mean of classes", ylim=(0, 1))
    panels[1].set(xlabel="defocus (µm), at 80 e/Å²")
    panels[0].legend(frameon=False)
    figure.savefig(path, dpi=110)
    plt.close(figure)


if __name__ == "__main__":
    sys.exit(main())
