"""Averages of particles: cut out, aligned, and put together where each one has information.

A particle's transform is the reference's, turned and shifted, times the transfer of the tilt series
(`tomoloc.physics.wedge.tilt_weights`: missing wedge, CTF, dose), plus noise. Boxes have odd sides;
their middle voxel is the centre.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import fft, ndimage
from scipy.spatial.transform import Rotation

from tomoloc.features import averages
from tomoloc.features.boxes import Boxes
from tomoloc.physics.filters import fourier_shell_correlation, radial_frequency
from tomoloc.physics.rotations import sample_rotations
from tomoloc.types import Volume

__all__ = [
    "Poses",
    "Stack",
    "align",
    "average",
    "cut_out",
    "lay_onto",
    "refine",
    "resolution",
    "search",
    "soft_sphere",
    "turn",
]

Array = NDArray[Any]
GLOBAL_STEP = 20.0
STEPS = (10.0, 5.0, 2.5)
"""Degrees of local searches; shifts of a voxel for each 10 degrees go with them."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Stack:
    """Boxes of one tomogram.

    Parameters
    ----------
    boxes : ndarray, shape (n, size, size, size)
        Protein bright.
    weights : ndarray, shape (size, size, size // 2 + 1)
        Transfer from specimen to tomogram, laid out as by `scipy.fft.rfftn`.
    """

    boxes: Array
    weights: Array

    def __len__(self) -> int:
        return len(self.boxes)


@dataclass(frozen=True, eq=False, kw_only=True)
class Poses:
    """Where and how the reference lies in each box.

    Parameters
    ----------
    rotation : Rotation
        Reference to tomogram.
    shift : ndarray, shape (n, 3)
        From the middle of the box to the particle's centre, zyx in voxels.
    score : ndarray, shape (n,)
    """

    rotation: Rotation
    shift: Array
    score: Array

    def __len__(self) -> int:
        return len(self.shift)

    def __getitem__(self, rows: slice) -> Poses:
        return Poses(rotation=self.rotation[rows], shift=self.shift[rows], score=self.score[rows])


def cut_out(volume: Volume, position: ArrayLike, *, size: int) -> tuple[Array, Array]:
    """Cut out boxes of odd size around positions xyz (Å), centred to a fraction of a voxel.

    Returns
    -------
    boxes : ndarray of float32, shape (n, size, size, size)
    rows : ndarray of int
        Positions that they belong to: those whose box lies inside the volume.
    """
    if size % 2 == 0:
        raise ValueError(f"boxes have odd sides; got {size}")
    index = volume.to_index(np.reshape(np.asarray(position, dtype=float), (-1, 3)))
    nearest, half = np.rint(index).astype(int), size // 2
    rows = np.flatnonzero(
        ((nearest >= half) & (nearest + half < np.array(volume.shape))).all(axis=1)
    )
    boxes = np.empty((len(rows), size, size, size), dtype=np.float32)
    for box, row in zip(boxes, rows, strict=True):
        place = tuple(slice(i - half, i + half + 1) for i in nearest[row])
        spectrum = fft.rfftn(np.asarray(volume.data[place], dtype=np.float32))
        box[:] = fft.irfftn(spectrum * _phase(size, index[row] - nearest[row]), s=box.shape)
    return boxes, rows


def turn(density: Array, rotation: Rotation, *, order: int = 1) -> Array:
    """Turn a cube of odd size about its middle voxel."""
    matrix = rotation.inv().as_matrix()[::-1, ::-1]  # arrays are zyx, rotations xyz
    middle = np.array(density.shape) // 2
    return ndimage.affine_transform(
        density, matrix, middle - matrix @ middle, order=order, mode="constant"
    )


def search(
    stack: Stack,
    reference: Array,
    *,
    voxel_spacing: float,
    low_pass: float,
    angular_step: float = GLOBAL_STEP,
    reach: int = 2,
) -> Poses:
    """Find the best of all orientations and of whole shifts up to `reach` voxels for each box."""
    band = _Band.of(stack.weights, voxel_spacing=voxel_spacing, low_pass=low_pass)
    rotations = sample_rotations(angular_step)
    models = np.stack([band.model(turn(reference, rotation)) for rotation in rotations])
    shifts = np.array(list(product(range(-reach, reach + 1), repeat=3)), dtype=float)
    found = [models @ band.shifted(box, shifts).T for box in stack.boxes]
    best = [np.unravel_index(score.argmax(), score.shape) for score in found]
    return Poses(
        rotation=Rotation.concatenate([rotations[int(r)] for r, _ in best]),
        shift=np.array([shifts[s] for _, s in best]),
        score=np.array([score.max() for score in found]),
    )


def refine(
    stack: Stack,
    reference: Array,
    poses: Poses,
    *,
    voxel_spacing: float,
    low_pass: float,
    steps: tuple[float, ...] = STEPS,
) -> Poses:
    """Improve poses by ever smaller steps around them."""
    band = _Band.of(stack.weights, voxel_spacing=voxel_spacing, low_pass=low_pass)
    rotations, shifts, scores = [], [], []
    for box, rotation, shift in zip(stack.boxes, poses.rotation, poses.shift, strict=True):
        score = -np.inf
        for step in (s for s in steps for _ in range(2)):
            around = [Rotation.from_rotvec(step * axis, degrees=True) * rotation for axis in _CROSS]
            moved = shift + step / 10 * _CROSS
            models = np.stack([band.model(turn(reference, one)) for one in around])
            found = models @ band.shifted(box, moved).T
            r, s = np.unravel_index(found.argmax(), found.shape)
            rotation, shift, score = around[int(r)], moved[int(s)], float(found[r, s])
        rotations.append(rotation)
        shifts.append(shift)
        scores.append(score)
    return Poses(
        rotation=Rotation.concatenate(rotations), shift=np.array(shifts), score=np.array(scores)
    )


_CROSS = np.concatenate([np.zeros((1, 3)), np.eye(3), -np.eye(3)])


def average(stacks: Sequence[Stack], poses: Sequence[Poses]) -> Array:
    """Average boxes in the frame of the reference, each frequency by what each box knows of it.

    The least-squares solution, with a little regularisation where no box knows anything.
    """
    size = stacks[0].weights.shape[0]
    total = np.zeros((size,) * 3)
    known = np.zeros((size,) * 3)
    for stack, there in zip(stacks, poses, strict=True):
        power = np.fft.fftshift(_full(stack.weights**2, size))
        for box, rotation, shift in zip(stack.boxes, there.rotation, there.shift, strict=True):
            spectrum = fft.rfftn(box) * _phase(size, shift) * stack.weights
            back = rotation.inv()
            total += turn(fft.irfftn(spectrum, s=box.shape), back, order=3)
            known += turn(power, back)
    share = np.fft.ifftshift(known)[..., : size // 2 + 1]
    solved = fft.rfftn(total) / (share + 0.1 * share.mean())
    return np.asarray(fft.irfftn(solved, s=total.shape), dtype=np.float32)


def align(volume: Volume, position: ArrayLike, truth: Array) -> Poses:
    """Align particles to each other, and lay their average onto the true density.

    Parameters
    ----------
    volume : Volume
        Protein bright.
    position : array_like, shape (n, 3)
        xyz in angstrom.
    truth : ndarray, shape (size, size, size)
        Of the same voxel spacing. It only tells how the average lies, once that is there.

    Returns
    -------
    Poses
        Of the true density in each box.
    """
    boxes = Boxes.of(volume, position)
    found = averages.align(boxes, np.arange(len(boxes)))
    frame = lay_onto(found.density(boxes), truth, voxel_spacing=volume.voxel_spacing)
    turned = found.fit.orientation
    moved = turned.apply(np.tile(frame.shift[0, ::-1], (len(boxes), 1)))[:, ::-1]
    return Poses(
        rotation=turned * frame.rotation[0],
        shift=found.fit.shift + moved,
        score=found.fit.gain,
    )


def lay_onto(density: Array, truth: Array, *, voxel_spacing: float) -> Poses:
    """Find out how a true density lies in an average, whose frame is its own."""
    size = truth.shape[0]
    room = max(size - density.shape[0], 0) // 2
    cut = max(density.shape[0] - size, 0) // 2
    inner = slice(cut, density.shape[0] - cut)
    box = np.pad(density[inner, inner, inner], room)
    flat = np.ones((size, size, size // 2 + 1), dtype=np.float32)
    stack = Stack(boxes=box[None], weights=flat)
    how: dict[str, float] = {"voxel_spacing": voxel_spacing, "low_pass": 3 * voxel_spacing}
    return refine(stack, truth, search(stack, truth, **how), **how)


def resolution(
    density: Array, truth: Array, *, voxel_spacing: float, mask: Array
) -> dict[float, float]:
    """Resolution in Å at which the Fourier shell correlation falls below 0.5 and 0.143.

    Two voxels where it does not.
    """
    frequency, correlation = fourier_shell_correlation(
        density * mask, truth * mask, voxel_spacing=voxel_spacing
    )
    useful = (frequency > 0) & (frequency <= 0.5 / voxel_spacing)
    frequency, correlation = frequency[useful], correlation[useful]
    return {level: _crossing(frequency, correlation, level) for level in (0.5, 0.143)}


def _crossing(frequency: Array, correlation: Array, level: float) -> float:
    below = np.flatnonzero(correlation < level)
    if not len(below):
        return float(1 / frequency[-1])
    first = below[0]
    if first == 0:
        return float("inf")
    part = slice(first, first - 2 if first > 1 else None, -1)
    return float(1 / np.interp(level, correlation[part], frequency[part]))


def soft_sphere(size: int, diameter: float) -> Array:
    """A ball of a diameter in voxels whose edge falls off over four of them."""
    axis = np.arange(size) - size // 2
    radius = np.sqrt(axis[:, None, None] ** 2.0 + axis[:, None] ** 2 + axis**2)
    return np.asarray(
        0.5 + 0.5 * np.cos(np.pi * np.clip((radius - diameter / 2) / 4 + 0.5, 0, 1)),
        dtype=np.float32,
    )


@dataclass(frozen=True, eq=False, kw_only=True)
class _Band:
    """Coefficients up to a resolution, as real vectors whose products are correlations."""

    place: tuple[Array, ...]
    frequency: Array
    factor: Array
    weights: Array

    @classmethod
    def of(cls, weights: Array, *, voxel_spacing: float, low_pass: float) -> _Band:
        size = weights.shape[0]
        radius = radial_frequency((size,) * 3, voxel_spacing)
        place = np.nonzero((radius > 0) & (radius <= 1 / low_pass))
        axes = (fft.fftfreq(size), fft.fftfreq(size), fft.rfftfreq(size))
        frequency = np.stack([axis[i] for axis, i in zip(axes, place, strict=True)], axis=1)
        # All but the first plane stand for two coefficients of the full transform.
        factor = np.where(place[2] == 0, 1.0, np.sqrt(2.0))
        return cls(place=place, frequency=frequency, factor=factor, weights=weights[place])

    def model(self, density: Array) -> Array:
        """Expected transform of a turned reference, of length 1."""
        vector = _real(fft.rfftn(density)[self.place] * self.weights * self.factor)
        return vector / max(float(np.linalg.norm(vector)), 1e-30)

    def shifted(self, box: Array, shifts: Array) -> Array:
        """Transforms of a box after particles at the given shifts have been centred."""
        spectrum = fft.rfftn(box)[self.place] * self.factor
        return _real(spectrum * np.exp(2j * np.pi * (shifts @ self.frequency.T)))


def _real(values: Array) -> Array:
    return np.concatenate([values.real, values.imag], axis=-1).astype(np.float32)


def _phase(size: int, shift: Array) -> Array:
    """Factors of a transform (size, size, size // 2 + 1) that move what lies at a shift to 0."""
    z, y, x = (
        np.exp(2j * np.pi * frequency * s)
        for frequency, s in zip(
            (fft.fftfreq(size), fft.fftfreq(size), fft.rfftfreq(size)), shift, strict=True
        )
    )
    return np.asarray(z[:, None, None] * y[:, None] * x)


def _full(half: Array, size: int) -> Array:
    """Fill in the other half of real, even values laid out as by `rfftn`; `size` is odd."""
    back = np.roll(half[::-1, ::-1, :0:-1], 1, axis=(0, 1))
    return np.concatenate([half, back], axis=2)[..., :size]
