"""Solid things in a specimen: gold beads, a carbon film, crystals of ice.

Each is a few numbers, rendered without chance on any grid. Their potential replaces what is
there, so vacuum must be added before them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from tomoloc.physics.materials import AMORPHOUS_CARBON, CRYSTALLINE_ICE, GOLD, Element, Water
from tomoloc.physics.potential import ICE_POTENTIAL
from tomoloc.types import FloatArray, Volume

__all__ = ["Beads", "Block", "CarbonFilm", "Crystals", "Solid", "add_solid", "grid_axes"]

# Square root of the structure factor of amorphous carbon at low frequency: by how much its
# density varies less than that of atoms thrown in at random.
_GRANULARITY = 0.5
_DIFFRACTION = 0.15  # depth of the bands in which bent crystals diffract
_ROUNDING = 0.6  # diameters from a crystal's centre, where its corners end


@dataclass(frozen=True, eq=False, kw_only=True)
class Block:
    """Part of a grid that one solid thing takes.

    Parameters
    ----------
    where : tuple of slice
        Along z, y and x.
    fraction : ndarray of float32, shape (z, y, x)
        Of each voxel that is solid.
    texture : ndarray of float32, shape (z, y, x), optional
        Density against that of the material; 1 by default.
    """

    where: tuple[slice, slice, slice]
    fraction: NDArray[np.float32]
    texture: NDArray[np.float32] | None = None


class Solid(Protocol):
    """Solid things of one material."""

    @property
    def material(self) -> Element | Water:
        """What they are made of."""

    def __len__(self) -> int:
        """Number of things."""

    def blocks(self, grid: Volume) -> Iterator[Block]:
        """Yield each thing on a grid, of which only shape, spacing and origin count."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Beads:
    """Spheres of gold.

    Parameters
    ----------
    position : ndarray, shape (n, 3)
        Centres xyz.
    diameter : ndarray, shape (n,)
    """

    position: FloatArray
    diameter: FloatArray

    @property
    def material(self) -> Element:
        """Gold."""
        return GOLD

    def __len__(self) -> int:
        return len(self.diameter)

    def blocks(self, grid: Volume) -> Iterator[Block]:
        """Yield each bead on a grid."""
        for center, diameter in zip(self.position, self.diameter, strict=True):
            where, (z, y, x) = _around(grid, center, diameter / 2)
            depth = diameter / 2 - np.sqrt(z**2 + y**2 + x**2)
            yield Block(where=where, fraction=_covered(depth, grid.voxel_spacing))


@dataclass(frozen=True, eq=False, kw_only=True)
class CarbonFilm:
    """A film with a round hole.

    Parameters
    ----------
    hole_center : ndarray, shape (2,)
        Position xy.
    hole_diameter : float
    thickness : float
    center : ndarray, shape (3,)
        Position xyz of a point of the film's middle plane.
    slope : float
        By which that plane rises with x.
    rim : ndarray, shape (3, m)
        Roughness of the hole's edge: wave numbers about the hole, amplitudes (Å), phases.
    seed : int
        Of the grains.
    """

    hole_center: FloatArray
    hole_diameter: float
    thickness: float
    center: FloatArray
    slope: float
    rim: FloatArray
    seed: int

    @property
    def material(self) -> Element:
        """Amorphous carbon."""
        return AMORPHOUS_CARBON

    def __len__(self) -> int:
        return 1

    def blocks(self, grid: Volume) -> Iterator[Block]:
        """Yield the film on a grid."""
        spacing, (z, y, x) = grid.voxel_spacing, grid_axes(grid)
        dy, dx = y[:, None] - self.hole_center[1], x - self.hole_center[0]
        rim = _sample_rim(self.rim, np.arctan2(dy, dx))
        film = _covered(np.hypot(dy, dx) - self.hole_diameter / 2 - rim, spacing)
        plane = self.center[2] + self.slope * (x - self.center[0])
        tilt = np.hypot(1, self.slope)
        layer = _covered(self.thickness / 2 - np.abs(z[:, None] - plane) / tilt, spacing)
        where = (_span(layer, 1), _span(film, 1), _span(film, 0))
        fraction = layer[where[0], None, where[2]] * film[where[1:]]
        noise = np.random.default_rng(self.seed).standard_normal(fraction.shape, dtype=np.float32)
        noise *= np.float32(_GRANULARITY / np.sqrt(self.material.atoms * spacing**3))
        noise += 1
        yield Block(where=where, fraction=fraction, texture=noise)


@dataclass(frozen=True, eq=False, kw_only=True)
class Crystals:
    """Crystals of ice with facets, crossed by the bands in which a bent lattice diffracts.

    Parameters
    ----------
    position : ndarray, shape (n, 3)
        Centres xyz.
    diameter : ndarray, shape (n,)
    normals : ndarray, shape (n, m, 3)
        Outward normals xyz of the facets.
    distances : ndarray, shape (n, m)
        Of the facets from the centre.
    waves : ndarray, shape (n, 3)
        Wave vector xyz across the bands, in radian/Å.
    bends : ndarray, shape (n, 3)
        Vector xyz in 1/Å whose squared product with a place is added to the phase.
    """

    position: FloatArray
    diameter: FloatArray
    normals: FloatArray
    distances: FloatArray
    waves: FloatArray
    bends: FloatArray

    @property
    def material(self) -> Water:
        """Crystalline ice."""
        return CRYSTALLINE_ICE

    def __len__(self) -> int:
        return len(self.diameter)

    def blocks(self, grid: Volume) -> Iterator[Block]:
        """Yield each crystal on a grid."""
        for i, center in enumerate(self.position):
            where, (z, y, x) = _around(grid, center, _ROUNDING * self.diameter[i])
            depth = _ROUNDING * self.diameter[i] - np.sqrt(z**2 + y**2 + x**2)
            for (a, b, c), distance in zip(self.normals[i], self.distances[i], strict=True):
                np.minimum(depth, distance - (a * x + b * y + c * z), out=depth)
            (a, b, c), (d, e, f) = self.waves[i], self.bends[i]
            phase = (a * x + b * y + c * z) + (d * x + e * y + f * z) ** 2
            texture = (1 + _DIFFRACTION * np.cos(phase)).astype(np.float32)
            fraction = _covered(depth, grid.voxel_spacing)
            yield Block(where=where, fraction=fraction, texture=texture)


def add_solid(
    density: NDArray[np.float32],
    instances: NDArray[np.integer[Any]],
    solid: Solid,
    *,
    voxel_spacing: float,
    instance: int,
    labels: NDArray[np.integer[Any]] | None = None,
    label: int = 0,
) -> None:
    """Add solid things to a density, in place: their potential replaces what is there.

    Parameters
    ----------
    density : ndarray of float32, shape (z, y, x)
        Potential above ice, in volt.
    instances : ndarray of int, shape (z, y, x)
        Voxels of 0 that are more than half solid get the thing's number.
    solid : Beads, CarbonFilm or Crystals
    voxel_spacing : float
    instance : int
        Number of the first thing; the others follow.
    labels : ndarray of int, shape (z, y, x), optional
        Gets `label` where `instances` gets a number.
    label : int
    """
    grid = Volume(data=density, voxel_spacing=voxel_spacing)
    for number, block in enumerate(solid.blocks(grid), start=instance):
        there, potential = density[block.where], np.float32(solid.material.potential)
        value = potential if block.texture is None else potential * block.texture
        there += block.fraction * (value - np.float32(ICE_POTENTIAL) - there)
        claimed = (block.fraction > 0.5) & (instances[block.where] == 0)
        instances[block.where][claimed] = number
        if labels is not None:
            labels[block.where][claimed] = label


def grid_axes(grid: Volume) -> list[FloatArray]:
    """Positions in Å along z, y and x."""
    ends = zip(grid.origin[::-1], grid.shape, strict=True)
    return [origin + grid.voxel_spacing * np.arange(n) for origin, n in ends]


def _sample_rim(rim: FloatArray, angle: FloatArray) -> FloatArray:
    """Distance by which the edge of a hole lies farther out than its circle."""
    total = np.zeros_like(angle)
    for number, amplitude, phase in rim.T:
        total += amplitude * np.cos(number * angle + phase)
    return total


def _around(
    grid: Volume, center: FloatArray, radius: float
) -> tuple[tuple[slice, slice, slice], list[FloatArray]]:
    """Part of a grid around a sphere, and its places zyx from the centre, ready to broadcast."""
    middle, reach = grid.to_index(center), radius / grid.voxel_spacing + 1
    low = np.clip(np.ceil(middle - reach), 0, grid.shape).astype(int)
    high = np.maximum(np.clip(np.floor(middle + reach) + 1, 0, grid.shape).astype(int), low)
    z, y, x = (slice(a, b) for a, b in zip(low, high, strict=True))
    offsets = [
        (np.arange(a, b) - m) * grid.voxel_spacing
        for a, b, m in zip(low, high, middle, strict=True)
    ]
    return (z, y, x), list(np.ix_(*offsets))


def _span(fraction: NDArray[np.float32], axis: int) -> slice:
    """Slice of the other axis, from the first to the last that is not all zero."""
    where = np.flatnonzero(fraction.max(axis=axis, initial=0))
    return slice(where[0], where[-1] + 1) if len(where) else slice(0, 0)


def _covered(depth: FloatArray, voxel_spacing: float) -> NDArray[np.float32]:
    """Fraction of voxels within a surface that lies at these depths from their centres."""
    return np.clip(0.5 + depth / voxel_spacing, 0, 1).astype(np.float32)
