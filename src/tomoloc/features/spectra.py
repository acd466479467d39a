"""Spectra of tomograms: how they differ from those that a network was trained on, and a remedy."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import fft

from tomoloc.arrays import allocate, release
from tomoloc.tiling import Tiling, map_tiles
from tomoloc.types import FloatArray

__all__ = ["filter_tiles", "local_spectrum", "match_spectrum", "noise_like"]

_SIDE = 48
"""Voxels of the blocks that spectra are measured in."""
_HALO = 16
_LIMIT = 4.0
"""Most that a frequency is amplified or damped."""


def local_spectrum(data: NDArray[np.number], *, blocks: int = 24, seed: int = 0) -> FloatArray:
    """Mean radial power of blocks of a volume, in units of its variance.

    Parameters
    ----------
    data : ndarray, shape (z, y, x)
        May be memory-mapped: only the blocks are read.
    blocks : int
    seed : int
        Chooses the blocks.

    Returns
    -------
    ndarray, shape (25,)
        At frequencies of 0, 1/48, ..., 1/2 per voxel; the mean of a block counts as nothing.
    """
    rng = np.random.default_rng(seed)
    side = [min(_SIDE, n) for n in data.shape]
    window = np.ones(side)
    for axis, n in enumerate(side):
        shape = [-1 if i == axis else 1 for i in range(3)]
        window = window * np.hanning(n + 2)[1:-1].reshape(shape)
    number = _shells(tuple(side))
    count = np.bincount(number.ravel(), minlength=_SIDE)
    total = np.zeros(_SIDE)
    for _ in range(blocks):
        start = [int(rng.integers(n - s + 1)) for n, s in zip(data.shape, side, strict=True)]
        place = tuple(slice(a, a + s) for a, s in zip(start, side, strict=True))
        block = np.asarray(data[place], dtype=np.float32)
        release(data)
        block = (block - block.mean()) * window
        power = np.abs(fft.fftn(block)) ** 2
        total += np.bincount(number.ravel(), power.ravel(), minlength=_SIDE)
    shells = (total / np.maximum(count, 1))[: _SIDE // 2 + 1]
    variance = total.sum() / count.sum()
    return np.asarray(shells / (variance or 1.0))


def noise_like(
    data: NDArray[np.number], *, max_voxels: int, rng: np.random.Generator
) -> NDArray[np.float32]:
    """Gaussian noise with the amplitudes of the middle of a volume, in all directions.

    Parameters
    ----------
    data : ndarray, shape (z, y, x)
        May be memory-mapped.
    max_voxels : int
        Of the noise: the longest axes are cut until it has no more.
    rng : numpy.random.Generator
        Draws the phases.

    Returns
    -------
    ndarray of float32, shape (z', y', x')
        Of mean zero.
    """
    shape = list(data.shape)
    while np.prod(shape, dtype=float) > max_voxels:
        shape[int(np.argmax(shape))] -= 1
    place = tuple(
        slice((n - s) // 2, (n - s) // 2 + s) for n, s in zip(data.shape, shape, strict=True)
    )
    spectrum = fft.rfftn(np.asarray(data[place], dtype=np.float32), workers=-1)
    release(data)
    phases = fft.rfftn(rng.standard_normal(shape, dtype=np.float32), workers=-1)
    phases *= np.abs(spectrum) / np.maximum(np.abs(phases), 1e-20)
    phases[0, 0, 0] = 0
    noise: NDArray[np.float32] = fft.irfftn(phases, s=shape, workers=-1)
    return noise


def match_spectrum(
    data: NDArray[np.number], wanted: ArrayLike, *, seed: int = 0
) -> NDArray[np.float32]:
    """Filter a volume so that its radial amplitudes are those of other tomograms [1]_.

    Parameters
    ----------
    data : ndarray, shape (z, y, x)
    wanted : array_like, shape (25,)
        Power as `local_spectrum` measures it.
    seed : int
        Of that measurement.

    Returns
    -------
    ndarray of float32, shape (z, y, x)
        No frequency is amplified or damped more than four times.

    Raises
    ------
    ValueError
        If `wanted` has another length.

    References
    ----------
    .. [1] De Teresa-Trueba et al., Nature Methods 20, 284 (2023), doi:10.1038/s41592-022-01746-2.
    """
    power = np.asarray(wanted, dtype=float)
    own = local_spectrum(data, seed=seed)
    if power.shape != own.shape:
        raise ValueError(f"expected a spectrum of {len(own)} shells; got {power.shape}")
    floor = 1e-6 * max(own.max(), power.max())
    gain = np.sqrt((power + floor) / (own + floor))
    gain[0] = gain[1]  # the mean of a block is not known
    gain = np.clip(gain / np.exp(np.mean(np.log(gain))), 1 / _LIMIT, _LIMIT)
    place = np.arange(len(gain)) / _SIDE

    return filter_tiles(data, lambda frequency: np.interp(frequency, place, gain))


def filter_tiles(
    data: NDArray[np.number],
    transfer: Callable[[NDArray[np.float32]], FloatArray],
    *,
    max_voxels: int = 8_000_000,
) -> NDArray[np.float32]:
    """Filter a volume of any size in tiles, by what happens to each spatial frequency.

    Parameters
    ----------
    data : ndarray, shape (z, y, x)
        May be memory-mapped.
    transfer : callable
        Takes frequencies in cycles per voxel and gives a gain for each. What it spreads further
        than 16 voxels is lost.
    max_voxels : int
        Of a tile.

    Returns
    -------
    ndarray of float32, shape (z, y, x)
        In a temporary file where it is large.
    """

    def apply(tile: NDArray[np.float32]) -> NDArray[np.float32]:
        spectrum = fft.rfftn(tile, workers=-1)
        spectrum *= transfer(_radius(tile.shape)).astype(np.float32)
        filtered = fft.irfftn(spectrum, s=tile.shape, workers=-1)
        inner = slice(_HALO, -_HALO)
        return np.asarray(filtered[inner, inner, inner], dtype=np.float32)

    z, y, x = data.shape
    out: NDArray[np.float32] = allocate((z, y, x), np.float32)
    tiling = Tiling(shape=(z, y, x), halo=_HALO, mirror=True, max_voxels=max_voxels)
    for target, block in map_tiles(data, apply, tiling=tiling, description="filtering"):
        out[target] = block
        release(out)
    return out


def _radius(shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Spatial frequency, in cycles per voxel, laid out as by `rfftn`."""
    z, y = (fft.fftfreq(n).astype(np.float32) for n in shape[:2])
    x = fft.rfftfreq(shape[2]).astype(np.float32)
    return np.sqrt(z[:, None, None] ** 2 + y[:, None] ** 2 + x**2)


def _shells(shape: tuple[int, ...]) -> NDArray[np.intp]:
    """Number of the shell of each coefficient of `fftn`, in steps of 1/48 per voxel."""
    z, y, x = (fft.fftfreq(n) for n in shape)
    radius = np.sqrt(z[:, None, None] ** 2 + y[:, None] ** 2 + x**2)
    return np.minimum(np.rint(radius * _SIDE), _SIDE - 1).astype(np.intp)
