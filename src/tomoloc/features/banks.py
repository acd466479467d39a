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
from typing import Protocol

import numpy as np
import torch
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import conv3d

from tomoloc.features.scales import SCALES, ScaleSpace

__all__ = ["BANKS", "Bank", "InvariantBank", "PatchBank", "gabor_filters", "make_bank"]

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
    """Linear filters of a voxel's neighbourhood, or magnitudes of pairs of them.

    Parameters
    ----------
    filters : ndarray of float32, shape (125, n)
        Columns are filters.
    magnitude : bool
        The second half of the columns is the imaginary part of the first; give magnitudes.
    """

    filters: Array
    magnitude: bool = False

    @property
    def halo(self) -> int:
        """Half a neighbourhood."""
        return SIDE // 2

    def __call__(self, tile: Array, rows: NDArray[np.intp] | None = None) -> Array:
        """Describe voxels inside the halo, all or the chosen ones."""
        if rows is not None:
            windows = sliding_window_view(tile, (SIDE,) * 3)
            chosen = windows[np.unravel_index(rows, windows.shape[:3])]
            patches = np.ascontiguousarray(chosen.reshape(len(rows), -1))
            return self._combine(torch.from_numpy(patches @ self.filters).T)
        volume = torch.from_numpy(np.ascontiguousarray(tile))[None, None]
        kernels = np.ascontiguousarray(self.filters.T).reshape(-1, 1, *(SIDE,) * 3)
        with torch.inference_mode():
            values = conv3d(volume, torch.from_numpy(kernels))[0]
        return self._combine(values.reshape(len(values), -1))

    def _combine(self, values: Tensor) -> Array:
        """From values of all filters, shape (filters, n), to features, shape (n, features)."""
        if self.magnitude:
            half = len(values) // 2
            values = torch.hypot(values[:half], values[half:])
        return np.asarray(values.T.contiguous().numpy())

    def choose(self, tile: Array, *, number: int = KEPT) -> PatchBank:
        """Keep the filters whose responses to a tile vary most."""
        spread = self(tile).std(axis=0)
        best = np.sort(np.argsort(-spread, kind="stable")[:number])
        return replace(self, filters=np.ascontiguousarray(self.filters[:, best]))


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


def _fourier_filters() -> Array:
    """Real and imaginary parts of the 63 different coefficients of 5 x 5 x 5 voxels."""
    wave = np.fft.fftn(np.eye(SIDE**3).reshape(-1, *(SIDE,) * 3), axes=(1, 2, 3))
    rows = wave.reshape(SIDE**3, -1)[:, : SIDE**3]
    index = np.indices((SIDE,) * 3).reshape(3, -1)
    mate = np.ravel_multi_index(tuple((-index) % SIDE), (SIDE,) * 3)
    own = np.arange(SIDE**3) <= mate  # of a real volume, mates have the same magnitude
    return np.hstack([rows.real[:, own], rows.imag[:, own]]).astype(np.float32)


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
        return PatchBank(filters=_fourier_filters(), magnitude=True)
    if name == "intensity":
        return PatchBank(filters=np.eye(SIDE**3, dtype=np.float32))
    raise ValueError(f"features must be one of {', '.join(BANKS)}; got {name!r}")
