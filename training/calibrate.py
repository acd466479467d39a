"""Calibrate a model on scenes of complexes it has never met: python training/calibrate.py MODEL.

Writes the table [calibration] of the model's config.toml, which turns similarities into
probabilities (`tomoloc.pickers.competition`). Scenes are those of training/general.py.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from general import NEVER_TRAINED_ON, Groups

from tomoloc.nn.stored import load_model, save_model
from tomoloc.pickers.calibration import calibrate
from tomoloc.types import Sample

FIRST_COMPLEX = NEVER_TRAINED_ON + 5_000_000
"""Others than those of validation while training."""


def make_samples(groups: int, seed: int) -> Iterator[Sample]:
    """Simulate sparse, crowded and cell-like scenes of random complexes."""
    maker = Groups(
        seed=seed, plan=("sparse", "crowded", "cell", "cell"), first_complex=FIRST_COMPLEX
    )
    for number in range(groups):
        yield from maker(number)


def main() -> None:
    """Calibrate."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--groups", type=int, default=10, help="of four scenes each")
    parser.add_argument("--seed", type=int, default=77)
    parser.add_argument("--device", default="auto")
    given = parser.parse_args()
    logging.getLogger("tomoloc.simulate").setLevel(logging.ERROR)
    model = load_model(given.model)
    found = calibrate(model, make_samples(given.groups, given.seed), device=given.device)
    config = {**model.config, "calibration": found.to_dict()}
    save_model(given.model, replace(model, config=config))
    sys.stdout.write(f"{found}\n")


if __name__ == "__main__":
    main()
