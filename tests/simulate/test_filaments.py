"""Courses of filaments: the truth that they state, and what they take of the room."""

from __future__ import annotations

import logging
from dataclasses import replace

import numpy as np
import pytest
from scipy.spatial import cKDTree
from scipy.spatial.transform import Rotation

from tomoloc.simulate.filaments import Filament, add_filaments, draw_filaments, make_subunit
from tomoloc.simulate.helices import HELICES
from tomoloc.simulate.references import Reference, make_reference
from tomoloc.simulate.room import CYTOSOL, LUMEN, NO_ICE, Room
from tomoloc.simulate.settings import Filaments, Part, Range
from tomoloc.types import Volume

SPACING = 10.0
STRAIGHT = 1e12


def make_room(shape=(60, 90, 110), spacing=SPACING):
    return Room(
        compartment=np.full(shape, CYTOSOL, np.uint8),
        occupied=np.zeros(shape, np.bool_),
        voxel_spacing=spacing,
    )


@pytest.fixture(scope="module")
def references():
    return {
        kind: make_reference(make_subunit(Filaments(kind=kind)), voxel_spacing=SPACING)
        for kind in ("actin", "microtubule", "cofilactin")
    }


@pytest.fixture
def thin():
    """A subunit of almost no size, 20 Å from the axis."""
    envelope = np.zeros((5, 5, 5), np.bool_)
    envelope[2, 2, 2] = True
    potential = Volume(
        data=np.zeros((5, 5, 5), np.float32), voxel_spacing=5.0, origin=[-10.0, -10.0, -10.0]
    )
    return Reference(potential=potential, envelope=envelope, center=np.array([20.0, 0, 0]))


def draw(reference, room, seed=1, clearance=0.0, **settings):
    return draw_filaments(
        Filaments(**settings),
        reference=reference,
        room=room,
        rng=np.random.default_rng(seed),
        clearance=clearance,
    )


def render(filaments, reference, room, **more):
    density, instances = np.zeros(room.shape, np.float32), np.zeros(room.shape, np.uint16)
    add_filaments(
        density,
        instances,
        filaments,
        reference=reference,
        voxel_spacing=room.voxel_spacing,
        first=1,
        **more,
    )
    return density, instances


def tangents(filament):
    return filament.rotation.as_matrix()[:, :, 2]


def turns(filament):
    """Angle about the tangent from each subunit to the next, in degrees."""
    quaternion = (filament.rotation[:-1].inv() * filament.rotation[1:]).as_quat()
    return np.degrees(2 * np.arctan2(quaternion[:, 2], quaternion[:, 3])) % 360


@pytest.mark.parametrize("persistence", [STRAIGHT, 3000.0])
@pytest.mark.parametrize("kind", ["actin", "cofilactin", "tmv"])
def test_rise_and_twist_are_in_the_truth(thin, kind, persistence):
    (filament,) = draw(thin, make_room(), kind=kind, persistence_length=persistence)
    step = np.diff(filament.position, axis=0)
    rise = HELICES[kind].rise
    np.testing.assert_allclose(np.diff(filament.arc_length), rise, rtol=1e-9)
    np.testing.assert_allclose(np.linalg.norm(step, axis=1), rise, rtol=0.01)
    twist = turns(filament)
    error = (twist - HELICES[kind].twist + 180) % 360 - 180
    np.testing.assert_allclose(error, 0, atol=0.05 if persistence == STRAIGHT else 2)
    # The frame is carried along in parallel: nowhere does a bend add up to a turn.
    assert abs(error.mean()) < 0.1
    direction = step / np.linalg.norm(step, axis=1)[:, None]
    aligned = (direction * tangents(filament)[:-1]).sum(axis=1)
    assert aligned.min() > (0.999999 if persistence == STRAIGHT else 0.97)


def test_microtubules_have_thirteen_protofilaments_of_dimers(thin):
    (filament,) = draw(thin, make_room(), kind="microtubule")
    frame = filament.rotation[0].inv() * filament.rotation
    angle = np.degrees(frame.magnitude()) * np.sign(frame.as_rotvec()[:, 2])
    strand = np.round((angle % 360) / (360 / 13)).astype(int) % 13
    counts = np.bincount(strand, minlength=13)
    assert np.ptp(counts) <= 1
    for k in range(13):
        np.testing.assert_allclose(np.diff(filament.arc_length[strand == k]), 82, rtol=1e-6)


def test_persistence_length_is_recovered(thin):
    persistence, lag = 1000.0, 20
    room = make_room((100, 104, 98), 120.0)
    filaments = draw(
        thin, room, kind="actin", count=250, length=2500.0, persistence_length=persistence
    )
    assert len(filaments) == 250
    cosines = [
        (tangents(f)[:-lag] * tangents(f)[lag:]).sum(axis=1) for f in filaments if len(f) > lag
    ]
    mean = np.concatenate(cosines).mean()
    found = -lag * HELICES["actin"].rise / np.log(mean)
    assert found == pytest.approx(persistence, rel=0.1)


def test_directions_are_those_of_free_space(thin):
    room = make_room((80, 84, 88), 100.0)
    filaments = draw(thin, room, kind="actin", count=300, length=300.0)
    along = np.array([tangents(f)[0] for f in filaments])
    np.testing.assert_allclose(along.mean(axis=0), 0, atol=4 / np.sqrt(3 * 300))
    np.testing.assert_allclose(along.T @ along / len(along), np.eye(3) / 3, atol=0.07)
    azimuth = Rotation.concatenate([f.rotation[0] for f in filaments]).as_euler("zyz")[:, 2]
    assert abs(np.exp(1j * azimuth).mean()) < 4 / np.sqrt(300)


def test_filaments_take_their_own_room_and_nothing_else(references):
    room, clearance = make_room(), 20.0
    room.occupied[:, 40:50, 50:60] = True
    room.compartment[:8] = NO_ICE
    room.compartment[-5:] = NO_ICE
    before = room.occupied | (room.compartment == NO_ICE)
    claimed = []
    for kind, count in (("microtubule", 1), ("actin", 4), ("cofilactin", 2)):
        reference = references[kind]
        filaments = draw(reference, room, kind=kind, count=count, clearance=clearance)
        assert len(filaments) == count
        claimed += [render([f], reference, room)[1] > 0 for f in filaments]
        # The density beyond the claimed voxels is faint, and so all of it is in the ice.
        density, instances = render(filaments, reference, room)
        assert np.abs(density[instances == 0]).max() < 1.4
        assert set(np.unique(instances)) == set(range(count + 1))
    assert np.sum(claimed, axis=0).max() == 1
    taken = np.any(claimed, axis=0)
    assert not (taken & before).any()
    assert room.occupied[taken].all()
    # Different filaments keep the clearance, too.
    for i, one in enumerate(claimed):
        others = np.argwhere(np.any(claimed[:i] + claimed[i + 1 :], axis=0))
        gap = cKDTree(others).query(np.argwhere(one))[0].min()
        assert (gap + np.sqrt(3)) * SPACING > clearance


def test_without_a_length_they_go_from_side_to_side(thin):
    room = make_room((40, 70, 90))
    for filament in draw(thin, room, kind="actin", count=5):
        inside = room.grid.contains(filament.position)
        ends = filament.position[[0, -1]]
        past = (ends < 0) | (ends > room.extent - SPACING)
        assert past[:, :2].any(axis=1).all() or not inside[[0, -1]].any()
        assert not past[:, 2].any()


def test_length_counts_from_tip_to_tip(references):
    room = make_room((70, 80, 90))
    reference = references["actin"]
    for seed in range(3):
        (filament,) = draw(
            reference, room, seed, kind="actin", length=300.0, persistence_length=STRAIGHT
        )
        _, instances = render([filament], reference, room)
        along = room.grid.to_position(np.argwhere(instances)) @ tangents(filament)[0]
        if room.grid.contains(filament.position[[0, -1]] + [[-60], [60]]).all():
            assert 300 - 3 * 27.6 < np.ptp(along) < 300 + SPACING


def test_the_shortest_filament_is_one_subunit(references):
    for seed in range(4):
        (filament,) = draw(references["actin"], make_room(), seed, kind="actin", length=20.0)
        assert len(filament) == 1


def test_the_subunit_is_at_x_and_the_plus_end_at_z(references):
    room = make_room((60, 62, 64))
    rotation = Rotation.from_euler("zyz", [[20.0, 60.0, 130.0]], degrees=True)
    position = np.array([[300.0, 310.0, 290.0]])
    one = Filament(position=position, rotation=rotation, arc_length=np.zeros(1))
    parts = [Part(label="alpha", chains=("A",)), Part(label="beta", chains=("B",))]
    subunit = make_subunit(Filaments(kind="microtubule"))
    reference = make_reference(subunit, voxel_spacing=SPACING, parts=parts)
    labels = np.zeros(room.shape, np.uint16)
    values = np.array([4, 5, 6])
    density, instances = render([one], reference, room, labels=labels, label_values=values)
    assert set(np.unique(labels)) == {0, 5, 6}
    np.testing.assert_array_equal(labels > 0, instances > 0)
    center = density[instances > 0] @ room.grid.to_position(np.argwhere(instances))
    center /= density[instances > 0].sum()
    x, z = rotation.as_matrix()[0][:, 0], rotation.as_matrix()[0][:, 2]
    np.testing.assert_allclose(center, position[0] + 112 * x, atol=4)
    alpha, beta = (room.grid.to_position(np.argwhere(labels == v)).mean(axis=0) for v in (5, 6))
    assert (beta - alpha) @ z == pytest.approx(41, abs=4)


def test_a_structure_at_any_angle_about_z_gives_the_same_filament(references):
    room = make_room()
    subunit = make_subunit(Filaments(kind="actin"))
    turn = Rotation.from_euler("z", 77.0, degrees=True)
    moved = replace(
        subunit,
        position=turn.apply(subunit.position) + np.array([0, 0, 300.0]),
    )
    other = make_reference(moved, voxel_spacing=SPACING)
    filaments = draw(references["actin"], room, kind="actin")
    a, b = (render(filaments, r, room)[0] for r in (references["actin"], other))
    assert np.corrcoef(a.ravel(), b.ravel())[0, 1] > 0.99


def spectrum(density, room, filament, order, frequencies):
    """Fourier sums over height and angle about a straight filament's axis."""
    places = room.grid.to_position(np.argwhere(density > 0.5)) - filament.position[0]
    u, v, w = (places @ filament.rotation[0].as_matrix()).T
    height = np.clip(w / np.ptp(filament.arc_length), 0, 1)
    weight = density[density > 0.5] * np.sin(np.pi * height) ** 2
    waves = weight * np.exp(-1j * order * np.arctan2(v, u))
    bins = np.round(w - w.min()).astype(int)  # of 1 Å
    line = np.bincount(bins, waves.real) + 1j * np.bincount(bins, waves.imag)
    return np.abs(np.exp(-2j * np.pi * np.outer(frequencies, np.arange(len(line)))) @ line)


def longest(reference, room, kind):
    filaments = [
        draw(reference, make_room(room.shape), seed, kind=kind, persistence_length=STRAIGHT)[0]
        for seed in range(5)
    ]
    return max(filaments, key=len)


def test_layer_lines_of_actin(references):
    """Left-handed 59 Å and right-handed 51 Å: frequency * rise + order * twist / 360 is whole."""
    room = make_room((60, 150, 170))
    reference = references["actin"]
    filament = longest(reference, room, kind="actin")
    density, _ = render([filament], reference, room)
    frequencies = np.linspace(0.008, 0.03, 221)
    for sign, expected in ((1, 166.6 / 360 / 27.6), (-1, (1 - 166.6 / 360) / 27.6)):
        power = spectrum(density, room, filament, 1, sign * frequencies)
        assert frequencies[power.argmax()] == pytest.approx(expected, abs=4e-4)


def test_layer_lines_of_microtubules(references):
    room = make_room((60, 150, 170))
    reference = references["microtubule"]
    filament = longest(reference, room, kind="microtubule")
    density, _ = render([filament], reference, room)
    frequencies = np.linspace(0.01, 0.035, 251)
    # Protofilaments are three monomers higher after one left-handed round, which puts the orders
    # 3 and -10 on the layer line of 41 Å, and nothing on its mirror image.
    for order, sign in ((3, 1), (-3, -1), (10, -1), (-10, 1)):
        power = spectrum(density, room, filament, order, sign * frequencies)
        assert 1 / frequencies[power.argmax()] == pytest.approx(41, abs=0.4)
        wrong = spectrum(density, room, filament, order, -sign * frequencies)
        assert wrong.max() < 0.1 * power.max()
    # Around the wall there are 13 protofilaments.
    by_order = [spectrum(density, room, filament, n, np.zeros(1))[0] for n in range(5, 20)]
    assert np.argmax(by_order) == 13 - 5


def test_bundles_are_hexagonal_and_parallel(thin):
    room = make_room((80, 120, 130))
    filaments = draw(
        thin, room, kind="actin", arrangement="bundle", bundle_size=7, bundle_spacing=120.0,
        persistence_length=2e4, count=2,
    )  # fmt: skip
    assert {f.bundle for f in filaments} == {0, 1}
    for number in (0, 1):
        members = [f for f in filaments if f.bundle == number]
        middle = room.extent / 2
        inner, *outer = members
        trees = [cKDTree(f.position) for f in members]
        near = inner.position[cKDTree(inner.position).query(middle)[1]]
        gaps = np.array([tree.query(near)[0] for tree in trees[1:]])
        np.testing.assert_allclose(gaps[gaps < 400], 120, atol=3)
        along = np.array([tangents(f)[trees[i].query(near)[1]] for i, f in enumerate(members)])
        assert (along @ along[0]).min() > 0.99
        phases = {round(float(f.arc_length[0]) % 27.6, 2) for f in members}
        assert len(phases) == len(members)
        assert len(outer) >= 4


def test_networks_branch_at_seventy_degrees(thin):
    room = make_room((100, 110, 120))
    filaments = draw(thin, room, kind="actin", arrangement="network", count=30, length=500.0)
    assert len(filaments) == 30
    angles = []
    for filament in filaments:
        if filament.parent < 0:
            continue
        mother = filaments[filament.parent]
        gap, row = cKDTree(mother.position).query(filament.position[0])
        assert gap < 80
        angles.append(np.degrees(np.arccos(tangents(filament)[0] @ tangents(mother)[row])))
    assert len(angles) > 20
    assert np.mean(angles) == pytest.approx(70, abs=5)
    assert 3 < np.std(angles) < 12


def test_filaments_stay_in_their_compartment(references):
    room = make_room((70, 80, 90))
    z, y, x = np.indices(room.shape)
    inside = (z - 35) ** 2 + (y - 40) ** 2 + (x - 45) ** 2 < 28**2
    room.compartment[inside] = LUMEN
    reference = references["actin"]
    (lumenal,) = draw(reference, room, kind="actin", location="lumen")
    (outer,) = draw(reference, room, kind="actin", location="cytosol")
    for filament, place in ((lumenal, inside), (outer, ~inside)):
        _, instances = render([filament], reference, room)
        assert (instances > 0).sum() > 300
        assert place[instances > 0].all()
    # Nothing can cross the lumen, so the longest that fits was taken.
    assert 4 * 90 < np.ptp(lumenal.arc_length) + 90 < 2 * 280


def test_where_there_is_no_room_there_are_fewer(thin, references, caplog):
    room = make_room((20, 80, 90))
    with caplog.at_level(logging.WARNING):
        assert draw(references["microtubule"], room, kind="microtubule", count=3) == []
    assert "microtubule: room for 0 of 3" in caplog.text
    assert not room.occupied.any()
    room.compartment[:] = NO_ICE
    with caplog.at_level(logging.WARNING):
        assert draw(thin, room, kind="actin", label="F") == []
    assert "F: room for 0 of 1" in caplog.text
    assert draw(thin, room, kind="actin", count=0) == []
    density, instances = render([], thin, room)
    assert not density.any()
    assert not instances.any()


def test_the_same_seed_gives_the_same_filaments(references):
    tables = []
    for seed in (3, 3, 4):
        room = make_room()
        filaments = draw(references["actin"], room, seed, kind="actin", count=3)
        tables.append(
            np.concatenate([np.hstack([f.position, f.rotation.as_quat()]) for f in filaments])
        )
    np.testing.assert_array_equal(tables[0], tables[1])
    assert tables[2].shape != tables[0].shape or (tables[2] != tables[0]).any()


def test_a_recipe_must_be_resolved(thin):
    with pytest.raises(ValueError, match="resolved recipe"):
        draw(thin, make_room(), kind="actin", count=Range(1, 2))
