"""Places of an embedded tomogram where a particle may be, and what the network says of them.

An embedding has as many vectors as grid points, most of them of ice and of places beside a
particle's centre. Whatever is done next, comparing, clustering, searching, needs one vector for
each particle.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.spatial import KDTree

from tomoloc.arrays import interpolate, release
from tomoloc.features.instances import join_seeds
from tomoloc.localize import EDGE_COLUMN, find_peaks, flag_edges, suppress
from tomoloc.types import FloatArray, Particles, ScoreMap, Volume

__all__ = ["Candidates", "find_candidates", "look_up", "look_up_centers"]

LABEL = "candidate"
_SLAB_BYTES = 64 << 20
"""Of the maps that peaks are found in at one time."""
_SIMILAR = 100
_REACH, _VALLEY, _SURE = 150.0, 0.5, 0.5
"""Å, part, probability below which maxima of the map of centres are joined; chosen on scenes."""
_ROWS = 1 << 16
"""Vectors that are compared with targets at one time."""
_AROUND = np.array(list(product((-0.75, 0, 0.75), repeat=3)))
"""Places in grid points around one, the mean of whose vectors is less noisy than that of one."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Candidates:
    """What may be particles.

    Parameters
    ----------
    particles : Particles
        Label "candidate"; the score is the probability that a particle's centre is there. The
        extra column `tomolocEdge` is 1 close to the border.
    vectors : ndarray of float32, shape (n, channels)
        Of length 1.
    """

    particles: Particles
    vectors: NDArray[np.float32]

    def __post_init__(self) -> None:
        if self.vectors.ndim != 2 or len(self.vectors) != len(self.particles):
            raise ValueError(
                f"expected a vector for each of {len(self.particles)} candidates; got an array of"
                f" shape {self.vectors.shape}"
            )

    def __len__(self) -> int:
        return len(self.particles)

    def __getitem__(self, rows: Any) -> Candidates:
        """Return the chosen rows (slice, mask or indices)."""
        chosen = np.atleast_1d(np.arange(len(self))[rows])
        return Candidates(particles=self.particles[chosen], vectors=self.vectors[chosen])


def find_candidates(
    embedding: Volume,
    *,
    centers: bool,
    threshold: float = 0.05,
    min_distance: float = 40.0,
    targets: ArrayLike | None = None,
    similarity: float = 0.95,
) -> Candidates:
    """Find the local maxima of the map of centres and, with targets, of the similarity to them.

    Of a particle that is long or has parts, the map of centres shows several maxima, none of them
    likely. An unlikely one that no valley parts from a better one is taken as one with it: a
    candidate in their middle, and likely if any is.

    Parameters
    ----------
    embedding : Volume, data shape (channels, z, y, x)
        As `LearnedFeatures.embed` gives it. May be memory-mapped: a few sections at a time are
        read.
    centers : bool
        Whether the last channel is the probability of a centre (`LearnedFeatures.finds_centers`).
    threshold : float
        Keep maxima of that probability above.
    min_distance : float
        Between two candidates, in angstrom.
    targets : array_like, shape (n, vector), optional
        Unit vectors. Where no centre is close, maxima of the largest cosine with any of them are
        candidates, too: a network may miss the centre of what it still recognises. Their
        probability is no higher than the threshold.
    similarity : float
        Keep those maxima above, but no more of them than of the other kind (or a hundred): of the
        ice between the particles, much may resemble a small particle.

    Returns
    -------
    Candidates
        Those of the map of centres first, each kind best first. Where there is no map of centres,
        the probability is 0.5.

    Raises
    ------
    ValueError
        If there is neither a map of centres nor a target, or targets are of another length.
    """
    points = _by_point(embedding)
    channels = points.shape[-1] - bool(centers)
    tables = []
    if centers:
        found = _find_maxima(
            embedding,
            lambda sections: points[sections, ..., -1].astype(np.float32),
            threshold=threshold,
            min_distance=min_distance,
        )
        tables.append(_join(found, embedding))
    if targets is not None and len(directions := np.asarray(targets, dtype=np.float32)):
        if directions.ndim != 2 or directions.shape[1] != channels:
            raise ValueError(
                f"expected targets of shape (n, {channels}), as the model's vectors are; got"
                f" {directions.shape}"
            )
        found = _find_maxima(
            embedding,
            lambda sections: _best_cosine(points[sections, ..., :channels], directions),
            threshold=similarity,
            min_distance=min_distance,
        )
        if centers and len(found):
            if len(tables[0]):
                near, _ = KDTree(tables[0].position).query(found.position)
                found = found[near >= min_distance]
            found = found[: max(len(tables[0]), _SIMILAR)]
            score = interpolate(points[..., -1:], embedding.to_index(found.position))[:, 0]
            # Where it is larger, a maximum was taken as one with another.
            score = np.minimum(score, threshold)
        else:
            score = np.full(len(found), 0.5, dtype=np.float32)  # it says nothing
        tables.append(replace(found, score=score))
    elif not centers:
        raise ValueError("this model finds no centres: without targets there are no candidates")
    particles = Particles.concatenate(tables)
    edge = flag_edges(embedding, particles.position, diameter=min_distance)
    vectors = look_up(embedding, particles.position, centers=centers)
    return Candidates(particles=replace(particles, extra={EDGE_COLUMN: edge}), vectors=vectors)


def look_up(embedding: Volume, position: ArrayLike, *, centers: bool = True) -> FloatArray:
    """Interpolate the vectors of an embedding.

    A network that finds centres has been taught that all places near one are alike. What it says
    of them is averaged, over one and a half grid points along each axis.

    Parameters
    ----------
    embedding : Volume, data shape (channels, z, y, x)
        As `LearnedFeatures.embed` gives it.
    position : array_like, shape (n, 3)
        xyz in angstrom. Outside the grid, the nearest place on it is taken.
    centers : bool
        Whether the last channel is the probability of a centre, not of the vectors.

    Returns
    -------
    ndarray of float32, shape (n, vector)
        Trilinear, of length 1.
    """
    points = _by_point(embedding)
    channels = points.shape[-1] - bool(centers)
    places = embedding.to_index(np.reshape(np.asarray(position, dtype=float), (-1, 3)))
    total = np.zeros((len(places), channels), dtype=np.float32)
    for step in _AROUND if centers else np.zeros((1, 3)):
        total += interpolate(points[..., :channels], places + step)
    return _normalise(total)


def look_up_centers(embedding: Volume, position: ArrayLike) -> FloatArray:
    """Interpolate the probability of a centre, the last channel of an embedding.

    Parameters
    ----------
    embedding, position
        As for `look_up`.

    Returns
    -------
    ndarray of float32, shape (n,)
    """
    places = embedding.to_index(np.reshape(np.asarray(position, dtype=float), (-1, 3)))
    return interpolate(_by_point(embedding)[..., -1:], places)[:, 0]


def _by_point(embedding: Volume) -> NDArray[Any]:
    """The same values with the channels last, as they lie in memory."""
    if embedding.data.ndim != 4:
        raise ValueError(f"expected data of shape (channels, z, y, x); got {embedding.data.shape}")
    return np.moveaxis(embedding.data, 0, -1)


def _find_maxima(
    embedding: Volume,
    make_map: Callable[[slice], NDArray[np.float32]],
    *,
    threshold: float,
    min_distance: float,
) -> Particles:
    """Find the local maxima of a map that is made a few sections at a time."""
    found = []
    for inner, outer in _slabs(embedding.shape):
        slab = ScoreMap(
            data=make_map(outer)[None],
            voxel_spacing=embedding.voxel_spacing,
            origin=embedding.to_position((outer.start, 0, 0)),
            labels=(LABEL,),
            name=embedding.name,
        )
        release(embedding.data)
        own = np.zeros(slab.shape, dtype=bool)
        own[inner.start - outer.start : inner.stop - outer.start] = True
        mask = Volume(data=own, voxel_spacing=slab.voxel_spacing)
        found.append(
            # Rivals across a slab's border are not known yet: let each remove only its equals.
            find_peaks(slab, threshold=threshold, min_distance=embedding.voxel_spacing, mask=mask)
        )
    every = Particles.concatenate(found)
    return every[suppress(every.position, np.asarray(every.score), min_distance=min_distance)]


def _join(found: Particles, embedding: Volume) -> Particles:
    """Join unlikely maxima of the map of centres to better ones that no valley parts them from."""
    position, score = found.position, np.asarray(found.score, dtype=float)
    centers = embedding.with_data(embedding.data[-1])
    owner = join_seeds(
        position, score, field=centers, reach=_REACH, valley=_VALLEY, min_distance=0.0
    )
    n = len(score)
    owner = np.where(score < _SURE, owner, np.arange(n))
    total = np.maximum(np.bincount(owner, weights=score, minlength=n), 1e-12)
    middle = [np.bincount(owner, weights=score * p, minlength=n) / total for p in position.T]
    none = np.bincount(owner, weights=np.log1p(-np.minimum(score, 1 - 1e-6)), minlength=n)
    kept = np.flatnonzero(owner == np.arange(n))
    joined = replace(found, position=np.stack(middle, axis=1), score=-np.expm1(none))[kept]
    return joined[np.argsort(-np.asarray(joined.score), kind="stable")]


def _slabs(shape: tuple[int, int, int]) -> Iterator[tuple[slice, slice]]:
    """Yield sections, and the same with one more on each side, where there is one."""
    step = max(4, _SLAB_BYTES // (4 * shape[1] * shape[2]))
    for start in range(0, shape[0], step):
        stop = min(start + step, shape[0])
        yield slice(start, stop), slice(max(0, start - 1), min(stop + 1, shape[0]))


def _best_cosine(vectors: NDArray[Any], targets: NDArray[np.float32]) -> NDArray[np.float32]:
    """Largest product of each vector (..., channels) with any target."""
    out = np.empty(vectors.shape[:-1], dtype=np.float32)
    for section, best in zip(vectors, out, strict=True):
        rows, values = section.reshape(-1, section.shape[-1]), best.reshape(-1)
        for first in range(0, len(rows), _ROWS):
            part = slice(first, first + _ROWS)
            values[part] = (rows[part].astype(np.float32) @ targets.T).max(axis=1)
    return out


def _normalise(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    length = np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors / np.maximum(length, np.finfo(np.float32).tiny)
