"""IMOD models: one object for each label, one scattered contour of points in each.

Model coordinates are voxels; x and y count from the corner of the first voxel, z from the middle
of the first plane (https://bio3d.colorado.edu/imod/doc/binspec.html).
"""

from __future__ import annotations

import struct
import warnings
from io import BytesIO
from pathlib import Path

import numpy as np

from tomoloc.io.frames import Frame, Given, ParticleTable
from tomoloc.types import Particles

__all__ = ["read_imod", "write_imod"]

CORNER = np.array([0.5, 0.5, 0.0])
NANOMETRE = -9


class _Whole(BytesIO):
    """Bytes that cannot be read past their end, where imodmodel would go on for ever."""

    def read(self, size: int | None = -1, /) -> bytes:
        data = super().read(size)
        if size and len(data) < size:
            raise struct.error("it ends too early")
        return data


def read_imod(path: Path, given: Given) -> ParticleTable:
    """Read the points of all contours; objects' names are labels."""
    from imodmodel.parsers import parse_model

    try:
        model = parse_model(_Whole(path.read_bytes()))
    except (struct.error, UnicodeDecodeError) as error:
        raise ValueError(f"not a whole IMOD model ({error})") from error
    header, stated = model.header, None
    if header.units < 0 and header.pixelsize > 0:
        stated = header.pixelsize * 10.0 ** (header.units + 10)
    shape = (header.zmax, header.ymax, header.xmax)
    name = given.tomogram or path.stem
    known = Frame(name, shape, stated) if min(shape) > 0 else None
    frame = given.frame(name, voxel_spacing=stated, known=known)
    points = [(obj.header.name, c.points) for obj in model.objects for c in obj.contours]
    index = np.concatenate([np.zeros((0, 3)), *(p for _, p in points)]) - CORNER
    particles = Particles(
        position=index * frame.known_spacing(),
        label=np.repeat([label for label, _ in points], [len(p) for _, p in points]).astype(str),
        tomogram=name,
    )
    return ParticleTable(particles=particles, frames={name: frame})


def write_imod(table: ParticleTable, path: Path, _given: Given) -> None:
    """Write an object of scattered points for each label; the header has size and voxel size."""
    from imodmodel.models import (
        Contour,
        ContourHeader,
        ImodModel,
        ModelFlags,
        ModelHeader,
        Object,
        ObjectHeader,
    )

    particles, frame = table.particles, table.frame
    index = table.index() + CORNER
    z, y, x = frame.shape or (0, 0, 0)
    header = ModelHeader(
        name=frame.name[:127],
        xmax=x,
        ymax=y,
        zmax=z,
        flags=ModelFlags(z_coordinates_start_from_negative_half=True),
        pixelsize=frame.known_spacing() / 10,
        units=NANOMETRE,
    )
    model = ImodModel(header=header)
    for label in particles.labels:
        points = index[np.asarray(particles.label) == label]
        contour = Contour(header=ContourHeader(), points=points)
        item = Object(header=ObjectHeader(name=label[:63]), contours=[contour])
        item.header.flags.scattered = True
        model.objects.append(item)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=DeprecationWarning)
        model.to_file(path)
