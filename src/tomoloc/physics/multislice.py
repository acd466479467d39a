"""Multislice: the wave itself, slice by slice, to check the weak-phase images on a small box."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import fft

from tomoloc.physics.ctf import aberration_phase, electron_wavelength, interaction_parameter
from tomoloc.types import CTF, Volume

__all__ = ["multislice"]


def multislice(
    potential: Volume, *, ctf: CTF, beam_tilt: ArrayLike = (0.0, 0.0)
) -> NDArray[np.floating[Any]]:
    """Image a specimen without the assumption that it scatters weakly or is thin.

    The wave passes each layer of voxels as ``exp(i sigma V dz e^(i w))`` and the space between as
    ``exp(-i pi lambda dz g²)`` [1]_, then the lens as ``exp(i chi(g))``; w is the arc sine of the
    amplitude contrast. It comes from positive z. With a tilted beam, all frequencies are counted
    from its direction. The volume repeats itself along x and y.

    Parameters
    ----------
    potential : Volume, data shape (z, y, x)
        In volt; scattering up to Nyquist needs voxels of some angstrom.
    ctf : CTF
        Of one image; defocus is that of the volume's middle.
    beam_tilt : array_like, shape (2,)
        Along x and y, in radian.

    Returns
    -------
    ndarray, shape (y, x)
        Intensity, 1 where there is nothing.

    Raises
    ------
    ValueError
        If there are CTF parameters for more than one image.

    References
    ----------
    .. [1] Kirkland, Advanced Computing in Electron Microscopy (2010), chapter 6,
       doi:10.1007/978-1-4419-6533-2.
    """
    if len(ctf) != 1:
        raise ValueError(f"expected CTF parameters for one image; got {len(ctf)}")
    nz, ny, nx = potential.shape
    spacing = potential.voxel_spacing
    wavelength, sigma = electron_wavelength(ctf.voltage_kv), interaction_parameter(ctf.voltage_kv)
    tilt = np.asarray(beam_tilt, dtype=float) / wavelength
    gx, gy = fft.fftfreq(nx, spacing) + tilt[0], fft.fftfreq(ny, spacing)[:, None] + tilt[1]
    turn = np.pi * wavelength * (gx**2 + gy**2)
    ahead = np.exp(-1j * turn * spacing)
    absorbing = np.exp(1j * np.arcsin(ctf.amplitude_contrast))
    wave = np.ones((ny, nx), dtype=complex)
    for layer in potential.data[::-1]:
        wave *= np.exp(1j * sigma * spacing * layer * absorbing)
        wave = fft.ifft2(fft.fft2(wave) * ahead)
    lens = np.exp(1j * aberration_phase(replace(ctf, amplitude_contrast=0.0), gx, gy)[0])
    # The phase plate acts on all but the beam that was not scattered.
    lens[0, 0] *= np.exp(-1j * np.deg2rad(np.asarray(ctf.phase_shift)[0]))
    back = np.exp(1j * turn * spacing * (nz + 1) / 2)
    return np.abs(fft.ifft2(fft.fft2(wave) * back * lens)) ** 2
