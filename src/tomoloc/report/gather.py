"""Find what belongs together on disk: picks, their runs and tomograms, and truth."""

from __future__ import annotations

import logging
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from tomoloc.io.tables import Frame, ParticleTable, read_table
from tomoloc.io.tomograms import read_tomogram, read_volume
from tomoloc.types import Particles, Tomogram, Volume

__all__ = ["Run", "find_truth", "gather_grids", "gather_table", "read_runs"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False, kw_only=True)
class Run:
    """Picks of one tomogram and how they were made.

    Parameters
    ----------
    name : str
        Of the tomogram.
    particles : Particles
        The picks.
    frame : Frame
        The tomogram's grid, as far as it is known.
    record : mapping
        Content of the run file; empty if there is none.
    folder : Path
        Where the picks lie.
    """

    name: str
    particles: Particles
    frame: Frame
    record: Mapping[str, Any] = field(default_factory=dict)
    folder: Path = Path()

    def value(self, section: str, key: str) -> Any:
        """Return an entry of the run file, None where it is missing."""
        entries = self.record.get(section, {})
        return entries.get(key) if isinstance(entries, Mapping) else None

    def number(self, section: str, key: str) -> float | None:
        """Return an entry that is a number, None where it is missing or something else.

        Of several numbers, one for each label, it is the largest.
        """
        value = self.value(section, key)
        if isinstance(value, list) and value and all(isinstance(v, int | float) for v in value):
            value = max(value)
        known = isinstance(value, int | float) and not isinstance(value, bool)
        return float(value) if known and np.isfinite(value) else None

    @property
    def tomogram_path(self) -> Path | None:
        """Where the tomogram lies, None if it is not there (any more)."""
        stated = self.value("inputs", "tomogram")
        if not isinstance(stated, str) or not stated:
            return None
        places = (Path(stated), self.folder / stated)
        return next((path for path in places if path.exists()), None)

    def read_tomogram(self) -> Tomogram:
        """Read the tomogram with the voxel size of the picks, and, as they do, from voxel 0 on."""
        path = self.tomogram_path
        if path is None:
            raise FileNotFoundError(
                f"tomogram {self.value('inputs', 'tomogram') or self.name} is missing"
            )
        spacing = self.number("inputs", "voxel_spacing") or self.frame.voxel_spacing
        return replace(read_tomogram(path, voxel_spacing=spacing), origin=np.zeros(3))


def gather_table(path: str | Path, **given: Any) -> ParticleTable:
    """Read a particle file, a folder of them, or the truth of simulated samples.

    Parameters
    ----------
    path : path
        A file of any dialect; a pick folder; a sample folder, or a folder of those.
    **given
        What the files do not say; see `tomoloc.io.tables.read_table`.

    Raises
    ------
    ValueError, OSError
        If there is nothing to read.
    """
    source = Path(path)
    if not source.is_dir():
        return read_table(source, **given)
    files = _tables_in(source)
    if not files:
        return read_table(source, **given)
    tables = [read_table(file, **given) for file in files]
    return ParticleTable(
        particles=Particles.concatenate([table.particles for table in tables]),
        frames={name: frame for table in tables for name, frame in table.frames.items()},
        dialect=tables[0].dialect,
    )


def _tables_in(folder: Path) -> list[Path]:
    """List a pick folder's tables or a sample folder's truth; other STAR files may lie beside."""
    picked = [_table_of(record) for record in sorted(folder.glob("*.run.toml"))]
    picked = [table for table in picked if table.is_file()]
    truth = [*folder.glob("particles.star"), *folder.glob("*/particles.star")]
    return picked or sorted(truth)


def _table_of(record: Path) -> Path:
    return record.with_name(record.name.removesuffix(".run.toml") + ".star")


def gather_grids(
    table: ParticleTable, path: str | Path, *, instances: bool = False
) -> dict[str, Volume]:
    """Give the grids of all tomograms in a truth table, so that empty ones count too.

    Parameters
    ----------
    table : ParticleTable
        Read from `path`.
    path : path
        Where instance volumes of samples lie beside the truth.
    instances : bool
        Whether to read them; elsewhere grids have no values.
    """
    grids = {
        name: Volume(
            data=np.broadcast_to(np.float32(0), frame.shape),
            voxel_spacing=frame.voxel_spacing,
            name=name,
        )
        for name, frame in table.frames.items()
        if frame.shape is not None and frame.voxel_spacing is not None
    }
    if instances:
        source = Path(path)
        files = _tables_in(source) if source.is_dir() else [source]
        for file in files:
            beside = file.with_name("instances.mrc")
            names = list(read_table(file).frames) if beside.is_file() else []
            if len(names) == 1:
                grids[names[0]] = read_volume(beside)
                logger.info("%s: particle bodies from %s", names[0], beside)
    return grids


def read_runs(folder: str | Path) -> list[Run]:
    """Read all picks in a folder, one run a tomogram, sorted by name.

    Raises
    ------
    FileNotFoundError
        If the folder does not exist.
    ValueError
        If it holds no particle tables, or a run file is damaged.
    """
    home = Path(folder)
    if not home.is_dir():
        raise FileNotFoundError(f"{home}: no such folder")
    files = sorted(path for path in home.glob("*.star") if path.is_file())
    if not files:
        raise ValueError(f"{home} holds no picks: expected *.star, as tomoloc pick writes them")
    runs = []
    for file in files:
        record = file.with_suffix(".run.toml")
        table, content = read_table(file), _read_record(record) if record.is_file() else {}
        names = list(dict.fromkeys([*table.frames, *table.particles.tomograms])) or [file.stem]
        for name in names:
            rows = np.asarray(table.particles.tomogram) == name
            runs.append(
                Run(
                    name=name or file.stem,
                    particles=table.particles[rows],
                    frame=table.frames.get(name) or Frame(name),
                    record=content,
                    folder=home,
                )
            )
    return runs


def _read_record(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text("utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is no valid TOML: {error}") from error


def find_truth(runs: list[Run], *, path: str | Path | None = None) -> ParticleTable | None:
    """Read truth from `path`, or from particles.star beside each run's tomogram.

    Returns
    -------
    ParticleTable or None
        None if nobody knows the truth. Names are those of the runs.
    """
    if path is not None:
        return gather_table(path)
    particles, frames = [], {}
    for run in runs:
        place = run.tomogram_path
        file = None if place is None else place.with_name("particles.star")
        if file is None or not file.is_file() or file.parent.samefile(run.folder):
            continue
        table = read_table(file)
        particles.append(replace(table.particles, tomogram=run.name))
        frames[run.name] = run.frame
    if not frames:
        return None
    return ParticleTable(particles=Particles.concatenate(particles), frames=frames)
