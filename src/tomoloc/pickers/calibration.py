"""Measure, on samples whose truth is known, what a model's similarities mean."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from tomoloc.evaluate import match_particles
from tomoloc.features.candidates import find_candidates
from tomoloc.features.learned import LearnedFeatures, default_views
from tomoloc.nn.stored import StoredModel
from tomoloc.pickers.competition import Calibration, fit_calibration
from tomoloc.types import Particles, Sample

__all__ = ["calibrate"]

_RADIUS = 50.0  # Å within which a candidate is a particle


def calibrate(
    model: StoredModel, samples: Iterable[Sample], *, device: str = "auto", seed: int = 0
) -> Calibration:
    """Fit the calibration of `pick embedding` to a model.

    Parameters
    ----------
    model : StoredModel
        With a network that finds centres.
    samples : iterable of Sample
        Protein dark, as simulators make them. The model should not have learned from them, and
        they should be as varied as what it will be used for.
    device : {"auto", "cpu", "cuda"}
    seed : int
        Chooses examples.

    Returns
    -------
    Calibration

    Raises
    ------
    ValueError
        If no sample has several particles of several labels.
    """
    features = LearnedFeatures(model=model, device=device, views=default_views(model))
    tomograms = []
    for sample in samples:
        tomogram, truth = sample.tomogram, sample.particles
        bright = tomogram.with_data(-np.asarray(tomogram.data, dtype=np.float32))
        found = find_candidates(features.embed(bright), centers=True)
        # Anything may be at a place: labels are looked at afterwards.
        places, anything = (
            Particles(position=table.position, label="particle", score=table.score)
            for table in (found.particles, truth)
        )
        pairs = match_particles(places, anything, radius=_RADIUS).pairs
        label = np.full(len(found), "", dtype=object)
        label[pairs[:, 0]] = np.asarray(truth.label, dtype=object)[pairs[:, 1]]
        center = np.asarray(found.particles.score)
        tomograms.append((found.vectors, center, label.astype(str)))
    return fit_calibration(tomograms, seed=seed)
