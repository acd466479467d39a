"""A pick folder as `tomoloc pick` leaves it, written by hand, and the truth beside the tomogram."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import mrcfile
import numpy as np
import pytest

SPACING = 12.5
SHAPE = (24, 44, 60)

RUN = """\
[tomoloc]
version = "0.1.0"
command = "tomoloc pick template TS_7.mrc -o picks"

[method]
name = "template"

[parameters]
template = "ball <80S>.mrc"
diameter = 100.0
angular_step = 12.5
symmetry = "C1"

[inputs]
tomogram = "{tomogram}"
size = [60, 44, 24]
voxel_spacing = 12.5
contrast = "dark"

[results]
threshold = 0.25
n_particles = 9
seconds = 1.75
peak_memory_gib = 0.42
device = "cpu"
"""

HEAD = """\
data_tomoloc

_tomolocVersion 0.1.0
_rlnTomoName {name}
_tomolocSizeX 60
_tomolocSizeY 44
_tomolocSizeZ 24
_tomolocVoxelSpacing 12.5
_tomolocConvention "rlnCoordinate: voxels xyz, 0 is the centre of the first voxel"


data_particles

loop_
_rlnTomoName #1
_rlnCoordinateX #2
_rlnCoordinateY #3
_rlnCoordinateZ #4
_tomolocLabel #5
_rlnAutopickFigureOfMerit #6
"""


def star(name: str, rows) -> str:
    lines = [f"{name} {x} {y} {z} {label} {score}" for x, y, z, label, score in rows]
    return HEAD.format(name=name) + "\n".join(lines) + "\n"


@pytest.fixture
def picked(tmp_path: Path) -> SimpleNamespace:
    """Ten balls, dark, in a tomogram with three different sides; eight found, one pick wrong."""
    rng = np.random.default_rng(3)
    grid = np.stack(np.meshgrid([8, 20, 32, 44, 52], [12, 32], indexing="ij"), -1).reshape(-1, 2)
    centers = np.column_stack([grid, rng.integers(9, 15, len(grid))])
    z, y, x = np.indices(SHAPE)
    data = rng.normal(0, 1, SHAPE).astype(np.float32)
    for center in centers:
        data[(x - center[0]) ** 2 + (y - center[1]) ** 2 + (z - center[2]) ** 2 < 16] -= 4
    sample = tmp_path / "sample"
    sample.mkdir()
    tomogram = sample / "TS_7.mrc"
    with mrcfile.new(tomogram) as file:
        file.set_data(data)
        file.voxel_size = SPACING
    truth = [(*center, "ball", 0) for center in centers]
    (sample / "particles.star").write_text(star("sample_7", truth))
    folder = tmp_path / "picks"
    folder.mkdir()
    picks = [(*center + 0.5, "ball", 0.9 - 0.05 * i) for i, center in enumerate(centers[:8])]
    picks.append((26, 22, 3, "ball", 0.27))
    (folder / "TS_7.star").write_text(star("TS_7", picks))
    (folder / "TS_7.run.toml").write_text(RUN.format(tomogram=tomogram))
    return SimpleNamespace(
        folder=folder, sample=sample, tomogram=tomogram, data=data, centers=centers, star=star
    )
