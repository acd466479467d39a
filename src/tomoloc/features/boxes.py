"""Particles as Fourier coefficients of equal noise, and how well a density explains them.

A box around each candidate is masked, transformed, and divided by the noise of each frequency, so
that what is left is a complex number of unit variance plus what the particle contributes.
Frequencies that the tilt series has not seen, and those finer than a resolution, are left out. All
that is known of noise and missing wedge comes from the tomogram's own power spectrum: tilt angles,
CTF and dose are not asked for. The CTF stays in the densities, as all particles of a tomogram share
it nearly.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cache
from itertools import product
from typing import Any, Self

import numpy as np
from numba import njit, prange
from numpy.typing import ArrayLike, NDArray
from scipy import fft

from tomoloc.types import Volume

__all__ = ["Boxes", "backproject", "climb", "fall_off", "make_spectrum", "slice_spectrum"]
__all__ += ["soft_ball", "solve", "to_density"]

Array = NDArray[Any]

_SIZE = 330.0
"""Side of a box in angstrom, at least."""
_FREE = 280.0
"""Diameter of what is seen of a box, in angstrom; the edge beyond is soft."""
_EDGE = 30.0
_PADDING = 2
"""Times a box's side: fineness of a density's spectrum, between whose points is interpolated."""
_NOISE_BOXES = 300
_DARK = 0.15
"""Share of the power at a resolution below which a direction has not been seen."""
_LOUD = 2.0
"""Power of a box, in units of noise, beyond which the rest of it counts as noise, too."""
_COARSEST = 1.2
"""Cycles per box below which a coefficient tells of the background rather than of the particle."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Boxes:
    """Coefficients of boxes around positions in one tomogram.

    Parameters
    ----------
    values : ndarray of complex64, shape (n, k)
        Each with noise of variance 1.
    frequency : ndarray of float32, shape (k, 3)
        Whole cycles per box, zyx, the lowest first. Of each pair of opposite ones there is one.
    transfer : ndarray of float32, shape (k,)
        What a density's coefficient is multiplied with.
    size : int
        Voxels along a side, an odd number; the middle one is the position.
    voxel_spacing : float
        In angstrom; not finer than the resolution needs, whatever the tomogram's is.
    """

    values: Array
    frequency: Array
    transfer: Array
    size: int
    voxel_spacing: float

    def __len__(self) -> int:
        return len(self.values)

    @classmethod
    def of(
        cls, volume: Volume, position: ArrayLike, *, resolution: float = 30.0, seed: int = 0
    ) -> Self:
        """Cut boxes out of a tomogram.

        Parameters
        ----------
        volume : Volume
            Protein bright. Beyond its border lies its mean.
        position : array_like, shape (n, 3)
            xyz in angstrom.
        resolution : float
            The finest detail that counts, in angstrom, at least three voxels.
        seed : int
            Of the places where noise is measured.

        Raises
        ------
        ValueError
            If the resolution is too fine or the volume has no contrast.
        """
        spacing = volume.voxel_spacing
        if resolution < 3 * spacing * (1 - 1e-6):
            raise ValueError(
                f"resolution must be at least three voxels, {3 * spacing:g} Å; got {resolution:g}"
            )
        half = math.ceil(_SIZE / spacing / 2 - 0.5)
        side = (2 * half + 1) * spacing
        size = 2 * math.ceil(1.5 * side / resolution - 0.5) + 1
        index = volume.to_index(np.reshape(np.asarray(position, dtype=np.float64), (-1, 3)))
        mask = soft_ball(2 * half + 1, spacing, _FREE / 2)
        cut = _Cutter(data=np.asarray(volume.data), half=half, mask=mask)
        every = _half_space(limit=side / resolution)
        power = _measure_noise(cut, every, np.random.default_rng(seed))
        radius = np.rint(np.linalg.norm(every, axis=1)).astype(int)
        usual = np.array([np.percentile(power[np.abs(radius - r) < 2], 75) for r in radius])
        if not usual.min() > 0:
            raise ValueError("the tomogram has no contrast at the resolutions of particles")
        seen = power > _DARK * usual
        frequency = every[seen]
        deviation = np.sqrt(power[seen])
        values = np.empty((len(index), len(frequency)), dtype=np.complex64)
        for row, place in zip(values, index, strict=True):
            nearest = np.rint(place).astype(int)
            phase = np.exp(2j * np.pi / (2 * half + 1) * (frequency @ (place - nearest)))
            row[:] = cut(nearest)[tuple(frequency.T)] * phase / deviation
        # Beside gold, carbon or ice there is more than noise and a particle.
        power = np.mean(np.abs(values) ** 2, axis=1, keepdims=True)
        values /= np.sqrt(np.maximum(power / _LOUD, 1))
        # Signal goes the same ways as noise, and dividing by the power has undone what these do.
        return cls(
            values=values,
            frequency=np.ascontiguousarray(frequency, dtype=np.float32),
            transfer=(1 / np.sqrt(usual[seen])).astype(np.float32),
            size=size,
            voxel_spacing=side / size,
        )

    def coarsened(self, resolution: float) -> Boxes:
        """Leave out what is finer than a resolution in angstrom."""
        n = self.count(resolution)
        if n == len(self.frequency):
            return self
        return replace(
            self,
            values=np.ascontiguousarray(self.values[:, :n]),
            frequency=self.frequency[:n],
            transfer=self.transfer[:n],
        )

    def count(self, resolution: float) -> int:
        """How many of the coefficients are no finer than a resolution in angstrom."""
        radius = np.linalg.norm(self.frequency, axis=1)
        return int(np.searchsorted(radius, self.size * self.voxel_spacing / resolution))

    def phases(self, shift: Array) -> Array:
        """Factors that move what lies at shifts, shape (n, 3), to the middle: shape (n, k)."""
        turns = np.asarray(shift, dtype=np.float32) @ self.frequency.T / self.size
        return np.exp(2j * np.pi * turns).astype(np.complex64)


@dataclass(frozen=True, eq=False, kw_only=True)
class _Cutter:
    """Transforms of masked boxes around voxels."""

    data: Array
    half: int
    mask: Array

    def __call__(self, voxel: Array) -> Array:
        h = self.half
        low, high = np.maximum(voxel - h, 0), np.minimum(voxel + h + 1, self.data.shape)
        box = np.zeros((2 * h + 1,) * 3, dtype=np.float32)
        inside = np.zeros(box.shape, dtype=np.float32)
        if (high > low).all():
            target = tuple(
                slice(a - v + h, b - v + h) for a, b, v in zip(low, high, voxel, strict=True)
            )
            box[target] = self.data[tuple(slice(a, b) for a, b in zip(low, high, strict=True))]
            inside[target] = self.mask[target]
        box -= (box * inside).sum() / max(float(inside.sum()), 1e-6)
        return np.asarray(fft.fftn(fft.ifftshift(box * inside)))


@cache
def soft_ball(size: int, spacing: float, radius: float) -> NDArray[np.float32]:
    """A ball in the middle of a cube of odd size, of which the edge is soft, in angstrom."""
    axis = (np.arange(size) - size // 2) * spacing
    distance = np.sqrt(axis[:, None, None] ** 2 + axis[:, None] ** 2 + axis**2)
    return fall_off(distance - radius, _EDGE)


def fall_off(distance: Array, edge: float) -> NDArray[np.float32]:
    """1 up to a distance of 0, 0 beyond the edge, and half a cosine between."""
    beyond = np.clip(distance / edge, 0, 1)
    return np.asarray(0.5 + 0.5 * np.cos(np.pi * beyond), dtype=np.float32)


def _half_space(*, limit: float) -> NDArray[np.intp]:
    """One of each pair of opposite frequencies up to a limit, the lowest first, shape (k, 3)."""
    most = math.ceil(limit)
    every = np.array(list(product(range(-most, most + 1), repeat=3)))
    radius = np.linalg.norm(every, axis=1)
    first = [tuple(row) > (0, 0, 0) for row in every.tolist()]
    kept = np.flatnonzero(np.array(first) & (radius < limit) & (radius >= _COARSEST))
    return np.asarray(every[kept[np.argsort(radius[kept], kind="stable")]])


def _measure_noise(cut: _Cutter, frequency: Array, rng: np.random.Generator) -> Array:
    """Power of each coefficient, as a median over places, which particles do not raise much."""
    shape = np.array(cut.data.shape)
    low = np.minimum(cut.half, (shape - 1) // 2)
    places = rng.integers(low, np.maximum(shape - low, low + 1), size=(_NOISE_BOXES, 3))
    power = np.array([np.abs(cut(place)[tuple(frequency.T)]) ** 2 for place in places])
    # Tomograms may have empty margins, whose boxes hold nothing, or next to nothing.
    total = power.sum(axis=1)
    filled = total >= 0.5 * np.percentile(total[total > 0], 75) if total.any() else total == 0
    return np.asarray(np.median(power[filled], axis=0) / np.log(2))


def make_spectrum(density: Array) -> NDArray[np.complex64]:
    """Transform a cube of odd size finely enough for interpolation; zero frequency in the middle.

    Parameters
    ----------
    density : ndarray, shape (size, size, size)

    Returns
    -------
    ndarray of complex64, shape (2 size, 2 size, 2 size)
    """
    size = density.shape[0]
    padded = np.zeros((_PADDING * size,) * 3, dtype=np.float32)
    padded[_middle(size)] = density / _droop(size)
    return np.asarray(fft.fftshift(fft.fftn(fft.ifftshift(padded), workers=-1)), dtype=np.complex64)


def backproject(
    boxes: Boxes, rows: ArrayLike, rotation: Array, shift: Array
) -> tuple[NDArray[np.complex64], NDArray[np.float32]]:
    """Sum up turned boxes, and what is known of each frequency, in the frame of their density.

    Parameters
    ----------
    boxes : Boxes
    rows : array_like of int, shape (m,)
        Boxes that are summed up.
    rotation : ndarray, shape (m, 3, 3)
        Matrices from the tomogram's frequencies to those of the density, zyx.
    shift : ndarray, shape (m, 3)
        Of each particle from the middle of its box, zyx in voxels.

    Returns
    -------
    values, known : ndarray of complex64 and of float32, shape (2 size, 2 size, 2 size)
        Zero frequency first.
    """
    side = _PADDING * boxes.size
    values, known = np.zeros((side,) * 3, np.complex64), np.zeros((side,) * 3, np.float32)
    for row, turn, move in zip(np.asarray(rows), rotation, shift, strict=True):
        _insert(
            values,
            known,
            turn,
            move,
            boxes.values[row],
            boxes.transfer,
            boxes.frequency,
            boxes.size,
        )
    return values, known


def solve(values: Array, known: Array, mask: Array) -> NDArray[np.float32]:
    """Density inside a mask that most likely gave what was back-projected.

    Each frequency is damped by its ratio of signal to noise (Wiener filter). That ratio is one of
    independent coefficients; a density inside a mask has as many of these as voxels, fewer than
    the grid has points.

    Parameters
    ----------
    values, known : ndarray
        From `backproject`, or sums of several.
    mask : ndarray, shape (size, size, size)

    Returns
    -------
    ndarray of float32, shape (size, size, size)
    """
    size = mask.shape[0]
    shell = _shells(size)
    place = np.flatnonzero(known.ravel())
    where = shell[place]
    count = np.maximum(np.bincount(shell), 1)

    def mean(x: Array) -> Array:
        return np.asarray(np.bincount(where, x, minlength=len(count)) / count)

    # Interpolation spreads each value over eight points; 0.3 of its noise are in their squares.
    sums, weight = values.ravel()[place], known.ravel()[place]
    signal = mean(sums.real**2 + sums.imag**2) - 0.3 * mean(weight)
    signal = np.maximum(signal / np.maximum(mean(weight**2), 1e-12), 0)
    signal = np.maximum(signal, 0.01 * signal.max() + 1e-12)
    damping = (float(mask.sum()) / known.size / signal).astype(np.float32)
    solution = np.zeros_like(values)
    solution.ravel()[place] = sums / (weight + damping[where])
    return np.asarray(to_density(solution, size) * mask, dtype=np.float32)


def to_density(values: Array, size: int) -> NDArray[np.float32]:
    """Transform a spectrum, zero frequency first, to a cube of that side."""
    half = values[..., : values.shape[-1] // 2 + 1]
    density = fft.fftshift(fft.irfftn(half, s=values.shape, workers=-1))[_middle(size)]
    return np.asarray(density / _droop(size), dtype=np.float32)


def _middle(size: int) -> tuple[slice, slice, slice]:
    start = _PADDING * size // 2 - size // 2
    return (slice(start, start + size),) * 3


@cache
def _droop(size: int) -> NDArray[np.float32]:
    """What linear interpolation between frequencies does to a density, by place."""
    along = np.sinc((np.arange(size) - size // 2) / (_PADDING * size)) ** 2
    return np.asarray(along[:, None, None] * along[:, None] * along, dtype=np.float32)


@cache
def _shells(size: int) -> NDArray[np.intp]:
    """Shell of each point of a spectrum, zero frequency first."""
    axis = fft.fftfreq(_PADDING * size) * size
    radius = np.sqrt(axis[:, None, None] ** 2 + axis[:, None] ** 2 + axis**2)
    return np.minimum(np.rint(radius), size // 2 + 1).astype(np.intp).ravel()


@njit(fastmath=True, cache=True)
def _insert(
    values: Array, known: Array, rotation: Array, shift: Array,
    box: Array, transfer: Array, frequency: Array, size: int,
) -> None:  # fmt: skip
    side = values.shape[0]
    for i in range(len(frequency)):
        kz, ky, kx = frequency[i, 0], frequency[i, 1], frequency[i, 2]
        turn = 2 * math.pi * (kz * shift[0] + ky * shift[1] + kx * shift[2]) / size
        value = box[i] * transfer[i] * complex(math.cos(turn), math.sin(turn))
        weight = transfer[i] * transfer[i]
        for sign in (1, -1):
            z = sign * 2 * (rotation[0, 0] * kz + rotation[0, 1] * ky + rotation[0, 2] * kx)
            y = sign * 2 * (rotation[1, 0] * kz + rotation[1, 1] * ky + rotation[1, 2] * kx)
            x = sign * 2 * (rotation[2, 0] * kz + rotation[2, 1] * ky + rotation[2, 2] * kx)
            iz, iy, ix = math.floor(z), math.floor(y), math.floor(x)
            fz, fy, fx = z - iz, y - iy, x - ix
            if sign < 0:
                value = value.conjugate()
            for dz in range(2):
                gz = fz if dz else 1 - fz
                for dy in range(2):
                    gy = gz * (fy if dy else 1 - fy)
                    for dx in range(2):
                        g = gy * (fx if dx else 1 - fx)
                        place = ((iz + dz) % side, (iy + dy) % side, (ix + dx) % side)
                        values[place] += g * value
                        known[place] += g * weight


@njit(inline="always")
def _between(
    spectrum: Array, rotation: Array, kz: np.float32, ky: np.float32, kx: np.float32
) -> np.complex64:
    """Spectrum at a turned frequency, by linear interpolation."""
    middle = spectrum.shape[0] // 2
    z = 2 * (rotation[0, 0] * kz + rotation[0, 1] * ky + rotation[0, 2] * kx) + middle
    y = 2 * (rotation[1, 0] * kz + rotation[1, 1] * ky + rotation[1, 2] * kx) + middle
    x = 2 * (rotation[2, 0] * kz + rotation[2, 1] * ky + rotation[2, 2] * kx) + middle
    iz, iy, ix = int(z), int(y), int(x)
    fz, fy, fx = np.float32(z - iz), np.float32(y - iy), np.float32(x - ix)
    one = np.float32(1)
    a = spectrum[iz, iy, ix] * (one - fx) + spectrum[iz, iy, ix + 1] * fx
    b = spectrum[iz, iy + 1, ix] * (one - fx) + spectrum[iz, iy + 1, ix + 1] * fx
    c = spectrum[iz + 1, iy, ix] * (one - fx) + spectrum[iz + 1, iy, ix + 1] * fx
    d = spectrum[iz + 1, iy + 1, ix] * (one - fx) + spectrum[iz + 1, iy + 1, ix + 1] * fx
    return (a * (one - fy) + b * fy) * (one - fz) + (c * (one - fy) + d * fy) * fz


@njit(parallel=True, fastmath=True, cache=True)
def slice_spectrum(
    spectrum: Array, rotation: Array, frequency: Array, transfer: Array, out: Array
) -> None:
    """Write what turned densities look like, real parts first, to `out`, shape (r, 2 k)."""
    k = len(frequency)
    for r in prange(len(rotation)):
        for i in range(k):
            value = _between(
                spectrum, rotation[r], frequency[i, 0], frequency[i, 1], frequency[i, 2]
            )
            out[r, i] = value.real * transfer[i]
            out[r, i + k] = value.imag * transfer[i]


@njit(fastmath=True, cache=True)
def _gain(
    spectrum: Array, rotation: Array, shift: Array,
    box: Array, frequency: Array, transfer: Array, size: int, count: int,
) -> tuple[np.float32, np.float32]:  # fmt: skip
    """How much likelier a box is with the density than without; the density's power.

    By the first coefficients, so many of them.
    """
    half = size // 2
    phase = np.empty((3, size), np.complex64)
    for axis in range(3):
        for q in range(-half, half + 1):
            turn = 2 * math.pi * q * shift[axis] / size
            phase[axis, q + half] = complex(math.cos(turn), math.sin(turn))
    dot, power = np.float32(0), np.float32(0)
    for i in range(count):
        kz, ky, kx = frequency[i, 0], frequency[i, 1], frequency[i, 2]
        model = _between(spectrum, rotation, kz, ky, kx) * transfer[i]
        value = (
            box[i]
            * phase[0, int(kz) + half] * phase[1, int(ky) + half] * phase[2, int(kx) + half]
        )  # fmt: skip
        dot += value.real * model.real + value.imag * model.imag
        power += model.real * model.real + model.imag * model.imag
    return 2 * dot - power, power


@njit(cache=True)
def _turned(rotation: Array, axis: int, angle: float) -> Array:
    cosine, sine = np.float32(math.cos(angle)), np.float32(math.sin(angle))
    out = rotation.copy()
    i, j = (axis + 1) % 3, (axis + 2) % 3
    for q in range(3):
        out[i, q] = cosine * rotation[i, q] - sine * rotation[j, q]
        out[j, q] = sine * rotation[i, q] + cosine * rotation[j, q]
    return out


@njit(cache=True)
def _step(
    spectrum: Array, rotation: Array, shift: Array, angle: float, move: float,
    box: Array, frequency: Array, transfer: Array, size: int, count: int,
) -> tuple[np.float32, np.float32]:  # fmt: skip
    """Turn and move a pose, in place, wherever that makes the box likelier; gain and power."""
    value, power = _gain(spectrum, rotation, shift, box, frequency, transfer, size, count)
    for axis in range(6):
        for sign in (-1, 1):
            turned, moved = rotation, shift.copy()
            if axis < 3:
                turned = _turned(rotation, axis, sign * angle)
            else:
                moved[axis - 3] += sign * move
            v, p = _gain(spectrum, turned, moved, box, frequency, transfer, size, count)
            if v > value:
                rotation[:], shift[:], value, power = turned, moved, v, p
                break
    return value, power


@njit(cache=True)
def _climb_one(
    spectrum: Array, rotation: Array, shift: Array, steps: Array,
    box: Array, frequency: Array, transfer: Array, size: int,
) -> tuple[np.float32, np.float32]:  # fmt: skip
    left = len(rotation)
    value, power = np.empty(left, np.float32), np.empty(left, np.float32)
    for q in range(len(steps)):
        angle, move, count = steps[q, 0], steps[q, 1], int(steps[q, 2])
        for m in range(left):
            value[m], power[m] = _step(
                spectrum, rotation[m], shift[m], angle, move,
                box, frequency, transfer, size, count,
            )  # fmt: skip
        order = np.argsort(-value[:left])
        left = min(left, int(steps[q, 3]))
        kept = order[:left]
        rotation[:left], shift[:left] = rotation[kept], shift[kept]
        value[:left], power[:left] = value[kept], power[kept]
    return value[0], power[0]


@njit(parallel=True, cache=True)
def climb(
    spectrum: Array, boxes: Array, frequency: Array, transfer: Array, size: int,
    rotation: Array, shift: Array, steps: Array, gain: Array, power: Array,
) -> None:  # fmt: skip
    """Improve several poses of each box by ever smaller steps; the best one ends up first.

    Parameters
    ----------
    spectrum : ndarray of complex64
        From `make_spectrum`.
    boxes : ndarray of complex64, shape (n, k)
    frequency, transfer, size
        As of `Boxes`.
    rotation, shift : ndarray of float32, shape (n, m, 3, 3) and (n, m, 3)
        Where to start, changed in place.
    steps : ndarray, shape (s, 4)
        Radians, voxels, the number of coefficients that count, and that of poses that are left
        after it, the best ones. The last one should leave one, by all coefficients.
    gain, power : ndarray of float32, shape (n,)
        Filled with the logarithm of how much likelier each box is with the density than without,
        and with the power of the density there.
    """
    for b in prange(len(boxes)):
        gain[b], power[b] = _climb_one(
            spectrum, rotation[b], shift[b], steps, boxes[b], frequency, transfer, size
        )
