"""Bilayers in a specimen: their place, their potential, points on them."""

import logging

import gemmi
import numpy as np
import pytest
from scipy import ndimage
from scipy.spatial import cKDTree
from scipy.spatial.transform import Rotation

from tomoloc.physics.potential import ICE_POTENTIAL, POTENTIAL_PER_SCATTERING
from tomoloc.simulate.membranes import (
    Bilayer,
    add_bilayer,
    bilayer_profile,
    draw_bilayers,
    surface_points,
)
from tomoloc.simulate.room import CYTOSOL, LUMEN, NO_ICE, Room
from tomoloc.simulate.settings import Membranes
from tomoloc.types import Volume

SHAPE = (64, 88, 96)


def make_room(shape=SHAPE, spacing=10.0, ice=None):
    compartment = np.full(shape, CYTOSOL, dtype=np.uint8)
    if ice is not None:
        compartment[: ice[0]], compartment[ice[1] :] = NO_ICE, NO_ICE
    return Room(compartment=compartment, occupied=np.zeros(shape, bool), voxel_spacing=spacing)


def flat_sheet(height, *, thickness=38.0):
    return Bilayer(
        shape="sheet",
        thickness=thickness,
        center=np.array([100.0, 100.0, height]),
        rotation=Rotation.identity(),
        size=np.array([900.0, 900.0, 0.0]),
        waves=np.zeros((5, 0)),
        height=0.0,
    )


def test_profile_holds_what_the_lipids_composition_tells():
    x = np.linspace(-60, 60, 24001)
    integral = np.trapezoid(bilayer_profile(x, thickness=33.2), x)
    atoms = {6: 42, 1: 82, 7: 1, 8: 8, 15: 1}  # POPC
    scattering = sum(n * sum(gemmi.Element(z).c4322.a) for z, n in atoms.items())
    per_lipid = POTENTIAL_PER_SCATTERING * scattering - (331 + 925) * ICE_POTENTIAL
    assert integral == pytest.approx(2 * per_lipid / 64.3, rel=0.01)
    profile = bilayer_profile(np.array([0.0, 16.6, -16.6, 60.0]), thickness=33.2)
    assert profile[1] == pytest.approx(profile[2])
    assert profile[1] > 1.5 * profile[0] > 0  # two leaflets show
    fine = bilayer_profile(x, thickness=33.2)
    assert abs(abs(x[np.argmax(fine)]) - 16.6) < 0.2
    assert abs(profile[3]) < 1e-6


@pytest.mark.parametrize("spacing", [4.0, 6.9, 10.0])
def test_rendered_bilayer_is_as_thick_as_asked_wherever_it_lies(spacing):
    totals, x = [], np.linspace(-60, 60, 24001)
    shape = (int(200 / spacing), 11, 13)
    for height in 100 + spacing * np.array([0, 0.23, 0.5, 0.81]):
        density, instances = np.zeros(shape, np.float32), np.zeros(shape, np.uint8)
        labels = np.zeros(shape, np.uint16)
        add_bilayer(
            density,
            instances,
            flat_sheet(height, thickness=42.0),
            voxel_spacing=spacing,
            instance=3,
            labels=labels,
            label=5,
        )
        column = density[:, 5, 6]
        totals.append(column.sum() * spacing)
        z = np.arange(len(column)) * spacing - height
        # Band-limited enough: sinc interpolation between the voxels finds both head groups.
        fine = np.sinc((x[:, None] - z) / spacing) @ column
        if spacing < 5:
            for side in (x < -10, x > 10):
                assert abs(abs(x[side][np.argmax(fine[side])]) - 21) < 0.7
        truth = bilayer_profile(x, thickness=42.0, voxel_spacing=spacing)
        assert np.abs(fine - truth).max() < 0.1 * truth.max()
        np.testing.assert_array_equal(instances[:, 5, 6] == 3, np.abs(z) <= 26)
        np.testing.assert_array_equal(labels == 5, instances == 3)
    truth = np.trapezoid(bilayer_profile(x, thickness=42.0), x)
    np.testing.assert_allclose(totals, truth, rtol=0.01)


def test_lipids_make_way_and_end_with_the_ice():
    room = make_room((30, 31, 33))
    density = np.zeros(room.shape, np.float32)
    instances = np.zeros(room.shape, np.uint16)
    instances[:, 10:20, 10:20] = 1
    ice = np.ones((1, 1, 33), np.float32)
    ice[..., 25:] = 0
    add_bilayer(density, instances, flat_sheet(150.0), voxel_spacing=10.0, instance=2, ice=ice)
    assert (instances[:, 10:20, 10:20] == 1).all()
    assert np.abs(density[:, 12:18, 12:18]).max() < 0.01
    assert density[15, 5, 5] > 0.5
    assert (instances[15, 5, :25] == 2).all()
    assert not density[:, :, 25:].any()
    assert not instances[:, :, 25:].any()


@pytest.mark.parametrize("shape", ["sphere", "ellipsoid", "blob", "tube"])
def test_closed_bilayers_lie_apart_in_the_ice_and_enclose_a_lumen(shape, rng):
    room = make_room(ice=(8, 58))
    room.occupied[30:34, 40:44, 40:44] = True
    before = room.occupied.copy()
    settings = Membranes(shape=shape, count=4, diameter=220, elongation=1.4, undulation=8)
    bilayers = draw_bilayers(settings, room=room, rng=rng)
    assert len(bilayers) == 4
    solids = []
    for bilayer in bilayers:
        box, distance = bilayer.distance(room.grid, reach=30.0)
        solid = np.zeros(room.shape, dtype=int)
        solid[box] = distance <= bilayer.half_width
        solids.append(solid)
        assert room.grid.contains(bilayer.center)
        assert (room.compartment[box][distance < -bilayer.half_width] == LUMEN).all()
        assert room.occupied[box][np.abs(distance) <= bilayer.half_width].all()
    total = np.sum(solids, axis=0)
    assert total.max() == 1
    assert not total[before].any()
    assert not total[room.compartment == NO_ICE].any()
    np.testing.assert_array_equal((room.compartment == LUMEN) | room.occupied, (total > 0) | before)


def test_what_is_too_large_for_the_ice_is_cut_by_it(rng):
    room = make_room(ice=(20, 44))
    (bilayer,) = draw_bilayers(Membranes(shape="sphere", diameter=500), room=room, rng=rng)
    assert not room.occupied[:20].any()
    assert not room.occupied[44:].any()
    assert (room.compartment == LUMEN).any()
    assert (room.compartment[:20] == NO_ICE).all()
    position, _ = surface_points(
        bilayer, grid=room.grid, spacing=20.0, ice=(room.compartment != NO_ICE).astype(np.float32)
    )
    assert len(position) > 50
    assert (position[:, 2] > 195 - 1e-9).all()
    assert (position[:, 2] < 435 + 1e-9).all()


def test_long_tubes_are_laid_so_that_they_fit(rng):
    room = make_room((40, 90, 100))
    settings = Membranes(shape="tube", diameter=160, elongation=3.5, undulation=5)
    (tube,) = draw_bilayers(settings, room=room, rng=rng)
    position, _ = tube.sample(rng, density=0.01)
    assert np.ptp(position[:, 2]) + 2 * tube.half_width < 400
    assert abs(tube.rotation.as_matrix()[2, 2]) < 0.75


def test_a_sheet_goes_through_the_whole_volume(rng):
    room = make_room()
    (sheet,) = draw_bilayers(Membranes(shape="sheet", undulation=30), room=room, rng=rng)
    assert not (room.compartment == LUMEN).any()
    # Taking it away leaves two pieces of the volume.
    _, pieces = ndimage.label(~room.occupied)
    assert pieces == 2
    _, distance = sheet.distance(room.grid, reach=20.0)
    assert (distance > 0).any()
    assert (distance < 0).any()


def test_too_many_are_fewer_with_a_word(rng, caplog):
    room = make_room()
    settings = Membranes(shape="sphere", count=9, diameter=420, undulation=5, label="vesicle")
    with caplog.at_level(logging.WARNING):
        bilayers = draw_bilayers(settings, room=room, rng=rng)
    assert 1 <= len(bilayers) < 9
    assert f"no room for more than {len(bilayers)} of 9 vesicle" in caplog.text
    full = make_room()
    full.occupied[:] = True
    for shape in ("sphere", "sheet"):
        assert draw_bilayers(Membranes(shape=shape), room=full, rng=rng) == []
    assert draw_bilayers(Membranes(count=0), room=make_room(), rng=rng) == []


def test_the_same_seed_draws_the_same_bilayers():
    drawn = []
    for _ in range(2):
        room = make_room()
        settings = Membranes(shape="blob", count=3, diameter=250)
        bilayers = draw_bilayers(settings, room=room, rng=np.random.default_rng(4))
        density, instances = np.zeros(SHAPE, np.float32), np.zeros(SHAPE, np.uint16)
        for i, bilayer in enumerate(bilayers):
            add_bilayer(density, instances, bilayer, voxel_spacing=10.0, instance=i + 1)
        drawn.append((room.occupied.tobytes(), density.tobytes(), instances.tobytes()))
    assert drawn[0] == drawn[1]


def test_surface_points_are_spread_evenly_over_the_bilayer(rng):
    room = make_room()
    settings = Membranes(shape="ellipsoid", diameter=380, elongation=1.6, undulation=10)
    (bilayer,) = draw_bilayers(settings, room=room, rng=rng)
    position, normal = surface_points(bilayer, grid=room.grid, spacing=25.0)
    distance, direction = bilayer.level(position)
    assert np.abs(distance).max() < 1e-3
    assert (normal * direction).sum(axis=1).min() > np.cos(np.radians(2))
    assert room.grid.contains(position).all()
    apart = cKDTree(position).query(position, k=2)[0][:, 1]
    assert apart.min() >= 0.7 * 25
    sample, _ = bilayer.sample(rng, density=0.05)
    inside = room.grid.contains(sample)
    assert cKDTree(position).query(sample[inside])[0].max() < 25 * 1.2
    area = inside.sum() / 0.05
    assert abs(len(position) * 25**2 / area - 1) < 0.1


def test_points_of_what_lies_outside_are_none():
    bilayer = flat_sheet(5000.0)
    grid = Volume(data=np.zeros((9, 10, 11)), voxel_spacing=10.0)
    position, normal = surface_points(bilayer, grid=grid, spacing=20.0)
    assert position.shape == normal.shape == (0, 3)
    density, instances = np.zeros((9, 10, 11), np.float32), np.zeros((9, 10, 11), np.uint8)
    add_bilayer(density, instances, bilayer, voxel_spacing=10.0, instance=1)
    assert not density.any()
    assert not instances.any()
