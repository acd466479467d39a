"""Weighted back-projection of a tilt series."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import scipy.fft
from numpy.typing import ArrayLike, NDArray

from tomoloc.physics.projection import (
    OVERSAMPLING,
    LineGeometry,
    gather,
    kernel_gain,
    shift_rows,
)

__all__ = ["angular_weights", "back_project", "ramp_filter"]

Array = NDArray[np.float32]
Floats = NDArray[np.floating[Any]]


def angular_weights(tilt_angles: ArrayLike) -> Floats:
    """Angle that each image stands for, in radians, shape (n,).

    Half the distance to both neighbours. The outermost images get as much beyond them as on their
    inner side, but no more than half the gap that is left in the half circle. A full range adds
    up to pi.
    """
    angles = np.asarray(tilt_angles, dtype=float)
    if len(angles) == 1:
        return np.array([np.pi])
    order = np.argsort(angles, kind="stable")
    gaps = np.diff(angles[order])
    wrap = max(0.0, angles.min() + 180 - angles.max())
    gaps = np.concatenate([[min(wrap, gaps[0])], gaps, [min(wrap, gaps[-1])]])
    weights = np.empty(len(angles))
    weights[order] = np.deg2rad(gaps[:-1] + gaps[1:]) / 2
    return weights


def ramp_filter(n_pixels: int, *, roll_off: float = 0.9) -> Floats:
    """Ramp |f| of filtered back-projection at the frequencies of rfft, in cycles per pixel.

    It is the transform of the ramp's band-limited kernel rather than the sampled ramp: only so is
    the mean of what is reconstructed right [1]_.

    Parameters
    ----------
    n_pixels : int
        Length of the padded lines.
    roll_off : float
        Fraction of Nyquist from which a cosine edge takes the ramp down to zero at Nyquist; 1 for
        none.

    Returns
    -------
    ndarray, shape (n_pixels // 2 + 1,)

    References
    ----------
    .. [1] Kak & Slaney, Principles of Computerized Tomographic Imaging, chapter 3 (2001),
       doi:10.1137/1.9780898719277.
    """
    if not 0 < roll_off <= 1:
        raise ValueError(f"roll_off must be a fraction of Nyquist above 0, up to 1; got {roll_off}")
    lag = np.fft.fftfreq(n_pixels, 1 / n_pixels)
    odd = lag % 2 == 1
    kernel = np.zeros(n_pixels)
    kernel[odd] = -1 / (np.pi * lag[odd]) ** 2
    kernel[0] = 0.25
    ramp = np.fft.rfft(kernel).real
    if roll_off < 1:
        frequency = 2 * np.fft.rfftfreq(n_pixels)
        edge = np.clip((frequency - roll_off) / (1 - roll_off), 0, 1)
        ramp *= (1 + np.cos(np.pi * edge)) / 2
    return ramp


def back_project(
    images: NDArray[Any],
    tilt_angles: ArrayLike,
    *,
    shape: tuple[int, int, int],
    weighting: Literal["ramp", "none"] = "ramp",
    roll_off: float = 0.9,
    border: Literal["zero", "edge"] = "zero",
    shifts: ArrayLike | None = None,
) -> Array:
    """Reconstruct a volume from projections.

    Parameters
    ----------
    images : ndarray, shape (n, y, x)
        Aligned projections with the tilt axis along y. Subtract their background first: what lies
        beyond their borders counts as zero.
    tilt_angles : array_like, shape (n,)
        In degrees, in the order of `images`.
    shape : tuple of int (z, y, x)
        Of the volume. The middles of volume and images, (n - 1) / 2, are the centre of rotation.
    weighting : {"ramp", "none"}
        "ramp" makes density from projections over the half circle come back as it was. "none" is
        the adjoint of `tomoloc.physics.projection.project`, without angular weights.
    roll_off : float
        See `ramp_filter`.
    border : {"zero", "edge"}
        What lies beside the images: nothing, or their outermost pixels. "edge" avoids bright rims
        where the background is not zero.
    shifts : array_like, shape (n, 2), optional
        How far each image's content is moved along x and y, in pixels; it is moved back.

    Returns
    -------
    ndarray of float32, shape (z, y, x)

    Raises
    ------
    ValueError
        If the numbers of images, angles and shifts differ, or an option is unknown.
    """
    n = np.atleast_1d(np.asarray(tilt_angles)).shape[0]
    if images.ndim != 3 or len(images) != n:
        raise ValueError(f"expected images of shape ({n}, y, x), one a tilt; got {images.shape}")
    if weighting not in {"ramp", "none"}:
        raise ValueError(f"weighting must be 'ramp' or 'none'; got {weighting!r}")
    if border not in {"zero", "edge"}:
        raise ValueError(f"border must be 'zero' or 'edge'; got {border!r}")
    nz, ny, nx = shape
    _, rows, columns = images.shape
    geometry = LineGeometry.make(
        tilt_angles,
        shape=shape,
        image_shape=(rows, columns),
        shifts=shifts,
        margin=8 if weighting == "none" else columns // 2 + 8,  # the ramp's kernel is that long
    )
    pixels = geometry.n_pixels
    gains = np.broadcast_to(kernel_gain(pixels), (n, pixels // 2 + 1))
    if weighting == "ramp":
        gains = gains * ramp_filter(pixels, roll_off=roll_off)
        gains = gains * angular_weights(tilt_angles)[:, None]
    # Padding the transform keeps samples as they are when it is scaled by the ratio of lengths.
    gains = (gains * OVERSAMPLING).astype(np.float32)
    volume = np.zeros((nz, nx, ny), dtype=np.float32)
    left, right = geometry.start, pixels - geometry.start - columns
    for batch in geometry.batches(ny):
        lines: Array = np.ascontiguousarray(images[batch].transpose(0, 2, 1), dtype=np.float32)
        lines = shift_rows(lines, -geometry.row_offsets[batch], n_rows=ny)
        mode: Literal["constant", "edge"] = "constant" if border == "zero" else "edge"
        lines = np.pad(lines, ((0, 0), (left, right), (0, 0)), mode=mode)
        spectrum = scipy.fft.rfft(lines, axis=1, workers=-1) * gains[batch, :, None]
        fine = scipy.fft.irfft(spectrum, n=OVERSAMPLING * pixels, axis=1, workers=-1)
        gather(
            fine,
            geometry.cosines[batch],
            geometry.sines[batch],
            geometry.centers[batch],
            volume,
        )
    return np.ascontiguousarray(volume.transpose(0, 2, 1))
