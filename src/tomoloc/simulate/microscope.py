"""From a specimen's potential to a tilt series and a tomogram."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import fft

from tomoloc.physics.ctf import electron_wavelength, evaluate_ctf
from tomoloc.physics.dose import damage
from tomoloc.physics.projection import project
from tomoloc.physics.reconstruction import back_project
from tomoloc.types import CTF, FloatArray, TiltSeries, Tomogram, Volume

__all__ = [
    "dose_symmetric_order",
    "expose",
    "interaction_parameter",
    "reconstruct",
]

#: Mean free path of inelastic scattering in ice at 300 kV, Å; a filter takes the losses away
#: (Rice et al. 2018, doi:10.1016/j.jsb.2018.06.007).
_MEAN_FREE_PATH = 3000.0


def interaction_parameter(voltage_kv: float) -> float:
    """Phase in radian that a projected potential of 1 V · Å gives; 6.53e-4 at 300 kV.

    References
    ----------
    .. Kirkland, Advanced Computing in Electron Microscopy (2010), equation 5.6,
       doi:10.1007/978-1-4419-6533-2.
    """
    energy, rest = 1e3 * voltage_kv, 510998.95
    length = electron_wavelength(voltage_kv)
    return 2 * np.pi / (length * energy) * (rest + energy) / (2 * rest + energy)


def dose_symmetric_order(tilt_angles: FloatArray) -> NDArray[np.intp]:
    """Order in which tilts are taken: from the lowest to both sides in turn.

    The sides alternate in pairs (0, +3, -3, -6, +6, +9, ...), which spares the stage half of its
    long moves (Hagen et al. 2017, doi:10.1016/j.jsb.2016.06.007).

    Parameters
    ----------
    tilt_angles : ndarray, shape (n,)
        Sorted.

    Returns
    -------
    ndarray of int, shape (n,)
        Indices into `tilt_angles`, first exposure first.
    """
    start = int(np.argmin(np.abs(tilt_angles)))
    above = list(range(start + 1, len(tilt_angles)))
    below = list(range(start - 1, -1, -1))
    order = [start]
    sides = [above, below]
    while above or below:
        for side in sides:
            if side:
                order.append(side.pop(0))
        sides.reverse()
    return np.array(order)


def expose(
    potential: Volume,
    *,
    tilt_angles: FloatArray,
    dose_e_per_a2: float,
    ctf: CTF,
    rng: np.random.Generator,
    thickness: float = 0.0,
) -> TiltSeries:
    """Take a dose-symmetric tilt series of a specimen that scatters weakly.

    The counts of each pixel are Poisson numbers around ::

        N exp(-thickness / (mean free path · cos t)) (1 + 2 sigma F⁻¹[CTF · damage · F V_t])

    with N the dose of one image times the pixel's area and V_t the potential projected at tilt t.
    This is the weak-phase approximation [1]_: the phase sigma V_t is small against one. Noise
    comes after the optics, as counting does.

    Parameters
    ----------
    potential : Volume, data shape (z, y, x)
        In volt above ice.
    tilt_angles : ndarray, shape (n,)
        Sorted.
    dose_e_per_a2 : float
        Of the whole series, spread evenly; infinite for images without noise or damage.
    ctf : CTF
        For each of the n tilts.
    rng : numpy.random.Generator
        Of the counting.
    thickness : float
        Of the ice, in angstrom.

    Returns
    -------
    TiltSeries
        Images of shape (n, y, x): electrons counted, or their expectation without noise.

    References
    ----------
    .. [1] Vulović et al., J. Struct. Biol. 183 (2013), doi:10.1016/j.jsb.2013.05.008.
    """
    n, spacing = len(tilt_angles), potential.voxel_spacing
    rank = np.empty(n)
    rank[dose_symmetric_order(tilt_angles)] = np.arange(n)
    projected = project(potential.data, tilt_angles, border="periodic") * np.float32(spacing)
    ny, nx = projected.shape[1:]
    fy, fx = fft.fftfreq(ny, spacing)[:, None], fft.rfftfreq(nx, spacing)
    transfer = evaluate_ctf(ctf, fx, fy)
    after = None
    if np.isfinite(dose_e_per_a2):
        before = rank / n * dose_e_per_a2
        after = (rank + 1) / n * dose_e_per_a2
        kept = damage(np.hypot(fx, fy), before=before, after=after, voltage_kv=ctf.voltage_kv)
        transfer = transfer * kept.astype(np.float32)
    spectrum = fft.rfft2(projected, workers=-1) * transfer
    contrast = fft.irfft2(spectrum, s=(ny, nx), workers=-1)
    intensity = 1 + 2 * interaction_parameter(ctf.voltage_kv) * contrast
    if after is not None:
        path = thickness / _MEAN_FREE_PATH / np.cos(np.deg2rad(tilt_angles))
        electrons = dose_e_per_a2 / n * spacing**2 * np.exp(-path)
        images = rng.poisson(np.maximum(intensity, 0) * electrons[:, None, None])
    else:
        images = intensity
    return TiltSeries(
        tilt_angles=tilt_angles,
        images=images.astype(np.float32),
        pixel_spacing=spacing,
        dose_e_per_a2=after,
        ctf=ctf,
    )


def reconstruct(
    tilt_series: TiltSeries, *, shape: tuple[int, int, int], name: str = "", roll_off: float = 0.9
) -> Tomogram:
    """Reconstruct by weighted back-projection, with mean 0 and standard deviation 1.

    Each image is divided by its mean first, so that its contrast and not its brightness counts.

    Parameters
    ----------
    tilt_series : TiltSeries
        With images whose pixels are as large as the voxels of the tomogram.
    shape : tuple of int
        Of the tomogram, zyx.
    name : str
    roll_off : float
        See `tomoloc.physics.reconstruction.back_project`.
    """
    images, spacing = tilt_series.images, tilt_series.pixel_spacing
    if images is None or spacing is None:
        raise ValueError("a reconstruction needs images and their pixel_spacing; got none")
    contrast = images / images.mean(axis=(1, 2), keepdims=True) - 1
    data = back_project(contrast, tilt_series.tilt_angles, shape=shape, roll_off=roll_off)
    data -= data.mean()
    data /= max(float(data.std()), 1e-30)
    return Tomogram(data=data, voxel_spacing=spacing, name=name, tilt_series=tilt_series)
