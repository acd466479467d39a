"""How well `pick embedding` finds proteins that no model was trained on, from one example each.

    python benchmarks/generalize.py --structures FOLDER [--model general|FOLDER]
        [--conditions NAME...] [--tomograms N] [--shots K...] [--template-matching N]
        [--views N] [--no-average] [--without PROTEIN...] [--noise-only] [--de-novo]
        [--cache FOLDER] [--json FILE] [--picture FILE]

Seven proteins in each simulated tomogram, each protein in one at least of every condition:

* sparse: TomoTwin's conditions: 10 Å voxels, ±60° in steps of 2 or 3°, 150 e/Å2; 20 of each
* crowded: five times as many
* cell: sixteen other proteins as distractors, vesicles, gold, misalignment of 0.4 voxel, 110 e/Å2
* tilt50, tilt40, dose135, dose120: as sparse, at the same places, with other optics
* spacing13: voxels of 13 Å; small: proteins of 40 to 150 kDa alone

An example is a particle well inside its tomogram, pointed at with an error of 5 to 10 Å. Examples
are left out of the score: they are neither found nor missed. Picks count one to one within 50 Å.
Everything is repeated with other draws of examples, and a protein's score is its mean over them.

Beside it: the same network before any training and, on a few proteins, template matching with the
true structure, both scored alike.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numba
import numpy as np
import torch
from numpy.typing import NDArray

from tomoloc.nn.stored import StoredModel
from tomoloc.train.frames import Views
from tomoloc.types import Particles, Sample, Tomogram
from unseen.commands import make_parser
from unseen.machine import describe_machine
from unseen.methods import Embedded, Found, cluster, find_with_template, open_model, random_model
from unseen.scenes import CONDITIONS, Protein, Scenes, find_proteins
from unseen.scores import draw_examples, match_clusters, score_detection, score_picks
from unseen.tables import SIZES, Row, by_protein, draw_picture, mean, print_table, summarize, where

DETECTED = 0.5
"""Probability of a centre from which on a place counts as a particle."""
GOALS = {
    "sparse": (0.96, 0.98),
    "crowded": (0.95, 0.97),
    "cell": (0.85, 0.90),
    "small": (0.9, 0.93),
}
LARGE = (150.0, 900.0)
"""Masses in kDa that the first three goals are for."""
DETECTION_GOALS = {"sparse": 0.96, "crowded": 0.94, "cell": 0.92}
NOISE_SEEDS = 5
FOUND = 0.5
"""F1 from which on a protein counts as found by a cluster."""
APART = 1e6
"""Å between tomograms that are scored as one."""
MARGIN = 60.0
"""Å from the rim of a crop within which nothing counts."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Bench:
    """Scenes, methods and how often."""

    scenes: Scenes
    models: dict[str, StoredModel]
    draws: int
    shots: Sequence[int]
    device: str
    views: Views
    average: bool
    seed: int
    kept: dict[tuple[str, str], Embedded] = field(default_factory=dict)

    def embed(self, tomogram: Tomogram, *, model: StoredModel | None = None) -> Embedded:
        """Embed a tomogram with a model, the trained one by default; the last one is kept."""
        model = model or self.models["embedding"]
        key = (tomogram.name, model.identity)
        if key not in self.kept:
            self.kept.clear()
            self.kept[key] = Embedded(
                tomogram=tomogram,
                model=model,
                device=self.device,
                views=self.views,
                average=self.average,
            )
        return self.kept[key]

    def examples(
        self, sample: Sample, labels: Sequence[str], *, number: int, draw: int, shots: int = 1
    ) -> tuple[NDArray[np.intp], Particles]:
        """The same for all models and, at the same places, for all optics."""
        rng = np.random.default_rng([self.seed, 3, number, draw, shots])
        return draw_examples(sample.particles, labels, grid=sample.tomogram, rng=rng, shots=shots)


def main() -> int:
    given = read_arguments()
    if given.structures is None or not given.structures.is_dir():
        print("SKIP: no folder of structures; give --structures or set TOMOLOC_SHARED")
        return 0
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    if given.threads:
        torch.set_num_threads(given.threads)
        numba.set_num_threads(given.threads)
    try:
        model = open_model(given.model)
    except (OSError, ValueError) as error:
        sys.exit(str(error))
    models = {"embedding": model}
    if not given.skip_random:
        models["random weights"] = random_model(model, seed=given.seed)
    proteins = find_proteins(given.structures, cache=given.cache)
    bench = Bench(
        scenes=Scenes(proteins=proteins, cache=given.cache, seed=given.seed),
        models=models,
        draws=given.draws,
        shots=given.shots,
        device=given.device,
        views=given.views,
        average=given.average,
        seed=given.seed,
    )
    print(f"machine: {describe_machine()}")
    print(f"model: {model.identity}; {len(proteins)} proteins; {given.draws} draws of examples")
    print(f"views of each tomogram: {given.views}; averages: {'yes' if given.average else 'no'}\n")
    kinds = ("picks", "detection", "template", "noise", "clusters", "pooled")
    results: dict[str, list[Row]] = {kind: [] for kind in kinds}
    for condition in given.conditions:
        n = min(given.tomograms or bench.scenes.number(condition), bench.scenes.number(condition))
        for number in range(n):
            start = time.perf_counter()
            picks, detection = run_tomogram(bench, condition, number)
            results["picks"] += picks
            results["detection"] += detection
            tell(f"{condition}_{number}", picks, time.perf_counter() - start)
            if given.de_novo:
                results["clusters"] += run_clusters(bench, condition, number)
        if given.de_novo:
            results["pooled"] += run_pooled(bench, condition, n)
        for number in range(min(n, given.template_matching)):
            results["template"] += compare_template(bench, condition, number, given)
    report(results, given.conditions, without=given.without)
    if given.noise_only:
        results["noise"] = count_in_noise(bench)
        report_noise(results["noise"])
    keep(results, given, model=model.identity)
    return 0


def keep(results: dict[str, list[Row]], given: argparse.Namespace, *, model: str) -> None:
    """Write the scores and the picture that are asked for."""
    if given.picture and results["picks"]:
        draw_picture(where(results["picks"], shots=min(given.shots)), given.picture)
    if given.json:
        about = {"machine": describe_machine(), "model": model, "views": given.views}
        about["average"] = given.average
        content = {**about, **results}
        given.json.write_text(json.dumps(_plain(content), indent=1), "utf-8")


def read_arguments() -> argparse.Namespace:
    parser = make_parser(__doc__)
    parser.add_argument(
        "--conditions", nargs="+", choices=CONDITIONS, default=list(CONDITIONS), metavar="NAME"
    )
    parser.add_argument("--tomograms", type=int, help="of each condition; all by default")
    parser.add_argument("--draws", type=int, default=3, help="of examples")
    parser.add_argument("--shots", nargs="+", type=int, default=[1], help="examples of each label")
    parser.add_argument(
        "--template-matching", type=int, default=0, metavar="N", help="tomograms of a condition"
    )
    parser.add_argument("--template-proteins", type=int, default=3, help="of each such tomogram")
    parser.add_argument("--angular-step", type=float, default=15.0, help="of template matching")
    parser.add_argument("--views", type=int, choices=(1, 2, 4), default=4, help="of a tomogram")
    parser.add_argument(
        "--no-average", dest="average", action="store_false", help="judge by vectors alone"
    )
    parser.add_argument("--noise-only", action="store_true", help="count picks in empty ice, too")
    parser.add_argument("--skip-random", action="store_true", help="no untrained network beside")
    parser.add_argument("--de-novo", action="store_true", help="cluster without examples, too")
    parser.add_argument(
        "--without",
        nargs="+",
        default=[],
        metavar="PROTEIN",
        help="means by mass without these, too",
    )
    parser.add_argument("--json", type=Path, help="all scores")
    parser.add_argument("--picture", type=Path, help="PNG of F1 against mass")
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"))
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


# ------------------------------------------------------------------------------------- measure


def run_tomogram(bench: Bench, condition: str, number: int) -> tuple[list[Row], list[Row]]:
    """Pick in one tomogram with each model, draw of examples and number of them."""
    sample = bench.scenes.sample(condition, number)
    proteins = bench.scenes.wanted(condition, number)
    picks, detection = [], []
    for method, model in bench.models.items():
        embedded = bench.embed(sample.tomogram, model=model)
        about = {"condition": condition, "method": method, "tomogram": number}
        found = score_detection(embedded.candidates.particles, sample.particles, threshold=DETECTED)
        detection.append({**about, **asdict(found)})
        for shots in bench.shots:
            for draw in range(bench.draws):
                scores = run_draw(bench, embedded, sample, proteins, number, draw, shots)
                picks += [{**about, "shots": shots, "draw": draw, **score} for score in scores]
    return picks, detection


def run_draw(
    bench: Bench,
    embedded: Embedded,
    sample: Sample,
    proteins: Sequence[Protein],
    number: int,
    draw: int,
    shots: int,
) -> list[Row]:
    labels = [protein.label for protein in proteins]
    rows, examples = bench.examples(sample, labels, number=number, draw=draw, shots=shots)
    found = embedded.pick(embedded.targets(examples))
    scores = score_picks(
        found.picks, sample.particles, labels=labels, threshold=found.threshold, examples=rows
    )
    return [
        {"mass_kda": protein.mass_kda, "diameter": protein.diameter, **asdict(score)}
        for protein, score in zip(proteins, scores, strict=True)
    ]


def run_clusters(bench: Bench, condition: str, number: int) -> list[Row]:
    """Cluster one tomogram without examples; score members, and picks with the targets."""
    sample = bench.scenes.sample(condition, number)
    proteins = bench.scenes.wanted(condition, number)
    labels = [protein.label for protein in proteins]
    embedded = bench.embed(sample.tomogram)
    targets, members = embedded.cluster()
    tables = {"members": members}
    if len(targets):
        found = embedded.pick(targets)
        chosen = [found.chosen(name) for name in targets.labels]
        tables["pick --targets"] = Particles.concatenate(chosen)
    rows = []
    for method, picks in tables.items():
        matched = match_clusters(picks, sample.particles, labels=labels)
        about = {"condition": condition, "method": method, "tomogram": number}
        about["n_clusters"] = len(targets)
        rows += cluster_rows(about, matched, proteins)
    return rows


def run_pooled(bench: Bench, condition: str, n: int) -> list[Row]:
    """Cluster all tomograms together, which have seven proteins each, and each its own."""
    candidates, truth = [], []
    proteins: list[Protein] = []
    for number in range(n):
        sample = bench.scenes.sample(condition, number)
        found = bench.embed(sample.tomogram).candidates
        apart = np.array([number * APART, 0.0, 0.0])
        moved = found.particles.position + apart
        particles = replace(found.particles, position=moved, tomogram="")
        candidates.append(replace(found, particles=particles))
        moved = sample.particles.position + apart
        truth.append(replace(sample.particles, position=moved, tomogram="", extra={}))
        proteins += bench.scenes.wanted(condition, number)
    targets, members = cluster(candidates, bench.models["embedding"])
    labels = sorted({protein.label for protein in proteins})
    matched = match_clusters(members, Particles.concatenate(truth), labels=labels)
    about = {"condition": condition, "method": "members", "n_clusters": len(targets)}
    return cluster_rows(about, matched, proteins)


def cluster_rows(
    about: Row, matched: dict[str, tuple[str, float]], proteins: Sequence[Protein]
) -> list[Row]:
    masses = {protein.label: protein.mass_kda for protein in proteins}
    return [
        {**about, "label": label, "mass_kda": masses[label], "cluster": cluster, "f1": f1}
        for label, (cluster, f1) in matched.items()
    ]


def compare_template(
    bench: Bench, condition: str, number: int, given: argparse.Namespace
) -> list[Row]:
    """Search a quarter of a tomogram with true structures, beside the embedding picker there.

    The picker sees the whole tomogram, of which it needs an example; both are scored in the crop.
    """
    sample = bench.scenes.sample(condition, number)
    proteins = sorted(bench.scenes.wanted(condition, number), key=lambda p: p.mass_kda)
    chosen = np.linspace(0, len(proteins) - 1, given.template_proteins).round().astype(int)
    crop = crop_quarter(sample.tomogram)
    low, high = crop.origin + MARGIN, crop.origin + crop.extent - crop.voxel_spacing - MARGIN

    def inside(particles: Particles) -> NDArray[np.bool_]:
        # Along z the crop is the tomogram, where all counts.
        within = (particles.position >= low) & (particles.position <= high)
        return np.asarray(within[:, :2].all(axis=1))

    kept = np.flatnonzero(inside(sample.particles))
    embedded = bench.embed(sample.tomogram)
    labels = [protein.label for protein in proteins]
    rows: list[Row] = []

    def note(method: str, protein: Protein, found: Found, examples: NDArray[np.intp]) -> None:
        (score,) = score_picks(
            found.picks[inside(found.picks)],
            sample.particles[kept],
            labels=[protein.label],
            threshold=found.threshold,
            examples=np.flatnonzero(np.isin(kept, examples)),
        )
        about = {"condition": condition, "method": method, "tomogram": number}
        kind = {"mass_kda": protein.mass_kda, "diameter": protein.diameter}
        rows.append({**about, **kind, **asdict(score)})

    none = np.zeros(0, dtype=np.intp)
    for protein in (proteins[i] for i in chosen):
        start = time.perf_counter()
        found = find_with_template(
            crop, protein, angular_step=given.angular_step, device=bench.device
        )
        note("template", protein, found, none)
        tell(f"{condition}_{number} {protein.label}", rows[-1:], time.perf_counter() - start)
    for draw in range(bench.draws):
        chosen_rows, examples = bench.examples(sample, labels, number=number, draw=draw)
        found = embedded.pick(embedded.targets(examples))
        for protein in (proteins[i] for i in chosen):
            note("embedding", protein, found, chosen_rows)
    return rows


def crop_quarter(tomogram: Tomogram) -> Tomogram:
    """The middle half of a tomogram along x and y."""
    z, y, x = tomogram.shape
    part = tomogram.crop((0, y // 4, x // 4), (z, y // 4 + y // 2, x // 4 + x // 2))
    return replace(tomogram, data=np.asarray(part.data), origin=part.origin)


def count_in_noise(bench: Bench) -> list[Row]:
    """Count picks in tomograms of ice, with examples from the tomograms of `sparse`."""
    rows = []
    targets = {}
    for number in range(bench.scenes.number("sparse")):
        sample = bench.scenes.sample("sparse", number)
        labels = [protein.label for protein in bench.scenes.wanted("sparse", number)]
        embedded = bench.embed(sample.tomogram)
        _, examples = bench.examples(sample, labels, number=number, draw=0)
        targets[number] = embedded.targets(examples)
    for seed in range(NOISE_SEEDS):
        tomogram = bench.scenes.noise(seed).tomogram
        embedded = bench.embed(tomogram)
        for number, wanted in targets.items():
            found = embedded.pick(wanted)
            rows += [
                {"tomogram": number, "seed": seed, "label": label, "n": len(found.chosen(label))}
                for label in wanted.labels
            ]
    return rows


# -------------------------------------------------------------------------------------- report


def report(
    results: dict[str, list[Row]], conditions: Sequence[str], *, without: Sequence[str] = ()
) -> None:
    picks = results["picks"]
    several = len({row["shots"] for row in picks}) > 1
    head = [
        "condition", "method", "proteins", "F1", "median", "goal", "best F1", "median", "goal",
        "false", "error (Å)", "% of diameter",
    ]  # fmt: skip
    print("F1 by protein at the default threshold and at the best one; false picks of a label in a")
    print("tomogram, and mean distance of right ones from the true centre, at the default one\n")
    print_table(head, table_lines(picks, conditions, several=several))
    print(
        "By mass, one example (mean F1 at the default / at the best threshold); goals from 150 kDa"
    )
    print("on as above, and below 150 kDa 0.90 / 0.93 where particles are sparse\n")
    few = where(picks, shots=min((row["shots"] for row in picks), default=1))
    head = ["condition", "method", *(f"{low:.0f}-{high:.0f} kDa" for low, high in (*SIZES, LARGE))]
    print_twice(head, size_lines, few, conditions, without)
    print(
        "Each protein, one example, the worst first (F1 at the default / at the best threshold)\n"
    )
    print_table(["protein", "kDa", *conditions], protein_lines(few, conditions))
    print(f"Detection whatever the label, at a probability of {DETECTED} and at the best one\n")
    head = ["condition", "method", "F1", "goal", "best F1", "precision", "recall"]
    print_table(head, detection_lines(results["detection"], conditions))
    if results["clusters"]:
        print("De novo, without any example: each protein matched to one cluster of its tomogram;")
        print(f"found are those with F1 of {FOUND} or more (goals: 0.93, all found)\n")
        low, high = LARGE
        large = f"{low:.0f}-{high:.0f} kDa"
        head = ["condition", "method", "F1", "median", large, "found", "clusters"]
        print_twice(head, cluster_lines, results["clusters"], conditions, without)
    if results["pooled"]:
        print("The same with all tomograms of a condition in one pool\n")
        head = ["condition", "F1", "median", "found", "proteins", "clusters"]
        print_table(head, pooled_lines(results["pooled"], conditions))
    if results["template"]:
        print("Template matching with the true structure, on a quarter of a few tomograms\n")
        head = ["condition", "method", "proteins", "F1", "best F1", "false", "error (Å)"]
        print_table(head, template_lines(results["template"], conditions))


def print_twice(
    head: Sequence[str],
    lines: Callable[[Sequence[Row], Sequence[str]], Iterator[list[Any]]],
    rows: Sequence[Row],
    conditions: Sequence[str],
    without: Sequence[str],
) -> None:
    """Print a table, and once more without some proteins."""
    print_table(head, lines(rows, conditions))
    if without:
        print(f"The same without {' and '.join(without)}\n")
        kept = [row for row in rows if row["label"] not in without]
        print_table(head, lines(kept, conditions))


def groups(rows: Sequence[Row], conditions: Sequence[str]) -> Iterator[tuple[str, str, list[Row]]]:
    for condition in conditions:
        own = where(rows, condition=condition)
        for method in dict.fromkeys(row["method"] for row in own):
            yield condition, method, where(own, method=method)


def table_lines(
    rows: Sequence[Row], conditions: Sequence[str], *, several: bool
) -> Iterator[list[Any]]:
    for condition, method, own in groups(rows, conditions):
        for shots in dict.fromkeys(row["shots"] for row in own):
            s = summarize(where(own, shots=shots))
            goal, best = GOALS.get(condition, (np.nan, np.nan))
            name = f"{method}, {shots} example{'s' * (shots > 1)}" if several else method
            yield [
                condition, name, int(s["proteins"]), s["f1"], s["median"], goal, s["best_f1"],
                s["best_median"], best, s["n_fp"], s["error"], s["error_percent"],
            ]  # fmt: skip


def size_lines(rows: Sequence[Row], conditions: Sequence[str]) -> Iterator[list[Any]]:
    for condition, method, own in groups(rows, conditions):
        cells = []
        for low, high in (*SIZES, LARGE):
            part = [row for row in own if low <= row["mass_kda"] < high]
            s = summarize(part) if part else None
            cells.append(f"{s['f1']:.3f} / {s['best_f1']:.3f}" if s else "-")
        yield [condition, method, *cells]


def protein_lines(rows: Sequence[Row], conditions: Sequence[str]) -> Iterator[list[Any]]:
    own = where(rows, method="embedding")
    proteins = sorted(by_protein(own), key=lambda row: float(row["f1"]))
    for protein in proteins:
        cells = []
        for condition in conditions:
            part = by_protein(where(own, label=protein["label"], condition=condition))
            cells += [f"{row['f1']:.2f} / {row['best_f1']:.2f}" for row in part] or ["-"]
        yield [protein["label"], f"{protein['mass_kda']:.0f}", *cells]


def detection_lines(rows: Sequence[Row], conditions: Sequence[str]) -> Iterator[list[Any]]:
    for condition, method, own in groups(rows, conditions):
        f1, best, precision, recall = (
            mean(row[key] for row in own) for key in ("f1", "best_f1", "precision", "recall")
        )
        yield [
            condition,
            method,
            f1,
            DETECTION_GOALS.get(condition, np.nan),
            best,
            precision,
            recall,
        ]


def cluster_lines(rows: Sequence[Row], conditions: Sequence[str]) -> Iterator[list[Any]]:
    for condition, method, own in groups(rows, conditions):
        f1 = np.array([row["f1"] for row in own])
        large = mean(row["f1"] for row in own if LARGE[0] <= row["mass_kda"] < LARGE[1])
        found = int((f1 >= FOUND).sum())
        clusters = mean(row["n_clusters"] for row in own)
        yield [
            condition, method, float(f1.mean()), float(np.median(f1)), large,
            f"{found} of {len(own)}", f"{clusters:.1f}",
        ]  # fmt: skip


def pooled_lines(rows: Sequence[Row], conditions: Sequence[str]) -> Iterator[list[Any]]:
    for condition, _, own in groups(rows, conditions):
        f1 = np.array([row["f1"] for row in own])
        found = int((f1 >= FOUND).sum())
        numbers = [found, len(own), own[0]["n_clusters"]]
        yield [condition, float(f1.mean()), float(np.median(f1)), *numbers]


def template_lines(rows: Sequence[Row], conditions: Sequence[str]) -> Iterator[list[Any]]:
    for condition, method, own in groups(rows, conditions):
        s = summarize(own)
        labels = ", ".join(dict.fromkeys(str(row["label"]) for row in own))
        yield [condition, method, labels, s["f1"], s["best_f1"], s["n_fp"], s["error"]]


def report_noise(rows: Sequence[Row]) -> None:
    counts = np.array([row["n"] for row in rows])
    by_label: dict[str, int] = {}
    for row in rows:
        by_label[row["label"]] = by_label.get(row["label"], 0) + row["n"]
    worst = sorted(by_label, key=lambda label: -by_label[label])[:3]
    print(f"Ice without particles, {NOISE_SEEDS} tomograms, {len(by_label)} labels: ", end="")
    print(f"at most {counts.max()} picks of a label in a tomogram (goal: 1), {counts.mean():.3f}")
    print(f"on average; most over all: {', '.join(f'{w} {by_label[w]}' for w in worst)}")
    print(f"{'PASS' if counts.max() <= 1 else 'FAIL'}\n", flush=True)


def tell(name: str, rows: Sequence[Row], seconds: float) -> None:
    """One line for each step on the way, on the error stream."""

    def of(method: str) -> float:
        return mean(row["f1"] for row in where(rows, method=method))

    methods = dict.fromkeys(row["method"] for row in rows)
    words = ", ".join(f"{method} {of(method):.2f}" for method in methods)
    print(f"{name}: F1 {words}; {seconds:.0f} s", file=sys.stderr, flush=True)


def _plain(value: Any) -> Any:
    """What JSON can hold: no numbers of NumPy's, and none that is not a number."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not np.isfinite(value) else value


if __name__ == "__main__":
    sys.exit(main())
