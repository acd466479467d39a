"""`tomoloc pick` on a small simulated tomogram."""

from __future__ import annotations

import shutil
import tomllib
from pathlib import Path

import numpy as np
import pytest
import starfile
import zarr

from tomoloc.cli.main import main
from tomoloc.cli.runs import peak_memory_gib
from tomoloc.evaluate import evaluate_particles
from tomoloc.io.tables import read_table
from tomoloc.io.tomograms import read_tomogram, read_volume, write_volume
from tomoloc.physics.potential import make_potential
from tomoloc.simulate.structures import make_complex
from tomoloc.types import Volume

RECIPE = """
name = "knot"
species = [{ structure = "builtin:58", label = "knot", count = 8 }]

[specimen]
shape = [40, 48, 56]

[microscope]
tilt_step = 5
defocus_um = 3
dose_e_per_a2 = 200
"""
KNOT = ("--template", "builtin:58", "--label", "knot", "--symmetry", "D4", "--angular-step", 30)
RADIUS = 35.0


@pytest.fixture(scope="module")
def samples(tmp_path_factory):
    folder = tmp_path_factory.mktemp("samples")
    (folder / "knot.toml").write_text(RECIPE)
    assert main(["simulate", str(folder / "knot.toml"), "-n", "2", "-o", str(folder)]) == 0
    return folder


@pytest.fixture(scope="module")
def picked(samples, tmp_path_factory):
    """Folder of picks of both samples."""
    out = tmp_path_factory.mktemp("picked")
    words = ["pick", "template", *tomograms(samples), "-o", str(out), *map(str, KNOT)]
    assert main([*words, "--save-scores"]) == 0
    return out


@pytest.fixture
def alone(samples, tmp_path):
    """A tomogram with no tilt file beside it."""
    return Path(shutil.copy(samples / "knot_000" / "tomogram.mrc", tmp_path / "TS_1.mrc"))


@pytest.fixture
def run(capsys):
    """Run the command; return exit code, stdout and stderr."""

    def call(*words):
        capsys.readouterr()
        code = main(["pick", "template", *map(str, words)])
        said = capsys.readouterr()
        return code, said.out, said.err

    return call


def tomograms(samples):
    return [str(samples / name / "tomogram.mrc") for name in ("knot_000", "knot_001")]


def record(table):
    return tomllib.loads(Path(table).with_suffix(".run.toml").read_text("utf-8"))


def content(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def f1(table, truth):
    found, true = read_table(table).particles, read_table(truth).particles
    return evaluate_particles(found, true, radius=RADIUS, rule="gated").micro.chosen.f1


# --------------------------------------------------------------------------------------- output


def test_table(picked, samples):
    blocks = starfile.read(picked / "knot_000.star", always_dict=True)
    head = blocks["tomoloc"]
    assert head["rlnTomoName"] == "knot_000"
    assert [head[f"tomolocSize{axis}"] for axis in "XYZ"] == [56, 48, 40]
    assert head["tomolocVoxelSpacing"] == 10
    rows = blocks["particles"]
    assert set(rows["tomolocLabel"]) == {"knot"}
    assert {"rlnAngleRot", "rlnAngleTilt", "rlnAnglePsi"} < set(rows)
    assert (rows["rlnAutopickFigureOfMerit"].diff().dropna() <= 0).all()
    np.testing.assert_allclose(
        rows["rlnCenteredCoordinateZAngst"], (rows["rlnCoordinateZ"] - 20) * 10, atol=1e-3
    )
    assert f1(picked / "knot_000.star", samples / "knot_000" / "particles.star") > 0.7


def test_record(picked, samples):
    made = record(picked / "knot_001.star")
    assert made["tomoloc"]["command"] == "pick template"
    assert made["method"] == {"name": "template"}
    parameters = made["parameters"]
    assert parameters["template"] == "builtin:58"
    assert (parameters["angular_step"], parameters["seed"]) == (30.0, 0)
    assert not {"output", "overwrite", "config"} & set(parameters)
    inputs = made["inputs"]
    assert inputs["tomogram"] == str((samples / "knot_001" / "tomogram.mrc").resolve())
    assert (inputs["size"], inputs["voxel_spacing"]) == ([56, 48, 40], 10.0)
    assert (inputs["contrast"], inputs["ctf_known"]) == ("dark", True)
    assert len(inputs["tilt_angles"]) == 25
    results = made["results"]
    assert results["n_particles"] == len(read_table(picked / "knot_001.star").particles)
    assert 0 < results["threshold"] < 1
    assert results["device"] in {"cpu", "cuda"}
    assert results["seconds"] > 0
    assert results["peak_memory_gib"] > 0


def test_score_map(picked):
    scores = read_volume(picked / "knot_000.scores.mrc")
    particles = read_table(picked / "knot_000.star").particles
    place = tuple(np.rint(scores.to_index(particles.position)).astype(int).T)
    assert np.corrcoef(scores.data[place], particles.score)[0, 1] > 0.9
    assert scores.data[place].min() > np.quantile(scores.data, 0.99)


def test_samples_are_named_after_their_folders_and_meet_their_truth(picked, samples, capsys):
    capsys.readouterr()
    assert main(["evaluate", str(picked), str(samples), "--radius", str(RADIUS)]) == 0
    table = capsys.readouterr().out
    assert "2 tomograms" in table
    row = next(line.split() for line in table.splitlines() if line.startswith("knot "))
    assert row[1] == "16"
    assert float(row[8]) > 0.7


def test_the_only_sample_meets_its_truth_too(run, samples, tmp_path, capsys):
    code, said, _ = run(tomograms(samples)[0], "-o", tmp_path, *KNOT)
    assert (code, said) == (0, f"{tmp_path / 'tomogram.star'}\n")
    words = ["evaluate", said.strip(), str(samples / "knot_000"), "--radius", str(RADIUS)]
    assert main(words) == 0
    assert "knot" in capsys.readouterr().out


# -------------------------------------------------------------------------------------- options


def test_config_repeats_a_run(run, picked, tmp_path):
    code, said, _ = run("--config", picked / "knot_000.run.toml", "-o", tmp_path)
    assert (code, said) == (0, f"{tmp_path / 'tomogram.star'}\n")
    first, second = record(picked / "knot_000.star"), record(tmp_path / "tomogram.star")
    assert second["parameters"] == first["parameters"]
    assert second["inputs"] == first["inputs"]
    assert (tmp_path / "tomogram.scores.mrc").read_bytes() == (
        picked / "knot_000.scores.mrc"
    ).read_bytes()
    text = (picked / "knot_000.star").read_text().replace("knot_000", "tomogram")
    assert (tmp_path / "tomogram.star").read_text().split() == text.split()
    again = tmp_path / "again"
    assert run("--config", tmp_path / "tomogram.run.toml", "-o", again)[0] == 0
    for name in ("tomogram.star", "tomogram.scores.mrc"):
        assert (again / name).read_bytes() == (tmp_path / name).read_bytes()


def test_words_come_before_the_config(run, picked, samples, tmp_path):
    code, _, _ = run(
        *(tomograms(samples)[1], "--config", picked / "knot_000.run.toml", "-o", tmp_path),
        *("--tilt-range", -60, 60, "--max-particles", 2, "--label", "two"),
    )
    assert code == 0
    made = record(tmp_path / "tomogram.star")
    assert made["inputs"]["tomogram"] == tomograms(samples)[1]
    assert made["parameters"]["tilt_range"] == [-60.0, 60.0]
    assert made["parameters"]["angular_step"] == 30.0
    assert read_table(tmp_path / "tomogram.star").particles.labels == ["two"]
    # A record with one way of giving tilt angles does not forbid another.
    (tmp_path / "a.tlt").write_text("-50\n0\n50\n")
    words = ("--config", tmp_path / "tomogram.run.toml", "-o", tmp_path / "b")
    assert run(*words, "--tilt-file", tmp_path / "a.tlt")[0] == 0
    made = record(tmp_path / "b" / "tomogram.star")
    assert made["inputs"]["tilt_angles"] == [-50.0, 0.0, 50.0]
    assert "tilt_range" not in made["parameters"]


def test_mask_and_number_and_threshold(run, alone, tmp_path):
    words = (alone, "--tilt-range", -60, 60, *KNOT)
    inside = np.zeros((40, 48, 56), dtype=np.int8)
    inside[:, :, 28:] = 1
    write_volume(Volume(data=inside, voxel_spacing=10.0), tmp_path / "mask.mrc")
    assert run(*words, "-o", tmp_path / "all")[0] == 0
    everything = read_table(tmp_path / "all" / "TS_1.star").particles
    assert len(everything) >= 5
    assert run(*words, "-o", tmp_path / "masked", "--mask", tmp_path / "mask.mrc")[0] == 0
    masked = read_table(tmp_path / "masked" / "TS_1.star").particles
    assert 0 < len(masked) < len(everything)
    assert (masked.position[:, 0] > 270).all()
    assert run(*words, "-o", tmp_path / "few", "--max-particles", 3)[0] == 0
    few = read_table(tmp_path / "few" / "TS_1.star").particles
    np.testing.assert_allclose(few.score, everything.score[:3], rtol=1e-5)
    limit = float(everything.score[3]) + 1e-5
    assert run(*words, "-o", tmp_path / "sure", "--threshold", limit)[0] == 0
    assert len(read_table(tmp_path / "sure" / "TS_1.star").particles) == 3
    assert record(tmp_path / "sure" / "TS_1.star")["results"]["threshold"] == limit


def test_tilt_angles_come_from_a_range_or_a_file_or_a_file_beside(run, alone, samples, tmp_path):
    def angles(name, *words):
        code, _, log = run(alone, "-o", tmp_path / name, *KNOT, *words)
        assert code == 0
        return record(tmp_path / name / "TS_1.star")["inputs"]["tilt_angles"], log

    found, _ = angles("range", "--tilt-range", "-54", "-3")
    assert (found[0], found[-1], len(found)) == (-54, -3, 18)
    (tmp_path / "TS_1.tlt").write_text("-40\n-20\n0\n20\n40\n")
    found, _ = angles("file", "--tilt-file", tmp_path / "TS_1.tlt")
    assert found == [-40, -20, 0, 20, 40]
    code, _, log = run(alone, "-o", tmp_path / "none", *KNOT)
    assert code == 2
    assert f"--tilt-file {tmp_path / 'TS_1.tlt'} uses it" in log
    assert "give --tilt-range LO HI or --tilt-file" in log.splitlines()[-1]
    shutil.copy(samples / "knot_000" / "tilt_series.star", tmp_path)
    found, log = angles("beside")
    assert len(found) == 25
    assert "tilt angles, exposure and CTF from" in log


def test_one_tilt_file_for_several_tomograms(run, alone, samples, tmp_path):
    lines = (samples / "knot_000" / "tilt_series.star").read_text()
    series = {}
    for name, shift in (("TS_1", 0.0), ("TS_2", 1.0)):
        block = starfile.read(samples / "knot_000" / "tilt_series.star", always_dict=True)
        table = block["knot_000"]
        table["rlnTomoNominalStageTiltAngle"] += shift
        series[name] = table
    assert "knot_000" in lines
    overview = starfile.read(samples / "knot_000" / "tilt_series.star", always_dict=True)["global"]
    import pandas as pd

    both = pd.DataFrame([overview | {"rlnTomoName": name} for name in series])
    starfile.write({"global": both, **series}, tmp_path / "tomograms.star")
    second = shutil.copy(alone, tmp_path / "TS_2.mrc")
    words = ("--tilt-file", tmp_path / "tomograms.star", "-o", tmp_path / "out", *KNOT)
    assert run(alone, second, *words)[0] == 0
    for name, first in (("TS_1", -60), ("TS_2", -59)):
        assert record(tmp_path / "out" / f"{name}.star")["inputs"]["tilt_angles"][0] == first


def test_templates_as_files(run, alone, tmp_path):
    import gemmi

    structure = make_complex(58)
    model = gemmi.Structure()
    model.add_model(gemmi.Model(1))
    chain = gemmi.Chain("A")
    for number, position in enumerate(structure.position[::3], start=1):
        atom = gemmi.Atom()
        atom.name, atom.element, atom.pos = "CA", gemmi.Element("C"), gemmi.Position(*position)
        residue = gemmi.Residue()
        residue.name, residue.seqid = "ALA", gemmi.SeqId(number, " ")
        residue.add_atom(atom)
        chain.add_residue(residue)
    model[0].add_chain(chain)
    model.setup_entities()
    model.write_pdb(str(tmp_path / "knot.pdb"))
    model.make_mmcif_document().write_file(str(tmp_path / "knot.cif"))
    write_volume(make_potential(structure, voxel_spacing=5.0), tmp_path / "knot.mrc")
    places = {}
    for kind in ("pdb", "cif", "mrc"):
        words = ("--template", tmp_path / f"knot.{kind}", "--symmetry", "D4", "--angular-step", 30)
        out = tmp_path / kind
        assert run(alone, "-o", out, "--tilt-range", -60, 60, *words)[0] == 0
        particles = read_table(out / "TS_1.star").particles
        assert particles.labels == ["knot"]
        assert record(out / "TS_1.star")["parameters"]["template"] == str(tmp_path / f"knot.{kind}")
        places[kind] = particles.position[:5]
    for kind in ("cif", "mrc"):
        distance = np.linalg.norm(places["pdb"][:, None] - places[kind][None], axis=2).min(axis=1)
        assert (distance < 15).sum() >= 4


def test_a_label_that_is_also_a_file_stays_a_label(run, alone, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "knot").write_text("x")
    assert run(alone, "-o", "out", "--tilt-range", -60, 60, *KNOT)[0] == 0
    assert record(tmp_path / "out" / "TS_1.star")["parameters"]["label"] == "knot"


def test_tables_count_from_the_first_voxel_whatever_the_origin(run, alone, tmp_path):
    data = np.asarray(read_tomogram(alone).data)
    scale = {"type": "scale", "scale": [10.0] * 3}
    shift = {"type": "translation", "translation": [70.0, -30.0, 500.0]}
    axes = [{"name": name, "type": "space", "unit": "angstrom"} for name in "zyx"]
    group = zarr.open_group(tmp_path / "TS_1.zarr", mode="w", zarr_format=2)
    group.create_array("0", data=data)
    levels = [{"path": "0", "coordinateTransformations": [scale, shift]}]
    group.attrs["multiscales"] = [{"version": "0.4", "axes": axes, "datasets": levels}]
    assert read_tomogram(tmp_path / "TS_1.zarr").origin.tolist() == [500, -30, 70]
    words = ("--tilt-range", -60, 60, *KNOT)
    assert run(alone, "-o", tmp_path / "a", *words)[0] == 0
    assert run(tmp_path / "TS_1.zarr", "-o", tmp_path / "b", *words)[0] == 0
    plain, shifted = (read_table(tmp_path / name / "TS_1.star").particles for name in "ab")
    np.testing.assert_allclose(shifted.position, plain.position, atol=1e-3)


def test_contrast_is_found_or_given(run, alone, tmp_path):
    tomogram = read_tomogram(alone)
    bright = Volume(data=-np.asarray(tomogram.data), voxel_spacing=10.0)
    write_volume(bright, tmp_path / "bright.mrc")
    words = ("--tilt-range", -60, 60, *KNOT)
    assert run(alone, tmp_path / "bright.mrc", "-o", tmp_path / "out", *words)[0] == 0
    dark, light = (read_table(tmp_path / "out" / f"{n}.star").particles for n in ("TS_1", "bright"))
    np.testing.assert_allclose(dark.position, light.position, atol=1e-2)
    assert record(tmp_path / "out" / "bright.star")["inputs"]["contrast"] == "light"


# -------------------------------------------------------------------------------- several, again


def test_a_broken_tomogram_does_not_stop_the_others(run, alone, samples, tmp_path):
    broken = tmp_path / "broken.mrc"
    broken.write_bytes(alone.read_bytes()[:5000])
    out = tmp_path / "out"
    words = (broken, "none.mrc", alone, "-o", out, "--tilt-range", -60, 60, *KNOT)
    code, said, log = run(*words)
    assert (code, said) == (1, f"{out / 'TS_1.star'}\n")
    lines = log.splitlines()
    assert f"{broken} is truncated" in lines[0]
    assert lines[1] == "no such file or folder: none.mrc"
    assert lines[-1] == f"2 of 3 tomograms failed: {broken}, none.mrc"
    assert sorted(path.name for path in out.iterdir()) == ["TS_1.run.toml", "TS_1.star"]


def test_what_is_there_is_kept_refused_or_replaced(run, alone, samples, tmp_path):
    out = tmp_path / "out"
    words = ("-o", out, "--tilt-range", -60, 60, *KNOT)
    assert run(alone, *words)[0] == 0
    first = content(out)
    code, said, log = run(alone, *words)
    assert (code, said) == (0, f"{out / 'TS_1.star'}\n")
    assert "is there already and was kept" in log
    code, said, log = run(alone, *words, "--max-particles", 2)
    assert (code, said) == (2, "")
    assert "was made otherwise (max_particles not given, now 2)" in log
    assert "choose another folder or give --overwrite" in log
    other = tmp_path / "other" / "TS_1.mrc"
    other.parent.mkdir()
    shutil.copy(samples / "knot_001" / "tomogram.mrc", other)
    code, _, log = run(other, *words)
    assert code == 2
    assert f"now '{other}'" in log
    assert content(out) == first
    assert run(alone, *words, "--max-particles", 2, "--overwrite")[0] == 0
    assert len(read_table(out / "TS_1.star").particles) == 2
    (out / "TS_1.run.toml").unlink()
    code, _, log = run(alone, *words)
    assert code == 2
    assert "exists without a record of how it was made" in log
    (out / "TS_1.run.toml").write_text("not = [toml")
    code, _, log = run(alone, *words)
    assert code == 2
    assert "is not the record of a run, or is damaged" in log


def test_two_of_one_name_need_two_folders(run, alone, tmp_path):
    (tmp_path / "TS_1.rec").write_bytes(alone.read_bytes())
    code, _, log = run(alone, tmp_path / "TS_1.rec", "-o", tmp_path / "out", *KNOT)
    assert code == 2
    assert "give them separate folders" in log
    assert not (tmp_path / "out").exists()


def test_memory_is_unknown_on_some_systems(monkeypatch):
    assert peak_memory_gib() > 0
    monkeypatch.setitem(__import__("sys").modules, "resource", None)
    assert peak_memory_gib() is None


def test_picks_again_from_saved_scores(picked, samples, run, tmp_path):
    """The same parameters give the same table; a lower threshold more, and nothing is searched."""
    tomogram = tomograms(samples)
    again = ("--config", picked / "knot_000.run.toml", "--from-scores", picked)
    assert run(*tomogram, "-o", tmp_path / "same", *again)[0] == 0
    assert content(tmp_path / "same")["knot_000.star"] == content(picked)["knot_000.star"]
    assert run(*tomogram, "-o", tmp_path / "more", *again, "--threshold", 0.01)[0] == 0
    n = [
        len(read_table(folder / "knot_000.star").particles)
        for folder in (picked, tmp_path / "more")
    ]
    assert n[1] > n[0]
    assert record(tmp_path / "more" / "knot_000.star")["results"]["seconds"] < 1
    code, _, said = run(*tomogram, "-o", tmp_path / "none", *KNOT, "--from-scores", tmp_path)
    assert code in {1, 2}
    assert "--save-scores" in said


def test_several_templates_compete(samples, run, tmp_path):
    words = ("--template", "builtin:58", "--template", "builtin:4", "--label", "knot,disc")
    more = ("--symmetry", "D4,C4", "--angular-step", 60)
    assert (
        run(samples / "knot_000" / "tomogram.mrc", "-o", tmp_path, *words, *more, "--save-scores")[
            0
        ]
        == 0
    )
    found = read_table(tmp_path / "tomogram.star").particles
    assert set(found.labels) <= {"knot", "disc"}
    knots = np.asarray(found.label) == "knot"
    assert knots.sum() >= 5
    assert knots.mean() > 0.6
    assert (tmp_path / "tomogram.disc.scores.mrc").is_file()
    made = record(tmp_path / "tomogram.star")
    assert made["parameters"]["template"] == ["builtin:58", "builtin:4"]
    assert set(made["results"]["threshold"]) == {"knot", "disc"}


def test_particles_say_how_sure_they_are(picked):
    rows = starfile.read(picked / "knot_000.star", always_dict=True)["particles"]
    assert rows["tomolocFDR"].between(0, 1).all()
    assert rows["tomolocPValue"].between(0, 1).all()
    assert (rows["tomolocPValue"].diff().dropna() >= 0).all()
    assert rows["tomolocFDR"].iloc[0] < 0.1
