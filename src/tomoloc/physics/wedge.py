"""What a tilt series leaves of each spatial frequency: the missing wedge and 3D weights.

At tilt t an image holds the central slice of frequencies (u cos t, ky, u sin t), xyz.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import scipy.fft
from numba import njit, prange
from numpy.typing import NDArray

from tomoloc.physics.ctf import evaluate_ctf
from tomoloc.physics.dose import dose_weights
from tomoloc.physics.reconstruction import angular_weights
from tomoloc.types import TiltSeries

__all__ = ["missing_wedge", "tilt_weights"]

Array = NDArray[np.float32]
Floats = NDArray[np.floating[Any]]
Shape = tuple[int, int, int]


def missing_wedge(
    shape: Shape, tilt_range: tuple[float, float] = (-60.0, 60.0)
) -> NDArray[np.bool_]:
    """Tell which frequencies lie between the first and the last central slice.

    Parameters
    ----------
    shape : tuple of int (z, y, x)
        Of the volume; its sides may differ.
    tilt_range : tuple of float (low, high)
        Tilt angles in degrees.

    Returns
    -------
    ndarray of bool, shape (z, y, x // 2 + 1)
        Laid out as by `scipy.fft.rfftn`; True where there is information. Multiplying a transform
        with it keeps volumes real.

    Raises
    ------
    ValueError
        If the range is not in order or spans more than 180 degrees.
    """
    low, high = (float(angle) for angle in tilt_range)
    if not (-90 <= low <= high <= 90):
        raise ValueError(
            f"tilt_range must be two angles in order, from -90 to 90 degrees; got {tilt_range}"
        )
    nz, ny, nx = shape
    z, x = scipy.fft.fftfreq(nz)[:, None], scipy.fft.rfftfreq(nx)
    covered = _between(z, x, low, high)
    # A frequency at Nyquist stands for both signs; one covered sign is enough.
    if nz % 2 == 0:
        covered[nz // 2] |= _between(-z[nz // 2], x, low, high)
    if nx % 2 == 0:
        covered[:, -1] |= _between(-z[:, 0], x[-1:], low, high)
    return np.repeat(covered[:, None, :], ny, axis=1)


def _between(z: NDArray[Any], x: NDArray[Any], low: float, high: float) -> NDArray[np.bool_]:
    """Tell whether the direction of (x, z), x >= 0, lies between two tilts."""
    angle = np.rad2deg(np.arctan2(z, np.maximum(x, 0)))
    tolerance = 1e-9
    inside = (angle >= low - tolerance) & (angle <= high + tolerance)
    # Along x = 0 both directions are one line, and the origin is in every slice.
    upright = (x == 0) & ((high >= 90 - tolerance) | (low <= -90 + tolerance))
    return np.asarray(inside | upright | ((x == 0) & (z == 0)))


def tilt_weights(
    shape: Shape,
    tilt_series: TiltSeries,
    *,
    voxel_spacing: float,
    ctf: bool = True,
    dose: bool = True,
    phase_flipped: bool = False,
    cosine: bool = False,
) -> Array:
    """Transfer of each frequency from a specimen to its weighted back-projection.

    Every image contributes a central slice as thick as 1 / (the box's thickness), with the ramp
    and the angle it stands for, as `tomoloc.physics.reconstruction.back_project` weights it. With
    a full range of undamaged, aberration-free images the weights are 1 as far out as slices
    overlap; farther out single slices stand out.

    Parameters
    ----------
    shape : tuple of int (z, y, x)
        Of the box, larger than the particle.
    tilt_series : TiltSeries
        Angles and, where given, exposure and CTF. The defocus angle is turned with the images, by
        minus the tilt axis angle, so that the axis is y.
    voxel_spacing : float
    ctf : bool
        Multiply by the contrast transfer function, if the series has one: weights are then negative
        where contrast is inverted, which includes low frequencies.
    dose : bool
        Multiply by what the exposure leaves of the signal, if the series has one.
    phase_flipped : bool
        The tomogram was made from phase-flipped images: use the CTF's absolute value.
    cosine : bool
        Multiply each image by the cosine of its tilt, for tomograms of images that were weighted
        so or normalised by their deviation.

    Returns
    -------
    ndarray of float32, shape (z, y, x // 2 + 1)
        Laid out as by `scipy.fft.rfftn`.

    Raises
    ------
    ValueError
        If voxel_spacing is not positive.
    """
    if voxel_spacing <= 0:
        raise ValueError(f"voxel_spacing must be positive (angstrom); got {voxel_spacing}")
    nz, ny, nx = shape
    angles = np.deg2rad(tilt_series.tilt_angles)
    gains = angular_weights(tilt_series.tilt_angles)
    if cosine:
        gains = gains * np.cos(angles)
    # Image transfer over (u, ky) on a grid fine enough for linear interpolation of the CTF.
    thickness = float(max(nx, nz))
    n_along = int(np.ceil(np.hypot(0.5, 0.5) * thickness * _FINENESS)) + 2
    along = np.arange(n_along) / (thickness * _FINENESS)
    across = scipy.fft.fftfreq(ny)
    images = np.broadcast_to(gains[:, None, None], (len(angles), ny, n_along)).astype(np.float32)
    frequency_x, frequency_y = along / voxel_spacing, across[:, None] / voxel_spacing
    if dose and tilt_series.dose_e_per_a2 is not None:
        voltage = 300.0 if tilt_series.ctf is None else tilt_series.ctf.voltage_kv
        radius = np.hypot(frequency_x, frequency_y)
        images *= dose_weights(radius, tilt_series.dose_e_per_a2, voltage)
    if ctf and tilt_series.ctf is not None:
        # Once an image is turned so that its tilt axis is y, its astigmatism is turned too.
        aligned = tilt_series.ctf.defocus_angle - tilt_series.tilt_axis_angle
        turned = replace(tilt_series.ctf, defocus_angle=aligned)
        transfer = evaluate_ctf(turned, frequency_x, frequency_y)
        images *= np.abs(transfer) if phase_flipped else transfer
    out = np.zeros((nz, ny, nx // 2 + 1), dtype=np.float32)
    _add_slices(
        np.ascontiguousarray(images.transpose(0, 2, 1)),
        np.cos(angles),
        np.sin(angles),
        scipy.fft.fftfreq(nz),
        scipy.fft.rfftfreq(nx),
        thickness,
        out,
    )
    return out


_FINENESS = 4  # samples of an image's transfer in one step of the box's transform


@njit(cache=True, nogil=True, parallel=True, fastmath={"contract"})
def _add_slices(
    images: Array,
    cosines: Floats,
    sines: Floats,
    z: Floats,
    x: Floats,
    thickness: float,
    out: Array,
) -> None:
    """Add all central slices, images[tilt, u, ky], to out[kz, ky, kx]."""
    n_rows = out.shape[1]
    for i in prange(len(z)):
        for k in range(len(x)):
            for tilt in range(len(cosines)):
                along = (x[k] * cosines[tilt] + z[i] * sines[tilt]) * thickness
                off = abs(z[i] * cosines[tilt] - x[k] * sines[tilt]) * thickness
                if off >= 1:
                    continue
                # The ramp |u|, averaged over one step where it has its kink.
                u = abs(along)
                ramp = u if u > 0.5 else 0.25 + u * u
                weight = np.float32(ramp * (1 - off))
                place = u * _FINENESS
                index = int(place)
                part = np.float32(place - index)
                for j in range(n_rows):
                    # images hold u >= 0 only; (u, ky) and (-u, -ky) transfer alike
                    row = j if along >= 0 else (n_rows - j) % n_rows
                    near, far = images[tilt, index, row], images[tilt, index + 1, row]
                    out[i, j, k] += weight * (near + part * (far - near))
