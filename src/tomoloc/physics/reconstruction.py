"""Reconstruction of a volume from its tilt series.

Weighted back-projection is one pass of the projection's adjoint over ramp-filtered images. With
images made anew for each height along the beam, it corrects the CTF in three dimensions. SIRT
iterates the projection and its adjoint.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import scipy.fft
from numba import njit, prange
from numpy.typing import ArrayLike, NDArray

from tomoloc.physics.ctf import evaluate_ctf
from tomoloc.physics.projection import (
    OVERSAMPLING,
    LineGeometry,
    kernel_gain,
    project,
    shift_rows,
    spline_weights,
)
from tomoloc.types import CTF

__all__ = [
    "angular_weights",
    "back_project",
    "back_project_by_height",
    "flip_phases",
    "ramp_filter",
    "sirt",
]

Array = NDArray[np.float32]
Floats = NDArray[np.floating[Any]]
Weighting = Literal["ramp", "none"]
Border = Literal["zero", "edge"]


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
    weighting: Weighting = "ramp",
    roll_off: float = 0.9,
    border: Border = "zero",
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
    lines = _Lines(
        tilt_angles,
        shape=shape,
        image_shape=images.shape[1:],
        weighting=weighting,
        roll_off=roll_off,
        border=border,
        shifts=shifts,
    )
    for batch in lines.batches():
        lines.add(images[batch], batch)
    return lines.volume()


def back_project_by_height(
    at_height: Callable[[NDArray[np.intp], float], NDArray[Any]],
    tilt_angles: ArrayLike,
    *,
    image_shape: tuple[int, int],
    shape: tuple[int, int, int],
    step: float,
    weighting: Weighting = "ramp",
    roll_off: float = 0.9,
    border: Border = "zero",
) -> Array:
    """Reconstruct a volume whose voxels see images that depend on their height along the beam.

    With images whose phases are flipped for the defocus at each height, this is 3D-CTF correction
    [1]_: defocus is then right across tilted images and through the thickness of the specimen.
    The height of (x, y, z), measured from the volume's middle, is z cos t - x sin t at tilt t.
    Between planes of height, images are interpolated linearly.

    Parameters
    ----------
    at_height : callable
        ``at_height(tilts, height)`` gives the images, shape (n, y, x), of the tilts with these
        indices as they should be for matter at `height` (in voxels).
    tilt_angles : array_like, shape (n,)
    image_shape : tuple of int (y, x)
    shape : tuple of int (z, y, x)
        Of the volume.
    step : float
        Between planes of height, in voxels; they are its multiples.
    weighting, roll_off, border
        As of `back_project`.

    Returns
    -------
    ndarray of float32, shape (z, y, x)

    Raises
    ------
    ValueError
        If `step` is not positive or an option is unknown.

    References
    ----------
    .. [1] Turoňová et al., J. Struct. Biol. 199 (2017), doi:10.1016/j.jsb.2017.07.007.
    """
    if not step > 0:
        raise ValueError(f"the step between planes of height must be positive; got {step}")
    lines = _Lines(
        tilt_angles,
        shape=shape,
        image_shape=image_shape,
        weighting=weighting,
        roll_off=roll_off,
        border=border,
    )
    reach = lines.reach
    for batch in lines.batches():
        tilts = np.arange(batch.start, batch.stop)
        last = int(np.ceil(reach[tilts].max() / step))
        for plane in range(-last, last + 1):
            # Planes beyond the volume still share in the voxels between them and the last inside.
            seen = tilts[reach[tilts] > (abs(plane) - 1) * step]
            if len(seen):
                images = at_height(seen, plane * step)
                lines.add(images, seen, height=plane * step, inverse_step=1 / step)
    return lines.volume()


def flip_phases(
    images: NDArray[Any], ctf: CTF, *, pixel_spacing: float, height: float = 0.0
) -> Array:
    """Turn the phases of frequencies where the CTF has reversed contrast.

    Dark stays dark: images are multiplied by minus the sign of the CTF, which is negative at low
    frequencies.

    Parameters
    ----------
    images : ndarray, shape (n, y, x)
    ctf : CTF
        Of the n images.
    pixel_spacing : float
    height : float
        Above the place to which the CTF's defocus refers, towards the electron source; it lessens
        the underfocus.

    Returns
    -------
    ndarray of float32, shape (n, y, x)
    """
    _, rows, columns = images.shape
    raised = replace(
        ctf,
        defocus_u_um=ctf.defocus_u_um - 1e-4 * height,
        defocus_v_um=ctf.defocus_v_um - 1e-4 * height,
    )
    frequency_y = np.fft.fftfreq(rows, pixel_spacing)[:, None]
    transfer = evaluate_ctf(raised, np.fft.rfftfreq(columns, pixel_spacing), frequency_y)
    spectrum = scipy.fft.rfft2(np.asarray(images, dtype=np.float32), workers=-1)
    spectrum *= np.where(transfer > 0, np.float32(-1), np.float32(1))
    return np.asarray(scipy.fft.irfft2(spectrum, s=(rows, columns), workers=-1), np.float32)


def sirt(
    images: NDArray[Any],
    tilt_angles: ArrayLike,
    *,
    shape: tuple[int, int, int],
    iterations: int,
) -> Array:
    """Reconstruct by simultaneous iterations from an empty volume.

    Each iteration adds what explains the images' residuals, spread evenly along every ray, and
    averaged over the rays through every voxel [1]_. Few iterations give smooth volumes with little
    noise; many fit the images and their noise.

    Matter beside the volume along x is seen at high tilt, too. It is reconstructed with the rest,
    as far as rays through the volume meet it, and then cut off.

    Parameters
    ----------
    images : ndarray, shape (n, y, x)
        Aligned projections with the tilt axis along y.
    tilt_angles : array_like, shape (n,)
    shape : tuple of int (z, y, x)
        Of the volume.
    iterations : int

    Returns
    -------
    ndarray of float32, shape (z, y, x)

    Raises
    ------
    ValueError
        If there is no iteration or the numbers of images and angles differ.

    References
    ----------
    .. [1] Gilbert, J. Theor. Biol. 36 (1972), doi:10.1016/0022-5193(72)90180-4.
    """
    if iterations < 1:
        raise ValueError(f"SIRT needs at least one iteration; got {iterations}")
    nz, ny, nx = shape
    angles = np.atleast_1d(np.asarray(tilt_angles, dtype=float))
    tangent = np.abs(np.tan(np.deg2rad(angles))).max()
    side = int(np.ceil(nz * min(tangent, 2.0)))  # steeper rays leave through the sides
    wide = (nz, ny, nx + 2 * side)
    share, seen = _ray_weights(angles, shape=shape, wide=wide, columns=images.shape[2])
    volume = np.zeros(wide, dtype=np.float32)
    for _ in range(iterations):
        residual = images - project(volume, angles, image_shape=images.shape[1:])
        residual *= share[:, None, :]
        volume += seen * back_project(residual, angles, shape=wide, weighting="none")
    return np.ascontiguousarray(volume[:, :, side : side + nx])


def _ray_weights(
    angles: Floats,
    *,
    shape: tuple[int, int, int],
    wide: tuple[int, int, int],
    columns: int,
) -> tuple[Array, Array]:
    """Weights of SIRT: of the rays, shape (n, x), and of the voxels, shape (z, 1, x).

    A ray has one over its length inside the wide volume, or 0 if it misses the volume proper; a
    voxel has one over the number of such rays.
    """
    nz, _, nx = shape
    width = wide[2]
    turn = np.deg2rad(angles)[:, None]
    cosine, sine = np.cos(turn), np.sin(turn)
    place = np.arange(columns) - (columns - 1) / 2
    # The ray at u runs through (x, z) = (u cos t - s sin t, u sin t + s cos t).
    with np.errstate(divide="ignore", invalid="ignore"):
        ends_x = np.sort([(place * cosine + end) / sine for end in (-width / 2, width / 2)], axis=0)
        ends_z = np.sort([(-place * sine + end) / cosine for end in (-nz / 2, nz / 2)], axis=0)
    first, last = np.fmax(ends_x[0], ends_z[0]), np.fmin(ends_x[1], ends_z[1])
    length = np.nan_to_num(np.maximum(last - first, 0))
    used = np.abs(place) <= (nx * np.abs(cosine) + nz * np.abs(sine)) / 2
    share = (used / np.maximum(length, 1)).astype(np.float32)
    rays = np.broadcast_to(used[:, None, :], (len(angles), 1, columns))
    count = back_project(rays, angles, shape=(nz, 1, width), weighting="none")
    return share, np.asarray(1 / np.maximum(count, 1), dtype=np.float32)


class _Lines:
    """Filtered lines of detector pixels and the volume in which they are gathered."""

    def __init__(
        self,
        tilt_angles: ArrayLike,
        *,
        shape: tuple[int, int, int],
        image_shape: tuple[int, ...],
        weighting: Weighting,
        roll_off: float,
        border: Border,
        shifts: ArrayLike | None = None,
    ) -> None:
        if weighting not in {"ramp", "none"}:
            raise ValueError(f"weighting must be 'ramp' or 'none'; got {weighting!r}")
        if border not in {"zero", "edge"}:
            raise ValueError(f"border must be 'zero' or 'edge'; got {border!r}")
        nz, ny, nx = shape
        rows, columns = image_shape
        ramp = weighting == "ramp"
        geometry = LineGeometry.make(
            tilt_angles,
            shape=shape,
            image_shape=(rows, columns),
            shifts=shifts,
            margin=columns // 2 + 8 if ramp else 8,  # the ramp's kernel is that long
        )
        pixels = geometry.n_pixels
        n = len(geometry.cosines)
        gains = np.broadcast_to(kernel_gain(pixels), (n, pixels // 2 + 1))
        if ramp:
            gains = gains * ramp_filter(pixels, roll_off=roll_off)
            gains = gains * angular_weights(tilt_angles)[:, None]
        # Padding the transform keeps samples as they are when it is scaled by the ratio of lengths.
        self._gains = (gains * OVERSAMPLING).astype(np.float32)
        self._geometry = geometry
        self._padding = (geometry.start, pixels - geometry.start - columns)
        self._mode: Literal["constant", "edge"] = "constant" if border == "zero" else "edge"
        self._volume = np.zeros((nz, nx, ny), dtype=np.float32)
        #: Largest height above or below the middle at each tilt, in voxels.
        self.reach = np.abs(geometry.cosines) * (nz - 1) / 2 + np.abs(geometry.sines) * (nx - 1) / 2

    def batches(self) -> list[slice]:
        """Runs of images that fit into a fixed memory."""
        return list(self._geometry.batches(self._volume.shape[2]))

    def add(
        self,
        images: NDArray[Any],
        tilts: slice | NDArray[np.intp],
        *,
        height: float = 0.0,
        inverse_step: float = 0.0,
    ) -> None:
        """Filter the images of some tilts and add them, everywhere or about one height."""
        geometry, pixels = self._geometry, self._geometry.n_pixels
        rows = self._volume.shape[2]
        lines: Array = np.ascontiguousarray(images.transpose(0, 2, 1), dtype=np.float32)
        lines = shift_rows(lines, -geometry.row_offsets[tilts], n_rows=rows)
        lines = np.pad(lines, ((0, 0), self._padding, (0, 0)), mode=self._mode)
        spectrum = scipy.fft.rfft(lines, axis=1, workers=-1) * self._gains[tilts, :, None]
        _gather(
            scipy.fft.irfft(spectrum, n=OVERSAMPLING * pixels, axis=1, workers=-1),
            geometry.cosines[tilts],
            geometry.sines[tilts],
            geometry.centers[tilts],
            height,
            inverse_step,
            self._volume,
        )

    def volume(self) -> Array:
        """What has been gathered, shape (z, y, x)."""
        return np.ascontiguousarray(self._volume.transpose(0, 2, 1))


@njit(cache=True, nogil=True, parallel=True, fastmath=True)
def _gather(
    fine: Array,
    cosines: Floats,
    sines: Floats,
    centers: Floats,
    height: float,
    inverse_step: float,
    volume: Array,
) -> None:
    """Add to every voxel line volume[z, x, :] what fine[tilt, :, :] holds where it falls.

    Weights fall linearly from 1 at `height` to 0 one step away; an inverse step of 0 means all
    heights alike.
    """
    nz, nx, ny = volume.shape
    n_fine = fine.shape[1]
    for z in prange(nz):
        for tilt in range(len(cosines)):
            step = OVERSAMPLING * cosines[tilt]
            depth = (z - (nz - 1) / 2) * sines[tilt]
            start = OVERSAMPLING * (centers[tilt] + depth) - step * (nx - 1) / 2
            above = (z - (nz - 1) / 2) * cosines[tilt] + (nx - 1) / 2 * sines[tilt] - height
            for x in range(nx):
                place = start + step * x
                index = int(np.floor(place)) - 1
                share = 1 - inverse_step * abs(above - x * sines[tilt])
                if index < 0 or index + 3 >= n_fine or share <= 0:
                    continue
                w0, w1, w2, w3 = spline_weights(place)
                near = fine[tilt, index : index + 4]
                weight = np.float32(share)
                w0, w1, w2, w3 = weight * w0, weight * w1, weight * w2, weight * w3
                row = volume[z, x]
                for y in range(ny):
                    row[y] += w0 * near[0, y] + w1 * near[1, y] + w2 * near[2, y] + w3 * near[3, y]
