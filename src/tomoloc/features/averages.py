"""Averages of particles of one kind, aligned to each other without any reference.

One particle, blurred, is the first reference; the average of all that were aligned to it the next,
at finer and finer detail. A particle is always compared with an average of others, never with one
that holds itself, so that noise does not align to its own image (gold-standard refinement, Scheres
& Chen 2012, doi:10.1038/nmeth.2115, here in more than two parts). The gain that comes of it is the
logarithm of how much likelier a box is with the average in it than empty, and can be compared
between averages of different kinds.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from itertools import product
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from scipy import ndimage
from scipy.spatial.transform import Rotation

from tomoloc.features.boxes import (
    Boxes,
    backproject,
    climb,
    fall_off,
    make_spectrum,
    slice_spectrum,
    soft_ball,
    solve,
)
from tomoloc.nn.device import computes_in_bfloat16
from tomoloc.physics.rotations import sample_rotations

__all__ = ["Average", "Fit", "Poses", "align", "compare_coarsely", "join_poses"]

Array = NDArray[Any]
Poses = tuple[Array, Array]

_STAGES = ((62.0, 2), (50.0, 2), (42.0, 2), (36.0, 2), (0.0, 2))
"""Resolution in angstrom, 0 for all that there is, and rounds of alignment with it."""
_TRIED = 2
"""Stages after which the best of several starts is known."""
_GLOBAL = 50.0
"""Resolution at which all orientations are tried."""
_ANGLE = 20.0
"""Degrees between them."""
_FAR, _NEAR = 2, 1
"""Voxels from the middle of a box, and from where a particle was last, in which it is looked for
first."""
_STARTS = 3
"""Orientations from which steps lead to the best one."""
_STEPS = ((10.0, 0.5, _GLOBAL, 2), (7.0, 0.35, 0.0, 2), (4.0, 0.25, 0.0, 1))
"""Of orientation and place, in degrees and voxels at 10 Å; resolution in angstrom, 0 for all that
there is; and how many poses are left after each."""
_PARTS = 4
"""Into which the particles of an average are divided, so that none is compared with itself."""
_RADIUS = 60.0
"""Of the first mask, in angstrom."""
_LARGEST = 80.0
"""Radius in angstrom of a ball; masks are smaller than one and a half of it."""
_ROOM = 20.0
"""Between what is dense and the soft edge of the mask, and width of that edge, in angstrom."""
_LEVEL = 0.25
"""Of the highest density, blurred: above it lies the particle."""
_BLOCK = 64
_NONE = -1
"""Part of boxes that are not in an average."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Fit:
    """How boxes and an average go together.

    Parameters
    ----------
    gain : ndarray, shape (n,)
        Logarithm of how much likelier each box is with the average than without.
    power : ndarray, shape (n,)
        The gain that a particle without noise would have.
    rotation : ndarray, shape (n, 3, 3)
        Matrices from the tomogram's frequencies to those of the average, zyx.
    shift : ndarray, shape (n, 3)
        Of the particle from the middle of its box, zyx in voxels.
    """

    gain: Array
    power: Array
    rotation: Array
    shift: Array

    def __getitem__(self, rows: ArrayLike) -> Fit:
        rows = np.asarray(rows)
        return Fit(
            gain=self.gain[rows],
            power=self.power[rows],
            rotation=self.rotation[rows],
            shift=self.shift[rows],
        )

    def put(self, rows: ArrayLike, fit: Fit) -> None:
        """Replace some rows."""
        for name in _NAMES:
            getattr(self, name)[rows] = getattr(fit, name)

    @classmethod
    def unknown(cls, n: int) -> Fit:
        """All as they lie, with no gain."""
        return cls(
            gain=np.full(n, -np.inf, np.float32),
            power=np.ones(n, np.float32),
            rotation=np.tile(np.eye(3, dtype=np.float32), (n, 1, 1)),
            shift=np.zeros((n, 3), np.float32),
        )

    @property
    def poses(self) -> Poses:
        """Rotations and shifts, one of each box."""
        return self.rotation[:, None], self.shift[:, None]

    @property
    def orientation(self) -> Rotation:
        """From the average to the tomogram, xyz."""
        return Rotation.from_matrix(self.rotation[:, ::-1, ::-1]).inv()


@dataclass(frozen=True, eq=False, kw_only=True)
class Average:
    """Particles that lie on each other.

    Parameters
    ----------
    rows : ndarray of int, shape (m,)
        Boxes that it is made of.
    fit : Fit
        Of these boxes, each with the average of others.
    mask : ndarray, shape (size, size, size)
        Where the particle is.
    """

    rows: NDArray[np.intp]
    fit: Fit
    mask: Array

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def gain(self) -> float:
        """Mean over the particles."""
        return float(self.fit.gain.mean())

    def density(self, boxes: Boxes) -> NDArray[np.float32]:
        """What the particles have in common, with the contrast that the tomogram gives it.

        Returns
        -------
        ndarray of float32, shape (size, size, size)
        """
        parts = backproject(boxes, self.rows, self.fit.rotation, self.fit.shift)
        return solve(*parts, self.mask)

    def compare(
        self,
        boxes: Boxes,
        rows: ArrayLike,
        poses: Poses | None = None,
        *,
        parts: int = _PARTS,
        everywhere: bool = True,
    ) -> Fit:
        """Fit the average into boxes; where one is a part of it, an average of others.

        Parameters
        ----------
        boxes : Boxes
        rows : array_like of int, shape (n,)
            Of the boxes to fit it into.
        poses : tuple of ndarray, shape (n, m, 3, 3) and (n, m, 3), optional
            Rotations and shifts to start from, beside those that are tried everywhere; the particle
            is no farther than a voxel from where the last of them have it.
        parts : int
            Into which the particles of the average are divided; the more, the better are the
            averages of others.
        everywhere : bool
            Try all orientations, not only those near given poses.

        Returns
        -------
        Fit
            Of length n. An average of one box has no gain there.
        """
        rows = np.asarray(rows)
        part = np.arange(len(self)) % min(parts, len(self))
        part_of = np.full(len(boxes), _NONE)
        part_of[self.rows] = part
        fit = Fit.unknown(len(rows))
        if poses is not None:
            fit.rotation[:], fit.shift[:] = poses[0][:, -1], poses[1][:, -1]
        for q, density in self._without_each(boxes, part):
            own = np.flatnonzero(part_of[rows] == q)
            if len(own):
                start = None if poses is None else (poses[0][own], poses[1][own])
                fit.put(own, _search(boxes, rows[own], density(), start, everywhere=everywhere))
        return fit

    def _without_each(
        self, boxes: Boxes, part: Array
    ) -> Iterator[tuple[int, Callable[[], NDArray[np.float32]]]]:
        """The density of all parts, for boxes of none, and then without each of them."""
        sums = [
            backproject(boxes, self.rows[own], self.fit.rotation[own], self.fit.shift[own])
            for own in (part == q for q in range(part.max() + 1))
        ]
        if not sums:
            return
        values, weights = (np.sum([one[i] for one in sums], axis=0) for i in (0, 1))
        yield _NONE, lambda: solve(values, weights, self.mask)
        for q, (less, known) in enumerate(sums if len(sums) > 1 else ()):
            yield q, partial(solve, values - less, weights - known, self.mask)

    def refined(self, boxes: Boxes, *, rounds: int = 1, parts: int = _PARTS) -> Self:
        """Align the particles to averages of the others again, and fit the mask to the density."""
        average = self
        for turn in range(rounds):
            fit = average.compare(
                boxes, average.rows, average.fit.poses, parts=parts, everywhere=turn == 0
            )
            average = replace(average, fit=fit)
        return average.masked(boxes)

    def masked(self, boxes: Boxes) -> Self:
        """Move the frame's middle to where boxes have theirs, and fit the mask to the density."""
        spacing = boxes.voxel_spacing
        middle = -np.einsum("nij,nj->ni", self.fit.rotation, self.fit.shift)
        off = np.median(middle, axis=0).astype(np.float32)
        shift = self.fit.shift + np.einsum("nji,j->ni", self.fit.rotation, off)
        centered = replace(self, fit=replace(self.fit, shift=shift.astype(np.float32)))
        moved = ndimage.shift(self.mask, -off, order=1)
        wide = replace(centered, mask=np.asarray(moved, dtype=np.float32))
        found = _envelope(wide.density(boxes), spacing)
        largest = soft_ball(boxes.size, spacing, _LARGEST)
        return replace(wide, mask=found) if found.sum() < 1.5 * largest.sum() else wide

    def gathered(self, rows: ArrayLike, fit: Fit) -> Self:
        """Make an average of other boxes, fitted to this one."""
        return replace(self, rows=np.asarray(rows), fit=fit)


_NAMES = ("gain", "power", "rotation", "shift")


def align(boxes: Boxes, rows: ArrayLike, *, starts: int = 3) -> Average:
    """Align particles of one kind to each other.

    Parameters
    ----------
    boxes : Boxes
    rows : array_like of int, shape (m,)
        Of the boxes that hold these particles, the surest first; some may hold others.
    starts : int
        How many of them are tried as first references.

    Returns
    -------
    Average
        In the orientation of no particle in particular; its mean gain tells how well that went.

    Raises
    ------
    ValueError
        If there are no rows.
    """
    rows = np.asarray(rows, dtype=np.intp)
    if not len(rows):
        raise ValueError("nothing to align: no boxes are given")
    tried = [_start(boxes, rows, first) for first in range(min(starts, len(rows)))]
    best = max(tried, key=lambda average: average.gain)
    return _sharpen(boxes, best, _STAGES[_TRIED:])


def _start(boxes: Boxes, rows: NDArray[np.intp], first: int) -> Average:
    """Align all to one of them, blurred, and from there on to their averages."""
    coarse = boxes.coarsened(_STAGES[0][0])
    mask = soft_ball(boxes.size, boxes.voxel_spacing, _RADIUS)
    one = Average(rows=rows[[first]], fit=Fit.unknown(1), mask=mask)
    fit = _search(coarse, rows, one.density(coarse), None)
    fit.rotation[first], fit.shift[first] = np.eye(3), 0
    return _sharpen(boxes, Average(rows=rows, fit=fit, mask=mask), _STAGES[:_TRIED])


def _sharpen(boxes: Boxes, average: Average, stages: Sequence[tuple[float, int]]) -> Average:
    for resolution, rounds in stages:
        seen = boxes.coarsened(resolution) if resolution else boxes
        average = average.refined(seen, rounds=rounds, parts=2 if resolution else _PARTS)
    return average


def _search(
    boxes: Boxes, rows: Array, density: Array, poses: Poses | None, *, everywhere: bool = True
) -> Fit:
    """Find the best pose of a density in each box: all orientations coarsely, then steps."""
    spectrum = make_spectrum(density)
    if poses is None:
        poses, _ = _search_coarsely(boxes.coarsened(_GLOBAL), rows, spectrum)
    elif everywhere:
        found, _ = _search_coarsely(boxes.coarsened(_GLOBAL), rows, spectrum, poses[1][:, -1])
        poses = join_poses(found, poses)
    return _climb(boxes, rows, spectrum, poses, _STEPS)


def join_poses(first: Poses, last: Poses) -> Poses:
    """Poses to start from, of the same boxes, in one."""
    rotation, shift = (np.concatenate(pair, axis=1) for pair in zip(first, last, strict=True))
    return rotation, shift


def _climb(
    boxes: Boxes,
    rows: Array,
    spectrum: Array,
    poses: Poses,
    steps: Sequence[tuple[float, float, float, int]],
) -> Fit:
    n = len(rows)
    gain, power = np.empty(n, np.float32), np.empty(n, np.float32)
    rotation, shift = (np.array(one, dtype=np.float32, order="C") for one in poses)
    every = len(boxes.frequency)
    table = [
        (math.radians(angle), move * 10 / boxes.voxel_spacing,
         boxes.count(resolution) if resolution else every, left)
        for angle, move, resolution, left in steps
    ]  # fmt: skip
    climb(
        spectrum, boxes.values[rows], boxes.frequency, boxes.transfer, boxes.size,
        rotation, shift, np.array(table), gain, power,
    )  # fmt: skip
    return Fit(gain=gain, power=power, rotation=rotation[:, 0].copy(), shift=shift[:, 0].copy())


def _search_coarsely(
    boxes: Boxes, rows: Array, spectrum: Array, around: Array | None = None
) -> tuple[Poses, Array]:
    """The best poses of a density in each box, and the highest gain."""
    rotations, moves = _rotations(), _moves(_FAR if around is None else _NEAR)
    models = np.empty((len(rotations), 2 * len(boxes.frequency)), dtype=np.float32)
    slice_spectrum(spectrum, rotations, boxes.frequency, boxes.transfer, models)
    power = torch.from_numpy((models**2).sum(axis=1))
    kind = torch.bfloat16 if computes_in_bfloat16("cpu") else torch.float32
    turned = torch.from_numpy(models).to(kind).T
    shape = (len(rows), _STARTS)
    rotation, shift = np.empty((*shape, 3, 3), np.float32), np.empty((*shape, 3), np.float32)
    best, phases = np.empty(len(rows), np.float32), boxes.phases(moves)
    for first in range(0, len(rows), _BLOCK):
        some = slice(first, first + _BLOCK)
        values = boxes.values[rows[some]]
        if around is not None:
            values = values * boxes.phases(around[some])
        moved = values[:, None] * phases
        real = np.concatenate([moved.real, moved.imag], axis=-1).astype(np.float32)
        dot = (torch.from_numpy(real).to(kind) @ turned).float()
        gain, place = (2 * dot - power).max(dim=1)
        top, which = gain.topk(_STARTS, dim=1)
        best[some] = top[:, 0].numpy()
        rotation[some] = rotations[which.numpy()]
        shift[some] = moves[place.gather(1, which).numpy()]
    if around is not None:
        shift += around[:, None]
    return (rotation, shift), best


@cache
def _moves(reach: float) -> Array:
    """Shifts zyx by whole voxels, up to a distance, shape (n, 3)."""
    along = range(-math.floor(reach), math.floor(reach) + 1)
    every = np.array(list(product(along, repeat=3)), dtype=np.float32)
    return every[(every**2).sum(axis=1) <= reach**2]


@cache
def _rotations() -> Array:
    """Matrices from the tomogram's frequencies to those of a turned density, zyx."""
    matrix = sample_rotations(_ANGLE).inv().as_matrix()[:, ::-1, ::-1]
    return np.ascontiguousarray(matrix, dtype=np.float32)


def _envelope(density: Array, spacing: float) -> NDArray[np.float32]:
    """A soft mask around the largest dense part."""
    blurred = ndimage.gaussian_filter(density, 10 / spacing)
    dense = blurred > _LEVEL * blurred.max()
    label, n = ndimage.label(dense)
    if n > 1:
        dense = label == 1 + np.argmax(ndimage.sum(dense, label, range(1, n + 1)))
    away = ndimage.distance_transform_edt(~dense, sampling=spacing)
    return fall_off(np.asarray(away) - _ROOM, _ROOM)


def compare_coarsely(
    boxes: Boxes, average: Average, rows: ArrayLike, *, around: Array | None = None
) -> tuple[Poses, NDArray[np.float32]]:
    """Fit an average into boxes at low resolution, its own members' part in it not left out.

    Parameters
    ----------
    boxes : Boxes
    average : Average
    rows : array_like of int, shape (n,)
        Of the boxes to fit it into.
    around : ndarray, shape (n, 3), optional
        Shifts near which the particles are, zyx in voxels.

    Returns
    -------
    poses : tuple of ndarray, shape (n, m, 3, 3) and (n, m, 3)
        The best ones, for `Average.compare`.
    gain : ndarray, shape (n,)
    """
    spectrum, coarse = make_spectrum(average.density(boxes)), boxes.coarsened(_GLOBAL)
    poses, gain = _search_coarsely(coarse, np.asarray(rows), spectrum, around)
    return poses, np.asarray(gain)
