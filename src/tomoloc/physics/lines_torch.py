"""Projection's inner loops on a torch device such as a GPU.

Both ways are weighted sums over bags of rows, each sum in one fixed order: the same input gives the
same bytes on the same device.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from tomoloc.physics.projection import OVERSAMPLING, LineGeometry

if TYPE_CHECKING:
    import torch

__all__ = ["back_project_lines", "project_lines"]

Array = NDArray[np.float32]


def project_lines(
    volume: Array,
    geometry: LineGeometry,
    *,
    batch: slice,
    gain: Array,
    periodic: bool,
    device: str,
) -> Array:
    """Splat voxel lines on to detector lines.

    Parameters
    ----------
    volume : ndarray, shape (z, x, y)
    geometry : LineGeometry
    batch : slice
        Which n of the geometry's images.
    gain : ndarray, shape (n_pixels // 2 + 1,)
        Filter of the lines' transforms.
    periodic : bool
        Whether the volume repeats itself along x.
    device : str
        Of torch, such as "cuda".

    Returns
    -------
    ndarray of float32, shape (n, n_pixels, y)
    """
    import torch

    shape = volume.shape
    rows = torch.from_numpy(volume.reshape(-1, shape[2])).to(device)
    filters = torch.tensor(gain, device=device)[:, None]
    n = batch.stop - batch.start
    lines = np.empty((n, geometry.n_pixels, shape[2]), dtype=np.float32)
    for tilt, line in zip(range(batch.start, batch.stop), lines, strict=True):
        index, weight = _voxels_of_samples(geometry, tilt, shape=shape, like=rows, wrap=periodic)
        fine = torch.nn.functional.embedding_bag(index, rows, per_sample_weights=weight, mode="sum")
        spectrum = torch.fft.rfft(fine, dim=0)[: len(gain)] * filters
        line[:] = torch.fft.irfft(spectrum, n=geometry.n_pixels, dim=0).cpu().numpy()
    return lines


def back_project_lines(
    lines: Array,
    geometry: LineGeometry,
    *,
    batch: slice,
    gains: Array,
    shape: tuple[int, int, int],
    device: str,
) -> Array:
    """Gather filtered detector lines in a volume: with `project_lines`' gain, its adjoint.

    Parameters
    ----------
    lines : ndarray, shape (n, n_pixels, y)
    geometry : LineGeometry
    batch : slice
        The geometry's n images whose lines these are.
    gains : ndarray, shape (n, n_pixels // 2 + 1)
        Filter of each line's transform, times `OVERSAMPLING`.
    shape : tuple of int (z, x, y)
    device : str

    Returns
    -------
    ndarray of float32, shape (z, x, y)
    """
    import torch

    volume = torch.zeros((shape[0] * shape[1], shape[2]), device=device)
    for tilt, line, gain in zip(range(batch.start, batch.stop), lines, gains, strict=True):
        spectrum = torch.fft.rfft(torch.from_numpy(line).to(device), dim=0)
        spectrum *= torch.tensor(gain, device=device)[:, None]
        fine = torch.fft.irfft(spectrum, n=OVERSAMPLING * geometry.n_pixels, dim=0)
        index, weight = _samples_of_voxels(geometry, tilt, shape=shape, like=fine)
        volume += torch.nn.functional.embedding_bag(
            index, fine, per_sample_weights=weight, mode="sum"
        )
    return volume.reshape(shape).cpu().numpy()


def _samples_of_voxels(
    geometry: LineGeometry, tilt: int, *, shape: tuple[int, ...], like: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Indices and weights of the four fine samples around each voxel, shape (z * x, 4)."""
    import torch

    x = torch.arange(shape[1], dtype=torch.float64, device=like.device)
    start, step = _starts(geometry, tilt, shape=shape, like=like)
    place = (start[:, None] + step * x).reshape(-1, 1)
    index = place.floor().long() - 1 + torch.arange(4, device=like.device)
    inside = (index[:, :1] >= 0) & (index[:, 3:] < len(like))
    weight = _spline(place - index) * inside
    return index.clamp(0, len(like) - 1), weight.float()


def _voxels_of_samples(
    geometry: LineGeometry, tilt: int, *, shape: tuple[int, ...], like: torch.Tensor, wrap: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """Indices and weights of the voxels that fall near each fine sample, shape (sample, m)."""
    import torch

    nz, nx = shape[:2]
    n_fine = OVERSAMPLING * geometry.n_pixels
    sample = torch.arange(n_fine, dtype=torch.float64, device=like.device)[:, None]
    start, step = _starts(geometry, tilt, shape=shape, like=like)
    # A spline reaches two samples; seen edge-on, all of a row's voxels fall on the same ones.
    spread = max(step, 1e-6)
    first = ((sample - 2 - start) / spread).ceil()
    taps = int(4 / spread) + 1
    if not wrap:
        first, taps = first.clamp(0, nx), min(taps, nx)
    x = first[..., None] + torch.arange(taps, device=like.device)
    place = start[:, None] + step * x
    # Those that the lines hold only in part are left out, as they are in the other direction.
    inside = (place >= 1) & (place.floor() < n_fine - 2)
    if not wrap:
        inside &= x < nx
    weight = (_spline(place - sample[..., None]) * inside).float()
    index = x.long() % nx + nx * torch.arange(nz, device=like.device)[:, None]
    return index.reshape(n_fine, -1), weight.reshape(n_fine, -1)


def _starts(
    geometry: LineGeometry, tilt: int, *, shape: tuple[int, ...], like: torch.Tensor
) -> tuple[torch.Tensor, float]:
    """Fine sample on which the first voxel of each slice falls, shape (z,), and their step."""
    import torch

    nz, nx = shape[:2]
    step = OVERSAMPLING * float(geometry.cosines[tilt])
    z = torch.arange(nz, dtype=torch.float64, device=like.device) - (nz - 1) / 2
    middle = float(geometry.centers[tilt]) + z * float(geometry.sines[tilt])
    return OVERSAMPLING * middle - step * (nx - 1) / 2, step


def _spline(distance: torch.Tensor) -> torch.Tensor:
    """Cubic B-spline, with `physics.projection.spline_weights` at its samples."""
    away = distance.abs()
    near = 2 / 3 - away**2 + away**3 / 2
    return near.where(away < 1, (2 - away).clamp(min=0) ** 3 / 6)
