"""Template Learning: a network trained on simulated crowds alone, against other tomograms.

    python benchmarks/template_learning.py [--targets NAME...] [--runs NAME...] [--samples N]
        [--steps N] [--channels N N N] [--tests N] [--json FILE]

Real structures and maps (environment variable TOMOLOC_SHARED): the mitochondrial ribosome as a
density map, and nucleosomes as three atomic structures. Networks of `tomoloc train segmentation`
learn from --samples tomograms of `LEARN`, which follows the shipped recipe template-learning:
flexible variants among distractors of 30 kDa to 1 MDa, packed until they touch, many settings of
the microscope. They are tested on tomograms of `TEST`, a recipe that differs in dose, defocus, tilt
range, voxel size, crowding and distractors, and has vesicles. Runs:

* full: as above
* no-distractors, no-crowding, rigid, one-setting: without one of these
* matching: `tomoloc pick template` with the same map or structure, the tilt range told

F1 at the threshold that the model, or the search, sets by itself, and at the best one, one to one
within half a diameter. Side views: of the particles found, the mean of |cos| of the angle between
the beam and the structure's most distinct axis of inertia, 0.5 where none is preferred, and the
probability of a Kolmogorov-Smirnov test against all particles that are there.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import ks_2samp

from tomoloc.evaluate import evaluate_particles, match_particles
from tomoloc.io.structures import read_structure
from tomoloc.io.tables import read_particles
from tomoloc.nn.stored import load_model
from tomoloc.types import Particles, Structure
from unseen.commands import call, simulate
from unseen.machine import describe_machine
from unseen.tables import print_table

LEARN = """
name = "learn"

[specimen]
shape = [48, 112, 120]
voxel_spacing = {spacing}
border = "cut"
{packing}

[microscope]
{optics}

[[species]]
structure = {templates}
label = "{target}"
count = {count}
{flexible}
"""
CROWD = """
[[species]]
structure = "{folder}/train"
choose = 60
count = 1
label = "distractor"
role = "distractor"
"""
TEST = """
name = "test"

[specimen]
shape = {shape}
voxel_spacing = {spacing}
border = "cut"

[microscope]
tilt_min = -54
tilt_max = 57
tilt_step = 3
dose_e_per_a2 = 110
defocus_um = [4.5, 5.5]
shift_error = 3

[[species]]
structure = {template}
label = "{target}"
count = {count}

[[species]]
structure = "{folder}/validation"
count = 5
label = "other"
role = "distractor"

[[membranes]]
shape = "sphere"
count = 2
diameter = [350, 500]
"""
DISTRACTORS, HEAVIEST = 100, 92
CROWDED = 'clearance = 20\npacking = "tetris"\nfraction = 0.2'
ANY_OPTICS = """tilt_min = { one_of = [-60, -40] }
tilt_max = { one_of = [60, 40] }
tilt_step = { one_of = [2, 4] }
dose_e_per_a2 = { one_of = [75, 150] }
defocus_um = { one_of = [2.5, 3.25, 4.0] }"""
ONE_OPTICS = """tilt_min = -60
tilt_max = 60
tilt_step = 2
dose_e_per_a2 = 150
defocus_um = 2.5"""
TARGETS: dict[str, dict[str, Any]] = {
    "ribosome": {
        "templates": ["maps/5mrc_10A.mrc"], "spacing": 13.5, "count": 6,
        "test_spacing": 10.0, "test_shape": [96, 200, 216], "test_count": 20,
    },
    "nucleosome": {
        "templates": [f"structures/train/{name}.pdb.gz" for name in ("2pyo", "3lz0", "7kbe")],
        "spacing": 10.0, "count": 20,
        "test_spacing": 8.0, "test_shape": [80, 160, 176], "test_count": 40,
    },
}  # fmt: skip
RUNS: dict[str, dict[str, Any]] = {
    "full": {},
    "no-distractors": {"crowd": False},
    "no-crowding": {"packing": ""},
    "rigid": {"flexible": ""},
    "one-setting": {"optics": ONE_OPTICS},
    "matching": {},
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--targets", nargs="+", choices=TARGETS, default=[*TARGETS])
    parser.add_argument("--runs", nargs="+", choices=RUNS, default=[*RUNS])
    parser.add_argument("--samples", type=int, default=10, help="to learn from")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--channels", type=int, nargs="+", default=[12, 18, 24])
    parser.add_argument("--tests", type=int, default=3, help="tomograms, at least two")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    if given.tests < 2:
        parser.error("--tests must be at least 2")
    shared = Path(os.environ.get("TOMOLOC_SHARED", ""))
    if not (shared / "maps").is_dir():
        print("SKIP: no real structures; set TOMOLOC_SHARED")
        return 0
    print(
        f"machine: {describe_machine()}; {given.samples} tomograms, {given.steps} steps, channels"
        f" {given.channels}\n"
    )
    rows = []
    for target in given.targets:
        with tempfile.TemporaryDirectory() as name:
            trial = Trial(Path(name), shared.resolve(), target, given)
            for run in given.runs:
                # Ablations are of the ribosome: each is a training of its own.
                if target == given.targets[0] or run in {"full", "matching"}:
                    rows.append({"target": target, "run": run, **trial(run)})
                    print(rows[-1], file=sys.stderr, flush=True)
    print_table(
        ["target", "run", "F1", "precision", "recall", "best F1", "cosine", "p", "training (s)"],
        (
            [r[key] for key in ("target", "run", "f1", "precision", "recall", "best_f1", "cosine")]
            + [f"{r['p']:.2g}", r["seconds"]]
            for r in rows
        ),
    )
    if given.json:
        content = {"machine": describe_machine(), "steps": given.steps, "rows": rows}
        given.json.write_text(json.dumps(content, indent=1), "utf-8")
    return 0


class Trial:
    """One target, and the tomograms that its networks are tested on."""

    def __init__(self, folder: Path, shared: Path, target: str, given: argparse.Namespace) -> None:
        self.folder, self.shared, self.target, self.given = folder, shared, target, given
        self.own = TARGETS[target]
        self.templates = [str(shared / path) for path in self.own["templates"]]
        text = TEST.format(
            shape=self.own["test_shape"],
            spacing=self.own["test_spacing"],
            template=json.dumps(self.templates[0]),
            target=target,
            count=self.own["test_count"],
            folder=shared / "structures",
        )
        self.tests = simulate(folder, "test", text, given.tests)
        self.truth = Particles.concatenate(
            [read_particles(path / "particles.star") for path in self.tests]
        )
        self.truth = self.truth[np.asarray(self.truth.label) == target]

    def __call__(self, run: str) -> dict[str, float]:
        """Train, pick, score."""
        start = perf_counter()
        if run == "matching":
            diameter, seconds = self._diameter, 0.0
            words = ["--template", self.templates[0], "--label", self.target]
            words += ["--tilt-range", "-54", "57"]
            method, low = "template", "0.1"
        else:
            model = self._train(run)
            (kind,) = load_model(model).config["classes"]
            diameter, seconds = kind["diameter"], perf_counter() - start
            words, method, low = ["--model", str(model)], "segmentation", "0.1"
        chosen = self._pick(run, method, words)
        every = self._pick(f"{run}-all", method, [*words, "--threshold", low])
        radius = {self.target: diameter / 2}
        result, best = (
            evaluate_particles(
                picks, self.truth, radius=radius, diameter={self.target: diameter}
            ).micro
            for picks in (chosen, every)
        )
        found = match_particles(chosen, self.truth, radius=diameter / 2).pairs[:, 1]
        cosine = self._cosines()
        some = len(found) > 0
        return {
            "f1": result.chosen.f1,
            "precision": result.chosen.precision,
            "recall": result.chosen.recall,
            "best_f1": max(best.best.f1, result.chosen.f1),
            "cosine": float(cosine[found].mean()) if some else float("nan"),
            "p": float(ks_2samp(cosine[found], cosine).pvalue) if some else float("nan"),
            "seconds": seconds,
        }

    def _train(self, run: str) -> Path:
        changes = RUNS[run]
        text = LEARN.format(
            spacing=self.own["spacing"],
            packing=changes.get("packing", CROWDED),
            optics=changes.get("optics", ANY_OPTICS),
            templates=json.dumps(self.templates),
            target=self.target,
            count=self.own["count"],
            flexible=changes.get("flexible", "conformers = 6\nrmsd = [2, 6]"),
        )
        if changes.get("crowd", True):
            text += CROWD.format(folder=self._distractors())
        data = simulate(self.folder, run, text, self.given.samples)
        model = self.folder / f"model-{run}"
        call(
            "train", "segmentation", "--data", str(data[0].parent), "--labels", self.target,
            "--steps", str(self.given.steps), "--patience", "0", "--learning-rate", "0.004",
            "--channels", *map(str, self.given.channels),
            "--voxel-spacing", str(self.own["spacing"]), "-o", str(model),
        )  # fmt: skip
        return model

    def _distractors(self) -> Path:
        """Link structures that are no target, and no relative of one, into a folder."""
        place = self.folder / "structures"
        if place.is_dir():
            return place
        (place / "train").mkdir(parents=True)
        table = pd.read_csv(self.shared / "structures" / "index.csv")
        names = [Path(path).name.split(".")[0] for path in self.templates]
        barred = table["cluster"][table["id"].isin(names)]
        fit = table["kda"].between(30, 1000) & (table["split"] == "train")
        fit &= ~table["cluster"].isin(barred)
        for name in table["file"][fit].sample(frac=1.0, random_state=0):
            source = self.shared / "structures" / name
            # The simulator knows no heavier elements.
            if source.is_file() and read_structure(source).atomic_number.max() <= HEAVIEST:
                (place / "train" / source.name).symlink_to(source)
            if len(list((place / "train").iterdir())) == DISTRACTORS:
                break
        return place

    def _pick(self, name: str, method: str, words: list[str]) -> Particles:
        picks = self.folder / f"picks-{name}"
        files = [str(path / "tomogram.mrc") for path in self.tests]
        call("pick", method, *files, "-o", str(picks), *words)
        return Particles.concatenate(
            [read_particles(picks / f"{path.name}.star") for path in self.tests]
        )

    def _points(self) -> tuple[np.ndarray, np.ndarray]:
        """Places of the template's matter, xyz in Å, and how much is there."""
        template = read_structure(self.templates[0])
        if isinstance(template, Structure):
            return template.position, np.ones(len(template.position))
        data = np.maximum(np.asarray(template.data, dtype=float), 0)
        index = np.argwhere(data > 0.2 * data.max())
        return template.to_position(index), data[tuple(index.T)]

    @property
    def _diameter(self) -> float:
        place, weight = self._points()
        away = np.linalg.norm(place - np.average(place, axis=0, weights=weight), axis=1)
        return 2 * float(np.quantile(away, 0.98))

    def _cosines(self) -> np.ndarray:
        """Of the angle between the beam and the most distinct axis of each true particle."""
        place, weight = self._points()
        values, axes = np.linalg.eigh(np.cov(place.T, aweights=weight))
        axis = axes[:, 0] if values[1] - values[0] > values[2] - values[1] else axes[:, 2]
        if self.truth.rotation is None:
            raise ValueError("the truth has no rotations")
        return np.abs(self.truth.rotation.apply(axis)[:, 2])


if __name__ == "__main__":
    sys.exit(main())
