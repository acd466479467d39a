"""A network that sees a whole tile at once over a volume, in tiles that fade into each other."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tomoloc.nn.monai import MonaiHeatNetwork
from tomoloc.tiling import Shape, Slices
from tomoloc.train.predict import predict

__all__ = ["BlendedRun"]


@dataclass(frozen=True, eq=False, kw_only=True)
class BlendedRun:
    """One volume on its way through a network of MONAI.

    Parameters
    ----------
    network : MonaiHeatNetwork
        On its device, set to inference.
    data : ndarray, shape (z, y, x)
        Protein bright; it is mirrored outside. May be memory-mapped.
    median, deviation : float
        They become 0 and 1.
    tile_bytes : int
        Memory that the tensors of one tile take, about.
    half : bool
        Whether to compute in bfloat16.
    views : {1, 2, 4}
        Average over so many half turns, of which the first is none.
    """

    network: MonaiHeatNetwork
    data: NDArray[Any]
    median: float
    deviation: float
    tile_bytes: int
    half: bool = False
    views: int = 1

    @property
    def offset(self) -> float:
        """Voxel at which the first point stands along each axis."""
        return (self.network.stride - 1) / 2

    @property
    def channels(self) -> int:
        """Of the output."""
        return self.network.kinds

    @property
    def output_shape(self) -> Shape:
        """Points along z, y and x: those that lie inside the volume."""
        z, y, x = (max(1, n // self.network.stride) for n in self.data.shape)
        return z, y, x

    def blocks(self) -> Iterator[tuple[Slices, NDArray[np.float16]]]:
        """Yield the output, shape (z, y, x, channels), in one block, and where it belongs."""
        heat = predict(
            self.network,
            self.data,
            device=next(self.network.parameters()).device.type,
            half=self.half,
            views=self.views,
            scale=(self.median, self.deviation),
            max_bytes=self.tile_bytes,
        )
        z, y, x = (slice(0, n) for n in self.output_shape)
        yield (z, y, x), np.moveaxis(heat, 0, -1).astype(np.float16)
