"""JSON of copick and ndjson of the CryoET Data Portal.

copick counts in angstrom, the portal in voxels; both from the centre of the tomogram's first
voxel. Their matrices take the reference to the tomogram and left-multiply xyz columns.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy.spatial.transform import Rotation

from tomoloc.io.frames import Given, ParticleTable
from tomoloc.types import FloatArray, Particles

__all__ = ["read_copick", "read_json", "read_ndjson", "write_copick", "write_ndjson"]

INSTANCE = "portalInstance"


def read_json(path: Path, key: str) -> dict[str, Any]:
    """Read a JSON object that has a list of that name, or raise ValueError."""
    content = json.loads(path.read_text())
    keys = content if isinstance(content, dict) else {}
    if not isinstance(keys.get(key), list):
        raise ValueError(f"no list {key} in it; keys are: {', '.join(keys) or 'none'}")
    return keys


def _places(points: Sequence[Mapping[str, Any]]) -> FloatArray:
    try:
        rows = [[point["location"][axis] for axis in "xyz"] for point in points]
    except (KeyError, TypeError) as error:
        raise ValueError("a point has no location with x, y and z") from error
    return np.array(rows, dtype=float).reshape(-1, 3)


def _instances(points: Sequence[Mapping[str, Any]], *, blank: int) -> dict[str, Any]:
    numbers = np.array([point.get("instance_id", blank) for point in points], dtype=int)
    return {INSTANCE: numbers} if (numbers != blank).any() else {}


def read_copick(path: Path, given: Given) -> ParticleTable:
    """Read the picks of one object in one run; translations are added to the locations."""
    content = read_json(path, "points")
    points = content["points"]
    place = _places(points)
    unit = content.get("unit", "angstrom")
    if unit != "angstrom":
        raise ValueError(f"expected locations in angstrom; got the unit {unit!r}")
    matrix = [p.get("transformation_", p.get("transformation", np.eye(4))) for p in points]
    transform = np.array(matrix, dtype=float).reshape(-1, 4, 4)
    turned = content.get("trust_orientation", True) and not np.allclose(
        transform[:, :3, :3], np.eye(3)
    )
    folder = path.resolve().parent
    run = folder.parent.name if folder.name == "Picks" else path.stem
    name = content.get("run_name") or given.tomogram or run
    score = np.array([point.get("score", 1.0) for point in points], dtype=float)
    particles = Particles(
        position=place + transform[:, :3, 3],
        label=content.get("pickable_object_name") or "",
        tomogram=name,
        score=score if (score != 1).any() else None,
        rotation=Rotation.from_matrix(transform[:, :3, :3]) if turned else None,
        extra=_instances(points, blank=0),
    )
    frame = given.frame(name, voxel_spacing=content.get("voxel_spacing"))
    return ParticleTable(particles=particles, frames={name: frame})


def write_copick(table: ParticleTable, path: Path, _given: Given) -> None:
    """Write the picks of one object in one run."""
    particles, frame = table.particles, table.frame
    transform = np.tile(np.eye(4), (len(particles), 1, 1))
    if particles.rotation is not None:
        transform[:, :3, :3] = particles.rotation.as_matrix()
    scores = np.ones(len(particles)) if particles.score is None else particles.score
    instances = particles.extra.get(INSTANCE, np.zeros(len(particles), dtype=int))
    content = {
        "pickable_object_name": (particles.labels or [""])[0] or "particle",
        "user_id": "tomoloc",
        "session_id": "0",
        "run_name": frame.name,
        "voxel_spacing": frame.voxel_spacing,
        "unit": "angstrom",
        "trust_orientation": particles.rotation is not None,
        "points": [
            {
                "location": dict(zip("xyz", map(float, position), strict=True)),
                "transformation_": matrix.tolist(),
                "instance_id": int(instance),
                "score": float(score),
            }
            for position, matrix, instance, score in zip(
                particles.position, transform, instances, scores, strict=True
            )
        ],
    }
    path.write_text(json.dumps(content, indent=1) + "\n")


def read_ndjson(path: Path, given: Given) -> ParticleTable:
    """Read one point a line; folders named as on the portal tell tomogram and voxel size."""
    points = [json.loads(line) for line in path.read_text().splitlines() if line.strip()]
    place = _places(points)
    home = re.search(r"([^/\\]+)[/\\].*VoxelSpacing([\d.]+)[/\\]", str(path.resolve()))
    run = re.search(r"([^/\\]+)[/\\](?:Reconstructions|Tomograms)[/\\]", str(path.resolve()))
    name = given.tomogram or (run.group(1) if run else path.stem)
    frame = given.frame(name, voxel_spacing=float(home.group(2)) if home else None)
    matrix = [p.get("xyz_rotation_matrix", p.get("rotation_matrix", np.eye(3))) for p in points]
    turn = np.array(matrix, dtype=float).reshape(-1, 3, 3)
    oriented = any(point.get("type") == "orientedPoint" for point in points)
    particles = Particles(
        position=place * frame.known_spacing(),
        tomogram=name,
        rotation=Rotation.from_matrix(turn) if oriented else None,
        extra=_instances(points, blank=-1),
    )
    return ParticleTable(particles=particles, frames={name: frame})


def write_ndjson(table: ParticleTable, path: Path, _given: Given) -> None:
    """Write one point a line: oriented, with an instance, or plain."""
    particles = table.particles
    rows: list[dict[str, Any]] = [
        {"type": "point", "location": dict(zip("xyz", map(float, xyz), strict=True))}
        for xyz in table.index()
    ]
    if particles.rotation is not None:
        for row, matrix in zip(rows, particles.rotation.as_matrix(), strict=True):
            row.update(type="orientedPoint", xyz_rotation_matrix=matrix.tolist())
    if INSTANCE in particles.extra:
        for row, instance in zip(rows, particles.extra[INSTANCE], strict=True):
            kind = "instancePoint" if row["type"] == "point" else row["type"]
            row.update(type=kind, instance_id=int(instance))
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
