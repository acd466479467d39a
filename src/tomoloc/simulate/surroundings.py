"""What surrounds molecules: ice with its surfaces, gold beads, a carbon film, crystals of ice.

Each is drawn as a few numbers or a small map, and rendered without further chance on any grid.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numba import njit, prange
from numpy.typing import NDArray
from scipy import ndimage
from scipy.spatial.transform import Rotation

from tomoloc.physics.materials import VITREOUS_ICE
from tomoloc.physics.potential import ICE_POTENTIAL
from tomoloc.simulate.room import CYTOSOL, NO_ICE, Room
from tomoloc.simulate.settings import Carbon, Contamination, Gold, Number, Specimen
from tomoloc.simulate.solids import Beads, CarbonFilm, Crystals, Solid, add_solid, grid_axes
from tomoloc.types import FloatArray, Volume

__all__ = [
    "Beads",
    "CarbonFilm",
    "Crystals",
    "Ice",
    "Solid",
    "add_solid",
    "add_vacuum",
    "attenuation",
    "draw_beads",
    "draw_carbon",
    "draw_contamination",
    "draw_ice",
    "make_room",
]

logger = logging.getLogger(__name__)

_TRIES = 200  # places tried for one bead or crystal
_IN_VAIN = 20  # beads or crystals without a place, after which no more are tried
_STEP = 100.0  # Å between the points of height maps
_BLUR = 1.5  # standard deviation of the Gaussian that makes heights smooth, in such steps
_BEAD_SPREAD = 0.05  # standard deviation of the diameters of one batch of beads
_CRYSTAL_SPREAD = 0.25  # by which crystals are larger or smaller than their mean, evenly
_RIM_ROUGHNESS = 25.0  # Å, root mean square, of the edge of a hole
_RIM_WAVES = 12
_BEVELS = 8  # random facets of a crystal beside those of its hexagonal prism


@dataclass(frozen=True, eq=False, kw_only=True)
class Ice:
    """A layer of ice between two surfaces.

    Parameters
    ----------
    thickness : float
        Mean, along z.
    center : ndarray, shape (3,)
        Position xyz of a point halfway between the mean surfaces.
    slope : float
        By which the middle of the layer rises with x.
    heights : ndarray, shape (2, my, mx)
        Of the lower and the upper surface above their means, every 100 Å from the origin on,
        repeating; without any points the surfaces are even.
    """

    thickness: float
    center: FloatArray
    slope: float = 0.0
    heights: FloatArray = field(default_factory=lambda: np.zeros((2, 0, 0)))

    @property
    def is_level(self) -> bool:
        """Whether the ice is equally thick everywhere and not inclined."""
        return self.slope == 0 and self.heights.size == 0

    def surfaces(self, grid: Volume) -> tuple[FloatArray, FloatArray]:
        """Heights z of the lower and the upper surface above the points of a grid, in Å.

        Parameters
        ----------
        grid : Volume
            Of which only shape, spacing and origin count.

        Returns
        -------
        tuple of ndarray, each of shape (y, x), (1, x) or (1, 1)
            What stands for all has one entry.
        """
        _, y, x = grid_axes(grid)
        middle = np.full((1, 1), self.center[2])
        if self.slope:
            middle = middle + self.slope * (x - self.center[0])
        low, high = middle - self.thickness / 2, middle + self.thickness / 2
        if self.heights.size:
            rough = _sample_heights(self.heights, y, x)
            low, high = low + rough[0], np.maximum(high + rough[1], low + rough[0])
        return low, high

    def coverage(self, grid: Volume) -> NDArray[np.float32]:
        """Fraction of each voxel of a grid that is ice.

        Returns
        -------
        ndarray of float32, shape (z, y, x), (z, 1, x), (z, 1, 1) or (1, 1, 1)
            What stands for all has one entry; so there is a single 1 where ice fills the grid.
        """
        low, high = self.surfaces(grid)
        z, half = grid_axes(grid)[0].astype(np.float32), np.float32(grid.voxel_spacing / 2)
        if low.max() < z[0] - half + 1e-3 and high.min() > z[-1] + half - 1e-3:
            return np.ones((1, 1, 1), dtype=np.float32)
        return _cover(z, half, low.astype(np.float32), high.astype(np.float32))


def draw_ice(specimen: Specimen, *, rng: np.random.Generator) -> Ice:
    """Draw the ice of a resolved specimen.

    The surfaces' features are some 500 Å wide; mean and root mean square of their heights over
    the volume are exactly as asked. Positive inclination turns the ice about y as a positive tilt
    does, so that a tilt of minus the inclination makes it level.
    """
    grid = _grid(specimen.shape, specimen.voxel_spacing)
    thickness = grid.extent[2] if specimen.thickness is None else _number(specimen.thickness)
    roughness = _number(specimen.roughness)
    heights = np.zeros((2, 0, 0))
    if roughness > 0:
        points = np.ceil(grid.extent[1::-1] / _STEP).astype(int) + 8
        noise = rng.standard_normal((2, *points))
        smooth = ndimage.gaussian_filter(noise, (0, _BLUR, _BLUR), mode="wrap")
        seen = _sample_heights(smooth, *grid_axes(grid)[1:])
        mean, spread = (f(axis=(1, 2), keepdims=True) for f in (seen.mean, seen.std))
        heights = (smooth - mean) * roughness / spread
    return Ice(
        thickness=float(thickness),
        center=grid.center,
        slope=-float(np.tan(np.deg2rad(_number(specimen.inclination)))),
        heights=heights,
    )


def make_room(specimen: Specimen, ice: Ice) -> Room:
    """Make the room of a specimen that holds nothing but ice: voxels whose centres lie in it."""
    grid = _grid(specimen.shape, specimen.voxel_spacing)
    low, high = ice.surfaces(grid)
    z = grid_axes(grid)[0][:, None, None]
    compartment = np.empty(grid.shape, dtype=np.uint8)
    compartment[:] = np.where((z >= low) & (z <= high), np.uint8(CYTOSOL), np.uint8(NO_ICE))
    return Room(
        compartment=compartment,
        occupied=np.zeros(grid.shape, dtype=np.bool_),
        voxel_spacing=specimen.voxel_spacing,
    )


def draw_beads(gold: Gold, *, room: Room, rng: np.random.Generator) -> Beads:
    """Draw beads of resolved settings, evenly over the field of view, and take their room.

    They lie in the ice, or touch one of its surfaces from within; those larger than the ice is
    thick lie in its middle. The sides of the volume may cut them.
    """
    grid, placed, missed = room.grid, [], 0
    for diameter in _diameters(gold, rng.normal(1, _BEAD_SPREAD, int(_number(gold.count)))):
        if missed == _IN_VAIN:
            break
        for _ in range(_TRIES):
            x, y, low, high = _draw_column(room, rng)
            least, most = low + diameter / 2, high - diameter / 2
            height = rng.random()
            if gold.location == "surface":
                height = np.rint(height)
            thin = not least < most
            z = (low + high) / 2 if thin else least + height * (most - least)
            center = np.array([x, y, z])
            bead = Beads(position=center[None], diameter=np.array([diameter]))
            if _claim(room, bead, in_ice=not thin and gold.location == "anywhere", grid=grid):
                placed.append((center, diameter))
                break
        else:
            missed += 1
    _report_missing(gold, len(placed))
    return Beads(
        position=np.array([center for center, _ in placed]).reshape(-1, 3),
        diameter=np.array([diameter for _, diameter in placed], dtype=float),
    )


def draw_carbon(carbon: Carbon, *, room: Room, rng: np.random.Generator) -> CarbonFilm:
    """Draw a film of resolved settings along one surface of the ice, and take its room.

    The hole's centre lies in a random direction; its edge is rough by 25 Å.
    """
    thickness, diameter = _number(carbon.thickness), _number(carbon.hole_diameter)
    angle = rng.uniform(0, 2 * np.pi)
    away = _number(carbon.edge) - diameter / 2
    middle = room.grid.center
    x, low, high = _profile(room)
    on_top = rng.random() < 0.5
    surface = np.maximum(high - thickness, low) if on_top else np.minimum(low + thickness, high)
    slope, height = np.polyfit(x - middle[0], surface, 1)
    # What is less than a voxel over the whole width comes from the voxels themselves.
    slope = slope if abs(slope) * room.extent[0] > 2 * room.voxel_spacing else 0.0
    height += thickness / 2 if on_top else -thickness / 2
    lengths = rng.uniform(250, 2500, _RIM_WAVES)  # Å along the edge; the longer the higher
    amplitude = lengths * _RIM_ROUGHNESS * np.sqrt(2 / np.sum(lengths**2))
    numbers = np.rint(np.pi * diameter / lengths)
    film = CarbonFilm(
        hole_center=middle[:2] + away * np.array([np.cos(angle), np.sin(angle)]),
        hole_diameter=diameter,
        thickness=thickness,
        center=np.array([middle[0], middle[1], height]),
        slope=float(slope),
        rim=np.stack([numbers, amplitude, rng.uniform(0, 2 * np.pi, _RIM_WAVES)]),
        seed=int(rng.integers(2**62)),
    )
    for block in film.blocks(room.grid):
        room.occupied[block.where] |= block.fraction > 0
    return film


def draw_contamination(
    contamination: Contamination, *, room: Room, rng: np.random.Generator
) -> Crystals:
    """Draw crystals of resolved settings, sunk by up to a third into the ice, and take their room.

    Where the ice fills the volume, only what is sunk can be seen.
    """
    count = int(_number(contamination.count))
    spread = rng.uniform(1 - _CRYSTAL_SPREAD, 1 + _CRYSTAL_SPREAD, count)
    grid, placed, missed = room.grid, [], 0
    for diameter in _diameters(contamination, spread):
        if missed == _IN_VAIN:
            break
        for _ in range(_TRIES):
            x, y, low, high = _draw_column(room, rng)
            out = diameter * rng.uniform(0.15, 0.35)
            z = high + out if rng.random() < 0.5 else low - out
            crystal = _draw_crystal(np.array([x, y, z]), diameter, rng)
            if _claim(room, crystal, in_ice=False, grid=grid):
                placed.append(crystal)
                break
        else:
            missed += 1
    _report_missing(contamination, len(placed))
    empty = {"position": (0, 3), "diameter": (0,), "normals": (0, 0, 3), "distances": (0, 0)}
    shapes = {**empty, "waves": (0, 3), "bends": (0, 3)}
    return Crystals(
        **{
            name: np.concatenate([getattr(crystal, name) for crystal in placed])
            if placed
            else np.zeros(shape)
            for name, shape in shapes.items()
        }
    )


def add_vacuum(density: NDArray[np.float32], coverage: NDArray[np.float32]) -> None:
    """Take the ice away where there is none, in place.

    Parameters
    ----------
    density : ndarray of float32, shape (z, y, x)
        Potential above ice, in volt.
    coverage : ndarray of float32
        From `Ice.coverage`.
    """
    if coverage.size > 1:
        density += np.float32(ICE_POTENTIAL) * (coverage - 1)


def attenuation(
    ice: Ice,
    solids: Sequence[Solid] = (),
    *,
    shape: tuple[int, int, int],
    voxel_spacing: float,
    voltage_kv: float = 300.0,
    binning: int | None = None,
) -> Volume:
    """Map how fast matter takes electrons from the beam.

    The layer of ice is taken to be level, for specimens repeat themselves along x when they are
    imaged and an inclined layer would have a step there. What solids take more or less than the
    ice or vacuum in their place is as it is.

    Parameters
    ----------
    ice : Ice
    solids : sequence of Beads, CarbonFilm or Crystals
    shape : tuple of int
        Of the specimen, zyx.
    voxel_spacing : float
        Of the specimen.
    voltage_kv : float
    binning : int, optional
        Voxels of the specimen to one of the map; 4 by default, 2 where there are beads.

    Returns
    -------
    Volume, data shape (z, y, x), float32
        In 1/Å, on a coarser grid with the same centre that covers the specimen: electrons that
        go a way along l get through with a chance of exp(-∫ data dl).
    """
    if binning is None:
        binning = 2 if any(isinstance(solid, Beads) and len(solid) for solid in solids) else 4
    coarse = voxel_spacing * binning
    data = np.zeros([-(-n // binning) for n in shape], dtype=np.float32)
    origin = _grid(shape, voxel_spacing).center - (np.array(data.shape[::-1]) - 1) / 2 * coarse
    grid = Volume(data=data, voxel_spacing=coarse, origin=origin)
    in_ice = np.float32(VITREOUS_ICE.loss(voltage_kv))
    data += in_ice * ice.coverage(grid)
    for solid in solids:
        loss = np.float32(solid.material.loss(voltage_kv))
        for block in solid.blocks(grid):
            value = loss if block.texture is None else loss * block.texture
            data[block.where] += block.fraction * (value - data[block.where])
    if ice.slope:
        data += in_ice * (replace(ice, slope=0.0).coverage(grid) - ice.coverage(grid))
    return grid


@njit(cache=True, nogil=True, parallel=True)
def _cover(z, half, low, high):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    """Fraction of each voxel between two surfaces."""
    ny, nx = low.shape
    fraction = np.empty((len(z), ny, nx), np.float32)
    for k in prange(len(z)):
        for j in range(ny):
            for i in range(nx):
                inside = min(z[k] + half, high[j, i]) - max(z[k] - half, low[j, i])
                fraction[k, j, i] = max(inside / (2 * half), 0)
    return fraction


def _grid(shape: tuple[int, int, int], voxel_spacing: float) -> Volume:
    """Make a grid without values."""
    return Volume(data=np.broadcast_to(np.False_, shape), voxel_spacing=voxel_spacing)


def _sample_heights(heights: FloatArray, y: FloatArray, x: FloatArray) -> FloatArray:
    """Interpolate height maps of shape (n, my, mx) at a grid of positions, shape (n, y, x)."""
    places = np.stack(np.meshgrid(y, x, indexing="ij")) / _STEP
    return np.array([ndimage.map_coordinates(h, places, mode="grid-wrap") for h in heights])


def _claim(room: Room, solid: Beads | Crystals, *, in_ice: bool, grid: Volume) -> bool:
    """Take the room of a single thing if nothing is there, and only ice if need be."""
    for block in solid.blocks(grid):
        taken = block.fraction > 0
        if (room.occupied[block.where] & taken).any() or not taken.any():
            return False
        if in_ice and (room.compartment[block.where][block.fraction > 0.5] == NO_ICE).any():
            return False
        room.occupied[block.where] |= taken
    return True


def _draw_column(room: Room, rng: np.random.Generator) -> tuple[float, float, float, float]:
    """Draw a place xy; with the z at which ice starts and ends there, or the volume's middle."""
    low, high = room.grid.to_position(np.full(3, -0.5)), room.grid.to_position(room.shape)
    x, y = rng.uniform(low[:2], high[:2] - room.voxel_spacing / 2)
    _, j, i = np.rint(room.grid.to_index([x, y, 0])).astype(int)
    start, end = _ice_ends(room.compartment[:, [j], [i]], room)
    return float(x), float(y), float(start[0]), float(end[0])


def _profile(room: Room) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Mean z at which ice starts and ends, for places along x."""
    steps = [max(1, n // 32) for n in room.shape[1:]]
    columns = room.compartment[:, :: steps[0], :: steps[1]]
    start, end = _ice_ends(columns.reshape(len(columns), -1), room)
    shape = columns.shape[1:]
    x = np.arange(0, room.shape[2], steps[1]) * room.voxel_spacing
    return x, start.reshape(shape).mean(axis=0), end.reshape(shape).mean(axis=0)


def _ice_ends(columns: NDArray[np.uint8], room: Room) -> tuple[FloatArray, FloatArray]:
    """Heights z in Å at which ice starts and ends in columns of shape (z, n)."""
    ice = columns != NO_ICE
    first = np.argmax(ice, axis=0) - 0.5
    last = len(ice) - np.argmax(ice[::-1], axis=0) - 0.5
    middle = (len(ice) - 1) / 2
    there = ice.any(axis=0)
    ends = np.where(there, first, middle), np.where(there, last, middle)
    return ends[0] * room.voxel_spacing, ends[1] * room.voxel_spacing


def _draw_crystal(center: FloatArray, diameter: float, rng: np.random.Generator) -> Crystals:
    """Draw a hexagonal prism with random proportions, bevels and orientation."""
    turn = Rotation.random(rng=rng)
    angle = np.arange(6) * np.pi / 3
    prism = np.stack([np.cos(angle), np.sin(angle), np.zeros(6)], axis=1)
    bevels = rng.standard_normal((_BEVELS, 3))
    bevels /= np.linalg.norm(bevels, axis=1, keepdims=True)
    normals = np.concatenate([prism, [[0, 0, 1], [0, 0, -1]], bevels])
    spans = np.repeat([(0.42, 0.52), (0.28, 0.48), (0.46, 0.58)], (6, 2, _BEVELS), axis=0)
    distances = diameter * rng.uniform(spans[:, 0], spans[:, 1])
    directions = Rotation.random(2, rng=rng).apply([0, 0, 1])
    period = rng.uniform(150, 400)
    return Crystals(
        position=center[None],
        diameter=np.array([diameter]),
        normals=turn.apply(normals)[None],
        distances=distances[None],
        waves=directions[:1] * 2 * np.pi / period,
        # Half a turn more at the rim than in the middle, up to two.
        bends=directions[1:] * np.sqrt(rng.uniform(1, 4) * np.pi) / (diameter / 2),
    )


def _diameters(settings: Gold | Contamination, factors: FloatArray) -> FloatArray:
    """Diameters of single things, largest first, for they find the least room."""
    return _number(settings.diameter) * np.sort(factors)[::-1]


def _report_missing(settings: Gold | Contamination, placed: int) -> None:
    asked = int(_number(settings.count))
    if placed < asked:
        logger.warning("no room for more than %d of %d %s", placed, asked, settings.label)


def _number(value: Number) -> float:
    if not isinstance(value, (int, float)):
        raise ValueError(f"expected resolved settings with single numbers; got {value}")
    return float(value)
