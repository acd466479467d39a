"""From a mask and seeds to instances: regions with a position, a size and a shape each."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from scipy.spatial import KDTree
from scipy.special import erf

from tomoloc.arrays import interpolate
from tomoloc.types import FloatArray, Volume

__all__ = ["Regions", "ball_diameter", "find_regions", "join_seeds", "label_mask", "watershed"]

Labels = NDArray[np.int32]

_HALF = 0.5
"""Part of a seed's height above which a voxel belongs to its region."""
_STEPS = 9
"""Places on the way from one seed to another that are looked at."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Regions:
    """What was measured of numbered regions.

    Parameters
    ----------
    labels : Volume, data of int32, shape (z, y, x)
        Row plus one in each region, 0 outside.
    position : ndarray, shape (n, 3)
        Centroids weighted by intensity, xyz in angstrom.
    volume : ndarray, shape (n,)
        In cubic angstrom.
    length : ndarray, shape (n,)
        Longest axis of the ellipsoid with the same moments, in angstrom.
    """

    labels: Volume
    position: FloatArray
    volume: FloatArray
    length: FloatArray

    def __len__(self) -> int:
        return len(self.volume)


def join_seeds(
    position: FloatArray,
    strength: FloatArray,
    *,
    field: Volume,
    reach: float,
    valley: float,
    min_distance: float,
) -> NDArray[np.intp]:
    """Tell which of several seeds no valley parts, and so are one.

    From the strongest down, a seed is dropped if a kept one is closer than `min_distance`, or
    closer than `reach` with nothing on the straight way between them that is lower than `valley`
    times the lower of both.

    Parameters
    ----------
    position : ndarray, shape (n, 3)
        xyz in angstrom.
    strength : ndarray, shape (n,)
    field : Volume, data shape (z, y, x)
        Blurred tomogram, or map of centres; nothing is 0.
    reach, min_distance : float
        In angstrom.
    valley : float
        From 0 to 1; less joins more.

    Returns
    -------
    ndarray of int, shape (n,)
        For each seed the row of the strongest one that it was dropped for, or its own.
    """
    order = np.argsort(-strength, kind="stable")
    if len(order) < 2:
        return order
    place = position[order]
    pairs = KDTree(place).query_pairs(reach, output_type="ndarray")
    better, worse = pairs.min(axis=1), pairs.max(axis=1)
    part = np.linspace(0, 1, _STEPS)[:, None]
    way = place[better][:, None] * (1 - part) + place[worse][:, None] * part
    height = interpolate(field.data[..., None], field.to_index(way).reshape(-1, 3))
    height = height.reshape(-1, _STEPS)
    ends = np.minimum(height[:, 0], height[:, -1])
    near = np.linalg.norm(place[better] - place[worse], axis=1) < min_distance
    one = near | (height.min(axis=1) > valley * ends)
    rivals: list[list[int]] = [[] for _ in order]
    for first, second in zip(better[one].tolist(), worse[one].tolist(), strict=True):
        rivals[second].append(first)
    owner = np.arange(len(order))
    for row, others in enumerate(rivals):
        owner[row] = min((other for other in others if owner[other] == other), default=row)
    joined = np.empty_like(order)
    joined[order] = order[owner]
    return joined


def watershed(field: Volume, position: FloatArray) -> Labels:
    """Flood from seeds down the intensity, to half of each seed's height [1]_.

    Parameters
    ----------
    field : Volume, data shape (z, y, x)
        Blurred tomogram, ice at 0.
    position : ndarray, shape (n, 3)
        Of the seeds, xyz in angstrom.

    Returns
    -------
    ndarray of int32, shape (z, y, x)
        Row plus one; 0 outside.

    References
    ----------
    .. [1] Vincent & Soille, IEEE Trans. Pattern Anal. Mach. Intell. 13, 583 (1991),
       doi:10.1109/34.87344.
    """
    from skimage.segmentation import watershed as flood

    shape = np.array(field.shape)
    markers = np.zeros(field.shape, dtype=np.int32)
    place = np.clip(np.rint(field.to_index(position)).astype(int), 0, shape - 1)
    # Reversed, so that of seeds in one voxel the first one counts.
    markers[tuple(place[::-1].T)] = np.arange(len(place), 0, -1)
    height = np.append(0, np.asarray(field.data[tuple(place.T)], dtype=np.float32))
    data = np.asarray(field.data)
    lowest = _HALF * float(height[1:].min(initial=np.inf))
    room = (data > max(lowest, 0.0)) | (markers > 0)
    labels = np.asarray(flood(-data, markers, mask=room), dtype=np.int32)
    # Region by region the cut is at half of its own seed.
    labels[(data < _HALF * height[labels]) & (markers == 0)] = 0
    return labels


def label_mask(mask: NDArray[np.bool_]) -> Labels:
    """Number the connected regions of a mask; voxels that share a face belong together."""
    labels = np.zeros(mask.shape, dtype=np.int32)
    ndimage.label(mask, output=labels)
    return labels


def find_regions(labels: Labels, *, field: Volume, number: int | None = None) -> Regions:
    """Measure numbered regions.

    Parameters
    ----------
    labels : ndarray of int32, shape (z, y, x)
    field : Volume, data shape (z, y, x)
        Weights of the centroids; negative ones count as 0.
    number : int, optional
        Of regions; the largest label by default.

    Returns
    -------
    Regions
        Empty regions have volume 0 and lie at the origin.
    """
    n = int(labels.max()) if number is None else number
    place = np.nonzero(labels)
    own = labels[place] - 1
    weight = np.maximum(np.asarray(field.data[place], dtype=float), 0) + 1e-6
    count = np.bincount(own, minlength=n).astype(float)
    total = np.maximum(np.bincount(own, weights=weight, minlength=n), 1e-12)
    index = np.stack(place, axis=1).astype(float)
    center = np.stack(
        [np.bincount(own, weights=weight * index[:, i], minlength=n) / total for i in range(3)],
        axis=1,
    )
    away = index - center[own]
    moments = np.zeros((n, 3, 3))
    for i in range(3):
        for j in range(i, 3):
            product = np.bincount(own, weights=away[:, i] * away[:, j], minlength=n)
            moments[:, i, j] = moments[:, j, i] = product / np.maximum(count, 1)
    moments += np.eye(3) / 12  # of a voxel itself
    widest = np.linalg.eigvalsh(moments)[:, -1] if n else np.zeros(0)
    spacing = field.voxel_spacing
    return Regions(
        labels=Volume(data=labels, voxel_spacing=spacing, origin=field.origin, name=field.name),
        position=field.to_position(center),
        volume=count * spacing**3,
        length=2 * np.sqrt(5 * widest) * spacing,
    )


def ball_diameter(volume: FloatArray, *, sigma: float) -> FloatArray:
    """Diameter of a ball that, blurred, is as large at half of its height.

    Parameters
    ----------
    volume : ndarray
        At half height, in cubic angstrom.
    sigma : float
        Of the Gaussian blur, in angstrom.

    Returns
    -------
    ndarray
        In angstrom; 0 where the blur alone is as large.
    """
    blurred = np.cbrt(6 * np.asarray(volume, dtype=float) / np.pi) / sigma
    radius, at_half = _half_heights()
    found = np.interp(blurred, 2 * at_half, 2 * radius, left=0.0)
    return np.asarray(np.where(blurred > 2 * at_half[-1], blurred, found) * sigma)


@cache
def _half_heights() -> tuple[FloatArray, FloatArray]:
    """Radii of balls and where they are half as high once blurred, in units of the blur."""
    radius = np.linspace(0.05, 8.0, 160)[:, None]
    r = np.linspace(1e-3, 10.0, 4000)
    profile = (erf((radius - r) / np.sqrt(2)) + erf((radius + r) / np.sqrt(2))) / 2
    tails = np.exp(-((radius - r) ** 2) / 2) - np.exp(-((radius + r) ** 2) / 2)
    profile -= tails / (np.sqrt(2 * np.pi) * r)
    half = r[(profile > profile[:, :1] / 2).sum(axis=1) - 1]
    return radius[:, 0], half
