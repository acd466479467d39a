"""Large volumes in overlapping tiles: out, through a function, and back, in bounded memory.

Tiles start and end at multiples of a period, so that a network that halves its grid a few times
sees the same grid in each of them; with a halo as wide as the network sees, what the tiles give
is what the whole volume would give.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tomoloc.progress import progress

__all__ = ["Shape", "Slices", "Tile", "Tiling", "blend_tiles", "map_tiles", "read_mirrored"]

Shape = tuple[int, int, int]
Slices = tuple[slice, slice, slice]
Array = NDArray[Any]


@dataclass(frozen=True, kw_only=True)
class Tile:
    """One block of a volume.

    Parameters
    ----------
    start, stop : tuple of int (z, y, x)
        Voxels to read. They may lie outside the volume; there it is mirrored.
    inner : tuple of slice (z, y, x)
        Points of the output grid, counted from the tile's first, that are right.
    target : tuple of slice (z, y, x)
        The same points in the output of the whole volume.
    """

    start: Shape
    stop: Shape
    inner: Slices
    target: Slices

    @property
    def shape(self) -> Shape:
        """Voxels to read along z, y and x."""
        z, y, x = (b - a for a, b in zip(self.start, self.stop, strict=True))
        return z, y, x


@dataclass(frozen=True, kw_only=True)
class Tiling:
    """How a volume is cut.

    Parameters
    ----------
    shape : tuple of int (z, y, x)
        Of the volume.
    stride : int
        Voxels from one output point to the next.
    offset : float
        Voxel at which the first output point stands. There are as many points as lie inside the
        volume, and at least one, along each axis.
    period : int
        Tiles start and end at multiples of it (less the halo): a multiple of `stride`.
    halo : int
        Voxels that an output point needs on each side: a multiple of `period` if not `mirror`.
    mirror : bool
        False: tiles end where the volume ends (rounded up to the period). The function answers
        for the whole tile, and meets the volume's sides as it would in the whole volume. True:
        every tile has its halo, which is mirrored outside the volume, and the function answers
        for what lies inside the halo only.
    max_voxels : int
        Of a tile with its halo. Tiles are as large as that allows, and cut so that the halos cost
        the least.

    Raises
    ------
    ValueError
        If a number is out of range, or not even the smallest tile fits into `max_voxels`.
    """

    shape: Shape
    stride: int = 1
    offset: float = 0.0
    period: int = 1
    halo: int = 0
    mirror: bool = False
    max_voxels: int = 24_000_000

    def __post_init__(self) -> None:
        if min(self.shape) < 1 or self.stride < 1 or self.halo < 0:
            raise ValueError(
                f"a tiling needs a shape and a stride of at least 1 and no negative halo; got"
                f" {self.shape}, {self.stride} and {self.halo}"
            )
        if self.period < 1 or self.period % self.stride:
            raise ValueError(
                f"period ({self.period}) must be a multiple of the stride ({self.stride})"
            )
        if self.halo % self.period and not self.mirror:
            raise ValueError(f"halo ({self.halo}) must be a multiple of the period ({self.period})")
        if not 0 <= self.offset < self.stride:
            raise ValueError(f"offset must lie from 0 to below the stride; got {self.offset}")

    @property
    def output_shape(self) -> Shape:
        """Points of the output grid along z, y and x."""
        # a volume ends half a voxel beyond the centre of its last one
        z, y, x = (max(1, math.ceil((n - 0.5 - self.offset) / self.stride)) for n in self.shape)
        return z, y, x

    def tiles(self) -> list[Tile]:
        """Cut the volume; every output point is in one tile."""
        axes = [self._cut(axis, count) for axis, count in enumerate(self._fewest_voxels())]
        return [_join(parts) for parts in itertools.product(*axes)]

    def _fewest_voxels(self) -> tuple[int, ...]:
        """Numbers of tiles along the axes for which all tiles together are the smallest."""
        choices = []
        for axis in range(3):
            units = self._units(axis)
            whole = units * self.period
            longest: dict[int, tuple[int, int]] = {}
            for count in range(1, units + 1):
                margins = 2 if self.mirror else min(2, count - 1)
                length = -(-units // count) * self.period + margins * self.halo
                length = length if self.mirror else min(length, whole)
                total = whole + 2 * self.halo * (count if self.mirror else count - 1)
                # of all counts with tiles of this length, the first has the least halo
                longest.setdefault(length, (count, total))
            choices.append([(length, *rest) for length, rest in longest.items()])
        best: tuple[int, tuple[int, ...]] | None = None
        for z, y, x in itertools.product(*choices):
            if z[0] * y[0] * x[0] <= self.max_voxels:
                cost = z[2] * y[2] * x[2]
                if best is None or cost < best[0]:
                    best = cost, (z[1], y[1], x[1])
        if best is None:
            least = math.prod(min(length for length, *_ in axis) for axis in choices)
            raise ValueError(
                f"tiles with a halo of {self.halo} voxels need at least {least} voxels;"
                f" max_voxels is {self.max_voxels}"
            )
        return best[1]

    def _units(self, axis: int) -> int:
        return -(-self.shape[axis] // self.period)

    def _cut(self, axis: int, count: int) -> list[tuple[int, int, slice, slice]]:
        """Start, stop, inner and target of `count` tiles along an axis."""
        units, points = self._units(axis), self.output_shape[axis]
        edges = [units * i // count * self.period for i in range(count + 1)]
        parts = []
        for low, high in itertools.pairwise(edges):
            first, last = low // self.stride, min(high // self.stride, points)
            start, stop = low - self.halo, high + self.halo
            if self.mirror:
                skip = first
            else:
                start, stop = max(0, start), min(units * self.period, stop)
                skip = start // self.stride
            parts.append((start, stop, slice(first - skip, last - skip), slice(first, last)))
        return parts


def map_tiles(
    data: Array,
    function: Callable[[NDArray[np.float32]], Array],
    *,
    tiling: Tiling,
    description: str = "tiles",
) -> Iterator[tuple[Slices, Array]]:
    """Put a volume through a function tile by tile.

    Parameters
    ----------
    data : ndarray, shape (z, y, x)
        May be memory-mapped; one tile at a time is read.
    function : callable
        Takes float32 of shape (z, y, x), sides multiples of the period (and two halos more, if
        `tiling.mirror`), and gives an array of shape (..., z / stride, y / stride, x / stride),
        the halos left out.
    tiling : Tiling
        Of the data's shape.
    description : str
        A few words in front of the progress bar.

    Yields
    ------
    target : tuple of slice (z, y, x)
        Where the block belongs in an output of shape (..., *tiling.output_shape).
    block : ndarray, shape (..., z, y, x)

    Raises
    ------
    ValueError
        If the tiling is of another shape than the data, or the function's output is.
    """
    if data.shape != tiling.shape:
        raise ValueError(f"the tiling is of shape {tiling.shape}, the data of {data.shape}")
    for tile in progress(tiling.tiles(), description):
        block = function(read_mirrored(data, tile.start, tile.stop))
        margin = 2 * tiling.halo if tiling.mirror else 0
        expected = tuple((n - margin) // tiling.stride for n in tile.shape)
        if block.shape[-3:] != expected:
            raise ValueError(
                f"expected blocks of shape (..., {expected}) from tiles of shape {tile.shape};"
                f" got {block.shape}"
            )
        yield tile.target, block[..., *tile.inner]


def blend_tiles(
    data: Array,
    function: Callable[[NDArray[np.float32]], Array],
    *,
    tiling: Tiling,
    out: NDArray[np.float32],
    description: str = "tiles",
) -> None:
    """Put a volume through a function tile by tile, and fade from each tile to the next.

    Where tiles overlap, their weights are halves of a Hann window, which add up to 1. That hides
    the seams of a function that sees further than tiles overlap.

    Parameters
    ----------
    data : ndarray, shape (z, y, x)
        May be memory-mapped; one tile at a time is read.
    function : callable
        Takes float32 of shape (z, y, x), the halos included, and gives an array of shape
        (channels, z / stride, y / stride, x / stride).
    tiling : Tiling
        Of the data's shape, with `mirror`, and a halo that is a multiple of the stride. Neighbours
        overlap by two halos.
    out : ndarray of float32, shape (channels, *tiling.output_shape)
        Zeros, which the result is added to.
    description : str
        A few words in front of the progress bar.

    Raises
    ------
    ValueError
        If the tiling is of another shape than the data, or of another kind.
    """
    step = tiling.stride
    if data.shape != tiling.shape or tiling.halo % step or not tiling.mirror:
        raise ValueError(
            f"blending needs a tiling of shape {data.shape} with mirrored halos, multiples of the"
            f" stride; got {tiling}"
        )
    tiles = tiling.tiles()
    fades = [_fade(tiles, axis, tiling) for axis in range(3)]
    for tile in progress(tiles, description):
        block = function(read_mirrored(data, tile.start, tile.stop))
        first = [low // step for low in tile.start]
        ends = zip(first, tile.stop, tiling.output_shape, strict=True)
        place = [slice(max(low, 0), min(high // step, n)) for low, high, n in ends]
        inner = [slice(s.start - a, s.stop - a) for s, a in zip(place, first, strict=True)]
        z, y, x = (fade[a] for fade, a in zip(fades, first, strict=True))
        weight = z[:, None, None] * y[:, None] * x
        out[:, *place] += block[:, *inner] * weight


def _fade(tiles: list[Tile], axis: int, tiling: Tiling) -> dict[int, NDArray[np.float32]]:
    """Weights along an axis of the points inside the volume, by the first point of a tile."""
    n, step = tiling.output_shape[axis], tiling.stride
    halo = tiling.halo // step
    overlap = 2 * halo
    rise = np.sin(np.pi * (np.arange(overlap) + 0.5) / (2 * max(overlap, 1))) ** 2
    found = {}
    total = np.zeros(n)
    for start, stop in sorted({(t.start[axis] // step, t.stop[axis] // step) for t in tiles}):
        weight = np.ones(stop - start)
        if start + halo > 0:  # another tile lies before
            weight[:overlap] *= rise
        if stop - halo < n:
            weight[len(weight) - overlap :] *= rise[::-1]
        inside = weight[max(-start, 0) : n - start]
        total[max(start, 0) : stop] += inside
        found[start] = inside
    return {
        start: np.asarray(weight / total[max(start, 0) :][: len(weight)], dtype=np.float32)
        for start, weight in found.items()
    }


def read_mirrored(data: Array, start: Shape, stop: Shape) -> NDArray[np.float32]:
    """Read a block that may reach beyond the data, which are mirrored about their outermost voxels.

    Parameters
    ----------
    data : ndarray, shape (z, y, x)
    start, stop : tuple of int (z, y, x)
        First voxel, and the one after the last; negative numbers lie before the first voxel.

    Returns
    -------
    ndarray of float32, shape stop - start
        Not a view.
    """
    places = [
        _mirror(np.arange(low, high), n)
        for low, high, n in zip(start, stop, data.shape, strict=True)
    ]
    inside = tuple(slice(place.min(), place.max() + 1) for place in places)
    block = np.array(data[inside], dtype=np.float32)
    for axis, place in enumerate(places):
        if len(place) != block.shape[axis] or (np.diff(place) != 1).any():
            block = np.take(block, place - place.min(), axis=axis)
    return block


def _mirror(index: NDArray[np.intp], n: int) -> NDArray[np.intp]:
    """Fold indices into 0 .. n - 1; the outermost voxels are not repeated."""
    if n == 1:
        return np.zeros_like(index)
    folded = index % (2 * n - 2)
    return np.minimum(folded, 2 * n - 2 - folded)


def _join(parts: tuple[tuple[int, int, slice, slice], ...]) -> Tile:
    start, stop, inner, target = zip(*parts, strict=True)
    return Tile(start=start, stop=stop, inner=inner, target=target)
