"""Recipes as TOML."""

from __future__ import annotations

import dataclasses
import tomllib
from dataclasses import replace

import numpy as np
import pytest
import tomli_w

from tomoloc.simulate.recipe import (
    Recipe,
    read_recipe,
    recipe_from_mapping,
    recipe_to_mapping,
    shipped_recipes,
)
from tomoloc.simulate.settings import (
    BuiltIn,
    Choice,
    Filaments,
    Membranes,
    Microscope,
    Part,
    Range,
    Species,
    Specimen,
)

TOML = """
name = "mine"
description = "a test"

[specimen]
shape = [40, 56, 64]
voxel_spacing = 12.5
thickness = [300, 400]

[microscope]
tilt_min = [-60, -40]
tilt_max = 54
tilt_step = 3
defocus_um = [2.0, 5.0]

[[species]]
structure = "builtin:7"
count = [3, 9]

[[species]]
label = "spot"
structure = { seed = [0, 50], mass_kda = [100, 200], symmetry = "C2" }
count = 4

[[species]]
structure = "maps/ribo.some.mrc"
mass_kda = 3000
count = 1
"""


@pytest.fixture
def recipe(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text(TOML)
    return read_recipe(path)


def edited(old, new):
    assert old in TOML
    return tomllib.loads(TOML.replace(old, new))


def test_reads_every_kind_of_value(recipe, tmp_path):
    assert recipe.specimen == Specimen(
        shape=(40, 56, 64), voxel_spacing=12.5, thickness=Range(300, 400)
    )
    assert recipe.microscope.tilt_min == Range(-60, -40)
    assert recipe.microscope.dose_e_per_a2 == Microscope().dose_e_per_a2
    first, second, third = recipe.species
    assert first == Species(structure=BuiltIn(seed=7), count=Range(3, 9))
    assert first.name == "complex-7"
    assert second.structure.mass_kda == Range(100, 200)
    assert third.name == "ribo"
    assert third.structure == str(tmp_path.resolve() / "maps" / "ribo.some.mrc")


def test_toml_round_trip(recipe):
    text = tomli_w.dumps(recipe_to_mapping(recipe))
    assert recipe_from_mapping(tomllib.loads(text)) == recipe
    resolved = recipe.resolve(5, name="mine_005")
    text = tomli_w.dumps(recipe_to_mapping(resolved))
    assert recipe_from_mapping(tomllib.loads(text)) == resolved


def test_resolving_draws_every_range(recipe):
    drawn = [recipe.resolve(seed) for seed in range(200)]
    assert recipe.resolve(3) == drawn[3]
    counts = [r.species[0].count for r in drawn]
    assert set(counts) == set(range(3, 10))
    assert all(isinstance(count, int) for count in counts)
    defocus = np.array([r.microscope.defocus_um for r in drawn])
    assert defocus.min() >= 2
    assert defocus.max() <= 5
    assert defocus.std() == pytest.approx(3 / np.sqrt(12), rel=0.15)
    assert all(r.seed == seed for seed, r in enumerate(drawn))
    assert drawn[0].resolve(0) == drawn[0]


def test_tilt_angles(recipe):
    microscope = dataclasses.replace(recipe.microscope, tilt_min=-48.5, tilt_max=50, tilt_step=3)
    angles = microscope.tilt_angles
    assert angles[0] == -48.5
    assert angles[-1] == pytest.approx(47.5)
    np.testing.assert_allclose(np.diff(angles), 3)
    assert len(Microscope().tilt_angles) == 41


def test_shipped_recipes_are_valid():
    recipes = shipped_recipes()
    assert {"demo", "single-particle", "crowded"} <= set(recipes)
    for name, recipe in recipes.items():
        assert recipe.name == name
        assert recipe.description
        assert read_recipe(name) == recipe
        assert recipe_from_mapping(recipe_to_mapping(recipe)) == recipe
        assert recipe.seed is None


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("defocus_um", "defocus", r"mine \[microscope\]: unknown key 'defocus' \(did you mean 'de"),
        ("thickness", "thicknes", r"unknown key 'thicknes' \(did you mean 'thickness'\?\)"),
        ("symmetry", "symetry", r"species\]\] 2 structure: unknown key 'symetry'"),
        ("description", "descripton", "did you mean 'description'"),
        ("[[species]]\nlabel", "[[specis]]\nlabel", "did you mean 'species'"),
        ("[2.0, 5.0]", "[5.0, 2.0]", r"defocus_um: a range needs \[low, high\]; got \[5.0, 2.0\]"),
        ("[2.0, 5.0]", "[1, 2, 3]", r"defocus_um must be a number, \[low, high\] or \{ one_of"),
        ("[2.0, 5.0]", '"high"', "defocus_um must be a number, "),
        ("count = 4", "count = -4", "count must not be negative"),
        ("count = 4\n", "", r"\[\[species\]\] 2: a species needs either count or conc"),
        ("[40, 56, 64]", "[40, 56]", "shape must be three whole numbers"),
        ("12.5", "0", "voxel_spacing must be positive"),
        ("tilt_max = 54", "tilt_max = 95", "tilt_max must be from -85 to 85"),
        ("tilt_max = 54", "tilt_max = -50", "tilt_min must not exceed tilt_max"),
        ("tilt_step = 3", "tilt_step = { one_of = [3, 0] }", "tilt_step must be positive"),
        ("tilt_step = 3", 'scheme = "spiral"', "scheme must be one of dose-symmetric, bidir"),
        ("tilt_step = 3", "scheme = 3", "scheme must be a word or"),
        ("tilt_step = 3", "tilt_step = { one_of = [] }", "one_of needs at least one value"),
        ("tilt_step = 3", "tilt_step = { oneof = [1] }", "tilt_step must be a number"),
        ("[microscope]", "[gold]\ncolour = 1\n[microscope]", r"mine \[gold\]: unknown key"),
        ("[microscope]", "gold = 3\n[microscope]", r"unknown key 'gold'"),
        ("[[species]]", "[[membranes]]\nshape = 'cube'\n[[species]]", r"membranes\]\] 1: shape"),
        ("[[species]]", "[[filaments]]\nkind = 'helix'\n[[species]]", "a helix needs structure"),
        ("count = 4", "count = 4\nmembrane = 'er'", "lives at membrane 'er', but .* none"),
        ("count = 4", "count = 4\nparts = [{ label = 'x' }]", "part x needs either chains or"),
        (
            "[microscope]",
            "[reconstruction]\nctf_correction = 'flip-3d'\n[microscope]\ndefocus_gradient = false",
            "'flip-3d' needs defocus_gradient",
        ),
        ("[microscope]", "[reconstruction]\nbinning = 3\n[microscope]", "binning 3 must divide"),
        ("[microscope]", "[microscope]\nvoltage_kv = 300000", "voltage_kv must be from 20 to"),
        ("[[species]]", "[[membranes]]\ndiameter = 900\n[[species]]", "would not show in 800 Å"),
        ("[microscope]", "[microscope]\ndetector = 'K9'", "detector must be one of ideal, K2"),
        ("count = 4", "count = 4\nparts = 3", "must be a list of tables"),
        ("count = 4", "count = 4\nrole = 'bait'", "role must be one of target, distractor"),
        ("builtin:7", "builtin:x", "builtin:SEED; got 'builtin:x'"),
        ('name = "mine"', "", "name is missing"),
        ('name = "mine"', 'name = "a/b"', "name must be a file name"),
        ('name = "mine"', 'name = ".."', "name must be a file name"),
        ('name = "mine"', "name = 5", "name must be a word; got 5"),
        ('name = "mine"', 'name = "mine"\nseed = "x"', "seed must be a whole number; got 'x'"),
        ('name = "mine"', 'name = "mine"\nseed = -1', "seed must not be negative; got -1"),
        ("[40, 56, 64]", "40", "shape must be three whole numbers z, y, x from 8 on; got 40"),
        ("12.5", "12.5\nclearance = 5000", "clearance must be from 0 to 1000; got 5000"),
        ("12.5", "inf", "voxel_spacing must be finite; got inf"),
        ("12.5", "true", "voxel_spacing must be a number; got True"),
        ("[2.0, 5.0]", "nan", "defocus_um must be finite; got nan"),
        ("[2.0, 5.0]", "{ one_of = [1, inf] }", "defocus_um must be finite; got 1 to inf"),
        ("tilt_step = 3", "dose_e_per_a2 = nan", "dose_e_per_a2 must be finite; got nan"),
        ("tilt_step = 3", "voltage_kv = 0.3", "voltage_kv must be from 20 to 3000; got 0.3"),
        ("tilt_step = 3", "tilt_step = 1e-6", "tilt_step gives more than 2000 images; got 1e-06"),
        ("tilt_step = 3", 'energy_filter = "no"', "energy_filter must be true or false"),
        (
            "[microscope]",
            "[reconstruction]\nbinning = 2.0\n[microscope]",
            "binning must be a whole",
        ),
        ("[microscope]", "[reconstruction]\nroll_off = 0\n[microscope]", "roll_off must be posit"),
        ("[microscope]", "[gold]\nlabel = ''\n[microscope]", "label must not be empty"),
        ("[[species]]", "[[membranes]]\nthickness = 1e4\n[[species]]", "thickness must be from 10"),
        ("[[species]]", "[[membranes]]\ndiameter = 9\n[[species]]", "diameter must exceed the bil"),
        ("[[species]]", "[[filaments]]\nrise = 1e-6\n[[species]]", "rise must be from 0.5"),
        ("[[species]]", "[[filaments]]\nbundle_size = 501\n[[species]]", "bundle_size must be fr"),
        ("count = 4", "count = 4\nlocation = 'lumen'", r"'lumen', but there are no \[\[membranes"),
        ("count = 4", "count = 2.5", "count must be a whole number; got 2.5"),
        ("count = 4", "count = inf", "count must be finite; got inf"),
        ("count = 4", "count = 4\nlayer = 1.5", "layer must be a whole number; got 1.5"),
        ("count = 4", "count = 4\nmembrane = ['a']", "membrane must be a word"),
        ("count = 4", "count = 4\nparts = [{ label = 'x', chains = 'AB' }]", "a list of words"),
    ],
)
def test_mistakes_are_named(old, new, message):
    with pytest.raises(ValueError, match=message):
        recipe_from_mapping(tomllib.loads(TOML.replace(old, new, 1)))


def test_only_the_dose_may_be_infinite(recipe):
    assert replace(recipe.microscope, dose_e_per_a2=float("inf")).dose_e_per_a2 == float("inf")
    with pytest.raises(ValueError, match="defocus_um must be finite"):
        replace(recipe.microscope, defocus_um=float("-inf"))


def test_unknown_and_broken_files(tmp_path):
    with pytest.raises(
        ValueError, match=r"no recipe is called crowdd \(did you mean 'crowded'\?\)"
    ):
        read_recipe("crowdd")
    with pytest.raises(FileNotFoundError):
        read_recipe(tmp_path / "none.toml")
    (tmp_path / "binary.toml").write_bytes(bytes(range(256)))
    with pytest.raises(ValueError, match=r"binary\.toml is no text"):
        read_recipe(tmp_path / "binary.toml")
    broken = tmp_path / "broken.toml"
    broken.write_text("name = ")
    with pytest.raises(ValueError, match=r"broken\.toml is no valid TOML"):
        read_recipe(broken)
    with pytest.raises(ValueError, match=r"did you mean the file .*broken\.toml\?"):
        read_recipe(tmp_path / "broken")


def test_a_recipe_needs_no_file():
    recipe = Recipe(
        name="code",
        specimen=Specimen(shape=(30, 40, 50)),
        species=(Species(structure="builtin:1", count=2),),
    )
    assert recipe_from_mapping(recipe_to_mapping(recipe)) == recipe


FULL = """
name = "full"

[specimen]
shape = [40, 56, 64]
packing = { one_of = ["random", "tetris"] }

[microscope]
dose_e_per_a2 = { one_of = [75, [100, 150]] }
detector = { one_of = ["K2", "Falcon4"] }

[gold]
count = [2, 5]

[[membranes]]
label = "er"
diameter = 300
shape = { one_of = ["sphere", "tube"] }

[[filaments]]
kind = "cofilactin"
parts = [{ label = "cofilin", chains = ["B"] }]

[[species]]
structure = { seed = [100, 199], mass_kda = [50, 500] }
choose = 5
label = "noise"
role = "distractor"
concentration_um = 20

[[species]]
structure = ["some", "builtin:3"]
choose = [1, 2]
count = 4
location = "membrane"
membrane = "er"
conformers = 3
rmsd = [1, 4]
"""


@pytest.fixture
def full(tmp_path):
    (tmp_path / "some").mkdir()
    for name in ("b.pdb", "a.cif.gz", "readme.txt"):
        (tmp_path / "some" / name).touch()
    (tmp_path / "full.toml").write_text(FULL)
    return read_recipe(tmp_path / "full.toml")


def test_every_table_makes_the_round_trip(full):
    assert full.gold.count == Range(2, 5)
    assert full.membranes == (
        Membranes(label="er", diameter=300, shape=Choice(("sphere", "tube"))),
    )
    assert full.filaments == (
        Filaments(kind="cofilactin", parts=(Part(label="cofilin", chains=("B",)),)),
    )
    for recipe in (full, full.resolve(3)):
        text = tomli_w.dumps(recipe_to_mapping(recipe))
        assert recipe_from_mapping(tomllib.loads(text)) == recipe


def test_choices_are_drawn_evenly(full):
    drawn = [full.resolve(seed) for seed in range(300)]
    detectors = [recipe.microscope.detector for recipe in drawn]
    assert 110 < detectors.count("K2") < 190
    dose = np.array([recipe.microscope.dose_e_per_a2 for recipe in drawn])
    assert 110 < (dose == 75).sum() < 190
    assert 100 <= dose[dose != 75].min() < 110
    assert 140 < dose.max() <= 150
    assert {recipe.specimen.packing for recipe in drawn} == {"random", "tetris"}


def test_several_structures_become_several_species(full, tmp_path):
    for seed in range(30):
        species = full.resolve(seed).species
        distractors = [item for item in species if item.role == "distractor"]
        assert len({item.structure.seed for item in distractors}) == 5
        assert len({item.structure.mass_kda for item in distractors}) == 5
        assert {item.label for item in distractors} == {"noise"}
        others = species[5:]
        assert {item.name for item in others} < {"a", "b", "complex-3"}
        assert all(item.choose is None and item.conformers == 3 for item in others)
        assert str(others[0].structure).startswith((str(tmp_path), "BuiltIn"))
    assert {len(full.resolve(seed).species) for seed in range(30)} == {6, 7}


def test_too_few_structures_are_named(full, tmp_path):
    few = dataclasses.replace(full.species[1], choose=4)
    with pytest.raises(ValueError, match="choose = 4, but there are only 3"):
        dataclasses.replace(full, species=(few,)).resolve(0)
    empty = dataclasses.replace(few, structure=str(tmp_path))
    with pytest.raises(ValueError, match="holds no structures"):
        dataclasses.replace(full, species=(empty,)).resolve(0)
