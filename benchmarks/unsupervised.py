"""How well `pick unsupervised` finds particles with nothing chosen by hand, and what it costs.

    python benchmarks/unsupervised.py --structures FOLDER [--conditions NAME...] [--tomograms N]
        [--paper N] [--noise N] [--cache FOLDER] [--json FILE] [--picture FILE]
    python benchmarks/unsupervised.py --speed

Simulated tomograms of real proteins that neither the network nor the weights of the other scores
were made with, those of `generalize.py`: sparse and crowded (seven kinds, or eleven, 20 or 100 of
each) and cell-like (16 further kinds, vesicles, gold, misalignment); and the recipe `cytoplasm`
(eleven kinds, 16 further ones, vesicles with two kinds in their membranes, actin, microtubules,
rough ice). All particles count, whatever their kind; filaments do not. Picks count one to one
within 100 Å and within 50 Å, and by PickET's own rule, in which any pick within 100 Å is right,
with its relative recall. Beside them, as published: the two of PickET's workflows that its paper
found best on simulated and on real tomograms, denoised by diffusion; the paper states no watershed
distance, it is 5 voxels here.

--speed measures one workflow after the other, and all of them together, on 512 x 512 x 200 voxels,
each in a process of its own.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from tomoloc.evaluate import evaluate_particles, match_particles
from tomoloc.features.denoise import denoise
from tomoloc.pickers.pick import pick
from tomoloc.pickers.unsupervised import UnsupervisedPicker
from tomoloc.pickers.workflows import WORKFLOWS, Workflow
from tomoloc.types import Particles, Sample, Tomogram
from unseen.machine import describe_machine
from unseen.scenes import Protein, Scenes, find_proteins
from unseen.tables import SIZES, Row, mean, print_table, where

GOALS = {
    "sparse": 0.96, "crowded": 0.95, "cell": 0.92,
    "eleven": 0.96, "eleven-crowded": 0.95, "cytoplasm": 0.92,
}  # fmt: skip
CONDITIONS = tuple(GOALS)
RADIUS, CLOSE = 100.0, 50.0
DEFAULT = "default"
SHAPE = (200, 512, 512)
SECONDS, ALL_SECONDS, GIB = 30.0, 240.0, 4.0
IN_NOISE = 5
PUBLISHED = (
    Workflow("gabor", "gmm", "components"),
    Workflow("gabor", "kmeans", "watershed"),
)
"""What the paper found best on simulated and on real tomograms."""


def main() -> int:
    given = read_arguments()
    if given.one:
        print(json.dumps(measure(given.one)))
        return 0
    print(f"machine: {describe_machine()}\n")
    if given.speed:
        return report_speed()
    if given.structures is None or not given.structures.is_dir():
        print("SKIP: no folder of structures; give --structures or set TOMOLOC_SHARED")
        return 0
    proteins = find_proteins(given.structures, cache=given.cache)
    scenes = Scenes(proteins=proteins, cache=given.cache, seed=given.seed)
    rows: list[Row] = []
    for condition in given.conditions:
        for number in range(given.tomograms):
            start = time.perf_counter()
            sample = scenes.sample(condition, number)
            for method, picks in run(sample, paper=number < given.paper):
                rows.append(
                    {
                        "condition": condition,
                        "tomogram": number,
                        "method": method,
                        **score(picks, sample, proteins),
                    }
                )
            seconds = time.perf_counter() - start
            best = where(rows, condition=condition, tomogram=number, method=DEFAULT)[0]
            words = f"{condition}_{number}: default {best['f1']:.3f}, {seconds:.0f} s"
            print(words, file=sys.stderr, flush=True)
    report(rows, given.conditions)
    if given.picture:
        draw(scenes.sample(given.conditions[-1], 0), given.picture)
    noise = [count_in_noise(scenes, number) for number in range(given.noise)]
    report_noise(noise)
    if given.json:
        content = {"machine": describe_machine(), "rows": rows, "noise": noise}
        given.json.write_text(json.dumps(content, indent=1), "utf-8")
    return 0


def read_arguments() -> argparse.Namespace:
    shared = os.environ.get("TOMOLOC_SHARED")
    folder = Path(shared) / "structures" / "validation" if shared else None
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--structures", type=Path, default=folder)
    parser.add_argument("--conditions", nargs="+", choices=CONDITIONS, default=list(CONDITIONS))
    parser.add_argument("--tomograms", type=int, default=3, help="of each condition")
    parser.add_argument("--paper", type=int, default=1, help="tomograms for the published ones")
    parser.add_argument("--noise", type=int, default=2, help="tomograms without particles")
    parser.add_argument("--cache", type=Path, default=Path("build/unseen"), help="of scenes")
    parser.add_argument("--json", type=Path, help="all scores")
    parser.add_argument("--picture", type=Path, help="of the default in the last condition")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--speed", action="store_true", help="time and memory instead")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    return parser.parse_args()


# ------------------------------------------------------------------------------------- measure


def run(sample: Sample, *, paper: bool) -> Iterator[tuple[str, Particles]]:
    """Pick with the default, with all workflows, and with those of the paper."""
    tomogram = sample.tomogram
    yield DEFAULT, pick(tomogram, UnsupervisedPicker()).particles
    every = pick(tomogram, UnsupervisedPicker(all=True))
    for label in every.scores.labels:
        yield label, every.particles[np.asarray(every.particles.label) == label]
    if paper:
        smooth = denoise(tomogram, "diffusion")
        for workflow in WORKFLOWS:
            if workflow in PUBLISHED:
                picker = UnsupervisedPicker(**workflow._asdict(), paper=True, smallest=0.0)
                # a distance that suppresses none of its centroids
                found = pick(smooth, picker, contrast="dark", min_distance=1.0)
                yield f"paper {workflow}", found.particles


def score(picks: Particles, sample: Sample, proteins: Sequence[Protein]) -> dict[str, Any]:
    """Score picks against all particles, whatever their kind."""
    mass = {protein.label: protein.mass_kda for protein in proteins}
    kinds = np.array([mass[label] for label in sample.particles.label])
    truth = replace(sample.particles, label="", extra={})
    picks = replace(picks, label="", extra={})
    if not len(picks):
        numbers = dict.fromkeys(("f1", "precision", "recall", "f1_close", "any", "relative"), 0.0)
        return {**numbers, "precision": np.nan, "error": np.nan, "n": 0, **_by_size(kinds, [])}
    match = match_particles(picks, truth, radius=RADIUS)
    close = match_particles(picks, truth, radius=CLOSE)
    grids = {sample.tomogram.name: sample.tomogram}
    theirs = evaluate_particles(picks, truth, radius=RADIUS, rule="picket", grids=grids).micro
    return {
        "f1": match.f_score(),
        "precision": match.precision,
        "recall": match.recall,
        "f1_close": close.f_score(),
        "any": theirs.chosen.f1,
        "relative": float(theirs.relative_recall),
        "error": float(np.median(match.distances)) if match.n_tp else np.nan,
        "n": len(picks),
        **_by_size(kinds, match.pairs[:, 1]),
    }


def _by_size(kinds: np.ndarray, found: Sequence[int] | np.ndarray) -> dict[str, float]:
    hit = np.isin(np.arange(len(kinds)), found)
    recalls = {}
    for low, high in SIZES:
        own = (kinds >= low) & (kinds < high)
        recalls[f"{low:.0f}-{high:.0f}"] = float(hit[own].mean()) if own.any() else np.nan
    return recalls


def count_in_noise(scenes: Scenes, number: int) -> dict[str, int]:
    """Picks of the default and of the best workflow without a network in ice alone."""
    tomogram = scenes.noise(number).tomogram
    plain = UnsupervisedPicker(features="invariant")
    pickers = {DEFAULT: UnsupervisedPicker(), "invariant": plain}
    return {
        name: len(pick(tomogram, picker, contrast="dark").particles)
        for name, picker in pickers.items()
    }


def measure(words: str) -> dict[str, float]:
    """Pick in a large tomogram of blobs and noise, in this process."""
    data = np.random.default_rng(0).standard_normal(SHAPE, dtype=np.float32)
    rng = np.random.default_rng(1)
    z, y, x = np.mgrid[-6:7, -6:7, -6:7]
    blob = -3 * np.exp(-(z**2 + y**2 + x**2) / 18).astype(np.float32)
    for place in rng.integers(8, np.array(SHAPE) - 8, (2000, 3)):
        data[tuple(slice(p - 6, p + 7) for p in place)] += blob
    tomogram = Tomogram(data=data, voxel_spacing=10.0, name="large")
    del data
    given = {"all": True} if words == "all" else dict(zip(_FIELDS, words.split("-"), strict=True))
    picker = UnsupervisedPicker(**given)
    start = time.perf_counter()
    found = pick(tomogram, picker)
    return {
        "seconds": time.perf_counter() - start,
        "gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
        "n": len(found.particles),
    }


_FIELDS = ("features", "clustering", "instances")


# -------------------------------------------------------------------------------------- report


def report(rows: Sequence[Row], conditions: Sequence[str]) -> None:
    print("Mean over tomograms at the default threshold. F1, precision, recall: one to one within")
    print("100 Å; near: F1 within 50 Å; any, relative: F1 and relative recall by PickET's rule;")
    print("error: median distance of right picks from the true centre in Å\n")
    head = [
        "condition", "workflow", "picks", "F1", "precision", "recall", "near", "any", "relative",
        "error",
    ]  # fmt: skip
    keys = ("f1", "precision", "recall", "f1_close", "any", "relative", "error")
    lines = []
    for condition in conditions:
        own = where(rows, condition=condition)
        for method in dict.fromkeys(row["method"] for row in own):
            part = where(own, method=method)
            counts = f"{mean(row['n'] for row in part):.0f}"
            values = [mean(row[key] for row in part) for key in keys]
            lines.append([condition, method, counts, *values])
    print_table(head, lines)
    print("Recall by mass, one to one within 100 Å\n")
    names = [f"{low:.0f}-{high:.0f}" for low, high in SIZES]
    lines = []
    for condition in conditions:
        for method in (DEFAULT, "invariant-kmeans-watershed", "gabor-kmeans-watershed"):
            part = where(rows, condition=condition, method=method)
            lines.append([condition, method, *(mean(row[name] for row in part) for name in names)])
    print_table(["condition", "workflow", *(f"{name} kDa" for name in names)], lines)
    for condition in conditions:
        f1 = mean(row["f1"] for row in where(rows, condition=condition, method=DEFAULT))
        verdict = "PASS" if f1 >= GOALS[condition] else "FAIL"
        print(f"{verdict}: default, {condition}: F1 {f1:.3f}, goal {GOALS[condition]}")
    print(flush=True)


def draw(sample: Sample, path: Path) -> None:
    """A slice with the default's picks in it, and the segmentation of the same slice."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    tomogram = sample.tomogram
    found = pick(tomogram, UnsupervisedPicker()).particles
    bright = tomogram.with_data(-np.asarray(tomogram.data))
    (instances,) = UnsupervisedPicker().find_instances(bright).values()
    truth = replace(sample.particles, label="", extra={})
    right = match_particles(replace(found, label="", extra={}), truth, radius=RADIUS).pairs[:, 0]
    height = tomogram.center[2]
    section = round(tomogram.to_index(tomogram.center)[0])
    image = np.asarray(tomogram.data[section - 2 : section + 3]).mean(axis=0)
    low, high = np.percentile(image, (0.5, 99.5))
    labels = instances.labels
    here = np.clip(round(labels.to_index(tomogram.center)[0]), 0, labels.shape[0] - 1)
    numbers = np.asarray(labels.data[here - 1 : here + 2]).max(axis=0)
    sure = np.append(False, instances.score > 0.5)
    shown = np.where(sure[numbers], 1 + numbers % 19, 0)
    figure, axes = plt.subplots(1, 2, figsize=(11, 5), layout="constrained")
    side = (0, tomogram.extent[0] / 10, 0, tomogram.extent[1] / 10)
    for panel in axes:
        panel.imshow(image, cmap="gray", vmin=low, vmax=high, origin="lower", extent=side)
        panel.set(xlabel="x (nm)", ylabel="y (nm)")
    near = np.abs(found.position[:, 2] - height) < 60
    good = np.isin(np.arange(len(found)), right)
    for chosen, color in ((good, "tab:green"), (~good, "tab:red")):
        place = (found.position[near & chosen] - tomogram.origin) / 10
        axes[0].scatter(place[:, 0], place[:, 1], s=90, facecolors="none", edgecolors=color)
    axes[0].set_title("picks: right green, wrong red")
    axes[1].imshow(
        np.ma.masked_equal(shown, 0), cmap="tab20", origin="lower", extent=side, alpha=0.8,
        interpolation="nearest",
    )  # fmt: skip
    axes[1].set_title("segmentation")
    figure.savefig(path, dpi=90, pil_kwargs={"quality": 80} if path.suffix == ".jpg" else {})
    plt.close(figure)


def report_noise(counts: Sequence[dict[str, int]]) -> None:
    for name in counts[0] if counts else ():
        numbers = [row[name] for row in counts]
        verdict = "PASS" if max(numbers) < IN_NOISE else "FAIL"
        print(f"{verdict}: {name}, ice without particles: {numbers} picks, fewer than {IN_NOISE}")


def report_speed() -> int:
    lines, passed = [], True
    kinds = dict.fromkeys(workflow.features for workflow in WORKFLOWS)
    names = [f"{features}-kmeans-watershed" for features in kinds]
    for words in [*names, "all"]:
        command = [sys.executable, __file__, "--one", words]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        result = json.loads(done.stdout.splitlines()[-1])
        limit = ALL_SECONDS if words == "all" else SECONDS
        good = result["seconds"] <= limit and result["gib"] <= GIB
        passed &= good
        lines.append(
            [words, f"{result['seconds']:.1f}", f"{limit:g}", f"{result['gib']:.2f}",
             "PASS" if good else "FAIL"]
        )  # fmt: skip
        print(lines[-1], file=sys.stderr, flush=True)
    print_table(["workflow", "seconds", "goal", "GiB", ""], lines)
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
