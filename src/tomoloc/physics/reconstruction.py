"""Reconstruction of a volume from its tilt series.

Weighted back-projection is one pass of the projection's adjoint over ramp-filtered images. With a
transfer function for each height along the beam, it corrects the CTF in three dimensions. SIRT
iterates the projection and its adjoint.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal

import numpy as np
import scipy.fft
from numba import njit, prange
from numpy.typing import ArrayLike, NDArray

from tomoloc.physics.ctf import evaluate_ctf
from tomoloc.physics.imaging import Transfer, image_depths
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
    "back_project_depths",
    "phase_flip",
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
    device: str | None = None,
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
    device : str, optional
        Of torch, such as "cuda"; the processor's own loops without.

    Returns
    -------
    ndarray of float32, shape (z, y, x)

    Raises
    ------
    ValueError
        If the numbers of images, angles and shifts differ, or an option is unknown.
    """
    lines = _Lines(
        images.shape,
        tilt_angles,
        shape=shape,
        weighting=weighting,
        roll_off=roll_off,
        border=border,
        shifts=shifts,
    )
    for batch in lines.geometry.batches(shape[1]):
        if device is None:
            tilts = np.arange(batch.start, batch.stop)
            lines.gather(lines.spectra(images[batch], batch), tilts)
        else:
            lines.gather_on(device, images[batch], batch)
    return lines.volume()


def back_project_depths(
    images: NDArray[Any],
    tilt_angles: ArrayLike,
    *,
    shape: tuple[int, int, int],
    transfer: Transfer,
    step: float = np.inf,
    weighting: Weighting = "ramp",
    roll_off: float = 0.9,
    border: Border = "zero",
) -> Array:
    """Reconstruct a volume, each height along the beam through a transfer function of its own.

    With `phase_flip`, this is 3D-CTF correction [1]_: defocus is right all across tilted images
    and through the thickness of the specimen. The height of the point (x, y, z), measured from the
    volume's middle, is z cos t - x sin t at tilt t.

    Parameters
    ----------
    images, tilt_angles, shape, roll_off, border
        As of `back_project`. Along y, images repeat themselves.
    transfer : callable
        See `tomoloc.physics.imaging.Transfer`.
    step : float
        Greatest distance of planes of height in voxels, see `tomoloc.physics.imaging.depth_step`.
        Between them is interpolated; infinite for a single plane.
    weighting : {"ramp", "none"}
        "none" is the adjoint of `tomoloc.physics.imaging.image_depths`.

    Returns
    -------
    ndarray of float32, shape (z, y, x)

    Raises
    ------
    ValueError
        As of `back_project`, or if `step` is not positive.

    References
    ----------
    .. [1] Turoňová et al., J. Struct. Biol. 199 (2017), doi:10.1016/j.jsb.2017.07.007.
    """
    if not step > 0:
        raise ValueError(f"step must be positive (voxels); got {step}")
    lines = _Lines(
        images.shape,
        tilt_angles,
        shape=shape,
        weighting=weighting,
        roll_off=roll_off,
        border=border,
    )
    nz, ny, nx = shape
    geometry = lines.geometry
    reach = np.abs(geometry.cosines) * (nz - 1) / 2 + np.abs(geometry.sines) * (nx - 1) / 2
    counts = np.where(np.isinf(step) | (reach == 0), 1, np.ceil(2 * reach / step) + 1).astype(int)
    fx, fy = np.fft.rfftfreq(geometry.n_pixels)[:, None], np.fft.fftfreq(ny)
    for batch in geometry.batches(ny * counts.max()):
        tilts = np.arange(batch.start, batch.stop)
        spectra = scipy.fft.fft(lines.spectra(images[batch], batch), axis=2, workers=-1)
        planes, heights = [], []
        for tilt, spectrum in zip(tilts, spectra, strict=True):
            heights.append(
                np.linspace(-reach[tilt], reach[tilt], counts[tilt])
                if counts[tilt] > 1
                else np.zeros(1)
            )
            passed = spectrum * np.conj(transfer(int(tilt), heights[-1], fx, fy))
            planes.append(scipy.fft.ifft(passed, axis=2, workers=-1, overwrite_x=True))
        density = np.divide(counts - 1, 2 * reach, out=np.zeros_like(reach), where=counts > 1)
        owner = np.repeat(tilts, counts[batch])
        lines.gather(
            np.concatenate(planes), owner, heights=np.concatenate(heights), density=density[owner]
        )
    return lines.volume()


def phase_flip(ctf: CTF, *, voxel_spacing: float) -> Transfer:
    """Transfer function that turns the phases where the CTF reverses contrast.

    It is minus the sign of the CTF, which is negative at low frequencies, so that dark stays dark.
    Defocus is that of `ctf` in the middle of the volume; height, towards the electron source,
    lessens the underfocus.
    """

    def transfer(image: int, heights: Floats, fx: Floats, fy: Floats) -> Array:
        raised = 1e-4 * voxel_spacing * heights
        here = replace(
            ctf,
            defocus_u_um=ctf.defocus_u_um[image] - raised,
            defocus_v_um=ctf.defocus_v_um[image] - raised,
            defocus_angle=ctf.defocus_angle[image],
            phase_shift=np.asarray(ctf.phase_shift)[image],
        )
        values = evaluate_ctf(here, fx / voxel_spacing, fy / voxel_spacing)
        return np.where(values > 0, np.float32(-1), np.float32(1))

    return transfer


def sirt(
    images: NDArray[Any],
    tilt_angles: ArrayLike,
    *,
    shape: tuple[int, int, int],
    iterations: int,
    transfer: Transfer | None = None,
    step: float = np.inf,
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
    transfer : callable, optional
        Of the volume's heights, see `back_project_depths`; a factor of ±1 for each frequency.
    step : float
        See `back_project_depths`.

    Returns
    -------
    ndarray of float32, shape (z, y, x)

    Raises
    ------
    ValueError
        If there is no iteration, the numbers of images and angles differ, or images to which a
        transfer function applies are not as large as the volume's slices.

    References
    ----------
    .. [1] Gilbert, J. Theor. Biol. 36 (1972), doi:10.1016/0022-5193(72)90180-4.
    """
    if iterations < 1:
        raise ValueError(f"SIRT needs at least one iteration; got {iterations}")
    nz, ny, nx = shape
    if transfer is not None and images.shape[1:] != (ny, nx):
        raise ValueError(
            f"with a transfer function, images must have the volume's sides {(ny, nx)};"
            f" got {images.shape[1:]}"
        )
    angles = np.atleast_1d(np.asarray(tilt_angles, dtype=float))
    tangent = np.abs(np.tan(np.deg2rad(angles))).max()
    side = int(np.ceil(nz * min(tangent, 2.0)))  # steeper rays leave through the sides
    wide = (nz, ny, nx + 2 * side)
    share, seen = _ray_weights(angles, shape=shape, wide=wide, columns=images.shape[2])
    volume = np.zeros(wide, dtype=np.float32)
    for _ in range(iterations):
        if transfer is None:
            residual = images - project(volume, angles, image_shape=images.shape[1:])
            residual *= share[:, None, :]
            step_volume = back_project(residual, angles, shape=wide, weighting="none")
        else:
            expected = image_depths(volume, angles, transfer=transfer, step=step)
            residual = images - expected[:, :, side : side + nx]
            residual *= share[:, None, :]
            step_volume = back_project_depths(
                residual, angles, shape=wide, transfer=transfer, step=step, weighting="none"
            )
        volume += seen * step_volume
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
    """Filters lines of detector pixels and gathers them in a volume."""

    def __init__(
        self,
        image_shape: tuple[int, ...],
        tilt_angles: ArrayLike,
        *,
        shape: tuple[int, int, int],
        weighting: Weighting,
        roll_off: float,
        border: Border,
        shifts: ArrayLike | None = None,
    ) -> None:
        n = np.atleast_1d(np.asarray(tilt_angles)).shape[0]
        if len(image_shape) != 3 or image_shape[0] != n:
            raise ValueError(f"expected images of shape ({n}, y, x), one a tilt; got {image_shape}")
        if weighting not in {"ramp", "none"}:
            raise ValueError(f"weighting must be 'ramp' or 'none'; got {weighting!r}")
        if border not in {"zero", "edge"}:
            raise ValueError(f"border must be 'zero' or 'edge'; got {border!r}")
        _, rows, columns = image_shape
        ramp = weighting == "ramp"
        self.geometry = LineGeometry.make(
            tilt_angles,
            shape=shape,
            image_shape=(rows, columns),
            shifts=shifts,
            margin=columns // 2 + 8 if ramp else 8,  # the ramp's kernel is that long
        )
        pixels, start = self.geometry.n_pixels, self.geometry.start
        gains = np.broadcast_to(kernel_gain(pixels), (n, pixels // 2 + 1))
        if ramp:
            gains = gains * ramp_filter(pixels, roll_off=roll_off)
            gains = gains * angular_weights(tilt_angles)[:, None]
        # Padding the transform keeps samples as they are when it is scaled by the ratio of lengths.
        self._gains = (gains * OVERSAMPLING).astype(np.float32)
        self._padding = ((0, 0), (start, pixels - start - columns), (0, 0))
        self._mode: Literal["constant", "edge"] = "constant" if border == "zero" else "edge"
        self._volume = np.zeros((shape[0], shape[2], shape[1]), dtype=np.float32)

    def padded(self, images: NDArray[Any], batch: slice) -> Array:
        """Lines of some images, shape (n, n_pixels, y)."""
        lines: Array = np.ascontiguousarray(images.transpose(0, 2, 1), dtype=np.float32)
        offsets = -self.geometry.row_offsets[batch]
        lines = shift_rows(lines, offsets, n_rows=self._volume.shape[2])
        return np.pad(lines, self._padding, mode=self._mode)

    def spectra(self, images: NDArray[Any], batch: slice) -> NDArray[np.complex64]:
        """Transforms along x of some images' lines, filtered, shape (n, fx, y)."""
        lines = self.padded(images, batch)
        return scipy.fft.rfft(lines, axis=1, workers=-1) * self._gains[batch, :, None]

    def gather_on(self, device: str, images: NDArray[Any], batch: slice) -> None:
        """Filter the lines of some images and add them everywhere, on a device of torch."""
        from tomoloc.physics.lines_torch import back_project_lines

        self._volume += back_project_lines(
            self.padded(images, batch),
            self.geometry,
            batch=batch,
            gains=self._gains[batch],
            shape=self._volume.shape,
            device=device,
        )

    def gather(
        self,
        spectra: NDArray[Any],
        tilts: NDArray[np.intp],
        *,
        heights: Floats | None = None,
        density: Floats | None = None,
    ) -> None:
        """Add lines of these tilts: everywhere, or about planes of some height.

        Away from a plane, weights fall by its `density` per voxel.
        """
        geometry = self.geometry
        everywhere = np.zeros(len(tilts))
        pixels = OVERSAMPLING * geometry.n_pixels
        _gather(
            scipy.fft.irfft(spectra, n=pixels, axis=1, workers=-1, overwrite_x=True),
            geometry.cosines[tilts],
            geometry.sines[tilts],
            geometry.centers[tilts],
            everywhere if heights is None else heights,
            everywhere if density is None else density,
            self._volume,
        )

    def volume(self) -> Array:
        """What has been gathered, shape (z, y, x)."""
        return np.ascontiguousarray(self._volume.transpose(0, 2, 1))


@njit(cache=True, nogil=True, parallel=True, fastmath={"contract"})
def _gather(
    fine: Array,
    cosines: Floats,
    sines: Floats,
    centers: Floats,
    heights: Floats,
    density: Floats,
    volume: Array,
) -> None:
    """Add to every voxel line volume[z, x, :] what fine[tilt, :, :] holds where it falls.

    Weights fall from 1 at each one's height by its density per voxel; 0 means everywhere alike.
    """
    nz, nx, ny = volume.shape
    n_fine = fine.shape[1]
    for z in prange(nz):
        for tilt in range(len(cosines)):
            step = OVERSAMPLING * cosines[tilt]
            depth = (z - (nz - 1) / 2) * sines[tilt]
            start = OVERSAMPLING * (centers[tilt] + depth) - step * (nx - 1) / 2
            above = (z - (nz - 1) / 2) * cosines[tilt] + (nx - 1) / 2 * sines[tilt] - heights[tilt]
            for x in range(nx):
                place = start + step * x
                index = int(np.floor(place)) - 1
                share = 1 - density[tilt] * abs(above - x * sines[tilt])
                if index < 0 or index + 3 >= n_fine or share <= 0:
                    continue
                w0, w1, w2, w3 = spline_weights(place)
                near = fine[tilt, index : index + 4]
                weight = np.float32(share)
                w0, w1, w2, w3 = weight * w0, weight * w1, weight * w2, weight * w3
                row = volume[z, x]
                for y in range(ny):
                    row[y] += w0 * near[0, y] + w1 * near[1, y] + w2 * near[2, y] + w3 * near[3, y]
