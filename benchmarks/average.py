"""Downstream use: what picks of one protein give when they are aligned and averaged.

    python benchmarks/average.py --structures FOLDER [--protein LABEL] [--model general|FOLDER]
        [--condition crowded] [--tomograms N] [--cache FOLDER] [--picture FILE]

A protein is picked by `pick embedding` from one example in each tomogram where it occurs. The
particles are cut out, aligned, averaged with the weights of missing wedge, CTF and dose, and the
average is compared with the true structure by Fourier shell correlation. The alignment knows
nothing but the particles (`tomoloc.features.averages`): the true structure only tells how their
average lies, once it is there. Beside the picks: all true positions aligned in the same way, the
same in their true orientations, and random places, which show what noise alone would give.
"""

from __future__ import annotations

import argparse
import logging
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from tomoloc.evaluate import draw_random_particles, match_particles
from tomoloc.nn.stored import StoredModel
from tomoloc.physics.potential import make_potential
from tomoloc.physics.wedge import tilt_weights
from tomoloc.types import Particles, Sample, Volume
from unseen.averaging import (
    Poses,
    Stack,
    align,
    average,
    cut_out,
    resolution,
    soft_sphere,
)
from unseen.commands import make_parser
from unseen.machine import describe_machine
from unseen.methods import Embedded, open_model
from unseen.scenes import CONDITIONS, Protein, Scenes, find_proteins
from unseen.scores import RADIUS, draw_examples
from unseen.tables import print_table

Array = NDArray[Any]
COMPACT = 200.0
"""Å; larger proteins are not taken unless asked for."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Box:
    """What all particles of one protein share."""

    size: int
    voxel_spacing: float
    truth: Array
    mask: Array

    @classmethod
    def of(cls, protein: Protein, voxel_spacing: float) -> Box:
        """Make room for the protein and what its CTF spreads around it."""
        size = 2 * int(np.ceil(0.65 * protein.diameter / voxel_spacing)) + 5
        truth = make_potential(
            protein.read(),
            voxel_spacing=voxel_spacing,
            shape=(size,) * 3,
            low_pass=2 * voxel_spacing,
        )
        mask = soft_sphere(size, protein.diameter / voxel_spacing + 4)
        return cls(size=size, voxel_spacing=voxel_spacing, truth=truth.data, mask=mask)

    def weights(self, sample: Sample) -> Array:
        """Transfer of a box from specimen to tomogram, both bright."""
        series = sample.tomogram.tilt_series
        assert series is not None
        # Underfocus turns protein dark; the tomogram has been inverted.
        return -tilt_weights((self.size,) * 3, series, voxel_spacing=self.voxel_spacing)


@dataclass(frozen=True, eq=False, kw_only=True)
class Cut:
    """Boxes of one tomogram, which of them show the protein, and the true orientations of these."""

    bright: Volume
    position: Array
    stack: Stack
    right: Array
    true: Rotation

    def only_right(self) -> Stack:
        """Those that show the protein."""
        return Stack(boxes=self.stack.boxes[self.right], weights=self.stack.weights)


def main() -> int:
    given = read_arguments()
    if given.structures is None or not given.structures.is_dir():
        print("SKIP: no folder of structures; give --structures or set TOMOLOC_SHARED")
        return 0
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    if given.threads:
        torch.set_num_threads(given.threads)
    proteins = find_proteins(given.structures, cache=given.cache)
    scenes = Scenes(proteins=proteins, cache=given.cache, seed=given.seed)
    protein = choose(proteins, given.protein)
    model = open_model(given.model)
    print(f"machine: {describe_machine()}")
    print(f"model: {model.identity}; {protein.label}, {protein.mass_kda:.0f} kDa,", end=" ")
    print(f"{protein.diameter:.0f} Å, in {given.condition}\n")
    samples = find_samples(scenes, protein, given.condition, given.tomograms)
    box = Box.of(protein, samples[0].tomogram.voxel_spacing)
    tables = gather(samples, protein, model, given)
    lines, made = [], {}
    for name, positions in tables.items():
        start = time.perf_counter()
        cuts = [cut(s, p, protein, box) for s, p in zip(samples, positions, strict=True)]
        made[name], line = measure(cuts, box, oriented=name == "true poses")
        lines.append([name, *line, round(time.perf_counter() - start)])
    print_table(
        ["particles", "number", "right", "FSC 0.5 (Å)", "FSC 0.143 (Å)", "s"],
        lines,
    )
    print(f"resolutions are against the true structure; the finest possible is two voxels,"
          f" {2 * box.voxel_spacing:.0f} Å")  # fmt: skip
    if given.picture:
        draw({"truth": box.truth, **made}, given.picture)
    return 0


def read_arguments() -> argparse.Namespace:
    parser = make_parser(__doc__)
    parser.add_argument("--protein", help="label; by default a compact one of about 500 kDa")
    parser.add_argument("--condition", default="crowded", choices=CONDITIONS, metavar="NAME")
    parser.add_argument("--tomograms", type=int, default=1, help="with the protein, at most")
    parser.add_argument("--picture", type=Path, help="PNG of middle sections")
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"))
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def choose(proteins: list[Protein], label: str | None) -> Protein:
    if label is None:
        compact = [protein for protein in proteins if protein.diameter < COMPACT]
        return min(compact, key=lambda protein: abs(protein.mass_kda - 500))
    for protein in proteins:
        if protein.label == label:
            return protein
    raise SystemExit(f"no protein {label}; there are {', '.join(p.label for p in proteins)}")


def find_samples(scenes: Scenes, protein: Protein, condition: str, most: int) -> list[Sample]:
    numbers = [n for n in range(scenes.number(condition)) if protein in scenes.wanted(condition, n)]
    if not numbers:
        raise SystemExit(f"{protein.label} is in no tomogram of {condition}; give another one")
    return [scenes.sample(condition, n) for n in numbers[:most]]


def gather(
    samples: list[Sample], protein: Protein, model: StoredModel, given: argparse.Namespace
) -> dict[str, list[Particles]]:
    """Picks, true particles and as many random places, in each tomogram."""
    rng = np.random.default_rng(given.seed)
    tables: dict[str, list[Particles]] = {
        "picks": [], "true positions": [], "true poses": [], "random places": []
    }  # fmt: skip
    for sample in samples:
        truth = sample.particles
        labels = sorted(
            {
                str(label)
                for label, role in zip(truth.label, truth.extra["tomolocRole"], strict=True)
                if role == "target"
            }
        )
        _, examples = draw_examples(truth, labels, grid=sample.tomogram, rng=rng)
        embedded = Embedded(tomogram=sample.tomogram, model=model, device=given.device)
        picks = embedded.pick(embedded.targets(examples)).chosen(protein.label)
        own = truth[np.asarray(truth.label) == protein.label]
        tables["picks"].append(picks)
        tables["true positions"].append(own)
        tables["true poses"].append(own)
        tables["random places"].append(
            draw_random_particles(len(own), grid=sample.tomogram, rng=rng, label=protein.label)
        )
    return tables


def cut(sample: Sample, particles: Particles, protein: Protein, box: Box) -> Cut:
    """Cut out particles, protein bright, and note what they are."""
    bright: Volume = sample.tomogram.with_data(-np.asarray(sample.tomogram.data))
    boxes, rows = cut_out(bright, particles.position, size=box.size)
    truth = sample.particles[np.asarray(sample.particles.label) == protein.label]
    assert truth.rotation is not None
    right, true = np.zeros(len(rows), dtype=bool), truth.rotation[:0]
    if len(rows):
        pairs = match_particles(particles[rows], truth, radius=RADIUS).pairs
        right[pairs[:, 0]], true = True, truth.rotation[pairs[:, 1]]
    position = np.asarray(particles.position)[rows]
    stack = Stack(boxes=boxes, weights=box.weights(sample))
    return Cut(bright=bright, position=position, stack=stack, right=right, true=true)


def measure(cuts: list[Cut], box: Box, *, oriented: bool) -> tuple[Array, list[Any]]:
    """Average the particles of all tomograms; tell how good they and the average are."""
    cuts = [one for one in cuts if (one.right.any() if oriented else len(one.stack))]
    if not cuts:
        return np.zeros_like(box.truth), [0, 0, np.nan, np.nan]
    if oriented:
        made = average([one.only_right() for one in cuts], [known_poses(one) for one in cuts])
    else:
        poses = [align(one.bright, one.position, box.truth) for one in cuts]
        made = average([one.stack for one in cuts], poses)
    found = resolution(made, box.truth, voxel_spacing=box.voxel_spacing, mask=box.mask)
    n = sum(len(one.stack) for one in cuts)
    right = sum(int(one.right.sum()) for one in cuts)
    return made, [n, right, found[0.5], found[0.143]]


def known_poses(one: Cut) -> Poses:
    n = len(one.true)
    return Poses(rotation=one.true, shift=np.zeros((n, 3)), score=np.zeros(n))


def draw(densities: dict[str, Array], path: Path) -> None:
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(2, len(densities), figsize=(2.4 * len(densities), 4.9))
    for (above, below), (name, density) in zip(axes.T, densities.items(), strict=True):
        middle = density.shape[0] // 2
        above.imshow(density[middle], cmap="gray")
        below.imshow(density[:, middle], cmap="gray")
        above.set_title(name, fontsize=9)
        for panel in (above, below):
            panel.set_axis_off()
    figure.tight_layout()
    figure.savefig(path, dpi=150)
    plt.close(figure)


if __name__ == "__main__":
    sys.exit(main())
