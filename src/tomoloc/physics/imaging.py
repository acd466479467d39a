"""Images of a volume whose every height has its own transfer function: exact 2.5D.

Tilted by t, the point (x, y, z) lies at height h = z cos t - x sin t along the beam, nearer to the
source where h is positive. Each voxel is splatted on to the two planes of height around it, with
linear weights. A transfer function of h then acts on each plane as a whole, and the planes are
added up. With planes `step` apart, the only error is that of linear interpolation in height: a part
(pi lambda k² step)² / 8 of the phase contrast at spatial frequency k.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Literal

import numpy as np
import scipy.fft
from numba import njit, prange
from numpy.typing import ArrayLike, NDArray

from tomoloc.physics.ctf import electron_wavelength
from tomoloc.physics.projection import OVERSAMPLING, LineGeometry, kernel_gain, spline_weights

__all__ = ["Transfer", "depth_step", "image_depths"]

_ROWS = 256  # rows y handled by one task: nine lines of them stay in the first-level cache
_BATCH_BYTES = 256 * 2**20

Array = NDArray[np.float32]
Floats = NDArray[np.floating[Any]]

Transfer = Callable[[int, Floats, Floats, Floats], NDArray[Any]]
"""transfer(image, heights, fx, fy) -> (plane, fx, fy): what becomes of each plane's spectrum.

`heights` of shape (plane,) are in voxels; `fx` of shape (fx, 1) and `fy` of shape (fy,) are in
cycles a voxel.
"""


def depth_step(voxel_spacing: float, *, voltage_kv: float = 300.0, phase: float = 0.3) -> float:
    """Distance of planes, in angstrom, over which defocus turns the phase at Nyquist by `phase`.

    With 0.3 rad, interpolation between two planes errs by 1 % of the signal at Nyquist at worst,
    and by less than 0.1 % below half of Nyquist.
    """
    nyquist = 1 / (2 * voxel_spacing)
    return phase / (np.pi * electron_wavelength(voltage_kv) * nyquist**2)


def image_depths(
    volume_data: NDArray[Any],
    tilt_angles: ArrayLike,
    *,
    transfer: Transfer,
    step: float = np.inf,
    shifts: ArrayLike | None = None,
    border: Literal["zero", "periodic"] = "zero",
    margin: int = 32,
) -> Array:
    """Project a volume at each tilt, each height through a transfer function of its own.

    Points fall where `tomoloc.physics.projection.project` says. Along y the volume repeats itself.

    Parameters
    ----------
    volume_data : ndarray, shape (z, y, x)
        Density per voxel.
    tilt_angles : array_like, shape (n,)
        In degrees.
    transfer : callable
        See `Transfer`; it must be the spectrum of a real kernel.
    step : float
        Greatest distance of planes in voxels, see `depth_step`; infinite for a single plane.
    shifts : array_like, shape (n, 2), optional
        How far each image's content is moved along x and y, in pixels.
    border : {"zero", "periodic"}
        What lies beside the volume along x: nothing, or its repetition at its own height.
    margin : int
        Pixels of repeated matter beyond the images: how far a transfer function carries signal.

    Returns
    -------
    ndarray of float32, shape (n, y, x)

    Raises
    ------
    ValueError
        If shapes disagree, `step` is not positive or a tilt is too high for a periodic border.
    """
    if volume_data.ndim != 3:
        raise ValueError(f"expected a volume of shape (z, y, x); got {volume_data.shape}")
    if border not in {"zero", "periodic"}:
        raise ValueError(f"border must be 'zero' or 'periodic'; got {border!r}")
    if not step > 0:
        raise ValueError(f"step must be positive (voxels); got {step}")
    nz, ny, nx = volume_data.shape
    shape = (nz, ny, nx)
    geometry = LineGeometry.make(
        tilt_angles, shape=shape, image_shape=(ny, nx), shifts=shifts, margin=margin
    )
    periodic = border == "periodic"
    if periodic and np.abs(geometry.cosines).min() < 0.05:
        raise ValueError("a periodic border needs tilt angles within ±87 degrees")
    reach = _reach(geometry, shape=shape, periodic=periodic)
    counts = np.where(np.isinf(step) | (reach == 0), 1, np.ceil(2 * reach / step) + 1).astype(int)
    volume = np.ascontiguousarray(volume_data.transpose(0, 2, 1), dtype=np.float32)
    pixels = geometry.n_pixels
    gain = kernel_gain(pixels).astype(np.float32)[:, None]
    fx, fy = np.fft.rfftfreq(pixels)[:, None], np.fft.fftfreq(ny)
    images = np.empty((len(counts), ny, nx), dtype=np.float32)
    for batch in _batches(counts, bytes_per_plane=8 * OVERSAMPLING * pixels * ny):
        first = np.concatenate([[0], np.cumsum(counts[batch])])
        fine = np.zeros((first[-1], OVERSAMPLING * pixels, ny), dtype=np.float32)
        lines = np.stack([geometry.cosines, geometry.sines, geometry.centers, reach], axis=1)
        _splat_depths(volume, lines[batch], first, periodic, fine)
        spectra = scipy.fft.rfft(fine, axis=1, workers=-1)[:, : len(gain)] * gain
        spectra = scipy.fft.fft(spectra, axis=2, workers=-1, overwrite_x=True)
        for image, start, stop in zip(
            range(batch.start, batch.stop), first[:-1], first[1:], strict=True
        ):
            heights = np.linspace(-reach[image], reach[image], stop - start)
            if stop - start == 1:
                heights = np.zeros(1)
            planes = np.multiply(
                transfer(image, heights, fx, fy), spectra[start:stop], out=spectra[start:stop]
            )
            total = planes.sum(axis=0)
            if geometry.row_offsets[image]:
                total *= np.exp(-2j * np.pi * fy * geometry.row_offsets[image])
            half = scipy.fft.ifft(total, axis=1, workers=-1, overwrite_x=True)
            whole = scipy.fft.irfft(half, n=pixels, axis=0, workers=-1)
            images[image] = whole[geometry.start : geometry.start + nx].T
    return images


def _reach(geometry: LineGeometry, *, shape: tuple[int, int, int], periodic: bool) -> Floats:
    """Greatest height of what falls on each image's lines, in voxels, shape (n,)."""
    nz, _, nx = shape
    if not periodic:
        return (nz - 1) / 2 * np.abs(geometry.cosines) + (nx - 1) / 2 * np.abs(geometry.sines)
    # Where a point falls, u = x cos t + z sin t, and its z give its height: z / cos t - u tan t.
    side = np.maximum(geometry.centers, geometry.n_pixels - geometry.centers)
    return ((nz - 1) / 2 + side * np.abs(geometry.sines)) / np.abs(geometry.cosines)


def _batches(counts: NDArray[np.integer[Any]], *, bytes_per_plane: int) -> Iterator[slice]:
    """Yield runs of images whose planes stay within a fixed memory."""
    first = 0
    limit = max(1, _BATCH_BYTES // bytes_per_plane)
    for last in range(1, len(counts) + 1):
        if last == len(counts) or counts[first : last + 1].sum() > limit:
            yield slice(first, last)
            first = last


@njit(cache=True, nogil=True, parallel=True, fastmath={"contract"})
def _splat_depths(
    volume: Array,
    lines: Floats,
    first: NDArray[np.integer[Any]],
    periodic: bool,  # noqa: FBT001
    fine: Array,
) -> None:
    """Add every voxel line volume[z, x, :] to the two planes around it in fine[plane, :, :]."""
    nz, nx, ny = volume.shape
    n_fine = fine.shape[1]
    blocks = (ny + _ROWS - 1) // _ROWS
    for task in prange(len(lines) * blocks):
        tilt, block = task // blocks, task % blocks
        low, high = block * _ROWS, min(ny, (block + 1) * _ROWS)
        cosine, sine, center, reach = lines[tilt]
        planes = first[tilt + 1] - first[tilt]
        per_height = (planes - 1) / (2 * reach) if planes > 1 else 0.0
        step = OVERSAMPLING * cosine
        for z in range(nz):
            depth = z - (nz - 1) / 2
            start = OVERSAMPLING * (center + depth * sine) - step * (nx - 1) / 2
            begin, end = 0, nx
            if periodic:
                begin = int(np.floor(min(-start / step, (n_fine - start) / step))) + 1
                end = int(np.ceil(max(-start / step, (n_fine - start) / step)))
            for x in range(begin, end):
                place = start + step * x
                index = int(np.floor(place)) - 1
                if index < 0 or index + 3 >= n_fine:
                    continue
                height = depth * cosine - (x - (nx - 1) / 2) * sine
                level = min(max((height + reach) * per_height, 0.0), planes - 1.0)
                plane = min(int(level), max(planes - 2, 0))
                upper = np.float32(level - plane)
                w0, w1, w2, w3 = spline_weights(place)
                row = volume[z, x % nx, low:high]
                for side in range(min(planes, 2)):
                    share = upper if side else np.float32(1) - upper
                    near = fine[first[tilt] + plane + side]
                    to0 = near[index, low:high]
                    to1 = near[index + 1, low:high]
                    to2 = near[index + 2, low:high]
                    to3 = near[index + 3, low:high]
                    s0, s1, s2, s3 = w0 * share, w1 * share, w2 * share, w3 * share
                    for y in range(high - low):
                        value = row[y]
                        to0[y] += s0 * value
                        to1[y] += s1 * value
                        to2[y] += s2 * value
                        to3[y] += s3 * value
