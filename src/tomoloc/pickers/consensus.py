"""On which particles several workflows agree."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from scipy.spatial import KDTree

from tomoloc.localize import suppress
from tomoloc.types import FloatArray

__all__ = ["CONSENSUS", "agree"]

CONSENSUS = "consensus"
_REACH = 60.0
"""Å within which two workflows mean the same particle."""


def agree(tables: Mapping[str, tuple[FloatArray, FloatArray]]) -> tuple[FloatArray, FloatArray]:
    """Let workflows vote.

    Parameters
    ----------
    tables : mapping of str to (position, score)
        Arrays of shapes (n, 3), xyz in angstrom, and (n,), scores from 0 to 1.

    Returns
    -------
    position : ndarray, shape (m, 3)
        Where the best score of each group lies; no two are closer than 60 Å.
    score : ndarray, shape (m,)
        Mean over the workflows of the score that each gives to a particle there, 0 where it has
        none. Those that find nothing at all have no vote.
    """
    found = [(position, score) for position, score in tables.values() if len(score)]
    if not found:
        return np.zeros((0, 3)), np.zeros(0)
    position = np.concatenate([table[0] for table in found])
    score = np.concatenate([table[1] for table in found])
    chosen = suppress(position, score, min_distance=_REACH)
    places = position[chosen]
    total = np.zeros(len(places))
    for own, value in found:
        near, row = KDTree(places).query(own, distance_upper_bound=_REACH)
        known = np.isfinite(near)
        best = np.zeros(len(places))
        np.maximum.at(best, np.asarray(row)[known], value[known])
        total += best
    return places, total / len(found)
