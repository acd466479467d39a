"""What solids other than molecules do to the beam: their potential and the electrons they take."""

from __future__ import annotations

from dataclasses import dataclass

import gemmi
import numpy as np

from tomoloc.physics.ctf import electron_wavelength
from tomoloc.physics.potential import ICE_POTENTIAL, POTENTIAL_PER_SCATTERING

__all__ = [
    "AMORPHOUS_CARBON",
    "CRYSTALLINE_ICE",
    "GOLD",
    "ICE_MEAN_FREE_PATH",
    "VITREOUS_ICE",
    "Element",
    "Water",
]

#: Mean free path of all scattering that takes electrons from images of ice at 300 kV, in Å
#: (Rice et al. 2018, doi:10.1016/j.jsb.2018.06.007).
ICE_MEAN_FREE_PATH = 3000.0
#: Half angle that an objective aperture of 100 µm lets pass, in radian.
_APERTURE = 0.014
_REST_KEV = 510.99895
_BOHR = 0.529177


@dataclass(frozen=True, kw_only=True)
class Element:
    """A solid of one element.

    Parameters
    ----------
    symbol : str
    density_g_per_cm3 : float
    """

    symbol: str
    density_g_per_cm3: float

    @property
    def atoms(self) -> float:
        """Number in an Å³."""
        return self.density_g_per_cm3 / gemmi.Element(self.symbol).weight * 0.602214

    @property
    def potential(self) -> float:
        """Mean above vacuum in volt, of isolated atoms as `ICE_POTENTIAL` is."""
        return POTENTIAL_PER_SCATTERING * self.atoms * sum(gemmi.Element(self.symbol).c4322.a)

    def loss(self, voltage_kv: float) -> float:
        """Fraction of electrons in 1/Å that lose energy or that the objective aperture stops.

        Inelastic scattering after the measured ``106 F (E / Em) / ln(2 b E / Em)`` nm [1]_, with
        E in keV, the collection angle b in mrad and Em = 7.6 Z^0.36; elastic scattering beyond
        the aperture after Lenz's cross-section of a screened atom [2]_.

        References
        ----------
        .. [1] Malis, Cheng & Egerton, J. Electron Microsc. Tech. 8 (1988),
           doi:10.1002/jemt.1060080206.
        .. [2] Reimer & Kohl, Transmission Electron Microscopy (2008), chapter 5,
           doi:10.1007/978-0-387-40093-8.
        """
        z = gemmi.Element(self.symbol).atomic_number
        ratio = voltage_kv / (7.6 * z**0.36)
        inelastic = 10 * 106 * _squared_speed(voltage_kv) * ratio / np.log(2e3 * _APERTURE * ratio)
        wavelength = electron_wavelength(voltage_kv)
        screening = wavelength / (2 * np.pi * _BOHR * z ** (-1 / 3))
        total = z ** (4 / 3) * (wavelength * (1 + voltage_kv / _REST_KEV)) ** 2 / np.pi
        beyond = total / (1 + (_APERTURE / screening) ** 2)
        return float(1 / inelastic + self.atoms * beyond)


@dataclass(frozen=True, kw_only=True)
class Water:
    """Frozen water.

    Parameters
    ----------
    potential : float
        Mean above vacuum, in volt.
    mean_free_path : float
        Of all scattering that takes electrons from images at 300 kV, in angstrom.
    """

    potential: float = ICE_POTENTIAL
    mean_free_path: float = ICE_MEAN_FREE_PATH

    def loss(self, voltage_kv: float) -> float:
        """Fraction of electrons in 1/Å that are lost; it goes with the inverse squared speed."""
        faster = voltage_kv * _squared_speed(voltage_kv) / (300 * _squared_speed(300.0))
        return float(1 / (self.mean_free_path * faster))


def _squared_speed(voltage_kv: float) -> float:
    """Square of the electrons' speed against what it would be without relativity."""
    return float((1 + voltage_kv / (2 * _REST_KEV)) / (1 + voltage_kv / _REST_KEV) ** 2)


GOLD = Element(symbol="Au", density_g_per_cm3=19.3)
#: Evaporated films are less dense than graphite.
AMORPHOUS_CARBON = Element(symbol="C", density_g_per_cm3=1.8)
VITREOUS_ICE = Water()
#: Of 0.917 g/cm³; diffraction sends more electrons away than vitreous ice does.
CRYSTALLINE_ICE = Water(potential=ICE_POTENTIAL * 0.917 / 0.93, mean_free_path=2000.0)
