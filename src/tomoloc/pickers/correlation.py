"""Local correlation of a tomogram with a reference in many orientations, on a CPU or a GPU."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numba import njit, prange
from numpy.typing import NDArray
from scipy import fft
from scipy.spatial.transform import Rotation

from tomoloc.progress import progress

if TYPE_CHECKING:
    import torch

__all__ = [
    "OVERSAMPLING",
    "RotatedReference",
    "backward",
    "correlate",
    "correlate_kernel",
    "forward",
    "kernel_spectrum",
    "spherical_mask",
    "turn_density",
]

OVERSAMPLING = 2
"""References are sampled this much finer than the tomogram, so that turning them loses little."""

_BATCH = 8


def spherical_mask(size: int, diameter: float) -> NDArray[np.float32]:
    """Make a ball in the middle of a box, its edge a cosine over two voxels; sums to one.

    Parameters
    ----------
    size : int
        Edge of the box, odd, in voxels.
    diameter : float
        Of the ball at half height, in voxels.
    """
    axis = np.arange(size) - size // 2
    radius = np.sqrt(axis[:, None, None] ** 2 + axis[:, None] ** 2 + axis**2)
    edge = np.clip((radius - diameter / 2 + 1) / 2, 0, 1)
    mask = (1 + np.cos(np.pi * edge)) / 2
    return (mask / mask.sum()).astype(np.float32)


@dataclass(frozen=True, eq=False)
class RotatedReference:
    """A reference that can be turned, filtered and masked.

    Parameters
    ----------
    density : ndarray, shape (m, m, m)
        The reference `OVERSAMPLING` times finer than the tomogram, its centre in the middle of an
        odd cube.
    weights : ndarray, shape (n, n, n // 2 + 1)
        Multiplies the Fourier transform of the turned reference on the tomogram's grid: missing
        wedge, CTF, dose, whitening, band limit. n is odd.
    mask : ndarray, shape (n, n, n)
        See `spherical_mask`.
    """

    density: NDArray[np.float32]
    weights: NDArray[np.float32]
    mask: NDArray[np.float32]

    def kernels(self, rotations: Rotation, device: str) -> torch.Tensor:
        """Turn, filter, normalise and mask the reference.

        Parameters
        ----------
        rotations : Rotation of length b
            Reference to tomogram.
        device : str

        Returns
        -------
        Tensor, shape (b, n, n, n)
            Kernels whose sum of products with a tomogram, over its local standard deviation, is
            the mask-weighted Pearson correlation.
        """
        import torch

        return self.profiles(rotations, device) * torch.as_tensor(self.mask, device=device)

    def profiles(self, rotations: Rotation, device: str) -> torch.Tensor:
        """Turn, filter and normalise the reference: mean 0 and deviation 1 under the mask.

        Parameters
        ----------
        rotations : Rotation of length b
            Reference to tomogram.
        device : str

        Returns
        -------
        Tensor, shape (b, n, n, n)
        """
        import torch

        size = self.mask.shape[0]
        mask = torch.as_tensor(self.mask, device=device)
        matrices = rotations.as_matrix().astype(np.float32)
        if device == "cpu":
            places = np.indices(self.mask.shape).reshape(3, -1).T - size // 2
            turned = torch.from_numpy(turn_density(self.density, matrices, places))
            turned = turned.reshape(-1, *self.mask.shape)
        else:
            turned = self._turn_by_torch(torch.as_tensor(matrices, device=device))
        weights = torch.as_tensor(self.weights, device=device)
        filtered = torch.fft.irfftn(
            torch.fft.rfftn(turned, dim=(1, 2, 3)) * weights, s=(size,) * 3, dim=(1, 2, 3)
        )
        mean = (filtered * mask).sum(dim=(1, 2, 3), keepdim=True)
        centred = filtered - mean
        variance = (centred**2 * mask).sum(dim=(1, 2, 3), keepdim=True)
        return centred / variance.clamp_min(1e-30).sqrt()

    def _turn_by_torch(self, matrices: torch.Tensor) -> torch.Tensor:
        """Do what `turn_density` does at all voxels of the box."""
        import torch

        size, device = self.mask.shape[0], matrices.device
        density = torch.as_tensor(self.density, device=device)
        # grid_sample wants -1 and 1 at the centres of the first and last voxels, order xyz.
        axis = (torch.arange(size, device=device, dtype=torch.float32) - size // 2) * (
            2 * OVERSAMPLING / (density.shape[0] - 1)
        )
        z, y, x = torch.meshgrid(axis, axis, axis, indexing="ij")
        places = torch.stack([x, y, z], dim=-1)
        # A tomogram place p shows the reference at R^-1 p; for row vectors that is p R.
        grids = torch.einsum("zyxi,bij->bzyxj", places, matrices)
        return torch.nn.functional.grid_sample(
            density.expand(len(matrices), 1, *density.shape), grids, align_corners=True
        )[:, 0]


def correlate(
    tomogram: NDArray[np.floating[Any]],
    references: list[RotatedReference],
    rotations: Rotation,
    *,
    device: str = "cpu",
) -> list[tuple[NDArray[np.float32], NDArray[np.int32]]]:
    """Find at each voxel the best local correlation over all orientations.

    The fast local correlation function [1]_: one Fourier transform of each turned reference and
    one back give its correlation at all places. The mask is a ball, so the local mean and
    standard deviation of the tomogram are the same for all orientations.

    Parameters
    ----------
    tomogram : ndarray, shape (z, y, x)
        Filtered like the references; particles positive.
    references : list of RotatedReference
        With one and the same mask.
    rotations : Rotation of length r
        Orientations to try, reference to tomogram.
    device : str
        "cpu" or "cuda".

    Returns
    -------
    list of (score, index)
        For each reference the correlation coefficient from -1 to 1 and the index of the best
        rotation, each of shape (z, y, x). Beyond the border the tomogram counts as its mean.

    References
    ----------
    .. [1] Roseman, Ultramicroscopy 94, 225 (2003), doi:10.1016/S0304-3991(02)00333-9.
    """
    import torch

    mask = references[0].mask
    half = mask.shape[0] // 2
    shape = tomogram.shape
    data = torch.as_tensor(np.ascontiguousarray(tomogram, dtype=np.float32), device=device)
    data = data - data.mean()
    # The zeros added on one side serve the other too, as the transform is periodic.
    padded = tuple(fft.next_fast_len(n + half, real=True) for n in shape)
    spectrum = forward(data, padded)
    deviation = _local_deviation(data, torch.as_tensor(mask, device=device), padded)

    best = [torch.full(shape, -torch.inf, device=device) for _ in references]
    index = [torch.zeros(shape, dtype=torch.int32, device=device) for _ in references]
    starts = range(0, len(rotations), _BATCH)
    for start in progress(starts, f"correlating {len(rotations)} orientations"):
        batch = rotations[start : start + _BATCH]
        for reference, scores, where in zip(references, best, index, strict=True):
            for i, kernel in enumerate(reference.kernels(batch, device)):
                product = correlate_kernel(spectrum, kernel, padded, shape)
                better = product > scores
                torch.maximum(scores, product, out=scores)
                where.masked_fill_(better, start + i)
    return [
        ((scores / deviation).cpu().numpy(), where.cpu().numpy())
        for scores, where in zip(best, index, strict=True)
    ]


def correlate_kernel(
    spectrum: torch.Tensor, kernel: torch.Tensor, padded: tuple[int, ...], shape: tuple[int, ...]
) -> torch.Tensor:
    """Correlate what `forward` gives with a kernel; keep the unpadded part."""
    product = kernel_spectrum(kernel, padded).mul_(spectrum)
    half = kernel.shape[0] // 2
    return backward(product, padded, [slice(half, half + n) for n in shape])


def kernel_spectrum(kernel: torch.Tensor, padded: tuple[int, ...]) -> torch.Tensor:
    """Transform a kernel for the correlation with what `forward` gives.

    Kernels count from a corner, so the correlation at a voxel is half a kernel after it.
    """
    # Turning the small kernel around in space spares conjugating its large transform.
    return forward(kernel.flip((0, 1, 2)), padded)


def _local_deviation(
    data: torch.Tensor, mask: torch.Tensor, padded: tuple[int, ...]
) -> torch.Tensor:
    """Mask-weighted standard deviation around each voxel; empty regions get a floor."""
    shape = tuple(data.shape)
    mean = correlate_kernel(forward(data, padded), mask, padded, shape)
    square = correlate_kernel(forward(data**2, padded), mask, padded, shape)
    deviation = (square - mean**2).clamp_min(0).sqrt()
    return deviation.clamp_min(max(0.1 * float(deviation.median()), 1e-20))


def forward(data: torch.Tensor, padded: tuple[int, ...]) -> torch.Tensor:
    """Real-to-complex transform with zero padding, one axis at a time so that zeros cost little."""
    import torch

    if data.is_cuda:
        return torch.fft.rfftn(data, s=padded)
    out = fft.rfft(data.numpy(), padded[2], axis=2, workers=-1)
    out = fft.fft(out, padded[1], axis=1, workers=-1, overwrite_x=True)
    return torch.from_numpy(fft.fft(out, padded[0], axis=0, workers=-1, overwrite_x=True))


def backward(product: torch.Tensor, padded: tuple[int, ...], part: Sequence[slice]) -> torch.Tensor:
    """Inverse of `forward`, cut axis by axis to a part."""
    import torch

    z, y, x = part
    if product.is_cuda:
        return torch.fft.irfftn(product, s=padded)[z, y, x]
    out = fft.ifft(product.numpy(), axis=0, workers=-1, overwrite_x=True)[z]
    out = fft.ifft(out, axis=1, workers=-1, overwrite_x=True)[:, y]
    return torch.from_numpy(fft.irfft(out, padded[2], axis=2, workers=-1)[:, :, x])


@njit(cache=True, nogil=True, parallel=True, fastmath=True)
def turn_density(
    density: NDArray[np.float32], matrices: NDArray[np.float32], near: NDArray[np.intp]
) -> NDArray[np.float32]:
    """Turn a reference and read it at places of the tomogram's grid, by trilinear interpolation.

    Parameters
    ----------
    density : ndarray, shape (m, m, m)
        See `RotatedReference`.
    matrices : ndarray, shape (b, 3, 3)
        Rotations xyz, reference to tomogram.
    near : ndarray of int, shape (v, 3)
        Voxels zyx, counted from the middle.

    Returns
    -------
    ndarray, shape (b, v)
    """
    n = density.shape[0]
    flat = density.ravel()
    row, plane = np.uintp(n), np.uintp(n * n)
    one = np.uintp(1)
    middle, last = np.float32(n // 2), np.float32(n - 1)
    places = near.astype(np.float32) * np.float32(OVERSAMPLING)
    out = np.zeros((len(matrices), len(near)), np.float32)
    for i in prange(len(matrices)):
        m = matrices[i]
        for j in range(len(places)):
            pz, py, px = places[j, 0], places[j, 1], places[j, 2]
            # A tomogram place p shows the reference at R^-1 p.
            x = px * m[0, 0] + py * m[1, 0] + pz * m[2, 0] + middle
            y = px * m[0, 1] + py * m[1, 1] + pz * m[2, 1] + middle
            z = px * m[0, 2] + py * m[1, 2] + pz * m[2, 2] + middle
            if min(x, min(y, z)) < 0 or max(x, max(y, z)) >= last:
                continue
            k, r, c = np.uintp(z), np.uintp(y), np.uintp(x)
            fz, fy, fx = z - np.float32(k), y - np.float32(r), x - np.float32(c)
            a = k * plane + r * row + c
            b = a + row
            front = flat[a] + fx * (flat[a + one] - flat[a])
            front += fy * (flat[b] + fx * (flat[b + one] - flat[b]) - front)
            a, b = a + plane, b + plane
            back = flat[a] + fx * (flat[a + one] - flat[a])
            back += fy * (flat[b] + fx * (flat[b + one] - flat[b]) - back)
            out[i, j] = front + fz * (back - front)
    return out
