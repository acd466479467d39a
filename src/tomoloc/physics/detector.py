"""Direct electron detectors: how much of signal and noise they pass at each spatial frequency."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.interpolate import PchipInterpolator

__all__ = ["DETECTORS", "Detector", "find_detector"]

Floats = NDArray[np.floating[Any]]


@dataclass(frozen=True, kw_only=True)
class Detector:
    """Transfer curves of a counting detector; approximate, read off published ones.

    Parameters
    ----------
    mtf : tuple of float
        Modulation transfer at evenly spaced frequencies from 0 to Nyquist of the physical pixels.
    dqe : tuple of float
        Detective quantum efficiency, likewise.
    source : str
    """

    mtf: tuple[float, ...]
    dqe: tuple[float, ...]
    source: str = ""

    @property
    def efficiency(self) -> float:
        """Fraction of the electrons that are counted: the DQE at zero frequency."""
        return self.dqe[0]

    def evaluate_mtf(self, frequency: ArrayLike, *, pixel: float) -> Floats:
        """Part of the signal's amplitude that the detector passes.

        Parameters
        ----------
        frequency : array_like
            In 1/angstrom; beyond Nyquist the value there holds.
        pixel : float
            Of the physical pixels at the specimen.
        """
        return _interpolate(self.mtf, frequency, pixel)

    def evaluate_dqe(self, frequency: ArrayLike, *, pixel: float) -> Floats:
        """Ratio of the squared signal-to-noise ratios behind and before the detector.

        See `evaluate_mtf` for the parameters.
        """
        return _interpolate(self.dqe, frequency, pixel)

    def signal_transfer(self, frequency: ArrayLike, *, pixel: float) -> Floats:
        """What the contrast is multiplied with before electrons are counted, 1 at frequency 0.

        Counting a fraction `efficiency` of the electrons with contrast times sqrt(DQE / DQE(0)),
        and passing the counts through `noise_transfer`, gives both the MTF and the DQE [1]_.

        References
        ----------
        .. [1] Vulović et al., J. Struct. Biol. 183 (2013), doi:10.1016/j.jsb.2013.05.008.
        """
        return np.sqrt(self.evaluate_dqe(frequency, pixel=pixel) / self.efficiency)

    def noise_transfer(self, frequency: ArrayLike, *, pixel: float) -> Floats:
        """What the counts are multiplied with: the root of their normalised power spectrum."""
        signal = self.signal_transfer(frequency, pixel=pixel)
        return self.evaluate_mtf(frequency, pixel=pixel) / signal


DETECTORS = {
    "ideal": Detector(mtf=(1.0, 1.0), dqe=(1.0, 1.0)),
    "K2": Detector(
        mtf=(1.0, 0.93, 0.90, 0.86, 0.80, 0.73, 0.66, 0.59, 0.52, 0.45, 0.39),
        dqe=(0.80, 0.67, 0.50, 0.31, 0.15),
        source="counting at 300 kV, after McMullan et al. 2014, doi:10.1016/j.ultramic.2014.08.002",
    ),
    "K3": Detector(
        mtf=(1.0, 0.985, 0.97, 0.95, 0.92, 0.89, 0.85, 0.80, 0.74, 0.69, 0.64),
        dqe=(0.95, 0.84, 0.71, 0.55, 0.40),
        source="counting at 300 kV, after the maker's curves (Gatan)",
    ),
    "Falcon4": Detector(
        mtf=(1.0, 0.96, 0.89, 0.78, 0.67, 0.54, 0.41, 0.31, 0.21, 0.14, 0.09),
        dqe=(0.92, 0.83, 0.72, 0.61, 0.50),
        source="counting at 300 kV, after the maker's curves (Thermo Fisher)",
    ),
}
"""Detectors that recipes name."""


def find_detector(name: str) -> Detector:
    """Return one of `DETECTORS`.

    Raises
    ------
    ValueError
        If there is none of that name.
    """
    if name not in DETECTORS:
        raise ValueError(f"detector must be one of {', '.join(DETECTORS)}; got {name!r}")
    return DETECTORS[name]


def _interpolate(values: tuple[float, ...], frequency: ArrayLike, pixel: float) -> Floats:
    """Monotone curve through values at even fractions of Nyquist."""
    if not pixel > 0:
        raise ValueError(f"pixel must be positive (angstrom); got {pixel}")
    fraction = np.clip(2 * pixel * np.abs(np.asarray(frequency, dtype=float)), 0, 1)
    curve = PchipInterpolator(np.linspace(0, 1, len(values)), values)
    return np.asarray(curve(fraction))
