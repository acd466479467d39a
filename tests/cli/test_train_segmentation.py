"""`tomoloc train segmentation` and `tomoloc pick segmentation`, as a user runs them."""

import json
import shutil
import tomllib

import mrcfile
import numpy as np
import pytest

from tomoloc.cli import segmentation as command
from tomoloc.cli.main import main
from tomoloc.io.samples import read_sample
from tomoloc.io.tables import Frame, read_particles, write_particles
from tomoloc.nn.stored import load_model
from tomoloc.train.patches import Patching
from tomoloc.types import Particles

RECIPE = """
name = "cell"

[specimen]
shape = [32, 48, 56]
border = "cut"

[microscope]
tilt_step = 12

[[species]]
structure = "builtin:8"
label = "dimer"
count = 4

[[species]]
structure = "builtin:5"
label = "rest"
role = "distractor"
count = 3

[[filaments]]
kind = "actin"
count = 1
length = [300, 400]

[[membranes]]
shape = "sphere"
count = 1
diameter = 200
"""
CHANNELS = ["--channels", "4", "6"]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cell")
    (folder / "cell.toml").write_text(RECIPE)
    words = ["simulate", str(folder / "cell.toml"), "-n", "3", "-o", str(folder / "samples")]
    assert main(words) == 0
    return folder / "samples"


@pytest.fixture
def samples(made, tmp_path):
    shutil.copytree(made, tmp_path / "samples")
    return tmp_path / "samples"


@pytest.fixture(autouse=True)
def small(monkeypatch):
    patching = Patching(number=3, shape=(16, 24, 24), margin=2)
    monkeypatch.setattr(command, "_patching", lambda *_: patching)


def run(*words, code=0):
    assert main(["train", "segmentation", *map(str, words)]) == code


def complaint(capsys):
    return capsys.readouterr().err.strip().splitlines()[-1]


def test_classes_come_from_the_data_and_picks_are_written(samples, tmp_path, capsys):
    model = tmp_path / "mine"
    run("--data", samples, "-o", model, "--steps", 2, *CHANNELS)
    assert capsys.readouterr().out.splitlines()[-1] == str(model)
    stored = load_model(model)
    kinds = {table["label"]: table for table in stored.config["classes"]}
    assert {name: table["role"] for name, table in kinds.items()} == {
        "actin": "filament", "dimer": "particle", "membrane": "region",
    }  # fmt: skip
    assert 40 < kinds["dimer"]["diameter"] < 300
    assert kinds["dimer"]["volume"] > 50_000
    assert 20 < kinds["actin"]["diameter"] < 120
    assert "held-out" in stored.card
    assert 0 < stored.config["ranges"]["body.upward.0.3"] < 1000
    assert (tmp_path / "mine.training" / "step_000002.png").stat().st_size > 5000
    tomogram = samples / "cell_001" / "tomogram.mrc"
    picks = tmp_path / "picks"
    words = [str(tomogram), "--save-scores", "--save-labels", "--threshold", "0.2"]
    assert main(["pick", str(model), *words, "-o", str(picks)]) == 0
    with mrcfile.open(picks / "tomogram.labels.mrc") as file:
        assert file.data.shape == (32, 48, 56)
        assert set(np.unique(file.data)) <= {0, 1, 2, 3}
    legend = json.loads((picks / "tomogram.labels.json").read_text())
    assert legend == {"1": "actin", "2": "dimer", "3": "membrane"}
    record = tomllib.loads((picks / "tomogram.run.toml").read_text())
    assert set(record["results"]["volume_nm3"]) == {"actin", "dimer", "membrane"}
    assert set(record["results"]["count"]) == {"actin", "dimer"}
    assert [table["label"] for table in record["inputs"]["classes"]] == list(legend.values())
    again = tmp_path / "again"
    words = [str(tomogram), "-o", str(again), "--model", str(model)]
    words += ["--from-scores", str(picks), "--threshold", "0.2"]
    assert main(["pick", "segmentation", *words]) == 0
    first, second = (read_particles(f / "tomogram.star") for f in (picks, again))
    np.testing.assert_allclose(first.position, second.position, atol=0.02)
    words = ["--match-spectrum", "--views", "4", "--instances", "mean-shift", "--device", "cpu"]
    words += ["--diameter-range", "50", "300", "--model", str(model)]
    assert main(["pick", "segmentation", str(tomogram), "-o", str(tmp_path / "b"), *words]) == 0


def test_a_longer_training_goes_on_and_a_model_is_fine_tuned(samples, tmp_path, capsys):
    model = tmp_path / "mine"
    words = ["--data", samples, "-o", model, "--network", "unet2.5d", "--slices", 5, *CHANNELS]
    run(*words, "--steps", 1)
    run(*words, "--steps", 3)
    log = (tmp_path / "mine.training" / "steps.csv").read_text().splitlines()
    assert [row.split(",")[0] for row in log[1:]] == ["0", "1", "2"]
    before = load_model(model)
    assert before.network.settings["architecture"] == "unet2.5d"
    tuned = tmp_path / "tuned"
    words = ["--data", samples, "--from", model, "--steps", 1, "--learning-rate", 1e-9]
    run(*words, "--labels", "membrane", "-o", tuned)
    after = load_model(tuned)
    assert [table["label"] for table in after.config["classes"]] == ["membrane"]
    difference = before.network.body.head.weight[3] - after.network.body.head.weight[1]
    assert float(difference.detach().abs().max()) < 1e-6
    run("--data", samples, "--from", tuned, "-o", tmp_path / "third", code=2)
    assert "does not know actin (it finds membrane)" in complaint(capsys)
    run("--data", samples, "--from", tuned, *CHANNELS, "-o", tmp_path / "third", code=2)
    assert "goes on with its network: leave out" in complaint(capsys)
    run("--data", samples, "--from", "general", "-o", tmp_path / "third", code=2)
    assert "general segments nothing: train one with tomoloc train segm" in complaint(capsys)


def test_tables_alone_and_both_sources_in_a_ratio(samples, tmp_path, capsys):
    """Particles of a table become balls; a sample without label volume has no size."""
    folder = tmp_path / "marked"
    folder.mkdir()
    shutil.copy(samples / "cell_002" / "tomogram.mrc", folder / "TS_2.mrc")
    sample = read_sample(samples / "cell_002")
    dimers = sample.particles[np.asarray(sample.particles.label) == "dimer"]
    table = folder / "marked.star"
    frame = Frame("TS_2", sample.tomogram.shape, sample.tomogram.voxel_spacing)
    marked = Particles(position=dimers.position, label="dimer", tomogram="TS_2")
    write_particles(marked, table, frames={"TS_2": frame})
    words = ["--particles", table, "--tomograms", folder / "TS_2.mrc", "--steps", 1, *CHANNELS]
    run(*words, "-o", tmp_path / "a", code=2)
    assert "the size of" in complaint(capsys)
    run(*words, "-o", tmp_path / "a", "--diameter", 150)
    (kind,) = load_model(tmp_path / "a").config["classes"]
    assert kind["diameter"] == 150
    assert kind["volume"] == pytest.approx(np.pi / 6 * 150**3, abs=1)
    assert kind["label"] == "dimer"
    both = ["--data", samples, "--ratio", 1, 1, "--labels", "dimer", "--diameter", 150]
    run(*words, *both, "-o", tmp_path / "both")
    assert load_model(tmp_path / "both").config["training"]["ratio"] == [1, 1]
    run(*words, *both[:4], "-o", tmp_path / "c", code=2)
    assert "--ratio needs 2 whole numbers" in complaint(capsys)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "there is nothing to train on"),
        (["--particles", "a.star"], "belong together"),
        (["--data", "samples", "--labels", "unicorn"], "nothing is labelled unicorn; the data"),
        (["--data", "samples", "--filaments", "hair"], "nothing is labelled hair; the data"),
        (["--data", "samples", "--diameter", "cube=10"], "LABEL=NUMBER with actin or dimer"),
        (["--data", "samples", "--network", "Magic"], "Magic"),
        (["--data", "samples", "--slices", "4"], "slices must be odd"),
        (["--data", "samples", "--steps", "0"], "steps must be at least 1"),
        (["--data", "samples", "--early", "-1"], "early must not be negative"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_wrong_use_is_one_line(samples, words, said, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.iterdir())
    run(*words, "-o", "mine", code=2)
    lines = capsys.readouterr().err.strip().splitlines()
    assert said in lines[-1]
    assert sorted(tmp_path.iterdir()) == before


def test_methods_that_tell_no_classes(samples, tmp_path, capsys):
    tomogram = str(samples / "cell_000" / "tomogram.mrc")
    words = ["pick", "unsupervised", tomogram, "-o", str(tmp_path / "p"), "--save-labels"]
    assert main(words) == 2
    assert "tells no class of voxels: leave out --save-labels" in complaint(capsys)
