"""How good a network is on samples that it has not learned from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import expit
from torch import nn

from tomoloc.evaluate import evaluate_particles
from tomoloc.localize import find_peaks
from tomoloc.nn.device import computes_in_bfloat16
from tomoloc.train.frames import STRIDE
from tomoloc.train.patches import Prepared
from tomoloc.types import FloatArray, Particles, ScoreMap

__all__ = ["Validation", "mark_inside", "run_whole", "validate"]

_RADIUS = 50.0  # Å within which a pick is right
_CANDIDATE = 0.1  # probability of a centre from which on it is looked at
_AROUND = 16  # voxels of reflected matter
_TARGETS = 7  # labels that are looked for in one tomogram, as in TomoTwin's tests


class Validation(NamedTuple):
    """Means over samples.

    Parameters
    ----------
    accuracy : float
        Of particles that are next to the one example of their own label, looked up at the true
        centres, among all labels of the tomogram.
    center_f1 : float
        Of the map of centres, whatever the label, at its best threshold.
    pick_f1 : float
        Mean over labels, each at its best threshold: peaks of the map of centres, given to the
        nearest of at most seven examples, one for each label.
    """

    accuracy: float
    center_f1: float
    pick_f1: float

    @property
    def score(self) -> float:
        """By which networks are compared: F1 of picks."""
        return self.pick_f1


def validate(
    model: nn.Module,
    samples: Sequence[Prepared],
    *,
    voxel_spacing: float,
    device: str = "cpu",
    seed: int = 0,
) -> Validation:
    """Look for particles in held-out samples.

    Parameters
    ----------
    model : Module
        Set to inference.
    samples : sequence of Prepared
    voxel_spacing : float
        Of the samples, in angstrom.
    device : str
        Where the model is.
    seed : int
        Chooses the examples.

    Returns
    -------
    Validation
        Not a number where there is nothing to look for.
    """
    scores = []
    for number, sample in enumerate(samples):
        rng = np.random.default_rng([seed, number])
        embedding, probability = _encode(model, sample, device)
        scores.append(
            (
                _accuracy(sample, embedding, rng),
                *_f1(sample, embedding, probability, voxel_spacing, rng),
            )
        )
    table = np.array(scores, dtype=float).reshape(-1, 3)
    known = np.isfinite(table).sum(axis=0)
    means = np.where(known, np.nansum(table, axis=0) / np.maximum(known, 1), np.nan)
    return Validation(*means.tolist())


@torch.no_grad()
def run_whole(
    model: nn.Module, sample: Prepared, *, device: str
) -> tuple[NDArray[np.float32], ...]:
    """Put a whole sample through a network.

    Parameters
    ----------
    model : Module
        Gives a tensor for every second voxel, or several.
    sample : Prepared
    device : str
        Where the model is.

    Returns
    -------
    tuple of ndarray, each of shape (channels, z / 2, y / 2, x / 2)
    """
    period = int(getattr(model, "period", 8))
    # The network meets its own borders in reflected matter, as it does in tiles of a tomogram.
    around = -(-_AROUND // period) * period
    pads = [(around, around + -n % period) for n in sample.data.shape]
    data = np.pad(sample.data, pads, mode="symmetric").astype(np.float32)
    x = torch.from_numpy(data)[None, None].to(device, memory_format=torch.channels_last_3d)
    kind, half = torch.device(device).type, computes_in_bfloat16(device)
    with torch.autocast(kind, dtype=torch.bfloat16, enabled=half):
        found = model(x)
    first = around // STRIDE
    kept = tuple(slice(first, first + n // STRIDE) for n in sample.data.shape)
    outputs = found if isinstance(found, tuple) else (found,)
    return tuple(output[0].float().cpu().numpy()[(slice(None), *kept)] for output in outputs)


def mark_inside(sample: Prepared) -> NDArray[np.bool_]:
    """Tell which points of a sample's grid belong to the tomogram itself."""
    inside = np.zeros([n // STRIDE for n in sample.data.shape], dtype=bool)
    inside[tuple(slice(*limits) for limits in sample.inside)] = True
    return inside


def _encode(
    model: nn.Module, sample: Prepared, device: str
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Embeddings (channel, z, y, x) and probabilities of centres (z, y, x) of a whole sample."""
    vectors, logit = run_whole(model, sample, device=device)
    return vectors, np.where(mark_inside(sample), expit(logit[0]), 0)


def _look_up(embedding: NDArray[np.float32], index: FloatArray) -> FloatArray:
    """Embeddings at the grid points nearest to voxel places zyx, shape (n, channels)."""
    place = np.rint((index - (STRIDE - 1) / 2) / STRIDE).astype(int)
    z, y, x = np.clip(place, 0, np.array(embedding.shape[1:]) - 1).T
    return embedding[:, z, y, x].T


def _accuracy(sample: Prepared, embedding: NDArray[np.float32], rng: np.random.Generator) -> float:
    rows = np.flatnonzero(sample.usable)
    labels = sample.label[rows]
    vectors = _look_up(embedding, sample.index[rows])
    names, counts = np.unique(labels, return_counts=True)
    if len(names) < 2 or counts.max() < 2:
        return np.nan
    shares = []
    for _ in range(5):
        examples = np.array([rng.choice(np.flatnonzero(labels == name)) for name in names])
        rest = np.setdiff1d(np.arange(len(labels)), examples)
        said = names[(vectors[rest] @ vectors[examples].T).argmax(axis=1)]
        own = [np.mean(said[labels[rest] == n] == n) for n in names if (labels[rest] == n).any()]
        shares.append(np.mean(own))
    return float(np.mean(shares))


def _f1(
    sample: Prepared,
    embedding: NDArray[np.float32],
    probability: NDArray[np.float32],
    voxel_spacing: float,
    rng: np.random.Generator,
) -> tuple[float, float]:
    rows = np.flatnonzero(sample.usable)
    if len(rows) == 0:
        return np.nan, np.nan
    step = STRIDE * voxel_spacing
    scores = ScoreMap(
        data=probability[None],
        voxel_spacing=step,
        origin=np.full(3, (STRIDE - 1) / 2 * voxel_spacing),
        labels=("particle",),
    )
    peaks = find_peaks(scores, threshold=_CANDIDATE, min_distance=_RADIUS)
    peaks = peaks[_far_from(peaks, sample.index[~sample.usable], voxel_spacing)]
    truth = Particles(
        position=sample.index[rows][:, ::-1] * voxel_spacing, label=sample.label[rows].astype(str)
    )
    if len(peaks) == 0:
        return 0.0, 0.0
    anything = Particles(position=truth.position, label="particle")
    centers = evaluate_particles(peaks, anything, radius=_RADIUS).micro.best.f1

    names, counts = np.unique(np.asarray(truth.label), return_counts=True)
    names = names[np.argsort(-counts, kind="stable")][:_TARGETS]
    own = _look_up(embedding, sample.index[rows])
    examples = [own[rng.choice(np.flatnonzero(np.asarray(truth.label) == n))] for n in names]
    vectors = _look_up(embedding, peaks.position[:, ::-1] / voxel_spacing)
    similarity = vectors @ np.array(examples).T
    picks = Particles(
        position=peaks.position,
        label=names[similarity.argmax(axis=1)],
        score=similarity.max(axis=1),
    )
    results = evaluate_particles(picks, truth, radius=_RADIUS, labels=names.tolist()).labels
    return centers, float(np.mean([results[str(n)].best.f1 for n in names]))


def _far_from(peaks: Particles, index: FloatArray, voxel_spacing: float) -> NDArray[np.bool_]:
    """Leave out peaks at particles that neither count as found nor as missed."""
    if len(index) == 0 or len(peaks) == 0:
        return np.ones(len(peaks), dtype=bool)
    away = peaks.position[:, None] - index[None, :, ::-1] * voxel_spacing
    return np.asarray((np.linalg.norm(away, axis=-1) > _RADIUS).all(axis=1))
