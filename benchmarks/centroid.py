"""How well a picker fine-tuned on two annotated tomograms does: heat profiles, losses, starts.

    python benchmarks/centroid.py [--steps N] [--tomograms N...] [--tests N] [--runs NAME...]
        [--shape Z Y X] [--threads N] [--json FILE] [--folder FOLDER]

Two kinds of built-in complexes of different sizes, at once, in scenes with a third kind that nobody
looks for, vesicles, gold and errors of alignment (`TWO`); and shells of 1000 Å beside vesicles and
large complexes, in voxels of 40 Å (`CAPSIDS`). Each run trains with `tomoloc train centroid` as a
user would, and picks test tomograms with `tomoloc pick centroid`:

* entropy, huber: from the shipped model, on two tomograms, with the one loss and the other
* binary: balls instead of Gaussians (with the loss entropy)
* scratch: from no model, on as many tomograms as --tomograms says
* capsids, capsids-binary: Gaussians and balls in the other scene
* zero-shot: the shipped model's map of centres, of any kind of particle, without training

F1 at the threshold that the model states and at the best one, one to one within half a diameter,
mean over kinds; root mean square error of the right ones in percent of the diameter, of those that
are wholly in the tomogram and, as "all", with those that its borders cut.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import tempfile
from contextlib import nullcontext
from pathlib import Path
from time import perf_counter
from typing import Any

import mrcfile
import numpy as np
import torch

from tomoloc.evaluate import evaluate_particles, match_particles
from tomoloc.features.candidates import find_candidates
from tomoloc.features.learned import LearnedFeatures
from tomoloc.io.samples import read_sample
from tomoloc.io.tables import read_particles
from tomoloc.nn.stored import find_model, load_model
from tomoloc.types import Particles, Sample
from unseen.commands import call, simulate
from unseen.machine import describe_machine
from unseen.tables import print_table

TWO = """
name = "two"

[specimen]
shape = [80, 160, 176]
voxel_spacing = 10.0
border = "cut"

[microscope]
tilt_min = -60
tilt_max = 60
tilt_step = 3
dose_e_per_a2 = 100
defocus_um = [2.5, 4.5]
shift_error = 3

[gold]
count = 3
diameter = 100

[[species]]
structure = { seed = 3, mass_kda = 250 }
label = "small"
count = 24

[[species]]
structure = { seed = 11, mass_kda = 2500 }
label = "large"
count = 12

[[species]]
structure = { seed = 20, mass_kda = 500 }
label = "other"
role = "distractor"
count = 30

[[membranes]]
shape = "sphere"
count = 2
diameter = [350, 500]
"""
CAPSIDS = """
name = "capsids"

[specimen]
shape = [44, 110, 120]
voxel_spacing = 40.0
border = "cut"

[microscope]
tilt_min = -60
tilt_max = 60
tilt_step = 3
dose_e_per_a2 = 100
defocus_um = [4.0, 6.0]
shift_error = 3

[[species]]
structure = "SHELL"
label = "capsid"
count = 10

[[species]]
structure = { seed = 20, mass_kda = 9000 }
label = "other"
role = "distractor"
count = 60

[[membranes]]
shape = "sphere"
count = 3
diameter = [1200, 1800]
"""
RUNS = {
    "entropy": ("two", "--loss", "entropy"),
    "huber": ("two", "--loss", "huber"),
    "binary": ("two", "--profile", "binary"),
    "scratch": ("two", "--from", "none"),
    "capsids": ("capsids", "--voxel-spacing", "40"),
    "capsids-binary": ("capsids", "--voxel-spacing", "40", "--profile", "binary"),
}
GOAL = 3.0  # percent of the diameter


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--tomograms", type=int, nargs="+", default=[2, 3, 5], help="of scratch")
    parser.add_argument("--tests", type=int, default=3, help="tomograms")
    parser.add_argument(
        "--runs", nargs="+", choices=[*RUNS, "zero-shot"], default=[*RUNS, "zero-shot"]
    )
    parser.add_argument(
        "--shape", type=int, nargs=3, default=[80, 160, 176], help="of the scene of two kinds"
    )
    parser.add_argument("--threads", type=int)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--folder", type=Path, help="of data and models, which are kept and reused")
    given = parser.parse_args()
    if given.tests < 2:
        parser.error("--tests must be at least 2")
    if given.threads:
        torch.set_num_threads(given.threads)
    print(f"machine: {describe_machine()}; {given.steps} steps; {given.shape} voxels\n")
    rows: list[dict[str, Any]] = []
    with nullcontext(given.folder) if given.folder else tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.mkdir(exist_ok=True)
        most = max(2, *given.tomograms)
        write_shell(folder / "shell.mrc")
        recipes = {
            "two": enlarge(TWO, given.shape),
            "capsids": CAPSIDS.replace("SHELL", str(folder / "shell.mrc")),
        }
        wanted = {RUNS[run][0] for run in given.runs if run in RUNS} | {"two"}
        data = {
            name: simulate(folder, name, recipes[name], most + given.tests)
            for name in sorted(wanted)
        }
        if "zero-shot" in given.runs:
            rows.append(zero_shot([read_sample(path) for path in data["two"][most:]]))
        for run in (run for run in given.runs if run in RUNS):
            scene, *words = RUNS[run]
            train, tests = data[scene][:most], data[scene][most:]
            for number in given.tomograms if run == "scratch" else [2]:
                model = folder / f"{run}_{number}_{given.steps}"
                rest = ["--steps", str(given.steps), "--patience", "0", "-o", str(model)]
                start = perf_counter()
                call("train", "centroid", "--data", *map(str, train[:number]), *words, *rest)
                seconds = perf_counter() - start
                scores = test(model, tests)
                rows.append({"run": run, "tomograms": number, "seconds": seconds, **scores})
                print(f"{rows[-1]}", file=sys.stderr, flush=True)
    print_table(
        [
            "run", "tomograms", "d (Å)", "F1", "best F1", "error (% of d)", "goal", "all",
            "training (s)",
        ],
        (
            [
                r["run"], r["tomograms"], r["diameters"], r["f1"], r["best_f1"], r["error"], GOAL,
                r["error_all"], r["seconds"],
            ]
            for r in rows
        ),
    )  # fmt: skip
    if given.json:
        content = {"machine": describe_machine(), "steps": given.steps, "rows": rows}
        given.json.write_text(json.dumps(content, indent=1), "utf-8")
    return 0


def enlarge(recipe: str, shape: list[int]) -> str:
    """Give a scene another shape, and as much more in it as there is room."""
    before = [int(n) for n in re.findall(r"\d+", re.findall(r"shape = \[(.*)\]", recipe)[0])]
    times = np.prod(shape) / np.prod(before)
    recipe = recipe.replace(f"shape = {before}", f"shape = {shape}")
    return re.sub(r"count = (\d+)", lambda m: f"count = {round(int(m[1]) * times)}", recipe)


def write_shell(path: Path) -> None:
    """Write the density of an empty capsid, 1000 Å across."""
    spacing, sides = 20.0, (56, 56, 56)
    middle = (np.array(sides) - 1) / 2
    place = np.moveaxis(np.indices(sides), 0, -1) - middle
    away = np.linalg.norm(place, axis=-1) * spacing
    density = 1 / (1 + np.exp((np.abs(away - 465) - 35) / 8))
    with mrcfile.new(path, overwrite=True) as file:
        file.set_data(density.astype(np.float32))
        file.voxel_size = spacing


def test(model: Path, tests: list[Path]) -> dict[str, Any]:
    """Pick with a model, once at its thresholds and once whatever has any heat."""
    kinds = load_model(model).config["particles"]
    diameter = dict(zip(kinds["labels"], kinds["diameters"], strict=True))
    found = {}
    for name, words in {"chosen": [], "all": ["--threshold", "0.05"]}.items():
        picks = model.with_name(f"{model.name}_{name}")
        files = [str(path / "tomogram.mrc") for path in tests]
        call("pick", "centroid", *files, "-o", str(picks), "--model", str(model), *words)
        found[name] = Particles.concatenate(
            [read_particles(picks / f"{path.name}.star") for path in tests]
        )
    truth = Particles.concatenate([read_particles(path / "particles.star") for path in tests])
    radius = {label: d / 2 for label, d in diameter.items()}
    results = {
        name: evaluate_particles(picks, truth, radius=radius, labels=kinds["labels"]).labels
        for name, picks in found.items()
    }
    whole = np.asarray(truth.extra["tomolocVisibleFraction"], dtype=float) > 0.99
    errors = []
    for label, d in diameter.items():
        picks, rows = (
            np.flatnonzero(np.asarray(t.label) == label) for t in (found["chosen"], truth)
        )
        pairs = match_particles(found["chosen"][picks], truth[rows], radius=d / 2).pairs
        away = found["chosen"].position[picks[pairs[:, 0]]] - truth.position[rows[pairs[:, 1]]]
        square = (away**2).sum(axis=1) / d**2
        errors.append([square[whole[rows[pairs[:, 1]]]].mean(), square.mean()])
    error, error_all = 100 * np.sqrt(np.array(errors)).mean(axis=0)
    return {
        "diameters": ", ".join(f"{d:.0f}" for d in diameter.values()),
        "f1": float(np.mean([r.chosen.f1 for r in results["chosen"].values()])),
        "best_f1": float(np.mean([r.best.f1 for r in results["all"].values()])),
        "error": float(error),
        "error_all": float(error_all),
    }


def zero_shot(samples: list[Sample]) -> dict[str, Any]:
    """Any particle, by the shipped model alone, within 50 Å."""
    features = LearnedFeatures(model=load_model(find_model("general")))
    picks, truth = [], []
    for number, sample in enumerate(samples):
        bright = sample.tomogram.with_data(-np.asarray(sample.tomogram.data))
        found = find_candidates(features.embed(bright), centers=True).particles
        every = {"label": "particle", "tomogram": str(number)}
        picks.append(Particles(position=found.position, score=found.score, **every))
        truth.append(Particles(position=sample.particles.position, **every))
    all_picks, all_truth = Particles.concatenate(picks), Particles.concatenate(truth)
    result = evaluate_particles(all_picks, all_truth, radius=50.0).micro
    sure = all_picks[np.asarray(all_picks.score) > 0.5]
    chosen = evaluate_particles(sure, all_truth, radius=50.0).micro.chosen
    return {
        "run": "zero-shot",
        "tomograms": 0,
        "diameters": "",
        "f1": chosen.f1,
        "best_f1": result.best.f1,
        "error": float("nan"),
        "error_all": float("nan"),
        "seconds": 0.0,
    }


if __name__ == "__main__":
    sys.exit(main())
