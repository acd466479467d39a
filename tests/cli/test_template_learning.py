"""`tomoloc train template-learning`: structures in, a model out."""

import pytest

from tomoloc.cli import segmentation as command
from tomoloc.cli.main import main
from tomoloc.nn.stored import load_model
from tomoloc.simulate.recipe import read_recipe
from tomoloc.train.patches import Patching

SMALL = """
name = "small"

[specimen]
shape = [24, 32, 40]
voxel_spacing = 14.0
border = "cut"

[microscope]
tilt_step = 15

[[species]]
structure = "builtin:1"
count = 3

[[species]]
structure = { seed = [10, 19], mass_kda = [50, 200] }
choose = 2
count = 1
role = "distractor"
label = "crowd"
"""


@pytest.fixture(autouse=True)
def small(monkeypatch):
    patching = Patching(number=2, shape=(16, 16, 24), margin=2)
    monkeypatch.setattr(command, "_patching", lambda *_: patching)


def run(*words, code=0):
    assert main(["train", "template-learning", *map(str, words)]) == code


def complaint(capsys):
    return capsys.readouterr().err.strip().splitlines()[-1]


def test_structures_become_a_model(tmp_path, capsys):
    (tmp_path / "small.toml").write_text(SMALL)
    model = tmp_path / "mine"
    words = ["builtin:4", "builtin:6", "--label", "mine", "--recipe", tmp_path / "small.toml"]
    words += ["--distractors", "builtin:8", "--steps", 1, "--channels", 4, 6, "--jobs", 0]
    run(*words, "-o", model)
    stored = load_model(model)
    (kind,) = stored.config["classes"]
    assert (kind["label"], kind["role"]) == ("mine", "particle")
    assert stored.voxel_spacing == 14
    recipe = read_recipe(tmp_path / "mine.recipe.toml")
    target, crowd = recipe.species
    assert (target.label, target.role, crowd.role) == ("mine", "target", "distractor")
    assert target.structure == ("builtin:4", "builtin:6")
    assert crowd.structure == ("builtin:8",)
    run("builtin:5", *words[2:], "-o", model, code=2)
    assert "is another recipe" in complaint(capsys)


def test_the_shipped_recipe_is_the_default(tmp_path, monkeypatch):
    given = {}
    monkeypatch.setattr(
        "tomoloc.cli.template_learning.segmentation", lambda **words: given.update(words)
    )
    run("builtin:4", "-o", tmp_path / "mine")
    recipe = read_recipe(given["data"][0])
    assert given["voxel_spacing"] == recipe.specimen.voxel_spacing == 13.5
    assert recipe.specimen.packing == "tetris"
    assert recipe.species[0].conformers == 8
    assert recipe.species[1].choose == 100


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "needs at least one template"),
        (["nowhere.cif"], "no structure nowhere.cif"),
        (["builtin:4", "--recipe", "nonsense"], "no recipe is called nonsense"),
        (["builtin:4", "--distractors", "nowhere"], "no structure nowhere"),
        (["builtin:4", "--recipe", "demo", "--distractors", "builtin:5"], "of the role distractor"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_wrong_use_is_one_line(words, said, tmp_path, capsys):
    run(*words, "-o", tmp_path / "mine", code=2)
    assert said in complaint(capsys)
    assert list(tmp_path.iterdir()) == []
