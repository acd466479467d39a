"""Lipid bilayers in a specimen: where they run, what they look like, and points on them."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray
from scipy import ndimage, special
from scipy.spatial import cKDTree
from scipy.spatial.transform import Rotation

from tomoloc.simulate.bilayers import Bilayer, draw_waves, settle
from tomoloc.simulate.drawn import bounds
from tomoloc.simulate.room import LUMEN, NO_ICE, Room
from tomoloc.simulate.settings import Membranes
from tomoloc.types import FloatArray, Volume

__all__ = [
    "Bilayer",
    "add_bilayer",
    "bilayer_profile",
    "draw_bilayers",
    "surface_points",
]

logger = logging.getLogger(__name__)

_SHAPES_TRIED = 20
_CENTERS = 512  # tried for one shape before another is drawn
_GAP = 10.0  # Å between the head groups of a bilayer and what else is there
_DENTS = 0.1  # rms of a blob's dents, in radii
_UNDULATION = 20.0  # Å rms, where none is asked for
_STEEPEST = 0.08  # rms of undulations, at most, in mean wavelengths: no folds, no sharp bends
_SHORTEST = 300.0  # Å; wavelength

# POPC at 30 °C: 64.3 Å² for each lipid, head groups (C10H18NO8P) of 331 Å³ and chains (C32H64) of
# 925 Å³, each methyl taking 53 (Kučerka et al., Biochim. Biophys. Acta 1808 (2011),
# doi:10.1016/j.bbamem.2011.07.022). The scattering factors of `tomoloc.physics.potential` turn
# these into volt above ice: 3.89 for head groups without water, 1.67 for methylenes, -0.83 for
# methyls. The chains end at 14.4 Å and the head groups have their mean near 17.5 Å, so that the
# potential is greatest at 16.6 Å: 33 Å from peak to peak, as vesicles show in cryo-EM (Heberle
# et al., PNAS 117 (2020), doi:10.1073/pnas.2002200117).
_HEADS = 20.0  # V · Å, of each leaflet
_HEADS_BEYOND = 0.9  # Å; their mean beyond the peak
_HEADS_WIDTH = 3.3  # Å; standard deviation
_CHAINS = 1.67  # V
_CHAINS_BELOW = 2.2  # Å; they end so far below the peak
_CHAINS_WIDTH = 2.4
_METHYLS = -8.2  # V · Å, by which the methyls in the middle lower the chains
_METHYLS_WIDTH = 3.0
# A Gaussian so wide, in voxels, is as sharp as the potential of particles: half at 0.9 Nyquist.
_BLUR = np.sqrt(2 * np.log(2)) / (2 * np.pi * 0.45)


def draw_bilayers(settings: Membranes, *, room: Room, rng: np.random.Generator) -> list[Bilayer]:
    """Draw bilayers of one kind where there is room for them, and take that room.

    Closed ones lie in the ice with all that they enclose if they are small enough, and may be
    cut by the sides of the volume. What is too large for the ice, and every sheet, ends where the
    ice ends. They meet nothing that is there and do not enclose it. Too few where there is no
    room for more.

    Parameters
    ----------
    settings : Membranes
        Resolved.
    room : Room
        Changed: the bilayers are occupied, what they enclose becomes `LUMEN`.
    rng : numpy.random.Generator
    """
    wanted = int(bounds(settings.count)[0])
    bilayers: list[Bilayer] = []
    for _ in range(wanted):
        find = _find_sheet if settings.shape == "sheet" else _find_vesicle
        bilayer = find(settings, room, rng)
        if bilayer is None:
            logger.warning(
                "no room for more than %d of %d %s", len(bilayers), wanted, settings.label
            )
            break
        _take(bilayer, room)
        bilayers.append(bilayer)
    return bilayers


def add_bilayer(
    density: FloatArray,
    instances: NDArray[np.integer[Any]],
    bilayer: Bilayer,
    *,
    voxel_spacing: float,
    instance: int,
    labels: NDArray[np.integer[Any]] | None = None,
    label: int = 0,
    ice: FloatArray | None = None,
) -> None:
    """Add the potential of a bilayer to a density, in place, and claim its voxels.

    Parameters
    ----------
    density : ndarray of float32, shape (z, y, x)
        In volt above ice.
    instances : ndarray of int, shape (z, y, x)
        Where not 0, something has pushed the lipids away: nothing is added or claimed.
    bilayer : Bilayer
    voxel_spacing : float
    instance : int
        Written into `instances`.
    labels : ndarray of int, shape (z, y, x), optional
    label : int
        Written into `labels`.
    ice : ndarray, shape (z, y, x) or one that broadcasts to it, optional
        Fraction of each voxel that is ice; there is no bilayer outside of it.
    """
    grid = Volume(data=density, voxel_spacing=voxel_spacing)
    spread = np.hypot(_HEADS_WIDTH, _BLUR * voxel_spacing)
    edge = bilayer.thickness / 2
    box, distance = bilayer.distance(grid, reach=edge + 4 * spread)
    taken = instances[box] != 0
    # As soft an edge as that of the particles, whose surface runs through the outermost voxels.
    room = 1 - ndimage.gaussian_filter(taken.astype(np.float32), 0.5)
    if ice is not None:
        ice = np.broadcast_to(ice, density.shape)[box]
        room *= ice
    near = np.abs(distance) < edge + 4 * spread
    density[box][near] += (
        bilayer_profile(distance[near], thickness=bilayer.thickness, voxel_spacing=voxel_spacing)
        * room[near]
    )
    own = (np.abs(distance) <= bilayer.half_width) & ~taken
    if ice is not None:
        own &= ice > 0.5
    instances[box][own] = instance
    if labels is not None:
        labels[box][own] = label


def bilayer_profile(
    distance: FloatArray, *, thickness: float, voxel_spacing: float = 0.0
) -> FloatArray:
    """Potential across a bilayer, in volt above ice.

    Two layers of head groups, hydrocarbon chains between them, and the methyl groups, less dense,
    in the middle: the amounts follow from the volumes and compositions of these parts of POPC,
    which is 33 Å thick. The membranes of cells, which hold cholesterol, are thicker.

    Parameters
    ----------
    distance : ndarray
        From the middle.
    thickness : float
        Between the two peaks, at the head groups, of the profile without blur.
    voxel_spacing : float
        The profile is blurred for sampling at it.
    """
    x = np.asarray(distance)
    heads, chains, methyls = (
        np.hypot(width, _BLUR * voxel_spacing)
        for width in (_HEADS_WIDTH, _CHAINS_WIDTH, _METHYLS_WIDTH)
    )
    edge, head = max(thickness / 2 - _CHAINS_BELOW, 0.0), thickness / 2 + _HEADS_BEYOND
    profile = _HEADS * (_gauss(x - head, heads) + _gauss(x + head, heads))
    profile += _METHYLS * _gauss(x, methyls)
    root = np.sqrt(2) * chains
    profile += _CHAINS / 2 * (special.erf((x + edge) / root) - special.erf((x - edge) / root))
    return profile


def surface_points(
    bilayer: Bilayer, *, grid: Volume, spacing: float, ice: FloatArray | None = None
) -> tuple[FloatArray, FloatArray]:
    """Spread points evenly over the middle of a bilayer, as far as it is inside the volume.

    Parameters
    ----------
    bilayer : Bilayer
    grid : Volume
        Its data do not matter.
    spacing : float
        There is about one point in each square of this edge.
    ice : ndarray, shape (z, y, x) or one that broadcasts to it, optional
        Fraction of each voxel that is ice; there are no points outside of it.

    Returns
    -------
    position, normal : ndarray, shape (n, 3)
        xyz in Å, and unit vectors that point outward.
    """
    position, normal = bilayer.sample(np.random.default_rng(0), density=6 / spacing**2)
    inside = grid.contains(position)
    if ice is not None:
        z, y, x = np.rint(grid.to_index(position[inside])).astype(int).T
        inside[inside] = np.broadcast_to(ice, grid.shape)[z, y, x] > 0.5
    position, normal = position[inside], normal[inside]
    # Of points in random order, each that no chosen one is near: at this distance of those, about
    # one remains on each square.
    tree, free = cKDTree(position.reshape(-1, 3)), np.ones(len(position), dtype=bool)
    chosen = []
    for i in range(len(position)):
        if free[i]:
            chosen.append(i)
            free[tree.query_ball_point(position[i], 0.73 * spacing)] = False
    return position[chosen], normal[chosen]


def _gauss(x: FloatArray, width: float) -> FloatArray:
    return np.exp(-0.5 * (x / width) ** 2) / (np.sqrt(2 * np.pi) * width)


def _make(
    settings: Membranes, room: Room, rng: np.random.Generator, *, center: FloatArray
) -> Bilayer:
    """Draw size, direction and undulations of a bilayer."""
    shape, radius = str(settings.shape), bounds(settings.diameter)[0] / 2
    rotation = Rotation.random(rng=rng)
    size = np.full(3, radius)
    wavelengths = max(_SHORTEST, 0.5 * radius), max(1.6 * radius, 200.0)
    if shape == "ellipsoid":
        power = np.array([0.5, rng.uniform(-0.5, 0.5), -0.5])
        size = radius * max(bounds(settings.elongation)[0], 1.0) ** (power - power.mean())
    elif shape == "tube":
        size[2] = max(bounds(settings.elongation)[0] - 1, 0.0) * radius
    elif shape == "sheet":
        corners = np.array(np.meshgrid(*zip(np.zeros(3), room.extent, strict=True))).reshape(3, -1)
        size = np.abs(rotation.inv().apply(corners.T - center)).max(axis=0) * [1, 1, 0]
        wavelengths = _SHORTEST, max(float(size.max()), 2 * _SHORTEST)
    wavelengths = min(wavelengths), wavelengths[1]
    waves = draw_waves(rng, wavelengths=wavelengths, flat=shape == "sheet")
    asked = 0.0 if shape in {"sphere", "ellipsoid"} else _UNDULATION
    if settings.undulation is not None:
        asked = bounds(settings.undulation)[0]
    rms = min(asked, _STEEPEST * float(np.mean(wavelengths)))
    if shape == "blob":
        dents = draw_waves(rng, wavelengths=(1.4 * radius, 2.6 * radius), flat=False)
        waves[4] *= rms
        dents[4] *= _DENTS * radius
        waves = np.concatenate([waves, dents], axis=1)
        rms = float(np.hypot(rms, _DENTS * radius))
    bilayer = Bilayer(
        shape=shape,
        label=settings.label,
        thickness=bounds(settings.thickness)[0],
        center=center,
        rotation=rotation,
        size=size,
        waves=waves,
        height=0.0,
    )
    return settle(bilayer, rng, rms=rms)


def _find_sheet(settings: Membranes, room: Room, rng: np.random.Generator) -> Bilayer | None:
    blocked = room.occupied | (room.compartment == LUMEN)
    ice = room.compartment != NO_ICE
    for _ in range(_SHAPES_TRIED):
        bilayer = _make(settings, room, rng, center=rng.uniform(0.1, 0.9, 3) * room.extent)
        reach = bilayer.half_width + _gap(room)
        box, distance = bilayer.distance(room.grid, reach=reach + 1)
        band = np.abs(distance) <= reach
        if not (band & blocked[box]).any() and (band & ice[box]).any():
            return bilayer
    return None


def _find_vesicle(settings: Membranes, room: Room, rng: np.random.Generator) -> Bilayer | None:
    step, gap = room.voxel_spacing, _gap(room)
    ice = room.compartment != NO_ICE
    levels = np.flatnonzero(ice.any(axis=(1, 2))) * step
    if len(levels) == 0:
        return None
    thickest = float(ice.sum(axis=0).max()) * step - 2 * gap
    taken = np.pad(room.occupied | (room.compartment == LUMEN), ((1, 1), (0, 0), (0, 0)))
    beyond = np.pad(~ice, ((1, 1), (0, 0), (0, 0)), constant_values=True) | taken
    low, high = np.zeros(3), room.extent - step
    for _ in range(_SHAPES_TRIED):
        bilayer, below, above = _lay(_make(settings, room, rng, center=np.zeros(3)), thickest, rng)
        fits = above - below < thickest
        low[2], high[2] = levels[0], levels[-1]
        if fits:
            low[2], high[2] = levels[0] - below, max(levels[-1] - above, levels[0] - below)
        centers = rng.uniform(low, high, (_CENTERS, 3))
        solid = _solid(bilayer, gap, step)
        found = _first_free(beyond if fits else taken, solid, centers / step)
        if found >= 0:
            return replace(bilayer, center=centers[found])
    return None


def _lay(
    bilayer: Bilayer, thickness: float, rng: np.random.Generator
) -> tuple[Bilayer, float, float]:
    """Turn a shape, if need be, so that it fits into ice of a thickness, if it can.

    Returns
    -------
    bilayer : Bilayer
    below, above : float
        How far the head groups reach along z from the centre, negative and positive.
    """
    upright = replace(bilayer, rotation=Rotation.identity())
    points, _ = upright.sample(np.random.default_rng(0), density=1 / 30**2)
    turns = Rotation.concatenate([bilayer.rotation, Rotation.random(200, rng=rng)])
    z = turns.as_matrix()[:, 2] @ (points - bilayer.center).T
    below, above = z.min(axis=1) - bilayer.half_width, z.max(axis=1) + bilayer.half_width
    first = int(np.argmax(above - below < thickness))  # 0 where none fits
    return replace(bilayer, rotation=turns[first]), float(below[first]), float(above[first])


def _gap(room: Room) -> float:
    """Least distance to other things: the voxels of both are known to half a diagonal only."""
    return _GAP + room.voxel_spacing * np.sqrt(3) / 2


def _take(bilayer: Bilayer, room: Room) -> None:
    reach = bilayer.half_width
    box, distance = bilayer.distance(room.grid, reach=reach + 1)
    ice = room.compartment[box] != NO_ICE
    room.occupied[box] |= (np.abs(distance) <= reach) & ice
    if bilayer.is_closed:
        room.compartment[box][(distance < -reach) & ice] = LUMEN


def _solid(bilayer: Bilayer, gap: float, step: float) -> FloatArray:
    """Places xyz, in voxels about the centre, inside a closed bilayer grown by a gap."""
    reach = bilayer.half_width + gap
    shape = tuple(np.ceil(2 * (bilayer.extent[::-1] + reach) / step).astype(int) + 4)
    middle = (np.array(shape) - 1) / 2
    grid = Volume(
        data=np.broadcast_to(np.False_, shape), voxel_spacing=step, origin=-middle[::-1] * step
    )
    box, distance = bilayer.distance(grid, reach=reach + 1)
    corner = np.array([part.start for part in box]) - middle
    points = (np.argwhere(distance <= reach) + corner)[:, ::-1]
    # In a scattered order most collisions show within a few points.
    return np.ascontiguousarray(np.random.default_rng(0).permutation(points))


@njit(cache=True, nogil=True)
def _first_free(blocked: NDArray[np.bool_], points: FloatArray, centers: FloatArray) -> int:
    """Return the first centre around which no point is blocked, or -1.

    Points may lie beyond the sides of the volume. The first and last slices of `blocked` stand
    for all that is below and above the volume.
    """
    nz, ny, nx = blocked.shape
    for trial in range(len(centers)):
        free = True
        for p in range(len(points)):
            x = int(np.floor(centers[trial, 0] + points[p, 0] + 0.5))
            y = int(np.floor(centers[trial, 1] + points[p, 1] + 0.5))
            z = int(np.floor(centers[trial, 2] + points[p, 2] + 1.5))
            if 0 <= x < nx and 0 <= y < ny and blocked[min(max(z, 0), nz - 1), y, x]:
                free = False
                break
        if free:
            return trial
    return -1
