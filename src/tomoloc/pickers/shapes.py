"""How much a seed looks like a particle: contrast, size and compactness in one probability.

Weights were measured on simulated tomograms of proteins, membranes and gold
(`training/unsupervised.py`). They say what counts; how many particles there are is estimated from
each tomogram itself. Nothing is learned about kinds of particles.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from tomoloc.features.blobs import Seeds
from tomoloc.pickers.competition import adapt_share
from tomoloc.types import FloatArray, Volume

__all__ = ["describe_seeds", "find_slab", "rate_seeds", "set_gold_apart"]

_INTERCEPT = -25.826
_SHARE = 0.2652
_WEIGHTS = (
    -4.837,
    -11.773,
    0.075,
    -1.186,
    10.744,
    10.803,
    3.731,
    -2.277,
    -0.339,
    -3.318,
    1.677,
    7.665,
    -0.185,
    -3.470,
    0.781,
    2.706,
    -8.535,
)

_SURE = 0.5
_GOLD = 3.0
"""Times the contrast of the clearest particles, from which on a blob is gold."""
_GOLD_REACH = 120.0
"""Å around gold where its halo looks like particles."""
_STREAK = np.array([300.0, 30.0, 300.0])
"""Half axes xyz in Å of where its streaks do: across the tilt axis, which is y, and along z."""
_FEW = 30
"""Sure particles below which nothing is said of where the lamella is."""
_SLAB = 1.35
"""Times twice the median distance from the middle, which is half the thickness of a slab."""
_SLAB_MARGIN = 120.0


def describe_seeds(seeds: Seeds) -> FloatArray:
    """Describe seeds by numbers that do not depend on orientation or scale of intensity.

    Parameters
    ----------
    seeds : Seeds

    Returns
    -------
    ndarray, shape (n, 17)
        At each scale the logarithms of blobness (four) and of the sum of curvatures (four), the
        second and the third curvature over the first (eight); then how much of a sheet is around.
        Not the intensity: it depends on how low frequencies were weighted in reconstruction.
    """
    curvature = np.asarray(seeds.curvature, dtype=float)
    blob = np.cbrt(np.prod(np.maximum(curvature, 0), axis=2))
    total = np.maximum(curvature.sum(axis=2), 0)
    first = np.maximum(curvature[:, :, :1], 0.1)
    ratio = np.clip(curvature[:, :, 1:] / first, -1, 1).reshape(len(seeds), -1)
    return np.column_stack(
        [
            np.log1p(blob),
            np.log1p(total),
            ratio,
            np.log1p(np.maximum(seeds.sheet, 0)),
        ]
    )


def rate_seeds(seeds: Seeds, *, grid: Volume, slab: bool = True) -> FloatArray:
    """Give the probability that each seed is a particle.

    Parameters
    ----------
    seeds : Seeds
        With doubles joined.
    grid : Volume
        Where they come from.
    slab : bool
        Find out between which heights particles lie, and leave out what is beyond.

    Returns
    -------
    ndarray, shape (n,)
    """
    odds = describe_seeds(seeds) @ np.array(_WEIGHTS) + _INTERCEPT
    gold = set_gold_apart(seeds, odds)
    odds = np.where(gold, -np.inf, odds)
    if slab:
        odds = np.where(find_slab(seeds.position, odds > 0, grid=grid), odds, -np.inf)
    return np.asarray(adapt_share(odds, _SHARE))


def set_gold_apart(seeds: Seeds, odds: FloatArray) -> NDArray[np.bool_]:
    """Tell which seeds are gold beads or lie in their halos.

    Parameters
    ----------
    seeds : Seeds
    odds : ndarray, shape (n,)
        Logarithms; those above 0 show what contrast particles have.

    Returns
    -------
    ndarray of bool, shape (n,)
    """
    from scipy.spatial import KDTree

    total = seeds.curvature.sum(axis=2).max(axis=1)  # at whatever scale it is largest
    sure = total[odds > 0]
    if len(sure) < 5:
        return np.zeros(len(seeds), dtype=bool)
    # Gold may outnumber nothing: the middle of the sure ones is particle.
    gold = total > _GOLD * np.percentile(sure, 75)
    if not gold.any():
        return gold
    near, _ = KDTree(seeds.position[gold]).query(seeds.position)
    streak, _ = KDTree(seeds.position[gold] / _STREAK).query(seeds.position / _STREAK)
    return np.asarray((near < _GOLD_REACH) | (streak < 1))


def find_slab(position: FloatArray, sure: NDArray[np.bool_], *, grid: Volume) -> NDArray[np.bool_]:
    """Tell which places lie in the lamella: a slab, maybe inclined, that sure particles fill.

    Of heights that are spread evenly, the median distance from the middle is a quarter of the
    thickness, whatever a few odd ones do.

    Parameters
    ----------
    position : ndarray, shape (n, 3)
        xyz in angstrom.
    sure : ndarray of bool, shape (n,)
        Particles without much doubt.
    grid : Volume
        The tomogram.

    Returns
    -------
    ndarray of bool, shape (n,)
        All true where there are too few sure ones to tell.
    """
    if sure.sum() < _FEW:
        return np.ones(len(position), dtype=bool)
    flat = np.column_stack(
        [(position - grid.center)[:, :2] / grid.extent[:2], np.ones(len(position))]
    )
    height = position[:, 2]
    plane = np.linalg.lstsq(flat[sure], height[sure], rcond=None)[0]
    for _ in range(5):  # least absolute deviations, by reweighting
        away = np.abs(height - flat @ plane)[sure]
        root = 1 / np.sqrt(np.maximum(away, 10.0))
        plane = np.linalg.lstsq(flat[sure] * root[:, None], height[sure] * root, rcond=None)[0]
    away = np.abs(height - flat @ plane)
    return np.asarray(away <= _SLAB * 2 * np.median(away[sure]) + _SLAB_MARGIN)
