"""Recipes: what to simulate, as dataclasses and as TOML, from one definition."""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields, is_dataclass, replace
from importlib import resources
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np

from tomoloc.types import FloatArray

__all__ = [
    "BuiltIn",
    "Microscope",
    "Range",
    "Recipe",
    "Species",
    "Specimen",
    "read_recipe",
    "recipe_from_mapping",
    "recipe_to_mapping",
    "shipped_recipes",
]

T = TypeVar("T")


@dataclass(frozen=True)
class Range:
    """Numbers to draw from, evenly: ``[low, high]`` in TOML."""

    low: float
    high: float

    def __post_init__(self) -> None:
        if not (np.isfinite([self.low, self.high]).all() and self.low <= self.high):
            raise ValueError(f"a range needs [low, high]; got [{self.low}, {self.high}]")


Number = float | Range


# Marks the numbers that a recipe may also give as a range, and those that count something.
_DRAWN = {"drawn": True, "whole": False}
_COUNTED = {"drawn": True, "whole": True}


@dataclass(frozen=True, kw_only=True)
class Specimen:
    """The block of ice that is imaged.

    Parameters
    ----------
    shape : tuple of int
        Voxels along z, y and x.
    voxel_spacing : float
    thickness : float or Range, optional
        Of the ice along z; that of the block by default.
    clearance : float
        Least distance between particles.
    border : {"inside", "cut"}
        Whether particles lie wholly inside along x and y, or only their centres must.
    """

    shape: tuple[int, int, int]
    voxel_spacing: float = 10.0
    thickness: Number | None = field(default=None, metadata=_DRAWN)
    clearance: float = 10.0
    border: Literal["inside", "cut"] = "inside"

    def __post_init__(self) -> None:
        shape = tuple(self.shape)
        if len(shape) != 3 or not all(isinstance(n, int) and n >= 8 for n in shape):
            raise ValueError(f"shape must be three whole numbers z, y, x from 8 on; got {shape}")
        object.__setattr__(self, "shape", shape)
        _check_positive(self, "voxel_spacing", "thickness")
        if self.clearance < 0:
            raise ValueError(f"clearance must not be negative; got {self.clearance}")
        if self.border not in {"inside", "cut"}:
            raise ValueError(f"border must be 'inside' or 'cut'; got {self.border!r}")


@dataclass(frozen=True, kw_only=True)
class Microscope:
    """How the tilt series is taken and reconstructed.

    Parameters
    ----------
    tilt_min, tilt_max, tilt_step : float or Range
        In degrees; taken in dose-symmetric order.
    dose_e_per_a2 : float or Range
        Of the whole series.
    defocus_um : float or Range
        Underfocus is positive.
    voltage_kv, spherical_aberration_mm : float
    amplitude_contrast, phase_shift : float or Range
        A fraction, and degrees of a phase plate.
    """

    tilt_min: Number = field(default=-60.0, metadata=_DRAWN)
    tilt_max: Number = field(default=60.0, metadata=_DRAWN)
    tilt_step: Number = field(default=3.0, metadata=_DRAWN)
    dose_e_per_a2: Number = field(default=120.0, metadata=_DRAWN)
    defocus_um: Number = field(default=3.5, metadata=_DRAWN)
    voltage_kv: float = 300.0
    spherical_aberration_mm: float = 2.7
    amplitude_contrast: Number = field(default=0.07, metadata=_DRAWN)
    phase_shift: Number = field(default=0.0, metadata=_DRAWN)

    def __post_init__(self) -> None:
        _check_positive(self, "tilt_step", "dose_e_per_a2", "voltage_kv")
        for name in ("tilt_min", "tilt_max"):
            low, high = _bounds(getattr(self, name))
            if not -85 <= low <= high <= 85:
                raise ValueError(f"{name} must be from -85 to 85 degrees; got {low:g} to {high:g}")
        if _bounds(self.tilt_min)[1] > _bounds(self.tilt_max)[0]:
            raise ValueError("tilt_min must not exceed tilt_max")

    @property
    def tilt_angles(self) -> FloatArray:
        """Angles of a resolved recipe, sorted."""
        low, high, step = (_bounds(v)[0] for v in (self.tilt_min, self.tilt_max, self.tilt_step))
        return low + step * np.arange(int((high - low) / step + 1e-9) + 1)


@dataclass(frozen=True, kw_only=True)
class BuiltIn:
    """A random complex: the arguments of `tomoloc.simulate.structures.make_complex`."""

    seed: Number = field(metadata=_COUNTED)
    mass_kda: Number | None = field(default=None, metadata=_DRAWN)
    symmetry: str | None = None


@dataclass(frozen=True, kw_only=True)
class Species:
    """One kind of particle.

    Parameters
    ----------
    structure : str or BuiltIn
        A file (.pdb, .cif, .mrc and their kin), relative to the recipe's own folder; "pdb:1bxn";
        "builtin:7"; or a table with the seed, mass_kda and symmetry of a built-in complex.
    count : float or Range
        How many to place.
    label : str
        By default the name of the structure. Species may share one.
    mass_kda : float, optional
        Of the molecule in a density map, whose units are arbitrary (`normalize_map`).
    assembly : bool
        Whether to build the first biological assembly that a structure file states.
    """

    structure: str | BuiltIn
    count: Number = field(metadata=_COUNTED)
    label: str = ""
    mass_kda: float | None = None
    assembly: bool = False

    def __post_init__(self) -> None:
        structure = self.structure
        if isinstance(structure, str) and structure.startswith("builtin:"):
            number = structure.removeprefix("builtin:")
            if not number.isdigit():
                raise ValueError(f"a built-in structure is builtin:SEED; got {structure!r}")
            object.__setattr__(self, "structure", BuiltIn(seed=int(number)))
        if not self.label:
            object.__setattr__(self, "label", self._default_label())
        if _bounds(self.count)[0] < 0:
            raise ValueError(f"count must not be negative; got {self.count}")
        if self.mass_kda is not None:
            _check_positive(self, "mass_kda")

    def _default_label(self) -> str:
        if isinstance(self.structure, BuiltIn):
            seed = self.structure.seed
            return "complex" if isinstance(seed, Range) else f"complex-{seed:.0f}"
        return Path(self.structure.removeprefix("pdb:")).name.split(".")[0]


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
    species : tuple of Species
    """

    name: str
    description: str = ""
    seed: int | None = None
    specimen: Specimen
    microscope: Microscope = field(default_factory=Microscope)
    species: tuple[Species, ...] = ()

    def __post_init__(self) -> None:
        if not self.name or "/" in self.name:
            raise ValueError(f"name must be a file name; got {self.name!r}")
        object.__setattr__(self, "species", tuple(self.species))

    def resolve(self, seed: int, *, name: str | None = None) -> Recipe:
        """Draw every range, so that the recipe stands for one sample."""
        rng = np.random.default_rng([seed, 0])
        resolved = _resolve(self, rng)
        return replace(resolved, seed=int(seed), name=name or self.name)


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
        raise ValueError(
            f"no recipe is called {source}{_hint(str(source), list(shipped_recipes()))};"
            f" shipped are {names}. Your own needs a name that ends in .toml"
        )
    return recipe_from_mapping(_parse(path.read_text("utf-8"), str(path)), folder=path.parent)


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
    for name, kind in (("specimen", Specimen), ("microscope", Microscope)):
        if name in values:
            values[name] = _build(kind, values[name], f"{where} [{name}]")
    entries = values.get("species", ())
    if not isinstance(entries, (list, tuple)):
        raise ValueError(f"{where}: species must be [[species]] tables")
    values["species"] = tuple(
        _build_species(entry, f"{where} [[species]] {i + 1}", folder)
        for i, entry in enumerate(entries)
    )
    return _build(Recipe, values, where)


def recipe_to_mapping(recipe: Recipe) -> dict[str, Any]:
    """Turn a recipe into what its TOML holds; `recipe_from_mapping` takes it back."""
    return _plain(recipe)


def _parse(text: str, where: str) -> dict[str, Any]:
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"{where} is no valid TOML: {error}") from error


def _build_species(entry: Mapping[str, Any], where: str, folder: Path | None) -> Species:
    values = dict(entry)
    structure = values.get("structure")
    if isinstance(structure, Mapping):
        values["structure"] = _build(BuiltIn, structure, f"{where} structure")
    elif isinstance(structure, str) and ":" not in structure and folder is not None:
        values["structure"] = str((folder / Path(structure).expanduser()).resolve())
    return _build(Species, values, where)


def _build(kind: type[T], mapping: Mapping[str, Any], where: str) -> T:
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
        if isinstance(value, list) and known[key].metadata.get("drawn"):
            if len(value) != 2 or not all(_is_number(v) for v in value):
                raise ValueError(f"{where}: {key} must be a number or [low, high]; got {value}")
            value = _range(value, f"{where}: {key}")
        elif known[key].metadata.get("drawn") and not (
            _is_number(value) or isinstance(value, Range)
        ):
            raise ValueError(f"{where}: {key} must be a number or [low, high]; got {value!r}")
        values[key] = value
    for name, item in known.items():
        required = item.default is MISSING and item.default_factory is MISSING
        if required and name not in values:
            raise ValueError(f"{where}: {name} is missing")
    try:
        return kind(**values)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{where}: {error}") from error


def _range(bounds: list[float], where: str) -> Range:
    try:
        return Range(*bounds)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error


def _hint(word: str, known: list[str]) -> str:
    close = difflib.get_close_matches(word, known, n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _bounds(value: Number) -> tuple[float, float]:
    return (value.low, value.high) if isinstance(value, Range) else (value, value)


def _check_positive(instance: object, *names: str) -> None:
    for name in names:
        value = getattr(instance, name)
        if value is not None and not _bounds(value)[0] > 0:
            raise ValueError(f"{name} must be positive; got {value}")


def _resolve(item: T, rng: np.random.Generator) -> T:
    """Draw all ranges below a dataclass, in the order of its fields."""
    changes: dict[str, Any] = {}
    for entry in fields(item):  # type: ignore[arg-type]
        value = getattr(item, entry.name)
        if isinstance(value, Range):
            if entry.metadata["whole"]:
                changes[entry.name] = int(rng.integers(int(value.low), int(value.high) + 1))
            else:
                changes[entry.name] = float(rng.uniform(value.low, value.high))
        elif isinstance(value, tuple) and value and is_dataclass(value[0]):
            changes[entry.name] = tuple(_resolve(part, rng) for part in value)
        elif is_dataclass(value):
            changes[entry.name] = _resolve(value, rng)
    return replace(item, **changes)  # type: ignore[type-var]


def _plain(item: Any) -> Any:
    """Turn dataclasses into tables, without what is None or empty."""
    if isinstance(item, Range):
        return [item.low, item.high]
    if is_dataclass(item):
        values = {entry.name: getattr(item, entry.name) for entry in fields(item)}
        return {k: _plain(v) for k, v in values.items() if v is not None and v != ""}
    if isinstance(item, tuple):
        return [_plain(part) for part in item]
    return item
