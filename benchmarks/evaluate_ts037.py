"""Score real pick lists of tomogram TS_037 (EMPIAR-10988) against published truth.

Usage: python benchmarks/evaluate_ts037.py [FOLDER]

FOLDER (default $TOMOLOC_SHARED/picks) holds TS_037_truth_ribosomes.csv and the six lists of
Maurer et al. 2024, doi:10.1107/S2059798324004303: ribosome template and two negative controls of
two programs. Prints F1 of the rules `greedy` (best over cuts, and the cut) and `gated` (the
first 1,646 picks) beside reference values, and F1 of all rules to show what a rule alone does.
Exit code 1 if a value differs by more than 0.005.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from time import perf_counter

import numpy as np

from tomoloc.evaluate import RULES, evaluate_particles, match_particles
from tomoloc.types import Particles

SPACING = 13.48
TOLERANCE = 0.005
REFERENCE = {
    "pytme_ribosome": {5: (0.460, 1713, 0.458), 10: (0.636, 1705, 0.632)},
    "pytme_sphere": {5: (0.401, 1543, 0.396), 10: (0.608, 1783, 0.599)},
    "pytme_emoji": {5: (0.430, 1564, 0.428), 10: (0.643, 1568, 0.640)},
    "pytom_ribosome": {5: (0.433, 1747, 0.429), 10: (0.606, 1547, 0.602)},
    "pytom_sphere": {5: (0.339, 1700, 0.336), 10: (0.536, 1700, 0.533)},
    "pytom_emoji": {5: (0.355, 1698, 0.354), 10: (0.559, 1827, 0.558)},
}


def read(folder: Path, name: str) -> Particles:
    table = np.loadtxt(folder / f"TS_037_{name}.csv", delimiter=",", skiprows=1)
    return Particles(position=table[:, :3] * SPACING, score=table[:, 3], tomogram="TS_037")


def main() -> int:
    default = Path(os.environ.get("TOMOLOC_SHARED", "../shared")) / "picks"
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else default
    rows = np.loadtxt(folder / "TS_037_truth_ribosomes.csv", delimiter=",")
    truth = Particles(position=rows * SPACING, tomogram="TS_037")
    failures, start = 0, perf_counter()
    print("list            voxels    greedy (cut)       reference    gated   ref.")
    for name, reference in REFERENCE.items():
        picks = read(folder, name)
        first = picks[np.argsort(-picks.score, kind="stable")[: len(truth)]]
        for voxels, (f1, cut, gated) in reference.items():
            radius = voxels * SPACING
            best = evaluate_particles(picks, truth, radius=radius, rule="greedy").micro.best
            ours = match_particles(first, truth, radius=radius).f_score()
            good = max(abs(best.f1 - f1), abs(ours - gated)) <= TOLERANCE and best.n_picks == cut
            failures += not good
            print(
                f"{name:<15} {voxels:>6}   {best.f1:>7.3f} ({best.n_picks})"
                f" {f1:>7.3f} ({cut})   {ours:>6.3f} {gated:>6.3f}   {'PASS' if good else 'FAIL'}"
            )
    print(f"\n{12 - failures} of 12 within {TOLERANCE} in {perf_counter() - start:.1f} s\n")
    picks = read(folder, "pytme_ribosome")
    first = picks[np.argsort(-picks.score, kind="stable")[: len(truth)]]
    print("F1 of the first 1,646 picks of pytme_ribosome by rule and radius")
    print(f"{'rule':<10} {'3 voxels':>9} {'5 voxels':>9} {'10 voxels':>9}")
    for rule in RULES:
        scores = [
            match_particles(first, truth, radius=v * SPACING, rule=rule).f_score()
            for v in (3, 5, 10)
        ]
        print(f"{rule:<10} " + " ".join(f"{score:>9.3f}" for score in scores))
    return int(failures > 0)


if __name__ == "__main__":
    sys.exit(main())
