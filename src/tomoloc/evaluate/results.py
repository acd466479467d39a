"""What an evaluation says: counts, scores, curves and intervals."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["Curve", "Evaluation", "Match", "Result", "Scores", "f_score", "ratio"]

FloatArray = NDArray[np.floating[Any]]
IntArray = NDArray[np.integer[Any]]


def ratio(part: Any, whole: Any) -> Any:
    """Divide; 0 / 0 is not a number, without a warning."""
    part, whole = np.asarray(part, dtype=float), np.asarray(whole, dtype=float)
    return np.divide(
        part, whole, out=np.full(np.broadcast(part, whole).shape, np.nan), where=whole != 0
    )


def f_score(precision: Any, recall: Any, beta: float) -> Any:
    """F-beta (van Rijsbergen 1979): undefined only where there are neither picks nor truth."""
    p, r = np.nan_to_num(precision), np.nan_to_num(recall)
    value = np.nan_to_num(ratio((1 + beta**2) * p * r, beta**2 * p + r))
    return np.where(np.isnan(precision) & np.isnan(recall), np.nan, value)


@dataclass(frozen=True, eq=False)
class Match:
    """Which pick is which true particle.

    Parameters
    ----------
    pairs : ndarray of int, shape (k, 2)
        Rows of the pick table and of the truth table.
    distances : ndarray, shape (k,)
        Between the two, in angstrom.
    n_tp, n_fp, n_fn : int
        True particles found, false picks, true particles missed.
    n_right : int
        Picks judged right: `n_tp`, unless the rule lets several picks share a particle.
    """

    pairs: IntArray
    distances: FloatArray
    n_tp: int
    n_fp: int
    n_fn: int
    n_right: int

    @property
    def precision(self) -> float:
        """Share of picks that are right; not a number without picks."""
        return float(ratio(self.n_right, self.n_right + self.n_fp))

    @property
    def recall(self) -> float:
        """Share of true particles that are found; not a number without any."""
        return float(ratio(self.n_tp, self.n_tp + self.n_fn))

    def f_score(self, beta: float = 1.0) -> float:
        """Weighted harmonic mean of precision and recall."""
        return float(f_score(self.precision, self.recall, beta))


@dataclass(frozen=True)
class Scores:
    """Counts and scores of all picks at or above one threshold.

    `n_tp` are true particles found, `n_fp` picks judged false, `n_fn` true particles missed.
    `rmse` is the root mean square distance of matched pairs in angstrom, `rmse_diameters` in
    particle diameters. What cannot be computed is not a number.
    """

    threshold: float
    n_picks: int
    n_truth: int
    n_tp: int
    n_fp: int
    n_fn: int
    precision: float
    recall: float
    f1: float
    f_beta: float
    rmse: float
    rmse_diameters: float


@dataclass(frozen=True, eq=False)
class Curve:
    """Precision, recall and F-beta at each threshold that tells picks apart, highest first."""

    threshold: FloatArray
    n_picks: IntArray
    precision: FloatArray
    recall: FloatArray
    f_beta: FloatArray


@dataclass(frozen=True, eq=False)
class Result:
    """Scores of one label, or of all together.

    Parameters
    ----------
    label : str
        Of the particles; "micro" (all counts together) or "macro" (mean over labels).
    chosen, best : Scores
        At the threshold that was set, that is with all picks, and where F-beta is largest.
    average_precision : float
        Sum of precision times the step in recall, over all thresholds.
    relative_recall : float
        Rule `picket` alone: harmonic mean of recall and 1 - recall of as many random points.
    intervals : mapping of str to (low, high)
        95 % bootstrap intervals over tomograms; empty with a single tomogram, which tells
        nothing of how tomograms differ.
    curve : Curve
        Empty for "macro".
    """

    label: str
    chosen: Scores
    best: Scores
    average_precision: float
    curve: Curve
    relative_recall: float = float("nan")
    intervals: Mapping[str, tuple[float, float]] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Evaluation:
    """All scores of a pick table against truth, and how they were made."""

    rule: str
    radius: float | Mapping[str, float]
    beta: float
    tomograms: tuple[str, ...]
    labels: Mapping[str, Result]
    micro: Result
    macro: Result
    notes: tuple[str, ...] = ()

    def average(self, metric: str, weights: Mapping[str, float] | None = None) -> float:
        """Mean of a chosen-threshold score over labels that have truth, weighted by label.

        With rule `czii`, metric "f_beta" and the challenge's weights this is its score.
        """
        known = {name: r for name, r in self.labels.items() if r.chosen.n_truth}
        weight = [1.0 if weights is None else weights.get(name, 1.0) for name in known]
        values = [getattr(result.chosen, metric) for result in known.values()]
        return float(np.average(values, weights=weight)) if sum(weight) else float("nan")

    def to_dict(self) -> dict[str, Any]:
        """Return plain numbers, lists and dictionaries for JSON; what is not a number is None."""
        return _plain(asdict(self))


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, np.ndarray | list | tuple):
        return [
            _plain(item) for item in (value.tolist() if isinstance(value, np.ndarray) else value)
        ]
    if isinstance(value, float) and not np.isfinite(value):
        return None
    return value
