"""What a simulator needs of each structure: its potential and its envelope, ready to be turned."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from numba import njit, prange
from numpy.typing import NDArray
from scipy import fft, ndimage
from scipy.spatial import cKDTree
from scipy.spatial.transform import Rotation

from tomoloc.physics.filters import band_pass
from tomoloc.physics.potential import (
    MOLECULAR_SURFACE,
    make_potential,
    mass_center,
    normalize_map,
)
from tomoloc.simulate.settings import Part
from tomoloc.types import FloatArray, Structure, Volume

__all__ = ["Reference", "add_particles", "make_reference", "part_of_atoms"]

_FINER = 2  # voxels of a reference to one of the tomogram, along each axis
_FAINT = 0.1  # volt; ripples below it, outside of a molecule, are left out
_UNLABELED = np.zeros((0, 0, 0), dtype=np.uint16)


@dataclass(frozen=True, eq=False, kw_only=True)
class Reference:
    """A molecule rendered once, on a grid twice as fine as the tomogram's.

    Parameters
    ----------
    potential : Volume, data shape (z, y, x)
        In volt, band-limited to the tomogram's Nyquist frequency, centre at position 0.
    envelope : ndarray of bool, shape (z, y, x)
        The space it takes. Its pores are closed as far as needed to contain the centre.
    center : ndarray, shape (3,)
        Centre of mass xyz in the frame of the structure or map it was made from; of a map that
        states no origin, from the middle of its box.
    parts : ndarray of uint8, shape (z, y, x), optional
        Which part, counted from 1, each voxel of the envelope belongs to; 0 is none.
    rmsd : float
        Of a flexible variant from the structure as it was given.
    """

    potential: Volume
    envelope: NDArray[np.bool_]
    center: FloatArray = field(default_factory=lambda: np.zeros(3))
    parts: NDArray[np.uint8] | None = None
    rmsd: float = 0.0

    @property
    def points(self) -> FloatArray:
        """Positions xyz inside the envelope, shape (n, 3)."""
        return self.potential.to_position(np.argwhere(self.envelope))

    @property
    def volume(self) -> float:
        """Of the envelope, in Å³."""
        return float(self.envelope.sum() * self.potential.voxel_spacing**3)

    @cached_property
    def _sampled(self) -> tuple[NDArray[np.float32], NDArray[np.int16], float]:
        """What `_add` reads: spline coefficients, a code for each voxel, and the reach in voxels.

        The code is 0 where there is nothing, 1 outside and 2 + part inside the envelope.
        """
        data = self.potential.data
        coefficients = ndimage.spline_filter(data, 3, np.float32, "mirror")
        parts = np.int16(0) if self.parts is None else self.parts.astype(np.int16)
        support = ndimage.maximum_filter(np.abs(data), 3) > _FAINT
        code = np.where(self.envelope, 2 + parts, support).astype(np.int16)
        middle = (np.array(data.shape) - 1) / 2
        reach = np.linalg.norm(np.argwhere(code) - middle, axis=1).max() + 1
        return coefficients, code, float(reach / _FINER)


def make_reference(
    source: Structure | Volume,
    *,
    voxel_spacing: float,
    mass_kda: float | None = None,
    parts: Sequence[Part] = (),
    rmsd: float = 0.0,
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
    parts : sequence of Part
        Each voxel of the envelope belongs to the part of the nearest atom, or to none.
    rmsd : float
        To note on the reference.

    Raises
    ------
    ValueError
        If a part's chains are not those of the structure, a map is to have parts, or its
        molecule is too large for its mass.
    """
    fine = voxel_spacing / _FINER
    if isinstance(source, Structure):
        potential = make_potential(source, voxel_spacing=fine, low_pass=2 * voxel_spacing)
        center = source.center
    else:
        potential, center = _center(normalize_map(source, mass_kda=mass_kda), voxel_spacing)
        if not source.origin.any():  # as of maps whose header states none
            center = center - source.center
    surface = min(MOLECULAR_SURFACE, float(potential.data.max()) / 2)
    envelope = _close_over_center(potential.data > surface, _FINER)
    which = None
    if parts:
        if not isinstance(source, Structure):
            raise ValueError(
                f"{source.name or 'a density map'} has no chains; parts need an atomic structure"
            )
        which = np.zeros(envelope.shape, dtype=np.uint8)
        places = potential.to_position(np.argwhere(envelope)) + center
        nearest = cKDTree(source.position).query(places, workers=-1)[1]
        which[envelope] = part_of_atoms(source, parts)[nearest]
    return Reference(potential=potential, envelope=envelope, center=center, parts=which, rmsd=rmsd)


def part_of_atoms(structure: Structure, parts: Sequence[Part]) -> NDArray[np.uint8]:
    """Tell which part, counted from 1, each atom belongs to; 0 is none.

    A chain's name without its trailing number stands for all copies of it in an assembly. Atoms
    of a part with a file of its own lie in chains named ``label:chain`` (see `load_structure`).

    Raises
    ------
    ValueError
        If there is no such chain.
    """
    chain = np.asarray([""] if structure.chain is None else structure.chain, dtype=np.str_)
    names = set(np.unique(chain).tolist())
    result = np.zeros(len(structure.position), dtype=np.uint8)
    for number, part in enumerate(parts, start=1):
        own = {name for name in names if part.structure and name.startswith(f"{part.label}:")}
        for wanted in part.chains:
            found = {wanted} & names or {n for n in names if n.rstrip("0123456789") == wanted}
            if not found:
                raise ValueError(
                    f"part {part.label}: {structure.name or 'the structure'} has no chain"
                    f" {wanted!r}; it has {', '.join(sorted(names - {''})) or 'none'}"
                )
            own |= found
        result[np.isin(chain, sorted(own))] = number
    return result


def add_particles(
    density: FloatArray,
    instances: NDArray[np.integer],
    references: Sequence[Reference],
    *,
    index: FloatArray,
    rotation: Rotation,
    species: NDArray[np.integer],
    values: NDArray[np.integer] | None = None,
    labels: NDArray[np.uint16] | None = None,
    label_values: Sequence[Sequence[int] | NDArray[np.integer]] = (),
) -> None:
    """Add turned references to a density, in place, and number the voxels they take.

    Parameters
    ----------
    density : ndarray of float32, shape (z, y, x)
    instances : ndarray of int, shape (z, y, x)
        Voxels that are not 0 keep their value, and their label.
    references : sequence of Reference
    index : ndarray, shape (n, 3)
        Centres zyx in fractional voxels.
    rotation : Rotation of length n
        Reference to tomogram.
    species : ndarray of int, shape (n,)
        Which of `references` each particle is.
    values : ndarray of int, shape (n,), optional
        What each writes into `instances`; its row + 1 by default.
    labels : ndarray of uint16, shape (z, y, x), optional
    label_values : sequence of sequence of int
        For each reference, the label of the whole, then those of its parts.
    """
    matrices = rotation.as_matrix().reshape(-1, 3, 3)
    numbers = np.arange(1, len(index) + 1) if values is None else np.asarray(values)
    for kind in np.unique(species):
        rows = np.flatnonzero(species == kind)
        coefficients, code, reach = references[kind]._sampled
        _add(
            density,
            instances,
            _UNLABELED if labels is None else labels,
            coefficients,
            code,
            np.asarray(label_values[kind] if labels is not None else [0], dtype=np.uint16),
            index[rows],
            matrices[rows],
            numbers[rows].astype(instances.dtype),
            reach,
        )


def _center(volume: Volume, voxel_spacing: float) -> tuple[Volume, FloatArray]:
    """Bring a map to the reference grid, its centre of mass at position 0 in the middle.

    Returns where that centre was, too.
    """
    inside = np.argwhere(volume.data > MOLECULAR_SURFACE)
    if len(inside) == 0:
        raise ValueError(
            f"map {volume.name or ''} is nowhere as dense as protein, with the mass it was given;"
            " a larger mass_kda, or none, would make it so"
        )
    center = mass_center(volume)
    reach = volume.to_position(inside) - center
    fine = voxel_spacing / _FINER
    side = 2 * np.linalg.norm(reach, axis=1).max() / voxel_spacing + 4
    n = fft.next_fast_len(int(np.ceil(side)) * _FINER, real=True)
    # As sharp as `make_potential` makes structures: nothing beyond the tomogram's Nyquist. That
    # is taken away before or after resampling, on whichever grid holds that frequency.
    low_pass = 2 * voxel_spacing / 0.9
    before = low_pass >= 2 * volume.voxel_spacing
    data = np.asarray(volume.data, dtype=np.float32)
    if before:
        data = band_pass(data, voxel_spacing=volume.voxel_spacing, low_pass=low_pass)
    data = ndimage.affine_transform(
        data,
        np.full(3, fine / volume.voxel_spacing),
        volume.to_index(center - (n - 1) / 2 * fine),
        (n, n, n),
        order=5,
        mode="constant",
    )
    if not before:
        data = band_pass(data, voxel_spacing=fine, low_pass=low_pass)
    origin = np.full(3, -(n - 1) / 2 * fine)
    centered = Volume(
        data=data.astype(np.float32),
        voxel_spacing=fine,
        origin=origin,
        name=volume.name,
    )
    return centered, center


def _close_over_center(mask: NDArray[np.bool_], margin: int) -> NDArray[np.bool_]:
    """Close a mask just enough that it contains a ball of `margin` voxels about the middle."""
    middle = (np.array(mask.shape) - 1) / 2
    distance = np.sqrt(
        sum((g - m) ** 2 for g, m in zip(np.indices(mask.shape), middle, strict=True))
    )
    # The voxel nearest to a particle's centre, and the reference's nearest to that, may lie half a
    # diagonal off each: with a margin of 2, 2.6 voxels of the reference in all.
    own = distance <= (margin + 1) * np.sqrt(3) / 2
    ball = distance <= margin
    if mask[ball].all():
        return mask | own
    outside = ndimage.distance_transform_edt(~mask)
    radius = float(outside[ball].max())
    pad = int(np.ceil(radius)) + 1
    padded = np.pad(mask, pad)
    grown = ndimage.distance_transform_edt(~padded) <= radius
    closed = ndimage.distance_transform_edt(grown) > radius
    return closed[pad:-pad, pad:-pad, pad:-pad] | mask | own


@njit(cache=True, nogil=True, parallel=True)
def _add(  # type: ignore[no-untyped-def]  # noqa: ANN202
    density,  # noqa: ANN001
    instances,  # noqa: ANN001
    labels,  # noqa: ANN001
    coefficients,  # noqa: ANN001
    code,  # noqa: ANN001
    label_values,  # noqa: ANN001
    index,  # noqa: ANN001
    matrices,  # noqa: ANN001
    numbers,  # noqa: ANN001
    reach,  # noqa: ANN001
):
    """Sample the cubic spline of a reference at every voxel within reach of a particle.

    Parallel over slices, so that every voxel adds its particles in the same order.
    """
    nz, ny, nx = density.shape
    mz, my, mx = coefficients.shape
    for z in prange(nz):
        for p in range(len(index)):
            dz = z - index[p, 0]
            if abs(dz) > reach:
                continue
            m = matrices[p]
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
                    # The transpose takes the tomogram back to the reference.
                    u = _FINER * (m[0, 0] * dx + m[1, 0] * dy + m[2, 0] * dz) + (mx - 1) / 2
                    v = _FINER * (m[0, 1] * dx + m[1, 1] * dy + m[2, 1] * dz) + (my - 1) / 2
                    w = _FINER * (m[0, 2] * dx + m[1, 2] * dy + m[2, 2] * dz) + (mz - 1) / 2
                    if min(u, v, w) < 1 or u >= mx - 2 or v >= my - 2 or w >= mz - 2:
                        continue
                    what = code[int(w + 0.5), int(v + 0.5), int(u + 0.5)]
                    if what == 0:
                        continue
                    if what > 1 and instances[z, y, x] == 0:
                        instances[z, y, x] = numbers[p]
                        if labels.size:
                            labels[z, y, x] = label_values[what - 2]
                    density[z, y, x] += _spline(coefficients, w, v, u)


@njit(inline="always")
def _spline(coefficients, w, v, u):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    """Evaluate a cubic B-spline at a place zyx at least one voxel inside the grid."""
    i, j, k = int(w), int(v), int(u)
    a, b, c = _shares(np.float32(w - i)), _shares(np.float32(v - j)), _shares(np.float32(u - k))
    total = np.float32(0)
    for r in range(4):
        plane = np.float32(0)
        for s in range(4):
            line = coefficients[i - 1 + r, j - 1 + s]
            plane += b[s] * (
                c[0] * line[k - 1] + c[1] * line[k] + c[2] * line[k + 1] + c[3] * line[k + 2]
            )
        total += a[r] * plane
    return total


@njit(inline="always")
def _shares(t):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    """Weights of the four points about a place between the second and the third."""
    s = np.float32(1) - t
    sixth = np.float32(1 / 6)
    three, four = np.float32(3), np.float32(4)
    return (
        s * s * s * sixth,
        (three * t * t * t - np.float32(6) * t * t + four) * sixth,
        (three * s * s * s - np.float32(6) * s * s + four) * sixth,
        t * t * t * sixth,
    )
