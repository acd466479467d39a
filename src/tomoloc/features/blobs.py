"""Where particles may be in a tomogram, and what shape each of these places has.

Seeds are the maxima of `scales.blobness`. Two of them that no valley parts are one particle.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from tomoloc.arrays import allocate, release
from tomoloc.features.scales import ScaleSpace, blobness
from tomoloc.localize import find_peaks, suppress
from tomoloc.progress import progress
from tomoloc.tiling import Tile, Tiling, read_mirrored
from tomoloc.types import FloatArray, ScoreMap, Volume

__all__ = ["Seeds", "Survey", "spread_blocks", "survey"]

Array = NDArray[np.float32]

TILE_VOXELS = 4_000_000
BLOCK = 28
"""Side in voxels of the blocks that noise and clusters are learned from."""
_SEED_SCALE = 1
"""Of `SCALES`: fine enough to part neighbours, coarse enough for noise."""
_LEAST_SEED = 0.5
"""Blobness from which on a maximum is looked at, in deviations of the noise."""
_SHEET_SCALE = 2
_SHEET_REACH = 70.0
"""Å over which sheets are averaged: a membrane goes on, a flat particle does not."""
_COARSE = 2
"""Voxels from one point of the map of sheets to the next."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Seeds:
    """Maxima of blobness.

    Parameters
    ----------
    position : ndarray, shape (n, 3)
        xyz in angstrom.
    strength : ndarray, shape (n,)
        Blobness there; the best come first.
    curvature : ndarray, shape (n, scale, 3)
        As `ScaleSpace` gives it.
    sheet : ndarray, shape (n,)
        How much of a sheet goes on around it.
    """

    position: FloatArray
    strength: FloatArray
    curvature: FloatArray
    sheet: FloatArray

    def __len__(self) -> int:
        return len(self.strength)

    def __getitem__(self, rows: NDArray[np.intp] | NDArray[np.bool_]) -> Seeds:
        """Return the chosen rows."""
        return Seeds(
            position=self.position[rows],
            strength=self.strength[rows],
            curvature=self.curvature[rows],
            sheet=self.sheet[rows],
        )


@dataclass(frozen=True, eq=False, kw_only=True)
class Survey:
    """A tomogram looked over.

    Parameters
    ----------
    field : Volume, data of float32, shape (z, y, x)
        The tomogram blurred at the scale of the seeds.
    seeds : Seeds
    """

    field: Volume
    seeds: Seeds


def spread_blocks(
    shape: tuple[int, int, int], *, side: int, number: int, rng: np.random.Generator
) -> list[tuple[slice, ...]]:
    """Draw blocks spread evenly along x and y, at any height in the inner half of z."""
    sizes = [min(side, n) for n in shape]
    along = max(1, round(np.sqrt(number)))
    places = []
    for i in range(along):
        for j in range(along):
            z = rng.uniform(0.25, 0.75)
            y, x = (i + rng.random()) / along, (j + rng.random()) / along
            starts = [
                int(part * (n - size))
                for part, n, size in zip((z, y, x), shape, sizes, strict=True)
            ]
            places.append(
                tuple(slice(start, start + size) for start, size in zip(starts, sizes, strict=True))
            )
    return places


def read_block(data: NDArray[np.number], place: tuple[slice, ...], *, halo: int) -> Array:
    """Read a block with a mirrored halo."""
    z, y, x = place
    return read_mirrored(
        data,
        (z.start - halo, y.start - halo, x.start - halo),
        (z.stop + halo, y.stop + halo, x.stop + halo),
    )


def survey(volume: Volume, space: ScaleSpace, *, min_distance: float = 50.0) -> Survey:
    """Find the seeds of a volume whose protein is bright, tile by tile.

    Parameters
    ----------
    volume : Volume, data shape (z, y, x)
    space : ScaleSpace
        With the noise of this volume.
    min_distance : float
        Between seeds, in angstrom.

    Returns
    -------
    Survey
    """
    halo = space.halo + 1  # maxima need their neighbours
    tiling = Tiling(
        shape=volume.shape, halo=halo, mirror=True, period=_COARSE, max_voxels=TILE_VOXELS
    )
    field = allocate(volume.shape, np.float32)
    coarse = tuple(-(-n // _COARSE) for n in volume.shape)
    sheets = np.zeros(coarse, dtype=np.float32)
    found = []
    for tile in progress(tiling.tiles(), "scales"):
        curvature, blurred = space(read_mirrored(volume.data, tile.start, tile.stop))
        release(volume.data)
        own = tuple(slice(1, 1 + s.stop - s.start) for s in tile.target)
        field[tile.target] = blurred[own]
        release(field)
        sheet = curvature[_SHEET_SCALE, 0] - np.abs(curvature[_SHEET_SCALE, 1])
        part = np.maximum(sheet[own], 0)[::_COARSE, ::_COARSE, ::_COARSE]
        sheets[tuple(slice(s.start // _COARSE, -(-s.stop // _COARSE)) for s in tile.target)] = part
        found.append(_find_in_tile(volume, tile, curvature, own, min_distance))
    width = _SHEET_REACH / (volume.voxel_spacing * _COARSE)
    sheets = ndimage.gaussian_filter(sheets, width, mode="nearest", truncate=3.0)
    position, strength, curvature = (np.concatenate(parts) for parts in zip(*found, strict=True))
    place = np.rint(volume.to_index(position)).astype(int)
    place = np.clip(place, 0, np.array(volume.shape) - 1)
    seeds = Seeds(
        position=position,
        strength=strength,
        curvature=curvature,
        sheet=sheets[tuple((place // _COARSE).T)].astype(float),
    )
    # Tiles do not know of each other's seeds.
    kept = suppress(position, strength, min_distance=min_distance)
    return Survey(field=replace(volume, data=field), seeds=seeds[kept])


def _find_in_tile(
    volume: Volume, tile: Tile, curvature: Array, own: tuple[slice, ...], min_distance: float
) -> tuple[FloatArray, FloatArray, FloatArray]:
    blob = blobness(curvature[_SEED_SCALE])
    inner = np.zeros(blob.shape, dtype=bool)
    inner[own] = True
    origin = volume.to_position([s.start - 1 for s in tile.target])
    grid = ScoreMap(
        data=blob[None], voxel_spacing=volume.voxel_spacing, origin=origin, labels=("seed",)
    )
    peaks = find_peaks(
        grid,
        threshold=_LEAST_SEED,
        min_distance=min_distance,
        mask=Volume(data=inner, voxel_spacing=volume.voxel_spacing),
    )
    place = np.rint(grid.to_index(peaks.position)).astype(int)
    place = np.clip(place, 0, np.array(blob.shape) - 1)
    z, y, x = place.T
    values = np.moveaxis(curvature[:, :, z, y, x], -1, 0).astype(float)
    return peaks.position, np.asarray(peaks.score, dtype=float), values
