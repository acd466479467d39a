"""Conformers: modes against closed forms, rmsd as asked, geometry that stays sane."""

from __future__ import annotations

import time
from dataclasses import replace

import numpy as np
import pytest
from scipy import ndimage
from scipy.spatial import cKDTree
from scipy.spatial.transform import Rotation

from tomoloc.io.structures import read_structure
from tomoloc.physics.potential import make_potential
from tomoloc.simulate import flexibility
from tomoloc.simulate.flexibility import draw_conformer, find_motions
from tomoloc.simulate.structures import make_complex
from tomoloc.types import Structure, Volume


def beads(position, *, is_node=None, name="beads"):
    position = np.asarray(position, dtype=float)
    n = len(position)
    is_node = np.ones(n, bool) if is_node is None else is_node
    return Structure(position=position, atomic_number=np.full(n, 6), name=name, is_node=is_node)


def globule(rng, n=200, *, size=(40.0, 30.0, 20.0)):
    """Residues at least 3.5 Å apart in an ellipsoid."""
    chosen = []
    for point in rng.uniform(-1, 1, (20_000, 3)):
        place = point * size
        if point @ point < 1 and all(np.sum((place - c) ** 2) > 3.5**2 for c in chosen):
            chosen.append(place)
            if len(chosen) == n:
                break
    return np.array(chosen)


def zigzag(x):
    """Points along x, in threes around it: springs along one line would not resist bending."""
    turn = 2 * np.pi / 3 * np.arange(len(x))
    return np.stack([x, 2 * np.cos(turn), 2 * np.sin(turn)], axis=1)


def least_rmsd(a, b):
    a, b = a - a.mean(axis=0), b - b.mean(axis=0)
    _, total = Rotation.align_vectors(a, b)
    return total / np.sqrt(len(a))


def slow_hessian(nodes, pairs):
    """Straight from the definition: each spring pulls along its own direction."""
    hessian = np.zeros((3 * len(nodes), 3 * len(nodes)))
    for a, b in pairs:
        pull = np.zeros(3 * len(nodes))
        direction = (nodes[b] - nodes[a]) / np.linalg.norm(nodes[b] - nodes[a])
        pull[3 * a : 3 * a + 3], pull[3 * b : 3 * b + 3] = -direction, direction
        hessian += np.outer(pull, pull)
    return hessian


@pytest.mark.parametrize("n", [24, 150])  # dense and sparse
def test_modes_are_those_of_the_springs(rng, n):
    nodes = globule(rng, n)
    distance = np.linalg.norm(nodes[:, None] - nodes, axis=2)
    near = np.argwhere(np.triu(distance < 15, 1)).tolist()
    nearest = [(i, j) for i in range(n) for j in np.argsort(distance[i])[1:9]]
    pairs = {(int(min(p)), int(max(p))) for p in [*near, *nearest]}
    value, vector = np.linalg.eigh(slow_hessian(nodes, pairs))
    assert value[5] < 1e-9 < 1e-3 < value[6]
    motions = find_motions(beads(nodes))
    assert motions.displacement.shape == (14, n, 3)
    np.testing.assert_allclose(motions.stiffness, value[6:20], rtol=1e-6)
    overlap = vector[:, 6:20].T @ motions.displacement.reshape(14, -1).T
    np.testing.assert_allclose(overlap @ overlap.T, np.eye(14), atol=1e-6)


def test_two_balls_on_a_stalk_swing_as_wholes(rng):
    ball = globule(rng, 80, size=(16.0, 16.0, 16.0))
    stalk = zigzag(np.arange(-18, 19, 3.6))
    nodes = np.concatenate([ball - [34, 0, 0], stalk, ball + np.array([34, 0, 0])])
    motions = find_motions(beads(nodes))
    # So small that a turn, which is a straight motion here, hardly widens what turns.
    slowest = nodes + 20 * motions.displacement[0]
    assert least_rmsd(slowest, nodes) > 1
    for part in (slice(0, 80), slice(-80, None)):
        assert least_rmsd(slowest[part], nodes[part]) < 0.15


@pytest.mark.parametrize("rmsd", [0.5, 3.0, 8.0])
@pytest.mark.parametrize("seed", [3, 26])
def test_rmsd_is_as_asked_and_neighbors_keep_their_distance(rng, seed, rmsd):
    structure = make_complex(seed, mass_kda=150)
    motions = find_motions(structure)
    chosen = structure.is_node
    first = structure.position[chosen]
    pairs = cKDTree(first).query_pairs(5.5, output_type="ndarray")
    for _ in range(3):
        conformer = draw_conformer(motions, rmsd=rmsd, rng=rng)
        assert conformer.rmsd == pytest.approx(rmsd, rel=0.02)
        moved = conformer.source.position[chosen]
        assert least_rmsd(moved, first) == pytest.approx(rmsd, rel=0.02)
        np.testing.assert_allclose(moved.mean(axis=0), first.mean(axis=0), atol=0.1 * rmsd)
        before, after = (
            np.linalg.norm(x[pairs[:, 0]] - x[pairs[:, 1]], axis=1) for x in (first, moved)
        )
        assert np.sqrt(np.mean((after - before) ** 2)) < 0.05 * rmsd
        # The other atoms of a residue go with its node.
        assert conformer.source.atomic_number is structure.atomic_number
        everything = np.linalg.norm(conformer.source.position - structure.position, axis=1)
        assert np.sqrt(np.mean(everything**2)) == pytest.approx(rmsd, rel=0.1)


def test_variants_differ_and_a_seed_gives_its_own_again():
    motions = find_motions(make_complex(5, mass_kda=120))
    same, again = (
        draw_conformer(motions, rmsd=4.0, rng=np.random.default_rng(1)).source.position.tobytes()
        for _ in range(2)
    )
    assert same == again
    rng = np.random.default_rng(2)
    drawn = [draw_conformer(motions, rmsd=4.0, rng=rng).source.position for _ in range(12)]
    between = [least_rmsd(a, b) for a in drawn for b in drawn if a is not b]
    # Independent directions of one length are the root of two apart.
    assert np.mean(between) == pytest.approx(4 * np.sqrt(2), rel=0.25)
    assert draw_conformer(motions, rmsd=0, rng=rng).source is motions.source


def test_equally_stiff_modes_come_together_and_however_mixed():
    motions = find_motions(make_complex(1, mass_kda=200, symmetry="D4"), last=11)
    assert len(motions.stiffness) == 6  # the eleventh and twelfth are one pair
    assert motions.stiffness[4] == pytest.approx(motions.stiffness[5])
    c, s = np.cos(0.7), np.sin(0.7)
    mixed = motions.displacement.copy()
    mixed[4:] = np.einsum("ij,jnk->ink", [[c, s], [-s, c]], mixed[4:])
    one, other = (
        draw_conformer(m, rmsd=4.0, rng=np.random.default_rng(1)).source.position
        for m in (motions, replace(motions, displacement=mixed))
    )
    np.testing.assert_allclose(one, other, atol=1e-3)


def test_a_loose_tail_does_not_take_it_all(rng):
    tail = zigzag(np.arange(44, 120, 3.6))
    nodes = np.concatenate([globule(rng, 200), tail])
    motions = find_motions(beads(nodes))
    for _ in range(5):
        moved = draw_conformer(motions, rmsd=3.0, rng=rng).source.position
        assert np.linalg.norm(moved - nodes, axis=1).max() < 6 * 3.0
        steps = np.linalg.norm(np.diff(moved[200:], axis=0), axis=1)
        expected = np.linalg.norm(np.diff(nodes[200:], axis=0), axis=1)
        np.testing.assert_allclose(steps, expected, atol=0.5)


def test_pieces_far_apart_are_one_network(rng):
    ball = globule(rng, 60)
    motions = find_motions(beads(np.concatenate([ball, ball + 200, ball[:9] - 150])))
    assert motions.stiffness[0] > 1e-6


def test_atoms_at_one_place_do_no_harm(rng):
    ball = globule(rng, 60)
    twice = beads(np.concatenate([ball, ball[:1]]))
    moved = draw_conformer(find_motions(twice), rmsd=2.0, rng=rng).source.position
    assert least_rmsd(moved, twice.position) == pytest.approx(2.0, rel=0.02)
    assert np.linalg.norm(moved[-1] - moved[0]) < 0.5


def test_coarse_modes_are_the_modes(monkeypatch):
    structure = make_complex(3, mass_kda=150)
    full = find_motions(structure)
    monkeypatch.setattr(flexibility, "_MOST_NODES", len(full.nodes) // 4)
    coarse = find_motions(structure)
    assert coarse.displacement[0].shape == full.displacement[0].shape
    a, b = (np.linalg.qr(m.displacement.reshape(14, -1).T)[0] for m in (full, coarse))
    overlap = np.linalg.svd(a[:, :5].T @ b)[1]
    assert np.sqrt(np.mean(overlap**2)) > 0.9
    conformer = draw_conformer(coarse, rmsd=3.0, rng=np.random.default_rng(0))
    moved = conformer.source.position[structure.is_node]
    assert least_rmsd(moved, full.nodes) == pytest.approx(3.0, rel=0.02)


def test_atoms_without_nodes_make_their_own(rng):
    structure = replace(make_complex(5, mass_kda=60), is_node=None)
    conformer = draw_conformer(find_motions(structure), rmsd=3.0, rng=rng)
    assert least_rmsd(conformer.source.position, structure.position) == pytest.approx(3.0, rel=0.1)


def test_a_few_residues():
    helix = [[2.3 * np.cos(1.75 * i), 2.3 * np.sin(1.75 * i), 1.5 * i] for i in range(5)]
    motions = find_motions(beads(helix))
    assert len(motions.stiffness) == 9  # all that five nodes have
    with pytest.raises(ValueError, match=r"beads has 3 residues.*set conformers = 0"):
        find_motions(beads(helix[:3]))


def test_what_would_tear_a_molecule_apart_is_refused(rng):
    motions = find_motions(beads(globule(rng, 30, size=(12.0, 12.0, 12.0))))
    with pytest.raises(
        ValueError, match=r"20 Å would tear beads apart; ask for at most [45]\.\d Å"
    ):
        draw_conformer(motions, rmsd=20.0, rng=rng)


def blobs(position, *, shape=(44, 46, 50), spacing=6.0, sigma=9.0):
    grid = Volume(data=np.zeros(shape, np.float32), voxel_spacing=spacing, origin=[-30, 5, 70])
    places = grid.to_position(np.indices(shape).reshape(3, -1).T)
    total = np.zeros(len(places))
    for center in position:
        total += np.exp(-((places - center) ** 2).sum(axis=1) / (2 * sigma**2))
    return grid.with_data(total.reshape(shape).astype(np.float32))


def test_a_map_moves_as_its_nodes_do(rng):
    centers = np.array([[60, 80, 150], [100, 120, 190], [150, 150, 220], [190, 190, 250]]) * 1.0
    volume = blobs(centers)
    motions = find_motions(volume)
    middle = motions.nodes.mean(axis=0)
    turn = Rotation.from_rotvec([0.06, -0.04, 0.08])
    shift = turn.apply(motions.nodes - middle) - (motions.nodes - middle) + [4.0, -3.0, 5.0]
    moved = flexibility._follow(motions, shift)
    expected = blobs(turn.apply(centers - middle) + middle + [4.0, -3.0, 5.0])
    assert moved.voxel_spacing == volume.voxel_spacing
    np.testing.assert_array_equal(moved.origin, volume.origin)
    error = np.sqrt(np.mean((moved.data - expected.data) ** 2))
    unmoved = np.sqrt(np.mean((volume.data - expected.data) ** 2))
    assert error < 0.03 * unmoved


def test_a_map_is_flexible_like_its_structure(rng):
    structure = make_complex(3, mass_kda=300)
    volume = make_potential(structure, voxel_spacing=7.0)
    specks = volume.data.copy()
    specks[1, 2, 3] = volume.data.max()
    motions = find_motions(volume.with_data(specks))
    atoms = np.linalg.norm(motions.nodes[:, None] - structure.position[::30], axis=2)
    assert atoms.min(axis=1).max() < 20  # none on the speck
    for _ in range(3):
        conformer = draw_conformer(motions, rmsd=5.0, rng=rng)
        assert conformer.rmsd == pytest.approx(5.0, rel=0.02)
        data = conformer.source.data
        assert data.shape == volume.shape
        assert data.sum() == pytest.approx(volume.data.sum(), rel=0.05)
        likeness = np.corrcoef(data.ravel(), volume.data.ravel())[0, 1]
        assert 0.7 < likeness < 0.98
        _, n_parts = ndimage.label(data > 1.3, np.ones((3, 3, 3)))
        assert n_parts <= 2  # the speck is the second


@pytest.mark.parametrize("name", ["maps/5mrc_10A.mrc", "structures/train/7kdv.pdb.gz"])
def test_large_real_molecules(shared, rng, name):
    source = read_structure(shared / name)
    start = time.perf_counter()
    motions = find_motions(source)
    conformer = draw_conformer(motions, rmsd=4.0, rng=rng)
    assert time.perf_counter() - start < 60
    assert conformer.rmsd == pytest.approx(4.0, rel=0.02)
    if isinstance(source, Structure):
        before, after = (s.position[source.is_node] for s in (source, conformer.source))
        bonds = [np.linalg.norm(np.diff(x, axis=0), axis=1) for x in (before, after)]
        chained = bonds[0] < 4
        assert chained.sum() > 6000
        assert np.abs(bonds[1] - bonds[0])[chained].max() < 0.5
