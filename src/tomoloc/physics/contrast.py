"""Contrast of a tomogram: whether protein is dark, as a microscope gives it, or light."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import scipy.fft
from numpy.typing import NDArray

from tomoloc.arrays import allocate, release
from tomoloc.physics.filters import radial_frequency

__all__ = ["Contrast", "ContrastSign", "brighten", "detect_contrast", "is_flat"]
__all__ += ["robust_scale", "standardise"]

ContrastSign = Literal["dark", "light"]

_SIGMAS = (1.5, 2.0, 3.0)  # voxels: at the usual 5-15 Å, coarser than the CTF's first zero
_BLOCK = (80, 144, 144)
_MAD_TO_DEVIATION = 1.4826


@dataclass(frozen=True, kw_only=True)
class Contrast:
    """What `detect_contrast` found.

    Parameters
    ----------
    sign : {"dark", "light"}
        Of protein against the ice.
    confidence : float
        From 0 to 1. In noise without particles it is above 0.95 in at most one of twenty volumes.
    """

    sign: ContrastSign
    confidence: float


def detect_contrast(data: NDArray[Any]) -> Contrast:
    """Find out whether particles are darker or lighter than their surroundings.

    Dense matter (protein, gold, membranes) is compact and rarer than ice, so a band-passed
    tomogram is skewed towards it; the bright halos of the CTF and of gold beads are wider but
    shallower than their cores. The skewness is averaged over three scales, each in units of its
    standard error in noise. Where more than half of the volume is protein, the sign comes out
    wrong.

    Parameters
    ----------
    data : ndarray, shape (z, y, x)
        Scale and offset do not matter. Of large volumes, four blocks are looked at.

    Returns
    -------
    Contrast

    Raises
    ------
    ValueError
        If the data are not a volume.
    """
    if data.ndim != 3:
        raise ValueError(f"expected a volume of shape (z, y, x); got {data.shape}")
    scores = [_skewness_scores(block) for block in _blocks(data)]
    score = float(np.sum(scores, axis=0).mean() / math.sqrt(len(scores)))
    return Contrast(
        sign="light" if score > 0 else "dark", confidence=math.erf(abs(score) / math.sqrt(2))
    )


def _blocks(data: NDArray[Any]) -> list[NDArray[np.float32]]:
    """Cut the middle slab of a large volume into up to two blocks along y and along x."""
    cuts = []
    for axis, (n, limit) in enumerate(zip(data.shape, _BLOCK, strict=True)):
        size = min(n, limit)
        centers = (n / 2,) if axis == 0 or n < 2 * limit else (n / 4, 3 * n / 4)
        cuts.append([slice(s := int(c - size / 2), s + size) for c in centers])
    return [np.asarray(data[cut], dtype=np.float32) for cut in itertools.product(*cuts)]


def _skewness_scores(block: NDArray[np.float32]) -> NDArray[np.float64]:
    """Skewness over its standard error in noise, at each scale, shape (len(_SIGMAS),)."""
    spectrum = scipy.fft.rfftn(block - block.mean(dtype=float), workers=-1)
    squared = radial_frequency((block.shape[0], block.shape[1], block.shape[2]), 1.0) ** 2
    scores = np.zeros(len(_SIGMAS))
    for i, sigma in enumerate(_SIGMAS):
        exponent = -2 * (np.pi * sigma) ** 2
        # a difference of Gaussians takes away gradients of ice thickness and density
        band = np.exp(exponent * squared) - np.exp(9 * exponent * squared)
        values = scipy.fft.irfftn(spectrum * band, s=block.shape, workers=-1)
        squares = values * values
        variance = float(squares.mean(dtype=float))
        if variance <= 0:
            continue
        skewness = float((squares * values).mean(dtype=float)) / variance**1.5
        # The variance of the skewness is 6 / n times the sum of the cubed autocorrelation, which
        # for noise blurred with sigma is exp(-r^2 / 4 sigma^2).
        correlated = math.prod(min(n, math.sqrt(4 * math.pi / 3) * sigma) for n in block.shape)
        scores[i] = skewness / math.sqrt(6 * correlated / block.size)
    return scores


def brighten(data: NDArray[Any], *, contrast: ContrastSign) -> NDArray[Any]:
    """Turn the sign of a volume's values round, if need be, so that protein is bright.

    Parameters
    ----------
    data : ndarray, shape (z, y, x)
        May be memory-mapped: a few sections at a time are read.
    contrast : {"dark", "light"}
        Of protein in `data`.

    Returns
    -------
    ndarray, shape (z, y, x)
        `data` itself, or new values of float32, in a temporary file where they are many.
    """
    if contrast == "light":
        return data
    out = allocate(data.shape, np.float32)
    for section, negative in zip(data, out, strict=True):
        np.negative(section, out=negative, dtype=np.float32, casting="same_kind")
        release(data)
        release(out)
    return out


def standardise(data: NDArray[Any], *, contrast: ContrastSign = "light") -> NDArray[np.float32]:
    """Shift and scale to median 0 and a robust deviation of 1, protein positive.

    The deviation is 1.4826 times the median distance from the median, so that gold beads and
    contamination have no say in it; it is the plain one where more than half of the values agree.

    Parameters
    ----------
    data : ndarray
        A sample of about a million values sets the scale of larger ones.
    contrast : {"dark", "light"}
        Of protein in `data`; "dark" turns the sign round.

    Returns
    -------
    ndarray of float32, shape of `data`

    Raises
    ------
    ValueError
        If all values are the same or the contrast is unknown.
    """
    if contrast not in {"dark", "light"}:
        raise ValueError(f"contrast must be 'dark' or 'light'; got {contrast!r}")
    median, deviation = robust_scale(data)
    scale = (-1 if contrast == "dark" else 1) / deviation
    out = data.astype(np.float32)
    out -= median
    out *= scale
    return out


def robust_scale(data: NDArray[Any]) -> tuple[float, float]:
    """Median and robust deviation that `standardise` uses, for data that come in parts.

    Parameters
    ----------
    data : ndarray
        The whole; may be memory-mapped.

    Returns
    -------
    median, deviation : float

    Raises
    ------
    ValueError
        If all values are the same.
    """
    # An odd step visits rows and columns evenly where sides are powers of two.
    sample = data.flat[:: max(1, data.size // 2**20) | 1].astype(np.float64)
    median = float(np.median(sample))
    deviation = _MAD_TO_DEVIATION * float(np.median(np.abs(sample - median)))
    if deviation == 0:
        deviation = float(sample.std())
    if not deviation > 0:
        raise ValueError(
            "the volume must hold values that differ; all of them are"
            f" {median}: is it empty or only partly written?"
        )
    return median, deviation


def is_flat(data: NDArray[Any]) -> bool:
    """Tell whether all voxels have one value."""
    first = data[0, 0, 0]
    return all(bool((section == first).all()) for section in data)
