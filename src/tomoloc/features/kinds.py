"""Kinds of particles among candidates, without an example: a mixture on the sphere of vectors.

Candidates climb to the peaks of their density (mean shift). Each peak starts a component, and
components and candidates then settle by expectation and maximisation. Components fall off as a
power of the distance: particles that are cut, or touch something, lie far from their kind. What
no component explains is background. All lengths are in units of how far vectors lie from the mean
of their kind, which is a property of the network that they come from.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import softmax

__all__ = ["Kinds", "find_kinds", "name_kinds", "own_kinds", "unit"]

Floats = NDArray[np.float64]
T = TypeVar("T", bound=np.floating)

_CLEAR, _NEIGHBOURS = 0.75, 1_000
"""Certainty from which on, and how many, candidates tell how far neighbours are apart."""
_FIELD, _SEEDS = 20_000, 5_000
"""Candidates that make the density, and that climb it: as many at most, drawn at random."""
_BLOCK = 256
"""Candidates that climb together."""
_CLIMBS, _ROUNDS, _NAMED_ROUNDS = 15, 15, 2
_STILL = 1e-6
"""1 - cosine below which nothing climbs any more."""
_MERGE = 0.7
"""Bandwidths within which two peaks are one."""
_DENSE, _LONELY = 2.0, 1.2
"""Candidates' worth of density that a peak has at least, and a candidate where it starts."""
_CORE, _POWER = 0.9, 6.0
"""Distance up to which a component is flat, and how steeply it falls off beyond."""
_FAR, _ELSEWHERE = 6.7, 10.0
"""Background is as likely as a component of so many candidates at such a distance."""
_LEAST = 1e-4
"""1 - cosine of what counts as one place."""
_FEWEST = 8.0
"""Candidates that a named kind starts with at least."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Kinds:
    """Components of a mixture.

    Parameters
    ----------
    centers : ndarray, shape (k, channels)
        A unit vector for each.
    count : ndarray, shape (k,)
        How many candidates each has.
    spread : float
        Distance of vectors from the mean of their kind, as 1 - cosine.
    """

    centers: Floats
    count: Floats
    spread: float

    def __len__(self) -> int:
        return len(self.centers)

    def membership(self, vectors: ArrayLike) -> Floats:
        """Probability that a vector is of each kind; what is left is background.

        Parameters
        ----------
        vectors : array_like, shape (n, channels)
            Unit vectors.

        Returns
        -------
        ndarray, shape (n, k)
        """
        away = _away(np.asarray(vectors, dtype=np.float64), self.centers) / self.spread
        chance = np.log(np.maximum(self.count, _LEAST)) - _POWER * np.log(_CORE + away)
        background = np.log(_ELSEWHERE) - _POWER * np.log(_CORE + _FAR)
        edge = np.full((len(chance), 1), background)
        return np.asarray(softmax(np.concatenate([chance, edge], axis=1), axis=1)[:, :-1])


def find_kinds(
    vectors: ArrayLike,
    certainty: ArrayLike | None = None,
    *,
    spread: float = 0.0,
    bandwidth: float = 0.5,
) -> Kinds:
    """Find kinds of particles.

    Parameters
    ----------
    vectors : array_like, shape (n, channels)
        Unit vectors of candidates.
    certainty : array_like, shape (n,), optional
        From 0 to 1: what each candidate counts; 1 by default.
    spread : float
        How far vectors lie from the mean of their kind, as 1 - cosine; 0 guesses it from the
        distance between neighbours, which may tear apart what has little room to spread in.
    bandwidth : float
        Of the density, in units of the spread. Less finds more kinds.

    Returns
    -------
    Kinds
        None where candidates are few, or nowhere dense.

    References
    ----------
    Mean shift: Cheng, IEEE PAMI 17, 790 (1995), doi:10.1109/34.400568. Robust mixtures: Peel &
    McLachlan, Statistics and Computing 10, 339 (2000), doi:10.1023/A:1008981510081.
    """
    v = np.asarray(vectors, dtype=np.float64)
    weight = np.ones(len(v)) if certainty is None else np.asarray(certainty, dtype=np.float64)
    spread = spread or _guess_spread(v[weight >= _CLEAR])
    peaks = _find_peaks(v, weight, bandwidth=bandwidth * spread)
    kinds = Kinds(centers=peaks, count=np.full(len(peaks), weight.sum()), spread=spread)
    return _settle(kinds, v, weight, rounds=_ROUNDS)


def name_kinds(
    kinds: Kinds,
    vectors: ArrayLike,
    certainty: ArrayLike,
    *,
    examples: Floats,
    hold: Floats,
    start: Floats,
) -> Kinds:
    """Give names to kinds: each name has a component of its own, which its examples hold.

    Parameters
    ----------
    kinds : Kinds
        Found among the candidates without names.
    vectors, certainty : array_like
        Of the candidates, as for `find_kinds`.
    examples : ndarray, shape (m, channels)
        A unit vector for each name.
    hold : ndarray, shape (m,)
        How many candidates these count as.
    start : ndarray, shape (m, channels)
        Unit vectors where the components start.

    Returns
    -------
    Kinds
        The m with a name first, then those that no example is of.
    """
    owned = own_kinds(kinds, examples)
    free = owned.max(axis=0, initial=0) < 0.5
    count = np.maximum((owned * ~free) @ kinds.count, _FEWEST)
    named = Kinds(
        centers=np.concatenate([start, kinds.centers[free]]),
        count=np.concatenate([count, kinds.count[free]]),
        spread=kinds.spread,
    )
    v, weight = np.asarray(vectors, np.float64), np.asarray(certainty, np.float64)
    return _settle(named, v, weight, rounds=_NAMED_ROUNDS, pull=hold[:, None] * examples)


def own_kinds(kinds: Kinds, examples: ArrayLike) -> Floats:
    """Probability that each example is of each kind, which has one name at most.

    Parameters
    ----------
    kinds : Kinds
    examples : array_like, shape (m, channels)
        A unit vector for each name.

    Returns
    -------
    ndarray, shape (m, k)
    """
    chance = kinds.membership(examples)
    return np.asarray(chance / np.maximum(chance.sum(axis=0), 1))


def _settle(
    kinds: Kinds, vectors: Floats, weight: Floats, *, rounds: int, pull: Floats | None = None
) -> Kinds:
    """Let components and candidates settle; something may pull at the first components, too."""
    for _ in range(rounds if len(kinds) else 0):
        share = kinds.membership(vectors) * weight[:, None]
        # Far members say little of where the centre is, as in a mixture of t distributions.
        near = share / (_CORE + _away(vectors, kinds.centers) / kinds.spread)
        moved = near.T @ vectors + _LEAST * kinds.centers
        if pull is not None:
            moved[: len(pull)] += pull
        kinds = Kinds(centers=unit(moved), count=share.sum(axis=0), spread=kinds.spread)
    return kinds


def _guess_spread(vectors: Floats) -> float:
    """Twice the median of 1 - cosine to the nearest neighbour."""
    some = vectors[_draw(len(vectors), _NEIGHBOURS)]
    if len(some) < 2:
        return 0.02
    nearest = np.partition(some @ some.T, -2, axis=1)[:, -2]  # the first is the vector itself
    return max(2 * float(np.median(1 - nearest)), _LEAST)


def _find_peaks(vectors: Floats, weight: Floats, *, bandwidth: float) -> Floats:
    """Directions in which density has a peak, the densest first."""
    every = np.flatnonzero(weight > 0)
    some = every[_draw(len(every), _FIELD)]
    field = vectors[some].astype(np.float32)
    mass = (weight[some] * (len(every) / max(len(some), 1))).astype(np.float32)
    clear = np.flatnonzero(weight[some] > 0.5)
    seeds = field[clear[_draw(len(clear), _SEEDS)]]
    climbed = [
        _climb(seeds[i : i + _BLOCK], field, mass, bandwidth=bandwidth)
        for i in range(0, len(seeds), _BLOCK)
    ]
    place = np.concatenate([seeds[:0], *(places for places, _ in climbed)])
    density = np.concatenate([mass[:0], *(densities for _, densities in climbed)])
    peaks: list[NDArray[np.float32]] = []
    for i in np.argsort(-density, kind="stable"):
        if density[i] < _DENSE:
            break
        if not peaks or (1 - np.stack(peaks) @ place[i]).min() > _MERGE * bandwidth:
            peaks.append(place[i])
    return np.reshape(np.asarray(peaks, dtype=np.float64), (-1, vectors.shape[1]))


def _climb(
    place: NDArray[np.float32],
    field: NDArray[np.float32],
    mass: NDArray[np.float32],
    *,
    bandwidth: float,
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Follow density upwards; return where that ends, and how dense it is there."""
    density = np.zeros(len(place), dtype=np.float32)
    for climb in range(_CLIMBS):
        near = place @ field.T
        near -= 1
        near *= 1 / bandwidth
        np.exp(near, out=near)
        near *= mass
        density = near.sum(axis=1)
        if not climb:  # what has no neighbour is no part of a peak
            some = density > _LONELY
            place, near, density = place[some], near[some], density[some]
            if not len(place):
                break
        moved = unit(np.asarray(near @ field, dtype=np.float32))
        if (moved * place).sum(axis=1).min() > 1 - _STILL:
            break
        place = moved
    return place, density


def _draw(n: int, most: int) -> NDArray[np.intp]:
    """Rows of n, at most so many: the same ones each time."""
    if n <= most:
        return np.arange(n)
    return np.sort(np.random.default_rng(0).choice(n, most, replace=False))


def _away(vectors: Floats, centers: Floats) -> Floats:
    return np.asarray(np.maximum(1 - vectors @ centers.T, 0))


def unit(vectors: NDArray[T]) -> NDArray[T]:
    """Vectors of length 1."""
    return np.asarray(vectors / np.linalg.norm(vectors, axis=-1, keepdims=True))
