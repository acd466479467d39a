"""`tomoloc pick embedding` with an encoder made by hand: examples, targets, records, errors."""

from __future__ import annotations

import os
import re
import shutil
import sys
import tomllib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tomoloc.cli.main import main
from tomoloc.features.learned import LearnedFeatures
from tomoloc.io.tables import Frame, read_table, write_particles
from tomoloc.io.targets import Targets, write_targets
from tomoloc.io.tomograms import read_tomogram, write_volume
from tomoloc.nn.stored import load_model, save_model
from tomoloc.physics.filters import rescale
from tomoloc.pickers.competition import Calibration
from tomoloc.types import Particles, Volume

sys.path.insert(0, str(Path(__file__).parents[1] / "pickers"))
from handmade import BRIGHT, make_blob_model
from planting import make_lobes, plant

LOBES = make_lobes([(0, 0, 0), (55, 0, 0), (0, 40, 30)], [38, 26, 22], name="lobes")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Folder with a model, two tomograms and tables of what is in them."""
    folder = tmp_path_factory.mktemp("made")
    save_model(folder / "blobs", make_blob_model())
    for number, name in ((3, "TS_1"), (4, "TS_2")):
        tomogram, truth = plant(LOBES, n=6, noise=1.0, rng=np.random.default_rng(number))
        tomogram = replace(tomogram, origin=np.zeros(3))
        write_volume(tomogram, folder / f"{name}.mrc")
        position = truth.position - (120, -40, 15)  # tables count from the first voxel
        truth = replace(truth, position=position, tomogram=name, rotation=None)
        write(truth, folder / f"{name}.star")
        write(truth[1:2], folder / f"{name}_one.star")
    return folder


@pytest.fixture
def here(made, tmp_path, monkeypatch):
    """Copy of that folder, which the test runs in."""
    shutil.copytree(made, tmp_path / "here")
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "here"


@pytest.fixture
def run(here, capsys):
    """Run the command; return exit code, stdout and stderr."""

    def call(words):
        capsys.readouterr()
        code = main(["pick", "embedding", *words.split()])
        said = capsys.readouterr()
        return code, said.out, said.err

    return call


def write(particles, path, *, shape=(48, 64, 56), spacing=10.0, **given):
    frames = {name: Frame(name, shape, spacing) for name in particles.tomograms or ["TS_1"]}
    write_particles(particles, path, frames=frames, **given)


def truth_of(name):
    return read_table(f"{name}.star").particles


def picks_of(folder, name="TS_1"):
    return read_table(f"{folder}/{name}.star").particles


def record_of(folder, name="TS_1"):
    return tomllib.loads(Path(f"{folder}/{name}.run.toml").read_text("utf-8"))


def n_found(picks, truth):
    distance = np.linalg.norm(picks.position[:, None] - truth.position, axis=2)
    return len(set(distance.argmin(axis=1)[distance.min(axis=1) < 30]))


MODEL = "--model blobs --device cpu"
ONE = f"{MODEL} --reference TS_1_one.star"


# ------------------------------------------------------------------------------------- examples


def test_one_example(run, here):
    code, said, log = run(f"TS_1.mrc TS_2.mrc -o out {ONE}")
    assert (code, said) == (0, "out/TS_1.star\nout/TS_2.star\n")
    for name in ("TS_1", "TS_2"):
        picks = picks_of("out", name)
        assert picks.labels == ["lobes"]
        assert len(picks) <= 7
        assert n_found(picks, truth_of(name)) >= 5
        assert re.search(rf"{name}: of {len(picks)} picks, \d\.\d are expected to be wrong", log)
    # the example is a particle, and found again
    assert n_found(picks_of("out"), truth_of("TS_1")[1:2]) == 1
    record = record_of("out", "TS_2")
    assert record["parameters"]["reference"] == str(here / "TS_1_one.star")
    assert record["parameters"]["model"] == str(here / "blobs")
    assert record["parameters"]["diameter"] == 120
    assert record["inputs"]["model"] == load_model("blobs").identity
    assert record["inputs"]["examples"] == {"lobes": 1}
    assert record["inputs"]["views"] == 4
    assert 0.2 <= record["results"]["threshold"] <= 0.5


def test_picks_of_another_method_are_kept(run, here, capsys):
    assert run(f"TS_1.mrc -o out {ONE}")[0] == 0
    before = Path("out/TS_1.star").read_bytes()
    capsys.readouterr()
    assert main(["pick", "unsupervised", "TS_1.mrc", "-o", "out", "--device", "cpu"]) == 2
    log = capsys.readouterr().err
    assert "was made otherwise (method 'embedding', now 'unsupervised'); choose another" in log
    assert Path("out/TS_1.star").read_bytes() == before


def test_views_are_for_examples_and_tomograms(run, monkeypatch):
    made = []

    class Watched(LearnedFeatures):
        def __post_init__(self):
            super().__post_init__()
            made.append(self.views)

    monkeypatch.setattr("tomoloc.pickers.embedding.LearnedFeatures", Watched)
    assert run(f"TS_1.mrc -o out {ONE} --views 2")[0] == 0
    assert made == [2, 2]
    assert record_of("out")["parameters"]["views"] == 2
    assert n_found(picks_of("out"), truth_of("TS_1")) >= 5


def test_examples_in_several_tomograms_and_labels(run):
    both = Particles.concatenate([truth_of("TS_1")[:2], truth_of("TS_2")[2:4]])
    write(replace(both, label=["a", "b", "b", "a"]), "refs.star")
    assert run(f"TS_1.mrc TS_2.mrc -o out {MODEL} --reference refs.star")[0] == 0
    assert record_of("out")["inputs"]["examples"] == {"a": 2, "b": 2}
    assert set(record_of("out")["results"]["threshold"]) == {"a", "b"}
    assert n_found(picks_of("out"), truth_of("TS_1")) >= 5


def test_examples_elsewhere_in_other_voxels_and_contrast(run):
    assert run(f"TS_2.mrc -o same {ONE} --reference-tomogram TS_1.mrc")[0] == 0
    tomogram = read_tomogram("TS_1.mrc")
    fine = rescale(tomogram.with_data(-tomogram.data), 7.0)
    Path("TS_1.mrc").unlink()
    Path("fine").mkdir()
    write_volume(replace(fine, origin=np.zeros(3)), "fine/TS_1.mrc")
    table = truth_of("TS_1_one")
    moved = replace(table, position=table.position - fine.origin)
    write(moved, "fine.star", shape=fine.shape, spacing=7.0)
    code, _, log = run(
        f"TS_2.mrc -o out {MODEL} --reference fine.star --reference-tomogram fine/TS_1.mrc"
    )
    assert code == 0
    assert "fine/TS_1.mrc: protein is light (detected)" in log
    same, other = picks_of("same", "TS_2"), picks_of("out", "TS_2")
    assert n_found(other, same) == len(same)
    np.testing.assert_allclose(sorted(other.score), sorted(same.score), atol=0.1)


def test_tables_that_say_little(run):
    """Neither tomogram, nor voxel size, nor label."""
    place = truth_of("TS_1")[1].position[0] / 10
    Path("points.coords").write_text(" ".join(f"{x:.4f}" for x in place) + "\n")
    assert run(f"TS_1.mrc -o a {MODEL} --reference points.coords")[0] == 0
    assert run(f"TS_1.mrc -o b {ONE}")[0] == 0
    first, second = picks_of("a"), picks_of("b")
    assert first.labels == ["particle"]
    np.testing.assert_allclose(first.position, second.position, atol=0.01)
    # the only one given for it comes first, then the one of the same name
    words = f"TS_2.mrc -o c {MODEL} --reference points.coords --reference-tomogram TS_1.mrc"
    assert run(words)[0] == 0
    Path("TS_1.coords").write_text(Path("points.coords").read_text())
    assert run(f"TS_1.mrc TS_2.mrc -o d {MODEL} --reference TS_1.coords")[0] == 0
    np.testing.assert_array_equal(picks_of("c", "TS_2").score, picks_of("d", "TS_2").score)


def test_samples_have_the_names_of_their_folders(run, here):
    for name in ("TS_1", "TS_2"):
        (here / name).mkdir()
        shutil.move(f"{name}.mrc", f"{name}/tomogram.mrc")
    words = f"TS_1/tomogram.mrc TS_2/tomogram.mrc -o out {ONE}"
    assert run(words)[1] == "out/TS_1.star\nout/TS_2.star\n"
    assert run(f"TS_1/tomogram.mrc -o alone {ONE}")[1] == "alone/tomogram.star\n"


def test_targets(run):
    targets = Targets(vectors=BRIGHT, label="blob", model=load_model("blobs").identity)
    write_targets(targets, "targets.safetensors")
    assert run(f"TS_1.mrc -o out {MODEL} --targets targets.safetensors")[0] == 0
    assert picks_of("out").labels == ["blob"]
    assert n_found(picks_of("out"), truth_of("TS_1")) >= 5
    assert record_of("out")["inputs"]["examples"] == {"blob": 1}


def test_a_tomogram_of_2_angstrom(run, rng):
    index = np.array([48.0, 62.0, 51.0])
    grid = np.stack(np.meshgrid(*map(np.arange, (90, 120, 110)), indexing="ij"), axis=-1)
    ball = np.exp(-((grid - index) ** 2).sum(axis=-1) / (2 * 12.0**2))
    data = (rng.normal(size=ball.shape) - 0.2 * ball).astype(np.float32)
    write_volume(Volume(data=data, voxel_spacing=2.0), "fine.mrc")
    table = Particles(position=[2 * index[::-1]], label="ball", tomogram="fine")
    write(table, "ball.star", shape=data.shape, spacing=2.0)
    words = f"{MODEL} --reference ball.star --contrast dark --max-particles 1"
    code, _, log = run(f"fine.mrc -o out {words}")
    assert code == 0
    assert "voxels of 2 Å are reduced to the model's 10 Å" in log
    assert n_found(picks_of("out", "fine"), table) == 1


# --------------------------------------------------------------------------------- again, record


def test_config_repeats_a_run(run):
    words = f"TS_2.mrc -o out {ONE} --reference-tomogram TS_1.mrc --save-scores"
    assert run(words)[0] == 0
    assert run("--config out/TS_2.run.toml -o again")[1] == "again/TS_2.star\n"
    for name in ("TS_2.star", "TS_2.scores.mrc"):
        assert Path(f"again/{name}").read_bytes() == Path(f"out/{name}").read_bytes()
    first, second = record_of("out", "TS_2"), record_of("again", "TS_2")
    assert second["parameters"] == first["parameters"]
    assert second["inputs"] == first["inputs"]
    targets = Targets(vectors=BRIGHT, label="blob", model=load_model("blobs").identity)
    write_targets(targets, "targets.safetensors")
    assert run("--config out/TS_2.run.toml -o other --targets targets.safetensors")[0] == 0
    assert picks_of("other", "TS_2").labels == ["blob"]
    assert "reference" not in record_of("other", "TS_2")["parameters"]


def test_other_examples_or_another_model_are_noticed(run):
    assert run(f"TS_1.mrc -o out {ONE}")[0] == 0
    assert "is there already and was kept" in run(f"TS_1.mrc -o out {ONE}")[2]
    write(truth_of("TS_1")[2:4], "TS_1_one.star")
    code, _, log = run(f"TS_1.mrc -o out {ONE}")
    assert code == 2
    assert "was made otherwise (examples {'lobes': 1}, now {'lobes': 2}" in log
    other = {"calibration": Calibration(share=0.2).to_dict()}
    save_model("blobs", replace(load_model("blobs"), config=other))
    write(truth_of("TS_1")[1:2], "TS_1_one.star")
    code, _, log = run(f"TS_1.mrc -o out {ONE}")
    assert code == 2
    assert "was made otherwise (calibration {" in log
    shutil.rmtree("blobs")
    save_model("blobs", make_blob_model(height=0.25))
    code, _, log = run(f"TS_1.mrc -o out {ONE}")
    assert code == 2
    assert "was made otherwise (model 'blobs:" in log


def test_a_folder_of_examples_and_a_tomogram_that_change_are_noticed(run):
    Path("refs").mkdir()
    write(truth_of("TS_1")[1:2], "refs/TS_1.star")
    words = f"TS_1.mrc -o out {MODEL} --reference refs"
    assert run(words)[0] == 0
    write(truth_of("TS_1")[2:3], "refs/TS_1.star")
    assert "was made otherwise (examples_digest" in run(words)[2]
    write(truth_of("TS_1")[1:2], "refs/TS_1.star")
    assert "is there already and was kept" in run(words)[2]
    os.utime("TS_1.mrc")
    code, _, log = run(words)
    assert code == 2
    assert "TS_1.mrc is newer than what was made of it, out/TS_1.star; choose" in log


def test_odd_labels(run):
    write(replace(truth_of("TS_1")[:3], label=["a/b", "a:b", "ünï côde"]), "odd.star")
    assert run(f"TS_1.mrc -o out {MODEL} --reference odd.star --save-scores")[0] == 0
    assert {p.name for p in Path("out").glob("*.mrc")} == {
        f"TS_1.{name}.scores.mrc" for name in ("a_b_1", "a_b_2", "ünï côde")
    }
    assert set(picks_of("out").labels) <= {"a/b", "a:b", "ünï côde"}
    Path("quote.csv").write_text("tomogram,x,y,z,label\nTS_1,10,20,30,5'cap\n")
    code, _, log = run(f"TS_1.mrc -o none {MODEL} --reference quote.csv")
    assert code == 2
    assert 'STAR tables cannot hold the name "5\'cap"' in log
    assert not Path("none").exists()


def test_examples_are_not_replaced_by_picks(run, here):
    before = Path("TS_1.star").read_bytes()
    for words in ("-o . --reference TS_1.star", "-o . --reference ."):
        code, _, log = run(f"TS_1.mrc {MODEL} --overwrite {words}")
        assert code == 2
        assert "is read and may not be written to; give another -o" in log
    assert Path("TS_1.star").read_bytes() == before


def test_tomograms_given_for_examples_come_first(run, here):
    """Even where one of the same name is picked, and however its path is spelled."""
    Path("bad").mkdir()
    data = np.random.default_rng(1).normal(size=(48, 64, 56)).astype(np.float32)
    write_volume(Volume(data=data, voxel_spacing=10.0), "bad/TS_1.mrc")
    assert run(f"TS_1.mrc -o same {ONE}")[0] == 0
    elsewhere = f"--reference-tomogram TS_1.mrc {here / 'TS_1.mrc'}"
    assert run(f"bad/TS_1.mrc -o bad {ONE} --contrast dark {elsewhere}")[0] == 0
    assert run(f"TS_1.mrc -o both {ONE} {elsewhere}")[0] == 0
    np.testing.assert_array_equal(picks_of("both").score, picks_of("same").score)


# ----------------------------------------------------------------------------------- wrong use

CASES = [
    ("TS_1.mrc", MODEL, "give --reference FILE (positions of examples) or --targets FILE"),
    ("TS_1.mrc", f"{ONE} --targets targets.safetensors", "(from tomoloc cluster), not both"),
    ("", ONE, "pick embedding needs at least one tomogram"),
    ("TS_1.mrc", f"{MODEL} --reference none.star", "none.star"),
    ("TS_1.mrc", f"{MODEL} --reference TS_1.mrc", "TS_1.mrc"),
    (
        "TS_1.mrc",
        f"{MODEL} --reference empty.star",
        "empty.star holds no particles; at least one example is needed",
    ),
    (
        "TS_1.mrc",
        f"{MODEL} --reference outside.star",
        "outside.star: example 2 (lobes) at (100, 700, 50) Å lies outside tomogram TS_1.mrc, which"
        " has 560 x 640 x 480 Å (x y z)",
    ),
    (
        "TS_1.mrc",
        f"{MODEL} --reference half.star",
        "half.star: example 2 has no label; name what each example shows",
    ),
    (
        "TS_2.mrc",
        ONE,
        "TS_1_one.star: its examples lie in tomogram TS_1, which is not given (there is TS_2.mrc);"
        " add its file with --reference-tomogram",
    ),
    ("TS_11.mrc", ONE, "no such file or folder: TS_11.mrc"),
    (
        "TS_2.mrc",
        f"{ONE} --reference-tomogram none/TS_1.mrc",
        "no such file or folder: none/TS_1.mrc",
    ),
    (
        "TS_1.mrc TS_2.mrc",
        f"{MODEL} --reference points.csv",
        "points.csv: it does not say which tomogram its examples lie in",
    ),
    ("coarse.mrc", f"{MODEL} --reference coarse.star", "voxels of 40 Å are too coarse for this"),
    ("coarse.mrc", ONE + " --reference-tomogram TS_1.mrc", "voxels of 40 Å are too coarse"),
    ("TS_1.mrc", ONE.replace("blobs", "general2"), "no model general2: neither a folder nor"),
    ("TS_1.mrc", ONE.replace("blobs", "no_weights"), "lacks its file weights.safetensors"),
    ("TS_1.mrc", ONE.replace("blobs", "cut"), "cut/weights.safetensors is damaged"),
    ("TS_1.mrc", ONE.replace("blobs", "words"), "words/config.toml is not valid TOML"),
    ("TS_1.mrc", f"{MODEL} --targets other.safetensors", "mean nothing to model blobs:"),
    ("TS_1.mrc", f"{MODEL} --targets none.safetensors", "no file of targets none.safetensors"),
    ("TS_1.mrc", f"{MODEL} --targets TS_1.mrc", "TS_1.mrc is damaged, or no file of targets"),
    ("TS_1.mrc", f"{ONE} --diameter -3", "diameter must be positive; got -3"),
    ("TS_1.mrc", f"{ONE} --diameter 900", "a particle of 900 Å is larger than the tomogram"),
]


@pytest.fixture
def wrong(here):
    """Add files that are wrong in one way each."""
    truth = truth_of("TS_1")[:2]
    write(truth[:0], "empty.star")
    position = [truth.position[0], [100, 700, 50]]
    write(replace(truth, position=position), "outside.star")
    write(replace(truth, label=["lobes", ""]), "half.star")
    Path("points.csv").write_text("x,y,z\n10,20,30\n")
    data = np.asarray(read_tomogram("TS_1.mrc").data)
    write_volume(Volume(data=data, voxel_spacing=40.0), "coarse.mrc")
    write(replace(truth, tomogram="coarse"), "coarse.star", spacing=40.0)
    for name in ("no_weights", "cut", "words"):
        shutil.copytree("blobs", name)
    Path("no_weights/weights.safetensors").unlink()
    weights = Path("cut/weights.safetensors")
    weights.write_bytes(weights.read_bytes()[:-100])
    Path("words/config.toml").write_text("no = [toml")
    targets = Targets(vectors=BRIGHT, label="blob", model="blobs:0123456789abcdef")
    write_targets(targets, "other.safetensors")
    write_targets(targets, "targets.safetensors")


@pytest.mark.parametrize(("tomograms", "options", "message"), CASES)
def test_wrong_use_is_told_in_one_line(run, wrong, tomograms, options, message):
    code, said, log = run(f"{tomograms} -o out {options}")
    assert (code, said) == (2, "")
    last = log.splitlines()[-1]
    assert last.startswith("tomoloc: ")
    assert message in last
    assert not any("Traceback" in line for line in log.splitlines())
    assert not Path("out").exists()


def test_a_tomogram_without_examples_is_mentioned(run):
    code, _, log = run(f"TS_1.mrc -o out {ONE} --reference-tomogram TS_2.mrc")
    assert code == 0
    assert "TS_2.mrc: no example of TS_1_one.star lies in it" in log
