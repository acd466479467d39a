"""The recipe of the shipped model, without simulating its scenes."""

import sys
import tomllib
from dataclasses import replace
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import numpy as np
import pytest
from cheap import make_sample

from tomoloc.simulate.recipe import read_recipe
from tomoloc.simulate.settings import BuiltIn
from tomoloc.train.loop import make_encoder, read_settings

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def general():
    spec = spec_from_file_location("general", ROOT / "training" / "general.py")
    module = module_from_spec(spec)
    sys.modules["general"] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules["general"]


@pytest.fixture
def groups(general):
    groups = general.Groups(seed=3, files=tuple(f"/structures/{i}.pdb.gz" for i in range(40)))
    groups.masses = {file: 50.0 + 10 * i for i, file in enumerate(groups.files)}
    return groups


def identity(species):
    structure = species.structure
    return (structure.seed, structure.mass_kda) if isinstance(structure, BuiltIn) else structure


def test_a_group_shares_its_species(general, groups, rng):
    pool = groups.draw_pool(np.random.default_rng([3, 0]))
    assert len({identity(one) for one in pool}) == len({one.label for one in pool}) == general.POOL
    assert sum(isinstance(one.structure, str) for one in pool) == general.POOL // 2
    by_label = {one.label: identity(one) for one in pool}
    for scene in general.PLAN:
        recipe = read_recipe(general.FOLDER / "scenes" / f"{scene}.toml")
        filled = general.fill(recipe, pool, rng).resolve(5)
        wanted = sum(place.choose for place in recipe.species)
        assert len(filled.species) == min(wanted, general.POOL)
        assert len({one.label for one in filled.species}) == len(filled.species)
        for one in filled.species:
            assert by_label[one.label] == identity(one)
        assert {one.location for one in filled.species} == {p.location for p in recipe.species}


def test_structures_that_cannot_be_simulated_are_left_out(general, tmp_path, caplog):
    def write(name, element, far):
        line = "ATOM  {:5d}  X   ALA A{:4d}    {:8.3f}{:8.3f}{:8.3f}  1.00  0.00          {:>2}\n"
        (tmp_path / name).write_text(
            line.format(1, 1, 0.0, 0.0, 0.0, "C") + line.format(2, 2, far, 0.0, 0.0, element)
        )
        return str(tmp_path / name)

    files = (
        write("good.pdb", "N", 5.0),
        write("odd.pdb", "OG", 5.0),
        write("long.pdb", "C", 600.0),
    )
    (tmp_path / "bad.cif").write_text("nonsense")
    groups = general.Groups(seed=3, files=(*files, str(tmp_path / "bad.cif")), share=1.0)
    pool = groups.draw_pool(np.random.default_rng(1))
    assert len(pool) == general.POOL
    assert [one.structure for one in pool if isinstance(one.structure, str)] == [files[0]]
    assert "an element of number 118" in caplog.text
    assert "its diameter is 600 Å" in caplog.text


def test_hard_groups_have_few_masses(general, groups):
    hard = replace(groups, hard=1.0)
    hard.masses = groups.masses
    for number in range(20):
        pool = hard.draw_pool(np.random.default_rng([3, number]))
        assert len(pool) == general.POOL
        masses = np.sort(
            [
                s.structure.mass_kda if isinstance(s.structure, BuiltIn) else hard.mass(s.structure)
                for s in pool
            ]
        )
        # Families begin where a mass is not within reach of its family's first.
        families, first = 0, 0.0
        for mass in masses.tolist():
            if mass > 1.001 * general.ALIKE * first:
                families, first = families + 1, mass
        assert 1 <= families <= 3
        assert masses.max() < general.ALIKE * general.MASSES[1] + 1


def test_groups_differ_and_come_again(groups):
    pools = [groups.draw_pool(np.random.default_rng([3, n])) for n in (0, 0, 1)]
    assert pools[0] == pools[1]
    seeds = [{identity(s) for s in pool if isinstance(s.structure, BuiltIn)} for pool in pools]
    assert seeds[0].isdisjoint(seeds[2])


def test_validation_has_complexes_of_its_own(general, groups):
    held_out = replace(groups, files=(), first_complex=general.NEVER_TRAINED_ON)
    pool = held_out.draw_pool(np.random.default_rng(1))
    assert all(one.structure.seed >= general.NEVER_TRAINED_ON for one in pool)


def test_a_stream_can_start_anywhere(general):
    class Fake:
        plan = ("a", "b", "c")

        def __call__(self, number):
            return [make_sample(3 * number + i) for i in range(3)]

    for start in (0, 4, 5):
        stream = general.Endless(Fake(), 0)(start)
        names = [next(stream).tomogram.name for _ in range(4)]
        assert names == [f"cheap-{start + i}" for i in range(4)]


@pytest.mark.parametrize("name", ["cpu", "gpu"])
def test_recipes_can_be_read(general, name):
    content = tomllib.loads((general.FOLDER / f"{name}.toml").read_text())
    settings = read_settings(content["training"])
    assert settings.samples_at(settings.steps) > 1000
    network = make_encoder(seed=0, **content["network"])
    assert 2 * sum(p.numel() for p in network.parameters()) < 12e6  # release.py rounds to 16 bits


def test_a_folder_without_structures_is_an_error(general, tmp_path):
    (tmp_path / "notes.txt").touch()
    with pytest.raises(ValueError, match="holds no structures"):
        general.list_structures(tmp_path)
    assert general.list_structures(None) == ()
