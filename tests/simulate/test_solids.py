"""Solid things against closed forms: volumes, potentials, claims."""

from __future__ import annotations

import numpy as np
import pytest

from tomoloc.physics.materials import AMORPHOUS_CARBON, CRYSTALLINE_ICE, GOLD
from tomoloc.physics.potential import ICE_POTENTIAL
from tomoloc.simulate.solids import Beads, CarbonFilm, Crystals, add_solid
from tomoloc.types import Volume

SPACING = 10.0
SHAPE = (30, 40, 52)


def add(solid, *, shape=SHAPE, spacing=SPACING, start=0.0, **options):
    density = np.full(shape, start, dtype=np.float32)
    instances = np.zeros(shape, dtype=np.uint16)
    labels = np.zeros(shape, dtype=np.uint16)
    options = {"instance": 5, "labels": labels, "label": 3, **options}
    add_solid(density, instances, solid, voxel_spacing=spacing, **options)
    return density, instances, labels


def film(**options):
    values = {
        "hole_center": np.array([105.0, 190.0]),
        "hole_diameter": 300.0,
        "thickness": 120.0,
        "center": np.array([255.0, 195.0, 145.0]),
        "slope": 0.0,
        "rim": np.zeros((3, 0)),
        "seed": 1,
    }
    return CarbonFilm(**{**values, **options})


def cube(**options):
    """A crystal whose only facets are those of a cube of 200 Å."""
    axes = np.concatenate([np.eye(3), -np.eye(3)])
    values = {
        "position": np.array([[255.0, 195.0, 145.0]]),
        "diameter": np.array([600.0]),
        "normals": axes[None],
        "distances": np.full((1, 6), 100.0),
        "waves": np.array([[0.02, 0.01, 0.03]]),
        "bends": np.zeros((1, 3)),
    }
    return Crystals(**{**values, **options})


@pytest.mark.parametrize("spacing", [5.0, 8.0, 12.0])
def test_beads_have_the_volume_and_potential_of_gold_spheres(rng, spacing):
    position = np.array([200.0, 150.0, 110.0]) + rng.uniform(-5, 5, 3)
    bead = Beads(position=position[None], diameter=np.array([100.0]))
    shape = tuple(int(np.ceil(n / spacing)) for n in (220, 300, 404))
    density, instances, labels = add(bead, shape=shape, spacing=spacing)
    total = density.sum(dtype=float) * spacing**3
    volume = np.pi / 6 * 100**3
    assert total == pytest.approx((GOLD.potential - ICE_POTENTIAL) * volume, rel=0.02)
    assert (instances > 0).sum() * spacing**3 == pytest.approx(volume, rel=0.05)
    assert (labels[instances > 0] == 3).all()
    center = Volume(data=density, voxel_spacing=spacing).to_position(np.argwhere(instances))
    np.testing.assert_allclose(center.mean(axis=0), position, atol=spacing / 4)


def test_solids_replace_what_is_there_and_claim_only_what_is_free():
    bead = Beads(position=np.array([[250.0, 200, 150]]), diameter=np.array([100.0]))
    in_vacuum = add(bead, start=-ICE_POTENTIAL)[0]
    assert in_vacuum[15, 20, 25] == pytest.approx(GOLD.potential - ICE_POTENTIAL)
    assert in_vacuum[0, 0, 0] == np.float32(-ICE_POTENTIAL)
    density = np.zeros(SHAPE, dtype=np.float32)
    instances = np.zeros(SHAPE, dtype=np.uint16)
    instances[:, :, :25] = 1
    add_solid(density, instances, bead, voxel_spacing=SPACING, instance=2)
    assert instances[15, 20, 24] == 1
    assert instances[15, 20, 26] == 2


def test_each_bead_has_a_number_and_sides_may_cut_it():
    position = np.array([[100.0, 100, 150], [-5, 200, 150], [-200, 0, 0], [300, 300, 150]])
    beads = Beads(position=position, diameter=np.full(4, 80.0))
    _, instances, _ = add(beads)
    assert list(np.unique(instances)) == [0, 5, 6, 8]
    ratio = (instances == 6).sum() / (instances == 5).sum()
    assert ratio == pytest.approx(0.5, abs=0.03)


def test_film_is_as_thick_and_its_hole_as_wide_as_asked():
    density, instances, _ = add(film())
    solid = AMORPHOUS_CARBON.potential - ICE_POTENTIAL
    column = density[:, 5, 45] / solid
    assert column.sum() * SPACING == pytest.approx(120, rel=0.15)
    thick = (instances == 5).any(axis=(1, 2))
    np.testing.assert_array_equal(np.flatnonzero(thick), np.arange(9, 21))
    across = density[14, 19] == 0
    # From the hole's edge at x = 255 on.
    np.testing.assert_array_equal(across, np.arange(52) < 26)
    area = (density[14] == 0).sum() * SPACING**2
    left_out = 150**2 * np.arccos(110 / 150) - 110 * np.sqrt(150**2 - 110**2)
    assert area == pytest.approx(np.pi * 150**2 - left_out, rel=0.08)


def test_film_is_grainy_and_the_same_each_time():
    one, again, other = (add(film(seed=seed))[0] for seed in (1, 1, 2))
    np.testing.assert_array_equal(one, again)
    inside = one[10:18, :, 30:]
    assert inside.mean() == pytest.approx(AMORPHOUS_CARBON.potential - ICE_POTENTIAL, rel=0.01)
    # Half the scatter of 90 atoms in each voxel.
    assert inside.std() / AMORPHOUS_CARBON.potential == pytest.approx(0.5 / np.sqrt(90.2), rel=0.03)
    assert abs(np.corrcoef(inside.ravel(), other[10:18, :, 30:].ravel())[0, 1]) < 0.05


def test_film_follows_its_slope():
    _, instances, _ = add(film(slope=0.2))
    z = np.arange(SHAPE[0])[:, None]
    middle = [(z * (instances[:, 5, x : x + 1] > 0)).sum() for x in (28, 48)]
    count = [(instances[:, 5, x] > 0).sum() for x in (28, 48)]
    assert middle[1] / count[1] - middle[0] / count[0] == pytest.approx(0.2 * 20, abs=0.6)


def test_rim_is_as_rough_as_its_waves():
    rough = film(rim=np.array([[7.0, 11.0], [30.0, 40.0], [0.3, 1.2]]), hole_diameter=700.0)
    _, instances, _ = add(rough, shape=(30, 120, 131))
    y, x = np.nonzero(instances[14] == 0)
    angle = np.arctan2(y * 10 - 190, x * 10 - 105)
    radius = np.hypot(y * 10 - 190, x * 10 - 105)
    for low in (0.0, 0.5, 1.0):
        chosen = np.abs(angle - low) < 0.03
        expected = 350 + 30 * np.cos(7 * low + 0.3) + 40 * np.cos(11 * low + 1.2)
        assert radius[chosen].max() == pytest.approx(expected, abs=25)


def test_film_beyond_the_field_of_view_adds_nothing():
    density, instances, _ = add(film(hole_diameter=3000.0))
    assert not density.any()
    assert not instances.any()
    assert not add(film(center=np.array([255.0, 195.0, 900.0])))[0].any()


def test_crystal_has_its_facets_and_bands():
    density, instances, labels = add(cube())
    assert (instances > 0).sum() == 20**3
    np.testing.assert_array_equal(np.ptp(np.argwhere(instances), axis=0) + 1, [20, 20, 20])
    inside = density[instances > 0] + ICE_POTENTIAL
    assert inside.max() / CRYSTALLINE_ICE.potential == pytest.approx(1.15, abs=0.02)
    assert inside.min() / CRYSTALLINE_ICE.potential == pytest.approx(0.85, abs=0.02)
    assert (labels > 0).sum() == 20**3
    tilted = cube(
        normals=np.array(
            [
                [
                    [0.6, 0.8, 0],
                    [-0.6, -0.8, 0],
                    [-0.8, 0.6, 0],
                    [0.8, -0.6, 0],
                    [0, 0, 1],
                    [0, 0, -1],
                ]
            ]
        )
    )
    turned = add(tilted)[1] > 0
    assert turned.sum() == pytest.approx(20**3, rel=0.03)
    assert not np.array_equal(turned, instances > 0)
