"""From score maps to particles, once for all pickers."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import product
from typing import Any, Literal

import numpy as np
from numba import njit, prange
from numpy.typing import ArrayLike, NDArray
from scipy import ndimage, optimize
from scipy.spatial import KDTree
from scipy.spatial.transform import Rotation
from scipy.special import log_ndtr

from tomoloc.arrays import sparse_zeros
from tomoloc.types import FloatArray, Particles, ScoreMap, Volume

__all__ = [
    "EDGE_COLUMN",
    "estimate_threshold",
    "expected_false_peaks",
    "false_discovery_rate",
    "find_components",
    "find_peaks",
    "flag_edges",
    "local_maxima",
    "paint_peaks",
    "separate_scores",
    "suppress",
]

EDGE_COLUMN = "tomolocEdge"
"""Extra column: 1 where a particle reaches over the border of the tomogram, else 0."""

_SLAB_VOXELS = 1 << 24
"""That maxima are looked for in at one time."""
_STEEPNESS = 0.25
"""Of painted peaks; from 0.5 on, what lies beside a peak could fall below 0."""
_FOOT = 0.02
"""Of a peak's height: what is lower beside it has no logarithm to trust."""


def find_peaks(
    scores: ScoreMap,
    *,
    threshold: ArrayLike,
    min_distance: ArrayLike,
    diameter: ArrayLike | None = None,
    max_particles: int | None = None,
    mask: Volume | None = None,
    shape: Literal["parabola", "gaussian"] = "parabola",
) -> Particles:
    """Find local maxima of a score map.

    Candidates are voxels no lower than their 26 neighbours, and higher than one of them. From the
    best down, each one kept removes those of its label that are closer than `min_distance`.
    Positions are refined by a curve through three voxels along each axis.

    Parameters
    ----------
    scores : ScoreMap, data shape (label, z, y, x)
        Higher is better; need not be normalised.
    threshold : float or array_like, shape (label,)
        Keep peaks strictly above this value. See `estimate_threshold`.
    min_distance : float or array_like, shape (label,)
        Smallest allowed distance between two particles of one label, in angstrom.
    diameter : float or array_like, shape (label,), optional
        Of a particle; those closer than half of it to the border are flagged in the extra column
        `tomolocEdge`. `min_distance` by default.
    max_particles : int, optional
        Keep this many of each label.
    mask : Volume, data shape (z, y, x), optional
        Peaks lie where this is not zero.
    shape : {"parabola", "gaussian"}
        Of the curve. A Gaussian suits maps of no less than 0 that are hardly wider than their
        voxels, where the vertex of a parabola is too near to the voxel.

    Returns
    -------
    Particles, length n
        Sorted by score, best first. Empty (not None) if nothing is found. With rotations where
        the score map has them.

    Raises
    ------
    ValueError
        If `min_distance` is not positive, or the mask has another shape than the scores.
    """
    n = len(scores.labels)
    distances = np.broadcast_to(np.asarray(min_distance, dtype=float), (n,))
    if not (distances > 0).all():
        raise ValueError(f"min_distance must be positive (angstrom); got {distances.min():g}")
    diameters = distances if diameter is None else np.broadcast_to(np.asarray(diameter), (n,))
    thresholds = np.broadcast_to(np.asarray(threshold, dtype=float), (n,))
    inside = _inside(scores, mask)
    tables = []
    for channel, label in enumerate(scores.labels):
        data = scores.data[channel]
        index = local_maxima(data, threshold=thresholds[channel], inside=inside)
        value = data[tuple(index.T)].astype(float)
        refined = _refine(data, index, shape=shape)
        position = scores.to_position(refined)
        kept = suppress(position, value, min_distance=distances[channel])[:max_particles]
        tables.append(
            Particles(
                position=position[kept],
                label=label,
                tomogram=scores.name,
                score=value[kept],
                rotation=_rotations(scores, channel, index[kept]),
                extra={
                    EDGE_COLUMN: flag_edges(
                        scores, position[kept], diameter=float(diameters[channel])
                    )
                },
            )
        )
    found = Particles.concatenate(tables)
    return found[np.argsort(-np.asarray(found.score), kind="stable")]


def find_components(
    scores: ScoreMap,
    *,
    threshold: ArrayLike,
    diameter_range: tuple[float, float] = (0.0, np.inf),
    mask: Volume | None = None,
) -> Particles:
    """Find connected regions of a score map above a threshold.

    Voxels that share a face belong together. A particle's position is the mean over its region,
    weighted by the score above the threshold; its score is the region's mean.

    Parameters
    ----------
    scores : ScoreMap, data shape (label, z, y, x)
    threshold : float or array_like, shape (label,)
        Regions lie strictly above.
    diameter_range : tuple of float
        Keep regions whose volume is that of a sphere with a diameter in this range, in angstrom.
    mask : Volume, data shape (z, y, x), optional
        Regions lie where this is not zero.

    Returns
    -------
    Particles, length n
        Sorted by score, best first; the extra column `tomolocVolume` holds the volume in Å³.

    Raises
    ------
    ValueError
        If the mask has another shape than the scores.
    """
    thresholds = np.broadcast_to(np.asarray(threshold, dtype=float), (len(scores.labels),))
    inside = _inside(scores, mask)
    tables = []
    for channel, label in enumerate(scores.labels):
        above = np.asarray(scores.data[channel], dtype=float) - thresholds[channel]
        regions, n = ndimage.label((above > 0) & inside)
        n_voxels = np.bincount(regions.ravel(), minlength=n + 1)[1:]
        total = np.bincount(regions.ravel(), weights=above.ravel(), minlength=n + 1)[1:]
        volume = n_voxels * scores.voxel_spacing**3
        diameter = np.cbrt(6 * volume / np.pi)
        kept = (diameter >= diameter_range[0]) & (diameter <= diameter_range[1])
        numbers = np.flatnonzero(kept) + 1
        center = np.reshape(ndimage.center_of_mass(above, regions, numbers), (-1, 3))
        tables.append(
            Particles(
                position=scores.to_position(center),
                label=label,
                tomogram=scores.name,
                score=(total / n_voxels)[kept] + thresholds[channel],
                extra={
                    EDGE_COLUMN: _touches_border(regions, numbers),
                    "tomolocVolume": volume[kept],
                },
            )
        )
    found = Particles.concatenate(tables)
    return found[np.argsort(-np.asarray(found.score), kind="stable")]


def estimate_threshold(
    null: ScoreMap,
    *,
    false_positives: float,
    min_distance: float,
    mask: Volume | None = None,
    n_tail: int = 100,
) -> FloatArray:
    """Set the threshold that a stated number of false peaks is expected to pass.

    The peaks of a map without particles, found as `find_peaks` finds them and only inside the
    mask, show how many false ones to expect above any height. Beyond the highest of them their
    number is taken to fall off exponentially (the peaks-over-threshold method [1]_), which asks
    for too much rather than too little where the true fall-off is Gaussian.

    Parameters
    ----------
    null : ScoreMap, data shape (label, z, y, x)
        Scores under the null hypothesis: of a decoy, or of a tomogram of noise.
    false_positives : float
        Expected number of false peaks of each label in the mask.
    min_distance : float
        As for `find_peaks`, in angstrom.
    mask : Volume, data shape (z, y, x), optional
        Where peaks count.
    n_tail : int
        How many of the highest peaks the fall-off is fitted to, at most.

    Returns
    -------
    ndarray, shape (label,)
        Infinite where the mask leaves no voxel.

    Raises
    ------
    ValueError
        If `false_positives` is not positive, or the mask has another shape than the scores.

    References
    ----------
    .. [1] Davison & Smith, J. R. Stat. Soc. B 52, 393 (1990),
       doi:10.1111/j.2517-6161.1990.tb01796.x.
    """
    if false_positives <= 0:
        raise ValueError(f"false_positives must be positive; got {false_positives}")
    heights = _heights(null, min_distance=min_distance, mask=mask)
    return np.array([_tail(height, false_positives, n_tail) for height in heights])


def expected_false_peaks(
    particles: Particles,
    *,
    null: ScoreMap,
    min_distance: float,
    mask: Volume | None = None,
    n_tail: int = 100,
) -> FloatArray:
    """Tell how many false peaks are expected to be as high as each particle.

    Parameters
    ----------
    particles : Particles
        With scores, and labels of the null map.
    null, min_distance, mask, n_tail
        As for `estimate_threshold`, whose inverse this is.

    Returns
    -------
    ndarray, shape (n,)
        In the mask, of the particle's label.
    """
    heights = _heights(null, min_distance=min_distance, mask=mask)
    expected = np.zeros(len(particles))
    label, score = np.asarray(particles.label), np.asarray(particles.score, dtype=float)
    for name, height in zip(null.labels, heights, strict=True):
        rows = np.flatnonzero(label == name)
        expected[rows] = _above(height, score[rows], n_tail)
    return expected


def false_discovery_rate(label: ArrayLike, expected: ArrayLike) -> FloatArray:
    """Part of false ones to be expected among the particles that are as sure, or surer.

    Parameters
    ----------
    label : array_like of str, shape (n,)
        Labels are taken one by one.
    expected : array_like, shape (n,)
        From `expected_false_peaks`.

    Returns
    -------
    ndarray, shape (n,)
        From 0 to 1; never higher for a surer particle of the same label (Storey's q-value [1]_).

    References
    ----------
    .. [1] Storey & Tibshirani, PNAS 100, 9440 (2003), doi:10.1073/pnas.1530509100.
    """
    labels, numbers = np.asarray(label), np.asarray(expected, dtype=float)
    rate = np.zeros(len(numbers))
    for name in np.unique(labels):
        rows = np.flatnonzero(labels == name)
        rows = rows[np.argsort(numbers[rows], kind="stable")]
        part = numbers[rows] / np.arange(1, len(rows) + 1)
        rate[rows] = np.minimum(np.minimum.accumulate(part[::-1])[::-1], 1)
    return rate


def _heights(null: ScoreMap, *, min_distance: float, mask: Volume | None) -> list[FloatArray]:
    """Scores of a null map's peaks, highest first, for each label."""
    peaks = find_peaks(null, threshold=-np.inf, min_distance=min_distance, mask=mask)
    label, score = np.asarray(peaks.label), np.asarray(peaks.score)
    return [np.sort(score[label == name])[::-1] for name in null.labels]


def separate_scores(score: ArrayLike, *, lower: float) -> float:
    """Tell right picks from picks of something else by their scores, where there are two groups.

    A noise threshold keeps noise out, but not other structures that resemble what is looked for.
    Scores above it are modelled as one normal distribution, cut off at `lower`, and as two, as
    search scores of peptides are [1]_. The groups are told apart only where the second model is
    better by the Bayesian information criterion and has a valley of less than half the height of
    both of its modes.

    Parameters
    ----------
    score : array_like, shape (n,)
        Of peaks above `lower`; with fewer than 12 there is nothing to tell.
    lower : float
        Noise threshold.

    Returns
    -------
    float
        Score above which a pick is more likely in the upper group, or `lower`.

    References
    ----------
    .. [1] Keller et al., Anal. Chem. 74, 5383 (2002), doi:10.1021/ac025747h.
    """
    values = np.sort(np.asarray(score, dtype=float))
    n = len(values)
    if n < 12 or values[-1] <= lower:
        return lower
    scale = values[-1] - lower
    x = (values - lower) / scale  # so that the cut-off is 0 and the best score 1
    starts = [(float(center), float(np.log(x.std() + 1e-9))) for center in (x.mean(), 0.0)]
    one = min(
        float(optimize.minimize(_one_normal, start, x, method="Nelder-Mead").fun)
        for start in starts
    )
    two = min(
        (
            optimize.minimize(
                _two_normals,
                _split_start(x, part),
                x,
                method="Nelder-Mead",
                options={"maxiter": 4000, "xatol": 1e-4, "fatol": 1e-4},
            )
            for part in (0.2, 0.35, 0.5, 0.65, 0.8, 0.9)
        ),
        key=lambda result: result.fun,
    )
    if 2 * (one - two.fun) - 3 * np.log(n) < _STRONG_EVIDENCE:
        return lower
    weights, centers, widths = _two_parameters(two.x)
    grid = np.linspace(max(0.0, centers[0]), centers[1], 1000)
    parts = [
        np.log(weight) + _log_normal(grid, center, width)
        for weight, center, width in zip(weights, centers, widths, strict=True)
    ]
    density = np.exp(np.logaddexp(*parts))
    if density.min() > 0.5 * min(density[0], density[-1]):
        return lower
    below = grid[parts[1] < parts[0]]
    return float(lower + scale * below[-1]) if len(below) else lower


_STRONG_EVIDENCE = 6.0
"""Difference of the Bayesian information criterion (Kass & Raftery 1995, p. 777)."""
_NARROWEST = 0.02
"""Least width of a group, of the range of scores, so that none shrinks to a single score."""


def _log_normal(x: FloatArray, center: float, width: float) -> FloatArray:
    """Log density of a normal distribution that is cut off below 0."""
    z = (x - center) / width
    return -0.5 * z**2 - np.log(width * np.sqrt(2 * np.pi)) - log_ndtr(center / width)


def _one_normal(parameters: FloatArray, x: FloatArray) -> float:
    center, log_width = parameters
    return -float(_log_normal(x, center, _NARROWEST + np.exp(log_width)).sum())


def _two_parameters(
    parameters: FloatArray,
) -> tuple[tuple[float, float], tuple[float, float], tuple[float, float]]:
    """Weights, centres and widths of the lower and the upper group."""
    logit, center, log_width, log_distance, log_width_above = parameters
    weight = float(np.clip(1 / (1 + np.exp(-logit)), 1e-9, 1 - 1e-9))
    widths = _NARROWEST + np.exp(log_width), _NARROWEST + np.exp(log_width_above)
    return (weight, 1 - weight), (center, center + np.exp(log_distance)), widths


def _two_normals(parameters: FloatArray, x: FloatArray) -> float:
    weights, centers, widths = _two_parameters(parameters)
    lower, upper = (
        np.log(weight) + _log_normal(x, center, width)
        for weight, center, width in zip(weights, centers, widths, strict=True)
    )
    return -float(np.logaddexp(lower, upper).sum())


def _split_start(x: FloatArray, part: float) -> list[float]:
    """Parameters of `_two_normals` with the lowest `part` of sorted values as lower group."""
    k = int(np.clip(round(part * len(x)), 2, len(x) - 2))
    below, above = x[:k], x[k:]
    return [
        float(np.log(k / (len(x) - k))),
        float(below.mean()),
        float(np.log(below.std() + _NARROWEST)),
        float(np.log(max(above.mean() - below.mean(), 1e-6))),
        float(np.log(above.std() + _NARROWEST)),
    ]


def _fall_off(heights: FloatArray, n_tail: int) -> tuple[int, float, float]:
    """How many peaks are in the tail, where it starts, and the scale of its exponential."""
    n = len(heights)
    k = int(np.clip(n // 5, min(n - 1, 10), n_tail))
    return k, float(heights[k]), float(np.mean(heights[:k]) - heights[k]) if k else 0.0


def _tail(heights: FloatArray, expected: float, n_tail: int) -> float:
    """Height that `expected` of the given peaks (sorted, highest first) would pass."""
    n = len(heights)
    if n == 0:
        return float(np.inf)
    if expected >= n:
        return float(np.nextafter(heights[-1], -np.inf))
    k, start, scale = _fall_off(heights, n_tail)
    if k < 1:
        return float(heights[0])
    if expected > k:
        return float(np.interp(expected, np.arange(1, n + 1), heights))
    return float(start + scale * np.log(k / expected))


def _above(heights: FloatArray, score: FloatArray, n_tail: int) -> FloatArray:
    """How many of the given peaks are expected to pass each score: the inverse of `_tail`."""
    if len(heights) == 0:
        return np.zeros(len(score))
    k, start, scale = _fall_off(heights, n_tail)
    below = np.interp(-score, -heights, np.arange(1.0, len(heights) + 1))
    if scale <= 0:
        return np.where(score > heights[0], 0.0, below)
    return np.where(score > start, k * np.exp(-(np.maximum(score, start) - start) / scale), below)


def _inside(scores: Volume, mask: Volume | None) -> NDArray[np.bool_]:
    if mask is None:
        return np.ones(scores.shape, dtype=bool)
    if mask.shape != scores.shape:
        raise ValueError(
            "the mask must have the tomogram's size; got"
            f" {' x '.join(map(str, mask.shape[::-1]))} voxels for"
            f" {' x '.join(map(str, scores.shape[::-1]))} (x y z)"
        )
    return np.asarray(mask.data.reshape(mask.shape) != 0)


def local_maxima(
    data: NDArray[Any], *, threshold: float, inside: NDArray[np.bool_] | None = None
) -> NDArray[np.intp]:
    """Find the voxels that no neighbour exceeds, each of them higher than one neighbour at least.

    Voxels whose neighbours are all their equals are no maxima: maps may be flat where there is
    nothing to see.

    Parameters
    ----------
    data : ndarray, shape (z, y, x)
    threshold : float
        Maxima are above it; infinite values are none.
    inside : ndarray of bool, shape (z, y, x), optional
        Where they may be.

    Returns
    -------
    ndarray of int, shape (n, 3)
        Voxels zyx, in the array's order.
    """
    found = [np.zeros((0, 3), dtype=np.intp)]
    step = max(4, _SLAB_VOXELS // (data.shape[1] * data.shape[2]))
    for start in range(0, len(data), step):
        peak = _maxima(data, start, min(start + step, len(data)), threshold)
        if inside is not None:
            peak &= inside[start : start + step]
        found.append(np.argwhere(peak) + np.array([start, 0, 0]))
    return np.concatenate(found)


@njit(cache=True, nogil=True, parallel=True)
def _maxima(data: NDArray[Any], start: int, stop: int, threshold: float) -> NDArray[np.bool_]:
    nz, ny, nx = data.shape
    found = np.zeros((stop - start, ny, nx), np.bool_)
    for k in prange(stop - start):
        z = start + k
        for y in range(ny):
            for x in range(nx):
                here = data[z, y, x]
                if not (here > threshold and np.isfinite(here)):
                    continue
                highest, falls = True, False
                for i in range(max(z - 1, 0), min(z + 2, nz)):
                    for j in range(max(y - 1, 0), min(y + 2, ny)):
                        for m in range(max(x - 1, 0), min(x + 2, nx)):
                            highest &= not data[i, j, m] > here
                            falls |= data[i, j, m] < here
                    if not highest:
                        break
                found[k, y, x] = highest and falls
    return found


def _refine(data: NDArray[Any], index: NDArray[np.intp], *, shape: str) -> FloatArray:
    """Add the vertex of the curve through three voxels along each axis; none at the border."""
    refined = index.astype(float)
    for axis in range(3):
        inner = (index[:, axis] > 0) & (index[:, axis] < data.shape[axis] - 1)
        step = np.zeros(3, dtype=int)
        step[axis] = 1
        below, middle, above = (
            data[tuple((index[inner] + n * step).T)].astype(float) for n in (-1, 0, 1)
        )
        if shape == "gaussian":  # whose logarithm is a parabola
            foot = np.maximum(_FOOT * middle, np.finfo(float).tiny)
            below, middle, above = (np.log(np.maximum(v, foot)) for v in (below, middle, above))
        curvature = 2 * middle - below - above
        shift = np.divide(
            above - below, 2 * curvature, out=np.zeros(len(below)), where=curvature > 0
        )
        refined[inner, axis] += np.clip(shift, -0.5, 0.5)
    return refined


def paint_peaks(
    grid: Volume,
    tables: Mapping[str, tuple[ArrayLike, ArrayLike]],
    *,
    diameter: float | None = None,
) -> ScoreMap:
    """Make the score map from which `find_peaks` reads given positions and scores.

    Around the grid point nearest to a place c, the score falls off with the square of the distance
    to c, so that a parabola through three points along an axis has its vertex there.

    Parameters
    ----------
    grid : Volume
        What the map shall lie on.
    tables : mapping of str to (position, score)
        For each label arrays of shapes (n, 3), xyz in angstrom, and (n,). Scores of 0 or less are
        left out.
    diameter : float, optional
        Of the particles, as far as it is known from the tomogram.

    Returns
    -------
    ScoreMap
        0 elsewhere, where it takes no memory.
    """
    data = sparse_zeros((len(tables), *grid.shape), np.float32)
    for channel, (position, score) in zip(data, tables.values(), strict=True):
        place = grid.to_index(np.reshape(np.asarray(position, dtype=float), (-1, 3)))
        paint(channel, place, np.asarray(score, dtype=float))
    return ScoreMap(
        data=data,
        voxel_spacing=grid.voxel_spacing,
        origin=grid.origin,
        name=grid.name,
        labels=tuple(tables),
        diameter=diameter,
    )


def paint(data: NDArray[np.float32], place: FloatArray, height: FloatArray) -> None:
    """Paint a paraboloid at each place: `paint_peaks` on a map that is there.

    Parameters
    ----------
    data : ndarray, shape (z, y, x)
        Changed at the voxels nearest to the places and their six neighbours.
    place : ndarray, shape (n, 3)
        Indices zyx, between voxels.
    height : ndarray, shape (n,)
        Of the nearest voxel; 0 or less is left out.
    """
    last = np.array(data.shape) - 1
    nearest = np.clip(np.rint(place), 0, last).astype(int)
    steps = np.array([s for s in product((-1, 0, 1), repeat=3) if np.abs(s).sum() <= 1])
    # The best ones last: where two are neighbours, it is the worse one that is spoilt.
    for row in np.argsort(height, kind="stable"):
        if height[row] <= 0:
            continue
        offset = np.clip(place[row] - nearest[row], -0.5, 0.5)
        points = nearest[row] + steps
        points = points[((points >= 0) & (points <= last)).all(axis=1)]
        away = ((points - nearest[row] - offset) ** 2).sum(axis=1) - (offset**2).sum()
        data[tuple(points.T)] = height[row] * (1 - _STEEPNESS * away)


def suppress(position: FloatArray, value: FloatArray, *, min_distance: float) -> NDArray[np.intp]:
    """Let peaks remove those that are lower and too close.

    Parameters
    ----------
    position : ndarray, shape (n, 3)
        xyz in angstrom.
    value : ndarray, shape (n,)
        Higher is better; of equal ones, the first is.
    min_distance : float
        No two of those kept are closer, in angstrom.

    Returns
    -------
    ndarray of int
        Indices of the peaks kept, best first.
    """
    order = np.argsort(-value, kind="stable")
    if len(order) < 2:
        return order
    tree = KDTree(position)
    free = np.ones(len(order), dtype=bool)
    kept = []
    for i in order:
        if free[i]:
            kept.append(i)
            free[tree.query_ball_point(position[i], min_distance * (1 - 1e-9))] = False
    return np.array(kept, dtype=np.intp)


def _rotations(scores: ScoreMap, channel: int, index: NDArray[np.intp]) -> Rotation | None:
    if scores.rotations is None or scores.rotation_index is None:
        return None
    chosen = scores.rotation_index[channel][tuple(index.T)]
    return Rotation.from_quat(scores.rotations.as_quat()[chosen].reshape(-1, 4))


def flag_edges(volume: Volume, position: ArrayLike, *, diameter: float) -> NDArray[np.int8]:
    """Tell which particles reach over the border of a volume, for column `tomolocEdge`.

    Parameters
    ----------
    volume : Volume
    position : array_like, shape (n, 3)
        xyz in angstrom.
    diameter : float
        Of a particle, in angstrom.

    Returns
    -------
    ndarray of int8, shape (n,)
        1 where it does, else 0.
    """
    index, reach = volume.to_index(position), diameter / 2 / volume.voxel_spacing
    last = np.array(volume.shape) - 1
    return np.asarray(((index < reach) | (index > last - reach)).any(axis=1), dtype=np.int8)


def _touches_border(
    regions: NDArray[np.integer[Any]], numbers: NDArray[np.intp]
) -> NDArray[np.int8]:
    faces = [np.take(regions, (0, -1), axis=axis).ravel() for axis in range(3)]
    return np.asarray(np.isin(numbers, np.concatenate(faces)), dtype=np.int8)
