"""Turned molecules as voxels, and the search for free places."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage
from scipy.spatial.transform import Rotation

from tomoloc.simulate.placing import TAKEN, Space, draw_body, turn_body
from tomoloc.simulate.references import add_particles, make_reference
from tomoloc.simulate.room import CYTOSOL, LUMEN, NO_ICE, Room
from tomoloc.simulate.structures import make_complex

SPACING = 12.0


@pytest.fixture(scope="module")
def reference():
    return make_reference(make_complex(24, mass_kda=600.0), voxel_spacing=SPACING)


def make_space(shape=(30, 36, 42), *, cut=False, clearance=0.0, reach=25):
    room = Room(
        compartment=np.full(shape, CYTOSOL, np.uint8),
        occupied=np.zeros(shape, bool),
        voxel_spacing=SPACING,
    )
    return Space(room=room, reach=reach, cut=cut, clearance=clearance)


def test_a_body_is_what_the_atlas_will_show(reference, rng):
    for _ in range(5):
        body = draw_body(reference, voxel_spacing=SPACING, rng=rng)
        center = np.array([20, 24, 27])
        shape = (41, 47, 53)
        instances = np.zeros(shape, np.uint16)
        add_particles(
            np.zeros(shape, np.float32),
            instances,
            [reference],
            index=(center + body.shift[::-1])[None],
            rotation=Rotation.from_matrix(body.rotation[None]),
            species=np.zeros(1, int),
        )
        shown = {tuple(v) for v in np.argwhere(instances)}
        assert shown == {tuple(v) for v in body.voxels + center}
        low, high = body.bounds
        np.testing.assert_array_equal(low, body.voxels.min(axis=0))
        np.testing.assert_array_equal(high, body.voxels.max(axis=0))


def test_the_skin_is_what_has_a_free_neighbour(reference, rng):
    body = draw_body(reference, voxel_spacing=SPACING, rng=rng)
    voxels = {tuple(v) for v in body.voxels}
    steps = np.concatenate([np.eye(3, dtype=int), -np.eye(3, dtype=int)])
    expected = {v for v in voxels if any(tuple(np.add(v, step)) not in voxels for step in steps)}
    assert {tuple(v) for v in body.skin} == expected
    assert 0 < len(expected) < len(voxels)


def test_a_body_turns_as_its_matrix_says(reference, rng):
    quarter = Rotation.from_euler("z", 90, degrees=True).as_matrix()
    straight, turned = (
        turn_body(reference, rotation=m, shift=np.zeros(3), voxel_spacing=SPACING, rng=rng)
        for m in (np.eye(3), quarter)
    )
    # x goes to y and y to -x.
    expected = straight.voxels[:, [0, 2, 1]] * [1, 1, -1]
    overlap = {tuple(v) for v in turned.voxels} & {tuple(v) for v in expected}
    assert len(overlap) > 0.97 * len(expected)


def test_a_stamp_takes_the_clearance_too(reference, rng):
    space = make_space((60, 62, 64), clearance=25.0)
    body = draw_body(reference, voxel_spacing=SPACING, rng=rng)
    center = np.array([29, 31, 30])
    space.stamp(body, center)
    own = np.zeros(space.core.shape, bool)
    own[tuple((body.voxels + center).T)] = True
    distance = ndimage.distance_transform_edt(~own) * SPACING
    np.testing.assert_array_equal(space.core == TAKEN, distance < 25 + SPACING)


@pytest.mark.parametrize("cut", [False, True])
def test_found_places_are_free_and_spread_evenly(reference, cut):
    space, rng = make_space(cut=cut), np.random.default_rng(1)
    space.core[:, :, 20:22] = TAKEN
    space.core[:3] = 128
    body = draw_body(reference, voxel_spacing=SPACING, rng=rng)
    found = np.array([space.find(body, "anywhere", rng=rng) for _ in range(300)])
    for center in found:
        place = body.voxels + center
        assert (place[:, 0] >= 3).all()
        assert not np.isin(place[:, 2], (20, 21)).any()
        if not cut:
            assert ((place >= 0) & (place < space.room.shape)).all()
    sticks_out = np.array([space.visible(body, center) < 1 for center in found])
    assert sticks_out.any() == cut
    # Every place that is free is found as often: sides in proportion to their numbers of places.
    low, high = space.bounds(body, "anywhere")
    left = 20 - body.bounds[1, 2] - low[2]
    right = high[2] - (22 - body.bounds[0, 2]) + 1
    share = left / (left + right)
    n = (found[:, 2] < 20).sum()
    assert abs(n - 300 * share) < 4 * np.sqrt(300 * share * (1 - share)) + 1


def test_a_full_location_gives_no_place(reference, rng):
    space = make_space()
    body = draw_body(reference, voxel_spacing=SPACING, rng=rng)
    assert space.find(body, "lumen", rng=rng) is None
    low, high = space.extent("lumen")
    assert (high < low).all()
    space.core[...] = TAKEN
    assert space.find(body, "cytosol", rng=rng) is None


def test_outside_the_volume_compartments_go_on_but_what_lies_in_them_does_not():
    shape = (10, 12, 14)
    compartment = np.full(shape, CYTOSOL, np.uint8)
    compartment[:, :, 10:] = LUMEN
    compartment[8:] = NO_ICE
    occupied = np.zeros(shape, bool)
    occupied[2:4, 3:5] = True
    room = Room(compartment=compartment, occupied=occupied, voxel_spacing=SPACING)
    space = Space(room=room, reach=6, cut=True)
    rim = space.rim
    assert space.state.shape == tuple(n + 2 * rim for n in shape)
    np.testing.assert_array_equal(space.core == TAKEN, occupied)
    beside = space.state[rim:-rim, rim:-rim, -rim:]
    assert set(beside[:8].ravel()) == {space.allowed("lumen")}
    assert set(space.state[rim : rim + 8, :rim, rim].ravel()) == {space.allowed("cytosol")}
    beyond = np.concatenate([space.state[:rim], space.state[-rim - 2 :]])
    assert not (beyond & space.allowed("anywhere")).any()
    space.core[5] = TAKEN
    before = occupied.copy()
    space.update_room()
    assert room.occupied[5].all()
    assert room.occupied.sum() == before.sum() + 12 * 14
