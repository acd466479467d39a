"""How good the shipped segmenter of cells is: membranes, microtubules, actin and ribosomes.

    python benchmarks/segmenter.py [--model NAME|FOLDER] [--tests N] [--json FILE] [--picture FILE]

Simulated tomograms (environment variable TOMOLOC_SHARED) of a recipe that differs from that of the
training in its size, dose, defocus, rough complexes and, above all, the crowd: real proteins that
the network has never met, as it has met no real protein but the ribosome. They are segmented by
`tomoloc pick segmentation`, all at the model's own thresholds:

* Dice of each class, over voxels
* ribosomes: F1, one to one within 125 Å
* filaments: of the points found, those within 60 Å of a true axis (precision); of points along the
  true axes, those within 60 Å of one that was found (recall)

And two experimental crops of one microtubule each (from cylindra, BSD-3), with --match-spectrum:
how far the points found are from the axis through three points marked by hand.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import sys
import tempfile
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.spatial import KDTree

from tomoloc.evaluate import evaluate_particles
from tomoloc.io.tables import read_particles
from tomoloc.io.tomograms import read_volume
from unseen.commands import call, simulate
from unseen.machine import describe_machine
from unseen.tables import mean, print_table

RECIPE = Path(__file__).parents[1] / "training" / "segmenter" / "cytoplasm.toml"
CHANGES = {
    "RIBOSOME": "{shared}/maps/5mrc_10A.mrc",
    "shape = [72, 192, 200]": "shape = [80, 200, 216]",
    "dose_e_per_a2 = [80, 160]": "dose_e_per_a2 = [90, 120]",
    "defocus_um = [2.0, 6.0]": "defocus_um = [2.5, 4.5]",
    "structure = { seed = [1000, 2999], mass_kda = [40, 900] }": (
        'structure = "{shared}/structures/validation"'
    ),
    "seed = [6000, 6999]": "seed = [7000, 7999]",
    "seed = [3000, 3999]": "seed = [4000, 4999]",
}
CLASSES = ("membrane", "microtubule", "actin", "ribosome")
FILAMENTS = ("microtubule", "actin")
NEAR, RADIUS = 60.0, 125.0
"""Å: of filaments, and of ribosomes."""
SPACING = 10.52
"""Å: of the experimental crops."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="cytoplasm", help="name or folder")
    parser.add_argument("--tests", type=int, default=4, help="tomograms")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--picture", type=Path, help="PNG of a section and its classes")
    given = parser.parse_args()
    shared = Path(os.environ.get("TOMOLOC_SHARED", ""))
    if not (shared / "maps").is_dir():
        print("SKIP: no real structures; set TOMOLOC_SHARED")
        return 0
    print(f"machine: {describe_machine()}\nmodel: {given.model}\n")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        text = RECIPE.read_text("utf-8")
        for old, new in CHANGES.items():
            if old not in text:
                raise ValueError(f"{RECIPE} has no {old}")
            text = text.replace(old, new.format(shared=shared.resolve()))
        samples = simulate(folder, "cytoplasm", text, given.tests)
        start = perf_counter()
        files = [str(path / "tomogram.mrc") for path in samples]
        picks = folder / "picks"
        call("pick", "segmentation", *files, "-o", str(picks), "--model", given.model,
             "--save-labels")  # fmt: skip
        seconds = (perf_counter() - start) / len(samples)
        rows = [score(path, picks) for path in samples]
        print_table(
            ["class", "Dice", "F1", "precision", "recall"],
            (
                [name, *(mean(row[f"{name} {key}"] for row in rows) for key in
                 ("dice", "f1", "precision", "recall"))]
                for name in CLASSES
            ),
        )  # fmt: skip
        voxels = "80 x 200 x 216"
        print(f"{seconds:.1f} s for each tomogram of {voxels} voxels\n")
        real = check_real(shared / "real" / "microtubule", folder, given.model)
        print_table(
            ["experimental crop", "points", "within 60 Å", "median (Å)", "other picks"],
            ([r["file"], r["points"], r["near"], r["median"], r["others"]] for r in real),
        )
        if given.picture:
            draw(samples[0], picks, given.picture)
    if given.json:
        content = {"machine": describe_machine(), "model": given.model, "rows": rows, "real": real}
        given.json.write_text(json.dumps(content, indent=1), "utf-8")
    return 0


def score(sample: Path, picks: Path) -> dict[str, float]:
    """Compare a tomogram's label volume, particles and filaments with the truth."""
    truth, found = (
        read_labels(sample / "labels.mrc"),
        read_labels(picks / f"{sample.name}.labels.mrc"),
    )
    table = read_particles(picks / f"{sample.name}.star")
    label = np.asarray(table.label)
    scores: dict[str, float] = {}
    for name in CLASSES:
        own, said = truth.get(name), found.get(name)
        if own is None or said is None:
            continue
        both = own.sum() + said.sum()
        scores[f"{name} dice"] = float(2 * (own & said).sum() / both) if own.any() else np.nan
    particles = read_particles(sample / "particles.star")
    ribosomes = particles[np.asarray(particles.label) == "ribosome"]
    result = evaluate_particles(table[label == "ribosome"], ribosomes, radius=RADIUS).micro.chosen
    scores |= {"ribosome f1": result.f1, "ribosome precision": result.precision}
    scores["ribosome recall"] = result.recall
    axes = read_particles(sample / "filaments.star")
    for name in FILAMENTS:
        true = axes.position[np.asarray(axes.label) == name]
        said = table.position[label == name]
        near = [share_near(said, true), share_near(true, said)]
        scores |= {f"{name} precision": near[0], f"{name} recall": near[1]}
    for name in CLASSES:
        for key in ("dice", "f1", "precision", "recall"):
            scores.setdefault(f"{name} {key}", float("nan"))
    return scores


def read_labels(path: Path) -> dict[str, NDArray[np.bool_]]:
    """Voxels of each class of a label volume."""
    data = np.asarray(read_volume(path).data)
    names = json.loads(path.with_suffix(".json").read_text("utf-8"))
    return {name: data == int(number) for number, name in names.items()}


def share_near(points: NDArray[np.floating[Any]], others: NDArray[np.floating[Any]]) -> float:
    """Part of the points that are close to one of the others; not a number without points."""
    if not len(points):
        return float("nan")
    if not len(others):
        return 0.0
    return float((KDTree(others).query(points)[0] <= NEAR).mean())


def check_real(folder: Path, work: Path, model: str) -> list[dict[str, Any]]:
    """Trace the microtubules of experimental crops."""
    marked = pd.read_csv(folder / "axis_points.csv")
    rows = []
    for name, points in marked.groupby("file"):
        out = work / f"real_{name}"
        words = ["--voxel-spacing", str(SPACING), "--contrast", "light", "--match-spectrum"]
        file = str(folder / str(name))
        call("pick", "segmentation", file, "-o", str(out), "--model", model, *words)
        (path,) = out.glob("*.star")
        table = read_particles(path)
        axis = 10 * points[["x_nm", "y_nm", "z_nm"]].to_numpy(dtype=float)
        line = along(axis)
        own = np.asarray(table.label) == "microtubule"
        away = KDTree(line).query(table.position[own])[0] if own.any() else np.zeros(0)
        rows.append({
            "file": name,
            "points": int(own.sum()),
            "near": float((away <= NEAR).mean()) if own.any() else float("nan"),
            "median": float(np.median(away)) if own.any() else float("nan"),
            "others": int((~own).sum()),
        })  # fmt: skip
    return rows


def along(points: NDArray[np.float64]) -> NDArray[np.float64]:
    """Points every few Å along straight pieces, the first and last of which go on to both sides."""
    first, last = 2 * points[0] - points[1], 2 * points[-1] - points[-2]
    corners = np.concatenate([[first], points, [last]])
    part = np.linspace(0, 1, 200)[:, None]
    return np.concatenate([a + part * (b - a) for a, b in itertools.pairwise(corners)])


def draw(sample: Path, picks: Path, path: Path) -> None:
    """A section through the middle, what is in it and what was found."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    data = np.asarray(read_volume(sample / "tomogram.mrc").data, dtype=float)
    middle = len(data) // 2
    section = data[middle - 1 : middle + 2].mean(axis=0)
    low, high = np.percentile(section, (1, 99))
    figure, panels = plt.subplots(1, 3, figsize=(12, 4), layout="constrained")
    tables = {
        "simulated": None,
        "true": read_labels(sample / "labels.mrc"),
        "found": read_labels(picks / f"{sample.name}.labels.mrc"),
    }
    colors = np.array([[0.2, 0.5, 1.0], [1.0, 0.6, 0.1], [0.2, 0.8, 0.3], [0.9, 0.2, 0.5]])
    for panel, (title, table) in zip(panels, tables.items(), strict=True):
        panel.imshow(section, cmap="gray", vmin=low, vmax=high)
        for name, color in zip(CLASSES, colors, strict=True):
            if table is None or name not in table:
                continue
            here = table[name][middle]
            panel.imshow(np.dstack([*(np.full(here.shape, c) for c in color), 0.6 * here]))
            if title == "true":
                panel.plot([], [], "s", color=color, label=name)
        panel.set(title=title, xticks=[], yticks=[])
    panels[1].legend(loc="lower left", fontsize=7)
    figure.savefig(path, dpi=90)
    plt.close(figure)


if __name__ == "__main__":
    sys.exit(main())
