"""Lists of crYOLO and TomoTwin: .cbox (STAR, boxes with scores) and .coords (x y z).

A .cbox gives the corner of a box in x and y but its middle plane in z, and sizes in all three; all
in voxels, as the boxmanager of the two programs reads and writes them.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from tomoloc.io.eman import box_sizes
from tomoloc.io.frames import Given, ParticleTable
from tomoloc.io.star import numbers, read_blocks, write_blocks
from tomoloc.types import Particles

__all__ = ["read_cbox", "read_coords", "write_cbox", "write_coords"]

FURTHER = ("EstWidth", "EstHeight", "NumBoxes", "Angle", "filamentid")


def read_cbox(path: Path, given: Given) -> ParticleTable:
    """Read the block `cryolo`; confidences are scores."""
    table = read_blocks(path).get("cryolo")
    if table is None or "CoordinateZ" not in table:
        raise ValueError("no block data_cryolo with _CoordinateX, _CoordinateY and _CoordinateZ")
    column = {str(name): numbers(table, [name])[:, 0] for name in table}
    name = given.tomogram or path.stem
    frame = given.frame(name)
    place = [
        column["CoordinateX"] + column["Width"] / 2,
        column["CoordinateY"] + column["Height"] / 2,
        column["CoordinateZ"],
    ]
    score = column.get("Confidence")
    particles = Particles(
        position=np.stack(place, axis=1) * frame.known_spacing(),
        tomogram=name,
        score=score if score is not None and np.isfinite(score).all() and len(score) else None,
        extra={
            "boxSize": column["Width"].astype(int),
            **{
                f"cbox{key}": column[key]
                for key in FURTHER
                if key in column and np.isfinite(column[key]).any()
            },
        },
    )
    return ParticleTable(particles=particles, frames={name: frame})


def write_cbox(table: ParticleTable, path: Path, given: Given) -> None:
    """Write the blocks `global`, `cryolo` and `cryolo_include`, which lists the slices."""
    import pandas as pd

    particles, index = table.particles, table.index()
    size = box_sizes(particles, given)
    blank = np.full(len(particles), np.nan)
    further = {key: particles.extra.get(f"cbox{key}", blank) for key in FURTHER}
    columns = {
        "CoordinateX": index[:, 0] - size / 2,
        "CoordinateY": index[:, 1] - size / 2,
        "CoordinateZ": index[:, 2],
        **dict.fromkeys(("Width", "Height", "Depth"), size),
        "Confidence": blank if particles.score is None else particles.score,
        **{key: values for key, values in further.items() if key != "filamentid"},
    }
    if "cboxfilamentid" in particles.extra:
        columns["filamentid"] = further["filamentid"]
    blocks = {
        "global": {"cbox_format_version": "1.0"},
        "cryolo": pd.DataFrame(columns),
        "cryolo_include": pd.DataFrame({"slice_index": np.unique(np.rint(index[:, 2]))}),
    }
    write_blocks(blocks, path, missing="<NA>")


def read_coords(path: Path, given: Given) -> ParticleTable:
    """Read lines of `x y z` in voxels."""
    rows = [line.split() for line in path.read_text().splitlines() if line.strip()]
    if any(len(row) < 3 for row in rows):
        raise ValueError(f"expected lines of x y z; got {min(map(len, rows))} numbers in one")
    name = given.tomogram or path.stem
    frame = given.frame(name)
    index = np.array([row[:3] for row in rows], dtype=float).reshape(-1, 3)
    particles = Particles(position=index * frame.known_spacing(), tomogram=name)
    return ParticleTable(particles=particles, frames={name: frame})


def write_coords(table: ParticleTable, path: Path, _given: Given) -> None:
    """Write lines of `x y z` in voxels."""
    np.savetxt(path, table.index(), fmt="%.9g")
