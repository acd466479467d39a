"""`tomoloc simulate`."""

from __future__ import annotations

import errno
import os
import shutil

import numpy as np
import pytest

from tomoloc.cli.main import main
from tomoloc.io import samples
from tomoloc.io.samples import read_sample

TOML = """
name = "tiny"
species = [{ structure = "builtin:2", label = "pair", count = [2, 4] }]

[specimen]
shape = [24, 36, 40]

[microscope]
tilt_step = 10
defocus_um = [2, 4]
"""


@pytest.fixture
def recipe(tmp_path):
    path = tmp_path / "tiny.toml"
    path.write_text(TOML)
    return path


@pytest.fixture
def run(capsys):
    """Run the command; return exit code, stdout and stderr."""

    def call(*words):
        code = main(["simulate", *map(str, words)])
        said = capsys.readouterr()
        return code, said.out, said.err

    return call


def content(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_writes_samples_and_prints_their_folders(run, recipe, tmp_path):
    out = tmp_path / "out"
    code, said, _ = run(recipe, "-n", 2, "--seed", 1, "-o", out, "--density", "--tilt-series")
    assert code == 0
    assert said.splitlines() == [str(out / "tiny_000"), str(out / "tiny_001")]
    first, second = (read_sample(out / name) for name in ("tiny_000", "tiny_001"))
    assert first.tomogram.shape == (24, 36, 40)
    assert 2 <= len(first.particles) <= 4
    assert first.density is not None
    assert first.tomogram.tilt_series.images.shape == (13, 36, 40)
    assert not np.array_equal(first.tomogram.data, second.tomogram.data)


def test_goes_on_where_it_stopped(run, recipe, tmp_path):
    out = tmp_path / "out"
    run(recipe, "-n", 3, "-o", out)
    whole = {name: content(out / name) for name in ("tiny_000", "tiny_001", "tiny_002")}
    shutil.rmtree(out / "tiny_001")
    stamp = (out / "tiny_000" / "tomogram.mrc").stat().st_mtime_ns
    code, said, _ = run(recipe, "-n", 3, "-o", out)
    assert code == 0
    assert len(said.splitlines()) == 3
    assert (out / "tiny_000" / "tomogram.mrc").stat().st_mtime_ns == stamp
    assert {name: content(out / name) for name in whole} == whole
    code, _, _ = run(recipe, "-n", 1, "-o", out, "--density")  # asks for one file more
    assert code == 0
    assert (out / "tiny_000" / "density.mrc").is_file()


def test_resolved_recipe_makes_the_sample_again(run, recipe, tmp_path):
    run(recipe, "-n", 2, "-o", tmp_path / "out")
    made = tmp_path / "out" / "tiny_001"
    code, said, _ = run(made / "recipe.toml", "-o", tmp_path / "again")
    assert code == 0
    assert said.splitlines() == [str(tmp_path / "again" / "tiny_001")]
    assert content(tmp_path / "again" / "tiny_001") == content(made)


def test_other_settings_are_not_mixed(run, recipe, tmp_path):
    out = tmp_path / "out"
    run(recipe, "-o", out)
    before = content(out / "tiny_000")
    code, said, complaint = run(recipe, "-o", out, "--seed", 9)
    assert (code, said) == (2, "")
    assert "made with other settings" in complaint
    assert content(out / "tiny_000") == before
    code, _, _ = run(recipe, "-o", out, "--seed", 9, "--overwrite")
    assert code == 0
    assert content(out / "tiny_000") != before


def test_list(run):
    code, said, _ = run("--list")
    assert code == 0
    assert {line.split("\t")[0] for line in said.splitlines()} >= {"demo", "crowded"}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["crowdd", "-o", "out"], "did you mean 'crowded'"),
        (["nothing.toml", "-o", "out"], "No such file"),
        (["demo"], "needs a recipe and -o DIR"),
        (["-o", "out"], "needs a recipe and -o DIR"),
        (["demo", "-o", "out", "-n", "0"], "--number must be at least 1"),
        (["demo", "-o", "out", "--sed", "1"], "sed"),
    ],
)
def test_wrong_use_is_one_line(run, tmp_path, monkeypatch, words, message):
    monkeypatch.chdir(tmp_path)
    code, said, complaint = run(*words)
    assert (code, said) == (2, "")
    assert message in complaint
    assert complaint.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_a_particle_too_large_is_one_line(run, recipe, tmp_path):
    recipe.write_text(TOML.replace("builtin:2", "builtin:4").replace("24, 36", "8, 36"))
    code, _, complaint = run(recipe, "-o", tmp_path / "out")
    assert code == 2
    assert "complex-4 does not fit into the ice of 400 x 360 x 80 Å" in complaint
    assert not (tmp_path / "out").exists()


def test_a_missing_structure_is_one_line(run, recipe, tmp_path):
    recipe.write_text(TOML.replace("builtin:2", "none.pdb"))
    code, _, complaint = run(recipe, "-o", tmp_path / "out")
    assert code == 2
    assert "none.pdb" in complaint
    assert complaint.count("\n") == 1


def test_a_full_disk_leaves_only_whole_samples(run, recipe, tmp_path, monkeypatch):
    out = tmp_path / "out"
    write = samples.write_volume

    def fail(volume, path, **options):
        if "tiny_001" in str(path):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write(volume, path, **options)

    monkeypatch.setattr(samples, "write_volume", fail)
    code, said, complaint = run(recipe, "-n", 3, "-o", out)
    assert code == 2
    assert said.splitlines() == [str(out / "tiny_000")]
    assert "No space left" in complaint
    assert complaint.count("\n") == 1
    assert [path.name for path in out.iterdir()] == ["tiny_000"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_permission_is_one_line(run, recipe, tmp_path):
    out = tmp_path / "out"
    out.mkdir(mode=0o500)
    code, _, complaint = run(recipe, "-o", out)
    assert code == 2
    assert "Permission denied" in complaint


def test_a_file_in_the_way_is_one_line(run, recipe, tmp_path):
    (tmp_path / "out").write_text("a file")
    code, _, complaint = run(recipe, "-o", tmp_path / "out")
    assert code == 2
    assert complaint.count("\n") == 1
