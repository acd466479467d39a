"""What averages of candidates say of labels: which average is which label's, and how well it fits.

Averages have no names (`tomoloc.features.classification`). The one of a label is the one that its
examples fit best, and that most of the candidates fit best which the network is sure are of the
label.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import linear_sum_assignment

__all__ = ["Fitted", "label_best", "measure_lead", "name_averages"]

Array = NDArray[Any]

_NONE = -1
"""No average, no label."""
_SURE = 0.5
"""Probability from which on a candidate votes for the average that it fits best."""
_VOTES = 1.0
"""What all votes of a label weigh, in units of examples that fit as members usually do."""
_WELL = 1.2
"""An example that fits even better is none the more a member."""
_ALIKE = 0.9
"""Cosine to an example from which on a candidate stands for it."""
_USUAL = 10.0
"""The least usual gain of an average's members; below, it is noise."""
_SCALE, _MOST, _WHOLE = 30.0, 2.0, 12
"""Unit of a lead, the largest one, and members from which on an average counts fully. Averages are
poor, and differ by more than chance alone would make of good ones; the fewer members, the more."""
_LONG = 1e3
"""More than any gain counts."""


class Fitted(Protocol):
    """Averages that were fitted to candidates."""

    @property
    def gain(self) -> Array:
        """As of `tomoloc.features.classification.Classification`, shape (n, k)."""

    @property
    def size(self) -> Array:
        """Members of each average, shape (k,)."""

    @property
    def usual(self) -> Array:
        """Median gain of the members of each average, shape (k,)."""


def name_averages(
    found: Fitted,
    *,
    vectors: Array,
    examples: Sequence[Array],
    best: Array,
    chance: Array,
) -> NDArray[np.intp]:
    """Find the average of each label.

    Parameters
    ----------
    found : Fitted
    vectors : ndarray, shape (n, channels)
        Unit vectors of the candidates.
    examples : sequence of ndarray, each of shape (m, channels)
        Unit vectors of the examples of each label; a candidate with the same vector is taken for
        the example.
    best : ndarray of int, shape (n,)
        The label that each candidate is of, if any, by its vector.
    chance : ndarray, shape (n,)
        Probability of that.

    Returns
    -------
    ndarray of int, shape (label,)
        -1 where there is none.
    """
    n_labels, (_, n_averages) = len(examples), found.gain.shape
    if not n_averages:
        return np.full(n_labels, _NONE)
    fitted, first = _is_fitted(found), found.gain.argmax(axis=1)
    fit = np.clip(found.gain / np.maximum(found.usual, _USUAL), 0, _WELL)
    merit = np.zeros((n_labels, n_averages))
    for label, own in enumerate(examples):
        similarity = np.asarray(own) @ vectors.T
        rows = similarity.argmax(axis=1)[similarity.max(axis=1) > _ALIKE]
        voters = (best == label) & (chance > _SURE) & fitted
        votes = np.bincount(first[voters], minlength=n_averages)
        told = (fit[rows] ** 2).sum(axis=0) / max(len(rows), 1)
        merit[label] = told + _VOTES * votes / max(votes.sum(), 1)
    names = np.full(n_labels, _NONE)
    # Those that nothing speaks for are no label's.
    labels, averages = linear_sum_assignment(-merit)
    known = merit[labels, averages] > 0
    names[labels[known]] = averages[known]
    return names


def label_best(found: Fitted, names: ArrayLike, best: ArrayLike) -> NDArray[np.intp]:
    """Tell the label of the average that each candidate fits best.

    Parameters
    ----------
    found : Fitted
    names : array_like of int, shape (label,)
        From `name_averages`.
    best : array_like of int, shape (n,)
        What to return where that average has no label.

    Returns
    -------
    ndarray of int, shape (n,)
    """
    names, best = np.asarray(names, dtype=np.intp), np.asarray(best, dtype=np.intp)
    if not found.gain.shape[1]:
        return best
    label_of = np.full(found.gain.shape[1], _NONE)
    label_of[names[names != _NONE]] = np.flatnonzero(names != _NONE)
    first = np.where(_is_fitted(found), label_of[found.gain.argmax(axis=1)], _NONE)
    return np.where(first != _NONE, first, best)


def measure_lead(
    found: Fitted, names: ArrayLike, label: ArrayLike
) -> tuple[Array, NDArray[np.bool_]]:
    """Tell how much better candidates fit the averages of labels than any other average.

    Parameters
    ----------
    found : Fitted
    names : array_like of int, shape (label,)
        From `name_averages`.
    label : array_like of int, shape (n,)
        Of each candidate.

    Returns
    -------
    lead : ndarray, shape (n,)
        Logarithm of how much likelier the candidate is, negative where it is less likely, in units
        of 30 and from -2 to 2; less where the label's average has few members.
    known : ndarray of bool, shape (n,)
        Whether the label has an average, and the candidate was fitted to any.
    """
    average = np.asarray(names, dtype=np.intp)[np.asarray(label, dtype=np.intp)]
    known = _is_fitted(found) & (average != _NONE)
    if not known.any():
        return np.zeros(len(average)), known
    gain, rows = np.maximum(found.gain, -_LONG), np.arange(len(average))
    own = gain[rows, average]
    gain[rows, average] = -_LONG
    lead = np.clip((own - gain.max(axis=1)) / _SCALE, -_MOST, _MOST)
    lead *= np.minimum(found.size[average] / _WHOLE, 1)
    return np.where(known, lead, 0), known


def _is_fitted(found: Fitted) -> NDArray[np.bool_]:
    """Candidates that any average was fitted to, shape (n,)."""
    return np.asarray(np.isfinite(found.gain).any(axis=1))
