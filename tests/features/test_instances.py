"""Regions of planted balls: number, place and size."""

from __future__ import annotations

import numpy as np
from scipy import ndimage

from tomoloc.features.instances import (
    ball_diameter,
    find_regions,
    join_seeds,
    label_mask,
    watershed,
)
from tomoloc.types import Volume

SHAPE, SPACING = (30, 36, 44), 14.0
CENTERS = np.array([[10.3, 12.2, 11.6], [12.1, 14.9, 18.9], [19.0, 25.4, 33.7]])
RADII = np.array([3.5, 3.5, 5.0])


def field(sigma=1.9):
    grid = np.stack(np.meshgrid(*map(np.arange, SHAPE), indexing="ij"), axis=-1)
    away = np.linalg.norm(grid[..., None, :] - CENTERS, axis=-1)
    density = np.clip(RADII + 0.5 - away, 0, 1).max(axis=-1)
    blurred = ndimage.gaussian_filter(density, sigma).astype(np.float32)
    return Volume(data=blurred, voxel_spacing=SPACING, origin=[30.0, -20.0, 4.0])


def test_watershed_parts_touching_balls_and_measures_them() -> None:
    volume = field()
    seeds = volume.to_position(CENTERS + 0.4)
    found = find_regions(watershed(volume, seeds), field=volume, number=3)
    away = np.linalg.norm(found.position - volume.to_position(CENTERS), axis=1)
    assert away.max() < 0.6 * SPACING
    diameter = ball_diameter(found.volume, sigma=1.9 * SPACING)
    np.testing.assert_allclose(diameter, 2 * RADII * SPACING, rtol=0.2)
    assert len(label_mask(volume.data > 0.3).ravel()) == volume.data.size
    assert label_mask(volume.data > 0.3).max() == 2  # two touch


def test_doubles_are_joined_and_neighbours_are_not() -> None:
    volume = field(sigma=1.2)
    double = CENTERS[2] + [0.5, 3.0, 2.0]
    places = np.vstack([CENTERS, double])
    strength = np.array([1.0, 0.9, 2.0, 1.5])
    owner = join_seeds(
        volume.to_position(places), strength, field=volume, reach=150.0, valley=0.8,
        min_distance=40.0,
    )  # fmt: skip
    assert owner.tolist() == [0, 1, 2, 2]
    near = join_seeds(
        volume.to_position(places), strength, field=volume, reach=150.0, valley=0.8,
        min_distance=130.0,
    )  # fmt: skip
    assert near.tolist() == [0, 0, 2, 2]


def test_long_regions_are_long() -> None:
    labels = np.zeros(SHAPE, dtype=np.int32)
    labels[5:8, 4:7, 2:32] = 1
    labels[20:23, 10:13, 10:13] = 2
    ones = Volume(data=np.ones(SHAPE, np.float32), voxel_spacing=SPACING)
    found = find_regions(labels, field=ones)
    assert found.length[0] > 30 * SPACING
    assert found.length[1] < 5 * SPACING
    np.testing.assert_allclose(found.volume, np.array([270, 27]) * SPACING**3)
    np.testing.assert_allclose(found.position[1], ones.to_position([21, 11, 11]), atol=1e-3)


def test_nothing_gives_nothing() -> None:
    volume = field()
    labels = watershed(volume, np.zeros((0, 3)))
    assert not labels.any()
    assert len(find_regions(labels, field=volume)) == 0
    empty = join_seeds(
        np.zeros((0, 3)), np.zeros(0), field=volume, reach=1.0, valley=0.5, min_distance=1.0
    )
    assert len(empty) == 0
