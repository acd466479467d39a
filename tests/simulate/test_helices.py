"""Helices and built-in subunits, against closed forms and against models of real filaments."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.spatial import cKDTree
from scipy.spatial.transform import Rotation

from tomoloc.io.structures import read_structure
from tomoloc.physics.potential import molecular_mass_kda
from tomoloc.simulate.filaments import Filament, add_filaments
from tomoloc.simulate.helices import HELICES, Helix, find_helix, make_subunit
from tomoloc.simulate.references import make_reference
from tomoloc.simulate.settings import Filaments
from tomoloc.types import Structure

MASSES = {
    "actin": {"A": 41.8},
    "cofilactin": {"A": 41.8, "B": 18.5},
    "microtubule": {"A": 50.0, "B": 50.0},
    "tmv": {"A": 17.5, "R": 1.0},
}


def chain_of(structure, name):
    chosen = structure.chain == name
    return Structure(
        position=structure.position[chosen],
        atomic_number=structure.atomic_number[chosen],
        weight=structure.weight[chosen],
    )


@pytest.mark.parametrize("kind", HELICES)
def test_subunits_have_the_mass_of_their_chains_and_lie_on_the_x_axis(kind):
    subunit = make_subunit(Filaments(kind=kind))
    assert set(subunit.chain) == set(MASSES[kind])
    for name, mass in MASSES[kind].items():
        assert molecular_mass_kda(chain_of(subunit, name)) == pytest.approx(mass, rel=0.06)
    first = chain_of(subunit, "A").center if kind == "cofilactin" else subunit.center
    assert first[0] > 12
    assert np.abs(first[1:]).max() < 3
    again = make_subunit(Filaments(kind=kind))
    np.testing.assert_array_equal(subunit.position, again.position)


@pytest.mark.parametrize("kind", HELICES)
def test_neighbours_in_the_filament_do_not_overlap(kind):
    helix = HELICES[kind]
    nodes = make_subunit(Filaments(kind=kind))
    nodes = nodes.position[nodes.is_node]
    height, angle = helix.places(300.0, phase=0.5)
    home = int(np.argmin(np.abs(height - 150)))
    nearest = np.full(len(nodes), np.inf)
    for h, a in zip(height - height[home], angle - angle[home], strict=True):
        if h or a:
            copy = Rotation.from_euler("z", a, degrees=True).apply(nodes)
            copy[:, 2] += h
            nearest = np.minimum(nearest, cKDTree(copy).query(nodes)[0])
    within = cKDTree(nodes).query(nodes, k=2)[0][:, 1]
    assert nearest.min() > 0.5  # the atoms of residues are scattered by 1.2 Å about them
    assert (nearest < 3).mean() <= (within < 3).mean()
    assert nearest.min() < 6  # they touch


def test_a_single_strand_repeats_by_rise_and_twist():
    helix = Helix(rise=7.0, twist=-50.0, persistence_length=1e5)
    height, angle = helix.places(70.0, phase=0.25)
    np.testing.assert_allclose(height, 1.75 + 7 * np.arange(10))
    np.testing.assert_allclose(np.diff(angle), -50)
    assert [len(helix.places(length)[0]) for length in (0.0, 6.9, 7.0)] == [1, 1, 2]


@pytest.mark.parametrize("strands", [13, 14])
def test_a_microtubule_has_protofilaments_of_dimers_and_a_seam(strands):
    settings = Filaments(kind="microtubule", twist=-360 / strands, rise=3 * 41 / strands)
    helix = find_helix(settings)
    height, angle = helix.places(820.0, phase=0.7)
    strand = np.round(angle / helix.twist).astype(int) % strands
    assert len(height) == pytest.approx(10 * strands, abs=1)
    assert (np.diff(height) >= 0).all()
    first = np.array([height[strand == k][0] for k in range(strands)])
    for k in range(strands):
        np.testing.assert_allclose(np.diff(height[strand == k]), 82)
    # All neighbours are a rise apart, but at the seam they are half a dimer off.
    step = (np.diff(np.append(first, first[0])) - helix.rise + 1e-6) % 82
    np.testing.assert_allclose(step[:-1], 0, atol=1e-5)
    assert step[-1] == pytest.approx(41, abs=1e-5)
    subunit = make_subunit(settings)
    assert subunit.center[0] == pytest.approx(112 * strands / 13, abs=2)
    alpha, beta = (chain_of(subunit, name).center[2] for name in "AB")
    assert beta - alpha == pytest.approx(41, abs=1)  # beta towards the plus end


def test_settings_override_the_helix():
    helix = find_helix(Filaments(kind="actin", rise=28.0, persistence_length=5e4))
    assert (helix.rise, helix.twist, helix.persistence_length) == (28.0, -166.6, 5e4)
    own = find_helix(Filaments(kind="helix", structure="x.pdb", rise=4.0, twist=30.0))
    assert (own.rise, own.twist, own.strands) == (4.0, 30.0, 1)
    assert own.persistence_length > 1e4
    with pytest.raises(ValueError, match=r"one protofilament to the next, such as -27\.69; got 0"):
        find_helix(Filaments(kind="microtubule", twist=0.0))


def test_a_subunit_of_ones_own_is_read(shared):
    path = shared / "structures/assemblies/2om3.pdb.gz"
    settings = Filaments(kind="helix", structure=str(path), rise=1.41, twist=22.03)
    np.testing.assert_array_equal(make_subunit(settings).position, read_structure(path).position)
    with pytest.raises(ValueError, match="expected a structure"):
        make_subunit(Filaments(kind="helix", structure="x.txt", rise=1.0, twist=1.0))


def straight(source, helix, spacing=6.0, shape=(50, 52, 90)):
    """Projection and radial profile of a straight filament along x."""
    height, angle = helix.places(shape[2] * spacing + 300)
    middle = np.array([-150, (shape[1] - 1) / 2 * spacing, (shape[0] - 1) / 2 * spacing])
    frame = Rotation.from_matrix([[0, 0, 1], [0, 1, 0], [-1, 0, 0]])
    filament = Filament(
        position=middle + height[:, None] * [1.0, 0, 0],
        rotation=frame * Rotation.from_euler("z", angle[:, None], degrees=True),
        arc_length=height,
    )
    density, instances = np.zeros(shape, np.float32), np.zeros(shape, np.uint16)
    reference = make_reference(source, voxel_spacing=spacing)
    add_filaments(
        density, instances, [filament], reference=reference, voxel_spacing=spacing, first=1
    )
    z, y = np.indices(shape[:2])
    radius = np.hypot(z - (shape[0] - 1) / 2, y - (shape[1] - 1) / 2).astype(int).ravel()
    profile = np.bincount(radius, density.mean(axis=2).ravel()) / np.bincount(radius)
    return density.sum(axis=0), profile, density[instances > 0].mean()


def test_tobacco_mosaic_virus_looks_like_the_real_one(shared):
    real = read_structure(shared / "structures/assemblies/2om3.pdb.gz")
    helix = HELICES["tmv"]
    ours, theirs = (straight(s, helix) for s in (make_subunit(Filaments(kind="tmv")), real))
    assert np.corrcoef(ours[0].ravel(), theirs[0].ravel())[0, 1] > 0.95
    assert np.corrcoef(ours[1], theirs[1])[0, 1] > 0.9
    assert ours[2] == pytest.approx(theirs[2], rel=0.1)


def test_the_microtubule_looks_like_real_tubulin(shared):
    real = read_structure(shared / "structures/assemblies/tubulin_GDP_2dimers_pf14.pdb.gz")
    dimer = np.isin(real.chain, ["B", "C"])
    position = real.position[dimer] - real.position[dimer].mean(axis=0)
    # In that file the wall's outside is at +y and the plus end at -z.
    turned = position @ np.array([[0, 1, 0], [1, 0, 0], [0, 0, -1]]).T + [112, 0, 0]
    real = Structure(position=turned, atomic_number=real.atomic_number[dimer])
    ours, theirs = (
        straight(s, HELICES["microtubule"])
        for s in (make_subunit(Filaments(kind="microtubule")), real)
    )
    assert np.corrcoef(ours[0].ravel(), theirs[0].ravel())[0, 1] > 0.9
    assert np.corrcoef(ours[1], theirs[1])[0, 1] > 0.97
    assert ours[2] == pytest.approx(theirs[2], rel=0.1)
