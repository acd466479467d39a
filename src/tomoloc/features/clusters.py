"""Kinds of particles, found without an example: candidates in groups of like vectors.

The density of 32-dimensional vectors is hard to see for density clustering; on a plane that keeps
neighbours together (UMAP, McInnes, Healy & Melville 2018, doi:10.48550/arXiv.1802.03426) it is
not, but the plane tears groups apart at random. So groups that HDBSCAN (Campello, Moulavi & Sander
2013, doi:10.1007/978-3-642-37456-2_14) finds on the plane are joined again where the vectors
themselves show no gap between them.
"""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = ["Clusters", "cluster_candidates"]

logger = logging.getLogger(__name__)

FloatArray = NDArray[np.float32]

MAPPED = 30_000
"""Candidates on the plane; the others join the group whose target is nearest."""
_FEWEST = 30
"""Candidates, below which there is no telling groups from chance."""
_NEIGHBOURS = 15
_DENSE = 3
"""Candidates within whose distance density is measured."""
_GAP = 3.0
"""In standard deviations; two halves of one Gaussian, cut in two, are 2.6 apart."""
_REACH = 6.0
"""A group reaches so many times as far from its target as half of its members lie."""
_ROWS = 1 << 16


@dataclass(frozen=True, eq=False, kw_only=True)
class Clusters:
    """Groups of candidates, largest first.

    Parameters
    ----------
    label : ndarray of int, shape (n,)
        Group of each candidate; -1 for those of none.
    targets : ndarray of float32, shape (k, channels)
        A unit vector for each group.
    coordinates : ndarray of float32, shape (n, 2)
        Places on a plane on which like candidates lie together; NaN for those that are not shown.
    similarity : ndarray of float32, shape (n,)
        Cosine to the nearest target; 0 where there is none.
    """

    label: NDArray[np.int64]
    targets: FloatArray
    coordinates: FloatArray
    similarity: FloatArray

    def __len__(self) -> int:
        return len(self.targets)

    @property
    def n_members(self) -> NDArray[np.int64]:
        """Candidates in each group, shape (k,)."""
        return np.bincount(self.label[self.label >= 0], minlength=len(self))

    @property
    def names(self) -> list[str]:
        """`cluster_1` is the largest."""
        return [f"cluster_{i + 1}" for i in range(len(self))]


def cluster_candidates(
    vectors: ArrayLike,
    scores: ArrayLike,
    *,
    whole: ArrayLike | None = None,
    min_score: float = 0.2,
    min_size: int | None = None,
    target: Literal["mean", "medoid"] = "mean",
    seed: int = 0,
) -> Clusters:
    """Sort candidates of one or many tomograms into groups of like vectors.

    Parameters
    ----------
    vectors : array_like, shape (n, channels)
        Of length 1, all of one model.
    scores : array_like, shape (n,)
        Probability that a particle's centre is there.
    whole : array_like of bool, shape (n,), optional
        Candidates that the tomogram's border does not cut; the others may join a group but do not
        shape it.
    min_score : float
        Candidates with less are background and belong to no group.
    min_size : int, optional
        Of a group; 10, or more where there are many candidates, by default.
    target : {"mean", "medoid"}
        What stands for a group: the mean of its vectors, or the vector nearest to that.
    seed : int

    Returns
    -------
    Clusters
        Without any group where there are fewer than thirty candidates.

    Raises
    ------
    ValueError
        If the shapes disagree or a parameter is out of range.
    """
    vectors, scores = np.asarray(vectors), np.asarray(scores, dtype=float)
    if vectors.ndim != 2 or scores.shape != (len(vectors),):
        raise ValueError(
            f"expected vectors of shape (n, channels) and n scores; got {vectors.shape} and"
            f" {scores.shape}"
        )
    if target not in {"mean", "medoid"}:
        raise ValueError(f"target must be mean or medoid; got {target!r}")
    if min_size is not None and min_size < 2:
        raise ValueError(f"min_size must be at least 2; got {min_size}")
    eligible = scores >= min_score
    whole = np.ones(len(vectors), bool) if whole is None else np.asarray(whole, dtype=bool)
    chosen = np.flatnonzero(eligible & whole)
    coordinates = np.full((len(vectors), 2), np.nan, dtype=np.float32)
    if len(chosen) < _FEWEST:
        return _none(vectors, coordinates)
    if len(chosen) > MAPPED:
        chosen = np.sort(np.random.default_rng(seed).choice(chosen, MAPPED, replace=False))
    few = vectors[chosen].astype(np.float32)
    coordinates[chosen] = _map(few, seed=seed)
    size = min_size or max(10, round(0.75 * math.sqrt(len(chosen))))
    label = _join(few, _find_groups(coordinates[chosen], min_size=size))
    if label.max() < 0:
        return _none(vectors, coordinates)
    targets = _targets(few, label)
    everyone, similarity = _assign(vectors, targets, _reaches(few, label, targets))
    everyone[~eligible] = -1
    everyone, kept = _renumber(everyone)
    found = Clusters(
        label=everyone, targets=targets[kept], coordinates=coordinates, similarity=similarity
    )
    return replace(found, targets=_medoids(vectors, found)) if target == "medoid" else found


def _none(vectors: NDArray[np.floating], coordinates: FloatArray) -> Clusters:
    n, channels = vectors.shape
    return Clusters(
        label=np.full(n, -1),
        targets=np.zeros((0, channels), dtype=np.float32),
        coordinates=coordinates,
        similarity=np.zeros(n, dtype=np.float32),
    )


def _map(vectors: FloatArray, *, seed: int) -> FloatArray:
    """Lay vectors out on a plane."""
    logger.info("laying out %d candidates on a plane", len(vectors))
    with warnings.catch_warnings():
        # Of an optional library that is not there, of neighbourhoods that hang together loosely.
        warnings.simplefilter("ignore")
        import umap

        layout = umap.UMAP(
            n_neighbors=_NEIGHBOURS,
            min_dist=0.0,
            metric="cosine",
            random_state=seed,
            n_jobs=1,
        )
        return np.asarray(layout.fit_transform(vectors), dtype=np.float32)


def _find_groups(coordinates: FloatArray, *, min_size: int) -> NDArray[np.int64]:
    """Cluster by density; where that finds nothing, there may be one group."""
    from sklearn.cluster import HDBSCAN

    for alone in (False, True):
        method = HDBSCAN(
            min_cluster_size=min_size, min_samples=_DENSE, allow_single_cluster=alone, copy=True
        )
        label = method.fit_predict(coordinates).astype(np.int64)
        if label.max() >= 0:
            break
    return np.maximum(label, -1)


@dataclass(frozen=True, eq=False)
class _Group:
    """Number, mean and scatter of some vectors."""

    n: int
    mean: NDArray[np.float64]
    scatter: NDArray[np.float64]

    @classmethod
    def of(cls, vectors: FloatArray) -> _Group:
        mean = vectors.mean(axis=0, dtype=np.float64)
        centred = vectors - mean
        return cls(len(vectors), mean, centred.T @ centred)

    def with_(self, other: _Group) -> _Group:
        n, difference = self.n + other.n, self.mean - other.mean
        between = self.n * other.n / n * np.outer(difference, difference)
        mean = (self.n * self.mean + other.n * other.mean) / n
        return _Group(n, mean, self.scatter + other.scatter + between)

    def gap(self, other: _Group) -> float:
        """Distance of the means in standard deviations along their line.

        Without what the means of few vectors differ by chance.
        """
        difference = self.mean - other.mean
        within = (self.scatter + other.scatter) / max(self.n + other.n - 2, 1)
        chance = np.trace(within) * (1 / self.n + 1 / other.n)
        square = float(difference @ difference)
        if square <= chance:
            return 0.0
        variance = float(difference @ within @ difference) / square
        return math.sqrt((square - chance) / max(variance, 1e-12))


def _join(vectors: FloatArray, label: NDArray[np.int64]) -> NDArray[np.int64]:
    """Join the two groups with the smallest gap, again and again, while there are such."""
    groups = {int(i): _Group.of(vectors[label == i]) for i in np.unique(label[label >= 0])}
    gaps = {(i, j): groups[i].gap(groups[j]) for i in groups for j in groups if i < j}
    label = label.copy()
    while gaps:
        (i, j), least = min(gaps.items(), key=lambda item: (item[1], item[0]))
        if least >= _GAP:
            break
        label[label == j] = i
        groups[i] = groups[i].with_(groups.pop(j))
        gaps = {pair: gap for pair, gap in gaps.items() if not {i, j} & {*pair}}
        gaps |= {(min(i, k), max(i, k)): groups[i].gap(groups[k]) for k in groups if k != i}
    return _renumber(label)[0]


def _renumber(label: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.intp]]:
    """Number groups by their size, the largest first, and return their old numbers, too."""
    counts = np.bincount(label[label >= 0])
    order = np.argsort(-counts, kind="stable")[: np.count_nonzero(counts)]
    number = np.full(len(counts) + 1, -1)
    number[order] = np.arange(len(order))
    return number[label], order


def _targets(vectors: FloatArray, label: NDArray[np.int64]) -> FloatArray:
    means = np.stack([vectors[label == i].mean(axis=0) for i in range(label.max() + 1)])
    return np.asarray(means / np.linalg.norm(means, axis=1, keepdims=True), dtype=np.float32)


def _reaches(vectors: FloatArray, label: NDArray[np.int64], targets: FloatArray) -> FloatArray:
    """Return how far from its target, as 1 - cosine, each group reaches."""
    return np.array(
        [
            _REACH * max(float(np.median(1 - vectors[label == i] @ target)), 1e-4)
            for i, target in enumerate(targets)
        ],
        dtype=np.float32,
    )


def _assign(
    vectors: NDArray[np.floating], targets: FloatArray, reaches: FloatArray
) -> tuple[NDArray[np.int64], FloatArray]:
    """Give each vector to its nearest target, if that reaches so far; and the cosine to it."""
    label = np.empty(len(vectors), dtype=np.int64)
    similarity = np.empty(len(vectors), dtype=np.float32)
    for rows in _blocks(len(vectors)):
        cosine = vectors[rows].astype(np.float32) @ targets.T
        nearest = cosine.argmax(axis=1)
        best = cosine[np.arange(len(nearest)), nearest]
        label[rows] = np.where(1 - best <= reaches[nearest], nearest, -1)
        similarity[rows] = best
    return label, similarity


def _medoids(vectors: NDArray[np.floating], clusters: Clusters) -> FloatArray:
    """Return the member nearest to each mean: of unit vectors, that is the medoid."""
    medoids = []
    for i in range(len(clusters)):
        members = np.flatnonzero(clusters.label == i)
        best = members[clusters.similarity[members].argmax()]
        vector = vectors[best].astype(np.float32)
        medoids.append(vector / np.linalg.norm(vector))
    return np.stack(medoids)


def _blocks(n: int) -> Iterator[slice]:
    return (slice(start, start + _ROWS) for start in range(0, n, _ROWS))
