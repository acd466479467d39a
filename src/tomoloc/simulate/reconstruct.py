"""From a simulated tilt series to a tomogram."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import fft, ndimage

from tomoloc.physics.imaging import depth_step
from tomoloc.physics.reconstruction import (
    back_project,
    back_project_depths,
    phase_flip,
    sirt,
)
from tomoloc.simulate.drawn import bounds
from tomoloc.simulate.settings import Reconstruction
from tomoloc.types import TiltSeries, Tomogram

__all__ = ["reconstruct"]

Array = NDArray[np.float32]
Shape = tuple[int, int, int]


def reconstruct(
    tilt_series: TiltSeries, *, settings: Reconstruction, shape: Shape, name: str = ""
) -> Tomogram:
    """Reconstruct a tomogram with mean 0 and standard deviation 1.

    Each image is divided by its mean first, so that its contrast and not its brightness counts.

    Parameters
    ----------
    tilt_series : TiltSeries
        With images whose pixels are as large as the specimen's voxels.
    settings : Reconstruction
        Of a resolved recipe: without ranges and choices.
    shape : tuple of int
        Voxels of the specimen, zyx. Binning divides them.
    name : str

    Returns
    -------
    Tomogram
        With the specimen's centre: of binned ones, the first voxel's centre is the `origin`. The
        tilt series is attached as it was given.

    Raises
    ------
    ValueError
        If images, their pixel size or a CTF that is to be corrected are missing, or if a side
        cannot be binned.
    """
    images, spacing = tilt_series.images, tilt_series.pixel_spacing
    if images is None or spacing is None:
        raise ValueError("a reconstruction needs images and their pixel_spacing; got none")
    factor = settings.binning
    if any(n % factor for n in (*shape, *images.shape[1:])):
        raise ValueError(
            f"binning {factor} must divide the sides of specimen {tuple(shape)} and images"
            f" {images.shape[1:]}; choose another shape or binning"
        )
    nz, ny, nx = (n // factor for n in shape)
    data = _solve(
        _bin(_contrast(images), factor),
        tilt_series,
        settings=settings,
        spacing=spacing * factor,
        shape=(nz, ny, nx),
    )
    data = _denoise(data, str(settings.denoise))
    data -= data.mean(dtype=np.float64)
    data /= max(float(data.std(dtype=np.float64)), 1e-30)
    return Tomogram(
        data=data,
        voxel_spacing=spacing * factor,
        origin=np.full(3, spacing * (factor - 1) / 2),
        name=name,
        tilt_series=tilt_series,
    )


def _contrast(images: NDArray[Any]) -> Array:
    """Relative difference of each image from its mean; none where nothing was counted."""
    mean = images.mean(axis=(1, 2), keepdims=True, dtype=np.float64)
    scale = np.divide(1, mean, out=np.zeros_like(mean), where=mean > 0)
    return np.asarray((images - mean.astype(np.float32)) * scale.astype(np.float32))


def _bin(images: Array, factor: int) -> Array:
    """Make pixels `factor` times as wide by cutting the transform; the middle stays in place."""
    if factor == 1:
        return images
    n, *sides = images.shape
    rows, columns = (side // factor for side in sides)
    kept = np.rint(fft.fftfreq(rows, 1 / rows)).astype(int)
    # Middles of the first wide pixel and of the first narrow one differ by half of factor - 1.
    phase = np.add.outer(fft.fftfreq(rows, factor), fft.rfftfreq(columns, factor))
    turn = np.exp(1j * np.pi * (factor - 1) * phase).astype(np.complex64) / factor**2
    # Without its partner of the other sign, the wave at Nyquist cannot be moved.
    if rows % 2 == 0:
        turn[rows // 2] = 0
    if columns % 2 == 0:
        turn[:, -1] = 0
    small = np.empty((n, rows, columns), dtype=np.float32)
    for image, out in zip(images, small, strict=True):
        spectrum = fft.rfft2(image, workers=-1)[kept, : columns // 2 + 1]
        out[:] = fft.irfft2(spectrum * turn, s=(rows, columns), workers=-1)
    return small


def _solve(
    images: Array, series: TiltSeries, *, settings: Reconstruction, spacing: float, shape: Shape
) -> Array:
    """Reconstruct contrast by the method, and with the correction, that is asked for."""
    angles, correction = series.tilt_angles, str(settings.ctf_correction)
    roll_off = float(bounds(settings.roll_off)[0])
    iterations = int(bounds(settings.iterations)[0])
    sirt_method = settings.method == "sirt"
    if correction == "none":
        if sirt_method:
            return sirt(images, angles, shape=shape, iterations=iterations)
        return back_project(images, angles, shape=shape, roll_off=roll_off)
    if series.ctf is None:
        raise ValueError(f"ctf_correction {correction!r} needs a tilt series with a CTF; got none")
    transfer = phase_flip(series.ctf, voxel_spacing=spacing)
    step = np.inf
    if correction == "flip-3d":
        step = depth_step(spacing, voltage_kv=series.ctf.voltage_kv) / spacing
    if sirt_method:
        return sirt(
            images, angles, shape=shape, iterations=iterations, transfer=transfer, step=step
        )
    return back_project_depths(
        images, angles, shape=shape, transfer=transfer, step=step, roll_off=roll_off
    )


def _denoise(data: Array, method: str) -> Array:
    """Smooth by a Gaussian of one voxel or the median of the 27 nearest."""
    if method == "gaussian":
        return np.asarray(ndimage.gaussian_filter(data, 1.0))
    if method == "median":
        return np.asarray(ndimage.median_filter(data, 3))
    return data
