"""Measure the weights of `pickers/shapes.py`: python training/unsupervised.py --structures DIR.

Scenes of the benchmarks' recipes, sparse, crowded and cell-like, with structures that no benchmark
uses, and ice without any. The numbers printed are put into `pickers/shapes.py` by hand.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

import numpy as np
from sklearn.linear_model import LogisticRegression

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

from tomoloc.evaluate import match_particles
from tomoloc.features.blobs import Seeds
from tomoloc.pickers.shapes import describe_seeds
from tomoloc.pickers.workflows import Workbench
from tomoloc.types import Particles, Sample
from unseen.scenes import Scenes, find_proteins

RADIUS = 70.0  # Å within which a seed is a particle
CONDITIONS = ("sparse", "crowded", "cell", "cell")


def main() -> int:
    shared = os.environ.get("TOMOLOC_SHARED")
    folder = Path(shared) / "structures" / "train" if shared else None
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--structures", type=Path, default=folder, required=folder is None)
    parser.add_argument("--cache", type=Path, default=Path("build/unsupervised"))
    parser.add_argument("--scenes", type=int, default=2, help="of each condition")
    parser.add_argument("--seed", type=int, default=11)
    given = parser.parse_args()
    proteins = find_proteins(given.structures, cache=given.cache)
    scenes = Scenes(proteins=proteins, cache=given.cache, seed=given.seed)
    rows, right = [], []
    samples = [scenes.noise(0)]
    for number in range(given.scenes):
        for offset, condition in enumerate(CONDITIONS):
            samples.append(scenes.sample(condition, len(CONDITIONS) * number + offset))
    for sample in samples:
        seeds, own = look(sample)
        print(f"{sample.tomogram.name}: {own.sum()} of {len(sample.particles)} in {len(own)} seeds")
        rows.append(describe_seeds(seeds))
        right.append(own)
    x, y = np.concatenate(rows), np.concatenate(right)
    center, scale = x.mean(axis=0), x.std(axis=0)
    model = LogisticRegression(C=1.0, max_iter=3000).fit((x - center) / scale, y)
    weights = model.coef_[0] / scale
    intercept = float(model.intercept_[0] - weights @ center)
    print(f"_INTERCEPT = {intercept:.3f}\n_SHARE = {y.mean():.4f}")
    print(f"_WEIGHTS = ({', '.join(f'{w:.3f}' for w in weights)})")
    return 0


def look(sample: Sample) -> tuple[Seeds, np.ndarray]:
    """Seeds of a tomogram, and which of them are particles."""
    tomogram = sample.tomogram
    bench = Workbench(tomogram.with_data(-np.asarray(tomogram.data, dtype=np.float32)))
    seeds = bench.find_seeds()
    truth = Particles(position=sample.particles.position)
    own = np.zeros(len(seeds), dtype=int)
    if len(truth):
        pairs = match_particles(Particles(position=seeds.position), truth, radius=RADIUS).pairs
        own[pairs[:, 0]] = 1
    return seeds, own


if __name__ == "__main__":
    sys.exit(main())
