"""From the probability of a class to its instances, one by one."""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from scipy.spatial import KDTree

from tomoloc.features.instances import label_mask
from tomoloc.localize import local_maxima, suppress
from tomoloc.types import Volume

__all__ = ["SegmentMethod", "remove_dust", "segment_instances"]

SegmentMethod = Literal["watershed", "components", "mean-shift"]
Labels = NDArray[np.int32]

_BLUR = 0.25
"""Of the diameter: a Gaussian in which a ball has one maximum, and two that touch have two."""
_POINTS = 20_000
"""Voxels of a class that mean shift looks at, at most."""


def segment_instances(
    probability: Volume,
    mask: NDArray[np.bool_],
    *,
    method: SegmentMethod,
    diameter: float,
    min_distance: float,
    seed: int = 0,
) -> Labels:
    """Cut the voxels of a class into instances.

    Components are connected by faces; they do not part what touches. Watershed [1]_ parts it
    between the maxima of the blurred probability. Mean shift [2]_ gathers voxels around the
    centres of mass of balls of the particle's radius, also where a particle is in pieces.

    Parameters
    ----------
    probability : Volume, data shape (z, y, x)
        Of the class.
    mask : ndarray of bool, shape (z, y, x)
        Its voxels.
    method : {"watershed", "components", "mean-shift"}
    diameter : float
        Of a particle, in angstrom.
    min_distance : float
        Between two of them, of watershed, in angstrom.
    seed : int
        Of mean shift: chooses the voxels that it looks at, where they are many.

    Returns
    -------
    ndarray of int32, shape (z, y, x)
        Numbers from 1 on; 0 outside the mask.

    References
    ----------
    .. [1] Vincent & Soille, IEEE Trans. Pattern Anal. Mach. Intell. 13, 583 (1991),
       doi:10.1109/34.87344.
    .. [2] Comaniciu & Meer, IEEE Trans. Pattern Anal. Mach. Intell. 24, 603 (2002),
       doi:10.1109/34.1000236.
    """
    if method == "components" or not mask.any():
        return label_mask(mask)
    if method == "mean-shift":
        return _shift_means(mask, radius=diameter / 2 / probability.voxel_spacing, seed=seed)
    from skimage.segmentation import watershed as flood

    field = np.asarray(probability.data, dtype=np.float32)
    field = ndimage.gaussian_filter(field, _BLUR * diameter / probability.voxel_spacing)
    markers = label_mask(mask)
    number = int(markers.max())
    place = local_maxima(field, threshold=-np.inf, inside=mask)
    kept = suppress(
        probability.to_position(place), field[tuple(place.T)], min_distance=min_distance
    )
    seeds = place[kept]
    # Components without a maximum are instances as they are.
    own = np.arange(number + 1)
    own[markers[tuple(seeds.T)]] = 0
    markers = own[markers].astype(np.int32)
    markers[tuple(seeds.T)] = number + 1 + np.arange(len(seeds))
    return _number_anew(np.asarray(flood(-field, markers, mask=mask), dtype=np.int32))


def _shift_means(mask: NDArray[np.bool_], *, radius: float, seed: int) -> Labels:
    """Centres from some of the voxels, then all voxels to the nearest centre."""
    from sklearn.cluster import MeanShift

    place = np.argwhere(mask)
    points = place
    if len(place) > _POINTS:
        rng = np.random.default_rng(seed)
        points = place[np.sort(rng.choice(len(place), _POINTS, replace=False))]
    radius = max(radius, 1.0)
    # Seeds on a grid of half the radius: of one particle, several lead to one centre.
    grid = np.unique(np.rint(points / (radius / 2)), axis=0) * (radius / 2)
    found = MeanShift(bandwidth=radius, seeds=grid, max_iter=100).fit(points)
    _, nearest = KDTree(found.cluster_centers_).query(place)
    labels = np.zeros(mask.shape, dtype=np.int32)
    labels[tuple(place.T)] = np.asarray(nearest) + 1
    return labels


def _number_anew(labels: Labels) -> Labels:
    """Number labels from 1 without gaps, in their order."""
    there = np.bincount(labels.ravel()) > 0
    there[0] = False
    table = np.cumsum(there) * there
    return table[labels].astype(np.int32)


def remove_dust(mask: NDArray[np.bool_], *, least: float) -> NDArray[np.bool_]:
    """Leave out connected regions of fewer voxels.

    Parameters
    ----------
    mask : ndarray of bool, shape (z, y, x)
    least : float
        Voxels of a region that is kept.
    """
    labels = label_mask(mask)
    kept = np.bincount(labels.ravel()) >= least
    kept[0] = False
    return np.asarray(kept[labels], dtype=bool)
