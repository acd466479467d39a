"""Radiation damage: how the signal at each resolution fades with exposure."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tomoloc.physics.ctf import electron_wavelength

__all__ = ["critical_dose", "damage", "dose_weights"]

_ELECTRON_MASS_KEV = 510.99895
_HC_KEV_ANGSTROM = 12.398419843

Floats = NDArray[np.floating[Any]]


def critical_dose(frequency: ArrayLike, *, voltage_kv: float = 300.0) -> Floats:
    """Exposure in e/Å² after which the signal's amplitude has fallen to exp(-1/2).

    The curve measured at 300 kV [1]_, 0.24499 k^-1.6649 + 2.8141 with k in 1/Å. Damage goes with
    the inverse square of the electrons' speed, which gives the 0.8 that [1]_ uses at 200 kV.

    Parameters
    ----------
    frequency : array_like
        Spatial frequencies, in 1/angstrom; infinite exposure is allowed at 0.
    voltage_kv : float

    References
    ----------
    .. [1] Grant & Grigorieff, eLife 4 (2015), doi:10.7554/eLife.06980.
    """
    k = np.abs(np.asarray(frequency, dtype=float))
    with np.errstate(divide="ignore"):
        curve = 0.24499 * k**-1.6649 + 2.8141
    return np.asarray(curve * _speed(voltage_kv) ** 2 / _speed(300.0) ** 2)


def dose_weights(
    frequency: ArrayLike, dose_e_per_a2: ArrayLike, voltage_kv: float = 300.0
) -> Floats:
    """Fraction exp(-N / (2 Nc)) of the amplitude that is left after an exposure N.

    It is what an exposure filter multiplies images with, and what damage leaves of the signal.

    Parameters
    ----------
    frequency : array_like, shape (...)
        In 1/angstrom.
    dose_e_per_a2 : array_like, shape (m...)
        Accumulated exposure; a single number adds no axis.
    voltage_kv : float

    Returns
    -------
    ndarray, shape (m..., ...)

    Raises
    ------
    ValueError
        If an exposure is negative.

    References
    ----------
    .. [1] Grant & Grigorieff, eLife 4 (2015), doi:10.7554/eLife.06980.
    """
    return np.exp(-_exponent(frequency, dose_e_per_a2, voltage_kv))


def damage(
    frequency: ArrayLike, *, before: ArrayLike, after: ArrayLike, voltage_kv: float = 300.0
) -> Floats:
    """Mean amplitude left while an image is taken, for simulation.

    The mean of `dose_weights` over the image's own exposure, ``before`` to ``after`` in e/Å².

    Parameters
    ----------
    frequency : array_like, shape (...)
        In 1/angstrom.
    before, after : array_like, shape (m...)
        Exposure accumulated at the start and at the end of each image.
    voltage_kv : float

    Returns
    -------
    ndarray, shape (m..., ...)

    Raises
    ------
    ValueError
        If an exposure is negative or ends before it starts.
    """
    start, stop = np.broadcast_arrays(np.asarray(before, float), np.asarray(after, float))
    if (stop < start).any():
        raise ValueError("an image's exposure must not end before it starts")
    left = dose_weights(frequency, start, voltage_kv)
    lost = _exponent(frequency, stop - start, voltage_kv)
    # (1 - exp(-x)) / x, which is 1 at x = 0
    mean = np.divide(-np.expm1(-lost), lost, out=np.ones_like(lost), where=lost > 0)
    return left * mean


def _exponent(frequency: ArrayLike, dose: ArrayLike, voltage_kv: float) -> Floats:
    """N / (2 Nc), shape of `dose` followed by that of `frequency`."""
    exposure = np.asarray(dose, dtype=float)
    if not (exposure >= 0).all():
        raise ValueError("dose_e_per_a2 must not be negative")
    critical = critical_dose(frequency, voltage_kv=voltage_kv)
    return np.asarray(exposure[(..., *(None,) * critical.ndim)] / (2 * critical))


def _speed(voltage_kv: float) -> float:
    """Speed of the electrons in units of that of light."""
    momentum = _HC_KEV_ANGSTROM / electron_wavelength(voltage_kv)
    return float(momentum / np.hypot(momentum, _ELECTRON_MASS_KEV))
