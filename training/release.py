"""Make of a trained model what tomoloc ships: python training/release.py MODEL -o FOLDER.

The model is calibrated on scenes of complexes that it has never met, as training/general.py makes
them: the table [calibration] of config.toml turns similarities into probabilities, and what it has
in [calibration.averaged] does so with averages of candidates, which take a minute for each scene.
The table [ranges] tells how large activations become, for arithmetic in 8 bits. Weights are rounded
to 16 bits, and training/general/card.md goes with them. The logit of a centre is shifted so that
centres are found best at a probability of 0.5.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from general import FOLDER, NEVER_TRAINED_ON, Groups
from numpy.typing import NDArray
from scipy.special import expit

from tomoloc.features.learned import RANGES, LearnedFeatures, default_views
from tomoloc.nn.int8 import measure_ranges
from tomoloc.nn.stored import StoredModel, load_model, save_model
from tomoloc.pickers.calibration import calibrate, label_candidates
from tomoloc.train.frames import frame
from tomoloc.types import Sample

FIRST_COMPLEX = NEVER_TRAINED_ON + 5_000_000
"""Others than those of validation while training."""
RANGE_SAMPLES, SHIFT_SAMPLES, AVERAGED_SAMPLES = 8, 16, 12
"""How many of the samples the ranges and the shift are measured on, and what averages tell."""
SHIFTS = np.linspace(-2.5, 2.5, 51)
"""Of the logit of a centre."""


def make_samples(groups: int, seed: int) -> Iterator[Sample]:
    """Simulate sparse, crowded and cell-like scenes of random complexes."""
    maker = Groups(
        seed=seed, plan=("sparse", "crowded", "cell", "cell"), first_complex=FIRST_COMPLEX
    )
    for number in range(groups):
        yield from maker(number)


def measure_shift(model: StoredModel, samples: Iterable[Sample], *, device: str) -> float:
    """What to add to the logit of a centre, so that F1 is highest at a probability of 0.5."""
    features = LearnedFeatures(model=model, device=device, views=default_views(model))
    f1 = []
    for sample in samples:
        found, label = label_candidates(features, sample)
        chosen = np.asarray(found.particles.score) > expit(SHIFTS)[:, None]
        right = (chosen & (label != "")).sum(axis=1)
        f1.append(2 * right / (chosen.sum(axis=1) + len(sample.particles)))
    return float(-SHIFTS[np.mean(f1, axis=0).argmax()])


def _frame(sample: Sample) -> NDArray[np.float16]:
    return frame(sample.tomogram, voxel_spacing=10.0, least=(80, 80, 80)).data


def _rounded(numbers: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: _rounded(value) if isinstance(value, Mapping) else round(value, 4)
        for name, value in numbers.items()
    }


def main() -> None:
    """Calibrate, round and write."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--groups", type=int, default=10, help="of four scenes each")
    parser.add_argument("--seed", type=int, default=77)
    parser.add_argument("--device", default="auto")
    given = parser.parse_args()
    logging.getLogger("tomoloc.simulate").setLevel(logging.ERROR)
    model = replace(load_model(given.model), card=(FOLDER / "card.md").read_text("utf-8"))
    save_model(given.output, model, half=True)
    model = load_model(given.output)
    samples = list(make_samples(given.groups, given.seed))
    ranges = measure_ranges(model.network, map(_frame, samples[:RANGE_SAMPLES]))
    model = replace(model, config={**model.config, RANGES: ranges})
    shift = measure_shift(model, samples[:SHIFT_SAMPLES], device=given.device)
    model.network.heads.bias.data[-1] += shift
    save_model(given.output, model, half=True)
    model = load_model(given.output)
    found = calibrate(model, samples, averaged=AVERAGED_SAMPLES, device=given.device)
    config = {**model.config, "calibration": _rounded(found.to_dict())}
    save_model(given.output, replace(model, config=config), half=True)
    sys.stdout.write(f"{found}\ncentre {shift:+.1f}\n")


if __name__ == "__main__":
    main()
