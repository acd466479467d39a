"""More of a kind: search among the candidates of many tomograms."""

from __future__ import annotations

import logging
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.spatial import KDTree

from tomoloc.features.candidates import look_up
from tomoloc.io.indexes import CandidateIndex
from tomoloc.types import FloatArray, Particles

__all__ = ["Hits", "mean_directions", "most_similar", "reference_vectors"]

logger = logging.getLogger(__name__)

_ROWS = 1 << 17
"""Vectors compared at one time: the fewer parts, the less do threads wait for each other."""
_NEAR = 30.0
"""In angstrom: a candidate as close to a reference is the same particle."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Hits:
    """What is most similar, best first.

    Parameters
    ----------
    row : ndarray of int, shape (n,)
    query : ndarray of int, shape (n,)
        Number of the direction that it is most similar to.
    similarity : ndarray of float32, shape (n,)
        Cosine, from -1 to 1.
    """

    row: NDArray[np.intp]
    query: NDArray[np.intp]
    similarity: NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.row)


def most_similar(vectors: NDArray[np.floating], directions: ArrayLike, *, n: int) -> Hits:
    """Find the vectors that are closest to some directions, by comparing with every one.

    Three million vectors of 32 numbers take some tenths of a second; approximate indexes are
    faster only where that no longer matters, take minutes to build and miss some.

    Parameters
    ----------
    vectors : ndarray, shape (m, channels)
        Of length 1. May be memory-mapped, in half precision.
    directions : array_like, shape (k, channels)
        Unit vectors. A vector counts for the one that it is most similar to.
    n : int
        Vectors to keep for each direction.

    Returns
    -------
    Hits

    Raises
    ------
    ValueError
        If the directions are of another length, or n is not positive.
    """
    wanted = np.asarray(directions, dtype=np.float32)
    if wanted.ndim != 2 or wanted.shape[1] != vectors.shape[1]:
        raise ValueError(
            f"expected directions of shape (k, {vectors.shape[1]}); got {wanted.shape}"
        )
    if n < 1:
        raise ValueError(f"n must be at least 1; got {n}")
    best = [_Best(n) for _ in wanted]
    block = np.empty((min(_ROWS, len(vectors)), vectors.shape[1]), dtype=np.float32)
    for start in range(0, len(vectors) if best else 0, _ROWS):
        part = block[: len(vectors) - start]
        part[...] = vectors[start : start + _ROWS]
        cosine = part @ wanted.T
        nearest = cosine.argmax(axis=1) if len(wanted) > 1 else np.zeros(len(part), dtype=np.intp)
        for number, kept in enumerate(best):
            own = cosine[:, number]
            rows = np.flatnonzero((own > kept.least) & (nearest == number))
            kept.add(rows + start, own[rows])
    row = np.concatenate([kept.row for kept in best] or [np.empty(0, dtype=np.intp)])
    similarity = np.concatenate([kept.value for kept in best] or [np.empty(0, dtype=np.float32)])
    query = np.repeat(np.arange(len(best)), [len(kept.row) for kept in best])
    order = np.lexsort((row, -similarity))
    return Hits(row=row[order], query=query[order], similarity=similarity[order].clip(-1, 1))


class _Best:
    """The n largest of many values that come in parts."""

    def __init__(self, n: int) -> None:
        self.n = n
        self.least = np.float32(-np.inf)
        self.row = np.empty(0, dtype=np.intp)
        self.value = np.empty(0, dtype=np.float32)

    def add(self, row: NDArray[np.intp], value: NDArray[np.float32]) -> None:
        self.row = np.concatenate([self.row, row])
        self.value = np.concatenate([self.value, value])
        if len(self.row) > self.n:
            # of equals, the first stay, whatever the parts
            order = np.lexsort((self.row, -self.value))[: self.n]
            self.row, self.value = self.row[order], self.value[order]
            self.least = self.value[-1]


def mean_directions(
    vectors: FloatArray, label: ArrayLike
) -> tuple[NDArray[np.float32], tuple[str, ...]]:
    """Mean direction of the examples of each label.

    To rank by it is to rank by the mean similarity to all examples.

    Parameters
    ----------
    vectors : ndarray, shape (n, channels)
        Of length 1.
    label : array_like of str, shape (n,)

    Returns
    -------
    directions : ndarray of float32, shape (k, channels)
    labels : tuple of str, length k
        Sorted.
    """
    labels, which = np.unique(np.asarray(label, dtype=np.str_), return_inverse=True)
    sums = np.zeros((len(labels), vectors.shape[1]))
    np.add.at(sums, which, vectors)
    length = np.maximum(np.linalg.norm(sums, axis=1, keepdims=True), np.finfo(float).tiny)
    return (sums / length).astype(np.float32), tuple(map(str, labels))


def reference_vectors(index: CandidateIndex, references: Particles) -> NDArray[np.float32]:
    """Look up the vectors at some positions of indexed tomograms.

    They are interpolated in the tomogram's dense embedding; where only candidates were kept, that
    of the nearest one is taken, within 30 Å.

    Parameters
    ----------
    index : CandidateIndex
    references : Particles
        Positions count from the centre of their tomogram's first voxel. Where only one tomogram is
        indexed and only one is named, they are the same.

    Returns
    -------
    ndarray of float32, shape (n, channels)

    Raises
    ------
    ValueError
        If a tomogram is not in the index, a position lies outside, or nothing is known of it.
    OSError
        If an embedding cannot be read.
    """
    vectors = np.zeros((len(references), index.vector.shape[1]), dtype=np.float32)
    known = [entry.name for entry in index.tomograms]
    named = np.asarray(references.tomogram)
    for name in references.tomograms:
        rows = np.flatnonzero(named == name)
        found = name
        if name not in known:
            if len(known) > 1 or len(references.tomograms) > 1:
                shown = ", ".join(known[:5]) + (", ..." if len(known) > 5 else "")
                raise ValueError(
                    f"references lie in a tomogram {name!r}, which is not among the"
                    f" {len(known)} embedded ones ({shown}): embed it, or correct its name"
                )
            found = known[0]
        vectors[rows] = _vectors_in(index, found, references.position[rows])
    return vectors


def _vectors_in(index: CandidateIndex, name: str, position: FloatArray) -> FloatArray:
    stored = index.embedding(name)
    step, extent = index.frames[name].known_spacing(), index.frames[name].known_extent()
    for place in position:
        if (place < -step / 2).any() or (place > extent - step / 2).any():
            raise ValueError(
                f"a reference at {_words(place)} Å lies outside tomogram {name} of"
                f" {_words(extent)} Å (x y z): check the voxel size that its table states"
            )
    if stored.is_dense:
        # one at a time: a box around all of them may be the whole tomogram
        near = [stored.read(around=place, margin=stored.grid_spacing) for place in position]
        return np.concatenate(
            [
                look_up(part, place, centers=stored.finds_centers)
                for part, place in zip(near, position, strict=True)
            ]
        )
    rows = index.rows(name)
    # Without neighbours, all distances are infinite.
    distance, nearest = KDTree(index.position[rows]).query(np.asarray(position))
    for place, gap in zip(position, np.atleast_1d(distance), strict=True):
        if gap > _NEAR:
            raise ValueError(
                f"tomogram {name} has no candidate within {_NEAR:g} Å of the reference at"
                f" {_words(place)} Å (x y z): embed it without --candidates-only, or choose another"
                " reference"
            )
    return index.vector[rows][nearest].astype(np.float32)


def _words(numbers: FloatArray) -> str:
    return " ".join(f"{number:.0f}" for number in numbers)
