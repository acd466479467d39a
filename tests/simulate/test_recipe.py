"""Recipes as TOML."""

from __future__ import annotations

import dataclasses
import tomllib

import numpy as np
import pytest
import tomli_w

from tomoloc.simulate.recipe import (
    BuiltIn,
    Microscope,
    Range,
    Recipe,
    Species,
    Specimen,
    read_recipe,
    recipe_from_mapping,
    recipe_to_mapping,
    shipped_recipes,
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
    assert first == Species(structure=BuiltIn(seed=7), label="complex-7", count=Range(3, 9))
    assert second.structure.mass_kda == Range(100, 200)
    assert third.label == "ribo"
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
        ("[2.0, 5.0]", "[1, 2, 3]", r"defocus_um must be a number or \[low, high\]"),
        ("[2.0, 5.0]", '"high"', "defocus_um must be a number"),
        ("count = 4", "count = -4", "count must not be negative"),
        ("count = 4\n", "", r"\[\[species\]\] 2: count is missing"),
        ("[40, 56, 64]", "[40, 56]", "shape must be three whole numbers"),
        ("12.5", "0", "voxel_spacing must be positive"),
        ("tilt_max = 54", "tilt_max = 95", "tilt_max must be from -85 to 85"),
        ("tilt_max = 54", "tilt_max = -50", "tilt_min must not exceed tilt_max"),
        ("tilt_step = 3", "tilt_step = 0", "tilt_step must be positive"),
        ("builtin:7", "builtin:x", "builtin:SEED; got 'builtin:x'"),
        ('name = "mine"', "", "name is missing"),
        ('name = "mine"', 'name = "a/b"', "name must be a file name"),
    ],
)
def test_mistakes_are_named(old, new, message):
    with pytest.raises(ValueError, match=message):
        recipe_from_mapping(tomllib.loads(TOML.replace(old, new, 1)))


def test_unknown_and_broken_files(tmp_path):
    with pytest.raises(
        ValueError, match=r"no recipe is called crowdd \(did you mean 'crowded'\?\)"
    ):
        read_recipe("crowdd")
    with pytest.raises(FileNotFoundError):
        read_recipe(tmp_path / "none.toml")
    broken = tmp_path / "broken.toml"
    broken.write_text("name = ")
    with pytest.raises(ValueError, match=r"broken\.toml is no valid TOML"):
        read_recipe(broken)


def test_a_recipe_needs_no_file():
    recipe = Recipe(
        name="code",
        specimen=Specimen(shape=(30, 40, 50)),
        species=(Species(structure="builtin:1", count=2),),
    )
    assert recipe_from_mapping(recipe_to_mapping(recipe)) == recipe
