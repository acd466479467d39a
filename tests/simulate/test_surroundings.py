"""Surroundings: what was asked for is what is drawn, and nothing meets."""

from __future__ import annotations

import logging

import numpy as np
import pytest

from tomoloc.physics.materials import AMORPHOUS_CARBON, GOLD, VITREOUS_ICE
from tomoloc.physics.potential import ICE_POTENTIAL
from tomoloc.simulate.room import CYTOSOL, NO_ICE
from tomoloc.simulate.settings import Carbon, Contamination, Gold, Range, Specimen
from tomoloc.simulate.surroundings import (
    Beads,
    add_solid,
    add_vacuum,
    attenuation,
    draw_beads,
    draw_carbon,
    draw_contamination,
    draw_ice,
    make_room,
)
from tomoloc.types import Volume

SHAPE = (48, 100, 124)
SPACING = 10.0


def specimen(**options):
    return Specimen(**{"shape": SHAPE, "voxel_spacing": SPACING, **options})


def grid_of(shape=SHAPE, spacing=SPACING):
    return Volume(data=np.zeros(shape, dtype=np.float32), voxel_spacing=spacing)


def room_of(rng, **options):
    item = specimen(**options)
    ice = draw_ice(item, rng=rng)
    return ice, make_room(item, ice)


def covered(solid, grid=None):
    grid = grid_of() if grid is None else grid
    total = np.zeros(grid.shape)
    for block in solid.blocks(grid):
        total[block.where] += block.fraction
    return total


def test_ice_that_fills_the_volume_costs_nothing(rng):
    ice, room = room_of(rng)
    assert ice.is_level
    coverage = ice.coverage(grid_of())
    assert coverage.shape == (1, 1, 1)
    density = rng.normal(size=SHAPE).astype(np.float32)
    before = density.copy()
    add_vacuum(density, coverage)
    np.testing.assert_array_equal(density, before)
    assert (room.compartment == CYTOSOL).all()
    assert not room.occupied.any()


@pytest.mark.parametrize("thickness", [100.0, 235.0, 333.3])
def test_level_ice_has_its_thickness_between_vacuum(rng, thickness):
    ice, room = room_of(rng, thickness=thickness)
    coverage = ice.coverage(grid_of())
    assert coverage.shape == (SHAPE[0], 1, 1)
    assert coverage.sum() * SPACING == pytest.approx(thickness, rel=1e-5)
    np.testing.assert_allclose(coverage, coverage[::-1], atol=1e-5)
    density = np.zeros(SHAPE, dtype=np.float32)
    add_vacuum(density, coverage)
    assert density[0].max() == np.float32(-ICE_POTENTIAL)
    assert density[SHAPE[0] // 2].min() == 0
    assert room.size() == pytest.approx(thickness * 1000 * 1240, rel=0.08)


def test_rough_ice_has_its_mean_thickness_and_roughness(rng):
    ice, room = room_of(rng, thickness=300.0, roughness=25.0)
    assert not ice.is_level
    low, high = ice.surfaces(grid_of())
    middle = 10 * (SHAPE[0] - 1) / 2
    for surface, mean in ((low, middle - 150), (high, middle + 150)):
        assert surface.mean() == pytest.approx(mean, abs=0.1)
        assert surface.std() == pytest.approx(25, rel=1e-3)
        # Smooth: no step of a voxel.
        assert max(np.abs(np.diff(surface, axis=a)).max() for a in (0, 1)) < SPACING
    assert abs(np.corrcoef(low.ravel(), high.ravel())[0, 1]) < 0.8
    coverage = ice.coverage(grid_of())
    assert coverage.sum() * SPACING**3 == pytest.approx((high - low).sum() * SPACING**2, rel=1e-4)
    np.testing.assert_array_equal(room.compartment == CYTOSOL, coverage > 0.5)


def test_a_tilt_of_minus_the_inclination_makes_ice_level(rng):
    _, room = room_of(rng, thickness=200.0, inclination=10.0)
    position = room.grid.to_position(np.argwhere(room.compartment == CYTOSOL)) - room.grid.center
    tilt = np.deg2rad(-10)
    height = position[:, 2] * np.cos(tilt) - position[:, 0] * np.sin(tilt)
    across = position[:, 0] * np.cos(tilt) + position[:, 2] * np.sin(tilt)
    assert np.ptp(height) == pytest.approx(200 * np.cos(tilt), abs=2 * SPACING)
    assert abs(np.polyfit(across, height, 1)[0]) < 0.01


def test_the_same_seed_draws_the_same(rng):
    def everything(seed):
        rng = np.random.default_rng(seed)
        ice, room = room_of(rng, thickness=300.0, roughness=20.0)
        drawn = [
            draw_carbon(Carbon(hole_diameter=2000.0, edge=200.0), room=room, rng=rng),
            draw_contamination(Contamination(count=2, diameter=150.0), room=room, rng=rng),
            draw_beads(Gold(count=5), room=room, rng=rng),
        ]
        density = np.zeros(SHAPE, dtype=np.float32)
        add_vacuum(density, ice.coverage(grid_of()))
        for solid in drawn:
            instances = np.zeros(SHAPE, np.uint16)
            add_solid(density, instances, solid, voxel_spacing=SPACING, instance=1)
        return density

    np.testing.assert_array_equal(everything(4), everything(4))
    assert not np.array_equal(everything(4), everything(5))


def test_beads_lie_in_ice_and_do_not_meet(rng):
    _, room = room_of(rng, thickness=300.0, roughness=20.0)
    beads = draw_beads(Gold(count=40, diameter=90.0), room=room, rng=rng)
    assert len(beads) == 40
    fraction = covered(beads)
    np.testing.assert_array_equal(room.occupied, fraction > 0)
    assert fraction.max() <= 1 + 1e-6
    assert (room.compartment[fraction > 0.5] != NO_ICE).all()
    distance = np.linalg.norm(beads.position[:, None] - beads.position, axis=-1)
    np.fill_diagonal(distance, np.inf)
    assert distance.min() > 80
    assert beads.diameter.mean() == pytest.approx(90, rel=0.03)
    assert 0 < beads.diameter.std() < 9
    # Evenly over the field of view.
    assert room.grid.contains(beads.position).all()
    np.testing.assert_allclose(beads.position[:, :2].mean(axis=0), room.grid.center[:2], atol=160)


def test_beads_on_the_surface_touch_it_from_within(rng):
    ice, room = room_of(rng, thickness=300.0)
    beads = draw_beads(Gold(count=20, location="surface"), room=room, rng=rng)
    low, high = (float(s[0, 0]) for s in ice.surfaces(grid_of()))
    radius = beads.diameter / 2
    below = np.abs(beads.position[:, 2] - radius - low) < SPACING
    above = np.abs(beads.position[:, 2] + radius - high) < SPACING
    assert (below ^ above).all()
    assert below.any()
    assert above.any()


def test_beads_larger_than_the_ice_lie_in_its_middle(rng):
    _, room = room_of(rng, thickness=60.0)
    beads = draw_beads(Gold(count=3, diameter=150.0), room=room, rng=rng)
    assert len(beads) == 3
    np.testing.assert_allclose(beads.position[:, 2], room.grid.center[2], atol=SPACING)


def test_beads_without_room_are_told(rng, caplog):
    _, room = room_of(rng, thickness=300.0)
    room.occupied[:, :, 40:] = True
    with caplog.at_level(logging.WARNING):
        beads = draw_beads(Gold(count=25, diameter=200.0), room=room, rng=rng)
    assert 0 < len(beads) < 25
    assert f"no room for more than {len(beads)} of 25 gold" in caplog.text
    assert beads.position[:, 0].max() < 400


def test_no_beads_are_no_beads(rng):
    _, room = room_of(rng)
    beads = draw_beads(Gold(count=0), room=room, rng=rng)
    assert beads.position.shape == (0, 3)
    crystals = draw_contamination(Contamination(count=0), room=room, rng=rng)
    assert len(crystals) == 0
    density = np.zeros(SHAPE, dtype=np.float32)
    for solid in (beads, crystals):
        add_solid(density, np.zeros(SHAPE, np.uint16), solid, voxel_spacing=SPACING, instance=1)
    assert not density.any()
    assert not room.occupied.any()


@pytest.mark.parametrize("edge", [300.0, 0.0, -300.0])
def test_edge_of_the_hole_is_as_far_from_the_middle_as_asked(rng, edge):
    _, room = room_of(rng, thickness=300.0)
    film = draw_carbon(Carbon(hole_diameter=2500.0, edge=edge), room=room, rng=rng)
    middle = room.grid.center[:2]
    inside = film.hole_diameter / 2 - np.linalg.norm(middle - film.hole_center)
    assert inside == pytest.approx(edge, abs=1e-6)
    amplitude = film.rim[1]
    assert np.sqrt((amplitude**2).sum() / 2) == pytest.approx(25)
    np.testing.assert_array_equal(room.occupied, covered(film) > 0)
    if abs(edge) == 300:
        assert room.occupied[:, 50, 62].any() == (edge < 0)


@pytest.mark.parametrize("options", [{}, {"inclination": 8.0}, {"roughness": 15.0}])
def test_film_lies_along_a_surface_of_the_ice(rng, options):
    sides = set()
    for _ in range(8):
        ice, room = room_of(rng, thickness=260.0, **options)
        film = draw_carbon(Carbon(edge=-6000.0, thickness=80.0), room=room, rng=rng)
        # The middle of the hole is far away: the film is everywhere.
        assert room.occupied.any(axis=0).all()
        x = np.arange(SHAPE[2]) * SPACING
        plane = film.center[2] + film.slope * (x - film.center[0])
        low, high = (surface.mean(axis=0) for surface in ice.surfaces(grid_of()))
        ends = np.array([np.abs(plane - 40 - low).mean(), np.abs(plane + 40 - high).mean()])
        sides.add(int(ends.argmin()))
        assert ends.min() < 1.5 * SPACING
        tilt = np.tan(np.deg2rad(options.get("inclination", 0)))
        assert film.slope == pytest.approx(-tilt, abs=0.06)
    assert sides == {0, 1}


def test_crystals_sit_on_the_surfaces(rng):
    ice, room = room_of(rng, thickness=200.0)
    wanted = Contamination(count=6, diameter=160.0)
    crystals = draw_contamination(wanted, room=room, rng=rng)
    assert len(crystals) == 6
    low, high = (float(s[0, 0]) for s in ice.surfaces(grid_of()))
    z = crystals.position[:, 2]
    assert ((z < low) | (z > high)).all()
    np.testing.assert_array_equal(room.occupied, covered(crystals) > 0)
    for block in crystals.blocks(grid_of()):
        in_ice = room.compartment[block.where][block.fraction > 0.5] == CYTOSOL
        assert 0 <= in_ice.mean() < 0.6
    assert np.ptp(crystals.diameter) > 10
    # About as large as a sphere of that diameter where nothing cuts them.
    wide = Volume(data=np.zeros((90, 140, 164)), voxel_spacing=SPACING, origin=np.full(3, -200.0))
    volumes = [block.fraction.sum() * 1e3 for block in crystals.blocks(wide)]
    ratio = np.array(volumes) / (np.pi / 6 * crystals.diameter**3)
    assert 0.6 < ratio.min() < ratio.max() < 1.4


def test_attenuation_lets_as_many_electrons_through_as_beer_says(rng):
    ice, _ = room_of(rng, thickness=320.0)
    bead = Beads(position=np.array([[600.0, 500, 230]]), diameter=np.array([120.0]))
    loss = attenuation(ice, [bead], shape=SHAPE, voxel_spacing=SPACING)
    assert loss.voxel_spacing == 2 * SPACING
    path = loss.data.sum(axis=0) * loss.voxel_spacing
    assert path[0, 0] == pytest.approx(320 / 3000, rel=1e-3)
    more = (path - path[0, 0]).sum() * loss.voxel_spacing**2
    expected = np.pi / 6 * 120**3 * (GOLD.loss(300) - VITREOUS_ICE.loss(300))
    assert more == pytest.approx(expected, rel=0.03)
    center = loss.to_position(np.argwhere(loss.data == loss.data.max())).mean(axis=0)
    np.testing.assert_allclose(center, [600, 500, 230], atol=20)


@pytest.mark.parametrize("shape", [(48, 100, 124), (51, 98, 121)])
def test_attenuation_shares_the_centre_of_the_specimen(rng, shape):
    item = specimen(shape=shape, thickness=300.0)
    ice = draw_ice(item, rng=rng)
    room = make_room(item, ice)
    film = draw_carbon(Carbon(edge=-6000.0), room=room, rng=rng)
    loss = attenuation(ice, [film], shape=shape, voxel_spacing=SPACING, voltage_kv=200.0)
    np.testing.assert_allclose(loss.center, room.grid.center)
    assert loss.voxel_spacing == 40
    assert (loss.extent >= room.extent).all()
    path = loss.data.sum(axis=0) * loss.voxel_spacing
    expected = 180 * VITREOUS_ICE.loss(200) + 120 * AMORPHOUS_CARBON.loss(200)
    assert path.mean() == pytest.approx(expected, rel=0.03)
    assert loss.data.min() == 0
    fine = attenuation(ice, [film], shape=shape, voxel_spacing=SPACING, binning=1)
    assert fine.shape == shape


def test_inclined_ice_attenuates_as_level_ice_but_solids_stay_where_they_are(rng):
    item = specimen(thickness=200.0, inclination=12.0)
    ice = draw_ice(item, rng=rng)
    places = np.array([[100.0, 500, 320], [1000.0, 500, 400]])  # inside and outside of the ice
    beads = Beads(position=places, diameter=np.full(2, 120.0))
    options = {"shape": SHAPE, "voxel_spacing": SPACING, "binning": 2}
    paths = [attenuation(ice, some, **options).data.sum(axis=0) * 20 for some in ([], [beads])]
    np.testing.assert_allclose(paths[0], 200 / 3000, rtol=1e-3)
    more = (paths[1] - paths[0]) * 400
    volume = np.pi / 6 * 120**3
    expected = [GOLD.loss(300) - VITREOUS_ICE.loss(300), GOLD.loss(300)]
    parts = [more[:, :30].sum(), more[:, 30:].sum()]
    np.testing.assert_allclose(parts, np.array(expected) * volume, rtol=0.03)


def test_unresolved_settings_are_refused(rng):
    with pytest.raises(ValueError, match="expected resolved settings"):
        draw_ice(specimen(roughness=Range(0, 10)), rng=rng)


@pytest.mark.parametrize("settings", [Gold(count=10**6), Contamination(count=10**5, diameter=60)])
def test_too_many_are_given_up_soon(settings, caplog):
    specimen = Specimen(shape=(16, 24, 20), voxel_spacing=10.0)
    ice = draw_ice(specimen, rng=np.random.default_rng(0))
    room = make_room(specimen, ice)
    draw = draw_beads if isinstance(settings, Gold) else draw_contamination
    placed = draw(settings, room=room, rng=np.random.default_rng(1))
    assert 0 < len(placed) < 1000
    assert f"of {settings.count}" in caplog.text
