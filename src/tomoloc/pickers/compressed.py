"""Where a reference may be in a tomogram, from a few dozen Fourier transforms.

Turned copies of a reference, filtered as a tomogram is, span few dimensions. Where one of them is,
the tomogram has energy in these dimensions; no orientation needs to be tried for that.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from scipy import fft

from tomoloc.localize import local_maxima
from tomoloc.pickers.correlation import backward, forward, kernel_spectrum
from tomoloc.pickers.poses import Basis
from tomoloc.progress import progress
from tomoloc.types import FloatArray

if TYPE_CHECKING:
    import torch

__all__ = ["component_weights", "energy_peaks", "search_components"]

Array = NDArray[np.float32]
Shape = tuple[int, int, int]

_TILE_VOXELS = 1 << 22
"""About what transforms are fastest for."""
_KERNEL_BYTES = 1800 << 20
"""That transforms of components are kept in."""
_EMPTY = 0.01
"""Part of the tomogram's variance below which there is no image."""
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
    device : str
        "cpu" or "cuda".
    max_voxels : int
        Of a tile.

    Returns
    -------
    list of ndarray of int, shape (n, 3)
        Voxels zyx, the highest first.
    """
    halo = max(basis.reference.mask.shape[0] // 2 for basis in bases) + 1
    every = max(1, data.shape[0] // 64)
    floor = max(_EMPTY * float(np.mean(np.square(data[::every], dtype=np.float32))), 1e-30)
    tiles, padded = _tiles(data.shape, halo, max_voxels)
    measures = [_Measure.of(b, padded, device, _KERNEL_BYTES / len(bases)) for b in bases]
    places: list[list[NDArray[np.intp]]] = [[] for _ in bases]
    energies: list[list[Array]] = [[] for _ in bases]
    for tile in progress(tiles, f"correlating {sum(map(len, bases))} components"):
        spectra = _Spectra.of(data[tile.outer], padded, device)
        for number, measure in enumerate(measures):
            energy = measure.energy(spectra, tile.around, floor=floor)
            peak = local_maxima(energy, threshold=0.0)
            where = peak + [a.start + o.start for a, o in zip(tile.around, tile.outer, strict=True)]
            own = np.all([(where[:, i] >= s.start) & (where[:, i] < s.stop)
                for i, s in enumerate(tile.inner)], axis=0)  # fmt: skip
            where, value = where[own], energy[tuple(peak[own].T)]
            best = np.argsort(-value, kind="stable")[: counts[number]]
            places[number].append(where[best])
            energies[number].append(value[best])
    found = []
    for blocks, values, count in zip(places, energies, counts, strict=True):
        order = np.argsort(-np.concatenate(values), kind="stable")[:count]
        found.append(np.concatenate(blocks)[order])
    return found


@dataclass(frozen=True, eq=False)
class _Spectra:
    """Transforms of a block and of its square."""

    data: torch.Tensor
    square: torch.Tensor
    padded: Shape

    @classmethod
    def of(cls, block: Array, padded: Shape, device: str) -> _Spectra:
        import torch

        tile = torch.as_tensor(np.ascontiguousarray(block, dtype=np.float32), device=device)
        return cls(forward(tile, padded), forward(tile**2, padded), padded)

    def correlate(
        self, kernel: torch.Tensor, part: Sequence[slice], *, squared: bool = False
    ) -> torch.Tensor:
        product = kernel * (self.square if squared else self.data)
        return backward(product, self.padded, part)


@dataclass(frozen=True, eq=False)
class _Measure:
    """Transforms of a mask and of components, all of them or none where they are large."""

    basis: Basis
    padded: Shape
    kernels: torch.Tensor
    kept: list[torch.Tensor]

    @classmethod
    def of(cls, basis: Basis, padded: Shape, device: str, n_bytes: float) -> _Measure:
        import torch

        mask = basis.reference.mask
        box = np.zeros((1 + len(basis), *mask.shape), np.float32)
        box[0] = mask
        box[1:, mask > 0] = basis.kernels
        kernels = torch.as_tensor(box, device=device)
        fits = 4 * len(box) * np.prod(padded, dtype=float) <= n_bytes
        kept = [kernel_spectrum(kernel, padded) for kernel in kernels] if fits else []
        return cls(basis, padded, kernels, kept)

    def energy(self, spectra: _Spectra, around: Sequence[slice], *, floor: float) -> Array:
        """Weighted energy over the local mean square, in a part of the block."""
        import torch

        half = self.kernels.shape[1] // 2
        part = [slice(a.start + half, a.stop + half) for a in around]
        kernels = iter(self.kept or (kernel_spectrum(k, self.padded) for k in self.kernels))
        mask = next(kernels)
        mean = spectra.correlate(mask, part)
        variance = spectra.correlate(mask, part, squared=True) - mean**2
        total = torch.zeros_like(variance)
        for kernel, weight in zip(kernels, component_weights(self.basis.variance), strict=True):
            product = spectra.correlate(kernel, part)
            total.addcmul_(product, product, value=float(weight))
        energy: Array = (total / variance.clamp_min(floor)).cpu().numpy()
        return energy


@dataclass(frozen=True)
class _Tile:
    """A block; the block with its halo; within the latter, the block and its neighbours."""

    inner: tuple[slice, ...]
    outer: tuple[slice, ...]
    around: tuple[slice, ...]


def _tiles(shape: Shape, halo: int, max_voxels: int) -> tuple[list[_Tile], Shape]:
    """Cut a volume into blocks that cost least; return them, and what to pad them to.

    They have no more voxels than asked for, except where smaller ones would be mostly halo.
    """

    def pad(n: int, count: int) -> int:
        # The zeros added on one side serve the other too, as the transform is periodic.
        edge = -(-n // count) + (2 * halo if count > 1 else halo)
        return int(fft.next_fast_len(edge, real=True))

    def cost(counts: tuple[int, ...]) -> tuple[float, float]:
        voxels = float(np.prod([pad(n, count) for n, count in zip(shape, counts, strict=True)]))
        return max(1, voxels / max_voxels), np.prod(counts) * voxels * np.log2(voxels)

    options = [range(1, max(1, n // (2 * halo)) + 1) for n in shape]
    counts = min(itertools.product(*options), key=cost)
    axes = [
        [(n * i // count, n * (i + 1) // count) for i in range(count)]
        for n, count in zip(shape, counts, strict=True)
    ]
    tiles = []
    for ends in itertools.product(*axes):
        inner = tuple(slice(low, high) for low, high in ends)
        outer, more = (
            tuple(
                slice(max(0, low - by), min(n, high + by))
                for (low, high), n in zip(ends, shape, strict=True)
            )
            for by in (halo, 1)
        )
        around = tuple(
            slice(m.start - o.start, m.stop - o.start) for m, o in zip(more, outer, strict=True)
        )
        tiles.append(_Tile(inner, outer, around))
    z, y, x = (pad(n, count) for n, count in zip(shape, counts, strict=True))
    return tiles, (z, y, x)
