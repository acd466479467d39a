"""EMAN2: the boxes of an info file (.json), and box lists of corners and sizes (.box).

In a .json with `apix_unbin`, boxes are voxels of that size from N/2 of the tomogram; without, they
are voxels of the tomogram. The centre of a box is its corner plus half its size, rounded down.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from tomoloc.io.frames import Frame, Given, ParticleTable
from tomoloc.io.portal import read_json
from tomoloc.types import FloatArray, Particles

__all__ = ["box_sizes", "read_eman_box", "read_eman_json", "write_eman_box", "write_eman_json"]

DEFAULT_BOX = 32


def read_eman_json(path: Path, given: Given) -> ParticleTable:
    """Read `boxes_3d`; the names in `class_list` are labels."""
    content = read_json(path, "boxes_3d")
    defaults = [0.0, 0.0, 0.0, "manual", 0.0, 0]
    try:
        boxes = [[*box, *defaults[len(box) :]] for box in content["boxes_3d"]]
    except TypeError as error:
        raise ValueError("boxes_3d holds something that is no box") from error
    name = given.tomogram or path.stem.removesuffix("_info")
    pixel = content.get("apix_unbin")
    frame = given.frame(name, voxel_spacing=pixel)
    position = np.array([box[:3] for box in boxes], dtype=float).reshape(-1, 3)
    if pixel is None:
        position = position * frame.known_spacing()
    else:
        position = position * float(pixel) + _middle(frame)
    classes = {str(key): _class(value) for key, value in content.get("class_list", {}).items()}
    sets = [classes.get(str(box[5]), (f"particles_{box[5]:02d}", DEFAULT_BOX)) for box in boxes]
    score = np.array([box[4] for box in boxes], dtype=float)
    particles = Particles(
        position=position,
        label=np.array([label for label, _ in sets], dtype=np.str_),
        tomogram=name,
        score=score if score.any() else None,
        extra={"boxSize": np.array([size for _, size in sets], dtype=int)},
    )
    return ParticleTable(particles=particles, frames={name: frame})


def _middle(frame: Frame) -> FloatArray:
    """Return N/2 of the tomogram as it is binned, xyz in angstrom."""
    if frame.shape is None:
        frame.known_extent()
        raise ValueError(f"the shape of tomogram {frame.name!r} is not known")
    return np.array(frame.shape[::-1]) / 2 * frame.known_spacing()


def _class(value: Any) -> tuple[str, int]:
    if isinstance(value, dict):
        return str(value.get("name", "")), int(value.get("boxsize", DEFAULT_BOX))
    return str(value), DEFAULT_BOX


def write_eman_json(table: ParticleTable, path: Path, given: Given) -> None:
    """Write voxels of the tomogram from N/2, its voxel size as `apix_unbin`."""
    particles, spacing = table.particles, table.frame.known_spacing()
    places = (particles.position - _middle(table.frame)) / spacing
    labels = particles.labels
    scores = np.zeros(len(particles)) if particles.score is None else particles.score
    sizes = particles.extra.get("boxSize", np.full(len(particles), DEFAULT_BOX))
    first = {label: int(np.argmax(np.asarray(particles.label) == label)) for label in labels}
    content = {
        "apix_unbin": spacing,
        "boxes_3d": [
            [*map(float, place), "tomoloc", float(score), labels.index(str(label))]
            for place, score, label in zip(places, scores, np.asarray(particles.label), strict=True)
        ],
        "class_list": {
            str(k): {
                "name": label or f"particles_{k:02d}",
                "boxsize": given.box_size or int(sizes[first[label]]),
            }
            for k, label in enumerate(labels)
        },
    }
    path.write_text(json.dumps(content, indent=1) + "\n")


def read_eman_box(path: Path, given: Given) -> ParticleTable:
    """Read lines of `x y z width height depth` (corner) or `x y z width height` (z its middle)."""
    rows = [line.split() for line in path.read_text().splitlines() if line.strip()]
    if not rows:
        table = np.zeros((0, 6))
    elif {len(row) for row in rows} <= {5, 6} and len({len(row) for row in rows}) == 1:
        table = np.array(rows, dtype=float)
    else:
        raise ValueError(
            "expected lines of x y z width height depth;"
            f" got {len(rows[0])} numbers (boxes of flat images have no z)"
        )
    flat = table.shape[1] == 5
    size = np.column_stack([table[:, 3:], np.zeros(len(table))]) if flat else table[:, 3:]
    name = given.tomogram or path.stem
    frame = given.frame(name)
    particles = Particles(
        position=(table[:, :3] + size // 2) * frame.known_spacing(),
        tomogram=name,
        extra={"boxSize": size[:, 0].astype(int)},
    )
    return ParticleTable(particles=particles, frames={name: frame})


def write_eman_box(table: ParticleTable, path: Path, given: Given) -> None:
    """Write lines of `x y z width height depth` in voxels; x, y, z are the corner."""
    size = box_sizes(table.particles, given)[:, None]
    corner = table.index() - size // 2
    np.savetxt(path, np.hstack([corner, size, size, size]), fmt="%.9g", delimiter="\t")


def box_sizes(particles: Particles, given: Given) -> np.ndarray[Any, np.dtype[np.int_]]:
    """Return the box edge of each particle in voxels: what is given, else what a file had."""
    if given.box_size is not None:
        return np.full(len(particles), given.box_size)
    return np.asarray(particles.extra["boxSize"], dtype=int)
