"""Dynamo tables: 42 columns of numbers, and a .doc file that names the tomograms of column 20.

Coordinates are 1-based voxels, to which the shifts of columns 4 to 6 are added. [tdrot, tilt,
narot] turns the template onto the particle clockwise about z, the new x and the new z
(https://wiki.dynamo.biozentrum.unibas.ch/w/index.php/Euler_angles_convention), which is the inverse
of the counter-clockwise rotation by the same angles about the fixed axes z, x and z.
"""

from __future__ import annotations

import re
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from scipy.spatial.transform import Rotation

from tomoloc.io.frames import Frame, Given, ParticleTable, each
from tomoloc.types import FloatArray, Particles

__all__ = ["read_dynamo", "write_dynamo"]

_HEADER = """
tag aligned averaged dx dy dz tdrot tilt narot cc cc2 cpu ftype ymintilt ymaxtilt xmintilt xmaxtilt
fs1 fs2 tomo reg class annotation x y z dshift daxis dnarot dcc otag npar c33 ref sref apix def c38
c39 c40 eig1 eig2
"""
COLUMNS = tuple(_HEADER.split())
ANGLES = ("tdrot", "tilt", "narot")
USED = {"dx", "dy", "dz", *ANGLES, "cc", "tomo", "x", "y", "z", "apix"}
OWN = {name: f"dynamo{name.capitalize()}" for name in COLUMNS if name not in USED}
"""Names as extra columns of those that have no other place."""


def read_dynamo(path: Path, given: Given) -> ParticleTable:
    """Read a table; the voxel size is given or in column 36."""
    rows = [line.split()[: len(COLUMNS)] for line in path.read_text().splitlines() if line.strip()]
    lengths = {len(row) for row in rows} or {len(COLUMNS)}
    if len(lengths) > 1 or min(lengths) < 26:
        raise ValueError(f"expected lines of at least 26 numbers; got {sorted(lengths)}")
    values = np.array(rows, dtype=float).reshape(-1, *lengths)
    column = dict(zip(COLUMNS, values.T, strict=False))
    names = _names(column["tomo"], path, given)
    spacing = dict(zip(names.tolist(), column.get("apix", np.zeros(len(rows))), strict=True))
    frames = {
        name: given.frame(name, voxel_spacing=float(s) or None) for name, s in spacing.items()
    }
    place = np.stack([column[axis] + column[f"d{axis}"] - 1 for axis in "xyz"], axis=1)
    angles = np.stack([column[name] for name in ANGLES], axis=1)
    particles = Particles(
        position=place * each(names, frames, Frame.known_spacing),
        tomogram=names,
        score=column["cc"] if column["cc"].any() else None,
        rotation=Rotation.from_euler("zxz", angles, degrees=True).inv() if angles.any() else None,
        extra={OWN[key]: v for key, v in column.items() if key in OWN and v.any()},
    )
    return ParticleTable(particles=particles, frames=frames)


def _names(tomo: FloatArray, path: Path, given: Given) -> np.ndarray[Any, np.dtype[np.str_]]:
    """Name the tomograms of column 20 by the .doc file beside the table, else by number."""
    numbers = tomo.astype(int).tolist()
    known: dict[int, str] = {}
    for file in (path.with_name("indices_column20.doc"), path.with_suffix(".doc")):
        if file.exists():
            pairs = re.findall(
                r"^\s*(\d+)\s+(\S.*?)(?:\.mrc|\.rec|\.em)?\s*$", file.read_text(), re.M
            )
            known = {int(number): Path(name).name for number, name in pairs}
    if not known and len(set(numbers)) == 1:
        known = {numbers[0]: given.tomogram or path.stem}
    return np.array([known.get(n, f"tomogram_{n}") for n in numbers], dtype=np.str_)


def write_dynamo(table: ParticleTable, path: Path, _given: Given) -> None:
    """Write a table and, beside it, the .doc file that names its tomograms.

    Labels become class numbers, in alphabetical order from 1.
    """
    particles, tomograms = table.particles, list(table.frames)
    n, labels = len(particles), particles.labels
    column: dict[str, Any] = {name: np.zeros(n) for name in COLUMNS}
    column.update(tag=np.arange(1, n + 1), aligned=np.ones(n), averaged=np.ones(n))
    column["class"] = [1 + labels.index(label) for label in map(str, particles.label)]
    column.update({k: particles.extra[own] for k, own in OWN.items() if own in particles.extra})
    column["tomo"] = [1 + tomograms.index(name) for name in map(str, particles.tomogram)]
    column["apix"] = table.each(Frame.known_spacing)[:, 0]
    column.update(zip("xyz", table.index().T + 1, strict=True))
    if particles.score is not None:
        column["cc"] = particles.score
    if particles.rotation is not None:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Gimbal lock")
            angles = particles.rotation.inv().as_euler("zxz", degrees=True)
        column.update(zip(ANGLES, angles.T, strict=True))
    np.savetxt(path, np.column_stack([column[name] for name in COLUMNS]), fmt="%.9g")
    listing = "".join(f"{k} {name}\n" for k, name in enumerate(tomograms, 1))
    path.with_suffix(".doc").write_text(listing)
