"""Kinds of particles, found without an example: candidates in groups of like vectors.

Groups are the components of a mixture that starts from peaks of density
(`tomoloc.features.kinds`). A plane that keeps neighbours together (UMAP, McInnes, Healy & Melville
2018, doi:10.48550/arXiv.1802.03426) shows them, and decides nothing: it tears groups apart at
random.
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

from tomoloc.features.kinds import Kinds, find_kinds

__all__ = ["Clusters", "cluster_candidates", "lay_out"]

logger = logging.getLogger(__name__)

FloatArray = NDArray[np.float32]

SHAPING = 30_000
"""Candidates that shape groups, and that are on the plane; the others join a group."""
_FEWEST = 30
"""Candidates, below which there is no telling groups from chance."""
_SMALLEST = 5
_NEIGHBOURS = 15
_MEMBER = 0.5
"""Probability from which on a candidate is a member."""
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
    similarity : ndarray of float32, shape (n,)
        Cosine to the target of the likeliest group; 0 where there is none.
    """

    label: NDArray[np.int64]
    targets: FloatArray
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
    spread: float = 0.0,
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
    spread : float
        As for `tomoloc.features.kinds.find_kinds`.
    min_score : float
        Candidates with less are background and belong to no group.
    min_size : int, optional
        Of a group; 5, or more where there are many candidates, by default.
    target : {"mean", "medoid"}
        What stands for a group: the mean of its vectors, or the vector nearest to that.
    seed : int
        Draws the candidates that shape groups, where there are very many.

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
    if target not in {"mean", "medoid"}:
        raise ValueError(f"target must be mean or medoid; got {target!r}")
    if min_size is not None and min_size < 2:
        raise ValueError(f"min_size must be at least 2; got {min_size}")
    chosen = _choose(vectors, scores, whole, min_score=min_score, seed=seed)
    if len(chosen) < _FEWEST:
        return _none(vectors)
    certainty = np.minimum(scores[chosen] / (2 * min_score), 1) if min_score else None
    kinds = find_kinds(vectors[chosen], certainty, spread=spread)
    label, similarity = _assign(vectors, kinds)
    label[scores < min_score] = -1
    size = min_size or max(_SMALLEST, round(0.2 * math.sqrt(len(chosen))))
    label[~np.isin(label, np.flatnonzero(np.bincount(label[label >= 0]) >= size))] = -1
    label, kept = _renumber(label)
    if not len(kept):
        return _none(vectors)
    targets = kinds.centers[kept].astype(np.float32)
    found = Clusters(label=label, targets=targets, similarity=similarity)
    return replace(found, targets=_medoids(vectors, found)) if target == "medoid" else found


def lay_out(
    vectors: ArrayLike,
    scores: ArrayLike,
    *,
    whole: ArrayLike | None = None,
    min_score: float = 0.2,
    seed: int = 0,
) -> FloatArray:
    """Lay candidates out on a plane on which like ones lie together.

    Parameters
    ----------
    vectors, scores, whole, min_score
        As for `cluster_candidates`.
    seed : int
        The plane's chance.

    Returns
    -------
    ndarray of float32, shape (n, 2)
        NaN for candidates that shape no group, which are not shown.
    """
    vectors, scores = np.asarray(vectors), np.asarray(scores, dtype=float)
    coordinates = np.full((len(vectors), 2), np.nan, dtype=np.float32)
    chosen = _choose(vectors, scores, whole, min_score=min_score, seed=seed)
    if len(chosen) >= _FEWEST:
        coordinates[chosen] = _map(vectors[chosen].astype(np.float32), seed=seed)
    return coordinates


def _choose(
    vectors: NDArray[np.floating],
    scores: NDArray[np.float64],
    whole: ArrayLike | None,
    *,
    min_score: float,
    seed: int,
) -> NDArray[np.intp]:
    """Rows of the candidates that shape groups."""
    if vectors.ndim != 2 or scores.shape != (len(vectors),):
        raise ValueError(
            f"expected vectors of shape (n, channels) and n scores; got {vectors.shape} and"
            f" {scores.shape}"
        )
    whole = np.ones(len(vectors), bool) if whole is None else np.asarray(whole, dtype=bool)
    chosen = np.flatnonzero((scores >= min_score) & whole)
    if len(chosen) > SHAPING:
        chosen = np.sort(np.random.default_rng(seed).choice(chosen, SHAPING, replace=False))
    return chosen


def _none(vectors: NDArray[np.floating]) -> Clusters:
    n, channels = vectors.shape
    return Clusters(
        label=np.full(n, -1),
        targets=np.zeros((0, channels), dtype=np.float32),
        similarity=np.zeros(n, dtype=np.float32),
    )


def _map(vectors: FloatArray, *, seed: int) -> FloatArray:
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


def _renumber(label: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.intp]]:
    """Number groups by their size, the largest first, and return their old numbers, too."""
    counts = np.bincount(label[label >= 0])
    order = np.argsort(-counts, kind="stable")[: np.count_nonzero(counts)]
    number = np.full(len(counts) + 1, -1)
    number[order] = np.arange(len(order))
    return number[label], order


def _assign(vectors: NDArray[np.floating], kinds: Kinds) -> tuple[NDArray[np.int64], FloatArray]:
    """Give each vector to its likeliest group, if that is likely; and the cosine to its target."""
    label = np.full(len(vectors), -1, dtype=np.int64)
    similarity = np.zeros(len(vectors), dtype=np.float32)
    for rows in _blocks(len(vectors) if len(kinds) else 0):
        block = vectors[rows].astype(np.float64)
        chance = kinds.membership(block)
        best = chance.argmax(axis=1)
        label[rows] = np.where(chance.max(axis=1) > _MEMBER, best, -1)
        similarity[rows] = (block * kinds.centers[best]).sum(axis=1)
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
