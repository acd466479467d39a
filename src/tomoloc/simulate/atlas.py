"""The truth about a scene: names and numbers of all that it holds, and tables of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tomoloc.physics.rotations import turn_to
from tomoloc.simulate.bilayers import Bilayer
from tomoloc.simulate.filaments import Filament, to_subunit
from tomoloc.simulate.membranes import surface_points
from tomoloc.simulate.packing import Packing
from tomoloc.simulate.recipe import Recipe
from tomoloc.simulate.references import Reference
from tomoloc.simulate.settings import Filaments, Species
from tomoloc.types import FloatArray, Particles, Volume

__all__ = ["bin_grid", "bin_instances", "list_filaments", "list_membranes", "list_particles"]
__all__ += ["make_legend", "values_of"]


def make_legend(recipe: Recipe) -> dict[int, str]:
    """Number the labels of a recipe from 1: particles, filaments, membranes, then the rest."""
    names: list[str] = []
    items: list[Species | Filaments] = [*recipe.species, *recipe.filaments]
    for item in items:
        names += [item.name, *(part.label for part in item.parts)]
    rest = (*recipe.membranes, recipe.gold, recipe.carbon, recipe.contamination)
    names += [item.label for item in rest if item is not None]
    return {i + 1: name for i, name in enumerate(dict.fromkeys(names))}


def values_of(item: Species | Filaments, legend: dict[int, str]) -> NDArray[np.uint16]:
    """Values of an item's own label and those of its parts in the atlas."""
    numbers = {name: value for value, name in legend.items()}
    labels = [item.name, *(part.label for part in item.parts)]
    return np.array([numbers[label] for label in labels], dtype=np.uint16)


def list_particles(
    recipe: Recipe, packing: Packing, references: Sequence[Sequence[Reference]], *, first: int
) -> Particles:
    """Make the table of particles.

    Parameters
    ----------
    recipe : Recipe
        Resolved.
    packing : Packing
    references : sequence of sequence of Reference
        Variants of each species.
    first : int
        Instance number of the first bilayer.
    """
    n = len(packing.position)
    names = np.array([species.name for species in recipe.species] or [""], dtype=np.str_)
    roles = np.array([str(species.role) for species in recipe.species] or [""], dtype=np.str_)
    flexible = np.array([bool(species.conformers) for species in recipe.species], dtype=bool)
    rmsd = [references[s][c].rmsd for s, c in zip(packing.species, packing.conformer, strict=True)]
    extra: dict[str, NDArray[Any]] = {
        "tomolocInstance": np.arange(1, n + 1),
        "tomolocRole": roles[packing.species],
        "tomolocConformer": np.where(flexible[packing.species], packing.conformer + 1, 0)
        if n
        else np.zeros(0, dtype=int),
        "tomolocConformerRmsd": np.round(np.array(rmsd, dtype=float), 3),
        "tomolocVisibleFraction": np.round(packing.visible, 4),
        "tomolocMembrane": np.where(packing.container >= 0, packing.container + first, 0),
    }
    return Particles(
        position=packing.position,
        label=names[packing.species],
        tomogram=recipe.name,
        rotation=packing.rotation,
        extra=extra,
    )


def list_membranes(
    recipe: Recipe,
    bilayers: Sequence[Sequence[Bilayer]],
    *,
    grid: Volume,
    ice: FloatArray,
    first: int,
) -> Particles | None:
    """Make the table of points on the middle of bilayers, two voxels apart, with their normals."""
    if not recipe.membranes:
        return None
    tables = []
    number = first
    for settings, group in zip(recipe.membranes, bilayers, strict=True):
        for bilayer in group:
            position, normal = surface_points(
                bilayer, grid=grid, spacing=2 * grid.voxel_spacing, ice=ice
            )
            tables.append(
                Particles(
                    position=position,
                    label=settings.label,
                    tomogram=recipe.name,
                    rotation=turn_to(normal),
                    extra={"tomolocInstance": np.full(len(position), number)},
                )
            )
            number += 1
    return Particles.concatenate([*tables, Particles(position=np.zeros((0, 3)))])


def list_filaments(
    recipe: Recipe,
    filaments: Sequence[Sequence[Filament]],
    *,
    subunits: Sequence[Reference],
    grid: Volume,
    first: int,
) -> Particles | None:
    """Make the table of filaments' subunits: points on the centreline, inside the volume.

    Poses are those of the subunits' own frames, whose z axis is the helix's.
    """
    if not recipe.filaments:
        return None
    tables = []
    number = first
    for settings, subunit, group in zip(recipe.filaments, subunits, filaments, strict=True):
        for filament in group:
            table = Particles(
                position=filament.position,
                label=settings.name,
                tomogram=recipe.name,
                rotation=filament.rotation * to_subunit(subunit),
                extra={
                    "tomolocInstance": np.full(len(filament), number),
                    "tomolocArcLength": np.round(filament.arc_length, 3),
                },
            )
            tables.append(table[grid.contains(filament.position)])
            number += 1
    return Particles.concatenate([*tables, Particles(position=np.zeros((0, 3)))])


def bin_grid(volume: Volume, factor: int) -> Volume:
    """Average over cubes, the centre of the first of which becomes the origin."""
    if factor == 1:
        return volume
    binned = volume.binned(factor)
    return Volume(data=binned.data, voxel_spacing=binned.voxel_spacing, name=volume.name)


def bin_instances(
    instances: NDArray[np.integer[Any]],
    labels: NDArray[np.integer[Any]],
    factor: int,
    *,
    centers: NDArray[np.integer[Any]],
) -> tuple[NDArray[np.integer[Any]], NDArray[np.integer[Any]]]:
    """Give each cube of voxels the instance, and its label, that holds most of it.

    Background wins where it fills more than half of a cube, but not against the centre of a
    particle.

    Parameters
    ----------
    instances, labels : ndarray, shape (z, y, x)
    factor : int
        Edge of the cubes in voxels.
    centers : ndarray of int, shape (n, 3)
        Voxels zyx in which particles 1 to n have their centres.
    """
    if factor == 1:
        return instances, labels
    (nz, ny, nx), f = (n // factor for n in instances.shape), factor
    cubes, values = (
        grid.reshape(nz, f, ny, f, nx, f).transpose(0, 2, 4, 1, 3, 5).reshape(-1, f**3)
        for grid in (instances, labels)
    )
    order = np.sort(cubes, axis=1)
    middle = order[:, f**3 // 2]
    winner = np.where(middle == 0, 0, order[:, -1])
    # What fills half of a cube is in the middle and at the end; few cubes hold several others.
    for row in np.flatnonzero((middle > 0) & (order[:, -1] != middle)):
        numbers, counts = np.unique(order[row][order[row] > 0], return_counts=True)
        winner[row] = numbers[np.argmax(counts)]
    row = np.ravel_multi_index(tuple(centers.T // f), (nz, ny, nx))
    held = (cubes[row] == np.arange(1, len(row) + 1)[:, None]).any(axis=1)
    winner[row[held]] = np.flatnonzero(held) + 1
    label = values[np.arange(len(winner)), np.argmax(cubes == winner[:, None], axis=1)]
    return winner.reshape(nz, ny, nx), label.reshape(nz, ny, nx)
