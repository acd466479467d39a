"""What makes the embeddings of `pick embedding` good: the number of kinds to learn, and the loss.

    python benchmarks/embedding_training.py [--steps N] [--runs NAME...] [--threads N] [--json FILE]

A narrow network learns from twelve tomograms of 14 random complexes each, six of each, and is
tested on three tomograms of complexes that none has met. Runs:

* 14, 42, 168: as many kinds of complexes in the twelve tomograms, with the loss of `tomoloc train
  embedding` (supervised contrastive)
* triplet: 168 kinds with triplets of an anchor, one like it and the semi-hard negative nearest to
  it, as TomoTwin is trained
* proxies: 168 kinds with a softmax over one learned vector for each

Accuracy: particles whose nearest example, one for each label of their tomogram, is right. F1: of
picks with one example each, at the best threshold.
"""

from __future__ import annotations

import argparse
import itertools
import json
import logging
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from tomoloc.io.samples import read_sample
from tomoloc.train.loop import TrainSettings, make_encoder, train
from tomoloc.train.patches import OFF_CENTER, Patching, label_number
from tomoloc.train.similarity import SimilarityTask
from tomoloc.types import Sample
from unseen.commands import simulate
from unseen.machine import describe_machine
from unseen.tables import print_table

SCENE = """
name = "{name}"

[specimen]
shape = [64, 128, 136]
voxel_spacing = 10.0
border = "cut"

[microscope]
tilt_min = -60
tilt_max = 60
tilt_step = 3
dose_e_per_a2 = 130
defocus_um = [2.5, 4.5]
"""
SPECIES = """
[[species]]
structure = {{ seed = {seed}, mass_kda = {mass} }}
label = "s{seed}"
count = 6
"""
EACH, SCENES, TESTS, UNSEEN = 14, 12, 3, 10_000
RUNS = ("14", "42", "168", "triplet", "proxies")
NETWORK: dict[str, Any] = {"widths": (16, 32, 64), "down": (1, 1, 1), "up": (1, 1), "head": 48}


@dataclass(frozen=True, kw_only=True)
class Triplets(SimilarityTask):
    """Semi-hard triplets (Schroff, Kalenichenko & Philbin 2015, doi:10.1109/CVPR.2015.7298682)."""

    margin: float = 0.3

    def compare(self, embedding: Tensor, label: Tensor, instance: Tensor) -> Tensor:
        """Mean over anchors that have a like, kinds counting alike."""
        v = functional.normalize(embedding.float(), dim=1)
        similarity = v @ v.T
        other = instance[:, None] != instance[None]
        alike = (label[:, None] == label[None]) & other & (label != OFF_CENTER)[:, None]
        anchor = alike.any(dim=1)
        if not bool(anchor.any()):
            return embedding.sum() * 0
        positive = torch.multinomial(alike[anchor].float(), 1)
        near = similarity[anchor].gather(1, positive)
        unlike = (label[:, None] != label[None])[anchor]
        semi_hard = unlike & (similarity[anchor] < near)
        negative = similarity[anchor].masked_fill(~semi_hard, -1).amax(dim=1, keepdim=True)
        each = functional.relu(negative - near + self.margin)[:, 0]
        _, group, size = label[anchor].unique(return_inverse=True, return_counts=True)
        return (each / size[group]).sum() / len(size)


@dataclass(frozen=True, kw_only=True)
class Proxies(SimilarityTask):
    """A softmax over cosines to one vector for each kind (arXiv:1811.12649)."""

    kinds: tuple[int, ...] = ()
    vectors: Tensor = field(default_factory=lambda: torch.zeros(0, 32))

    def compare(self, embedding: Tensor, label: Tensor, instance: Tensor) -> Tensor:  # noqa: ARG002
        """Mean over points, kinds counting alike; background is one more."""
        v = functional.normalize(embedding.float(), dim=1)
        logits = v @ functional.normalize(self.vectors, dim=1).T / self.temperature
        numbers = {kind: row for row, kind in enumerate(self.kinds, start=1)}
        target = torch.tensor([numbers.get(int(one), 0) for one in label])
        each = functional.cross_entropy(logits, target, reduction="none")
        _, group, size = target.unique(return_inverse=True, return_counts=True)
        return (each / size[group]).sum() / len(size)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--runs", nargs="+", choices=RUNS, default=[*RUNS])
    parser.add_argument("--threads", type=int)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    if given.threads:
        torch.set_num_threads(given.threads)
    print(f"machine: {describe_machine()}; {given.steps} steps\n")
    rows = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        tests = make_scenes(folder, "tests", TESTS, first=UNSEEN, pool=TESTS * EACH)
        for run in given.runs:
            pool = int(run) if run.isdigit() else SCENES * EACH
            samples = make_scenes(folder, f"pool{pool}", SCENES, first=0, pool=pool)
            start = perf_counter()
            scores = teach(run, samples, tests, folder / run, given.steps)
            rows.append({"run": run, "kinds": pool, **scores, "seconds": perf_counter() - start})
            print(rows[-1], file=sys.stderr, flush=True)
    print_table(
        ["run", "kinds", "accuracy", "F1", "F1 of centres", "training (s)"],
        (
            [r["run"], r["kinds"], r["accuracy"], r["pick_f1"], r["center_f1"], r["seconds"]]
            for r in rows
        ),
    )
    if given.json:
        content = {"machine": describe_machine(), "steps": given.steps, "rows": rows}
        given.json.write_text(json.dumps(content, indent=1), "utf-8")
    return 0


def make_scenes(folder: Path, name: str, number: int, *, first: int, pool: int) -> list[Sample]:
    """Simulate tomograms whose complexes are drawn in turn from a pool of them."""
    rng = np.random.default_rng([first, pool])
    mass = np.exp(rng.uniform(*np.log((60, 900)), pool)).round(1)
    turns = itertools.cycle(rng.permutation(pool).tolist())
    samples = []
    for scene in range(number):
        title = f"{name}-{scene}"
        text = SCENE.format(name=title)
        for one in itertools.islice(turns, EACH):
            text += SPECIES.format(seed=first + one, mass=mass[one])
        if not (folder / title).is_dir():
            simulate(folder, title, text, 1)
        samples.append(read_sample(next((folder / title).iterdir())))
    return samples


def teach(
    run: str, samples: list[Sample], tests: list[Sample], folder: Path, steps: int
) -> dict[str, float]:
    """Train a network, and score it on complexes that it has not met."""
    model = make_encoder(seed=0, **NETWORK)
    patching = Patching(number=4, shape=(64, 64, 64))
    settings = TrainSettings(
        steps=steps, warm_up=50, decay=0.4, average=0.98, ring=SCENES, first=SCENES,
        steps_per_sample=1e9, patching=patching, validate_every=steps, learning_rate=2e-3,
    )  # fmt: skip
    common: dict[str, Any] = {"patching": patching, "temperature": settings.temperature}
    task: SimilarityTask
    if run == "triplet":
        task = Triplets(**common)
    elif run == "proxies":
        labels = sorted({str(name) for s in samples for name in s.particles.labels})
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(1)
            vectors = nn.Parameter(torch.randn(len(labels) + 1, 32))
        model.register_parameter("proxies", vectors)
        task = Proxies(**common, kinds=tuple(map(label_number, labels)), vectors=vectors)
    else:
        task = SimilarityTask(**common)

    def source(number: int) -> Iterator[Sample]:
        return itertools.islice(itertools.cycle(samples), number % len(samples), None)

    found = train(model, source, settings=settings, folder=folder, task=task)
    prepared = [task.prepare(sample) for sample in tests]
    return task.validate(found, prepared, device="cpu")._asdict()


if __name__ == "__main__":
    sys.exit(main())
