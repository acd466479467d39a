"""Alignment and averages, with planted truth."""

import numpy as np
import pytest
from scipy import fft, ndimage
from scipy.spatial.transform import Rotation

from tomoloc.physics.potential import make_potential
from tomoloc.physics.rotations import angular_distance
from tomoloc.physics.wedge import tilt_weights
from tomoloc.simulate.structures import make_complex
from tomoloc.types import TiltSeries, Volume
from unseen.averaging import (
    Poses,
    Stack,
    align,
    average,
    cut_out,
    refine,
    resolution,
    search,
    soft_sphere,
    turn,
)

SIZE, SPACING = 25, 10.0
N = 12


@pytest.fixture(scope="module")
def truth():
    structure = make_complex(5, mass_kda=500, symmetry="C1")
    shape = (SIZE,) * 3
    density = make_potential(structure, voxel_spacing=SPACING, shape=shape, low_pass=20.0).data
    return density / density.std()


@pytest.fixture(scope="module")
def weights():
    series = TiltSeries(tilt_angles=np.arange(-60, 61, 3))
    return tilt_weights((SIZE,) * 3, series, voxel_spacing=SPACING)


@pytest.fixture(scope="module")
def planted(truth, weights):
    """Boxes with noise, as a tomogram gives them, and how the particles lie in them."""
    rng = np.random.default_rng(3)
    rotation, shift = Rotation.random(N, rng=rng), rng.uniform(-1.5, 1.5, (N, 3))
    boxes = []
    for one, off in zip(rotation, shift, strict=True):
        spectrum = ndimage.fourier_shift(fft.rfftn(turn(truth, one, order=3)), off, n=SIZE, axis=-1)
        clean = fft.irfftn(spectrum * weights, s=truth.shape)
        noise = fft.irfftn(
            fft.rfftn(rng.normal(0, 0.5, truth.shape)) * np.sqrt(weights), s=truth.shape
        )
        boxes.append(clean + noise)
    stack = Stack(boxes=np.array(boxes, dtype=np.float32), weights=weights)
    return stack, Poses(rotation=rotation, shift=shift, score=np.zeros(N))


def test_poses_are_found_from_nothing_but_the_reference(planted, truth):
    stack, poses = planted
    how = {"voxel_spacing": SPACING, "low_pass": 40.0}
    found = refine(stack, truth, search(stack, truth, **how), **how)
    assert np.median(angular_distance(found.rotation, poses.rotation)) < 4
    assert np.median(np.linalg.norm(found.shift - poses.shift, axis=1)) < 0.3


def test_an_average_fills_the_wedge(planted, truth):
    stack, poses = planted
    mask = soft_sphere(SIZE, SIZE - 5)
    made = average([stack], [poses])
    assert resolution(made, truth, voxel_spacing=SPACING, mask=mask)[0.5] < 22
    one = Stack(boxes=stack.boxes[:1], weights=stack.weights)
    alone = average([one], [poses[:1]])
    assert np.corrcoef(alone.ravel(), truth.ravel())[0, 1] < 0.9
    assert np.corrcoef(made.ravel(), truth.ravel())[0, 1] > 0.95


def test_particles_are_aligned_without_the_truth(planted, truth):
    stack, _ = planted
    side, n = 36, 3
    volume = np.random.default_rng(4).normal(0, 0.02, (side, n * side, 4 * side))
    corners = np.array([(0, i, j) for i in range(n) for j in range(4)]) * side + 5
    for box, corner in zip(stack.boxes, corners, strict=True):
        volume[tuple(slice(c, c + SIZE) for c in corner)] += box
    grid = Volume(data=volume.astype(np.float32), voxel_spacing=SPACING, origin=(70, -20, 5))
    found = align(grid, grid.to_position(corners + SIZE // 2), truth)
    made = average([stack], [found])
    mask = soft_sphere(SIZE, SIZE - 5)
    assert resolution(made, truth, voxel_spacing=SPACING, mask=mask)[0.5] < 28
    empty = align(
        grid.with_data(np.random.default_rng(5).normal(size=grid.shape).astype(np.float32)),
        grid.to_position(corners + SIZE // 2),
        truth,
    )
    assert empty.score.mean() < 0.3 * found.score.mean()


def test_boxes_are_centred_to_a_fraction_of_a_voxel():
    grid = Volume(data=np.zeros((30, 34, 41), np.float32), voxel_spacing=4.0, origin=(10, 20, 30))
    place = np.array([14.3, 15.8, 20.4])
    axes = np.indices(grid.shape) - place[:, None, None, None]
    volume = grid.with_data(np.exp(-(axes**2).sum(axis=0) / 8).astype(np.float32))
    position = np.array([grid.to_position(place), grid.to_position([3, 15, 20])])
    boxes, rows = cut_out(volume, position, size=15)
    assert rows.tolist() == [0]
    assert np.allclose(ndimage.center_of_mass(boxes[0]), 7, atol=0.02)


def test_turning_is_that_of_poses(truth):
    structure = make_complex(5, mass_kda=500, symmetry="C1")
    rotation = Rotation.from_euler("zyz", [20, 50, 110], degrees=True)
    turned = make_potential(
        structure,
        voxel_spacing=SPACING,
        shape=truth.shape,
        rotation=rotation,
        low_pass=20.0,
    ).data
    assert np.corrcoef(turned.ravel(), turn(truth, rotation, order=3).ravel())[0, 1] > 0.97


def test_resolution_is_where_noise_takes_over(truth):
    rng = np.random.default_rng(5)
    mask = soft_sphere(SIZE, SIZE - 5)
    noise = rng.normal(size=truth.shape)
    low, high = (
        resolution(truth + sigma * noise, truth, voxel_spacing=SPACING, mask=mask)
        for sigma in (0.5, 5.0)
    )
    assert low[0.143] <= low[0.5] < high[0.5]
    assert resolution(truth, truth, voxel_spacing=SPACING, mask=mask)[0.5] == pytest.approx(
        2 * SPACING, rel=0.06
    )
