"""Blobs, sheets and lines at several scales: what the second derivatives of a volume say.

A particle is brighter than what surrounds it in all directions, a membrane in one, a filament in
two. The eigenvalues of the matrix of second derivatives under a Gaussian (the Hessian in scale
space [1]_) tell these apart whatever their orientation, and as derivatives they have no mean: ice
thickness and uneven staining do not matter. They are given in units of the noise of the quietest
part of the volume.

References
----------
.. [1] Lindeberg, Int. J. Comput. Vis. 30, 79 (1998), doi:10.1023/A:1008045108935; Frangi et al.,
   MICCAI 1998, doi:10.1007/BFb0056195.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numba import njit, prange
from numpy.typing import NDArray
from scipy import ndimage

__all__ = ["SCALES", "ScaleSpace", "curvatures"]

Array = NDArray[np.float32]

SCALES = (20.0, 27.0, 36.0, 48.0)
"""Standard deviations of the Gaussians in Å: blobs of 70 to 170 Å."""
_TRUNCATE = 3.0
_WINDOW = 70.0
"""Standard deviation in Å of the windows in which deviations are measured."""
_QUIET = 10.0
"""Percentile of these deviations that is taken for the noise: there are no particles."""
_QUIET_IN_NOISE = np.array([0.951, 0.928, 0.898, 0.854])
"""The same percentile in white noise, over its deviation, at each of `SCALES`."""
_BLANK = 0.1
"""Part of the median deviation below which there is no image."""


@dataclass(frozen=True, kw_only=True)
class ScaleSpace:
    """Curvatures of a volume at several scales, in units of their noise.

    Parameters
    ----------
    voxel_spacing : float
    noise : tuple of float
        Of the sum of curvatures at each of `SCALES`.
    """

    voxel_spacing: float
    noise: tuple[float, ...] = (1.0,) * len(SCALES)

    @property
    def halo(self) -> int:
        """Voxels that a place needs around it."""
        return math.ceil(_TRUNCATE * SCALES[-1] / self.voxel_spacing + 0.5) + 1

    def __call__(self, tile: Array) -> tuple[Array, Array]:
        """Blur and differentiate.

        Parameters
        ----------
        tile : ndarray, shape (z, y, x)
            With its halo.

        Returns
        -------
        curvature : ndarray of float32, shape (scale, 3, z, y, x)
            Negative eigenvalues of the Hessian over the noise, the largest first, without the halo.
        blurred : ndarray of float32, shape (z, y, x)
            At the second scale.
        """
        halo = self.halo
        core = (slice(halo, -halo),) * 3
        shape = tuple(n - 2 * halo for n in tile.shape)
        out = np.empty((len(SCALES), 3, *shape), dtype=np.float32)
        kept = np.empty(shape, dtype=np.float32)
        before, blurred = 0.0, tile
        for number, (scale, noise) in enumerate(zip(SCALES, self.noise, strict=True)):
            # Gaussians of Gaussians: their variances add
            width = math.sqrt(scale**2 - before**2) / self.voxel_spacing
            blurred = ndimage.gaussian_filter(blurred, width, truncate=_TRUNCATE, mode="nearest")
            before = scale
            factor = (scale / self.voxel_spacing) ** 2 / noise
            rim = tuple(slice(halo - 1, n - halo + 1) for n in tile.shape)
            out[number] = curvatures(np.ascontiguousarray(blurred[rim]), factor)
            if number == 1:
                kept[:] = blurred[core]
        return out, kept

    @classmethod
    def measure(cls, blocks: list[Array], *, voxel_spacing: float) -> ScaleSpace:
        """Find out the noise from blocks (with halo) spread over a volume.

        Raises
        ------
        ValueError
            If the blocks are flat.
        """
        plain = cls(voxel_spacing=voxel_spacing)
        width = _WINDOW / voxel_spacing
        local = []
        for block in blocks:
            trace = plain(block)[0].sum(axis=1)
            power = [ndimage.gaussian_filter(part**2, width, truncate=2.5) for part in trace]
            local.append(np.sqrt(np.reshape(power, (len(SCALES), -1))))
        deviation = np.concatenate(local, axis=1)
        # Blank margins are no quiet ice.
        filled = (deviation > _BLANK * np.median(deviation, axis=1, keepdims=True)).all(axis=0)
        deviation = deviation[:, filled] if filled.any() else deviation
        noise = np.percentile(deviation, _QUIET, axis=1) / _QUIET_IN_NOISE
        if not (noise > 0).all():
            raise ValueError("the volume is flat: there is nothing to see in it")
        return cls(voxel_spacing=voxel_spacing, noise=tuple(float(value) for value in noise))


@njit(cache=True, nogil=True, parallel=True, fastmath=True)
def curvatures(blurred: Array, factor: float) -> Array:
    """Negative eigenvalues of the Hessian times a factor, the largest first.

    The three roots of the characteristic polynomial in closed form (Smith, Commun. ACM 4, 168
    (1961), doi:10.1145/355578.366316).

    Parameters
    ----------
    blurred : ndarray, shape (z + 2, y + 2, x + 2)
    factor : float

    Returns
    -------
    ndarray of float32, shape (3, z, y, x)
    """
    nz, ny, nx = blurred.shape[0] - 2, blurred.shape[1] - 2, blurred.shape[2] - 2
    out = np.empty((3, nz, ny, nx), np.float32)
    g = blurred
    for k in prange(nz):
        z = k + 1
        for j in range(ny):
            y = j + 1
            for i in range(nx):
                x = i + 1
                twice = 2 * g[z, y, x]
                a = g[z - 1, y, x] + g[z + 1, y, x] - twice
                b = g[z, y - 1, x] + g[z, y + 1, x] - twice
                c = g[z, y, x - 1] + g[z, y, x + 1] - twice
                d = 0.25 * (
                    g[z + 1, y + 1, x] + g[z - 1, y - 1, x]
                    - g[z + 1, y - 1, x] - g[z - 1, y + 1, x]
                )  # fmt: skip
                e = 0.25 * (
                    g[z + 1, y, x + 1] + g[z - 1, y, x - 1]
                    - g[z + 1, y, x - 1] - g[z - 1, y, x + 1]
                )  # fmt: skip
                f = 0.25 * (
                    g[z, y + 1, x + 1] + g[z, y - 1, x - 1]
                    - g[z, y + 1, x - 1] - g[z, y - 1, x + 1]
                )  # fmt: skip
                mean = (a + b + c) / 3
                a, b, c = a - mean, b - mean, c - mean
                p = math.sqrt((a * a + b * b + c * c + 2 * (d * d + e * e + f * f)) / 6) + 1e-20
                half = (
                    a * (b * c - f * f) - d * (d * c - f * e) + e * (d * f - b * e)
                ) / (2 * p * p * p)  # fmt: skip
                phi = math.acos(min(1.0, max(-1.0, half))) / 3
                most = mean + 2 * p * math.cos(phi)
                least = mean + 2 * p * math.cos(phi + 2.0943951023931953)
                out[0, k, j, i] = -factor * least
                out[1, k, j, i] = -factor * (3 * mean - most - least)
                out[2, k, j, i] = -factor * most
    return out


def blobness(curvature: NDArray[Any]) -> Array:
    """Geometric mean of the three curvatures, shape (..., 3, z, y, x); 0 where one is negative.

    A sheet or a line has one or two that are small, and so little of it.
    """
    positive = np.maximum(curvature, 0)
    product = positive[..., 0, :, :, :] * positive[..., 1, :, :, :] * positive[..., 2, :, :, :]
    return np.cbrt(product, dtype=np.float32)
