"""Random placement of particles that do not overlap."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
from numba import njit
from numpy.typing import NDArray
from scipy import ndimage
from scipy.spatial.transform import Rotation

from tomoloc.simulate.references import Reference
from tomoloc.types import FloatArray

__all__ = ["Packing", "pack"]

_CENTERS = 1024  # tried for one orientation before another is drawn
_ORIENTATIONS = 20


@dataclass(frozen=True, eq=False, kw_only=True)
class Packing:
    """Where particles lie.

    Parameters
    ----------
    position : ndarray, shape (n, 3)
        Centres xyz, voxel 0 being the origin.
    rotation : Rotation of length n
        Reference to tomogram, uniform over all orientations that fit.
    species : ndarray of int, shape (n,)
        Index of each particle's reference.
    visible : ndarray, shape (n,)
        Fraction of each particle's envelope inside the volume.
    asked, placed : ndarray of int, shape (n species,)
    fraction : float
        Of the volume's voxels that envelopes take.
    """

    position: FloatArray
    rotation: Rotation
    species: NDArray[np.integer]
    visible: FloatArray
    asked: NDArray[np.integer]
    placed: NDArray[np.integer]
    fraction: float


def pack(
    references: list[Reference],
    counts: list[int],
    *,
    shape: tuple[int, int, int],
    voxel_spacing: float,
    rng: np.random.Generator,
    thickness: float | None = None,
    clearance: float = 0.0,
    border: Literal["inside", "cut"] = "inside",
) -> Packing:
    """Place particles at random, turned at random, without overlap.

    An orientation is drawn for each particle, then places for it until its envelope is free, so
    crowding does not favour any orientation. The larger species go first. A particle that finds
    no place in 20 orientations with 1024 places each ends its species: `Packing.placed` is then
    less than `Packing.asked`.

    Parameters
    ----------
    references : list of Reference
        Rendered for `voxel_spacing`.
    counts : list of int
        Wanted number of each.
    shape : tuple of int
        Of the tomogram, zyx.
    voxel_spacing : float
    rng : numpy.random.Generator
    thickness : float, optional
        Of the ice, centred along z: all of a particle lies in it. By default that of the volume.
    clearance : float
        Least distance between envelopes.
    border : {"inside", "cut"}
        Whether particles lie wholly inside along x and y, or only their centres must.

    Raises
    ------
    ValueError
        If a wanted particle is too large for the volume or the ice.
    """
    occupied = np.zeros(shape, dtype=np.bool_)
    limits = _limits(shape, voxel_spacing, thickness)
    rows: list[tuple[int, FloatArray, FloatArray, float]] = []
    for kind in sorted(range(len(references)), key=lambda kind: -references[kind].volume):
        if counts[kind] == 0:
            continue
        inner, outer = _clouds(references[kind], voxel_spacing, clearance)
        for _ in range(counts[kind]):
            found = _find_place(occupied, inner, limits, rng, cut=border == "cut")
            if found is None:
                break
            center, matrix = found
            _stamp(occupied, _turn(outer, matrix), center)
            inside = _fraction_inside(_turn(inner, matrix), center, shape)
            rows.append((kind, center, matrix, inside))
        if not any(row[0] == kind for row in rows) and not occupied.any():
            room = " x ".join(f"{n * voxel_spacing:.0f}" for n in limits[1] - limits[0])
            raise ValueError(
                f"{references[kind].potential.name or 'a particle'} does not fit into the ice of"
                f" {room} Å (xyz) in any orientation tried; enlarge the volume or the ice"
            )
    species = np.array([row[0] for row in rows], dtype=int)
    visible = np.array([row[3] for row in rows], dtype=float)
    taken = np.array([reference.volume for reference in references])[species] @ visible
    return Packing(
        position=np.array([row[1] for row in rows]).reshape(-1, 3) * voxel_spacing,
        rotation=Rotation.from_matrix(np.array([row[2] for row in rows]).reshape(-1, 3, 3)),
        species=species,
        visible=visible,
        asked=np.array(counts, dtype=int),
        placed=np.bincount(species, minlength=len(references)),
        fraction=float(taken / (np.prod(shape) * voxel_spacing**3)),
    )


def _limits(
    shape: tuple[int, int, int], voxel_spacing: float, thickness: float | None
) -> tuple[FloatArray, FloatArray]:
    """Bounds xyz of the ice, in voxels."""
    low, high = np.full(3, -0.5), np.array(shape[::-1]) - 0.5
    if thickness is not None:
        middle, half = (shape[0] - 1) / 2, min(thickness / voxel_spacing, shape[0]) / 2
        low[2], high[2] = middle - half, middle + half
    return low, high


@lru_cache(maxsize=64)
def _clouds(
    reference: Reference, voxel_spacing: float, clearance: float
) -> tuple[FloatArray, FloatArray]:
    """Points xyz in voxels inside the envelope, and inside it grown by the clearance.

    Half a voxel's diagonal is added, by which a point and the centre of its voxel may differ.
    """
    step = reference.potential.voxel_spacing
    grow = (clearance + voxel_spacing * np.sqrt(3) / 2) / step
    envelope = np.pad(reference.envelope, int(np.ceil(grow)) + 1)
    grown = ndimage.distance_transform_edt(~envelope) <= grow
    middle = (np.array(envelope.shape) - 1) / 2
    inner, outer = (
        np.ascontiguousarray((np.argwhere(mask) - middle)[:, ::-1]) * (step / voxel_spacing)
        for mask in (envelope, grown)
    )
    # In a scattered order, the centre first, most collisions show within a few points.
    inner = np.random.default_rng(0).permutation(inner)
    first = int(np.argmin((inner**2).sum(axis=1)))
    inner[[0, first]] = inner[[first, 0]]
    return inner, outer


def _find_place(
    occupied: NDArray[np.bool_],
    points: FloatArray,
    limits: tuple[FloatArray, FloatArray],
    rng: np.random.Generator,
    *,
    cut: bool,
) -> tuple[FloatArray, FloatArray] | None:
    low, high = limits
    for _ in range(_ORIENTATIONS):
        matrix = Rotation.random(rng=rng).as_matrix()
        turned = _turn(points, matrix)
        reach = _extent(turned)
        lowest, highest = low - reach[0], high - reach[1]
        if cut:
            lowest[:2], highest[:2] = low[:2], high[:2]
        if (lowest >= highest).any():
            continue
        centers = rng.uniform(lowest, highest, (_CENTERS, 3))
        winner = _first_free(occupied, turned, centers)
        if winner >= 0:
            return centers[winner], matrix
    return None


@njit(cache=True, nogil=True)
def _turn(points: FloatArray, matrix: FloatArray) -> FloatArray:
    """Rotate many points; BLAS is slow on matrices of three columns."""
    turned = np.empty_like(points)
    for i in range(len(points)):
        for axis in range(3):
            row = matrix[axis]
            turned[i, axis] = row[0] * points[i, 0] + row[1] * points[i, 1] + row[2] * points[i, 2]
    return turned


@njit(cache=True, nogil=True)
def _first_free(occupied: NDArray[np.bool_], points: FloatArray, centers: FloatArray) -> int:
    """Return the first centre around which no point meets an occupied voxel, or -1."""
    nz, ny, nx = occupied.shape
    for trial in range(len(centers)):
        free = True
        for p in range(len(points)):
            x = int(np.floor(centers[trial, 0] + points[p, 0] + 0.5))
            y = int(np.floor(centers[trial, 1] + points[p, 1] + 0.5))
            z = int(np.floor(centers[trial, 2] + points[p, 2] + 0.5))
            if 0 <= x < nx and 0 <= y < ny and 0 <= z < nz and occupied[z, y, x]:
                free = False
                break
        if free:
            return trial
    return -1


@njit(cache=True, nogil=True)
def _extent(points: FloatArray) -> FloatArray:
    """Least and greatest coordinates, shape (2, 3)."""
    reach = np.zeros((2, 3))
    for i in range(len(points)):
        for axis in range(3):
            reach[0, axis] = min(reach[0, axis], points[i, axis])
            reach[1, axis] = max(reach[1, axis], points[i, axis])
    return reach


@njit(cache=True, nogil=True)
def _fraction_inside(points: FloatArray, center: FloatArray, shape: tuple[int, int, int]) -> float:
    count = 0
    for i in range(len(points)):
        x, y, z = center[0] + points[i, 0], center[1] + points[i, 1], center[2] + points[i, 2]
        inside_x, inside_y = -0.5 <= x < shape[2] - 0.5, -0.5 <= y < shape[1] - 0.5
        count += inside_x and inside_y and -0.5 <= z < shape[0] - 0.5
    return count / len(points)


@njit(cache=True, nogil=True)
def _stamp(occupied: NDArray[np.bool_], points: FloatArray, center: FloatArray) -> None:
    """Mark the voxels of points xyz around a centre as occupied."""
    nz, ny, nx = occupied.shape
    for i in range(len(points)):
        x = int(np.floor(center[0] + points[i, 0] + 0.5))
        y = int(np.floor(center[1] + points[i, 1] + 0.5))
        z = int(np.floor(center[2] + points[i, 2] + 0.5))
        if 0 <= x < nx and 0 <= y < ny and 0 <= z < nz:
            occupied[z, y, x] = True
