"""From a species of a recipe to the references that are placed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import numpy as np

from tomoloc.io.structures import read_structure
from tomoloc.simulate.flexibility import Motions, draw_conformer, find_motions
from tomoloc.simulate.references import Reference, make_reference
from tomoloc.simulate.settings import BuiltIn, Part, Species
from tomoloc.simulate.structures import make_complex
from tomoloc.types import Structure, Volume

__all__ = ["load_structure", "make_references"]


def load_structure(species: Species) -> Structure | Volume:
    """Make or read the structure of one species of a resolved recipe.

    Returns
    -------
    Structure or Volume
        Atoms of parts with files of their own are added, in chains named ``label:chain``.

    Raises
    ------
    ValueError
        If the recipe is not resolved, or parts are added to, or made of, a density map.
    OSError
        If a file cannot be read.
    """
    structure = species.structure
    if isinstance(structure, tuple):
        raise ValueError(f"species {species.name} has several structures; resolve the recipe first")
    if not isinstance(structure, BuiltIn):
        source = read_structure(
            structure, assembly=species.assembly, voxel_spacing=species.map_spacing
        )
        return _add_parts(source, species.parts)
    mass, symmetry = structure.mass_kda, structure.symmetry
    if symmetry is not None and not isinstance(symmetry, str):
        raise ValueError(f"species {species.name}: expected one symmetry; resolve the recipe first")
    made = make_complex(
        int(_number(structure.seed)),
        mass_kda=None if mass is None else _number(mass),
        symmetry=symmetry,
    )
    return _add_parts(made, species.parts)


def make_references(
    species: Species, *, voxel_spacing: float, rng: np.random.Generator
) -> list[Reference]:
    """Render a species of a resolved recipe: as it is, or its flexible variants.

    Parameters
    ----------
    species : Species
    voxel_spacing : float
        Of the tomogram.
    rng : numpy.random.Generator
        Draws the variants; left alone without any.

    Returns
    -------
    list of Reference
        One, or `species.conformers` of them.

    Raises
    ------
    ValueError, OSError
        As for `load_structure`, `make_reference` and `find_motions`.
    """
    number = int(_number(species.conformers))
    if number == 0:
        return [_render(load_structure(species), species, voxel_spacing, rmsd=0.0)]
    key = replace(species, count=1, concentration_um=None, conformers=0, rmsd=0.0)
    motions = _motions(key, _changed(species))
    conformers = [
        draw_conformer(motions, rmsd=_number(species.rmsd), rng=rng) for _ in range(number)
    ]
    return [_render(c.source, species, voxel_spacing, rmsd=c.rmsd) for c in conformers]


def _render(
    source: Structure | Volume, species: Species, voxel_spacing: float, *, rmsd: float
) -> Reference:
    return make_reference(
        source,
        voxel_spacing=voxel_spacing,
        mass_kda=species.mass_kda,
        parts=species.parts,
        rmsd=rmsd,
    )


@lru_cache(maxsize=64)
def _motions(species: Species, changed: tuple[float, ...]) -> Motions:  # noqa: ARG001
    """Modes of a species, found once; `changed` makes them new where a file has changed."""
    return find_motions(load_structure(species))


def _changed(species: Species) -> tuple[float, ...]:
    """When the files of a species were last changed."""
    sources = (species.structure, *(part.structure for part in species.parts))
    files = [Path(source) for source in sources if isinstance(source, str) and source]
    return tuple(file.stat().st_mtime for file in files if file.is_file())


def _add_parts(source: Structure | Volume, parts: Sequence[Part]) -> Structure | Volume:
    """Join the files of parts to a structure, all in one frame."""
    pieces = [source]
    for part in parts:
        if part.structure:
            piece = read_structure(part.structure)
            if not (isinstance(piece, Structure) and isinstance(source, Structure)):
                raise ValueError(
                    f"part {part.label}: {source.name or 'the complex'} and {part.structure} must"
                    " both be atomic structures; a density map takes no parts"
                )
            chain = [f"{part.label}:{name}" for name in np.asarray(piece.chain)]
            pieces.append(replace(piece, chain=np.array(chain, dtype=np.str_)))
    if len(pieces) == 1:
        return source
    return _joined([piece for piece in pieces if isinstance(piece, Structure)])


def _joined(pieces: Sequence[Structure]) -> Structure:
    def stack(name: str) -> np.ndarray:
        return np.concatenate([np.asarray(getattr(piece, name)) for piece in pieces])

    return Structure(
        position=stack("position"),
        atomic_number=stack("atomic_number"),
        weight=stack("weight"),
        name=pieces[0].name,
        chain=stack("chain"),
        is_node=stack("is_node"),
    )


def _number(value: object) -> float:
    if not isinstance(value, (int, float)):
        raise ValueError(f"expected a resolved recipe with single numbers; got {value}")
    return float(value)
