"""What one annotated tomogram adds to simulated ones: co-training of segmentation networks.

    python benchmarks/cotrain.py [--steps N] [--channels N N N] [--tests N] [--runs NAME...]
        [--threads N] [--json FILE]

Networks are trained on slices of `SIMULATED`, and tested on slices of `REAL`, which stands for data
of a microscope: the same particles and membranes, but less dose, another defocus, a wider missing
wedge, errors of alignment and another crowd. As in CryoTomoSim's experiment, a run is

* 5, 50: so many simulated slices
* 5+1: five of them and one "real" slice, which take turns (`--ratio 1 1`)
* 1: the "real" slice alone

All are trained with `tomoloc train segmentation`, for as many steps, and keep the network that is
the best on a simulated slice that none is trained on. Dice of each class is the mean over test
slices.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from time import perf_counter
from typing import Any

import torch

from tomoloc.io.samples import read_sample
from tomoloc.nn.stored import load_model
from tomoloc.train.patches import Patching
from tomoloc.train.segment import SegmentTask
from unseen.commands import call, simulate
from unseen.machine import describe_machine
from unseen.tables import print_table

CONTENT = """
[specimen]
shape = [32, 112, 120]
voxel_spacing = 10.0
border = "cut"

[[species]]
structure = { seed = 3, mass_kda = 500 }
label = "small"
count = 10

[[species]]
structure = { seed = 11, mass_kda = 2500 }
label = "large"
count = 5

[[species]]
structure = { seed = [CROWD], mass_kda = [50, 800] }
choose = 8
count = 2
role = "distractor"
label = "crowd"

[[membranes]]
shape = "sphere"
count = 1
diameter = [350, 600]
"""
SIMULATED = (
    'name = "simulated"\n'
    + CONTENT.replace("CROWD", "1000, 4999")
    + """
[microscope]
tilt_min = -60
tilt_max = 60
tilt_step = 3
dose_e_per_a2 = 150
defocus_um = [2.0, 3.0]
"""
)
REAL = (
    'name = "real"\n'
    + CONTENT.replace("CROWD", "5000, 9999")
    + """
[microscope]
tilt_min = -48
tilt_max = 54
tilt_step = 3
dose_e_per_a2 = 70
defocus_um = [4.0, 5.0]
shift_error = 4
"""
)
RUNS = {"5": (5, 0), "50": (50, 0), "5+1": (5, 1), "1": (0, 1)}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--channels", type=int, nargs="+", default=[8, 12, 16])
    parser.add_argument("--tests", type=int, default=4, help="slices")
    parser.add_argument("--runs", nargs="+", choices=RUNS, default=[*RUNS])
    parser.add_argument("--threads", type=int)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    if given.threads:
        torch.set_num_threads(given.threads)
    print(f"machine: {describe_machine()}; {given.steps} steps, channels {given.channels}\n")
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        most = max(RUNS[run][0] for run in given.runs)
        simulated = simulate(folder, "simulated", SIMULATED, most + 1)
        real = simulate(folder, "real", REAL, 1 + given.tests)
        for run in given.runs:
            rows.append({"run": run, **train_and_test(folder, run, simulated, real, given)})
            print(rows[-1], file=sys.stderr, flush=True)
    names = [key for key in rows[0] if key.startswith("dice ")]
    print_table(
        ["slices", *names, "mean", "training (s)"],
        ([r["run"], *(r[name] for name in names), r["dice"], r["seconds"]] for r in rows),
    )
    if given.json:
        content = {"machine": describe_machine(), "steps": given.steps, "rows": rows}
        given.json.write_text(json.dumps(content, indent=1), "utf-8")
    return 0


def train_and_test(
    folder: Path, run: str, simulated: list[Path], real: list[Path], given: argparse.Namespace
) -> dict[str, float]:
    """Link the run's slices into folders, train on them, and test on the last of the real ones."""
    chosen = []
    for source, number in zip((simulated[1:], real), RUNS[run], strict=True):
        if number:
            place = folder / f"{run}_{source[0].parent.name}"
            place.mkdir()
            for path in source[:number]:
                (place / path.name).symlink_to(path)
            chosen.append(str(place))
    model = folder / f"model_{run}"
    start = perf_counter()
    train_network(model, chosen, simulated[0], given)
    seconds = perf_counter() - start
    return {**test_network(model, real[-given.tests :]), "seconds": seconds}


def train_network(model: Path, data: list[str], held_out: Path, given: argparse.Namespace) -> Path:
    """Train as a user would; folders of data take turns."""
    ratio = ["--ratio", *("1" for _ in data)] if len(data) > 1 else []
    call("train", "segmentation", "--data", *data, "--validation", str(held_out), *ratio,
         "--steps", str(given.steps), "--patience", "0", "--learning-rate", "0.005",
         "--channels", *map(str, given.channels), "-o", str(model))  # fmt: skip
    return model


def test_network(model: Path, paths: list[Path]) -> dict[str, float]:
    """Dice of each class and their mean, over slices."""
    stored = load_model(model)
    classes = stored.config["classes"]
    task = SegmentTask(
        labels=tuple(one["label"] for one in classes),
        diameters=tuple(one["diameter"] for one in classes),
        voxel_spacing=stored.voxel_spacing,
        patching=Patching(shape=(16, 16, 16)),
    )
    tests = [task.prepare(read_sample(path)) for path in paths]
    return task.validate(stored.network, tests, device="cpu")._asdict()


if __name__ == "__main__":
    sys.exit(main())
