"""A dense encoder over volumes of any size, level by level, in bounded memory.

Tiles through the whole network would need its wide halo, which for thick volumes is most of the
work. Here each level of the network goes over the volume in tiles of its own, which need only the
few points that one level's convolutions reach; what the levels hand on is kept in memory, or in a
nameless temporary file where it is large. The result is that of the whole volume at once, with a
mirrored margin around it: networks are not trained on what they make of their own borders.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tomoloc.arrays import allocate, release
from tomoloc.nn.encoder import DenseNetwork
from tomoloc.nn.int8 import Int8Network
from tomoloc.progress import progress
from tomoloc.tiling import Shape, Slices, Tile, Tiling, read_mirrored

__all__ = ["DenseRun"]


_MARGIN = 8
"""Voxels around the volume, at least."""


@dataclass(frozen=True, eq=False, kw_only=True)
class DenseRun:
    """One volume on its way through a dense encoder.

    Parameters
    ----------
    network : DenseNetwork or Int8Network
        Fused, on its device, in the precision to compute in.
    data : ndarray, shape (z, y, x)
        May be memory-mapped.
    median, deviation : float
        They become 0 and 1.
    tile_bytes : int
        Memory that the tensors of one tile take, about.
    flipped : tuple of int
        Axes zyx along which the network sees the volume from its other end. What it gives is
        flipped back: the grid is the same, also where a side is odd.
    """

    network: DenseNetwork | Int8Network
    data: NDArray[Any]
    median: float
    deviation: float
    tile_bytes: int
    flipped: tuple[int, ...] = ()

    @property
    def offset(self) -> float:
        """Voxel at which the first point stands along each axis."""
        return (self.network.stride - 1) / 2

    @property
    def margin(self) -> int:
        """Mirrored voxels around the volume."""
        return _round_up(_MARGIN, self.network.period)

    @property
    def channels(self) -> int:
        """Of the output."""
        return self.network.outputs

    @property
    def output_shape(self) -> Shape:
        """Points along z, y and x: those that lie inside the volume, and at least one."""
        z, y, x = (max(1, n // self.network.stride) for n in self.data.shape)
        return z, y, x

    @torch.inference_mode()
    def blocks(self) -> Iterator[tuple[Slices, NDArray[np.float16]]]:
        """Yield the output in blocks of shape (z, y, x, channels), and where they belong."""
        levels = len(self.network.widths)
        kept: list[_Points] = []
        for level in range(levels):
            kept.append(self._descend(level, kept[-1] if kept else None))
        coarse = kept.pop()
        for level in reversed(range(1, levels - 1)):
            coarse = self._ascend(level, coarse, kept.pop())
        for tile in progress(list(self._tiles_out()), "embedding"):
            if levels > 1:
                x, below = self._ascend_tile(0, tile, coarse, kept[0])
            else:
                x = below = self._load(coarse, tile.start, tile.stop)
            answer = self.network.answer(x, below)[0].permute(1, 2, 3, 0)[tile.inner]
            place = self._flip(tile.target, self.output_shape)
            yield place, np.flip(self._finish(answer), self.flipped)

    def _descend(self, level: int, finer: _Points | None) -> _Points:
        tiling = Tiling(
            shape=self._level_shape(level),
            halo=self.network.reach_down(level),
            max_voxels=self._points_down(level),
        )
        out = self._room(level)
        for tile in progress(tiling.tiles(), f"level {level + 1}"):
            start, stop = (_scaled(corner, 2, 1) for corner in (tile.start, tile.stop))
            x = self._voxels(start, stop) if finer is None else self._load(finer, start, stop)
            out.keep(tile, self.network.descend(x, level=level))
        return out

    def _ascend(self, level: int, coarse: _Points, kept: _Points) -> _Points:
        out = self._room(level)
        for tile in progress(self._tiles_up(level), f"level {level + 1}, back"):
            out.keep(tile, self._ascend_tile(level, tile, coarse, kept)[0])
        return out

    def _ascend_tile(
        self, level: int, tile: Tile, coarse: _Points, kept: _Points
    ) -> tuple[Tensor, Tensor]:
        """What a level's tile is, and the coarser one that it came from."""
        start, stop = (_scaled(corner, 1, 2) for corner in (tile.start, tile.stop))
        below = self._load(coarse, start, stop)
        x = self.network.ascend(below, self._load(kept, tile.start, tile.stop), level=level)
        return x, below

    def _tiles_up(self, level: int) -> list[Tile]:
        """Tiles of a level that agree with whole points of the coarser one."""
        return Tiling(
            shape=self._level_shape(level),
            period=2,
            halo=_round_up(self.network.reach_up(level), 2),
            max_voxels=self._points(5 * self.network.widths[level]),
        ).tiles()

    def _tiles_out(self) -> Iterator[Tile]:
        """Tiles of the finest level, that of the output, which leave the margin out."""
        top = len(self.network.widths) == 1
        tiling = Tiling(
            shape=self.output_shape,
            period=1 if top else 2,
            halo=0 if top else _round_up(self.network.reach_up(0), 2),
            mirror=True,
            max_voxels=self._points(5 * self.network.widths[0] + 2 * self.network.head),
        )
        margin, whole = self.margin // self.network.stride, self._level_shape(0)
        for tile in tiling.tiles():
            start = _each(max, _shifted(tile.start, margin), (0, 0, 0))
            stop = _each(min, _shifted(tile.stop, margin), whole)
            z, y, x = (
                slice(part.start + margin - first, part.stop + margin - first)
                for part, first in zip(tile.target, start, strict=True)
            )
            yield replace(tile, start=start, stop=stop, inner=(z, y, x))

    def _level_shape(self, level: int) -> Shape:
        step = 2 ** (level + 1)
        around = 2 * self.margin
        z, y, x = (_round_up(n + around, self.network.period) // step for n in self.data.shape)
        return z, y, x

    def _points_down(self, level: int) -> int:
        """Points of a level's tile, on the way down, that fit into the memory of a tile."""
        width = self.network.widths[level]
        if level == 0:
            return self._points(5 * width)
        finer = 8 * self.network.widths[level - 1]  # of the eight points that one is made of
        return self._points(max(2 * finer, finer + 4 * width))  # loading copies

    def _points(self, numbers: int) -> int:
        """Points of a tile that needs so many numbers for each."""
        return max(self.tile_bytes // (numbers * self.network.point_type.itemsize), 1)

    def _voxels(self, start: Shape, stop: Shape) -> Tensor:
        first, end = _shifted(start, -self.margin), _shifted(stop, -self.margin)
        # Counted from the end of the last point's cell: of an odd side, a voxel lies beyond.
        ends = _scaled(self.output_shape, self.network.stride, 1)
        z, y, x = self._flip(tuple(map(slice, first, end)), ends)
        block = read_mirrored(self.data, (z.start, y.start, x.start), (z.stop, y.stop, x.stop))
        block = np.ascontiguousarray(np.flip(block, self.flipped))
        release(self.data)
        block -= self.median
        block /= self.deviation
        voxels = torch.from_numpy(block)[None, None]
        return voxels.to(self.network.device, self.network.voxel_type)

    def _flip(self, place: tuple[slice, ...], size: Shape) -> Slices:
        """Where a part of something of the given size lies, seen from the other end."""
        z, y, x = (
            slice(n - part.stop, n - part.start) if axis in self.flipped else part
            for axis, (part, n) in enumerate(zip(place, size, strict=True))
        )
        return z, y, x

    def _finish(self, answer: Tensor) -> NDArray[np.float16]:
        """Section by section, in half precision."""
        out = torch.empty(answer.shape, dtype=torch.half)
        for section, points in zip(out, answer, strict=True):
            section[...] = self.network.finish(points.float())
        return out.numpy()

    def _room(self, level: int) -> _Points:
        shape = (*self._level_shape(level), self.network.widths[level])
        kind, device = self.network.point_type, self.network.device
        if device.type != "cpu" and self._fits_on_device():
            return _Points(torch.empty(shape, dtype=kind, device=device))
        # NumPy has no name for every type of number: bytes do
        raw = allocate((*shape[:3], shape[3] * kind.itemsize), np.uint8)
        return _Points(torch.from_numpy(raw).view(kind), raw)

    def _fits_on_device(self) -> bool:
        free, _ = torch.cuda.mem_get_info(self.network.device)
        points = np.prod(self._level_shape(0), dtype=float)
        needed = 2 * self.network.widths[0] * self.network.point_type.itemsize * points
        return bool(needed < free / 2)

    def _load(self, points: _Points, start: Shape, stop: Shape) -> Tensor:
        z, y, x = (slice(a, b) for a, b in zip(start, stop, strict=True))
        block = points.values[z, y, x].permute(3, 0, 1, 2)[None].to(self.network.device)
        block = block.contiguous(memory_format=torch.channels_last_3d)
        points.release()
        return block


@dataclass(frozen=True, eq=False)
class _Points:
    """What a level gave, of shape (z, y, x, channels), and the array that holds it."""

    values: Tensor
    raw: NDArray[Any] | None = None

    def keep(self, tile: Tile, block: Tensor) -> None:
        self.values[tile.target] = block[0].permute(1, 2, 3, 0)[tile.inner]
        self.release()

    def release(self) -> None:
        if self.raw is not None:
            release(self.raw)


def _scaled(place: Shape, times: int, over: int) -> Shape:
    z, y, x = (n * times // over for n in place)
    return z, y, x


def _each(function: Callable[[int, int], int], first: Shape, second: Shape) -> Shape:
    z, y, x = map(function, first, second)
    return z, y, x


def _shifted(place: Shape, by: int) -> Shape:
    z, y, x = (n + by for n in place)
    return z, y, x


def _round_up(n: int, step: int) -> int:
    return -(-n // step) * step
