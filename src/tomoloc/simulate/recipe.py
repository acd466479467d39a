"""Recipes: what to simulate, as dataclasses and as TOML, from one definition."""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, dataclass, field, fields, is_dataclass, replace
from importlib import resources
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from tomoloc.simulate.drawn import Choice, Range, bounds, check_kinds
from tomoloc.simulate.settings import (
    BuiltIn,
    Carbon,
    Contamination,
    Filaments,
    Gold,
    Membranes,
    Microscope,
    Part,
    Reconstruction,
    Species,
    Specimen,
)

__all__ = [
    "Recipe",
    "read_recipe",
    "recipe_from_mapping",
    "recipe_to_mapping",
    "shipped_recipes",
]

T = TypeVar("T")

_OF_MEMBRANES = ("membrane", "outside", "inside", "lumen")
_STRUCTURE_ENDINGS = (".pdb", ".ent", ".cif", ".mmcif", ".mrc", ".map", ".rec")


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """All that a simulation needs.

    Parameters
    ----------
    name : str
        Samples are named after it.
    description : str
    seed : int, optional
        Of a resolved recipe, which gives its one sample again.
    specimen : Specimen
    microscope : Microscope
    reconstruction : Reconstruction
    gold : Gold, optional
    carbon : Carbon, optional
    contamination : Contamination, optional
    membranes : tuple of Membranes
    filaments : tuple of Filaments
    species : tuple of Species
    """

    name: str
    description: str = ""
    seed: int | None = None
    specimen: Specimen
    microscope: Microscope = field(default_factory=Microscope)
    reconstruction: Reconstruction = field(default_factory=Reconstruction)
    gold: Gold | None = None
    carbon: Carbon | None = None
    contamination: Contamination | None = None
    membranes: tuple[Membranes, ...] = ()
    filaments: tuple[Filaments, ...] = ()
    species: tuple[Species, ...] = ()

    def __post_init__(self) -> None:
        check_kinds(self)
        if self.seed is not None and self.seed < 0:
            raise ValueError(f"seed must not be negative; got {self.seed}")
        if self.name in {"", ".", ".."} or "/" in self.name:
            raise ValueError(f"name must be a file name; got {self.name!r}")
        for name in ("membranes", "filaments", "species"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        factor, shape = self.reconstruction.binning, self.specimen.shape
        if any(n % factor for n in shape):
            raise ValueError(f"binning {factor} must divide the sides of the specimen; got {shape}")
        extent = max(shape) * self.specimen.voxel_spacing
        for item in self.membranes:
            if item.shape != "sheet" and bounds(item.diameter)[1] > extent:
                raise ValueError(
                    f"{item.label} of {bounds(item.diameter)[1]:g} Å would not show in"
                    f" {extent:g} Å of ice; make it smaller, or take shape = 'sheet'"
                )
        corrected = self.reconstruction.ctf_correction
        if not self.microscope.defocus_gradient and "flip-3d" in getattr(
            corrected, "one_of", (corrected,)
        ):
            raise ValueError("ctf_correction = 'flip-3d' needs defocus_gradient = true")
        known = {item.label for item in self.membranes}
        for species in self.species:
            if not known and species.location in _OF_MEMBRANES:
                raise ValueError(
                    f"species {species.name} has location = {species.location!r}, but there are no"
                    " [[membranes]]"
                )
            if species.membrane and species.membrane not in known:
                raise ValueError(
                    f"species {species.name} lives at membrane {species.membrane!r}, but"
                    f" [[membranes]] have {', '.join(sorted(known)) or 'none'}"
                )

    def resolve(self, seed: int, *, name: str | None = None) -> Recipe:
        """Draw every range and choice, so that the recipe stands for one sample.

        Folders, lists and `choose` of species become one species for each structure.

        Raises
        ------
        ValueError
            If a folder holds no structure, or fewer than are to be chosen.
        OSError
            If a folder cannot be read.
        """
        rng = np.random.default_rng([seed, 0])
        resolved = _resolve(replace(self, species=()), rng)
        species = [one for item in self.species for one in _expand(item, rng)]
        return replace(resolved, species=tuple(species), seed=int(seed), name=name or self.name)


# Which fields of a recipe hold one table, and which hold several.
_TABLES: dict[str, type] = {
    "specimen": Specimen,
    "microscope": Microscope,
    "reconstruction": Reconstruction,
    "gold": Gold,
    "carbon": Carbon,
    "contamination": Contamination,
}
_LISTS: dict[str, type] = {"membranes": Membranes, "filaments": Filaments, "species": Species}


def read_recipe(source: str | Path) -> Recipe:
    """Read a recipe from a TOML file or by the name of a shipped one.

    Parameters
    ----------
    source : str or path
        A shipped name (see `shipped_recipes`) or a file, whose relative paths count from its
        folder.

    Returns
    -------
    Recipe

    Raises
    ------
    ValueError
        If the name is unknown, the file is no TOML, or a key or value is wrong.
    OSError
        If the file cannot be read.
    """
    if str(source) in shipped_recipes():
        return shipped_recipes()[str(source)]
    path = Path(source)
    if path.suffix != ".toml" and not path.is_file():
        names = ", ".join(shipped_recipes())
        beside = path.with_name(f"{path.name}.toml")
        if beside.is_file():
            raise ValueError(f"no recipe is called {source}; did you mean the file {beside}?")
        raise ValueError(
            f"no recipe is called {source}{_hint(str(source), list(shipped_recipes()))};"
            f" shipped are {names}. Your own needs a name that ends in .toml"
        )
    try:
        text = path.read_text("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is no text; expected a recipe in TOML") from error
    return recipe_from_mapping(_parse(text, str(path)), folder=path.parent)


def shipped_recipes() -> dict[str, Recipe]:
    """Recipes that come with tomoloc, by name."""
    files = (resources.files("tomoloc.simulate") / "recipes").iterdir()
    chosen = sorted((file for file in files if file.name.endswith(".toml")), key=lambda f: f.name)
    recipes = [recipe_from_mapping(_parse(f.read_text("utf-8"), f.name)) for f in chosen]
    return {recipe.name: recipe for recipe in recipes}


def recipe_from_mapping(mapping: Mapping[str, Any], *, folder: Path | None = None) -> Recipe:
    """Make a recipe from what its TOML holds.

    Parameters
    ----------
    mapping : mapping
    folder : Path, optional
        What relative paths of structures are relative to.

    Raises
    ------
    ValueError
        If a key is unknown or missing, or a value is wrong; the message says where.
    """
    values = dict(mapping)
    where = str(values.get("name", "the recipe"))
    for name, kind in _TABLES.items():
        if name in values:
            values[name] = _build(kind, values[name], f"{where} [{name}]", folder)
    for name, kind in _LISTS.items():
        values[name] = _build_all(kind, values.get(name, ()), f"{where} [[{name}]]", folder)
    return _build(Recipe, values, where, folder)


def recipe_to_mapping(recipe: Recipe) -> dict[str, Any]:
    """Turn a recipe into what its TOML holds; `recipe_from_mapping` takes it back."""
    return _plain(recipe)


def _parse(text: str, where: str) -> dict[str, Any]:
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"{where} is no valid TOML: {error}") from error


def _build_all(kind: type[T], entries: Any, where: str, folder: Path | None) -> tuple[T, ...]:
    if not isinstance(entries, (list, tuple)):
        raise ValueError(f"{where} must be a list of tables; got {entries!r}")
    return tuple(_build(kind, entry, f"{where} {i + 1}", folder) for i, entry in enumerate(entries))


def _build(kind: type[T], mapping: Mapping[str, Any], where: str, folder: Path | None) -> T:
    """Make a dataclass from a table, with errors that name the place."""
    if not isinstance(mapping, Mapping):
        raise ValueError(f"{where} must be a table; got {mapping!r}")
    known = {item.name: item for item in fields(kind)}  # type: ignore[arg-type]
    values: dict[str, Any] = {}
    for key, value in mapping.items():
        if key not in known:
            raise ValueError(
                f"{where}: unknown key {key!r}{_hint(key, list(known))};"
                f" known are {', '.join(known)}"
            )
        drawn = known[key].metadata.get("drawn")
        if drawn is not None:
            values[key] = _read_drawn(value, drawn, f"{where}: {key}")
        elif key == "parts":
            values[key] = _build_all(Part, value, f"{where} [[parts]]", folder)
        elif key == "structure" and isinstance(value, Mapping):
            values[key] = _build(BuiltIn, value, f"{where} structure", folder)
        elif key == "structure":
            values[key] = _place(value, folder, f"{where}: structure")
        else:
            values[key] = value
    for name, item in known.items():
        required = item.default is MISSING and item.default_factory is MISSING
        if required and name not in values:
            raise ValueError(f"{where}: {name} is missing")
    try:
        return kind(**values)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{where}: {error}") from error


def _read_drawn(value: Any, drawn: str, where: str) -> Any:
    """Check one value that may be drawn, or a range or choice of such."""
    if isinstance(value, (Range, Choice)):
        return value
    form = "a word" if drawn == "word" else "a number, [low, high]"
    if (
        isinstance(value, Mapping)
        and set(value) == {"one_of"}
        and isinstance(value["one_of"], list)
    ):
        if not value["one_of"]:
            raise ValueError(f"{where}: one_of needs at least one value")
        return Choice(tuple(_read_drawn(one, drawn, where) for one in value["one_of"]))
    if drawn == "word" and isinstance(value, str):
        return value
    if drawn != "word" and isinstance(value, list) and len(value) == 2:
        if all(_is_number(number) for number in value):
            try:
                return Range(*value)
            except ValueError as error:
                raise ValueError(f"{where}: {error}") from error
    elif drawn != "word" and _is_number(value):
        return value
    raise ValueError(f"{where} must be {form} or {{ one_of = [...] }}; got {value!r}")


def _place(structure: Any, folder: Path | None, where: str) -> Any:
    """Make the paths of structures absolute."""
    if isinstance(structure, list) and structure:
        return tuple(_place(one, folder, where) for one in structure)
    if not isinstance(structure, str) or (not structure and where):
        raise ValueError(f"{where} must be a file, a folder, a code or a list; got {structure!r}")
    if ":" in structure or folder is None:
        return structure
    return str((folder / Path(structure).expanduser()).resolve())


def _hint(word: str, known: list[str]) -> str:
    close = difflib.get_close_matches(word, known, n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _resolve(item: T, rng: np.random.Generator) -> T:
    """Draw all that is random below a dataclass, in the order of its fields."""
    changes: dict[str, Any] = {}
    for entry in fields(item):  # type: ignore[arg-type]
        value = getattr(item, entry.name)
        if isinstance(value, (Range, Choice)):
            changes[entry.name] = _draw(value, rng, whole=entry.metadata["drawn"] == "count")
        elif isinstance(value, tuple) and value and is_dataclass(value[0]):
            changes[entry.name] = tuple(_resolve(part, rng) for part in value)
        elif is_dataclass(value):
            changes[entry.name] = _resolve(value, rng)
    return replace(item, **changes)  # type: ignore[type-var]


def _draw(value: Any, rng: np.random.Generator, *, whole: bool) -> Any:
    if isinstance(value, Choice):
        return _draw(value.one_of[int(rng.integers(len(value.one_of)))], rng, whole=whole)
    if not isinstance(value, Range):
        return value
    if whole:
        return int(rng.integers(int(value.low), int(value.high) + 1))
    return float(rng.uniform(value.low, value.high))


def _expand(species: Species, rng: np.random.Generator) -> Iterator[Species]:
    """Yield one resolved species for each structure that is drawn."""
    wanted = None if species.choose is None else int(_draw(species.choose, rng, whole=True))
    structure = species.structure
    sources: list[Any]
    if isinstance(structure, BuiltIn):
        sources = [structure] * (wanted or 1)
        if wanted is not None and isinstance(structure.seed, Range):
            low, high = int(structure.seed.low), int(structure.seed.high)
            _check_enough(high - low + 1, wanted, species)
            seeds = rng.choice(high - low + 1, size=wanted, replace=False) + low
            sources = [replace(structure, seed=int(seed)) for seed in seeds]
    else:
        words = (structure,) if isinstance(structure, str) else structure
        sources = [source for word in words for source in _list_structures(word)]
        if wanted is not None:
            _check_enough(len(sources), wanted, species)
            chosen = np.sort(rng.choice(len(sources), size=wanted, replace=False))
            sources = [sources[i] for i in chosen]
    for source in sources:
        one = _resolve(replace(species, structure=source, choose=None), rng)
        yield replace(one, label=one.name)


def _check_enough(there: int, wanted: int, species: Species) -> None:
    if wanted > there:
        raise ValueError(f"species {species.name}: choose = {wanted}, but there are only {there}")


def _list_structures(word: str) -> list[str | BuiltIn]:
    """Turn one word of a list of structures into the structures it stands for."""
    if word.startswith("builtin:"):
        (built_in,) = (Species(structure=word, count=0).structure,)
        return [built_in]  # type: ignore[list-item]
    folder = Path(word)
    if ":" in word or not folder.is_dir():
        return [word]
    files = sorted(
        str(file)
        for file in folder.iterdir()
        if file.name.lower().removesuffix(".gz").endswith(_STRUCTURE_ENDINGS)
    )
    if not files:
        raise ValueError(f"{folder} holds no structures ({', '.join(_STRUCTURE_ENDINGS)})")
    return files  # type: ignore[return-value]


def _plain(item: Any) -> Any:
    """Turn dataclasses into tables, without what is None or empty."""
    if isinstance(item, Range):
        return [item.low, item.high]
    if isinstance(item, Choice):
        return {"one_of": [_plain(value) for value in item.one_of]}
    if is_dataclass(item):
        values = {entry.name: getattr(item, entry.name) for entry in fields(item)}
        return {k: _plain(v) for k, v in values.items() if v is not None and v not in ("", ())}
    if isinstance(item, tuple):
        return [_plain(part) for part in item]
    return item
