"""What a simulator needs of each structure: its potential and its envelope, ready to be turned."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numba import njit, prange
from numpy.typing import NDArray
from scipy import fft, ndimage
from scipy.spatial.transform import Rotation

from tomoloc.physics.filters import band_pass, rescale
from tomoloc.physics.potential import (
    MOLECULAR_SURFACE,
    make_potential,
    mass_center,
    normalize_map,
)
from tomoloc.types import FloatArray, Structure, Volume

__all__ = ["Reference", "add_particles", "make_reference"]

_FINER = 2  # voxels of a reference to one of the tomogram, along each axis


@dataclass(frozen=True, eq=False, kw_only=True)
class Reference:
    """A molecule rendered once, on a grid twice as fine as the tomogram's.

    Parameters
    ----------
    potential : Volume, data shape (z, y, x)
        In volt, band-limited to the tomogram's Nyquist frequency, centre at position 0.
    envelope : ndarray of bool, shape (z, y, x)
        The space it takes. Its pores are closed as far as needed to contain the centre.
    """

    potential: Volume
    envelope: NDArray[np.bool_]

    @property
    def points(self) -> FloatArray:
        """Positions xyz inside the envelope, shape (n, 3)."""
        return self.potential.to_position(np.argwhere(self.envelope))

    @property
    def volume(self) -> float:
        """Of the envelope, in Å³."""
        return float(self.envelope.sum() * self.potential.voxel_spacing**3)


def make_reference(
    source: Structure | Volume, *, voxel_spacing: float, mass_kda: float | None = None
) -> Reference:
    """Render a structure or a density map for tomograms of a given voxel spacing.

    Parameters
    ----------
    source : Structure or Volume
        A map's units are arbitrary: see `normalize_map`. Its centre of mass becomes the centre.
    voxel_spacing : float
        Of the tomogram.
    mass_kda : float, optional
        Of a map's molecule.
    """
    fine = voxel_spacing / _FINER
    if isinstance(source, Structure):
        potential = make_potential(source, voxel_spacing=fine, low_pass=2 * voxel_spacing)
    else:
        potential = _center(normalize_map(source, mass_kda=mass_kda), voxel_spacing)
    surface = min(MOLECULAR_SURFACE, float(potential.data.max()) / 2)
    envelope = _close_over_center(potential.data > surface, _FINER)
    return Reference(potential=potential, envelope=envelope)


def add_particles(
    density: FloatArray,
    instances: NDArray[np.integer],
    references: list[Reference],
    *,
    index: FloatArray,
    rotation: Rotation,
    species: NDArray[np.integer],
) -> None:
    """Add turned references to a density, in place, and write their row + 1 into `instances`.

    Parameters
    ----------
    density : ndarray of float32, shape (z, y, x)
    instances : ndarray of int, shape (z, y, x)
        Voxels that are not 0 keep their value.
    references : list of Reference
    index : ndarray, shape (n, 3)
        Centres zyx in fractional voxels.
    rotation : Rotation of length n
        Reference to tomogram.
    species : ndarray of int, shape (n,)
        Which of `references` each particle is.
    """
    matrices = rotation.as_matrix().reshape(-1, 3, 3)
    for kind in np.unique(species):
        rows = np.flatnonzero(species == kind)
        reference = references[kind]
        coefficients = ndimage.spline_filter(reference.potential.data, 3, np.float32, "mirror")
        reach = np.linalg.norm(reference.points, axis=1).max() / reference.potential.voxel_spacing
        _add(
            density,
            instances,
            coefficients,
            reference.envelope.astype(np.float32),
            index[rows],
            matrices[rows],
            (rows + 1).astype(instances.dtype),
            float(reach / _FINER + 2),
        )


def _center(volume: Volume, voxel_spacing: float) -> Volume:
    """Bring a map to the reference grid, its centre of mass at position 0 in the middle."""
    center = mass_center(volume)
    reach = volume.to_position(np.argwhere(volume.data > MOLECULAR_SURFACE)) - center
    side = 2 * np.linalg.norm(reach, axis=1).max() / voxel_spacing + 4
    fine = rescale(volume, voxel_spacing / _FINER)
    # As sharp as `make_potential` makes structures: nothing beyond the tomogram's Nyquist.
    smooth = band_pass(
        fine.data, voxel_spacing=fine.voxel_spacing, low_pass=2 * voxel_spacing / 0.9
    )
    n = fft.next_fast_len(int(np.ceil(side)) * _FINER, real=True)
    grid = np.indices((n, n, n), dtype=np.float32) - np.float32((n - 1) / 2)
    places = grid + fine.to_index(center).astype(np.float32)[:, None, None, None]
    data = ndimage.map_coordinates(smooth, places, order=3, mode="constant")
    origin = np.full(3, -(n - 1) / 2 * fine.voxel_spacing)
    return Volume(
        data=data.astype(np.float32),
        voxel_spacing=fine.voxel_spacing,
        origin=origin,
        name=volume.name,
    )


def _close_over_center(mask: NDArray[np.bool_], margin: int) -> NDArray[np.bool_]:
    """Close a mask just enough that it contains a ball of `margin` voxels about the middle."""
    middle = (np.array(mask.shape) - 1) / 2
    distance = np.sqrt(
        sum((g - m) ** 2 for g, m in zip(np.indices(mask.shape), middle, strict=True))
    )
    ball = distance <= margin
    if mask[ball].all():
        return mask
    outside = ndimage.distance_transform_edt(~mask)
    radius = float(outside[ball].max())
    pad = int(np.ceil(radius)) + 1
    padded = np.pad(mask, pad)
    grown = ndimage.distance_transform_edt(~padded) <= radius
    closed = ndimage.distance_transform_edt(grown) > radius
    return closed[pad:-pad, pad:-pad, pad:-pad] | mask | ball


@njit(cache=True, nogil=True, parallel=True)
def _add(density, instances, coefficients, envelope, index, matrices, rows, reach):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    """Sample the cubic spline of a reference at every voxel within reach of a particle.

    Parallel over slices, so that every voxel adds its particles in the same order.
    """
    nz, ny, nx = density.shape
    mz, my, mx = coefficients.shape
    for z in prange(nz):
        w = np.empty((3, 4))
        base = np.empty(3, np.int64)
        place = np.empty(3)
        for p in range(len(index)):
            dz = z - index[p, 0]
            if abs(dz) > reach:
                continue
            span = np.sqrt(reach**2 - dz**2)
            for y in range(
                max(0, int(np.ceil(index[p, 1] - span))), min(ny, int(index[p, 1] + span) + 1)
            ):
                dy = y - index[p, 1]
                half = np.sqrt(max(span**2 - dy**2, 0.0))
                for x in range(
                    max(0, int(np.ceil(index[p, 2] - half))), min(nx, int(index[p, 2] + half) + 1)
                ):
                    dx = x - index[p, 2]
                    m = matrices[p]
                    # The transpose takes the tomogram back to the reference.
                    place[2] = _FINER * (m[0, 0] * dx + m[1, 0] * dy + m[2, 0] * dz) + (mx - 1) / 2
                    place[1] = _FINER * (m[0, 1] * dx + m[1, 1] * dy + m[2, 1] * dz) + (my - 1) / 2
                    place[0] = _FINER * (m[0, 2] * dx + m[1, 2] * dy + m[2, 2] * dz) + (mz - 1) / 2
                    if (
                        place[0] < 1
                        or place[1] < 1
                        or place[2] < 1
                        or place[0] >= mz - 2
                        or place[1] >= my - 2
                        or place[2] >= mx - 2
                    ):
                        continue
                    if (
                        instances[z, y, x] == 0
                        and envelope[int(place[0] + 0.5), int(place[1] + 0.5), int(place[2] + 0.5)]
                    ):
                        instances[z, y, x] = rows[p]
                    for axis in range(3):
                        base[axis] = int(place[axis]) - 1
                        t = place[axis] - np.floor(place[axis])
                        w[axis, 0] = (1 - t) ** 3 / 6
                        w[axis, 1] = (3 * t**3 - 6 * t**2 + 4) / 6
                        w[axis, 2] = (-3 * t**3 + 3 * t**2 + 3 * t + 1) / 6
                        w[axis, 3] = t**3 / 6
                    total = 0.0
                    for i in range(4):
                        for j in range(4):
                            line = 0.0
                            for k in range(4):
                                line += (
                                    w[2, k] * coefficients[base[0] + i, base[1] + j, base[2] + k]
                                )
                            total += w[0, i] * w[1, j] * line
                    density[z, y, x] += total
