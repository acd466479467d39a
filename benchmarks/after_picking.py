"""What picks that nobody has looked at are good for: `pick unsupervised`, then `cluster`, `train`.

    python benchmarks/after_picking.py --structures FOLDER [--condition NAME] [--first NAME...]
        [--steps N] [--tests N] [--cache FOLDER] [--json FILE]

Two of the tomograms of `unsupervised.py` are picked without any label; `tomoloc train centroid`
learns from these picks, starting from the shipped model; both pick other tomograms. All particles
count, one to one within 100 Å, at the default thresholds. --steps 0 does not train.

The first picks of each test are sorted by `tomoloc cluster --particles`: F1, within 50 Å, of the
proteins that the tomogram shows most of, each matched to one cluster.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import tomllib
from dataclasses import replace
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

from tomoloc.evaluate import match_particles
from tomoloc.io.samples import read_sample
from tomoloc.io.tables import read_particles
from tomoloc.types import Particles
from unseen.commands import call
from unseen.machine import describe_machine
from unseen.scenes import CONDITIONS, Scenes, find_proteins
from unseen.scores import match_clusters
from unseen.tables import print_table

RADIUS = 100.0
ROUNDS = {"learned": (), "invariant": ("--features", "invariant")}


def main() -> int:
    given = read_arguments()
    if given.structures is None or not given.structures.is_dir():
        print("SKIP: no folder of structures; give --structures or set TOMOLOC_SHARED")
        return 0
    print(f"machine: {describe_machine()}; {given.condition}, {given.steps} steps\n")
    proteins = find_proteins(given.structures, cache=given.cache)
    scenes = Scenes(proteins=proteins, cache=given.cache)
    for number in range(2 + given.tests):
        scenes.sample(given.condition, number)
    folders = [given.cache / f"{given.condition}_{i}" for i in range(2 + given.tests)]
    train, tests = folders[:2], folders[2:]
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as name:
        for first in given.first:
            folder = Path(name) / first
            taught, picks = folder / "taught", folder / "first"
            call("pick", "unsupervised", *files(train), *ROUNDS[first], "-o", str(taught))
            call("pick", "unsupervised", *files(tests), *ROUNDS[first], "-o", str(picks))
            kinds = sort(picks, tests, folder / "clusters")
            methods = {first: picks}
            model, second = folder / "model", folder / "second"
            seconds = 0.0
            if given.steps:
                seconds = train_and_pick(taught, train, model, tests, second, steps=given.steps)
                methods[f"{first}, then trained"] = second
            for method, found in methods.items():
                row = {"method": method, **score(found, tests)}
                row |= {"seconds": seconds} if found is second else {"kinds": kinds}
                rows.append(row)
                print(row, file=sys.stderr, flush=True)
    print_table(
        ["picks", "F1", "precision", "recall", "F1 of kinds", "training (s)"],
        (
            [
                r["method"], r["f1"], r["precision"], r["recall"], r.get("kinds", np.nan),
                r.get("seconds", np.nan),
            ]
            for r in rows
        ),
    )  # fmt: skip
    if given.steps:
        for before, after in zip(rows[::2], rows[1::2], strict=True):
            print(f"{before['method']}: F1 {after['f1'] - before['f1']:+.3f} by self-training")
    if given.json:
        content = {"machine": describe_machine(), "rows": rows}
        given.json.write_text(json.dumps(content, indent=1), "utf-8")
    return 0


def read_arguments() -> argparse.Namespace:
    shared = os.environ.get("TOMOLOC_SHARED")
    folder = Path(shared) / "structures" / "validation" if shared else None
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--structures", type=Path, default=folder)
    parser.add_argument("--condition", choices=list(CONDITIONS), default="cell")
    parser.add_argument("--first", nargs="+", choices=list(ROUNDS), default=list(ROUNDS))
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--tests", type=int, default=3, help="tomograms, two or more")
    parser.add_argument("--cache", type=Path, default=Path("build/unseen"), help="of scenes")
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


def files(folders: list[Path]) -> list[str]:
    return [str(folder / "tomogram.mrc") for folder in folders]


def train_and_pick(
    taught: Path, train: list[Path], model: Path, tests: list[Path], output: Path, *, steps: int
) -> float:
    """Train on picks and pick the tests; return the seconds of training."""
    start = perf_counter()
    call(
        "train", "centroid", "--particles", str(taught), "--tomograms", *files(train),
        "--diameter", f"{diameter_of(taught):.0f}", "--steps", str(steps), "-o", str(model),
    )  # fmt: skip
    seconds = perf_counter() - start
    call("pick", "centroid", *files(tests), "--model", str(model), "-o", str(output))
    return seconds


def sort(picks: Path, tests: list[Path], output: Path) -> float:
    """Cluster the picks of each test; return the mean F1 of proteins that were looked for."""
    call("embed", *files(tests), "-o", str(output / "embedded"))
    values: list[float] = []
    for folder in tests:
        embedding, clusters = output / "embedded" / f"{folder.name}.zarr", output / folder.name
        call(
            "cluster", str(embedding), "--particles", str(picks), "--no-pictures",
            "-o", str(clusters),
        )  # fmt: skip
        truth = read_sample(folder).particles
        wanted = np.asarray(truth.extra["tomolocRole"]) == "target"
        labels = np.unique(np.asarray(truth.label)[wanted]).tolist()
        found = replace(read_particles(clusters / f"{folder.name}.star"), extra={})
        found = replace(found, tomogram=truth.tomograms[0])
        values += [f1 for _, f1 in match_clusters(found, truth, labels=labels).values()]
    return float(np.mean(values))


def diameter_of(picks: Path) -> float:
    """What the unsupervised picker took the particles to be, in angstrom."""
    records = [tomllib.loads(path.read_text("utf-8")) for path in sorted(picks.glob("*.run.toml"))]
    return float(np.mean([record["results"]["diameter"] for record in records]))


def score(picks: Path, tests: list[Path]) -> dict[str, float]:
    """Mean over tomograms, whatever the kind of a particle."""
    numbers = []
    for folder in tests:
        found = _bare(read_particles(picks / f"{folder.name}.star"))
        match = match_particles(found, _bare(read_sample(folder).particles), radius=RADIUS)
        numbers.append((match.f_score(), match.precision, match.recall))
    return dict(zip(("f1", "precision", "recall"), np.mean(numbers, axis=0).tolist(), strict=True))


def _bare(particles: Particles) -> Particles:
    return replace(particles, label="", tomogram="", extra={})


if __name__ == "__main__":
    sys.exit(main())
