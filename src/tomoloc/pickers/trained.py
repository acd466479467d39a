"""What pickers share whose networks were trained for what is looked for."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tomoloc.features.spectra import match_spectrum
from tomoloc.nn.stored import StoredModel
from tomoloc.physics.filters import rescale
from tomoloc.types import ScoreMap, Tomogram

__all__ = ["check_spectrum", "empty_scores", "match_training"]


def check_spectrum(model: StoredModel) -> None:
    """Make sure that a model tells the spectrum of its training data.

    Raises
    ------
    ValueError
        If it does not.
    """
    if "spectrum" not in model.config:
        raise ValueError(
            f"the model {model.name} does not tell the spectrum of its training data; leave out"
            " match_spectrum"
        )


def match_training(tomogram: Tomogram, model: StoredModel, *, spacing: float) -> Tomogram:
    """Filter a tomogram so that its radial spectrum is that of a model's training data.

    Parameters
    ----------
    tomogram : Tomogram
    model : StoredModel
    spacing : float
        That the model works at, in angstrom.

    Returns
    -------
    Tomogram
        Of that spacing.
    """
    # Frequencies are those of the model's voxels.
    tomogram = rescale(tomogram, spacing)
    power = model.config["spectrum"]["power"]
    return tomogram.with_data(match_spectrum(tomogram.data, power))


def empty_scores(tomogram: Tomogram, labels: Sequence[str]) -> ScoreMap:
    """Return the scores of a tomogram in which nothing is to be seen: zeros."""
    return ScoreMap(
        data=np.zeros((len(labels), *tomogram.shape), dtype=np.float32),
        voxel_spacing=tomogram.voxel_spacing,
        origin=tomogram.origin,
        name=tomogram.name,
        labels=tuple(labels),
    )
