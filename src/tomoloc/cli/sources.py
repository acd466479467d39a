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
from numpy.typing import NDArray

if TYPE_CHECKING:
    from tomoloc.simulate.recipe import Recipe
    from tomoloc.simulate.scene import Simulator
    from tomoloc.simulate.settings import Species
    from tomoloc.types import Particles, Sample, Tomogram

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
        Of samples of `source` after which all have been seen; 0 where there are always new ones.
    """

    source: _Mixture
    held_out: list[Sample]
    number: int

    def few(self, n: int) -> list[Sample]:
        """Return the held-out samples or, where there are none, some that are trained on."""
        return self.held_out or list(islice(self.source(0), min(n, self.number or n)))

    def all(self, n: int) -> list[Sample]:
        """Return the held-out samples, and all of the others but for endless ones; n at most."""
        others = min(n, self.number) if self.held_out else n
        return [*self.held_out, *islice(self.source(0), min(others, self.number or others))][:n]


def read_data(
    data: Sequence[str],
    validation: Sequence[str] | None,
    *,
    seed: int,
    jobs: int,
    apart: bool = True,
    annotated: Sequence[Sample] = (),
    ratio: Sequence[int] | None = None,
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
    ratio : sequence of int, optional
        How many samples are taken in a turn from each word of `data`, and last from `annotated`.
        By default one from all folders together, one from `annotated` and one from each recipe.

    Raises
    ------
    ValueError
        If there is nothing to train on, or nothing to hold out, or the ratio is of other length.
    """
    sources = _find_data(data, option="--data") if data else []
    weights = _check_ratio(ratio, len(sources) + bool(annotated))
    recipes = [found for found in sources if not isinstance(found, list)]
    folders = [found for found in sources if isinstance(found, list)]
    train, held_out, unseen = [*annotated], [], recipes
    apart_from: list[Path] = []
    if validation is not None:
        given = _find_data(validation, option="--validation")
        unseen = [found for found in given if not isinstance(found, list)]
        held_out = _Files(_flat(given), seed).read_once()
    elif apart or len(_flat(folders)) + len(train) >= _ENOUGH:
        # Where a ratio is given, a source of one sample is there for a reason.
        several = [found for found in folders if ratio is None or len(found) > 1]
        apart_from = _flat(several)
        apart_from = apart_from[:: -max(2, len(apart_from) // _HELD_OUT)][:_HELD_OUT]
        held_out = _Files(apart_from, seed).read_once()
        if not held_out and len(train) >= _ENOUGH:
            held_out, train = train[-1:], train[:-1]
    if ratio is None:  # all folders are one source, and come first
        sources, weights = [_flat(folders)], [1] * (2 + len(recipes))
    parts: list[_Files | _Again | _Simulated] = []
    for found in sources:
        if isinstance(found, list):
            parts.append(_Files([one for one in found if one not in apart_from], seed))
        else:
            parts.append(_Simulated(found, seed, jobs, apart=apart))
    parts += [_Again(train)] if annotated or ratio is None else []
    if ratio is None:
        parts += [_Simulated(recipe, seed, jobs, apart=apart) for recipe in recipes]
    used = [pair for pair in zip(parts, weights, strict=True) if pair[0].number != 0]
    if apart and folders and not used:
        raise ValueError("--data has one sample alone; give another one as --validation")
    if not used:
        raise ValueError("there is nothing to train on: give --data, or --particles --tomograms")
    for recipe in unseen:
        held_out += islice(_Simulated(recipe, seed + 1, 0, apart=apart)(0), _HELD_OUT)
    mixture = _Mixture(*map(list, zip(*used, strict=True)))
    return Data(mixture, held_out, 0 if recipes else mixture.number)


def _flat(sources: Sequence[list[Path] | Recipe]) -> list[Path]:
    """All folders of some sources together."""
    return [folder for found in sources if isinstance(found, list) for folder in found]


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
        _check_inside(tomogram, own, rows=rows, what=str(table))
        dark = tomogram.with_data(-np.asarray(tomogram.data, dtype=np.float32))
        samples.append(Sample(tomogram=dark, particles=own))
    return samples


def _check_inside(
    tomogram: Tomogram, particles: Particles, *, rows: NDArray[np.intp], what: str
) -> None:
    outside = np.flatnonzero(~tomogram.contains(particles.position))
    if len(outside):
        place = ", ".join(f"{x:.0f}" for x in particles.position[outside[0]])
        sides = " x ".join(f"{x:.0f}" for x in tomogram.extent)
        raise ValueError(
            f"{what}: particle {rows[outside[0]] + 1} at ({place}) Å lies outside tomogram"
            f" {tomogram.name}, which has {sides} Å (x y z)"
        )


def _check_ratio(ratio: Sequence[int] | None, number: int) -> list[int]:
    if ratio is None:
        return []
    if len(ratio) != number or min(ratio) < 1:
        raise ValueError(
            f"--ratio needs {number} whole numbers from 1 on, one for each of --data and one for"
            f" --tomograms; got {' '.join(map(str, ratio))}"
        )
    return list(ratio)


def _find_data(words: Sequence[str], *, option: str) -> list[list[Path] | Recipe]:
    """Find the folders of samples, or the recipe, that each word stands for."""
    from tomoloc.simulate.recipe import read_recipe

    sources: list[list[Path] | Recipe] = []
    for word in words:
        path = Path(word)
        if not path.is_dir():
            sources.append(read_recipe(word))
            continue
        found = [path, *sorted(path.iterdir())]
        found = [one for one in found if (one / "tomogram.mrc").is_file()]
        if not found:
            raise ValueError(f"{option}: {path} holds no sample (a folder with a tomogram.mrc)")
        sources.append(found)
    if not sources:
        raise ValueError(f"{option} needs folders of samples or recipes")
    return sources


@dataclass(frozen=True)
class _Mixture:
    """Takes samples from several sources in turn, from some of them several in a turn."""

    parts: Sequence[Any]
    weights: Sequence[int]

    @property
    def number(self) -> int:
        """Samples after which each one of those that are not endless has been taken."""
        turns = [-(-part.number // n) for part, n in zip(self.parts, self.weights, strict=True)]
        return max(turns) * sum(self.weights)

    def __call__(self, start: int) -> Iterator[Sample]:
        n = len(self.parts)
        # One of each that still has its turn, then again, so that none comes in a row.
        order = [
            part
            for turn in range(max(self.weights))
            for part in range(n)
            if self.weights[part] > turn
        ]
        whole, rest = divmod(start, len(order))
        taken = [whole * w + order[:rest].count(i) for i, w in enumerate(self.weights)]
        streams = [part(first) for part, first in zip(self.parts, taken, strict=True)]
        number = rest
        while True:
            yield next(streams[order[number]])
            number = (number + 1) % len(order)


@dataclass(frozen=True)
class _Files:
    """Reads samples again and again, each time in another order."""

    folders: Sequence[Path]
    seed: int

    @property
    def number(self) -> int:
        """Of different samples."""
        return len(self.folders)

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
    if sample.labels is None:  # nothing else tells where they are
        every = np.arange(len(sample.particles))
        _check_inside(sample.tomogram, sample.particles, rows=every, what=str(folder))
    return sample


@dataclass(frozen=True)
class _Again:
    """Gives the same samples again and again."""

    samples: Sequence[Sample]

    @property
    def number(self) -> int:
        """Of different samples."""
        return len(self.samples)

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

    number = -1  # always new ones

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
