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

    def inelastic_mean_free_path(self, voltage_kv: float) -> float:
        """Way in angstrom after which 1 - 1/e of the electrons have lost energy.

        Measured to go as ``106 F (E / Em) / ln(2 b E / Em)`` nm [1]_, with E in keV, the angle b
        of collection in mrad, Em = 7.6 Z^0.36 and F = (1 + E / 1022) / (1 + E / 511)².

        References
        ----------
        .. [1] Malis, Cheng & Egerton, J. Electron Microsc. Tech. 8 (1988),
           doi:10.1002/jemt.1060080206.
        """
        ratio = voltage_kv / (7.6 * self._atomic_number**0.36)
        speed = _squared_speed(voltage_kv)
        return float(1060 * speed * ratio / np.log(2e3 * _APERTURE * ratio))

    def elastic_cross_section(self, voltage_kv: float, *, beyond: float = 0.0) -> float:
        """Cross-section in Å² of an atom for elastic scattering by more than an angle (radian).

        Lenz's, of an atom screened at a radius of a_H Z^(-1/3) [1]_.

        References
        ----------
        .. [1] Reimer & Kohl, Transmission Electron Microscopy (2008), chapter 5,
           doi:10.1007/978-0-387-40093-8.
        """
        wavelength = electron_wavelength(voltage_kv)
        screening = wavelength / (2 * np.pi * _BOHR) * self._atomic_number ** (1 / 3)
        relativistic = wavelength * (1 + voltage_kv / _REST_KEV)
        total = self._atomic_number ** (4 / 3) * relativistic**2 / np.pi
        return float(total / (1 + (beyond / screening) ** 2))

    def loss(self, voltage_kv: float) -> float:
        """Fraction of electrons in 1/Å that lose energy or miss an objective aperture of 100 µm."""
        elastic = self.elastic_cross_section(voltage_kv, beyond=_APERTURE)
        return 1 / self.inelastic_mean_free_path(voltage_kv) + self.atoms * elastic

    @property
    def _atomic_number(self) -> int:
        return int(gemmi.Element(self.symbol).atomic_number)


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
