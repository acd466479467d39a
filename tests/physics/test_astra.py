"""Projection and back-projection against the ASTRA toolbox, which shares no code with ours.

Its detector's axis points along x at no tilt, its angles turn the same way, and its first row of
voxels is the highest one.
"""

from __future__ import annotations

import numpy as np
import pytest

from tomoloc.physics.projection import project
from tomoloc.physics.reconstruction import back_project

astra = pytest.importorskip("astra")

SHAPE = (38, 5, 50)
COLUMNS = 74
TILTS = np.arange(-63.0, 58, 5.5)


@pytest.fixture(scope="module")
def density():
    """Three balls off the middle, smooth enough for the strips of ASTRA."""
    z, y, x = (np.arange(n) - (n - 1) / 2 for n in SHAPE)
    total = np.zeros(SHAPE, np.float32)
    for value, sigma, (x0, y0, z0) in (
        (1.0, 3.5, (9, 1, -6)),
        (0.5, 3.0, (-12, -1, 7)),
        (-0.4, 4.0, (2, 0, 3)),
    ):
        squared = (z[:, None, None] - z0) ** 2 + (y[:, None] - y0) ** 2 + (x - x0) ** 2
        total += value * np.exp(-squared / (2 * sigma**2)).astype(np.float32)
    return total


@pytest.fixture(scope="module")
def operator():
    """ASTRA's projector of one slice as a matrix.

    Rays are strips as wide as a pixel: the transposes of its thinner rays are rough by some per
    cent from voxel to voxel.
    """
    geometry = astra.create_proj_geom("parallel", 1.0, COLUMNS, np.deg2rad(TILTS))
    grid = astra.create_vol_geom(SHAPE[0], SHAPE[2])
    projector = astra.create_projector("strip", geometry, grid)
    yield astra.OpTomo(projector)
    astra.projector.delete(projector)


def relative_error(ours, theirs):
    return np.linalg.norm(ours - theirs) / np.linalg.norm(theirs)


def test_projections_agree(density, operator):
    ours = project(density, TILTS, image_shape=(SHAPE[1], COLUMNS))
    theirs = np.stack([operator.FP(density[::-1, y]) for y in range(SHAPE[1])], axis=1)
    assert relative_error(ours, theirs) < 0.01
    upside_down = np.stack([operator.FP(density[:, y]) for y in range(SHAPE[1])], axis=1)
    assert relative_error(ours, upside_down) > 0.5  # the error would tell a wrong sign


def test_back_projections_agree(density, operator):
    images = project(density, TILTS, image_shape=(SHAPE[1], COLUMNS))
    ours = back_project(images, TILTS, shape=SHAPE, weighting="none")
    rows = [np.ascontiguousarray(images[:, y]) for y in range(SHAPE[1])]
    theirs = np.stack([operator.BP(row)[::-1] for row in rows], axis=1)
    assert relative_error(ours, theirs) < 0.01


def test_filtered_back_projections_agree(density):
    full = np.arange(-90, 90, 1.5)
    images = project(density, full, image_shape=(SHAPE[1], COLUMNS))
    ours = back_project(images, full, shape=SHAPE, roll_off=1.0)
    geometry = astra.create_proj_geom("parallel", 1.0, COLUMNS, np.deg2rad(full))
    grid = astra.create_vol_geom(SHAPE[0], SHAPE[2])
    projector = astra.create_projector("strip", geometry, grid)
    middle = SHAPE[1] // 2
    theirs = astra.OpTomo(projector).reconstruct("FBP", np.ascontiguousarray(images[:, middle]))
    astra.projector.delete(projector)
    # Strips blur, so that ours is closer to the density than theirs is.
    assert relative_error(ours[:, middle], theirs[::-1]) < 0.02
    assert relative_error(ours[:, middle], density[:, middle]) < 0.002
