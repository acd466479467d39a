"""Lists of particles with commas: csv of voxel coordinates, with or without a header."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tomoloc.io.frames import Frame, Given, ParticleTable, each
from tomoloc.io.star import ANGLES, numbers, plain, relion_angles, relion_rotation
from tomoloc.types import Particles

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["read_csv", "write_csv"]

SYNONYMS = {
    "tomogram": ("tomogram", "tomo", "experiment", "run", "run_name", "tomo_name", "tomo_id"),
    "label": ("label", "particle_type", "class", "type", "object"),
    "score": ("score", "confidence"),
    **{axis: (axis,) for axis in "xyz"},
}
"""What columns may be called, in any case; other columns are kept as they are."""


def read_csv(path: Path, given: Given) -> ParticleTable:
    """Read x, y, z in voxels and, where there are such columns, score, label, tomogram and poses.

    Without a header the columns are x, y, z and, if there is a fourth, the score.
    """
    table = _load(path)
    column = _meanings(table)
    if not set("xyz") <= set(column):
        raise ValueError(f"expected columns x, y, z; columns are: {', '.join(map(str, table))}")
    stem = given.tomogram or path.stem
    names = table[column["tomogram"]].to_numpy(np.str_) if "tomogram" in column else None
    names = np.full(len(table), stem) if names is None else names
    frames = {str(name): given.frame(str(name)) for name in names} or {stem: given.frame(stem)}
    posed = set(ANGLES) <= set(table)
    used = {*column.values(), *(ANGLES if posed else ())}
    particles = Particles(
        position=numbers(table, [column[axis] for axis in "xyz"])
        * each(names, frames, Frame.known_spacing),
        label=table[column["label"]].to_numpy(np.str_) if "label" in column else "",
        tomogram=names,
        score=numbers(table, [column["score"]])[:, 0] if "score" in column else None,
        rotation=relion_rotation(numbers(table, ANGLES)) if posed else None,
        extra={str(name): plain(table[name]) for name in table if name not in used},
    )
    return ParticleTable(particles=particles, frames=frames)


def _load(path: Path) -> pd.DataFrame:
    """Read every column as text."""
    import pandas as pd

    first = path.read_text(encoding="utf-8-sig", errors="replace").splitlines()[0]
    separator = next((mark for mark in ",;\t" if mark in first), r"\s+")
    words = first.replace(separator, " ").split()
    bare = all(re.fullmatch(r"[-+]?\d*\.?\d*(e[-+]?\d+)?", word, re.IGNORECASE) for word in words)
    table = pd.read_csv(
        path,
        sep=separator,
        header=None if bare else "infer",
        dtype=str,
        keep_default_na=False,
        encoding="utf-8-sig",
    )
    names = ["x", "y", "z", "score"] if bare else []
    table.columns = [str(name) for name in (*names, *table.columns[len(names) :])][: table.shape[1]]
    return table


def _meanings(table: pd.DataFrame) -> dict[str, str]:
    """Find the column of each meaning that the table has."""
    lower = {str(name).strip().lower(): str(name) for name in table}
    found = {
        key: [lower[name] for name in names if name in lower] for key, names in SYNONYMS.items()
    }
    return {key: columns[0] for key, columns in found.items() if columns}


def write_csv(table: ParticleTable, path: Path, _given: Given) -> None:
    """Write tomogram, label, x, y, z in voxels, score, RELION angles and further columns."""
    import pandas as pd

    particles = table.particles
    columns: dict[str, Any] = {"tomogram": particles.tomogram, "label": particles.label}
    columns.update(zip("xyz", table.index().T, strict=True))
    if particles.score is not None:
        columns["score"] = particles.score
    if particles.rotation is not None:
        columns.update(zip(ANGLES, relion_angles(particles.rotation).T, strict=True))
    further = {key: values for key, values in particles.extra.items() if key not in columns}
    separator = "\t" if path.suffix == ".tsv" else ","
    pd.DataFrame({**columns, **further}).to_csv(
        path, index=False, float_format="%.9g", sep=separator
    )
