"""Shapes of bilayers: distances, areas, normals, undulations."""

import numpy as np
import pytest
from scipy.spatial import cKDTree
from scipy.spatial.transform import Rotation

from tomoloc.physics.rotations import turn_to
from tomoloc.simulate.bilayers import Bilayer, draw_waves, settle
from tomoloc.types import Volume

CENTER = np.array([310.0, 250.0, 270.0])
GRID = Volume(data=np.broadcast_to(np.False_, (56, 52, 60)), voxel_spacing=10.0)


def make(shape, size, *, rms=0.0, wavelengths=(300.0, 600.0), rng=None):
    bare = Bilayer(
        shape=shape,
        thickness=38.0,
        center=CENTER,
        rotation=Rotation.from_euler("zyz", [0.4, 0.7, 1.1]),
        size=np.array(size, dtype=float),
        waves=np.zeros((5, 0)),
        height=0.0,
    )
    if rms == 0:
        return bare
    waves = draw_waves(rng, wavelengths=wavelengths, flat=shape == "sheet")
    return settle(Bilayer(**{**vars(bare), "waves": waves}), rng, rms=rms)


def voxels(box):
    index = np.stack(np.meshgrid(*(np.arange(b.start, b.stop) for b in box), indexing="ij"), -1)
    return GRID.to_position(index)


def nearest(bilayer, position):
    """Unsigned distance from a dense cloud of surface points, along their normals."""
    points, normals = bilayer.sample(np.random.default_rng(5), density=0.04)
    rows = cKDTree(points).query(position)[1]
    return np.abs(((position - points[rows]) * normals[rows]).sum(axis=-1))


def test_distance_from_a_sphere_a_capsule_and_a_plane_is_known():
    for shape, size in (
        ("sphere", (200, 200, 200)),
        ("tube", (120, 120, 80)),
        ("sheet", (600, 600, 0)),
    ):
        bilayer = make(shape, size)
        box, distance = bilayer.distance(GRID, reach=40.0)
        local = bilayer.rotation.inv().apply((voxels(box) - CENTER).reshape(-1, 3))
        if shape == "tube":
            local[:, 2] -= np.clip(local[:, 2], -80, 80)
        truth = local[:, 2] if shape == "sheet" else np.linalg.norm(local, axis=1) - size[0]
        found = distance.ravel()
        near = np.abs(truth) < 35
        assert near.sum() > 1000
        error = found[near] - truth[near]
        assert np.abs(error).max() < 0.5
        assert np.sqrt((error**2).mean()) < 0.1
        far = np.abs(truth) > 45
        np.testing.assert_allclose(found[far], 40 * np.sign(truth[far]), atol=1e-3)


@pytest.mark.parametrize(
    ("shape", "size", "rms"),
    [
        ("ellipsoid", (230, 180, 150), 0),
        ("blob", (200, 200, 200), 20),
        ("sheet", (600, 600, 0), 30),
    ],
)
def test_distance_near_bent_surfaces_is_the_true_one(shape, size, rms, rng):
    bilayer = make(shape, size, rms=rms, rng=rng)
    box, distance = bilayer.distance(GRID, reach=30.0)
    near = np.abs(distance) < 29
    error = np.abs(distance[near]) - nearest(bilayer, voxels(box)[near])
    assert np.sqrt((error**2).mean()) < 0.5
    assert np.quantile(np.abs(error), 0.999) < 2.5
    # Off the grid, the distance is good to the first order.
    points = voxels(box)[np.abs(distance) < 5]
    np.testing.assert_allclose(bilayer.level(points)[0], distance[np.abs(distance) < 5], atol=0.5)


def test_samples_are_even_over_the_area_of_an_ellipsoid_and_a_tube(rng):
    for bilayer, area in (
        (make("sphere", (150, 150, 150)), 4 * np.pi * 150**2),
        (make("tube", (100, 100, 150)), 4 * np.pi * 100 * 250),
        (make("sheet", (400, 300, 0)), 800 * 600),
    ):
        position, _ = bilayer.sample(rng, density=0.02)
        assert abs(len(position) / 0.02 / area - 1) < 4 / np.sqrt(0.02 * area)
    # A prolate spheroid: cap beyond half its long axis, by the closed form of the area.
    long, short = 240.0, 100.0
    position, _ = make("ellipsoid", (short, short, long)).sample(rng, density=0.05)
    z = make("ellipsoid", (short, short, long)).rotation.inv().apply(position - CENTER)[:, 2]
    t = np.linspace(0, 1, 20001)
    element = np.sqrt(1 - t**2 * (1 - (short / long) ** 2))
    truth = np.trapezoid(element[t > 0.5], t[t > 0.5]) / np.trapezoid(element, t)
    share = (np.abs(z) > long / 2).mean()
    assert abs(share - truth) < 4 * np.sqrt(truth * (1 - truth) / len(z))
    assert abs(truth - 0.5) > 0.03  # even over the axis would not do


def test_normals_are_those_of_the_surface_and_point_outward(rng):
    bilayer = make("blob", (200, 200, 200), rms=20, rng=rng)
    position, normal = bilayer.sample(rng, density=0.02)
    np.testing.assert_allclose(np.linalg.norm(normal, axis=1), 1, atol=1e-9)
    distance, direction = bilayer.level(position)
    assert np.abs(distance).max() < 1e-3
    assert (normal * direction).sum(axis=1).min() > np.cos(np.radians(0.5))
    area = len(position) / 0.02
    # The divergence theorem: the surface's normals give the volume that it encloses.
    volume = area * ((position - CENTER) * normal).sum(axis=1).mean() / 3
    _, distance = bilayer.distance(GRID, reach=20.0)
    assert abs(volume / ((distance < 0).sum() * 1e3) - 1) < 0.02
    # No bend is sharper than a radius of about the bilayer's own thickness.
    pairs = cKDTree(position).query_pairs(15, output_type="ndarray")
    apart = np.linalg.norm(position[pairs[:, 0]] - position[pairs[:, 1]], axis=1)
    turn = np.arccos(np.clip((normal[pairs[:, 0]] * normal[pairs[:, 1]]).sum(axis=1), -1, 1))
    assert (turn[apart > 5] / apart[apart > 5]).max() < 1 / 38


def test_undulations_have_the_height_that_was_asked_for(rng):
    for shape, size in (("sphere", (300, 300, 300)), ("sheet", (900, 800, 0))):
        bilayer = make(shape, size, rms=12, rng=rng)
        position, _ = bilayer.sample(rng, density=0.01)
        local = bilayer.rotation.inv().apply(position - CENTER)
        height = local[:, 2] if shape == "sheet" else np.linalg.norm(local, axis=1) - 300
        assert abs(height.std() - 12) < 1.5
        assert abs(height.mean()) < 1.5
        assert np.abs(height).max() < bilayer.height
        half = np.abs(position - CENTER).max(axis=0)
        assert (half <= bilayer.extent + 1e-6).all()


def test_turns_take_z_to_the_normal_and_spin_about_it(rng):
    normal = rng.normal(size=(20, 3))
    normal /= np.linalg.norm(normal, axis=1)[:, None]
    normal[:2] = [[0, 0, 1], [0, 0, -1]]
    plain, spun = turn_to(normal), turn_to(normal, spin=0.5)
    for turn in (plain, spun):
        np.testing.assert_allclose(turn.as_matrix()[:, :, 2], normal, atol=1e-9)
    np.testing.assert_allclose((plain.inv() * spun).as_rotvec(), [[0, 0, 0.5]] * 20, atol=1e-9)
    # The least turn there is.
    np.testing.assert_allclose(plain.magnitude(), np.arccos(normal[:, 2]), atol=1e-6)
