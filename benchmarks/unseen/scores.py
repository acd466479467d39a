"""Examples as a user would point at them, and scores that leave them out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment
from scipy.spatial import KDTree

from tomoloc.evaluate import evaluate_particles, match_particles
from tomoloc.types import Particles, Volume

__all__ = ["RADIUS", "Detection", "Score", "draw_examples", "match_clusters"]
__all__ += ["score_detection", "score_picks"]

RADIUS = 50.0
"""Å within which a pick is right, one to one."""
INSIDE = 100.0
"""Å that examples keep from the border."""
OFF = (5.0, 10.0)
"""Å between a particle's centre and where a user clicks."""


@dataclass(frozen=True, kw_only=True)
class Score:
    """How one protein was found in one tomogram.

    `f1`, `precision`, `recall`, `n_fp` and `error` (mean distance of right picks from the true
    centre, in Å) hold at the default threshold, `best_f1` at the best one.
    """

    label: str
    f1: float
    best_f1: float
    precision: float
    recall: float
    n_fp: float
    error: float


@dataclass(frozen=True, kw_only=True)
class Detection:
    """How all particles of a tomogram were found, whatever their label."""

    f1: float
    best_f1: float
    precision: float
    recall: float


def draw_examples(
    truth: Particles,
    labels: Sequence[str],
    *,
    grid: Volume,
    rng: np.random.Generator,
    shots: int = 1,
) -> tuple[NDArray[np.intp], Particles]:
    """Choose particles of each label and point at them as precisely as a user does.

    They are whole and well inside the tomogram.

    Returns
    -------
    rows : ndarray of int
        Of the true particles.
    examples : Particles
    """
    visible = np.asarray(truth.extra["tomolocVisibleFraction"], dtype=float) > 0.99
    far = grid.extent - grid.voxel_spacing - INSIDE
    inside = ((truth.position > INSIDE) & (truth.position < far)).all(axis=1)
    chosen = []
    for label in labels:
        own = np.asarray(truth.label) == label
        good = np.flatnonzero(own & visible & inside)
        if len(good) < shots:
            raise ValueError(
                f"{grid.name}: only {len(good)} of {own.sum()} {label} could be examples"
            )
        chosen.append(rng.choice(good, size=shots, replace=False))
    rows = np.concatenate(chosen)
    direction = rng.normal(size=(len(rows), 3))
    direction /= np.linalg.norm(direction, axis=1, keepdims=True)
    off = direction * rng.uniform(*OFF, size=(len(rows), 1))
    examples = Particles(
        position=truth.position[rows] + off,
        label=np.asarray(truth.label)[rows],
        tomogram=np.asarray(truth.tomogram)[rows],
    )
    return rows, examples


def score_picks(
    picks: Particles,
    truth: Particles,
    *,
    labels: Sequence[str],
    threshold: Mapping[str, float],
    examples: NDArray[np.intp] | None = None,
) -> list[Score]:
    """Score the picks of each label.

    Examples count neither as found nor as missed: they are left out of the truth, as are picks
    that are next to them rather than to another particle.

    Parameters
    ----------
    picks : Particles
        Of any score.
    truth : Particles
        All particles of the tomogram.
    labels : sequence of str
        What was looked for.
    threshold : mapping of str to float
        Default threshold of each label.
    examples : ndarray of int, optional
        Rows of `truth`.
    """
    if examples is not None and len(picks):
        distance, nearest = KDTree(truth.position).query(picks.position)
        picks = picks[~(np.isin(nearest, examples) & (distance <= RADIUS))]
    if examples is not None:
        truth = truth[~np.isin(np.arange(len(truth)), examples)]
    return [_score(picks, truth, label=label, threshold=threshold[label]) for label in labels]


def _score(picks: Particles, truth: Particles, *, label: str, threshold: float) -> Score:
    own = truth[np.asarray(truth.label) == label]
    picks = picks[np.asarray(picks.label) == label]
    best = _best_f1(picks, own)
    picks = picks[np.asarray(picks.score) > threshold]
    match = match_particles(picks, own, radius=RADIUS) if len(picks) else None
    return Score(
        label=label,
        f1=match.f_score() if match else 0.0,
        best_f1=best,
        precision=match.precision if match else np.nan,
        recall=match.recall if match else 0.0,
        n_fp=match.n_fp if match else 0,
        error=float(np.mean(match.distances)) if match and match.n_tp else np.nan,
    )


def score_detection(picks: Particles, truth: Particles, *, threshold: float) -> Detection:
    """Score picks of whatever label against all particles."""
    picks, truth = replace(picks, label=""), replace(truth, label="", extra={})
    best = _best_f1(picks, truth)
    picks = picks[np.asarray(picks.score) > threshold]
    if not len(picks):
        return Detection(f1=0.0, best_f1=best, precision=np.nan, recall=0.0)
    match = match_particles(picks, truth, radius=RADIUS)
    return Detection(
        f1=match.f_score(), best_f1=best, precision=match.precision, recall=match.recall
    )


def _best_f1(picks: Particles, truth: Particles) -> float:
    if not len(picks):
        return 0.0
    return float(np.nan_to_num(evaluate_particles(picks, truth, radius=RADIUS).micro.best.f1))


def match_clusters(
    picks: Particles, truth: Particles, *, labels: Sequence[str]
) -> dict[str, tuple[str, float]]:
    """Match each protein to one cluster, so that the sum of F1 is largest.

    Parameters
    ----------
    picks : Particles
        Labelled by their cluster.
    truth : Particles
    labels : sequence of str
        Proteins.

    Returns
    -------
    dict of str to (str, float)
        Cluster and F1 of each protein; no cluster and 0 where none is left.
    """
    clusters = picks.labels
    f1 = np.zeros((len(labels), len(clusters)))
    for row, label in enumerate(labels):
        own = replace(truth[np.asarray(truth.label) == label], label="", extra={})
        for column, cluster in enumerate(clusters):
            members = replace(picks[np.asarray(picks.label) == cluster], label="")
            f1[row, column] = match_particles(members, own, radius=RADIUS).f_score()
    found = {
        labels[row]: (clusters[column], float(f1[row, column]))
        for row, column in zip(*linear_sum_assignment(-f1), strict=True)
    }
    return {label: found.get(label, ("", 0.0)) for label in labels}
