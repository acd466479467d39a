"""Measure, on samples whose truth is known, what a model's similarities mean."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from tomoloc.evaluate import match_particles
from tomoloc.features.candidates import Candidates, find_candidates
from tomoloc.features.classification import classify_candidates
from tomoloc.features.learned import LearnedFeatures, default_views
from tomoloc.nn.stored import StoredModel
from tomoloc.pickers.competition import Calibration, fit_calibration, measure_spread
from tomoloc.types import Particles, Sample, Tomogram

__all__ = ["calibrate", "label_candidates"]

_RADIUS = 50.0  # Å within which a candidate is a particle


def calibrate(
    model: StoredModel,
    samples: Iterable[Sample],
    *,
    averaged: int = 0,
    device: str = "auto",
    seed: int = 0,
) -> Calibration:
    """Fit the calibration of `pick embedding` to a model.

    Parameters
    ----------
    model : StoredModel
        With a network that finds centres.
    samples : iterable of Sample
        Protein dark, as simulators make them. The model should not have learned from them, and
        they should be as varied as what it will be used for.
    averaged : int
        In how many of the first samples candidates are averaged, too, which takes minutes each.
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
    samples = list(samples)
    labelled = [label_candidates(features, one) for one in samples]
    tomograms = [
        (found.vectors, np.asarray(found.particles.score), label) for found, label in labelled
    ]
    spread = measure_spread(tomograms)
    fitted = [
        classify_candidates(_brighten(sample), found, spread=spread)
        for sample, (found, _) in zip(samples[:averaged], labelled, strict=False)
    ]
    return fit_calibration(tomograms, seed=seed, fitted=fitted)


def label_candidates(
    features: LearnedFeatures, sample: Sample
) -> tuple[Candidates, NDArray[np.str_]]:
    """Tell what the candidates of a sample are, one to one within 50 Å.

    Parameters
    ----------
    features : LearnedFeatures
        Of a model that finds centres.
    sample : Sample
        Protein dark.

    Returns
    -------
    candidates : Candidates
    label : ndarray of str, shape (n,)
        Empty where there is no particle.
    """
    truth = sample.particles
    found = find_candidates(features.embed(_brighten(sample)), centers=True)
    # Anything may be at a place: labels are looked at afterwards.
    places, anything = (
        Particles(position=table.position, label="particle", score=table.score)
        for table in (found.particles, truth)
    )
    pairs = match_particles(places, anything, radius=_RADIUS).pairs
    label = np.full(len(found), "", dtype=object)
    label[pairs[:, 0]] = np.asarray(truth.label, dtype=object)[pairs[:, 1]]
    return found, label.astype(str)


def _brighten(sample: Sample) -> Tomogram:
    tomogram = sample.tomogram
    return tomogram.with_data(-np.asarray(tomogram.data, dtype=np.float32))
