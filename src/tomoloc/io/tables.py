"""Particle tables: one reader and one writer for the files of many programs.

A *dialect* is the way one program writes particles. All of them become the same thing here:
positions xyz in angstrom from the centre of the tomogram's first voxel, and rotations that take
the reference to the tomogram. `DIALECTS` lists them; a new one is a module with `read_<name>` and
`write_<name>` and one line in the list. docs/conventions.md describes each.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from tomoloc.atomic import writing
from tomoloc.io.frames import Frame, Given, ParticleTable
from tomoloc.types import Particles

__all__ = [
    "DIALECTS",
    "Dialect",
    "Frame",
    "ParticleTable",
    "detect_dialect",
    "read_particles",
    "read_table",
    "write_particles",
]

logger = logging.getLogger(__name__)
Result = TypeVar("Result")


@dataclass(frozen=True, kw_only=True)
class Dialect:
    """How one program writes particles.

    Parameters
    ----------
    name : str
        As `--to` and `--from` take it.
    module : str
        Of `tomoloc.io`; it has `read_<name>(path, given)` and
        `write_<name>(table, path, given)`.
    suffixes : tuple of str
        File name endings, the usual one first.
    needs : tuple of {"voxel_spacing", "extent", "box_size"}
        What must be known to write.
    holds : tuple of {"label", "score", "rotation", "extra", "box_size"}
        What it keeps besides positions.
    layout : str
        Name of each file in a folder, where one file cannot hold all: a file for each
        `{tomogram}`, or for each `{tomogram}` and `{label}`. Empty where one file can.
    """

    name: str
    module: str
    suffixes: tuple[str, ...]
    needs: tuple[str, ...] = ("voxel_spacing",)
    holds: tuple[str, ...] = ()
    layout: str = ""

    @property
    def read(self) -> Callable[[Path, Given], ParticleTable]:
        """The dialect's reader."""
        return self._function("read")

    @property
    def write(self) -> Callable[[ParticleTable, Path, Given], None]:
        """The dialect's writer."""
        return self._function("write")

    def _function(self, verb: str) -> Callable[..., Any]:
        module = import_module(f"tomoloc.io.{self.module}")
        return getattr(module, f"{verb}_{self.name.replace('-', '_')}")


_STAR, _ALL = (".star",), ("label", "score", "rotation", "extra")
_BY_TOMOGRAM = "{tomogram}{suffix}"
DIALECTS: dict[str, Dialect] = {
    dialect.name: dialect
    for dialect in (
        Dialect(name="tomoloc", module="star", suffixes=_STAR, holds=_ALL),
        Dialect(name="relion3", module="star", suffixes=_STAR, holds=_ALL),
        Dialect(name="relion4", module="star", suffixes=_STAR, holds=_ALL),
        Dialect(name="relion5", module="star", suffixes=_STAR, holds=_ALL, needs=("extent",)),
        Dialect(name="warp", module="star", suffixes=_STAR, holds=_ALL, needs=("extent",)),
        Dialect(
            name="imod", module="imod", suffixes=(".mod",), holds=("label",), layout=_BY_TOMOGRAM
        ),
        Dialect(
            name="eman-json",
            module="eman",
            suffixes=(".json",),
            needs=("voxel_spacing", "extent"),
            holds=("label", "score", "box_size"),
            layout="{tomogram}_info{suffix}",
        ),
        Dialect(
            name="eman-box",
            module="eman",
            suffixes=(".box",),
            needs=("voxel_spacing", "box_size"),
            holds=("box_size",),
            layout=_BY_TOMOGRAM,
        ),
        Dialect(name="dynamo", module="dynamo", suffixes=(".tbl",), holds=("score", "rotation")),
        Dialect(
            name="cbox",
            module="boxes",
            suffixes=(".cbox",),
            needs=("voxel_spacing", "box_size"),
            holds=("score", "box_size"),
            layout=_BY_TOMOGRAM,
        ),
        Dialect(name="coords", module="boxes", suffixes=(".coords",), layout=_BY_TOMOGRAM),
        Dialect(
            name="copick",
            module="portal",
            suffixes=(".json",),
            needs=(),
            holds=("label", "score", "rotation"),
            layout="ExperimentRuns/{tomogram}/Picks/tomoloc_0_{label}{suffix}",
        ),
        Dialect(
            name="ndjson",
            module="portal",
            suffixes=(".ndjson", ".jsonl"),
            holds=("rotation",),
            layout=_BY_TOMOGRAM,
        ),
        Dialect(name="csv", module="lists", suffixes=(".csv", ".tsv"), holds=_ALL),
    )
}

BARE = {
    suffix: name
    for name in ("eman-box", "dynamo", "coords", "ndjson")
    for suffix in DIALECTS[name].suffixes
}
"""Formats without a header, by ending: a list of no particles is an empty file."""


def read_table(
    path: str | Path,
    *,
    dialect: str | None = None,
    voxel_spacing: float | None = None,
    shape: tuple[int, int, int] | None = None,
    tomogram: str | None = None,
    center: str = "half",
) -> ParticleTable:
    """Read the particles of a file, or of all files in a folder.

    Parameters
    ----------
    path : path
        In a folder, the STAR files are read, or where there are none, every file whose ending is
        that of a dialect.
    dialect : str, optional
        One of `DIALECTS`; found from name and content by default.
    voxel_spacing : float, optional
        Voxel size of the tomogram the particles were picked in. It replaces what the file says.
    shape : tuple of int (z, y, x), optional
        Number of voxels of that tomogram. It replaces what the file says.
    tomogram : str, optional
        Name of the tomogram where the file gives none; the file's stem by default.
    center : {"half", "picker"}
        Where RELION 5 coordinates count from: N/2, or N/2 - 1 unbinned voxels.

    Returns
    -------
    ParticleTable
        Nothing in the file is an empty table.

    Raises
    ------
    ValueError
        If the file is not of the dialect, holds no coordinates, or does not say a voxel or
        tomogram size that its coordinates need.
    OSError
        If it cannot be read.
    """
    given = Given(voxel_spacing=voxel_spacing, shape=shape, tomogram=tomogram, center=center)
    source = Path(path)
    chosen = None if dialect is None else _dialect(dialect)
    if not source.is_dir():
        return _read_file(source, chosen, given)
    tables = [_read_file(file, chosen, given) for file in _files(source, chosen)]
    return ParticleTable(
        particles=Particles.concatenate([table.particles for table in tables]),
        frames={name: frame for table in tables for name, frame in table.frames.items()},
        dialect=tables[0].dialect,
    )


def read_particles(
    path: str | Path,
    *,
    dialect: str | None = None,
    voxel_spacing: float | None = None,
    shape: tuple[int, int, int] | None = None,
    tomogram: str | None = None,
    center: str = "half",
) -> Particles:
    """Read the particles of a file, or of all files in a folder.

    Parameters
    ----------
    path : path
        In a folder, the STAR files are read, or where there are none, every file whose ending is
        that of a dialect.
    dialect : str, optional
        One of `DIALECTS`; found from name and content by default.
    voxel_spacing, shape, tomogram, center
        As for `read_table`: what the file does not say, or says wrong; the voxel size in angstrom,
        the shape in voxels zyx.

    Returns
    -------
    Particles
        Nothing in the file is an empty table.

    Raises
    ------
    ValueError, OSError
        As for `read_table`.
    """
    return read_table(
        path,
        dialect=dialect,
        voxel_spacing=voxel_spacing,
        shape=shape,
        tomogram=tomogram,
        center=center,
    ).particles


def write_particles(
    particles: Particles,
    path: str | Path,
    *,
    dialect: str = "tomoloc",
    frames: Mapping[str, Frame] | None = None,
    overwrite: bool = True,
    voxel_spacing: float | None = None,
    center: str = "half",
    box_size: int | None = None,
) -> None:
    """Write particles the way a program expects them.

    What a dialect cannot hold is left out, and a warning names it.

    Parameters
    ----------
    particles : Particles
        May be empty.
    path : path
        File. Where a dialect holds one tomogram a file and there are several: a folder.
    dialect : str
        One of `DIALECTS`.
    frames : mapping of str to Frame, optional
        Grids by tomogram name. A single one serves whatever its name.
    overwrite : bool
        Whether an existing `path` may be replaced.
    voxel_spacing : float, optional
        Voxel size that written voxel coordinates refer to; that of the frames by default.
    center : {"half", "picker"}
        Where RELION 5 coordinates shall count from: N/2, or N/2 - 1 unbinned voxels.
    box_size : int, optional
        Edge in voxels, for dialects of boxes.

    Raises
    ------
    ValueError
        If the dialect is not known or needs a voxel size, tomogram size or box size that is not.
    FileExistsError
        If `path` exists and `overwrite` is false.
    """
    kind, target = _dialect(dialect), Path(path)
    given = Given(voxel_spacing=voxel_spacing, center=center, box_size=box_size)
    grids = _grids(particles, frames or {}, voxel_spacing)
    _check_needs(kind, particles, grids, given)
    parts = list(_parts(kind, ParticleTable(particles=particles, frames=grids)))
    if len(parts) > 1 and target.suffix.lower() in kind.suffixes:
        raise ValueError(
            f"{kind.name} takes {len(parts)} files for these particles: give the name of a folder,"
            f" without {target.suffix}"
        )
    if len(parts) > 1 and target.is_dir():
        strange = sorted({file.name for file in target.iterdir()} - {name for name, _ in parts})
        if strange:
            raise FileExistsError(
                f"{target} holds other files ({strange[0]}), which would be lost; give a new folder"
            )
    _warn_of_losses(kind, particles, target)
    with writing(target, overwrite=overwrite) as draft:
        for name, part in parts:
            file = draft / name if len(parts) > 1 else draft
            file.parent.mkdir(parents=True, exist_ok=True)
            kind.write(part, file, given)
        for companion in set(draft.parent.iterdir()) - {draft}:
            beside = target.parent / companion.name
            if beside.exists() and not overwrite:
                raise FileExistsError(f"{beside} already exists; allow overwriting or delete it")
            companion.replace(beside)


def detect_dialect(path: str | Path) -> str:
    """Tell the dialect of a particle file from its name and content.

    Raises
    ------
    ValueError
        If the file is empty or no dialect is like it.
    OSError
        If it cannot be read.
    """
    source = Path(path)
    if not source.exists():
        raise FileNotFoundError(f"{source}: no such file")
    with source.open("rb") as file:
        head = file.read(65536)
    text, suffix = head.decode("utf-8", errors="replace").strip(), source.suffix.lower()
    if not text:
        if suffix in BARE:
            return BARE[suffix]
        raise ValueError(f"{source}: the file is empty")
    if head.startswith(b"IMOD"):
        return "imod"
    if suffix in {".star", ".cbox"} or re.search(r"^data_", text, re.MULTILINE):
        star = import_module("tomoloc.io.star")
        return _blaming(source, lambda: str(star.detect_star(source)))
    if text.startswith(("{", "[")):
        return _blaming(source, lambda: _detect_json(source))
    by_suffix = {end: name for name, kind in DIALECTS.items() for end in kind.suffixes}
    if suffix in by_suffix:
        return by_suffix[suffix]
    words = re.split(r"[,;\s]+", text.splitlines()[0])
    if set("xyz") <= {word.lower() for word in words}:
        return "csv"
    if all(re.fullmatch(r"[-+.\de]+", word, re.IGNORECASE) for word in words):
        if "," in text.splitlines()[0]:
            return "csv"
        if len(words) == 3 or len(words) >= 26:
            return "coords" if len(words) == 3 else "dynamo"
    names = ", ".join(DIALECTS)
    raise ValueError(f"{source}: not like any particle list; name its format ({names})")


def _detect_json(source: Path) -> str:
    text = source.read_text()
    first = text.lstrip().splitlines()[0]
    if source.suffix.lower() in DIALECTS["ndjson"].suffixes or first.startswith('{"type"'):
        return "ndjson"
    content = json.loads(text)
    keys = list(content) if isinstance(content, dict) else []
    for key, name in (("boxes_3d", "eman-json"), ("points", "copick")):
        if key in keys:
            return name
    raise ValueError(
        "a JSON file without particles: expected boxes_3d (EMAN2) or points (copick);"
        f" keys are: {', '.join(keys) or 'none'}"
    )


def _blaming(path: Path, action: Callable[[], Result]) -> Result:
    """Do something with a file and name the file in whatever is wrong with it."""
    try:
        return action()
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _dialect(name: str) -> Dialect:
    if name not in DIALECTS:
        raise ValueError(f"unknown format {name!r}; it must be one of {', '.join(DIALECTS)}")
    return DIALECTS[name]


def _files(folder: Path, dialect: Dialect | None) -> list[Path]:
    wanted = (dialect,) if dialect else DIALECTS.values()
    suffixes = {suffix for kind in wanted for suffix in kind.suffixes}
    files = sorted(f for f in folder.rglob("*") if f.suffix.lower() in suffixes and f.is_file())
    if not files:
        raise ValueError(
            f"{folder}: no particle files ({' '.join(sorted(suffixes))}) in the folder"
        )
    stars = [file for file in files if file.suffix.lower() == ".star"]
    return stars if stars and dialect is None else files


def _read_file(path: Path, dialect: Dialect | None, given: Given) -> ParticleTable:
    kind = DIALECTS[detect_dialect(path)] if dialect is None else dialect
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file")
    table = _blaming(path, lambda: kind.read(path, given))
    if not table.frames:  # nothing found, and the format names tomograms only in its rows
        name = given.tomogram or path.stem
        table = replace(table, frames={name: _blaming(path, lambda: given.frame(name))})
    _warn_of_strays(table, path)
    return replace(table, dialect=kind.name)


def _warn_of_strays(table: ParticleTable, path: Path) -> None:
    """Say so where many particles lie outside their tomogram: a wrong size, most often."""
    names, strays = np.asarray(table.particles.tomogram), 0
    for name, frame in table.frames.items():
        if frame.extent is not None:
            extent = np.array(frame.extent)
            fraction = table.particles.position[names == name] / extent
            strays += int(((fraction < -0.05) | (fraction > 1.05)).any(axis=1).sum())
    if strays > 0.1 * len(names):
        logger.warning(
            "%s: %d of %d particles lie outside their tomogram; check the voxel size and the"
            " tomogram's size",
            path.name,
            strays,
            len(names),
        )


def _grids(
    particles: Particles, frames: Mapping[str, Frame], voxel_spacing: float | None
) -> dict[str, Frame]:
    """Give each tomogram its frame; those of an empty table are all that is known."""
    names = particles.tomograms or list(frames) or [""]
    sole = next(iter(frames.values())) if len(frames) == 1 == len(names) else None
    grids = {name: replace(frames.get(name) or sole or Frame(name), name=name) for name in names}
    if voxel_spacing is None:
        return grids
    return {name: frame.respaced(voxel_spacing) for name, frame in grids.items()}


def _check_needs(
    kind: Dialect, particles: Particles, frames: Mapping[str, Frame], given: Given
) -> None:
    try:
        for frame in frames.values():
            if "voxel_spacing" in kind.needs:
                frame.known_spacing()
            if "extent" in kind.needs:
                frame.known_extent()
    except ValueError as error:
        raise ValueError(f"cannot write {kind.name}: {error}") from error
    if "box_size" in kind.needs and given.box_size is None and "boxSize" not in particles.extra:
        raise ValueError(f"cannot write {kind.name}: give the box size with --box-size (voxels)")


def _warn_of_losses(kind: Dialect, particles: Particles, path: Path) -> None:
    own = (kind.name, kind.module, *(("boxSize",) if "box_size" in kind.holds else ()))
    further = [name for name in particles.extra if not name.startswith(own)]
    present = {
        "label": ("labels", any(particles.labels)),
        "score": ("scores", particles.score is not None),
        "rotation": ("poses", particles.rotation is not None),
        "extra": (f"columns {', '.join(further)}", bool(further)),
    }
    lost = [words for key, (words, there) in present.items() if there and key not in kind.holds]
    if lost and len(particles):
        logger.warning("%s: left out, as %s cannot hold it: %s", path, kind.name, "; ".join(lost))


def _parts(kind: Dialect, table: ParticleTable) -> Iterator[tuple[str, ParticleTable]]:
    """Split a table into those that one file can hold, each with its file's name."""
    if not kind.layout:
        yield "", table
        return
    particles = table.particles
    tomograms, labels = np.asarray(particles.tomogram), np.asarray(particles.label)
    for name, frame in table.frames.items():
        rows = tomograms == name
        for label in particles[rows].labels or [""] if "{label}" in kind.layout else [None]:
            chosen = rows if label is None else rows & (labels == label)
            file = kind.layout.format(
                tomogram=name.replace("/", "_") or "tomogram",
                label=re.sub(r"[\W_]+", "-", label or "") or "particle",
                suffix=kind.suffixes[0],
            )
            yield file, ParticleTable(particles=particles[chosen], frames={name: frame})
