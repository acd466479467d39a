"""From species to references: files, built-in complexes, parts, variants."""

from __future__ import annotations

import os

import mrcfile
import numpy as np
import pytest

from tomoloc.io.tomograms import write_volume
from tomoloc.physics.potential import make_potential, molecular_mass_kda
from tomoloc.simulate.molecules import load_structure, make_references
from tomoloc.simulate.settings import BuiltIn, Part, Range, Species
from tomoloc.simulate.structures import make_complex
from tomoloc.types import Structure, Volume

SPACING = 10.0
MASS = molecular_mass_kda(make_complex(5))


def species(structure, **options):
    return Species(structure=structure, **{"count": 1, **options})


def write_pdb(path, structure, *, chain=None):
    """Lay out one CA for each atom after the wwPDB's format 3.3."""
    chains = structure.chain if chain is None else [chain] * len(structure.position)
    lines = [
        f"ATOM  {i % 99999:5d}  CA  ALA {c}{i % 9999:4d}    "
        f"{x:8.3f}{y:8.3f}{z:8.3f}{1.0:6.2f}{20.0:6.2f}           C"
        for i, ((x, y, z), c) in enumerate(zip(structure.position, chains, strict=True), start=1)
    ]
    path.write_text("\n".join([*lines, "END", ""]))
    return str(path)


def ball(center, chain, *, n=400, seed=0):
    rng = np.random.default_rng(seed)
    offset = rng.normal(size=(n, 3))
    offset *= 25 * rng.uniform(0, 1, (n, 1)) ** (1 / 3) / np.linalg.norm(offset, axis=1)[:, None]
    return Structure(
        position=offset + center,
        atomic_number=np.full(n, 6),
        chain=np.full(n, chain),
    )


def test_built_in_complexes():
    made = load_structure(species("builtin:7"))
    np.testing.assert_array_equal(made.position, make_complex(7).position)
    chosen = BuiltIn(seed=3, mass_kda=150.0, symmetry="C3")
    made = load_structure(species(chosen))
    np.testing.assert_array_equal(
        made.position, make_complex(3, mass_kda=150, symmetry="C3").position
    )


@pytest.mark.parametrize(
    "structure",
    [("a.pdb", "b.pdb"), BuiltIn(seed=Range(0, 9)), BuiltIn(seed=1, mass_kda=Range(50, 90))],
)
def test_only_resolved_species_are_loaded(structure):
    with pytest.raises(ValueError, match="resolve"):
        load_structure(species(structure))


def test_a_species_as_it_is(tmp_path, rng):
    state = rng.bit_generator.state
    (reference,) = make_references(species("builtin:5"), voxel_spacing=SPACING, rng=rng)
    assert rng.bit_generator.state == state
    assert reference.rmsd == 0
    assert reference.parts is None
    volume = make_potential(make_complex(5), voxel_spacing=7.0)
    path = tmp_path / "map.mrc"
    write_volume(volume, path)
    assert isinstance(load_structure(species(str(path))), Volume)
    heavy, light = (
        make_references(species(str(path), mass_kda=mass), voxel_spacing=SPACING, rng=rng)[0]
        for mass in (2 * MASS, MASS)
    )
    assert heavy.potential.data.sum() == pytest.approx(2 * light.potential.data.sum(), rel=0.02)
    assert heavy.potential.name == "map"
    with pytest.raises(ValueError, match="nowhere as dense as protein"):
        make_references(species(str(path), mass_kda=MASS / 10), voxel_spacing=SPACING, rng=rng)


def test_variants_are_as_many_as_asked_and_a_seed_gives_them_again():
    asked = species("builtin:5", count=None, concentration_um=1.0, conformers=3, rmsd=4.0)
    variants, again = (
        make_references(asked, voxel_spacing=SPACING, rng=np.random.default_rng(4))
        for _ in range(2)
    )
    assert len(variants) == 3
    assert [v.rmsd for v in variants] == pytest.approx([4, 4, 4], rel=0.02)
    for one, same in zip(variants, again, strict=True):
        assert one.potential.data.tobytes() == same.potential.data.tobytes()
    assert variants[0].potential.data.tobytes() != variants[1].potential.data.tobytes()


def test_a_file_that_changed_is_read_again(tmp_path):
    path = tmp_path / "one.pdb"
    asked = species(str(path), conformers=1, rmsd=1.0)
    sizes = []
    for step, n in enumerate((300, 600)):
        write_pdb(path, ball([0, 0, 0], "A", n=n))
        os.utime(path, (step, step))
        (variant,) = make_references(asked, voxel_spacing=SPACING, rng=np.random.default_rng(0))
        sizes.append(variant.potential.data.sum())
    assert sizes[1] > 1.5 * sizes[0]


def test_parts_by_chains_and_files(tmp_path, rng):
    both = Structure(
        position=np.concatenate([ball([-40, 0, 5], "A").position, ball([20, 30, 5], "B").position]),
        atomic_number=np.full(800, 6),
        chain=np.repeat(["A", "B"], 400),
    )
    complex_file = write_pdb(tmp_path / "both.pdb", both)
    part_file = write_pdb(tmp_path / "third.pdb", ball([20, -30, 5], "B"))
    parts = (
        Part(label="left", chains=("A",)),
        Part(label="third", structure=part_file),
    )
    asked = species(complex_file, parts=parts)
    structure = load_structure(asked)
    assert structure.name == "both"
    assert len(structure.position) == 1200
    assert set(structure.chain) == {"A", "B", "third:B"}
    assert structure.is_node.all()
    for conformers in (0, 2):
        chosen = Species(
            structure=complex_file, count=1, parts=parts, conformers=conformers, rmsd=1.0
        )
        for reference in make_references(chosen, voxel_spacing=SPACING, rng=rng):
            np.testing.assert_allclose(reference.center, [0, 0, 5], atol=3)
            assert not reference.parts[~reference.envelope].any()
            assert set(np.unique(reference.parts[reference.envelope])) == {0, 1, 2}
            for number, middle in ((1, [-40, 0, 5]), (2, [20, -30, 5])):
                found = reference.potential.to_position(np.argwhere(reference.parts == number))
                np.testing.assert_allclose(
                    found.mean(axis=0) + reference.center, middle, atol=5 + conformers
                )


def test_parts_that_cannot_be(tmp_path, rng):
    file = write_pdb(tmp_path / "two.pdb", ball([0, 0, 0], "A"))
    volume = make_potential(make_complex(5), voxel_spacing=7.0)
    write_volume(volume, tmp_path / "map.mrc")
    unknown = species(file, parts=(Part(label="arm", chains=("X",)),))
    with pytest.raises(ValueError, match=r"part arm: two has no chain 'X'; it has A$"):
        make_references(unknown, voxel_spacing=SPACING, rng=rng)
    for structure, part in (
        (str(tmp_path / "map.mrc"), Part(label="arm", structure=file)),
        (file, Part(label="arm", structure=str(tmp_path / "map.mrc"))),
    ):
        with pytest.raises(ValueError, match=r"part arm: .* must both be atomic structures"):
            load_structure(species(structure, parts=(part,)))
    of_map = species(str(tmp_path / "map.mrc"), parts=(Part(label="arm", chains=("A",)),))
    with pytest.raises(ValueError, match="map has no chains; parts need an atomic structure"):
        make_references(of_map, voxel_spacing=SPACING, rng=rng)


def test_a_map_without_a_voxel_size(tmp_path):
    volume = make_potential(make_complex(5), voxel_spacing=7.0)
    write_volume(volume, tmp_path / "map.mrc")
    with mrcfile.open(tmp_path / "map.mrc", "r+") as file:
        file.voxel_size = 0
    with pytest.raises(ValueError, match="map_spacing in a recipe"):
        load_structure(species(str(tmp_path / "map.mrc")))
    asked = Species(structure=str(tmp_path / "map.mrc"), count=1, map_spacing=7.0)
    assert load_structure(asked).voxel_spacing == 7.0
