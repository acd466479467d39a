"""Checks of a tomogram before anything runs on it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tomoloc.arrays import release
from tomoloc.io.stored import slabs
from tomoloc.types import Volume

__all__ = ["Statistics", "check_tomogram", "measure"]


@dataclass(frozen=True, kw_only=True)
class Statistics:
    """Of the finite values of a volume; `n_bad` counts the others (NaN, infinity)."""

    minimum: float
    maximum: float
    mean: float
    std: float
    n_bad: int


def measure(data: NDArray[Any]) -> Statistics:
    """Read a volume once, a few sections at a time, and return its statistics.

    Parameters
    ----------
    data : ndarray, shape (..., z, y, x)
        May be memory-mapped; at most some 100 MB of it are in memory at a time.

    Returns
    -------
    Statistics
        NaN where no value is finite.
    """
    n, n_bad, mean, squares = 0, 0, 0.0, 0.0
    minimum, maximum = np.inf, -np.inf
    for slab in slabs(data):
        release(data)  # what the last slab took in
        values = np.asarray(data[slab]).ravel()
        if values.dtype.kind == "f":
            finite = np.isfinite(values)
            n_finite = int(np.count_nonzero(finite))
            if n_finite < values.size:
                n_bad += values.size - n_finite
                values = values[finite]
        if values.size == 0:
            continue
        minimum, maximum = min(minimum, float(values.min())), max(maximum, float(values.max()))
        # Chan, Golub & LeVeque 1983, doi:10.1080/00031305.1983.10483115: means of parts combine
        # without the cancellation of sum(x^2) - sum(x)^2 / n.
        here = float(values.mean(dtype=np.float64))
        deviation = values - np.float64(here)
        squares += float(deviation @ deviation) + (here - mean) ** 2 * n * values.size / (
            n + values.size
        )
        mean += (here - mean) * values.size / (n + values.size)
        n += values.size
    release(data)
    if n == 0:
        return Statistics(minimum=np.nan, maximum=np.nan, mean=np.nan, std=np.nan, n_bad=n_bad)
    return Statistics(
        minimum=minimum, maximum=maximum, mean=mean, std=float(np.sqrt(squares / n)), n_bad=n_bad
    )


def check_tomogram(tomogram: Volume) -> None:
    """Refuse a tomogram that nothing can be found in; reads every voxel once.

    Parameters
    ----------
    tomogram : Volume
        Usually a Tomogram.

    Raises
    ------
    ValueError
        If a voxel is NaN or infinite, or if all voxels have the same value.
    """
    name = tomogram.name or "the tomogram"
    found = measure(tomogram.data)
    if found.n_bad:
        raise ValueError(
            f"{name}: expected finite values; {found.n_bad:,} of {tomogram.data.size:,} voxels are"
            " NaN or infinite; reconstruct it again or replace them (by the mean, for example)"
        )
    if found.minimum == found.maximum:
        raise ValueError(
            f"{name}: every voxel is {found.minimum:g}; an empty file or a failed reconstruction?"
        )
