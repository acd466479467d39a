"""`tomoloc train centroid` and `tomoloc pick centroid`, as a user runs them."""

import shutil

import mrcfile
import numpy as np
import pytest

from tomoloc.cli import train as command
from tomoloc.cli.main import main
from tomoloc.io.samples import read_sample
from tomoloc.io.tables import read_particles
from tomoloc.nn import monai
from tomoloc.nn.stored import load_model
from tomoloc.train import loop
from tomoloc.train.patches import Patching

RECIPE = """
name = "two"

[specimen]
shape = [32, 40, 48]
border = "cut"

[microscope]
tilt_step = 12

[[species]]
structure = "builtin:8"
label = "dimer"
count = 5

[[species]]
structure = "builtin:3"
label = "ball"
count = 5

[[species]]
structure = "builtin:5"
label = "rest"
role = "distractor"
count = 4
"""


@pytest.fixture
def samples(tmp_path):
    path = tmp_path / "two.toml"
    path.write_text(RECIPE)
    assert main(["simulate", str(path), "-n", "3", "-o", str(tmp_path / "samples")]) == 0
    return tmp_path / "samples"


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """Small networks and patches."""

    def make(**given):
        return make_encoder(**given, widths=(8, 12), down=(1, 1), up=(1,), channels=8)

    make_encoder = loop.make_encoder
    monkeypatch.setattr(loop, "make_encoder", make)
    patching = Patching(number=2, shape=(16, 24, 24))
    monkeypatch.setattr(command, "_patching", lambda _: patching)


def run(*words, code=0):
    assert main(["train", "centroid", *map(str, words)]) == code


def complaint(capsys):
    return capsys.readouterr().err.strip().splitlines()[-1]


def test_kinds_and_sizes_come_from_the_data(samples, tmp_path, capsys):
    model = tmp_path / "mine"
    run("--data", samples, "--from", "none", "-o", model, "--steps", 2)
    assert capsys.readouterr().out.splitlines()[-1] == str(model)
    stored = load_model(model)
    kinds = stored.config["particles"]
    assert kinds["labels"] == ["ball", "dimer"]  # distractors are background
    assert all(40 < d < 300 for d in kinds["diameters"])
    assert "held-out" in stored.card
    assert "dimer" in stored.card
    tomogram = samples / "two_001" / "tomogram.mrc"
    picks = tmp_path / "picks"
    assert main(["pick", "centroid", str(tomogram), "-o", str(picks), "--model", str(model)]) == 0
    assert set(read_particles(picks / "tomogram.star").labels) <= {"ball", "dimer"}
    assert "thresholds" in (picks / "tomogram.run.toml").read_text()
    words = ["--model", str(model), "--match-spectrum", "--views", "4"]
    assert main(["pick", "centroid", str(tomogram), "-o", str(tmp_path / "more"), *words]) == 0
    again = tmp_path / "again"
    assert main(["pick", str(model), str(tomogram), "-o", str(again)]) == 0
    assert (again / "tomogram.star").read_bytes() == (picks / "tomogram.star").read_bytes()


def test_a_longer_training_goes_on_from_the_checkpoint(samples, tmp_path):
    model = tmp_path / "mine"
    words = ["--data", samples, "--from", "none", "-o", model, "--diameter", "100"]
    run(*words, "--steps", 1)
    run(*words, "--steps", 3)
    log = (tmp_path / "mine.training" / "steps.csv").read_text().splitlines()
    assert [row.split(",")[0] for row in log[1:]] == ["0", "1", "2"]
    pictures = sorted(path.name for path in (tmp_path / "mine.training").glob("*.png"))
    assert pictures == ["step_000001.png", "step_000003.png"]
    assert load_model(model).config["particles"]["diameters"] == [100, 100]


def test_voxels_that_suit_the_largest_kind(samples, tmp_path):
    model = tmp_path / "mine"
    words = ["--diameter", "ball=150", "dimer=300", "--voxel-spacing", "size", "--steps", 1]
    run("--data", samples, "--from", "none", "-o", model, *words)
    assert load_model(model).voxel_spacing == 15
    picks = tmp_path / "picks"
    tomogram = samples / "two_001" / "tomogram.mrc"
    assert main(["pick", "centroid", str(tomogram), "-o", str(picks), "--model", str(model)]) == 0


def test_annotated_tomograms_of_another_program(samples, tmp_path, capsys):
    """RELION coordinates in two tomograms, whose labels the user has not named."""
    folder = tmp_path / "mine"
    folder.mkdir()
    lines = ["data_particles", "", "loop_", "_rlnTomoName #1"]
    lines += [f"_rlnCoordinate{axis} #{i}" for i, axis in enumerate("XYZ", start=2)]
    for number in range(2):
        sample = read_sample(samples / f"two_00{number}")
        shutil.copy(samples / f"two_00{number}" / "tomogram.mrc", folder / f"TS_{number}.mrc")
        for row in sample.tomogram.to_index(sample.particles.position)[:, ::-1]:
            lines.append(f"TS_{number} " + " ".join(f"{value:.2f}" for value in row))
    table = folder / "marked.star"
    table.write_text("\n".join(lines) + "\n")
    tomograms = [folder / "TS_0.mrc", folder / "TS_1.mrc"]
    words = ["--particles", table, "--tomograms", *tomograms, "--from", "none", "--steps", 2]
    model = tmp_path / "model"
    run(*words, "-o", model, code=2)
    assert "the size of particle is not known: give --diameter particle=NUMBER" in complaint(capsys)
    run(*words, "-o", model, "--diameter", "particle=120")
    assert "nothing is held out" in capsys.readouterr().err
    kinds = load_model(model).config["particles"]
    assert (kinds["labels"], kinds["diameters"]) == (["particle"], [120])
    table.write_text(table.read_text() + "TS_1 20 500 10\n")
    run(*words, "-o", tmp_path / "other", "--diameter", "120", code=2)
    assert "at (200, 5000, 100) Å lies outside tomogram" in complaint(capsys)
    with mrcfile.open(tomograms[0], "r+") as file:
        file.voxel_size = 0
    run(*words, "-o", tmp_path / "other", "--diameter", "120", code=2)
    assert "pass --tomogram-spacing" in complaint(capsys)
    run("--particles", table, "--tomograms", tomograms[0], "-o", tmp_path / "other", code=2)
    assert "add its file with --tomograms" in complaint(capsys)


def test_from_a_model_of_its_own_kind(samples, tmp_path, capsys):
    first, second = tmp_path / "first", tmp_path / "second"
    run("--data", samples, "--from", "none", "-o", first, "--steps", 1)
    run("--data", samples, "--from", first, "-o", second, "--labels", "dimer", "--steps", 1,
        "--learning-rate", 1e-9)  # fmt: skip
    before, after = (load_model(folder) for folder in (first, second))
    assert after.config["particles"]["labels"] == ["dimer"]
    difference = before.network.heads.weight[1] - after.network.heads.weight[0]
    assert np.abs(difference.detach().numpy()).max() < 1e-6
    run("--data", samples, "--from", second, "-o", tmp_path / "third", code=2)
    assert "does not know ball (it finds dimer)" in complaint(capsys)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "there is nothing to train on"),
        (["--data", "nonsense"], "no recipe is called nonsense"),
        (["--particles", "a.star"], "belong together"),
        (["--data", "samples", "--labels", "unicorn"], "no particle is labelled unicorn; the data"),
        (["--data", "samples", "--diameter", "ball=big"], "LABEL=NUMBER with ball or dimer; got"),
        (["--data", "samples", "--diameter", "cube=10"], "LABEL=NUMBER with ball or dimer; got"),
        (["--data", "samples", "--from", "nowhere"], "no model nowhere"),
        (["--data", "samples", "--network", "SwinUNETR", "--from", "general"], "starts untrained"),
        (["--data", "samples", "--network", "Nonsense"], "Nonsense"),
        (["--data", "samples", "--steps", "0"], "steps must be at least 1"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_wrong_use_is_one_line(samples, words, said, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.iterdir())
    run(*words, "-o", "mine", code=2)
    assert said in complaint(capsys)
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.filterwarnings("default")
def test_a_network_of_monai(samples, tmp_path, monkeypatch):
    pytest.importorskip("monai")
    flat = {"feature_size": 12, "use_v2": True, "depths": [1, 1, 1, 1]}
    monkeypatch.setitem(monai._TOMOCPT, "SwinUNETR", flat)
    cubes = Patching(number=1, shape=(32, 32, 64))
    monkeypatch.setattr(command, "_patching", lambda _: cubes)
    rest = ["--network", "SwinUNETR", "--steps", "1", "-o", tmp_path / "mine"]
    run("--data", samples, *rest)
    model = load_model(tmp_path / "mine")
    assert model.network.settings["architecture"] == "SwinUNETR"
    assert model.config["training"]["from"] == "none"
    tomogram = str(samples / "two_000" / "tomogram.mrc")
    words = ["pick", "centroid", tomogram, "-o", tmp_path / "picks", "--model", tmp_path / "mine"]
    assert main([*map(str, words)]) == 0
    assert (tmp_path / "picks" / "tomogram.star").is_file()


def test_without_a_model_of_ones_own_particles_of_any_kind_are_found(samples, tmp_path):
    tomogram = str(samples / "two_000" / "tomogram.mrc")
    assert main(["pick", "centroid", tomogram, "-o", str(tmp_path / "picks")]) == 0
    (table,) = (tmp_path / "picks").glob("*.star")
    assert set(read_particles(table).label) <= {"particle"}
