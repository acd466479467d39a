"""Where `tomoloc train` has its samples from: folders, recipes, annotated tomograms."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

if TYPE_CHECKING:
    from tomoloc.simulate.recipe import Recipe
    from tomoloc.simulate.scene import Simulator
    from tomoloc.simulate.settings import Species
    from tomoloc.types import Sample

__all__ = ["Data", "read_annotated", "read_data"]

logger = logging.getLogger(__name__)

_HELD_OUT = 3
"""Samples for validation where none are given."""
_ENOUGH = 3
"""Annotated samples from which on one is held out."""
_DRAWN = "*"
"""Label of species that are drawn anew for each sample, until they are told apart."""


@dataclass(frozen=True)
class Data:
    """What is trained on, and what is held out.

    Parameters
    ----------
    source : callable
        Gives the samples from a number on, without end.
    held_out : list of Sample
        May be empty where there are few.
    number : int
        Of different samples in `source`; 0 where there are always new ones.
    """

    source: _Mixture
    held_out: list[Sample]
    number: int

    def few(self, n: int) -> list[Sample]:
        """Return the held-out samples or, where there are none, some that are trained on."""
        return self.held_out or list(islice(self.source(0), min(n, self.number or n)))


def read_data(
    data: Sequence[str],
    validation: Sequence[str] | None,
    *,
    seed: int,
    jobs: int,
    apart: bool = True,
    annotated: Sequence[Sample] = (),
) -> Data:
    """Find samples and recipes; set some samples aside.

    Parameters
    ----------
    data, validation : sequence of str
        Folders of samples, or recipes.
    seed : int
    jobs : int
        Processes that simulate.
    apart : bool
        Label structures that are drawn anew for each sample so that no two have one label, and
        always hold something out.
    annotated : sequence of Sample
        Further ones.

    Raises
    ------
    ValueError
        If there is nothing to train on, or nothing to hold out.
    """
    folders, recipes = _find_data(data, option="--data") if data else ([], [])
    held_out: list[Sample] = []
    train, unseen = [*annotated], recipes
    if validation is not None:
        others, unseen = _find_data(validation, option="--validation")
        held_out = _Files(others, seed).read_once()
    elif apart or len(folders) + len(train) >= _ENOUGH:
        others = folders[:: -max(2, len(folders) // _HELD_OUT)][:_HELD_OUT]
        held_out = _Files(others, seed).read_once()
        folders = [folder for folder in folders if folder not in others]
        if not held_out and len(train) >= _ENOUGH:
            held_out, train = train[-1:], train[:-1]
    if apart and not folders and not recipes:
        raise ValueError("--data has one sample alone; give another one as --validation")
    parts: list[Any] = [_Files(folders, seed)] if folders else []
    parts += [_Again(train)] if train else []
    parts += [_Simulated(recipe, seed, jobs, apart=apart) for recipe in recipes]
    if not parts:
        raise ValueError("there is nothing to train on: give --data, or --particles --tomograms")
    for recipe in unseen:
        held_out += islice(_Simulated(recipe, seed + 1, 0, apart=apart)(0), _HELD_OUT)
    number = 0 if recipes else len(folders) + len(train)
    return Data(_Mixture(parts), held_out, number)


def read_annotated(
    table: Path,
    tomograms: Sequence[Path],
    *,
    voxel_spacing: float | None,
    contrast: Literal["auto", "dark", "light"],
) -> list[Sample]:
    """Make samples of tomograms in which particles were marked.

    Parameters
    ----------
    table : Path
        Of any dialect, or a folder of tables.
    tomograms : sequence of Path
    voxel_spacing : float, optional
        Where files do not state it.
    contrast : {"auto", "dark", "light"}

    Raises
    ------
    ValueError
        If a particle lies outside its tomogram, or a tomogram is not given.
    """
    from tomoloc.cli.references import read_marked
    from tomoloc.io.stored import WHAT_TO_DO
    from tomoloc.types import Sample

    samples = []
    try:
        marked = list(
            read_marked(
                table,
                tomograms=tomograms,
                voxel_spacing=voxel_spacing,
                contrast=contrast,
                option="--tomograms",
            )
        )
    except ValueError as error:
        # --voxel-spacing is that of the model here.
        raise ValueError(
            str(error).replace(WHAT_TO_DO, "pass --tomogram-spacing in angstrom")
        ) from error
    for tomogram, particles, rows in marked:
        own = particles[rows]
        outside = np.flatnonzero(~tomogram.contains(own.position))
        if len(outside):
            place = ", ".join(f"{x:.0f}" for x in own.position[outside[0]])
            sides = " x ".join(f"{x:.0f}" for x in tomogram.extent)
            raise ValueError(
                f"{table}: particle {rows[outside[0]] + 1} at ({place}) Å lies outside tomogram"
                f" {tomogram.name}, which has {sides} Å (x y z)"
            )
        dark = tomogram.with_data(-np.asarray(tomogram.data, dtype=np.float32))
        samples.append(Sample(tomogram=dark, particles=own))
    return samples


def _find_data(words: Sequence[str], *, option: str) -> tuple[list[Path], list[Recipe]]:
    """Sort words into folders of samples and recipes."""
    from tomoloc.simulate.recipe import read_recipe

    folders: list[Path] = []
    recipes: list[Recipe] = []
    for word in words:
        path = Path(word)
        if not path.is_dir():
            recipes.append(read_recipe(word))
            continue
        found = [path, *sorted(path.iterdir())]
        found = [one for one in found if (one / "tomogram.mrc").is_file()]
        if not found:
            raise ValueError(f"{option}: {path} holds no sample (a folder with a tomogram.mrc)")
        folders += found
    if not folders and not recipes:
        raise ValueError(f"{option} needs folders of samples or recipes")
    return folders, recipes


@dataclass(frozen=True)
class _Mixture:
    """Takes samples from several sources in turn."""

    parts: Sequence[Any]

    def __call__(self, start: int) -> Iterator[Sample]:
        n = len(self.parts)
        # Part i gives the samples number i, i + n, i + 2 n and so on.
        streams = [part((start - i + n - 1) // n) for i, part in enumerate(self.parts)]
        number = start
        while True:
            yield next(streams[number % n])
            number += 1


@dataclass(frozen=True)
class _Files:
    """Reads samples again and again, each time in another order."""

    folders: Sequence[Path]
    seed: int

    def __call__(self, start: int) -> Iterator[Sample]:
        n, number = len(self.folders), start
        while True:
            turn, place = divmod(number, n)
            order = np.random.default_rng([self.seed, turn]).permutation(n)
            yield _read(self.folders[int(order[place])])
            number += 1

    def read_once(self) -> list[Sample]:
        return [_read(folder) for folder in self.folders]


def _read(folder: Path) -> Sample:
    from tomoloc.io.samples import read_sample

    sample = read_sample(folder)
    if len(sample.particles) == 0:
        logger.warning("%s has no particles", folder)
    return sample


@dataclass(frozen=True)
class _Again:
    """Gives the same samples again and again."""

    samples: Sequence[Sample]

    def __call__(self, start: int) -> Iterator[Sample]:
        number = start
        while True:
            yield self.samples[number % len(self.samples)]
            number += 1


@dataclass(frozen=True)
class _Simulated:
    """Simulates samples after a recipe."""

    recipe: Recipe
    seed: int
    jobs: int
    apart: bool = True

    def __call__(self, start: int) -> Iterator[Sample]:
        from tomoloc.simulate.stream import map_in_order

        recipe = _mark_drawn(self.recipe) if self.apart else self.recipe
        maker = _Maker(recipe, self.seed, keep=not self.apart)
        return map_in_order(maker, range(start, sys.maxsize), workers=self.jobs)


@dataclass
class _Maker:
    """Makes the sample of a number, in which different structures have different labels."""

    recipe: Recipe
    seed: int
    keep: bool = False
    """Whether to keep which voxels belong to which particle."""
    simulator: Simulator | None = field(default=None, init=False)

    def __call__(self, number: int) -> Sample:
        from tomoloc.simulate.scene import Simulator, draw_seed

        if self.simulator is None:
            self.simulator = Simulator(self.recipe)
        seed = draw_seed(np.random.default_rng([self.seed, number]))
        plan = self.recipe.resolve(seed, name=f"{self.recipe.name}_{number:03d}")
        species = tuple(
            replace(one, label=_identity(one)) if one.label == _DRAWN else one
            for one in plan.species
        )
        sample = self.simulator.render(self.simulator.draw_resolved(replace(plan, species=species)))
        # What is not trained on need not travel between processes.
        tomogram = replace(sample.tomogram, tilt_series=None)
        return replace(
            sample,
            tomogram=tomogram,
            instances=sample.instances if self.keep else None,
            halves=(),
            scene=None,
            density=None,
        )


def _mark_drawn(recipe: Recipe) -> Recipe:
    """Take away labels that stand for other structures in each sample, or for several."""
    species = tuple(replace(one, label=_DRAWN) if _is_drawn(one) else one for one in recipe.species)
    return replace(recipe, species=species)


def _is_drawn(species: Species) -> bool:
    from tomoloc.simulate.settings import BuiltIn

    structure = species.structure
    if isinstance(structure, BuiltIn):
        fixed = (int, float, str, type(None))
        return not all(
            isinstance(value, fixed)
            for value in (structure.seed, structure.mass_kda, structure.symmetry)
        )
    several = not isinstance(structure, str) or Path(structure).is_dir()
    return species.choose is not None or (several and not species.label)


def _identity(species: Species) -> str:
    """Name a structure so that no other has its name."""
    from tomoloc.simulate.settings import BuiltIn

    structure = species.structure
    if isinstance(structure, BuiltIn):
        parts = (structure.seed, structure.mass_kda, structure.symmetry)
        return "-".join(["complex", *(str(part) for part in parts if part is not None)])
    return replace(species, label="").name
