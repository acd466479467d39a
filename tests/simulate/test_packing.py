"""Packing of particles, at random and touching."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy import ndimage, stats

from tomoloc.simulate.packing import Packing, pack
from tomoloc.simulate.references import add_particles, make_reference
from tomoloc.simulate.room import CYTOSOL, LUMEN, NO_ICE, Room
from tomoloc.simulate.structures import make_complex
from tomoloc.types import Volume

SPACING = 10.0
SHAPE = (40, 50, 60)
METHODS = pytest.mark.parametrize("method", ["random", "tetris"])


def make_room(shape=SHAPE):
    return Room(
        compartment=np.full(shape, CYTOSOL, np.uint8),
        occupied=np.zeros(shape, bool),
        voxel_spacing=SPACING,
    )


@pytest.fixture(scope="module")
def references():
    kinds = [(19, None), (2, None), (24, None)]  # a ring, a compact and a long one
    return [
        [make_reference(make_complex(seed, mass_kda=mass), voxel_spacing=SPACING)]
        for seed, mass in kinds
    ]


def render(references, packing, shape):
    density, instances = np.zeros(shape, np.float32), np.zeros(shape, np.uint16)
    add_particles(
        density,
        instances,
        [group[0] for group in references],
        index=Volume(data=density, voxel_spacing=SPACING).to_index(packing.position),
        rotation=packing.rotation,
        species=packing.species,
    )
    return instances


def render_each(references, packing, shape):
    """Sum of the particles' own masks: 2 where two overlap."""
    total = np.zeros(shape, int)
    for row in range(len(packing.position)):
        one = Packing(
            position=packing.position[[row]],
            rotation=packing.rotation[[row]],
            species=packing.species[[row]],
            conformer=packing.conformer[[row]],
            container=packing.container[[row]],
            visible=packing.visible[[row]],
            asked=packing.asked,
            placed=packing.placed,
            fraction=packing.fraction,
        )
        total += render(references, one, shape) > 0
    return total


@METHODS
def test_particles_never_overlap(references, method):
    room = make_room()
    packing = pack(
        references,
        [1, 1, 1],
        room=room,
        rng=np.random.default_rng(1),
        border="cut",
        method=method,
        fraction=0.3,
    )
    total = render_each(references, packing, SHAPE)
    assert total.max() == 1
    # The room knows exactly what has been taken, and the fraction is what the atlas shows.
    np.testing.assert_array_equal(room.occupied, total > 0)
    assert total.mean() == pytest.approx(packing.fraction, rel=0.01)


@METHODS
def test_particles_keep_the_clearance(references, method):
    shape, clearance = (40, 56, 64), 30.0
    packing = pack(
        references,
        [8, 12, 10],
        room=make_room(shape),
        rng=np.random.default_rng(1),
        clearance=clearance,
        method=method,
    )
    np.testing.assert_array_equal(packing.placed, packing.asked)
    assert np.bincount(packing.species).tolist() == [8, 12, 10]
    instances = render(references, packing, shape)
    assert sorted(np.unique(instances)) == list(range(31))
    nearest = []
    for row in range(1, 31):
        own = instances == row
        others = ndimage.distance_transform_edt((instances == 0) | own)
        nearest.append(others[own].min() * SPACING)
    assert min(nearest) >= clearance + SPACING  # from centre to centre
    if method == "tetris":
        assert np.median(nearest) < clearance + 1.8 * SPACING
    np.testing.assert_allclose(packing.visible, 1)


@METHODS
def test_orientations_are_uniform(references, method):
    packing = pack(
        [references[2]],
        [1200],
        room=make_room((96, 144, 160)),
        rng=np.random.default_rng(2),
        border="cut",
        method=method,
    )
    n = len(packing.position)
    assert n == 1200
    matrices = packing.rotation.as_matrix()
    # Entries of uniform rotation matrices: mean 0, variance 1/3; their squares: variance 4/45.
    assert np.abs(matrices.mean(axis=0)).max() < 4 * np.sqrt(1 / 3 / n)
    assert np.abs((matrices**2).mean(axis=0) - 1 / 3).max() < 4 * np.sqrt(4 / 45 / n)
    # The rotation angle has the density (1 - cos) / pi.
    angle = packing.rotation.magnitude()
    assert stats.kstest(angle, lambda t: (t - np.sin(t)) / np.pi).pvalue > 0.01
    if method == "random":
        assert stats.kstest(packing.position[:, 0], "uniform", (-5, 1600)).pvalue > 0.01
    # Within their voxels, centres lie anywhere.
    offset = packing.position / SPACING - np.round(packing.position / SPACING)
    assert stats.kstest(offset.ravel(), "uniform", (-0.5, 1)).pvalue > 0.001


def test_tetris_packs_closer_than_rejection_in_the_order_of_arrival(references):
    arrival, shape = np.random.default_rng(3), (40, 70, 80)
    room, rejected = make_room(shape), 0.0
    while True:
        one = pack([references[arrival.integers(3)]], [1], room=room, rng=arrival, border="cut")
        if one.placed[0] == 0:
            break
        rejected += one.fraction
    touching = pack(
        references,
        [1, 1, 1],
        room=make_room(shape),
        rng=np.random.default_rng(4),
        border="cut",
        method="tetris",
        fraction=1.5 * rejected,
    )
    assert rejected > 0.2
    assert touching.fraction == pytest.approx(1.5 * rejected, rel=0.02)
    # All kinds still find places: the fraction is not made up by the smallest.
    assert touching.placed.min() > 0.9 * touching.placed.max()


@METHODS
def test_fills_a_fraction_of_the_ice_in_proportion(references, method):
    room = make_room((40, 60, 70))
    room.compartment[:8] = NO_ICE
    packing = pack(
        references,
        [3, 1.5, 0],
        room=room,
        rng=np.random.default_rng(3),
        method=method,
        fraction=0.15,
    )
    assert packing.fraction == pytest.approx(0.15, rel=0.03)
    assert packing.placed[0] == pytest.approx(2 * packing.placed[1], abs=2)
    volumes = [group[0].volume for group in references]
    assert packing.placed @ volumes == pytest.approx(0.15 * 32 * 60 * 70 * 1000, rel=0.03)
    assert packing.placed[2] == 0


def test_what_fits_makes_up_for_what_does_not(references):
    small = make_reference(make_complex(2, mass_kda=25.0), voxel_spacing=SPACING)
    packing = pack(
        [references[0], [small]],
        [1, 1],
        room=make_room((24, 40, 44)),
        rng=np.random.default_rng(3),
        fraction=0.35,
    )
    assert packing.placed[0] < packing.asked[0]
    assert packing.placed[1] > packing.asked[1]
    assert packing.fraction == pytest.approx(0.35, rel=0.02)


def make_cell(shape=SHAPE):
    """Ice with a slanted upper surface, a lumen, and something that lies in it."""
    room = make_room(shape)
    z, y, x = np.indices(shape)
    room.compartment[(z - 18) ** 2 + (y - 25) ** 2 + (x - 20) ** 2 < 15**2] = LUMEN
    room.compartment[z > 28 + x // 8] = NO_ICE
    room.compartment[z < 2] = NO_ICE
    room.occupied[:, :, 40:44] = True
    return room


@METHODS
def test_particles_stay_in_their_compartment(references, method):
    room, before = make_cell(), make_cell()
    packing = pack(
        references,
        [5, 9, 6],
        room=room,
        rng=np.random.default_rng(5),
        locations=["cytosol", "lumen", "anywhere"],
        border="cut",
        method=method,
    )
    assert packing.placed.tolist() == [5, 9, 6]
    instances = render(references, packing, SHAPE)
    species = np.append(-1, packing.species)[instances]
    assert set(before.compartment[species == 0]) == {CYTOSOL}
    assert set(before.compartment[species == 1]) == {LUMEN}
    assert NO_ICE not in before.compartment[species >= 0]
    assert not before.occupied[species >= 0].any()
    np.testing.assert_array_equal(room.occupied, before.occupied | (species >= 0))
    np.testing.assert_array_equal(room.compartment, before.compartment)


@METHODS
def test_particles_touch_the_interface(references, method):
    room = make_cell()
    packing = pack(
        references,
        [0, 14, 0],
        room=room,
        rng=np.random.default_rng(6),
        locations=["anywhere", "interface", "anywhere"],
        method=method,
    )
    assert packing.placed[1] == 14
    instances = render(references, packing, SHAPE)
    compartment = make_cell().compartment
    assert not (instances[compartment == NO_ICE]).any()
    up, down = (np.roll(compartment, step, axis=0) == NO_ICE for step in (-1, 1))
    above, below = set(instances[up]) - {0}, set(instances[down]) - {0}
    assert above | below == set(range(1, 15))
    assert min(len(above), len(below)) > 2


def test_lower_layers_come_first(references):
    packing = pack(
        references,
        [4, 5, 6],
        room=make_room(),
        rng=np.random.default_rng(7),
        layers=[1, 0, 1],
    )
    first, then = packing.species[:5], packing.species[5:]
    assert set(first) == {1}
    # Within a layer, the larger come first.
    volumes = [group[0].volume for group in references]
    assert np.all(np.diff(np.array(volumes)[then]) <= 0)


def test_conformers_are_drawn_evenly(references):
    variants = [references[1][0], references[0][0], references[1][0]]
    packing = pack([variants], [150], room=make_room((64, 80, 90)), rng=np.random.default_rng(8))
    count = np.bincount(packing.conformer, minlength=3)
    assert stats.chisquare(count).pvalue > 0.01
    shape = (64, 80, 90)
    sizes = np.bincount(render([[v] for v in variants], _as_species(packing), shape).ravel())[1:]
    volume = np.array([v.volume for v in variants])[packing.conformer] / SPACING**3
    np.testing.assert_allclose(sizes, volume, rtol=0.1)


def _as_species(packing):
    return Packing(
        position=packing.position,
        rotation=packing.rotation,
        species=packing.conformer,
        conformer=packing.conformer,
        container=packing.container,
        visible=packing.visible,
        asked=packing.asked,
        placed=packing.placed,
        fraction=packing.fraction,
    )


@METHODS
def test_particles_stay_inside_the_ice(references, method):
    room = make_room()
    room.compartment[:8] = room.compartment[32:] = NO_ICE
    packing = pack(references, [5, 20, 10], room=room, rng=np.random.default_rng(3), method=method)
    z = np.flatnonzero(render(references, packing, SHAPE).any(axis=(1, 2)))
    assert z[0] >= 8
    assert z[-1] <= 31
    np.testing.assert_allclose(packing.visible, 1)
    assert packing.placed.sum() == 35


@METHODS
def test_border_may_cut_particles(references, method):
    packing = pack(
        references,
        [40, 40, 40],
        room=make_room(),
        rng=np.random.default_rng(4),
        border="cut",
        method=method,
    )
    assert packing.visible.min() < 0.9
    assert (packing.visible > 0.05).all()
    low, high = packing.position.min(axis=0), packing.position.max(axis=0)
    assert (low >= -5).all()
    assert (high <= [595, 495, 395]).all()
    instances = render(references, packing, SHAPE)
    size = np.bincount(instances.ravel(), minlength=121)[1:]
    volumes = np.array([group[0].volume for group in references])[packing.species]
    np.testing.assert_allclose(size * SPACING**3, volumes * packing.visible, rtol=0.12)


def test_reports_what_found_no_room(references):
    packing = pack(
        references, [0, 500, 0], room=make_room((16, 24, 28)), rng=np.random.default_rng(5)
    )
    assert packing.asked.tolist() == [0, 500, 0]
    assert 2 < packing.placed[1] < 100
    assert len(packing.position) == packing.placed[1] == len(packing.rotation)
    volume = references[1][0].volume * packing.placed[1]
    assert packing.fraction == pytest.approx(volume / (16 * 24 * 28 * 1000), rel=1e-6)


def test_no_lumen_is_no_room(references):
    packing = pack(
        references,
        [2, 2, 0],
        room=make_room(),
        rng=np.random.default_rng(5),
        locations=["cytosol", "lumen", "lumen"],
    )
    assert packing.placed.tolist() == [2, 0, 0]


@METHODS
@pytest.mark.parametrize("fraction", [None, 0.2])
def test_nothing_asked_is_an_empty_packing(references, method, fraction):
    packing = pack(
        references,
        [0, 0, 0],
        room=make_room((16, 24, 28)),
        rng=np.random.default_rng(5),
        method=method,
        fraction=fraction,
    )
    assert packing.position.shape == (0, 3)
    assert len(packing.rotation) == 0
    assert packing.placed.tolist() == [0, 0, 0]


def test_packings_of_the_same_ice_join(references):
    room, rng = make_room(), np.random.default_rng(9)
    parts = [pack(references, counts, room=room, rng=rng) for counts in ([2, 0, 3], [0, 0, 0])]
    parts.append(pack(references, [1, 4, 0], room=room, rng=rng))
    whole = Packing.concatenate(parts)
    assert whole.asked.tolist() == whole.placed.tolist() == [3, 4, 3]
    assert whole.fraction == pytest.approx(room.occupied.mean(), rel=0.05)
    np.testing.assert_array_equal(whole.position[5:], parts[2].position)
    np.testing.assert_allclose(whole.rotation[:5].as_matrix(), parts[0].rotation.as_matrix())
    with pytest.raises(ValueError, match="one or more packings of the same species"):
        Packing.concatenate([])


@METHODS
def test_too_large_a_particle_is_an_error(references, method):
    room = make_room((16, 20, 24))
    room.compartment[:6] = room.compartment[11:] = NO_ICE
    with pytest.raises(ValueError, match=r"complex-19 does not fit into the ice of 240 x 200 x "):
        pack(references, [1, 0, 0], room=room, rng=np.random.default_rng(6), method=method)


def test_unknown_words_are_errors(references):
    for words in ({"locations": ["anywhere", "nucleus", "lumen"]}, {"method": "fluid"}):
        with pytest.raises(ValueError, match=r"nucleus|fluid"):
            pack(references, [1, 1, 1], room=make_room(), rng=np.random.default_rng(6), **words)


@METHODS
def test_same_seed_same_places(references, method):
    first, again, other = (
        pack(
            references,
            [3, 3, 3],
            room=make_room((30, 40, 50)),
            rng=np.random.default_rng(seed),
            method=method,
        )
        for seed in (7, 7, 8)
    )
    assert first.position.tobytes() == again.position.tobytes()
    assert first.rotation.as_quat().tobytes() == again.rotation.as_quat().tobytes()
    assert first.position.tobytes() != other.position.tobytes()


def test_a_few_voxels_more_on_another_processor_change_little(references):
    """Places of all particles stay the same but where those voxels matter."""
    envelope = references[0][0].envelope.copy()
    rim = np.argwhere(ndimage.binary_dilation(envelope) & ~envelope.astype(bool))
    envelope[tuple(rim[::50].T)] = True
    rounded = [[replace(references[0][0], envelope=envelope)], *references[1:]]
    found, other = (
        pack(group, [6, 8, 8], room=make_room(), rng=np.random.default_rng(3))
        for group in (references, rounded)
    )
    assert len(found.position) == len(other.position) == 22
    same = np.abs(found.position - other.position).max(axis=1) == 0
    assert same.mean() > 0.75
