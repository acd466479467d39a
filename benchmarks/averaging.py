"""What averages of candidates tell: which of them are of one kind, and how long that takes.

    python benchmarks/averaging.py --structures FOLDER [--conditions NAME...] [--tomograms N]
        [--cache FOLDER] [--threads N]

In the tomograms of benchmarks/generalize.py, candidates are aligned, averaged and classified as
`tomoloc pick embedding` does it, without any example. An average is of the kind that most of its
members are. A particle is right if it fits an average of its own kind best. Beside it, the same of
the groups of like vectors that the averages start from.
"""

from __future__ import annotations

import argparse
import resource
import sys
import time
from collections.abc import Sequence

import numba
import numpy as np
import torch
from numpy.typing import NDArray

from tomoloc.features.classification import classify_candidates
from tomoloc.features.kinds import find_kinds
from tomoloc.pickers.calibration import label_candidates
from tomoloc.pickers.competition import Calibration
from unseen.commands import make_parser
from unseen.machine import describe_machine
from unseen.methods import Embedded, open_model
from unseen.scenes import CONDITIONS, Scenes, find_proteins
from unseen.tables import print_table

FEWEST = 3
"""Particles of a kind that can be told from others at all."""


def main() -> int:
    given = read_arguments()
    if given.structures is None or not given.structures.is_dir():
        print("SKIP: no folder of structures; give --structures or set TOMOLOC_SHARED")
        return 0
    if given.threads:
        torch.set_num_threads(given.threads)
        numba.set_num_threads(given.threads)
    model = open_model(given.model)
    spread = Calibration.of(model.config).spread
    proteins = find_proteins(given.structures, cache=given.cache)
    scenes = Scenes(proteins=proteins, cache=given.cache, seed=0)
    print(f"machine: {describe_machine()}; threads: {torch.get_num_threads()}\n")
    lines = []
    for condition in given.conditions:
        for number in range(min(given.tomograms, scenes.number(condition))):
            sample = scenes.sample(condition, number)
            embedded = Embedded(tomogram=sample.tomogram, model=model, views=4)
            found, label = label_candidates(embedded.features, sample)
            bright = sample.tomogram.with_data(-np.asarray(sample.tomogram.data))
            start = time.perf_counter()
            averages = classify_candidates(bright, found, spread=spread)
            seconds = time.perf_counter() - start
            kinds = find_kinds(found.vectors, np.asarray(found.particles.score), spread=spread)
            grouped = kinds.membership(found.vectors)
            best = np.where(
                np.isfinite(averages.gain).any(axis=1), averages.gain.argmax(axis=1), -1
            )
            members = np.full(len(found), -1)
            for i, average in enumerate(averages.averages):
                members[average.rows] = i
            lines.append([
                f"{condition}_{number}", len(found), count_kinds(label), len(averages),
                share(label, best, members), share(label, grouped.argmax(axis=1)), seconds,
                1e3 * seconds / len(found),
            ])  # fmt: skip
            print(f"{condition}_{number}: {seconds:.0f} s", file=sys.stderr, flush=True)
    head = ["tomogram", "candidates", "kinds", "averages", "right", "right by vectors"]
    print_table([*head, "time (s)", "ms per candidate"], lines)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"peak memory, with the network: {peak:.1f} GiB")
    return 0


def count_kinds(label: NDArray[np.str_]) -> int:
    names, counts = np.unique(label[label != ""], return_counts=True)
    return len(names[counts >= FEWEST])


def share(
    label: NDArray[np.str_], group: NDArray[np.intp], members: NDArray[np.intp] | None = None
) -> float:
    """Particles, of kinds that are there a few times, whose group is mostly of their kind."""
    members = group if members is None else members
    names, counts = np.unique(label[label != ""], return_counts=True)
    kept = np.isin(label, names[counts >= FEWEST])
    mostly = {
        int(k): most_common(label[(members == k) & (label != "")])
        for k in np.unique(members[members >= 0])
    }
    right = [mostly.get(int(k)) == name for k, name in zip(group[kept], label[kept], strict=True)]
    return float(np.mean(right))


def most_common(label: Sequence[str] | NDArray[np.str_]) -> str:
    names, counts = np.unique(label, return_counts=True)
    return str(names[counts.argmax()]) if len(names) else ""


def read_arguments() -> argparse.Namespace:
    parser = make_parser(__doc__)
    parser.add_argument(
        "--conditions", nargs="+", choices=CONDITIONS, default=["sparse", "crowded", "cell"]
    )
    parser.add_argument("--tomograms", type=int, default=2, help="of each condition")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
