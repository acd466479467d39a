"""Classify candidates by what they look like once they are aligned: averages that compete.

Groups of candidates that may be of one kind are aligned and averaged (`tomoloc.features.averages`),
and all averages compete for all candidates by how much likelier each makes them. Groups that are
two kinds fall apart, and groups of one kind join. As each candidate is only compared with averages
of others, more averages than there are kinds explain the candidates no better, and that decides
where to stop. This is what multi-reference classification does in subtomogram averaging, with
groups from a network instead of random ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tomoloc.features.averages import (
    Average,
    Fit,
    Poses,
    align,
    compare_coarsely,
    find_differences,
    join_poses,
)
from tomoloc.features.boxes import Boxes
from tomoloc.features.kinds import unit

__all__ = ["Classification", "classify"]

Array = NDArray[Any]

_FEWEST = 3
"""Candidates that an average is made of at least."""
_MOST = 60
"""The same at most: more make it no better, but cost time."""
_DIVISIBLE = 8
"""Candidates from which on a group may be two kinds."""
_RIVALS = 5
"""Averages that are fitted to a candidate with care, those which fit best coarsely."""
_NEAREST = 10
"""Averages that are fitted to a candidate coarsely, those which have the most alike vectors."""
_TRUST = 0.15
"""What unlike vectors count, as a share of the gain: while averages are poor, these know better."""
_CERTAIN = 0.3
"""Probability of a particle from which on a candidate may be part of an average."""
_SHARE, _PURE = 0.5, 0.4
"""Gain of a member at least, as a share of what is usual and of what it would be without noise."""
_APART, _APART_FEW, _CLEFT = 0.15, 0.6, 3.2
"""Two kinds: the gain that members lose with the other half's average, as a share of their gain, to
which comes what chance makes of few particles, times their number; and how far both halves are
apart, in units of their scatter."""
_MAYBE, _MAYBE_CLEFT = 0.14, 2.6
"""The same from which on it is looked at with care."""
_DIRECTIONS, _ROUNDS, _EVEN = 4, 6, 3
"""Along which a group is divided in its middle; rounds from there; how long halves stay even."""
_SAME = 0.9
"""Share of members that two groups have in common if they are the same one."""
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
        Logarithm of how much likelier each candidate is with each average than without; -inf where
        that was not looked at, as others fit better.
    fits : sequence of Fit
        Of each average with all candidates.
    """

    averages: Sequence[Average]
    gain: Array
    fits: Sequence[Fit]

    def __len__(self) -> int:
        return len(self.averages)

    @property
    def shift(self) -> Array:
        """Of candidates from the middle of their boxes, by their best average, shape (n, 3)."""
        every = np.stack([fit.shift for fit in self.fits])
        return np.asarray(every[self.gain.argmax(axis=1), np.arange(len(self.gain))])


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
        boxes=boxes, vectors=np.asarray(vectors), certainty=np.asarray(certainty)
    )
    rows = [np.asarray(group, dtype=np.intp)[:_MOST] for group in groups]
    averages = [align(boxes, own) for own in rows if len(own) >= _FEWEST]
    found = classifier.fit(classifier.divide(averages))
    found = classifier.join(classifier.fit(classifier.compete(found), found))
    averages = classifier.divide(classifier.compete(found))
    found = classifier.fit(averages, found)
    return classifier.fit(classifier.compete(found), found)


@dataclass(frozen=True, eq=False, kw_only=True)
class _Classifier:
    boxes: Boxes
    vectors: Array
    certainty: Array
    whole: list[frozenset[int]] = field(default_factory=list)
    """Groups that were found to be of one kind."""

    def _is_whole(self, average: Average) -> bool:
        own = frozenset(average.rows.tolist())
        return any(len(own & one) > _SAME * len(own | one) for one in self.whole)

    def fit(
        self, averages: Sequence[Average], last: Classification | None = None
    ) -> Classification:
        """Fit all averages to all candidates, with care to those that they may be of."""
        n, k = len(self.boxes), len(averages)
        coarse = np.full((n, k), -np.inf, dtype=np.float32)
        near, around = (
            self._find_near(averages),
            last.shift if last is not None and len(last) else None,
        )
        poses = []
        for i, average in enumerate(averages):
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
                averages, poses, (wanted[rows, i] for i, (rows, _) in enumerate(poses)), strict=True
            )
        ]
        return self.collect(averages, fits, n=n)

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
        top = found.gain.max(axis=1)
        best = (found.gain - _TRUST * top[:, None] * self._find_unlike(found.averages)).argmax(
            axis=1
        )
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

    def _find_unlike(self, averages: Sequence[Average]) -> Array:
        """How far vectors are from those of each average, which grows ever more slowly."""
        means = unit(np.stack([self.vectors[own.rows].mean(axis=0) for own in averages]))
        away = np.maximum(1 - unit(self.vectors) @ means.T, 0)
        usual = np.median([np.median(away[own.rows, i]) for i, own in enumerate(averages)])
        return np.log1p(away / max(float(usual), 1e-4))

    def divide(self, averages: Sequence[Average]) -> list[Average]:
        """Divide what is two kinds, again and again."""
        waiting = list(averages)
        done: list[Average] = []
        while waiting:
            average = waiting.pop()
            if len(average) < _DIVISIBLE or self._is_whole(average):
                done.append(average)
                continue
            parts = self._halve(average)
            (waiting if len(parts) > 1 else done).extend(parts)
            if len(parts) == 1:
                self.whole.append(frozenset(average.rows.tolist()))
        return done

    def _halve(self, average: Average) -> list[Average]:
        """Two averages where one is of two kinds; otherwise one, improved if that was possible."""
        side = self._find_halves(average)
        if side is None:
            return [average]
        boxes, rows = self.boxes, average.rows
        halves = [average.gathered(rows[side == q], average.fit[side == q]) for q in (0, 1)]
        for everywhere in (False, True):
            fits = [
                half.compare(boxes, rows, average.fit.poses, everywhere=everywhere)
                for half in halves
            ]
            gain = np.stack([fit.gain for fit in fits], axis=1)
            side = gain.argmax(axis=1)
            if min(side.sum(), (1 - side).sum()) < _FEWEST:
                return [average]
            halves = [average.gathered(rows[side == q], fits[q][side == q]) for q in (0, 1)]
        # One half may have found better poses for all.
        whole = max(
            average,
            *(average.gathered(rows, fit).refined(boxes) for fit in fits),
            key=lambda one: one.gain,
        )
        apart, cleft = _tell_apart(gain, side)
        two = apart > _limit(len(average)) * whole.gain and cleft > _CLEFT
        # Two averages have half the particles each, and lose a little by that.
        if two and gain.max(axis=1).mean() > 0.985 * whole.gain:
            return [half.masked(boxes) for half in halves]
        return [whole]

    def _find_halves(self, average: Average) -> NDArray[np.intp] | None:
        """Divide members, with their poses held, where two kinds may be."""
        n, best, found = len(average), 0.0, None
        usual = average.compare_halves(self.boxes, np.zeros(n, dtype=np.intp)).max(axis=1).mean()
        directions = [
            _main_directions(self.vectors[average.rows], 1),
            _main_directions(find_differences(self.boxes, average), _DIRECTIONS),
        ]
        for along in np.concatenate(directions):
            side = (along > np.median(along)).astype(np.intp)
            settled = self._settle(average, side)
            if settled is None:
                continue
            gain, side = settled
            apart, cleft = _tell_apart(gain, side)
            if apart > _MAYBE * usual and cleft > _MAYBE_CLEFT and apart * cleft > best:
                best, found = apart * cleft, side
        return found

    def _settle(self, average: Average, side: Array) -> tuple[Array, NDArray[np.intp]] | None:
        for turn in range(_ROUNDS):
            gain = average.compare_halves(self.boxes, side)
            more = gain[:, 1] - gain[:, 0]
            # While both are poor, the better one would take all.
            moved = (more > (np.median(more) if turn < _EVEN else 0)).astype(np.intp)
            if min(moved.sum(), (1 - moved).sum()) < _FEWEST:
                return None
            if turn >= _EVEN and (moved == side).all():
                break
            side = moved
        return gain, side

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
            apart = np.median(np.abs(gain[:, 1] - gain[:, 0]))
            if whole.gain > 0.99 * before or apart < 0.8 * _limit(len(rows)) * before:
                for i in sorted(pair, reverse=True):
                    del averages[i], fits[i]
                averages.append(whole)
                fits.append(self._fit_near(whole, found))
                refused.clear()
            else:
                refused.add(frozenset(id(averages[i]) for i in pair))
        return _Classifier.collect(averages, fits, n=len(self.boxes))

    @staticmethod
    def collect(averages: Sequence[Average], fits: Sequence[Fit], *, n: int) -> Classification:
        """Put all gains into one table."""
        gain = np.reshape([fit.gain for fit in fits], (len(fits), n)).T
        return Classification(averages=averages, gain=gain, fits=fits)

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


def _main_directions(values: Array, n: int) -> Array:
    """Where each row lies along the first n principal directions, shape (n, rows)."""
    away = values - values.mean(axis=0)
    left, _, _ = np.linalg.svd(away @ away.T)
    return np.asarray(left[:, :n].T)


def _limit(n: int) -> float:
    """Share of the gain that n members of two kinds lose with the other half's average."""
    return _APART + 2 * _APART_FEW / n


def _tell_apart(gain: Array, side: Array) -> tuple[float, float]:
    """What members lose on the other side, and how far the sides are apart in their scatter."""
    more = gain[:, 1] - gain[:, 0]
    left, right = more[side == 0], more[side == 1]
    scatter = np.sqrt((left.var() + right.var()) / 2 + 1)
    return float(np.median(np.abs(more))), float((np.median(right) - np.median(left)) / scatter)
