"""Filter banks: numbers that describe the neighbourhood of each voxel.

`intensity`, `fft` and `gabor` are those of PickET [1]_, of 5 x 5 x 5 voxels. `invariant` is the
curvatures of `tomoloc.features.scales`: without a mean, at four scales, the same however a particle
lies, and in units of the noise.

References
----------
.. [1] Arvindekar, Golatkar & Viswanath, PickET (2025), bioRxiv; see docs/unsupervised.md.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache
from typing import Protocol

import numpy as np
import torch
from numba import njit, prange
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray
from torch.nn.functional import conv3d

from tomoloc.features.scales import SCALES, ScaleSpace

__all__ = [
    "BANKS",
    "Bank",
    "FourierBank",
    "InvariantBank",
    "PatchBank",
    "gabor_filters",
    "make_bank",
]

Array = NDArray[np.float32]

SIDE = 5
"""Voxels along a neighbourhood."""
FREQUENCIES = 10
KEPT = 64
_STRONG = 8.0
"""Curvature in deviations of the noise beyond which more of it says nothing: gold would."""
BANKS = ("invariant", "gabor", "fft", "intensity")


class Bank(Protocol):
    """What turns a tile into features."""

    @property
    def halo(self) -> int:
        """Voxels that a place needs around it."""

    def __call__(self, tile: Array, rows: NDArray[np.intp] | None = None) -> Array:
        """Describe voxels inside the halo, all in C order or the chosen ones.

        Returns float32, shape (voxels, features).
        """


@dataclass(frozen=True, eq=False, kw_only=True)
class PatchBank:
    """Linear filters of a voxel's neighbourhood.

    Parameters
    ----------
    filters : ndarray of float32, shape (125, n)
        Columns are filters.
    """

    filters: Array

    @property
    def halo(self) -> int:
        """Half a neighbourhood."""
        return SIDE // 2

    def __call__(self, tile: Array, rows: NDArray[np.intp] | None = None) -> Array:
        """Describe voxels inside the halo, all or the chosen ones."""
        if rows is not None:
            return np.asarray(_patches(tile, rows) @ self.filters)
        volume = torch.from_numpy(np.ascontiguousarray(tile))[None, None]
        kernels = np.ascontiguousarray(self.filters.T).reshape(-1, 1, *(SIDE,) * 3)
        with torch.inference_mode():
            values = conv3d(volume, torch.from_numpy(kernels))[0]
        return np.asarray(values.reshape(len(values), -1).T.numpy())

    def choose(self, tile: Array, *, number: int = KEPT) -> PatchBank:
        """Keep the filters whose responses to a tile vary most."""
        spread = self(tile).std(axis=0)
        best = np.sort(np.argsort(-spread, kind="stable")[:number])
        return replace(self, filters=np.ascontiguousarray(self.filters[:, best]))


@dataclass(frozen=True, eq=False, kw_only=True)
class FourierBank:
    """Magnitudes of the 63 different Fourier coefficients of a voxel's neighbourhood."""

    @property
    def halo(self) -> int:
        """Half a neighbourhood."""
        return SIDE // 2

    def __call__(self, tile: Array, rows: NDArray[np.intp] | None = None) -> Array:
        """Describe voxels inside the halo, all or the chosen ones."""
        if rows is not None:
            waves = np.hstack([_waves().real, _waves().imag]).astype(np.float32)
            real, imaginary = np.hsplit(_patches(tile, rows) @ waves, 2)
            return np.hypot(real, imaginary)
        shape = tuple(n - 2 * self.halo for n in tile.shape)
        z, y, x = _frequencies()
        out = np.empty((len(x), *shape), dtype=np.float32)
        angle = 2 * np.pi / SIDE * np.outer(np.arange(SIDE), np.arange(SIDE))
        cosine, sine = np.cos(angle).astype(np.float32), np.sin(angle).astype(np.float32)
        _find_magnitudes(np.ascontiguousarray(tile), cosine, sine, z * SIDE + y, x, out)
        return out.reshape(len(x), -1).T


@njit(parallel=True, cache=True, fastmath=True)
def _find_magnitudes(
    tile: Array,
    cosine: Array,
    sine: Array,
    row: NDArray[np.intp],
    own: NDArray[np.intp],
    out: Array,
) -> None:
    """Transform along z, then along y, then along x: far fewer products than at once.

    `row` is five times the frequency along z plus that along y; `own` is the one along x.
    """
    number, depth, height, width = out.shape
    wide = width + SIDE - 1
    rows = row.max() + 1
    for z in prange(depth):
        real = np.zeros((rows // SIDE + 1, height + SIDE - 1, wide), dtype=np.float32)
        imaginary = np.zeros_like(real)
        for f in range(len(real)):
            for k in range(SIDE):
                c, s = cosine[f, k], sine[f, k]
                for y in range(height + SIDE - 1):
                    for x in range(wide):
                        real[f, y, x] += c * tile[z + k, y, x]
                        imaginary[f, y, x] -= s * tile[z + k, y, x]
        a, b = np.empty((rows, wide), np.float32), np.empty((rows, wide), np.float32)
        for y in range(height):
            a[:], b[:] = 0, 0
            for f in range(rows):
                for k in range(SIDE):
                    c, s = cosine[f % SIDE, k], sine[f % SIDE, k]
                    ar, ai = real[f // SIDE, y + k], imaginary[f // SIDE, y + k]
                    for x in range(wide):
                        a[f, x] += c * ar[x] + s * ai[x]
                        b[f, x] += c * ai[x] - s * ar[x]
            for n in range(number):
                ar, ai, line = a[row[n]], b[row[n]], out[n, z, y]
                c, s = cosine[own[n]], sine[own[n]]
                c0, c1, c2, c3, c4 = c[0], c[1], c[2], c[3], c[4]
                s0, s1, s2, s3, s4 = s[0], s[1], s[2], s[3], s[4]
                for x in range(width):
                    r0, r1, r2, r3, r4 = ar[x], ar[x + 1], ar[x + 2], ar[x + 3], ar[x + 4]
                    i0, i1, i2, i3, i4 = ai[x], ai[x + 1], ai[x + 2], ai[x + 3], ai[x + 4]
                    re = c0 * r0 + c1 * r1 + c2 * r2 + c3 * r3 + c4 * r4
                    re += s0 * i0 + s1 * i1 + s2 * i2 + s3 * i3 + s4 * i4
                    im = c0 * i0 + c1 * i1 + c2 * i2 + c3 * i3 + c4 * i4
                    im -= s0 * r0 + s1 * r1 + s2 * r2 + s3 * r3 + s4 * r4
                    line[x] = np.sqrt(re * re + im * im)


def _patches(tile: Array, rows: NDArray[np.intp]) -> Array:
    """Neighbourhoods of chosen voxels, shape (n, 125)."""
    windows = sliding_window_view(tile, (SIDE,) * 3)
    chosen = windows[np.unravel_index(rows, windows.shape[:3])]
    return np.ascontiguousarray(chosen.reshape(len(rows), -1))


@dataclass(frozen=True, eq=False, kw_only=True)
class InvariantBank:
    """Curvatures at all scales, compressed so that gold does not outweigh all else.

    Parameters
    ----------
    space : ScaleSpace
        With the noise of the volume.
    """

    space: ScaleSpace

    @property
    def halo(self) -> int:
        """That of the scales."""
        return self.space.halo

    def __call__(self, tile: Array, rows: NDArray[np.intp] | None = None) -> Array:
        """Describe voxels inside the halo, all or the chosen ones."""
        features = compress(self.space(tile)[0])
        return features if rows is None else features[rows]


def compress(curvature: Array) -> Array:
    """Features of the invariant bank from curvatures of shape (scale, 3, z, y, x)."""
    flat = curvature.reshape(3 * len(SCALES), -1).T
    return np.arcsinh(np.clip(flat, -_STRONG, _STRONG))


def gabor_filters(*, zero_mean: bool) -> Array:
    """Gaussian times cosine, ten frequencies from 0 to Nyquist along each axis: (125, 1000).

    Parameters
    ----------
    zero_mean : bool
        Take the mean away, so that filters of low frequency do not just measure the local mean;
        the paper's do.
    """
    place = np.arange(SIDE) - SIDE // 2
    z, y, x = np.meshgrid(place, place, place, indexing="ij")
    envelope = np.exp(-(z**2 + y**2 + x**2) / (2 * (SIDE / 5) ** 2))
    frequency = np.linspace(0, 0.5, FREQUENCIES)
    fz, fy, fx = (f.ravel() for f in np.meshgrid(frequency, frequency, frequency, indexing="ij"))
    phase = 2 * np.pi * (z[..., None] * fz + y[..., None] * fy + x[..., None] * fx)
    filters = (envelope[..., None] * np.cos(phase)).reshape(SIDE**3, -1)
    if zero_mean:
        filters = filters - filters.mean(axis=0)
        length = np.linalg.norm(filters, axis=0)
        filters = np.divide(filters, length, out=np.zeros_like(filters), where=length > 1e-9)
    return filters.astype(np.float32)


@cache
def _frequencies() -> NDArray[np.intp]:
    """Along z, y and x, of the 63 different coefficients of 5 x 5 x 5 voxels: shape (3, 63)."""
    index = np.indices((SIDE,) * 3).reshape(3, -1)
    mate = np.ravel_multi_index(tuple((-index) % SIDE), (SIDE,) * 3)
    return index[:, np.arange(SIDE**3) <= mate]  # of a real volume, mates have the same magnitude


@cache
def _waves() -> NDArray[np.complex128]:
    """Of the 63 coefficients, shape (125, 63)."""
    z, y, x = (
        np.exp(-2j * np.pi / SIDE * np.outer(frequency, np.arange(SIDE)))
        for frequency in _frequencies()
    )
    return np.einsum("fz,fy,fx->zyxf", z, y, x).reshape(SIDE**3, -1)


def make_bank(name: str, *, space: ScaleSpace, sample: Array, paper: bool = False) -> Bank:
    """Make a bank by its name.

    Parameters
    ----------
    name : str
        One of `BANKS`.
    space : ScaleSpace
        For the invariant bank.
    sample : ndarray, shape (z, y, x)
        Part of the volume that shows which Gabor filters matter.
    paper : bool
        Gabor filters as published, with their means.

    Raises
    ------
    ValueError
        If there is no such bank.
    """
    if name == "invariant":
        return InvariantBank(space=space)
    if name == "gabor":
        return PatchBank(filters=gabor_filters(zero_mean=not paper)).choose(sample)
    if name == "fft":
        return FourierBank()
    if name == "intensity":
        return PatchBank(filters=np.eye(SIDE**3, dtype=np.float32))
    raise ValueError(f"features must be one of {', '.join(BANKS)}; got {name!r}")
