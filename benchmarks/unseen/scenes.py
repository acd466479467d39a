"""Scenes of proteins that no model has been trained on, simulated once and kept on disk."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from tomoloc.io.samples import read_recipe_mapping, read_sample, write_sample
from tomoloc.io.structures import read_structure
from tomoloc.physics.potential import molecular_mass_kda
from tomoloc.simulate.recipe import Recipe, read_recipe, recipe_to_mapping
from tomoloc.simulate.scene import Simulator
from tomoloc.simulate.settings import Species
from tomoloc.types import Sample, Structure

__all__ = ["CONDITIONS", "PER_TOMOGRAM", "Condition", "Protein", "Scenes", "find_proteins"]

FOLDER = Path(__file__).parent
PER_TOMOGRAM = 7
LARGEST, HEAVIEST = 420.0, 92
"""Diameter in Å and atomic number, beyond which structures are left out."""
ENDINGS = (".pdb", ".ent", ".cif", ".mmcif")


@dataclass(frozen=True, kw_only=True)
class Protein:
    """A structure to look for; `fault` tells why it cannot be."""

    label: str
    path: str
    mass_kda: float = 0.0
    diameter: float = 0.0
    fault: str = ""

    def read(self) -> Structure:
        """Read the atoms."""
        structure = read_structure(self.path)
        assert isinstance(structure, Structure)
        return structure


@dataclass(frozen=True, kw_only=True)
class Condition:
    """A recipe beside this file and what is changed in it; which proteins are looked for."""

    recipe: str = "sparse"
    specimen: Mapping[str, Any] = field(default_factory=dict)
    microscope: Mapping[str, Any] = field(default_factory=dict)
    masses: tuple[float, float] = (0.0, np.inf)
    kinds: int = PER_TOMOGRAM

    def read(self) -> Recipe:
        """Read the recipe, whose species are still to be filled in."""
        recipe = read_recipe(FOLDER / f"{self.recipe}.toml")
        targets, *others = recipe.species
        return replace(
            recipe,
            species=(replace(targets, choose=self.kinds), *others),
            specimen=replace(recipe.specimen, **self.specimen),
            microscope=replace(recipe.microscope, **self.microscope),
        )


# Those that change optics alone have the particles of `sparse`, at the same places.
CONDITIONS = {
    "sparse": Condition(),
    "crowded": Condition(recipe="crowded"),
    "cell": Condition(recipe="cell"),
    "tilt50": Condition(microscope={"tilt_min": -50.0, "tilt_max": 50.0}),
    "tilt40": Condition(microscope={"tilt_min": -40.0, "tilt_max": 40.0}),
    "dose135": Condition(microscope={"dose_e_per_a2": 135.0}),
    "dose120": Condition(microscope={"dose_e_per_a2": 120.0}),
    "spacing13": Condition(specimen={"voxel_spacing": 13.0, "shape": (74, 186, 210)}),
    "small": Condition(masses=(40.0, 150.0)),
    "eleven": Condition(kinds=11),
    "eleven-crowded": Condition(recipe="crowded", kinds=11),
    "cytoplasm": Condition(recipe="cytoplasm", kinds=11),
}


@dataclass(frozen=True, eq=False, kw_only=True)
class Scenes:
    """The tomograms of all conditions, made when they are asked for.

    Parameters
    ----------
    proteins : sequence of Protein
    cache : Path
        Folder for samples. One whose recipe has changed is made anew; after a change of the
        simulator itself, empty it.
    seed : int
    """

    proteins: Sequence[Protein]
    cache: Path
    seed: int = 0

    def number(self, condition: str) -> int:
        """How many tomograms show each protein once, but at least seven."""
        n, each = len(self._eligible(condition)), CONDITIONS[condition].kinds
        if n < each:
            raise ValueError(f"{condition} needs {each} proteins; there are {n}")
        return max(-(-n // each), 7)

    def wanted(self, condition: str, number: int) -> list[Protein]:
        """The proteins of a tomogram; over the first tomograms each comes once."""
        eligible, each = self._eligible(condition), CONDITIONS[condition].kinds
        rng = np.random.default_rng([self.seed, 0])
        used = np.zeros(len(eligible), dtype=int)
        chosen = np.zeros(0, dtype=int)
        for _ in range(number + 1):
            chosen = np.lexsort((rng.random(len(eligible)), used))[:each]
            used[chosen] += 1
        return [eligible[i] for i in sorted(chosen)]

    def sample(self, condition: str, number: int) -> Sample:
        """Read or make a tomogram with its truth."""
        return self._make(self.recipe(condition, number))

    def noise(self, number: int) -> Sample:
        """Read or make a tomogram of ice without particles, with the optics of `sparse`."""
        recipe = CONDITIONS["sparse"].read().resolve(self._seed(10_000 + number))
        return self._make(replace(recipe, name=f"noise_{number}", species=()))

    def recipe(self, condition: str, number: int) -> Recipe:
        """The resolved recipe of a tomogram."""
        wanted = self.wanted(condition, number)
        rng = np.random.default_rng([self.seed, 1, number])
        labels = {protein.label for protein in wanted}
        others = [protein for protein in self.proteins if protein.label not in labels]
        others = [others[i] for i in rng.permutation(len(others))]
        recipe = CONDITIONS[condition].read()
        targets, *distractors = recipe.species
        species = _fill(targets, wanted)
        for place in distractors:
            added = _fill(place, others)
            species, others = species + added, others[len(added) :]
        recipe = replace(recipe, species=tuple(species))
        return recipe.resolve(self._seed(number), name=f"{condition}_{number}")

    def _seed(self, number: int) -> int:
        return int(np.random.default_rng([self.seed, 2, number]).integers(2**31))

    def _eligible(self, condition: str) -> list[Protein]:
        low, high = CONDITIONS[condition].masses
        return [protein for protein in self.proteins if low <= protein.mass_kda < high]

    def _make(self, recipe: Recipe) -> Sample:
        folder, mapping = self.cache / recipe.name, recipe_to_mapping(recipe)
        if _known_by(read_recipe_mapping(folder)) == _known_by(mapping):
            return read_sample(folder)
        simulator = Simulator(recipe)
        made = simulator.render(simulator.draw_resolved(recipe))
        series = made.tomogram.tilt_series
        assert series is not None
        slim = Sample(
            tomogram=replace(made.tomogram, tilt_series=replace(series, images=None)),
            particles=made.particles,
            summary=made.summary,
        )
        write_sample(slim, folder, recipe=mapping)
        return read_sample(folder)


def find_proteins(folder: Path, *, cache: Path) -> list[Protein]:
    """List the usable structures of a folder; say which are left out, and why.

    Where `index.csv` beside the folder gives clusters of like sequences, one of each is taken.
    """
    files = sorted(
        file for file in folder.iterdir() if file.name.lower().removesuffix(".gz").endswith(ENDINGS)
    )
    if not files:
        raise ValueError(f"{folder} holds no structures ({', '.join(ENDINGS)})")
    proteins = _drop_kin(_describe(files, cache / "proteins.json"), folder.parent / "index.csv")
    for protein in proteins:
        if protein.fault:
            logging.getLogger(__name__).warning("%s is left out: %s", protein.label, protein.fault)
    return [protein for protein in proteins if not protein.fault]


def _describe(files: Iterable[Path], notes: Path) -> list[Protein]:
    """Mass and diameter of each structure, noted in a file as reading takes time."""
    known = {}
    if notes.is_file():
        known = {entry["path"]: Protein(**entry) for entry in json.loads(notes.read_text("utf-8"))}
    paths = [str(file.resolve()) for file in files]
    proteins = [known.get(path) or _read(path) for path in paths]
    notes.parent.mkdir(parents=True, exist_ok=True)
    rows = {**known, **{protein.path: protein for protein in proteins}}
    notes.write_text(json.dumps([asdict(protein) for protein in rows.values()], indent=1), "utf-8")
    return proteins


def _read(path: str) -> Protein:
    label = Path(path).name.split(".")[0]
    try:
        structure = read_structure(path)
    except (ValueError, OSError) as error:
        return Protein(label=label, path=path, fault=str(error))
    if not isinstance(structure, Structure):
        return Protein(label=label, path=path, fault="it has no atoms")
    fault = ""
    if structure.atomic_number.max() > HEAVIEST:
        fault = f"it has an element of number {structure.atomic_number.max()}"
    elif structure.diameter > LARGEST:
        fault = f"its diameter is {structure.diameter:.0f} Å, more than {LARGEST:g}"
    return Protein(
        label=label,
        path=path,
        mass_kda=round(molecular_mass_kda(structure), 1),
        diameter=round(structure.diameter, 1),
        fault=fault,
    )


def _drop_kin(proteins: Iterable[Protein], index: Path) -> list[Protein]:
    clusters = {}
    if index.is_file():
        rows = [line.split(",") for line in index.read_text("utf-8").splitlines()]
        clusters = {row[0]: row[rows[0].index("cluster")] for row in rows[1:]}
    first: dict[str, str] = {}
    kept = []
    for protein in proteins:
        kin = protein.label
        if not protein.fault:
            kin = first.setdefault(clusters.get(protein.label, protein.label), protein.label)
        fault = protein.fault if kin == protein.label else f"its sequence is like that of {kin}"
        kept.append(replace(protein, fault=fault))
    return kept


def _fill(place: Species, proteins: Sequence[Protein]) -> list[Species]:
    number = int(place.choose) if isinstance(place.choose, (int, float)) else 1
    return [
        replace(place, structure=protein.path, label=protein.label, choose=None)
        for protein in proteins[:number]
    ]


def _known_by(mapping: Mapping[str, Any] | None) -> str:
    """What a sample depends on, whatever folder its structures lie in."""
    species = (mapping or {}).get("species", ())
    named = [{**item, "structure": Path(item["structure"]).name} for item in species]
    return json.dumps({**(mapping or {}), "species": named}, sort_keys=True, default=list)
