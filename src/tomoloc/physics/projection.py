"""Projection of a volume at the angles of a tilt series.

The tilt axis is y, so all rows y share one geometry: voxel (x, z) falls at x cos t + z sin t. The
inner loops run over contiguous rows, and every voxel is splatted with a cubic B-spline on to lines
sampled twice as finely as the detector. Dividing by the transform of the spline before the lines
are cropped to the detector's pixels makes this a band-limited projection with a flat response.
Linear splatting on to the pixels themselves would lose a third of the amplitude at 0.7 Nyquist.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import scipy.fft
from numba import njit, prange
from numpy.typing import ArrayLike, NDArray

__all__ = [
    "OVERSAMPLING",
    "LineGeometry",
    "kernel_gain",
    "project",
    "shift_rows",
    "spline_weights",
]

OVERSAMPLING = 2
"""Fine samples per pixel along x: aliases of the cubic spline stay below 1 % up to Nyquist."""

_ROWS = 256  # rows y handled by one task: five lines of them stay in the first-level cache
_BATCH_BYTES = 256 * 2**20

Array = NDArray[np.float32]
Floats = NDArray[np.floating[Any]]


@dataclass(frozen=True, eq=False, kw_only=True)
class LineGeometry:
    """Where the voxels of a volume fall on padded lines of detector pixels.

    The centres of rotation are the middles of the volume and of the image, (n - 1) / 2.

    Parameters
    ----------
    cosines, sines : ndarray, shape (n,)
        Of the tilt angles.
    centers : ndarray, shape (n,)
        Where the centre of rotation falls on each line, in pixels.
    n_pixels : int
        Length of the padded lines, even.
    start : int
        First pixel of the image on the padded lines.
    row_offsets : ndarray, shape (n,)
        Image row of the volume's row 0, fractional.
    """

    cosines: Floats
    sines: Floats
    centers: Floats
    n_pixels: int
    start: int
    row_offsets: Floats

    @classmethod
    def make(
        cls,
        tilt_angles: ArrayLike,
        *,
        shape: tuple[int, int, int],
        image_shape: tuple[int, int],
        shifts: ArrayLike | None,
        margin: int = 8,
    ) -> LineGeometry:
        """Lay out lines that hold the image and every voxel at every tilt.

        Parameters
        ----------
        tilt_angles : array_like, shape (n,)
        shape : tuple (z, y, x)
            Of the volume.
        image_shape : tuple (y, x)
        shifts : array_like, shape (n, 2), optional
            Displacement xy of each image's content, in pixels.
        margin : int
            Pixels beyond the outermost voxel and the image: room for the tails of filters.

        Raises
        ------
        ValueError
            If the numbers of angles and shifts differ or a side is not positive.
        """
        angles = np.deg2rad(np.atleast_1d(np.asarray(tilt_angles, dtype=float)))
        n = len(angles)
        moved = np.zeros((n, 2)) if shifts is None else np.asarray(shifts, dtype=float)
        if angles.ndim != 1 or n == 0:
            raise ValueError("tilt_angles must be a list of at least one angle")
        if moved.shape != (n, 2):
            raise ValueError(f"expected shifts xy of {n} images, shape ({n}, 2); got {moved.shape}")
        if min(*shape, *image_shape) < 1:
            raise ValueError(f"sides must be positive; got volume {shape}, images {image_shape}")
        nz, ny, nx = shape
        rows, columns = image_shape
        cosines, sines = np.cos(angles), np.sin(angles)
        reach = np.abs(cosines) * (nx - 1) / 2 + np.abs(sines) * (nz - 1) / 2 + np.abs(moved[:, 0])
        half = max(float(reach.max()), (columns - 1) / 2)
        n_pixels = 2 * scipy.fft.next_fast_len(int(np.ceil(half)) + 1 + margin, real=True)
        start = (n_pixels - columns) // 2
        return cls(
            cosines=cosines,
            sines=sines,
            centers=start + (columns - 1) / 2 + moved[:, 0],
            n_pixels=n_pixels,
            start=start,
            row_offsets=(rows - ny) / 2 + moved[:, 1],
        )

    def batches(self, n_rows: int) -> Iterator[slice]:
        """Yield runs of images whose fine lines stay within a fixed memory."""
        size = max(1, _BATCH_BYTES // (4 * OVERSAMPLING * self.n_pixels * n_rows))
        for first in range(0, len(self.cosines), size):
            yield slice(first, min(first + size, len(self.cosines)))


def kernel_gain(n_pixels: int) -> Floats:
    """Gain that undoes the spline's blur at the frequencies of rfft, shape (n_pixels // 2 + 1,)."""
    gain = np.sinc(np.fft.rfftfreq(n_pixels) / OVERSAMPLING) ** -4.0
    # The coefficient at Nyquist has no sign: without it, cropping and padding are exact adjoints.
    gain[-1] = 0
    return np.asarray(gain)


def project(
    volume_data: NDArray[Any],
    tilt_angles: ArrayLike,
    *,
    image_shape: tuple[int, int] | None = None,
    shifts: ArrayLike | None = None,
    border: Literal["zero", "periodic"] = "zero",
    device: str | None = None,
) -> Array:
    """Project a volume along the beam at each tilt.

    The point (x, y, z) falls at (x cos t + z sin t, y), measured from the middles of the volume
    and the image, (n - 1) / 2. Sums are kept: one voxel of value 1 gives an image whose sum is 1.
    The response is flat up to Nyquist, so sharp edges ring as band-limited signals do.

    Parameters
    ----------
    volume_data : ndarray, shape (z, y, x)
        Density per voxel.
    tilt_angles : array_like, shape (n,)
        In degrees.
    image_shape : tuple of int (y, x), optional
        By default that of one slice of the volume.
    shifts : array_like, shape (n, 2), optional
        How far each image's content is moved along x and y, in pixels.
    border : {"zero", "periodic"}
        What lies beside the volume along x: nothing, or its repetition, which fills the images at
        high tilt as a real specimen does.
    device : str, optional
        Of torch, such as "cuda"; the processor's own loops without.

    Returns
    -------
    ndarray of float32, shape (n, y, x)

    Raises
    ------
    ValueError
        If the shapes disagree or a tilt is too high for a periodic border.

    See Also
    --------
    tomoloc.physics.reconstruction.back_project : with ``weighting="none"``, the exact adjoint.
    """
    if volume_data.ndim != 3:
        raise ValueError(f"expected a volume of shape (z, y, x); got {volume_data.shape}")
    if border not in {"zero", "periodic"}:
        raise ValueError(f"border must be 'zero' or 'periodic'; got {border!r}")
    nz, ny, nx = volume_data.shape
    rows, columns = (ny, nx) if image_shape is None else image_shape
    geometry = LineGeometry.make(
        tilt_angles,
        shape=(nz, ny, nx),
        image_shape=(rows, columns),
        shifts=shifts,
        margin=8 if border == "zero" else 32,  # repeated matter ends abruptly with the lines
    )
    periodic = border == "periodic"
    if periodic and np.abs(geometry.cosines).min() < 0.05:
        raise ValueError("a periodic border needs tilt angles within ±87 degrees")
    volume = np.ascontiguousarray(volume_data.transpose(0, 2, 1), dtype=np.float32)
    gain = kernel_gain(geometry.n_pixels).astype(np.float32)
    images = np.empty((len(geometry.cosines), rows, columns), dtype=np.float32)
    for batch in geometry.batches(ny):
        if device is None:
            padded = _project_lines(volume, geometry, batch, gain=gain, periodic=periodic)
        else:
            from tomoloc.physics.lines_torch import project_lines

            padded = project_lines(
                volume, geometry, batch=batch, gain=gain, periodic=periodic, device=device
            )
        lines = np.asarray(padded[:, geometry.start : geometry.start + columns], np.float32)
        moved = shift_rows(lines, geometry.row_offsets[batch], n_rows=rows)
        images[batch] = moved.transpose(0, 2, 1)
    return images


def _project_lines(
    volume: Array, geometry: LineGeometry, batch: slice, *, gain: Array, periodic: bool
) -> Array:
    """Splat voxel lines on to fine detector lines and filter them, shape (n, n_pixels, y)."""
    n, ny = batch.stop - batch.start, volume.shape[2]
    fine = np.zeros((n, OVERSAMPLING * geometry.n_pixels, ny), dtype=np.float32)
    turn = geometry.cosines[batch], geometry.sines[batch], geometry.centers[batch]
    _splat(volume, *turn, periodic, fine)
    spectrum = scipy.fft.rfft(fine, axis=1, workers=-1)[:, : len(gain)] * gain[:, None]
    padded = scipy.fft.irfft(spectrum, n=geometry.n_pixels, axis=1, workers=-1)
    return np.asarray(padded, dtype=np.float32)


def shift_rows(lines: Array, offsets: Floats, *, n_rows: int) -> Array:
    """Move the rows of each image and cut or fill them up to `n_rows`.

    The opposite offsets, with the numbers of rows exchanged, make this its own adjoint.

    Parameters
    ----------
    lines : ndarray, shape (n, x, y)
    offsets : ndarray, shape (n,)
        Row of the result on which row 0 of `lines` falls; fractions move by Fourier phases.
    n_rows : int
        Rows of the result.

    Returns
    -------
    ndarray of float32, shape (n, x, n_rows)
    """
    n, columns, ny = lines.shape
    whole = np.rint(offsets).astype(int)
    if np.abs(offsets - whole).max() < 1e-6:
        if n_rows == ny and not whole.any():
            return lines
        out = np.zeros((n, columns, n_rows), dtype=np.float32)
        for source, target, offset in zip(lines, out, whole, strict=True):
            low, high = max(0, offset), min(n_rows, offset + ny)
            target[:, low : max(low, high)] = source[:, low - offset : max(low, high) - offset]
        return out
    # An odd length has no coefficient at Nyquist, so that shifts stay exactly invertible, and it
    # is long enough for no row to come back in from the other side.
    length = _odd_fast_length(max(ny, n_rows) + int(np.ceil(np.abs(offsets).max())) + 16)
    turn = np.exp(-2j * np.pi * np.fft.rfftfreq(length) * offsets[:, None]).astype(np.complex64)
    spectrum = scipy.fft.rfft(lines, n=length, axis=2, workers=-1) * turn[:, None]
    moved = scipy.fft.irfft(spectrum, n=length, axis=2, workers=-1)[..., :n_rows]
    return np.asarray(moved, dtype=np.float32)


def _odd_fast_length(target: int) -> int:
    """Return the smallest odd length from `target` whose transform is fast."""
    length = scipy.fft.next_fast_len(target, real=True)
    while length % 2 == 0:
        length = scipy.fft.next_fast_len(length + 1, real=True)
    return length


@njit(cache=True, nogil=True, parallel=True, fastmath={"contract"})
def _splat(
    volume: Array,
    cosines: Floats,
    sines: Floats,
    centers: Floats,
    periodic: bool,  # noqa: FBT001
    fine: Array,
) -> None:
    """Add every voxel line volume[z, x, :] to the four nearest of fine[tilt, :, :]."""
    nz, nx, ny = volume.shape
    n_fine = fine.shape[1]
    blocks = (ny + _ROWS - 1) // _ROWS
    for task in prange(len(cosines) * blocks):
        tilt, block = task // blocks, task % blocks
        low, high = block * _ROWS, min(ny, (block + 1) * _ROWS)
        step = OVERSAMPLING * cosines[tilt]
        for z in range(nz):
            depth = (z - (nz - 1) / 2) * sines[tilt]
            start = OVERSAMPLING * (centers[tilt] + depth) - step * (nx - 1) / 2
            first, last = 0, nx
            if periodic:
                first = int(np.floor(min(-start / step, (n_fine - start) / step))) + 1
                last = int(np.ceil(max(-start / step, (n_fine - start) / step)))
            for x in range(first, last):
                place = start + step * x
                index = int(np.floor(place)) - 1
                if index < 0 or index + 3 >= n_fine:
                    continue
                w0, w1, w2, w3 = spline_weights(place)
                row = volume[z, x % nx, low:high]
                to0 = fine[tilt, index, low:high]
                to1 = fine[tilt, index + 1, low:high]
                to2 = fine[tilt, index + 2, low:high]
                to3 = fine[tilt, index + 3, low:high]
                for y in range(high - low):
                    value = row[y]
                    to0[y] += w0 * value
                    to1[y] += w1 * value
                    to2[y] += w2 * value
                    to3[y] += w3 * value


@njit(cache=True, nogil=True)
def spline_weights(place: float) -> tuple[Any, Any, Any, Any]:
    """Cubic B-spline at the four samples around `place`, from the second before it."""
    t = np.float32(place - np.floor(place))
    s = np.float32(1) - t
    sixth = np.float32(1 / 6)
    three, four = np.float32(3), np.float32(4)
    return (
        sixth * s * s * s,
        sixth * (four + three * t * t * (t - np.float32(2))),
        sixth * (four + three * s * s * (s - np.float32(2))),
        sixth * t * t * t,
    )
