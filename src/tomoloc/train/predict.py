"""A network that sees a whole tile at once over a volume, in tiles that fade into each other."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tomoloc.arrays import allocate
from tomoloc.tiling import Tiling, blend_tiles
from tomoloc.train.frames import choose_turns

__all__ = ["predict"]

_OVERLAP = 16
"""Voxels that tiles reach into each other, each way."""
_LEAST_TILE = (4 * _OVERLAP) ** 3
"""Voxels; in smaller tiles, most of the work would be done several times."""
_BYTES_PER_VOXEL = 192
"""Memory that a network takes that does not tell it."""
_MAX_BYTES = 1 << 30


def predict(
    network: Callable[[Tensor], Tensor],
    data: NDArray[np.number],
    *,
    device: str = "cpu",
    half: bool = False,
    views: int = 1,
    scale: tuple[float, float] = (0.0, 1.0),
    max_bytes: int = _MAX_BYTES,
) -> NDArray[np.float32]:
    """Compute the probability or heat of each kind, in tiles that fade into each other.

    Parameters
    ----------
    network : callable
        A `tomoloc.nn.unet.SegmentationNetwork` or its like, on the device, set to inference, a
        `tomoloc.nn.int8_unet.Int8UNet` or a `tomoloc.nn.monai.MonaiHeatNetwork`.
    data : ndarray, shape (z, y, x)
        Protein bright; may be memory-mapped.
    device : str
    half : bool
        Whether to compute in bfloat16.
    views : {1, 2, 4}
        Take the mean over so many `HALF_TURNS`, of which the first is none.
    scale : tuple of float
        Median and deviation of the data, which become 0 and 1.
    max_bytes : int
        Memory for what is computed at one time, about; more, if a tile needs it.

    Returns
    -------
    ndarray of float32, shape (kinds, z, y, x)
        Of every voxel, or of every second one if that is the network's stride; in a temporary file
        where it is large.
    """
    turns = choose_turns(views)
    period = int(getattr(network, "period", 1))
    each = int(getattr(network, "bytes_per_voxel", _BYTES_PER_VOXEL)) // (2 if half else 1)
    room = max(max_bytes // each, _LEAST_TILE)
    stride, kinds = int(getattr(network, "stride", 1)), int(getattr(network, "kinds", 1))
    z, y, x = data.shape
    tiling = Tiling(
        shape=(z, y, x), stride=stride, offset=(stride - 1) / 2, period=period, halo=_OVERLAP,
        mirror=True, max_voxels=room,
    )  # fmt: skip

    @torch.inference_mode()
    def compute(tile: NDArray[np.float32]) -> NDArray[np.float32]:
        tile = (tile - np.float32(scale[0])) / np.float32(scale[1])
        parts = []
        for axes in turns:
            x = torch.from_numpy(np.flip(tile, axes).copy())[None, None].to(device)
            x = x.contiguous(memory_format=torch.channels_last_3d)
            with torch.autocast(torch.device(device).type, dtype=torch.bfloat16, enabled=half):
                # Of those that tell the class of a voxel, the first is background.
                found = network(x)[0, -kinds:].float().cpu().numpy()
            parts.append(np.flip(found, tuple(axis + 1 for axis in axes)))
        return np.asarray(sum(parts[1:], parts[0]) / np.float32(len(parts)))

    out = allocate((kinds, *tiling.output_shape), np.float32)
    out[:] = 0
    blend_tiles(data, compute, tiling=tiling, out=out, description="segmenting")
    return out
