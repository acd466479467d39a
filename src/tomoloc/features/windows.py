"""A window network over a volume: one window for each point. Thorough, and very slow."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from tomoloc.nn.window import WindowEncoder
from tomoloc.tiling import Shape, Slices, Tiling, map_tiles

__all__ = ["WindowRun"]

_BATCH = {"cpu": 4, "cuda": 64}
_TILE_VOXELS = 100_000
"""With its halo; tiles are small, so that the progress bar moves."""


@dataclass(frozen=True, eq=False, kw_only=True)
class WindowRun:
    """One volume on its way through a window network.

    Parameters
    ----------
    network : WindowEncoder
        On its device, in the precision to compute in.
    data : ndarray, shape (z, y, x)
        Protein bright; it is mirrored outside. May be memory-mapped.
    """

    network: WindowEncoder
    data: NDArray[Any]

    @property
    def offset(self) -> float:
        """Voxel at which the first point stands along each axis."""
        return 0.0

    @property
    def channels(self) -> int:
        """Of the output."""
        return self.network.channels

    @property
    def output_shape(self) -> Shape:
        """Points along z, y and x: every second voxel from the first one on."""
        return self._tiling.output_shape

    def blocks(self) -> Iterator[tuple[Slices, NDArray[np.float16]]]:
        """Yield the output in blocks of shape (z, y, x, channels), and where they belong."""
        tiles = map_tiles(self.data, self.encode, tiling=self._tiling, description="embedding")
        for target, block in tiles:
            yield target, np.moveaxis(block, 0, -1)

    @property
    def halo(self) -> int:
        """Voxels around a point that its window reaches."""
        return self.network.window // 2

    @property
    def _tiling(self) -> Tiling:
        z, y, x = self.data.shape
        return Tiling(
            shape=(z, y, x),
            stride=self.network.stride,
            period=self.network.stride,
            halo=self.halo,
            mirror=True,
            max_voxels=_TILE_VOXELS,
        )

    @torch.inference_mode()
    def encode(self, tile: NDArray[np.float32]) -> NDArray[np.float16]:
        """Encode all windows of a tile (z, y, x) that start at its even voxels.

        Returns
        -------
        ndarray of float16, shape (channels, z, y, x)
        """
        side, step = self.network.window, self.network.stride
        windows = np.lib.stride_tricks.sliding_window_view(tile, (side, side, side))
        windows = windows[::step, ::step, ::step]
        shape = windows.shape[:3]
        out = np.empty((self.network.channels, *shape), np.float16)
        weight = next(self.network.parameters())
        batch = _BATCH[weight.device.type]
        for first in range(0, out[0].size, batch):
            z, y, x = np.unravel_index(np.arange(first, min(first + batch, out[0].size)), shape)
            part = torch.from_numpy(windows[z, y, x])[:, None].to(weight.device)
            deviation, mean = torch.std_mean(part, dim=(1, 2, 3, 4), keepdim=True, correction=0)
            part = (part - mean) / deviation.clamp(min=torch.finfo(part.dtype).tiny)
            vector = self.network(part.to(weight.dtype)).float()
            out[:, z, y, x] = vector.cpu().numpy().T
        return out
