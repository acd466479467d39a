"""Contrast transfer function of the microscope."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tomoloc.types import CTF

__all__ = ["aberration_phase", "electron_wavelength", "evaluate_ctf", "interaction_parameter"]


def electron_wavelength(voltage_kv: float) -> float:
    """Relativistic wavelength of electrons in angstrom; 0.0197 at 300 kV.

    h / sqrt(2 m e V (1 + e V / (2 m c^2))) with the CODATA constants put in [1]_.

    Raises
    ------
    ValueError
        If the voltage is not positive.

    References
    ----------
    .. [1] Kirkland, Advanced Computing in Electron Microscopy (2010), equation 2.5,
       doi:10.1007/978-1-4419-6533-2.
    """
    if voltage_kv <= 0:
        raise ValueError(f"voltage_kv must be positive; got {voltage_kv}")
    volts = 1e3 * voltage_kv
    return float(12.2642596588 / np.sqrt(volts * (1 + 0.978475598e-6 * volts)))


def interaction_parameter(voltage_kv: float) -> float:
    """Phase in radian that a projected potential of 1 V · Å gives; 6.53e-4 at 300 kV.

    References
    ----------
    .. [1] Kirkland, Advanced Computing in Electron Microscopy (2010), equation 5.6,
       doi:10.1007/978-1-4419-6533-2.
    """
    energy, rest = 1e3 * voltage_kv, 510998.95
    length = electron_wavelength(voltage_kv)
    return 2 * np.pi / (length * energy) * (rest + energy) / (2 * rest + energy)


def evaluate_ctf(ctf: CTF, frequency_x: ArrayLike, frequency_y: ArrayLike) -> NDArray[np.float32]:
    """Contrast transfer of each image at spatial frequencies.

    With underfocus positive [1]_ [2]_::

        CTF(g) = -sin(chi(g) + phase shift + arcsin(amplitude contrast))
        chi(g) = pi lambda g^2 (defocus(g) - lambda^2 g^2 Cs / 2)
        defocus(g) = (u + v + (u - v) cos 2 (angle(g) - defocus angle)) / 2

    It is negative at low frequencies, so that protein, whose potential is positive, comes out
    dark at underfocus, as a microscope gives it. At the origin it is minus the amplitude contrast.

    Parameters
    ----------
    ctf : CTF
        Parameters of n images.
    frequency_x, frequency_y : array_like
        Spatial frequencies in 1/angstrom; they broadcast to one shape.

    Returns
    -------
    ndarray of float32, shape (n, ...)

    References
    ----------
    .. [1] Mindell & Grigorieff, J. Struct. Biol. 142 (2003), doi:10.1016/S1047-8477(03)00069-8.
    .. [2] Rohou & Grigorieff, J. Struct. Biol. 192 (2015), doi:10.1016/j.jsb.2015.08.008.
    """
    return -np.sin(aberration_phase(ctf, frequency_x, frequency_y)).astype(np.float32)


def aberration_phase(
    ctf: CTF, frequency_x: ArrayLike, frequency_y: ArrayLike
) -> NDArray[np.floating[Any]]:
    """Phase of which `evaluate_ctf` is minus the sine, in radian.

    Parameters
    ----------
    ctf : CTF
        Parameters of n images.
    frequency_x, frequency_y : array_like
        Spatial frequencies in 1/angstrom; they broadcast to one shape.

    Returns
    -------
    ndarray, shape (n, ...)
    """
    x, y = np.broadcast_arrays(
        np.asarray(frequency_x, dtype=float), np.asarray(frequency_y, dtype=float)
    )
    wavelength = electron_wavelength(ctf.voltage_kv)
    squared = x**2 + y**2
    each = (slice(None), *(None,) * x.ndim)  # one value an image against all frequencies
    u, v = 1e4 * ctf.defocus_u_um[each], 1e4 * ctf.defocus_v_um[each]
    defocus = (u + v) / 2
    if (u != v).any():
        axis = np.deg2rad(ctf.defocus_angle)[each]
        defocus = defocus + (u - v) / 2 * np.cos(2 * (np.arctan2(y, x) - axis))
    aberration = 1e7 * ctf.spherical_aberration_mm
    chi = np.pi * wavelength * squared * (defocus - wavelength**2 * squared * aberration / 2)
    shift = np.deg2rad(cast("NDArray[Any]", ctf.phase_shift))[each]
    return np.asarray(chi + shift + np.arcsin(ctf.amplitude_contrast))
