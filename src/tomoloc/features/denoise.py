"""Denoising of tomograms in bounded memory: diffusion that keeps edges, Gaussian, median."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal, TypeVar

import numpy as np
from numba import njit, prange
from numpy.typing import NDArray
from scipy import ndimage

from tomoloc.arrays import allocate, release
from tomoloc.physics.contrast import robust_scale
from tomoloc.tiling import Tiling, map_tiles
from tomoloc.types import Volume

__all__ = ["METHODS", "denoise", "despeckle", "diffuse"]

Array = NDArray[np.float32]
Method = Literal["none", "diffusion", "gaussian", "median"]
METHODS = ("none", "diffusion", "gaussian", "median")
SomeVolume = TypeVar("SomeVolume", bound=Volume)

_TILE_VOXELS = 8_000_000
_STEP = 0.1
"""Of an explicit scheme in three dimensions; 1/6 is the limit of stability."""
_SATURATION = 3.31488
"""Of Weickert's diffusivity: the flux grows with the gradient up to the contrast, then falls."""
_SPECKLE = 6.0
"""Robust deviations from the mean of its neighbours beyond which a voxel is a speckle."""


def denoise(
    volume: SomeVolume, method: Method, *, sigma: float | None = None, iterations: int = 10
) -> SomeVolume:
    """Denoise a volume tile by tile.

    Parameters
    ----------
    volume : Volume, data shape (z, y, x)
        May be memory-mapped.
    method : {"none", "diffusion", "gaussian", "median"}
        Diffusion smooths along edges but not across them, see `diffuse`; a Gaussian blurs all
        alike; the median of 3 x 3 x 3 voxels takes away what is smaller than half of that.
    sigma : float, optional
        Of the Gaussian, and of the one under which diffusion looks for edges, in angstrom; one
        voxel by default.
    iterations : int
        Steps of the diffusion.

    Returns
    -------
    Volume, data of float32
        In a temporary file where it is large.

    Raises
    ------
    ValueError
        If the method is unknown or a number is out of range.
    """
    if method not in METHODS:
        raise ValueError(f"method must be one of {', '.join(METHODS)}; got {method!r}")
    width = 1.0 if sigma is None else sigma / volume.voxel_spacing
    if not (math.isfinite(width) and width > 0) or iterations < 1:
        raise ValueError(
            f"sigma must be positive and iterations at least 1; got {sigma} and {iterations}"
        )
    if method == "none":
        return volume
    reach = math.ceil(4 * width)
    if method == "gaussian":
        return _tiled(volume, lambda tile: _blur(tile, width), halo=reach, name="blurring")
    if method == "median":
        return _tiled(volume, lambda tile: ndimage.median_filter(tile, 3), halo=1, name="median")
    noise = _gradient_scale(volume.data, width)

    def smooth(tile: Array) -> Array:
        return diffuse(tile, contrast=noise, sigma=width, iterations=iterations)

    # information moves one voxel a step at most, and little of it that far
    return _tiled(volume, smooth, halo=reach + iterations, name="diffusion")


def _tiled(
    volume: SomeVolume, function: Callable[[Array], Array], *, halo: int, name: str
) -> SomeVolume:
    tiling = Tiling(shape=volume.shape, halo=halo, mirror=True, max_voxels=_TILE_VOXELS)
    out = allocate(volume.shape, np.float32)
    core = (slice(halo, -halo),) * 3

    def inner(tile: Array) -> Array:
        return function(tile)[core]

    for target, block in map_tiles(volume.data, inner, tiling=tiling, description=name):
        out[target] = block
        release(out)
        release(volume.data)
    return volume.with_data(out)


def diffuse(data: Array, *, contrast: float, sigma: float = 1.0, iterations: int = 10) -> Array:
    """Smooth along edges and not across them: edge-enhancing anisotropic diffusion.

    Where the gradient of the blurred volume is steeper than `contrast`, nothing flows along it
    [1]_; the scheme for tomograms is that of [2]_ and [3]_, here with the explicit fluxes through
    the faces between voxels, which keep the mean exactly.

    Parameters
    ----------
    data : ndarray, shape (z, y, x)
    contrast : float
        Gradient (per voxel, after the blur) that counts as an edge.
    sigma : float
        Of the blur that gradients are taken from, in voxels.
    iterations : int

    Returns
    -------
    ndarray of float32, shape (z, y, x)

    Raises
    ------
    ValueError
        If the contrast is not positive.

    References
    ----------
    .. [1] Weickert, Anisotropic Diffusion in Image Processing, Teubner (1998).
    .. [2] Fernandez & Li, J. Struct. Biol. 144, 152 (2003), doi:10.1016/j.jsb.2003.09.010.
    .. [3] Fernandez & Li, Comput. Sci. Eng. 7, 54 (2005).
    """
    if not contrast > 0:
        raise ValueError(f"contrast must be positive; got {contrast}")
    out = np.array(data, dtype=np.float32)
    for _ in range(iterations):
        blurred = _blur(out, sigma)
        gradient = np.asarray(np.gradient(blurred), dtype=np.float32)
        out = _step(out, gradient, contrast)
    return out


def _blur(data: Array, sigma: float) -> Array:
    return np.asarray(ndimage.gaussian_filter(data, sigma, mode="mirror"), dtype=np.float32)


def _gradient_scale(data: NDArray[Any], sigma: float) -> float:
    """Length that most gradients of the blurred volume stay below: the middle of it shows it."""
    middle = tuple(slice(max(0, n // 2 - 48), n // 2 + 48) for n in data.shape)
    blurred = _blur(np.asarray(data[middle], dtype=np.float32), sigma)
    length = np.sqrt(sum(part**2 for part in np.gradient(blurred)))
    return max(float(np.percentile(length, 90)), float(np.finfo(np.float32).tiny) * 1e6)


@njit(cache=True, nogil=True, parallel=True)
def _step(u: Array, gradient: Array, contrast: float) -> Array:
    """One explicit step of du/dt = div(D grad u), with fluxes through the faces of voxels."""
    nz, ny, nx = u.shape
    out = u.copy()
    shape = (nz, ny, nx)
    for z in prange(nz):
        here = np.zeros(3, np.int64)
        for y in range(ny):
            for x in range(nx):
                total = 0.0
                for axis in range(3):
                    for side in (-1, 1):
                        here[0], here[1], here[2] = z, y, x
                        here[axis] += side
                        if here[axis] < 0 or here[axis] >= shape[axis]:
                            continue
                        b0, b1, b2 = here[0], here[1], here[2]
                        g0 = 0.5 * (gradient[0, z, y, x] + gradient[0, b0, b1, b2])
                        g1 = 0.5 * (gradient[1, z, y, x] + gradient[1, b0, b1, b2])
                        g2 = 0.5 * (gradient[2, z, y, x] + gradient[2, b0, b1, b2])
                        square = g0 * g0 + g1 * g1 + g2 * g2
                        if square < 1e-30:
                            total += u[b0, b1, b2] - u[z, y, x]
                            continue
                        ratio = square / (contrast * contrast)
                        along = 1.0 - math.exp(-_SATURATION / ratio**4) if ratio > 0.05 else 1.0
                        # D = 1 + (along - 1) g g^T / |g|^2; the face sees its row for this axis
                        own = g0 if axis == 0 else (g1 if axis == 1 else g2)
                        difference = side * (u[b0, b1, b2] - u[z, y, x])
                        inner = own * difference
                        for other in range(3):
                            if other != axis:
                                part = g0 if other == 0 else (g1 if other == 1 else g2)
                                inner += (
                                    part
                                    * 0.5
                                    * (_central(u, z, y, x, other) + _central(u, b0, b1, b2, other))
                                )
                        total += side * (difference + (along - 1.0) * own * inner / square)
                out[z, y, x] = u[z, y, x] + _STEP * total
    return out


@njit(cache=True, nogil=True)
def _central(u: Array, z: int, y: int, x: int, axis: int) -> float:
    """Central difference, one-sided halves at the border."""
    nz, ny, nx = u.shape
    if axis == 0:
        return 0.5 * (u[min(z + 1, nz - 1), y, x] - u[max(z - 1, 0), y, x])
    if axis == 1:
        return 0.5 * (u[z, min(y + 1, ny - 1), x] - u[z, max(y - 1, 0), x])
    return 0.5 * (u[z, y, min(x + 1, nx - 1)] - u[z, y, max(x - 1, 0)])


def despeckle(data: NDArray[Any]) -> Array:
    """Replace single voxels that stick out of their neighbourhood by the mean of their neighbours.

    Whatever has an extent of two voxels or more, gold beads too, stays as it is.

    Parameters
    ----------
    data : ndarray, shape (z, y, x)
        May be memory-mapped.

    Returns
    -------
    ndarray of float32, shape (z, y, x)
        In a temporary file where it is large.
    """
    out = allocate(data.shape, np.float32)
    sample = np.asarray(data[:: max(1, len(data) // 8)], dtype=np.float32)
    away = sample[:, 1:-1, 1:-1] - _flat_mean(sample)
    if min(data.shape) < 3 or away.size == 0 or not np.ptp(away) > 0:
        out[:] = data
        return out
    limit = _SPECKLE * robust_scale(away)[1]
    step = max(1, _TILE_VOXELS // (data.shape[1] * data.shape[2]))
    for start in range(0, len(data), step):
        stop = min(start + step, len(data))
        low = max(0, start - 1)
        block = np.asarray(data[low : min(stop + 1, len(data))], dtype=np.float32)
        out[start:stop] = _without_speckles(block, limit)[start - low :][: stop - start]
        release(data)
        release(out)
    return out


def _flat_mean(data: Array) -> Array:
    """Mean of the four neighbours in a section."""
    return (
        data[:, :-2, 1:-1] + data[:, 2:, 1:-1] + data[:, 1:-1, :-2] + data[:, 1:-1, 2:]
    ) / np.float32(4)


@njit(cache=True, nogil=True, parallel=True)
def _without_speckles(data: Array, limit: float) -> Array:
    nz, ny, nx = data.shape
    out = data.copy()
    for z in prange(nz):
        for y in range(ny):
            for x in range(nx):
                # the median of the six neighbours does not mind one that is a speckle itself
                near = np.empty(6, np.float32)
                near[0] = data[max(z - 1, 0), y, x]
                near[1] = data[min(z + 1, nz - 1), y, x]
                near[2] = data[z, max(y - 1, 0), x]
                near[3] = data[z, min(y + 1, ny - 1), x]
                near[4] = data[z, y, max(x - 1, 0)]
                near[5] = data[z, y, min(x + 1, nx - 1)]
                here = data[z, y, x]
                if abs(here - near.mean()) > 0.5 * limit:
                    near.sort()
                    middle = 0.5 * (near[2] + near[3])
                    if abs(here - middle) > limit:
                        out[z, y, x] = middle
    return out
