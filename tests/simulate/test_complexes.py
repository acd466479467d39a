"""Built-in complexes."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from tomoloc.physics.potential import PROTEIN_CONTRAST, make_potential, molecular_mass_kda
from tomoloc.physics.rotations import symmetry_group
from tomoloc.simulate.structures import SYMMETRIES, make_complex

GROUPS = [f"C{n}" for n in range(1, 9)] + [f"D{n}" for n in range(2, 8)] + ["T", "O"]


def test_all_promised_groups_are_drawn():
    assert sorted(SYMMETRIES) == sorted(GROUPS)
    assert sum(SYMMETRIES.values()) == pytest.approx(1)


@pytest.mark.parametrize("symmetry", GROUPS)
def test_complex_is_symmetric_connected_and_of_the_mass_asked(symmetry):
    structure = make_complex(3, mass_kda=600, symmetry=symmetry)
    assert structure.symmetry == symmetry
    assert molecular_mass_kda(structure) == pytest.approx(600, rel=0.05)
    np.testing.assert_allclose(structure.center, 0, atol=1e-6)
    upright = make_potential(structure, voxel_spacing=8)
    for turn in symmetry_group(symmetry)[1:4]:
        turned = make_potential(structure, voxel_spacing=8, shape=upright.shape, rotation=turn)
        np.testing.assert_allclose(turned.data, upright.data, atol=1e-3)
    _, n_parts = ndimage.label(upright.data > 0.4 * PROTEIN_CONTRAST)
    assert n_parts == 1


def test_density_is_that_of_protein():
    structure = make_complex(5, mass_kda=2000, symmetry="C1")
    volume = make_potential(structure, voxel_spacing=5, low_pass=15)
    inside = ndimage.binary_erosion(volume.data > 0.5 * PROTEIN_CONTRAST, iterations=2)
    assert volume.data[inside].mean() == pytest.approx(PROTEIN_CONTRAST, rel=0.1)


def test_same_seed_same_complex_and_other_seed_another():
    first, again, other = make_complex(11), make_complex(11), make_complex(12)
    assert first.position.tobytes() == again.position.tobytes()
    assert first.name == "complex-11"
    assert len(first.position) != len(other.position)


def test_drawn_masses_and_groups_vary():
    complexes = [make_complex(seed) for seed in range(40)]
    masses = np.array([molecular_mass_kda(c) for c in complexes])
    assert masses.min() > 35
    assert masses.max() < 3150
    assert masses.max() / masses.min() > 20
    assert len({c.symmetry for c in complexes}) > 7


@pytest.mark.parametrize("symmetry", ["C1", "D3", "O"])
def test_each_subunit_is_a_chain_and_each_residue_a_node(symmetry):
    structure = make_complex(3, mass_kda=400, symmetry=symmetry)
    group = symmetry_group(symmetry)
    chains, count = np.unique(structure.chain, return_counts=True)
    assert len(chains) == len(group)
    assert len(set(count)) == 1
    assert chains[0] == "A"
    assert structure.is_node.sum() * 3 == len(structure.position)
    first = structure.position[structure.chain == "A"]
    copies = [structure.position[structure.chain == name] for name in chains]
    for turn, copy in zip(group, copies, strict=True):
        np.testing.assert_allclose(turn.apply(first), group[0].apply(copy), atol=1e-6)


@pytest.mark.parametrize("mass", [40, 3000])
@pytest.mark.parametrize("symmetry", ["C1", "C8", "O"])
def test_the_whole_range_of_masses_works(mass, symmetry):
    structure = make_complex(1, mass_kda=mass, symmetry=symmetry)
    assert molecular_mass_kda(structure) == pytest.approx(mass, rel=0.1)


def test_shapes_differ():
    shapes = []
    for seed in range(6):
        structure = make_complex(seed, mass_kda=500, symmetry="C1")
        moments = np.linalg.eigvalsh(np.cov(structure.position.T))
        shapes.append(np.sqrt(moments / moments.sum()))
    assert np.std(shapes, axis=0).max() > 0.03


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mass_kda": 2}, "mass_kda must be from 10 to 10000; got 2"),
        ({"symmetry": "X3"}, "symmetry must be C1"),
    ],
)
def test_wrong_arguments_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        make_complex(0, **options)
