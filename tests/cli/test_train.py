import csv
import shutil
import tomllib

import pytest

from tomoloc.cli.main import main
from tomoloc.nn.stored import load_model
from tomoloc.train import loop, similarity
from tomoloc.train.patches import Patching

RECIPE = """
name = "tiny"
[specimen]
shape = [24, 40, 48]
border = "cut"
[microscope]
tilt_step = 20
[[species]]
structure = "builtin:6"
label = "dimer"
count = 3
[[species]]
structure = { seed = [1, 99], mass_kda = [60, 200] }
label = "crowd"
role = "distractor"
choose = 2
count = 2
"""


@pytest.fixture
def recipe(tmp_path):
    path = tmp_path / "tiny.toml"
    path.write_text(RECIPE)
    return path


@pytest.fixture
def samples(tmp_path, recipe):
    folder = tmp_path / "samples"
    assert main(["simulate", str(recipe), "-n", "4", "-o", str(folder)]) == 0
    return folder


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """Small networks and patches, and validation after two steps."""

    class Small(loop.TrainSettings):
        def __init__(self, **given):
            patching = Patching(number=2, shape=(16, 24, 24))
            super().__init__(**{**given, "patching": patching, "validate_every": 2, "first": 2})

    def make(**given):
        return make_encoder(**given, widths=(8, 12), down=(1, 1), up=(1,), channels=8)

    make_encoder = loop.make_encoder
    monkeypatch.setattr(loop, "TrainSettings", Small)
    monkeypatch.setattr(loop, "make_encoder", make)


def run(*words, code=0):
    assert main(["train", "embedding", *map(str, words)]) == code


def rows(path):
    with path.open() as file:
        return list(csv.DictReader(file))


def test_a_model_is_trained_from_folders(samples, tmp_path, capsys):
    model = tmp_path / "models" / "mine"
    run("--data", samples, "-o", model, "--steps", 3)
    assert capsys.readouterr().out.splitlines()[-1] == str(model)
    stored = load_model(model)
    assert stored.voxel_spacing == 10
    training = stored.config["training"]
    assert training["steps"] in {2, 3}
    assert training["data"] == [str(samples)]
    assert "held-out" in stored.card
    own = tmp_path / "models" / "mine.training"
    assert len(rows(own / "steps.csv")) == 3
    assert [row["step"] for row in rows(own / "validation.csv")] == ["2", "3"]


def test_the_same_command_goes_on_and_longer_ones_prolong(samples, tmp_path):
    model = tmp_path / "mine"
    for steps in (2, 2, 5):
        run("--data", samples, "-o", model, "--steps", steps)
        steps_done = [row["step"] for row in rows(tmp_path / "mine.training" / "steps.csv")]
        assert steps_done == [str(i) for i in range(steps)]


def test_recipes_give_samples_whose_structures_are_told_apart(recipe, tmp_path, monkeypatch):
    seen = []
    prepare = similarity.prepare

    def spy(sample, **given):
        seen.append(sample)
        return prepare(sample, **given)

    monkeypatch.setattr(similarity, "prepare", spy)
    run("--data", recipe, "-o", tmp_path / "mine", "--steps", 2, "--jobs", 0)
    names = [set(sample.particles.labels) for sample in seen]
    assert all("dimer" in labels for labels in names)
    crowd = [labels - {"dimer"} for labels in names]
    assert len(set.union(*crowd)) > 4
    assert all(label.startswith("complex-") for labels in crowd for label in labels)


def test_folders_and_recipes_take_turns(samples, recipe):
    from tomoloc.cli.sources import read_data

    found = read_data([str(samples), str(recipe)], None, seed=3, jobs=0)
    mixture, held_out = found.source, found.held_out
    assert len(held_out) == 2 + 3
    names = [next(mixture(start)).tomogram.name for start in range(4)]
    stream = mixture(0)
    assert [next(stream).tomogram.name for _ in range(4)] == names
    held = {sample.tomogram.name for sample in held_out[:2]}
    assert {names[0], names[2]}.isdisjoint(held)


def test_training_starts_from_a_model(samples, tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    run("--data", samples, "-o", first, "--steps", 2, "--voxel-spacing", 12)
    run("--data", samples, "-o", second, "--from", first, "--steps", 2, "--learning-rate", 1e-9)
    before, after = (load_model(folder) for folder in (first, second))
    assert after.voxel_spacing == 12
    for old, new in zip(before.network.parameters(), after.network.parameters(), strict=True):
        assert (old - new).abs().max() < 1e-6
    assert str(first) in after.card


def complaint(capsys):
    (line,) = capsys.readouterr().err.strip().splitlines()[-1:]
    return line


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--data", "nonsense"], "no recipe is called nonsense"),
        (["--data", "."], "--data: . holds no sample"),
        (["--data", "demo", "--validation", "."], "--validation: . holds no sample"),
        (["--data", "demo", "--jobs", "-1"], "must not be negative"),
        (["--data", "demo", "--steps", "0"], "steps must be at least 1"),
        (["--data", "demo", "--from", "nowhere"], "nowhere"),
        ([], "--data"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_wrong_use_is_one_line(words, said, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run(*words, "-o", "mine", code=2)
    assert said in complaint(capsys)
    assert list(tmp_path.iterdir()) == []


def test_one_sample_alone_leaves_none_to_hold_out(samples, tmp_path, capsys):
    run("--data", samples / "tiny_000", "-o", tmp_path / "mine", code=2)
    assert "give another one as --validation" in complaint(capsys)
    run("--data", samples / "tiny_000", "--validation", samples / "tiny_001",
        "-o", tmp_path / "mine", "--steps", 2)  # fmt: skip


def test_what_was_trained_otherwise_is_kept(samples, tmp_path, capsys):
    model = tmp_path / "mine"
    run("--data", samples, "-o", model, "--steps", 2)
    run("--data", samples, "-o", model, "--steps", 2, "--seed", 5, code=2)
    assert "trained otherwise (seed 0, now 5)" in complaint(capsys)
    run("--data", samples, "-o", model, "--steps", 2, "--seed", 5, "--overwrite")
    record = tomllib.loads((tmp_path / "mine.training" / "record.toml").read_text())
    assert record["seed"] == 5
    shutil.rmtree(tmp_path / "mine.training")
    run("--data", samples, "-o", model, code=2)
    assert "exists; choose another folder" in complaint(capsys)


def test_other_folders_are_not_overwritten(samples, tmp_path, capsys):
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "thesis.tex").touch()
    run("--data", samples, "-o", precious, "--overwrite", code=2)
    assert "is no model" in complaint(capsys)
    assert (precious / "thesis.tex").is_file()


def test_a_model_for_other_voxels_is_refused(samples, tmp_path, capsys):
    run("--data", samples, "-o", tmp_path / "first", "--steps", 2)
    run("--data", samples, "-o", tmp_path / "second", "--from", tmp_path / "first",
        "--voxel-spacing", 8, code=2)  # fmt: skip
    assert "voxels of 10 Å" in complaint(capsys)
