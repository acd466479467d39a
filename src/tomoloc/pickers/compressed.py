"""Where a reference may be in a tomogram, from a few dozen Fourier transforms.

Turned copies of a reference, filtered as a tomogram is, span few dimensions. Where one of them is,
the tomogram has energy in these dimensions; no orientation needs to be tried for that.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import fft, ndimage

from tomoloc.pickers.correlation import correlate_kernel, forward
from tomoloc.pickers.poses import Basis
from tomoloc.progress import progress
from tomoloc.types import FloatArray

__all__ = ["component_weights", "energy_peaks", "search_components"]

Array = NDArray[np.float32]
Shape = tuple[int, int, int]

_TILE_VOXELS = 1 << 26
_SIGNAL = 45.0
"""Energy of a particle at the limit of detection, of that of noise in one dimension: the best of
thousands of orientations at millions of voxels is seen above about 6.7 standard deviations."""


def component_weights(variance: FloatArray) -> FloatArray:
    """Weight components so that particles of unknown orientation stand out best.

    Coefficients of a particle are taken to be normally distributed with `variance` times its
    energy, those of noise with the same variance each. The logarithm of the likelihood ratio is
    then a sum of squares with these weights.

    Parameters
    ----------
    variance : ndarray, shape (k,)
        See `Basis`.

    Returns
    -------
    ndarray, shape (k,)
        From 0 to 1.
    """
    return variance / (variance + 1 / _SIGNAL)


def search_components(variance: FloatArray, *, detectability: float) -> int:
    """Return how many components hold a part of what makes particles stand out.

    Parameters
    ----------
    variance : ndarray, shape (k,)
        See `Basis`, largest first.
    detectability : float
        From 0 to 1, of the weighted energy of a particle.
    """
    held = np.cumsum(variance * component_weights(variance))
    return 1 + int(np.searchsorted(held, detectability * held[-1] * (1 - 1e-9)))


def energy_peaks(
    data: Array,
    bases: Sequence[Basis],
    *,
    counts: Sequence[int],
    reach: Sequence[int],
    device: str = "cpu",
    max_voxels: int = _TILE_VOXELS,
) -> list[NDArray[np.intp]]:
    """Find the places where a tomogram has most energy in the dimensions of a reference.

    The energy is the sum of squared local correlation coefficients with the components, weighted
    by `component_weights`. All bases share the tomogram's Fourier transform.

    Parameters
    ----------
    data : ndarray, shape (z, y, x)
        Filtered like the references, of mean zero.
    bases : sequence of Basis
        Of as many components as are to be used.
    counts : sequence of int
        How many places to return for each basis, at most.
    reach : sequence of int
        Voxels along each axis within which a place has the highest energy, for each basis.
    device : str
        "cpu" or "cuda".
    max_voxels : int
        Of a tile.

    Returns
    -------
    list of ndarray of int, shape (n, 3)
        Voxels zyx, the highest first.
    """
    halo = max(basis.reference.mask.shape[0] // 2 for basis in bases) + max(reach)
    places: list[list[NDArray[np.intp]]] = [[] for _ in bases]
    energies: list[list[Array]] = [[] for _ in bases]
    tiles = _tiles(data.shape, halo, max_voxels)
    steps = iter(progress(range(len(tiles) * sum(map(len, bases))), "correlating components"))
    for inner, outer in tiles:
        for number, energy in enumerate(_energies(data[outer], bases, halo, device, steps)):
            own = tuple(
                slice(i.start - o.start, i.stop - o.start)
                for i, o in zip(inner, outer, strict=True)
            )
            size = 2 * reach[number] + 1
            peak = energy[own] >= ndimage.maximum_filter(energy, size, mode="nearest")[own]
            peak &= energy[own] > 0
            where = np.argwhere(peak)
            value = energy[own][peak]
            best = np.argsort(-value, kind="stable")[: counts[number]]
            places[number].append(where[best] + np.array([i.start for i in inner]))
            energies[number].append(value[best])
    found = []
    for blocks, values, count in zip(places, energies, counts, strict=True):
        order = np.argsort(-np.concatenate(values), kind="stable")[:count]
        found.append(np.concatenate(blocks)[order])
    return found


def _energies(
    block: Array, bases: Sequence[Basis], halo: int, device: str, steps: Iterator[int]
) -> Iterator[Array]:
    """Weighted energy in each basis over its local mean square, of the block's shape."""
    import torch

    shape = block.shape
    padded = tuple(fft.next_fast_len(n + halo, real=True) for n in shape)
    tile = torch.as_tensor(np.ascontiguousarray(block, dtype=np.float32), device=device)
    spectrum = forward(tile, padded)
    squares = forward(tile**2, padded)
    for basis in bases:
        mask = basis.reference.mask
        box = np.zeros((len(basis), *mask.shape), np.float32)
        box[:, mask > 0] = basis.kernels

        kernels = torch.as_tensor(box, device=device)
        ball = torch.as_tensor(mask, device=device)
        mean = correlate_kernel(spectrum, ball, padded, shape)
        variance = correlate_kernel(squares, ball, padded, shape) - mean**2
        floor = 0.01 * float(variance.flatten()[:: max(1, variance.numel() // 100_000)].median())
        total = torch.zeros_like(variance)
        for kernel, weight in zip(kernels, component_weights(basis.variance), strict=True):
            next(steps)
            product = correlate_kernel(spectrum, kernel, padded, shape)
            total.addcmul_(product, product, value=float(weight))
        yield (total / variance.clamp_min(max(floor, 1e-30))).cpu().numpy()


def _tiles(
    shape: Shape, halo: int, max_voxels: int
) -> list[tuple[tuple[slice, ...], tuple[slice, ...]]]:
    """Cut a volume into blocks; return each block, and the block with its halo."""
    counts = [1, 1, 1]
    while True:
        edges = [-(-n // count) for n, count in zip(shape, counts, strict=True)]
        if np.prod([e + 2 * halo for e in edges], dtype=float) <= max_voxels:
            break
        longest = int(np.argmax(edges))
        if edges[longest] <= 2 * halo:
            break  # smaller blocks would be mostly halo
        counts[longest] += 1
    axes = [
        [(n * i // count, n * (i + 1) // count) for i in range(count)]
        for n, count in zip(shape, counts, strict=True)
    ]
    return [
        (
            tuple(slice(low, high) for low, high in ends),
            tuple(
                slice(max(0, low - halo), min(n, high + halo))
                for (low, high), n in zip(ends, shape, strict=True)
            ),
        )
        for ends in itertools.product(*axes)
    ]
