"""Proteins through and on bilayers."""

import numpy as np
import pytest
from scipy import stats
from scipy.spatial.transform import Rotation

from tomoloc.io.structures import read_structure
from tomoloc.physics.rotations import turn_to
from tomoloc.simulate.membrane_proteins import place_membrane_proteins
from tomoloc.simulate.membranes import draw_bilayers
from tomoloc.simulate.references import add_particles, make_reference
from tomoloc.simulate.room import CYTOSOL, NO_ICE, Room
from tomoloc.simulate.settings import Membranes, Species
from tomoloc.simulate.structures import make_complex
from tomoloc.types import Structure, Volume

SPACING = 10.0


def make_room(shape):
    compartment = np.full(shape, CYTOSOL, dtype=np.uint8)
    return Room(compartment=compartment, occupied=np.zeros(shape, bool), voxel_spacing=SPACING)


def make_rod():
    """A rod along z that reaches from 30 Å below the membrane's middle to 90 Å above, and an arm.

    The arm along x, at the upper end, makes every orientation tell.
    """
    rng = np.random.default_rng(1)
    rod = rng.uniform([-18, -18, -30], [18, 18, 90], (4000, 3))
    arm = rng.uniform([18, -12, 60], [60, 12, 85], (1200, 3))
    position = np.concatenate([rod, arm]) + np.array([200, -300, 0])
    return Structure(position=position, atomic_number=np.full(len(position), 6), name="rod")


def species(location, *, membrane="", layer=0):
    return Species(structure="rod.pdb", count=1, location=location, membrane=membrane, layer=layer)


@pytest.fixture(scope="module")
def rod():
    return make_reference(make_rod(), voxel_spacing=SPACING)


@pytest.fixture(scope="module")
def coat():
    return make_reference(make_complex(31, mass_kda=150), voxel_spacing=SPACING)


@pytest.fixture(scope="module")
def scene():
    room = make_room((70, 108, 116))
    rng = np.random.default_rng(2)
    bilayers = draw_bilayers(
        Membranes(shape="blob", diameter=480, undulation=8, label="large"), room=room, rng=rng
    )
    bilayers += draw_bilayers(
        Membranes(shape="sphere", diameter=240, undulation=0, label="small"), room=room, rng=rng
    )
    assert len(bilayers) == 2
    return room, bilayers


def place(scene, references, counts, kinds, *, seed=3, **options):
    room, bilayers = scene
    copy = Room(
        compartment=room.compartment.copy(), occupied=room.occupied.copy(), voxel_spacing=SPACING
    )
    packing = place_membrane_proteins(
        references,
        counts,
        species=kinds,
        bilayers=bilayers,
        room=copy,
        rng=np.random.default_rng(seed),
        **options,
    )
    return packing, copy


def claims(room, packing, references):
    """How many proteins claim each voxel."""
    total = np.zeros(room.shape, dtype=int)
    index = room.grid.to_index(packing.position)
    for row in range(len(index)):
        density, instances = np.zeros(room.shape, np.float32), np.zeros(room.shape, np.uint16)
        add_particles(
            density,
            instances,
            [references[packing.species[row]][packing.conformer[row]]],
            index=index[[row]],
            rotation=packing.rotation[[row]],
            species=np.zeros(1, dtype=int),
        )
        total += instances > 0
    return total


def test_proteins_stand_along_the_normal_at_their_height(scene, rod):
    packing, _ = place(scene, [[rod]], [40], [species("membrane")])
    assert packing.placed.tolist() == packing.asked.tolist() == [40]
    height = rod.center[2]
    assert 25 < height < 45
    axis = packing.rotation.as_matrix()[:, :, 2]
    for which in (0, 1):
        rows = packing.container == which
        assert rows.any()
        foot = packing.position[rows] - height * axis[rows]
        distance, direction = scene[1][which].level(foot)
        assert np.abs(distance).max() < 0.5
        angle = np.degrees(np.arccos((axis[rows] * direction).sum(axis=1).clip(-1, 1)))
        assert angle.max() < 2


@pytest.mark.parametrize(("location", "side"), [("outside", 1), ("inside", -1)])
def test_attached_proteins_touch_their_leaflet(scene, coat, location, side):
    packing, _ = place(scene, [[coat]], [16], [species(location)])
    assert packing.placed[0] == 16
    for row in range(16):
        bilayer = scene[1][packing.container[row]]
        points = packing.rotation[row].apply(coat.points) + packing.position[row]
        distance = side * bilayer.level(points)[0]
        assert abs(distance.min() - bilayer.half_width) < 6
    # Turned at random: the mean of many directions is short.
    axes = packing.rotation.as_matrix()[:, :, 2]
    assert np.linalg.norm(axes.mean(axis=0)) < 0.7


def test_nothing_overlaps_but_the_lipids_that_make_way(scene, rod, coat):
    room, bilayers = scene
    references = [[rod], [coat], [coat]]
    kinds = [species("membrane"), species("outside"), species("inside")]
    blocked = Room(
        compartment=room.compartment, occupied=room.occupied.copy(), voxel_spacing=SPACING
    )
    blocked.occupied[:, :, 40:46] = True
    obstacle = blocked.occupied & ~room.occupied
    packing, after = place((blocked, bilayers), references, [60, 30, 10], kinds, clearance=8)
    assert len(packing.position) > 60
    total = claims(room, packing, references)
    assert total.max() == 1
    assert not (total[obstacle]).any()
    assert after.occupied[total > 0].all()
    assert after.occupied[blocked.occupied].all()
    lipids = np.zeros(room.shape, dtype=int)
    for which, bilayer in enumerate(bilayers):
        box, distance = bilayer.distance(room.grid, reach=30.0)
        lipids[box][np.abs(distance) <= bilayer.half_width] = which + 1
    for row in range(0, len(packing.position), 5):
        one = type(packing)(
            **{
                name: value[[row]] if name not in ("asked", "placed", "fraction") else value
                for name, value in vars(packing).items()
            }
        )
        touched = set(np.unique(lipids[claims(room, one, references) > 0])) - {0}
        assert touched <= {packing.container[row] + 1}
    taken = np.array([references[s][0].volume for s in packing.species]) @ packing.visible
    assert packing.fraction == pytest.approx(taken / room.size())


def test_places_are_even_over_the_area_and_turns_over_the_circle(scene, rod):
    room, bilayers = scene
    small = make_reference(
        Structure(position=make_rod().position[:400] * 0.5, atomic_number=np.full(400, 6)),
        voxel_spacing=SPACING,
    )
    packings = [
        place(scene, [[small]], [60], [species("membrane")], seed=seed)[0] for seed in range(5)
    ]
    container = np.concatenate([p.container for p in packings])
    assert len(container) == 300
    areas = []
    for bilayer in bilayers:
        points, _ = bilayer.sample(np.random.default_rng(0), density=0.01)
        areas.append(room.grid.contains(points).sum())
    share = areas[0] / sum(areas)
    assert abs((container == 0).mean() - share) < 4 * np.sqrt(share * (1 - share) / 300)
    # Spin: the angle of the molecule's x axis about the normal, against the least turn.
    matrices = np.concatenate([p.rotation.as_matrix() for p in packings])
    spin = (turn_to(matrices[:, :, 2]).inv() * Rotation.from_matrix(matrices)).as_rotvec()[:, 2]
    assert stats.kstest(spin % (2 * np.pi), "uniform", args=(0, 2 * np.pi)).pvalue > 1e-3
    # Over the sphere, which a side of the volume just touches, heights across it are uniform.
    normal = matrices[container == 1][:, :, 2]
    assert len(normal) > 30
    for heights in normal[:, 1:].T:
        assert stats.kstest(heights, "uniform", args=(-1, 2)).pvalue > 1e-3


def test_species_keep_to_their_membranes_and_others_are_left_alone(scene, rod):
    kinds = [species("membrane", membrane="small"), species("cytosol"), species("membrane")]
    packing, _ = place(scene, [[rod]] * 3, [3, 7, 2], kinds)
    assert packing.asked.tolist() == [3, 0, 2]
    assert set(packing.container[packing.species == 0]) == {1}
    nowhere, _ = place(scene, [[rod]], [4], [species("membrane", membrane="other")])
    assert nowhere.placed.tolist() == [0]
    assert len(nowhere.position) == len(nowhere.rotation) == 0
    bare = make_room((20, 22, 24))
    none, after = place((bare, []), [[rod]], [4], [species("membrane")])
    assert none.placed.tolist() == [0]
    assert not after.occupied.any()


def test_variants_are_used_evenly_and_a_full_bilayer_ends_a_species(scene, rod):
    packing, _ = place(scene, [[rod, rod]], [2000], [species("membrane")])
    assert 60 < packing.placed[0] < 2000
    share = packing.conformer.mean()
    assert abs(share - 0.5) < 4 * np.sqrt(0.25 / packing.placed[0])


def test_the_same_seed_places_the_same_proteins(scene, rod, coat):
    kinds = [species("membrane"), species("outside", layer=-1)]
    first, second = (place(scene, [[rod], [coat]], [10, 5], kinds)[0] for _ in range(2))
    np.testing.assert_array_equal(first.position, second.position)
    np.testing.assert_array_equal(first.rotation.as_quat(), second.rotation.as_quat())
    assert first.species.tolist() == [1] * 5 + [0] * 10  # layers in their order


def test_border_and_ice_hold_proteins_in(scene, rod):
    room, bilayers = scene
    inside, _ = place(scene, [[rod]], [80], [species("membrane")], border="inside")
    np.testing.assert_allclose(inside.visible, 1)
    thin = Room(
        compartment=np.where(
            (np.arange(70) < 20)[:, None, None], np.uint8(NO_ICE), room.compartment
        ),
        occupied=room.occupied,
        voxel_spacing=SPACING,
    )
    packing, _ = place((thin, bilayers), [[rod]], [40], [species("membrane")])
    assert not claims(room, packing, [[rod]])[:20].any()


def test_a_real_receptor_reaches_out_of_the_vesicle(shared, scene):
    source = read_structure(shared / "maps" / "5wek_mbz_align_shift.mrc")
    assert isinstance(source, Volume)
    reference = make_reference(source, voxel_spacing=SPACING)
    assert 40 < reference.center[2] < 80  # most of it above the membrane
    packing, _ = place(scene, [[reference]], [15], [species("membrane", membrane="large")])
    assert packing.placed[0] == 15
    bilayer = scene[1][0]
    for row in range(15):
        points = packing.rotation[row].apply(reference.points) + packing.position[row]
        distance, _ = bilayer.level(points)
        outside = (distance > bilayer.half_width).mean()
        assert outside > 0.6
        assert (distance < -bilayer.half_width).mean() < 0.1
        assert (np.abs(distance) < 15).any()
