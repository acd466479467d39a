"""Classify candidates by what they look like once they are aligned: averages that compete.

Groups of candidates that may be of one kind are aligned and averaged (`tomoloc.features.averages`),
and all averages compete for all candidates by how much likelier each makes them. Groups that are
two kinds fall apart, and groups of one kind join. As each candidate is only compared with averages
of others, more averages than there are kinds explain the candidates no better, and that decides
where to stop. This is what multi-reference classification does in subtomogram averaging, with
groups from a network instead of random ones.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.cluster.hierarchy import fcluster, linkage

from tomoloc.features.averages import (
    Average,
    Fit,
    Poses,
    align,
    compare_coarsely,
    join_poses,
)
from tomoloc.features.boxes import Boxes
from tomoloc.features.candidates import Candidates
from tomoloc.features.kinds import find_kinds, unit
from tomoloc.progress import progress
from tomoloc.types import Volume

__all__ = ["LEAST_CENTER", "Classification", "classify", "classify_candidates", "find_groups"]

logger = logging.getLogger(__name__)

Array = NDArray[Any]

_ALL = slice(None)
_RESOLUTION = 30.0
"""The finest detail that counts, in angstrom."""
_BANDWIDTH, _MEMBER, _WHOLE = 0.55, 0.3, 0.4
"""Of the density of vectors whose peaks start groups; probabilities of being of that group, and a
particle, from which on a candidate starts in it."""
LEAST_CENTER = 0.1
"""Probability of a centre below which a candidate is not looked at: nothing will make a pick of
it."""
_LINKED, _LINKABLE = 3.0, 5_000
"""Mean distance of vectors, in spreads, within which other candidates are a group; and how many of
these there may be."""
_FEWEST = 3
"""Candidates that an average is made of at least."""
_MOST = 60
"""The same at most: more make it no better, but cost time."""
_PART, _ROUNDS = 12, 3
"""Candidates that a part of a group has at most, to begin with; rounds in which parts compete."""
_RIVALS = 5
"""Averages that are fitted to a candidate with care, those which fit best coarsely."""
_NEAREST = 10
"""Averages that are fitted to a candidate coarsely, those which have the most alike vectors."""
_TRUST, _LAST_TRUST = 0.15, 0.4
"""What unlike vectors count, as a share of the gain, while averages are made and in the end. It is
more in the end: what vectors tell has made the averages already, but not who is of them."""
_CERTAIN = 0.3
"""Probability of a particle from which on a candidate may be part of an average."""
_SHARE, _PURE = 0.5, 0.4
"""Gain of a member at least, as a share of what is usual and of what it would be without noise."""
_APART, _APART_FEW = 0.12, 0.96
"""Two kinds: the gain that members lose with the other average at least, as a share of their gain,
to which comes what chance makes of few particles, times their number."""
_AS_GOOD = 0.99
"""Gain of all members with one average, as a share of that with two, if they are of one kind."""
_NEAR = 0.25
"""Share of the gain that members of one kind lose with another average of that kind, at most."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Classification:
    """Averages and how candidates fit to them.

    Parameters
    ----------
    averages : sequence of Average
        One for each kind.
    gain : ndarray, shape (n, k)
        Logarithm of how much likelier each candidate is with each average than without, less what
        vectors count that are unlike those of the average's members; -inf where that was not looked
        at, as others fit better.
    fits : sequence of Fit
        Of each average with all candidates.
    voxel_spacing : float
        Of shifts, in angstrom.
    """

    averages: Sequence[Average]
    gain: Array
    fits: Sequence[Fit]
    voxel_spacing: float

    def __len__(self) -> int:
        return len(self.averages)

    @classmethod
    def empty(cls, n: int) -> Classification:
        """Of n candidates, without averages."""
        return cls(averages=(), gain=np.zeros((n, 0), np.float32), fits=(), voxel_spacing=1.0)

    def among(self, rows: ArrayLike, n: int) -> Classification:
        """The same among n candidates, of which it has these rows; the others fit nothing."""
        rows, fits = np.asarray(rows, dtype=np.intp), []
        gain = np.full((n, len(self)), -np.inf, dtype=self.gain.dtype)
        gain[rows] = self.gain
        for fit in self.fits:
            fits.append(Fit.unknown(n))
            fits[-1].put(rows, fit)
        averages = [replace(average, rows=rows[average.rows]) for average in self.averages]
        return replace(self, averages=averages, gain=gain, fits=fits)

    @property
    def size(self) -> Array:
        """Members of each average, shape (k,)."""
        return np.array([len(average) for average in self.averages], dtype=np.intp)

    @property
    def usual(self) -> Array:
        """Median gain of the members of each average, shape (k,)."""
        return np.array([np.median(self.gain[own.rows, i]) for i, own in enumerate(self.averages)])

    @property
    def shift(self) -> Array:
        """Of candidates from the middle of their boxes, by their best average, shape (n, 3).

        In voxels, zyx; 0 where a candidate was fitted to none.
        """
        if not len(self):
            return np.zeros((len(self.gain), 3), dtype=np.float32)
        every = np.stack([fit.shift for fit in self.fits])
        best = every[self.gain.argmax(axis=1), np.arange(len(self.gain))]
        fitted = np.isfinite(self.gain.max(axis=1, keepdims=True))
        return np.where(fitted, best, 0)

    @property
    def offset(self) -> Array:
        """The same in angstrom, xyz."""
        return np.asarray(self.shift[:, ::-1] * self.voxel_spacing, dtype=np.float64)


def classify_candidates(
    tomogram: Volume, candidates: Candidates, *, spread: float = 0.0
) -> Classification:
    """Find kinds among the candidates of a tomogram by what these look like once aligned.

    Parameters
    ----------
    tomogram : Volume
        Protein bright.
    candidates : Candidates
        What may be particles in it.
    spread : float
        As for `tomoloc.features.kinds.find_kinds`.

    Returns
    -------
    Classification
        Without averages where the tomogram has no contrast at the resolution of 30 Å.
    """
    worth = np.flatnonzero(np.asarray(candidates.particles.score) > LEAST_CENTER)
    return _classify_all(tomogram, candidates[worth], spread).among(worth, len(candidates))


def _classify_all(tomogram: Volume, candidates: Candidates, spread: float) -> Classification:
    certainty = np.asarray(candidates.particles.score)
    groups = find_groups(candidates.vectors, certainty, spread=spread)
    if not groups:
        return Classification.empty(len(candidates))
    try:
        boxes = Boxes.of(tomogram, candidates.particles.position, resolution=_RESOLUTION)
    except ValueError as error:
        logger.warning("candidates are not averaged: %s", error)
        return Classification.empty(len(candidates))
    logger.info("averaging %d candidates in %d groups", len(candidates), len(groups))
    return classify(boxes, groups, vectors=candidates.vectors, certainty=certainty)


def find_groups(
    vectors: ArrayLike, certainty: ArrayLike, *, spread: float = 0.0
) -> list[NDArray[np.intp]]:
    """Group candidates with like vectors: around peaks of density, and what is left by distance.

    Parameters
    ----------
    vectors : array_like, shape (n, channels)
        Unit vectors.
    certainty : array_like, shape (n,)
        Probability that a particle is there.
    spread : float
        As for `tomoloc.features.kinds.find_kinds`.

    Returns
    -------
    list of ndarray of int
        Rows of each group, of three at least; around peaks, the most typical first.
    """
    vectors, certainty = np.asarray(vectors, dtype=np.float64), np.asarray(certainty)
    sure = np.minimum(certainty / _WHOLE, 1)
    kinds = find_kinds(vectors, sure, spread=spread, bandwidth=_BANDWIDTH)
    groups: list[NDArray[np.intp]] = []
    if len(kinds):
        chance, near = kinds.membership(vectors), vectors @ kinds.centers.T
        chance[certainty < _WHOLE] = 0
        best = chance.argmax(axis=1)
        for k in range(len(kinds)):
            rows = np.flatnonzero((best == k) & (chance[:, k] > _MEMBER))
            groups.append(rows[np.argsort(-near[rows, k], kind="stable")])
    grouped = np.isin(np.arange(len(vectors)), np.concatenate([*groups, np.zeros(0, np.intp)]))
    left = np.flatnonzero(~grouped & (certainty >= _WHOLE))
    groups += _link(vectors, left, _LINKED * kinds.spread)
    return [rows for rows in groups if len(rows) >= _FEWEST]


def _link(vectors: Array, rows: NDArray[np.intp], distance: float) -> list[NDArray[np.intp]]:
    """Groups of rows, which are few, whose vectors are nearer to each other on average."""
    if not 2 * _FEWEST <= len(rows) <= _LINKABLE:
        return []
    tree = linkage(vectors[rows], method="average", metric="cosine")
    label = fcluster(tree, distance, criterion="distance")
    return [rows[label == k] for k in np.unique(label)]


def classify(
    boxes: Boxes, groups: Sequence[ArrayLike], *, vectors: ArrayLike, certainty: ArrayLike
) -> Classification:
    """Classify candidates: find kinds, an average of each, and which candidates are of it.

    Parameters
    ----------
    boxes : Boxes
        Of all candidates of a tomogram.
    groups : sequence of array_like of int
        Rows of candidates that may be of one kind, the surest first. A candidate may be in none.
    vectors : array_like, shape (n, channels)
        Embeddings of the candidates, along which groups may fall apart.
    certainty : array_like, shape (n,)
        Probability that a particle is there.

    Returns
    -------
    Classification
    """
    classifier = _Classifier(
        boxes=boxes,
        vectors=unit(np.asarray(vectors, dtype=np.float64)),
        certainty=np.asarray(certainty),
    )
    rows = [np.asarray(group, dtype=np.intp)[:_MOST] for group in groups]
    rows = [own for own in rows if len(own) >= _FEWEST]
    parts = [part for own in progress(rows, "aligning") for part in classifier.divide(own)]
    found = classifier.fit(parts)
    found = classifier.join(classifier.fit(classifier.compete(found), found))
    return classifier.weigh(classifier.fit(classifier.compete(found), found))


@dataclass(frozen=True, eq=False, kw_only=True)
class _Classifier:
    boxes: Boxes
    vectors: Array
    certainty: Array

    def fit(
        self, averages: Sequence[Average], last: Classification | None = None
    ) -> Classification:
        """Fit all averages to all candidates, with care to those that they may be of."""
        n, k = len(self.boxes), len(averages)
        coarse = np.full((n, k), -np.inf, dtype=np.float32)
        near, around = self._find_near(averages), last.shift if last else None
        poses = []
        for i, average in enumerate(progress(averages, "comparing")):
            near[average.rows, i] = True
            rows = np.flatnonzero(near[:, i])
            where = None if around is None else around[rows]
            found, coarse[rows, i] = compare_coarsely(self.boxes, average, rows, around=where)
            poses.append((rows, found))
        wanted = np.zeros((n, k), dtype=bool)
        wanted[np.arange(n)[:, None], np.argsort(-coarse, axis=1)[:, :_RIVALS]] = True
        wanted &= near
        for i, average in enumerate(averages):
            wanted[average.rows, i] = True
        fits = [
            self._fit(own, rows[kept], (turns[kept], shifts[kept]))
            for own, (rows, (turns, shifts)), kept in zip(
                progress(averages, "fitting"),
                poses,
                (wanted[rows, i] for i, (rows, _) in enumerate(poses)),
                strict=True,
            )
        ]
        return self.collect(averages, fits)

    def _find_near(self, averages: Sequence[Average]) -> NDArray[np.bool_]:
        """Averages that each candidate may be of, by its vector."""
        near = np.zeros((len(self.boxes), len(averages)), dtype=bool)
        if len(averages):
            order = np.argsort(self._find_unlike(averages), axis=1)[:, :_NEAREST]
            near[np.arange(len(near))[:, None], order] = True
        return near

    def _fit_near(self, average: Average, last: Classification) -> Fit:
        """Fit an average to the candidates that others were fitted to as its members were."""
        like = np.isfinite(last.gain[average.rows]).any(axis=0)
        rows = np.flatnonzero(np.isfinite(last.gain[:, like]).any(axis=1))
        starts, _ = compare_coarsely(self.boxes, average, rows, around=last.shift[rows])
        return self._fit(average, rows, starts)

    def _fit(self, average: Average, rows: Array, starts: Poses) -> Fit:
        """Fit an average to some candidates, from some poses and those that are known."""
        known = Fit.unknown(len(self.boxes))
        known.put(rows, replace(known[rows], rotation=starts[0][:, 0], shift=starts[1][:, 0]))
        known.put(average.rows, average.fit)
        fit = average.compare(
            self.boxes, rows, join_poses(starts, known[rows].poses), everywhere=False
        )
        known.gain[:] = -np.inf
        known.put(rows, fit)
        return known

    def compete(self, found: Classification) -> list[Average]:
        """Make averages of those that each explains best."""
        made: list[Average] = []
        if not len(found):
            return made
        best = self._choose(found.averages, found.gain)
        for i, (average, fit) in enumerate(zip(found.averages, found.fits, strict=True)):
            usual = np.median(fit.gain[average.rows])
            own = np.flatnonzero(
                (best == i)
                & (self.certainty > _CERTAIN)
                & (fit.gain > np.maximum(_SHARE * usual, _PURE * fit.power))
            )
            own = own[np.argsort(-fit.gain[own], kind="stable")][:_MOST]
            if len(own) >= _FEWEST:
                made.append(average.gathered(own, fit[own]).refined(self.boxes))
        return made

    def _choose(
        self, averages: Sequence[Average], gain: Array, rows: Array | slice = _ALL
    ) -> NDArray[np.intp]:
        """The average that each candidate is of, by its gain and its vector."""
        return self._weigh(averages, gain, rows, trust=_TRUST).argmax(axis=1)

    def weigh(self, found: Classification) -> Classification:
        """Take what unlike vectors count off the gains."""
        if not len(found):
            return found
        gain = self._weigh(found.averages, found.gain, _ALL, trust=_LAST_TRUST)
        return replace(found, gain=gain)

    def _weigh(
        self, averages: Sequence[Average], gain: Array, rows: Array | slice, *, trust: float
    ) -> Array:
        top = np.maximum(gain.max(axis=1, keepdims=True), 0)
        return np.asarray(gain - trust * top * self._find_unlike(averages)[rows])

    def _find_unlike(self, averages: Sequence[Average]) -> Array:
        """How far vectors are from those of each average, which grows ever more slowly."""
        means = unit(np.stack([self.vectors[own.rows].mean(axis=0) for own in averages]))
        away = np.maximum(1 - self.vectors @ means.T, 0)
        usual = np.median([np.median(away[own.rows, i]) for i, own in enumerate(averages)])
        return np.log1p(away / max(float(usual), 1e-4))

    def divide(self, rows: Array) -> list[Average]:
        """Find kinds in a group: averages of parts with like vectors compete for all of it."""
        averages = [align(self.boxes, part) for part in self._split(rows)]
        poses: list[Poses | None] = [None] * len(averages)
        for _ in range(_ROUNDS if len(averages) > 1 else 0):
            fits = [
                one.compare(self.boxes, rows, near)
                for one, near in zip(averages, poses, strict=True)
            ]
            gain = np.stack([fit.gain for fit in fits], axis=1)
            best = self._choose(averages, gain, rows)
            kept = [i for i in range(len(fits)) if np.count_nonzero(best == i) >= _FEWEST]
            averages = [
                averages[i].gathered(rows[best == i], fits[i][best == i]).refined(self.boxes)
                for i in kept
            ]
            poses = [fits[i].poses for i in kept]
        return averages

    def _split(self, rows: Array) -> list[Array]:
        """Parts of a group that have like vectors, and are small."""
        if len(rows) <= _PART:
            return [rows]
        from sklearn.cluster import KMeans

        vectors, second = self.vectors[rows], np.zeros(len(rows), dtype=bool)
        if np.ptp(vectors, axis=0).any():
            second = KMeans(2, n_init=4, random_state=0).fit_predict(vectors) > 0
        if min(second.sum(), (~second).sum()) < _FEWEST:
            rank = np.argsort(np.argsort(_main_direction(vectors), kind="stable"))
            second = rank >= (len(rows) + 1) // 2
        return self._split(rows[~second]) + self._split(rows[second])

    def join(self, found: Classification) -> Classification:
        """Join averages of one kind."""
        averages, fits = list(found.averages), list(found.fits)
        refused: set[frozenset[int]] = set()
        while (pair := self._find_alike(averages, fits, refused)) is not None:
            rows = np.concatenate([averages[i].rows for i in pair])
            gain = np.stack([fits[i].gain[rows] for i in pair], axis=1)
            before = float(
                np.mean([fits[i].gain[averages[i].rows].sum() for i in pair]) * 2 / len(rows)
            )
            whole = max(
                (
                    averages[i].gathered(rows, fits[i][rows]).refined(self.boxes, rounds=2)
                    for i in pair
                ),
                key=lambda one: one.gain,
            )
            apart, limit = (
                np.median(np.abs(gain[:, 1] - gain[:, 0])),
                _APART + _APART_FEW / len(rows),
            )
            if whole.gain > _AS_GOOD * before or apart < limit * before:
                for i in sorted(pair, reverse=True):
                    del averages[i], fits[i]
                averages.append(whole)
                fits.append(self._fit_near(whole, found))
                refused.clear()
            else:
                refused.add(frozenset(id(averages[i]) for i in pair))
        return self.collect(averages, fits)

    def collect(self, averages: Sequence[Average], fits: Sequence[Fit]) -> Classification:
        """Put all gains into one table."""
        gain = np.reshape([fit.gain for fit in fits], (len(fits), len(self.boxes))).T
        return Classification(
            averages=averages, gain=gain, fits=fits, voxel_spacing=self.boxes.voxel_spacing
        )

    def _find_alike(
        self, averages: Sequence[Average], fits: Sequence[Fit], refused: set[frozenset[int]]
    ) -> tuple[int, int] | None:
        """The two of which one explains the other's members with the least loss."""
        least, found = _NEAR, None
        for i, own in enumerate(averages):
            usual = float(fits[i].gain[own.rows].mean())
            for j, other in enumerate(averages):
                if i == j or frozenset((id(own), id(other))) in refused:
                    continue
                loss = 1 - float(fits[j].gain[own.rows].mean()) / max(usual, 1.0)
                if loss < least:
                    least, found = loss, (i, j)
        return found


def _main_direction(values: Array) -> Array:
    """Where each row lies along the direction in which they differ most, shape (rows,)."""
    away = values - values.mean(axis=0)
    return np.asarray(away @ np.linalg.svd(away, full_matrices=False)[2][0])
