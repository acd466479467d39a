"""Template against decoy: at all voxels, or only where one of them may be."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from tomoloc.features.spectra import noise_like
from tomoloc.localize import suppress
from tomoloc.pickers.compressed import energy_peaks, search_components
from tomoloc.pickers.correlation import RotatedReference
from tomoloc.pickers.poses import Bank, Basis, best_poses, make_basis, refine_poses

__all__ = ["Hits", "Rivals", "imbalance", "search"]

Array = NDArray[np.float32]

_SAMPLED = 2000
"""Orientations that a basis is made from."""
_COMPONENTS, _ENERGY = 320, 0.998
"""Most components of a basis, and part of the energy at which fewer are enough."""
_FOR_COARSE, _FOR_POSES = 128, 160
"""Components for coarse orientations, and to refine poses with."""
_PER_VOLUME = 2.0
"""Peaks of the energy that are looked at, for each cube of the particle's diameter."""
_DEEPEST, _QUIET_DEEPEST = 400, 100
"""Rank among the decoy's scores, in the tomogram and in noise like it, down to which places are
tried in all orientations."""
_NEAR_BEST = 0.8
"""Part of the best correlation around a place from which on a neighbour is tried, too."""
_HOPS = 3
"""Times that the search goes on from a neighbour that scores better."""
_KEEP = 8
"""Orientations of a place that are correlated exactly."""
_BACKGROUND = 2048
"""Voxels whose median score is that of the background."""
_QUIET_VOXELS = 1 << 20
"""Of the noise that template and decoy are compared in."""
_HIGHEST = 25
"""Peaks that are compared there."""
_BLOCK = 256
_NEIGHBOURS = np.array(list(product((-1, 0, 1), repeat=3)))


@dataclass(frozen=True, eq=False, kw_only=True)
class Rivals:
    """A template, its decoy, and the orientations to try.

    Parameters
    ----------
    template, decoy : RotatedReference
        With the same mask.
    rotations : Rotation
        Reference to tomogram.
    coarse : Rotation
        Fewer, to find out which places are worth all of them.
    diameter : float
        Of a particle, in voxels.
    """

    template: RotatedReference
    decoy: RotatedReference
    rotations: Rotation
    coarse: Rotation
    diameter: float


@dataclass(frozen=True, eq=False, kw_only=True)
class Hits:
    """Voxels at which a template and its decoy have been tried in all orientations.

    Parameters
    ----------
    voxel : ndarray of int, shape (n, 3)
        zyx; no two are the same.
    score : ndarray, shape (n,)
        Best correlation with the template less that with the decoy, less the median of this
        difference in the whole tomogram. Scores below 0 are scaled, see `imbalance`.
    rotation : Rotation of length n
        Of the template.
    peak : ndarray of int, shape (m,)
        Rows where the template scores better than around them.
    offset : ndarray, shape (m, 3)
        From these voxels to where the template correlates best, zyx, up to half a voxel each.
    """

    voxel: NDArray[np.intp]
    score: Array
    rotation: Rotation
    peak: NDArray[np.intp]
    offset: Array


def search(
    data: Array,
    rivals: list[Rivals],
    *,
    angular_step: float,
    refine: bool,
    detectability: float,
    device: str = "cpu",
    seed: int = 0,
) -> list[Hits]:
    """Find where a template or its decoy is, and which of them it is.

    Parameters
    ----------
    data : ndarray, shape (z, y, x)
        Filtered like the references, of mean zero.
    rivals : list of Rivals
        They share the tomogram's Fourier transform.
    angular_step : float
        Between neighbouring orientations.
    refine : bool
        Let the template's orientations leave the grid where it is found. Scores stay those of the
        grid, so that template and decoy have the same choice.
    detectability : float
        See `search_components`.
    device : str
    seed : int
        Chooses the voxels that stand for the background.

    Returns
    -------
    list of Hits
    """
    bases = [
        _basis(reference, pair.rotations, device)
        for pair in rivals
        for reference in (pair.template, pair.decoy)
    ]
    short = [b.first(search_components(b.variance, detectability=detectability)) for b in bases]
    banks = [_Banks.of(pair, bases[2 * i : 2 * i + 2]) for i, pair in enumerate(rivals)]
    rng = np.random.default_rng(seed)

    def decide(data: Array, step: float | None, deepest: int) -> list[Hits]:
        counts = [int(_PER_VOLUME * data.size / pair.diameter**3) + 100 for pair in rivals]
        peaks = energy_peaks(data, short, counts=np.repeat(counts, 2).tolist(), device=device)
        background = np.stack([rng.integers(0, n, _BACKGROUND) for n in data.shape], axis=1)
        return [
            _decide(data, both, peaks[2 * i : 2 * i + 2], background, step, deepest)
            for i, both in enumerate(banks)
        ]

    found = decide(data, angular_step if refine else None, _DEEPEST)
    noise = noise_like(data, max_voxels=_QUIET_VOXELS, rng=rng)
    quiet = decide(noise, None, _QUIET_DEEPEST)
    return [
        replace(own, score=own.score * np.where(own.score < 0,
            imbalance(still.voxel, still.score, diameter=pair.diameter), 1))
        for own, still, pair in zip(found, quiet, rivals, strict=True)
    ]  # fmt: skip


def imbalance(voxel: NDArray[np.intp], score: Array, *, diameter: float) -> np.float32:
    """How high a template's best peaks are in noise, over how high its decoy's are.

    The more a reference varies with direction, the higher the best of many orientations is in mere
    noise, and no decoy varies exactly as its template does.

    Parameters
    ----------
    voxel : ndarray of int, shape (n, 3)
        zyx, in noise.
    score : ndarray, shape (n,)
        Of the template, less that of the decoy.
    diameter : float
        Of a particle, in voxels.

    Returns
    -------
    float
        1 where there are too few peaks to tell.
    """
    heights = []
    for sign in (1, -1):
        own = np.flatnonzero(sign * score > 0)
        height = sign * score[own]
        best = suppress(voxel[own].astype(float), height, min_distance=diameter / 2)
        heights.append(height[best])
    # Of few peaks, fewer are high.
    n = min(_HIGHEST, *(len(height) // 4 for height in heights))
    if n < _HIGHEST // 4:
        return np.float32(1)
    return np.float32(heights[0][:n].sum() / heights[1][:n].sum())


@dataclass(frozen=True, eq=False)
class _Banks:
    """Bases of a template and its decoy, and their banks of coarse and of all orientations."""

    bases: tuple[Basis, Basis]
    coarse: tuple[Bank, Bank]
    every: tuple[Bank, Bank]
    rotations: Rotation
    """All orientations, then the coarse ones."""

    @classmethod
    def of(cls, pair: Rivals, bases: Sequence[Basis]) -> _Banks:
        one, two = bases
        return cls(
            bases=(one, two),
            coarse=(
                Bank(one.first(_FOR_COARSE), pair.coarse),
                Bank(two.first(_FOR_COARSE), pair.coarse),
            ),
            every=(Bank(one, pair.rotations), Bank(two, pair.rotations)),
            rotations=Rotation.concatenate([pair.rotations, pair.coarse]),
        )


def _decide(
    data: Array,
    banks: _Banks,
    peaks: Sequence[NDArray[np.intp]],
    background: NDArray[np.intp],
    angular_step: float | None,
    deepest: int,
) -> Hits:
    """Let template and decoy compete at peaks of the energy of either, and around the best."""
    # One voxel of the background: an empty tomogram has no peaks.
    first = np.unique(np.concatenate([*peaks, background[:1]]), axis=0)
    rough = _Duel.at(first, background, data, banks.coarse)
    # What scores less than the decoy's best few hundred is noise wherever the threshold may be.
    lowest = np.sort(rough.score)[min(deepest, len(first) // 3)]
    sides = [np.flatnonzero(sign * rough.score >= max(-lowest, 0)) for sign in (1, -1)]
    around = [
        _around(data, bank, rough, side, i)
        for i, (bank, side) in enumerate(zip(banks.coarse, sides, strict=True))
    ]
    duel = _Duel.at(np.unique(np.concatenate(around), axis=0), background, data, banks.every)
    shape = data.shape
    centers = [first[side] for side in sides]
    for _ in range(_HOPS):  # a score may rise beyond the neighbours of a peak of the energy
        moved = []
        for i, sign in enumerate((1, -1)):
            rows = _best_nearby(duel, centers[i], shape, sign=sign)
            known = np.isin(_number(duel.voxel[rows], shape), _number(centers[i], shape))
            moved.append(_around(data, banks.every[i], duel, rows[~known], i))
            centers[i] = duel.voxel[rows]
        new = np.unique(np.concatenate(moved), axis=0)
        new = new[~np.isin(_number(new, shape), _number(duel.voxel, shape))]
        if not len(new):
            break
        duel = duel.join(_Duel.at(new, background[:0], data, banks.every, level=duel.level))
    rest = ~np.isin(_number(first, data.shape), _number(duel.voxel, data.shape))
    duel = duel.join(rough[rest], len(banks.every[0].rotations))
    best = [
        _best_nearby(duel, center, shape, sign=sign)
        for center, sign in zip(centers, (1, -1), strict=True)
    ]
    duel = duel.measured(np.union1d(*best), data, banks.bases, banks.rotations)
    rotation = banks.rotations[duel.poses[0][:, 0]].as_quat()
    rows, basis = best[0], banks.bases[0].first(_FOR_POSES)
    if angular_step is not None:
        rotation[rows] = refine_poses(
            basis,
            basis.windows(data, duel.voxel[rows]),
            Rotation.from_quat(rotation[rows]),
            step=angular_step / 2,
        ).as_quat()
    turns = Rotation.from_quat(rotation)
    return Hits(
        voxel=duel.voxel,
        score=duel.score,
        rotation=turns,
        peak=rows,
        offset=_offsets(basis, data, duel.voxel[rows], turns[rows]),
    )


def _offsets(basis: Basis, data: Array, voxel: NDArray[np.intp], rotations: Rotation) -> Array:
    """Vertex of the parabola through a voxel's correlation and its neighbours', axis by axis."""
    offset = np.zeros((len(voxel), 3), np.float32)
    if not len(voxel):
        return offset
    copies = basis.copies(rotations)

    def correlate(step: NDArray[np.intp]) -> Array:
        return np.einsum("nk,nk->n", basis.windows(data, voxel + step), copies)

    here = correlate(np.zeros(3, dtype=np.intp))
    for axis, step in enumerate(np.eye(3, dtype=np.intp)):
        below, above = correlate(-step), correlate(step)
        curvature = 2 * here - below - above
        np.divide(above - below, 2 * curvature, out=offset[:, axis], where=curvature > 0)
    return np.clip(offset, -0.5, 0.5)


@dataclass(frozen=True, eq=False)
class _Duel:
    """Voxels, template's score less decoy's, and the best few orientations of both."""

    voxel: NDArray[np.intp]
    score: Array
    poses: tuple[NDArray[np.intp], NDArray[np.intp]]
    level: float
    """Median score of the background, which was taken off."""

    @classmethod
    def at(
        cls,
        voxel: NDArray[np.intp],
        background: NDArray[np.intp],
        data: Array,
        banks: Sequence[Bank],
        *,
        level: float | None = None,
    ) -> _Duel:
        """Score voxels, and take off the median score of the background, if it is not known."""
        places = np.concatenate([voxel, background])
        first, second = (
            best_poses(bank, bank.basis.windows(data, places), keep=_KEEP) for bank in banks
        )
        score, n = first.score[:, 0] - second.score[:, 0], len(voxel)
        level = float(np.median(score[n:])) if level is None else level
        return cls(voxel, score[:n] - level, (first.index[:n], second.index[:n]), level)

    def __getitem__(self, rows: NDArray[np.bool_]) -> _Duel:
        poses = self.poses[0][rows], self.poses[1][rows]
        return _Duel(self.voxel[rows], self.score[rows], poses, self.level)

    def measured(
        self, rows: NDArray[np.intp], data: Array, bases: Sequence[Basis], rotations: Rotation
    ) -> _Duel:
        """Choose anew among the best orientations at some rows, by exact correlations."""
        score, poses = self.score.copy(), [p.copy() for p in self.poses]
        everyone = np.arange(len(rows))
        for own, basis, sign in zip(poses, bases, (1, -1), strict=True):
            chosen, voxel = own[rows], self.voxel[rows]
            turns = rotations[chosen.ravel()]
            # What the basis leaves out is added to the score.
            rough = np.einsum("nk,nk->n", basis.windows(data, voxel), basis.copies(turns[::_KEEP]))
            exact = basis.exact(data, voxel, turns)
            best = exact.argmax(axis=1)
            own[rows, 0] = chosen[everyone, best]
            score[rows] += sign * (exact[everyone, best] - rough)
        return _Duel(self.voxel, score, (poses[0], poses[1]), self.level)

    def join(self, other: _Duel, n: int = 0) -> _Duel:
        """Append voxels whose orientations are counted from `n`."""
        poses = [np.concatenate([a, b + n]) for a, b in zip(self.poses, other.poses, strict=True)]
        return _Duel(
            np.concatenate([self.voxel, other.voxel]),
            np.concatenate([self.score, other.score]),
            (poses[0], poses[1]),
            self.level,
        )


def _around(
    data: Array, bank: Bank, duel: _Duel, rows: NDArray[np.intp], side: int
) -> NDArray[np.intp]:
    """The chosen rows' voxels, and neighbours where their poses correlate nearly as well."""
    found = [duel.voxel[rows]]
    for start in range(0, len(rows), _BLOCK):
        chosen = rows[start : start + _BLOCK]
        places = np.clip(duel.voxel[chosen, None] + _NEIGHBOURS, 0, np.array(data.shape) - 1)
        windows = bank.basis.windows(data, places.reshape(-1, 3)).reshape(*places.shape[:2], -1)
        poses = duel.poses[side][chosen]
        copies = bank.basis.copies(bank.rotations[poses.ravel()]).reshape(*poses.shape, -1)
        score = (windows @ copies.transpose(0, 2, 1)).max(axis=2)
        found.append(places[score >= _NEAR_BEST * score.max(axis=1, keepdims=True)])
    return np.concatenate(found)


def _number(voxel: NDArray[np.intp], shape: tuple[int, ...]) -> NDArray[np.intp]:
    return np.asarray(np.ravel_multi_index(tuple(voxel.T), shape))


def _best_nearby(
    duel: _Duel, voxel: NDArray[np.intp], shape: tuple[int, ...], *, sign: int
) -> NDArray[np.intp]:
    """Rows with the highest (sign 1) or lowest score around each of the given voxels."""
    numbers = _number(duel.voxel, shape)
    order = np.argsort(numbers)
    places = np.clip(voxel[:, None] + _NEIGHBOURS, 0, np.array(shape) - 1)
    wanted = np.ravel_multi_index(tuple(np.moveaxis(places, -1, 0)), shape)
    position = np.minimum(np.searchsorted(numbers[order], wanted), len(order) - 1)
    found = order[position]
    score = np.where(numbers[found] == wanted, sign * duel.score[found], -np.inf)
    return np.unique(found[np.arange(len(voxel)), score.argmax(axis=1)])


def _basis(reference: RotatedReference, rotations: Rotation, device: str) -> Basis:
    """A basis from some of the orientations, with as many components as hold the energy."""
    step = max(1, len(rotations) // _SAMPLED)
    basis = make_basis(reference, rotations[::step], n_components=_COMPONENTS, device=device)
    return basis.first(1 + int(np.searchsorted(np.cumsum(basis.variance), _ENERGY)))
