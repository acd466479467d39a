"""Whether template matching gives as many false picks in mere noise as --false-positives says.

    python benchmarks/template_false_positives.py [--seeds N] [--step DEGREES] [--picture FILE]

Tomograms of ice without particles, as the simulator makes them; one search each, whose threshold is
then set for 0.1, 1 and 10 expected false positives. Of the picks above it, a quarter should lie in
a mask of a quarter of the tomogram.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np

from tomoloc.localize import find_peaks
from tomoloc.pickers.template import TemplatePicker
from tomoloc.simulate.recipe import Recipe
from tomoloc.simulate.scene import Simulator
from tomoloc.simulate.settings import Microscope, Specimen
from tomoloc.simulate.structures import make_complex
from tomoloc.types import Volume
from unseen.machine import describe_machine
from unseen.tables import print_table

EXPECTED = (0.1, 1.0, 10.0)
SHAPE = (64, 120, 136)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--step", type=float, default=20.0)
    parser.add_argument("--picture", type=Path)
    given = parser.parse_args()
    print(f"machine: {describe_machine()}\n")
    recipe = Recipe(
        name="ice",
        specimen=Specimen(shape=SHAPE, voxel_spacing=10.0, border="cut"),
        microscope=Microscope(tilt_step=3.0, dose_e_per_a2=100.0, defocus_um=3.0),
    )
    simulator = Simulator(recipe)
    picker = TemplatePicker(
        template=make_complex(3, mass_kda=500), angular_step=given.step, separate=False
    )
    distance = picker.particle_diameter / 2
    counts = np.zeros((given.seeds, len(EXPECTED), 2), dtype=int)
    for seed in range(given.seeds):
        sample = simulator.render(simulator.draw(np.random.default_rng(seed)))
        dark = sample.tomogram
        scores = picker.score(dark.with_data(-np.asarray(dark.data)))
        quarter = np.zeros(scores.shape, dtype=bool)
        quarter[:, : SHAPE[1] // 2, : SHAPE[2] // 2] = True
        mask = Volume(data=quarter, voxel_spacing=scores.voxel_spacing, origin=scores.origin)
        for row, expected in enumerate(EXPECTED):
            how = replace(picker, false_positives=expected)
            # The threshold is that of the whole tomogram: in a quarter of it there is a quarter.
            threshold = how.threshold(scores, min_distance=distance)
            for column, region in enumerate((None, mask)):
                found = find_peaks(scores, threshold=threshold, min_distance=distance, mask=region)
                counts[seed, row, column] = len(found)
        print(f"{seed}: {counts[seed].tolist()}", file=sys.stderr, flush=True)
    mean, error = counts.mean(axis=0), counts.std(axis=0) / np.sqrt(given.seeds)
    print_table(
        ["stated", "found", "standard error", "in a quarter", "part"],
        (
            [e, mean[i, 0], error[i, 0], mean[i, 1], mean[i, 1] / max(mean[i, 0], 1e-9)]
            for i, e in enumerate(EXPECTED)
        ),
    )
    if given.picture:
        draw(mean, error, given.picture)
    # Of 0.1 a seed, a few in all: its own error is half of it.
    good = all(m <= 2 * e + 2 * s and m >= e / 2 - 2 * s for e, m, s in
               zip(EXPECTED, mean[:, 0], error[:, 0], strict=True))  # fmt: skip
    part = mean[-1, 1] / max(mean[-1, 0], 1e-9)
    good &= 0.15 < part < 0.35
    print(f"{'PASS' if good else 'FAIL'}  within a factor of two; a quarter of it in a quarter")
    return 0 if good else 1


def draw(mean: np.ndarray, error: np.ndarray, path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4, 3.4), layout="constrained")
    axes = figure.subplots()
    for column, (part, words) in enumerate([(1, "tomogram"), (0.25, "mask of a quarter")]):
        axes.plot([0.05, 20], [0.05 * part, 20 * part], color=f"C{column}", alpha=0.4)
        axes.errorbar(EXPECTED, np.maximum(mean[:, column], 0.01), yerr=error[:, column],
            fmt="o", capsize=3, color=f"C{column}", label=words)  # fmt: skip
    axes.set(xscale="log", yscale="log", ylim=(0.005, 30),
        xlabel="false positives stated", ylabel="picks in noise (lines: as stated)")  # fmt: skip
    axes.legend(frameon=False)
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    sys.exit(main())
