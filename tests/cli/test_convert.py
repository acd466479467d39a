"""`tomoloc convert` as a user types it."""

from __future__ import annotations

from pathlib import Path

import mrcfile
import numpy as np
import pytest

from tomoloc.cli.main import main
from tomoloc.io.tables import DIALECTS, read_table, write_particles
from tomoloc.types import Particles

GOLDEN = Path(__file__).parents[1] / "io" / "golden"
SIZE = ["--tomogram-size", "100", "80", "40", "--voxel-spacing", "10"]


def run(*words):
    return main(["convert", *map(str, words)])


@pytest.mark.parametrize("dialect", DIALECTS)
def test_converts_to_every_format(tmp_path, capsys, dialect):
    out = tmp_path / f"out{DIALECTS[dialect].suffixes[0]}"
    source = GOLDEN / ("copick.json" if dialect == "copick" else "tomoloc.star")
    assert run(source, out, "--to", dialect, "--box-size", 8, *SIZE) == 0
    captured = capsys.readouterr()
    assert captured.out == ""
    after = read_table(out, voxel_spacing=10.0, shape=(40, 80, 100)).particles
    assert sorted(after.position[:, 0]) == pytest.approx([0, 100, 555], abs=0.1)


@pytest.mark.parametrize("dialect", DIALECTS)
def test_a_list_of_nothing_converts_there_and_back(tmp_path, dialect):
    nothing = tmp_path / "nothing.star"
    rows = (GOLDEN / "tomoloc.star").read_text().splitlines()
    nothing.write_text("\n".join(row for row in rows if not row.startswith("TS_01")) + "\n")
    out = tmp_path / f"TS_01{DIALECTS[dialect].suffixes[0]}"
    back = tmp_path / "back.star"
    assert run(nothing, out, "--to", dialect, "--box-size", 8, "--overwrite") == 0
    assert run(out, back, "--to", "tomoloc", *SIZE) == 0
    table = read_table(back)
    assert len(table.particles) == 0
    assert [frame.shape for frame in table.frames.values()] == [(40, 80, 100)]


def test_follows_an_optimisation_set(tmp_path):
    out = tmp_path / "sub" / "picks.star"
    assert run(GOLDEN / "relion5_optimisation_set.star", out, "--to", "tomoloc") == 0
    table = read_table(out)
    assert table.frames["TS_01"].shape == (40, 80, 100)
    np.testing.assert_allclose(table.particles.position[1], [555, 35, 107.5], atol=1e-5)


def test_output_spacing_and_center(tmp_path):
    out = tmp_path / "out.star"
    words = ["--to", "relion4", "--output-spacing", "2.5"]
    assert run(GOLDEN / "tomoloc.star", out, *words) == 0
    assert "\nTS_01\t40\t80\t120\t" in out.read_text()
    words = ["--to", "relion5", "--center", "picker", "--output-spacing", "2.5", "--overwrite"]
    assert run(GOLDEN / "tomoloc.star", out, *words) == 0
    assert "\nTS_01\t-397.5\t-197.5\t102.5\t" in out.read_text()
    assert "counts from N/2 - 1 unbinned voxels" in out.read_text().splitlines()[0]


def test_tomogram_gives_size_spacing_and_name(tmp_path):
    pytest.importorskip("tomoloc.io.tomograms")
    volume = tmp_path / "lamella.mrc"
    with mrcfile.new(volume) as mrc:
        mrc.set_data(np.random.default_rng(1).normal(size=(40, 80, 100)).astype(np.float32))
        mrc.voxel_size = 10.0
    out = tmp_path / "out.star"
    assert run(GOLDEN / "TS_01.csv", out, "--to", "tomoloc", "--tomogram", volume) == 0
    assert read_table(out).frames["lamella"].shape == (40, 80, 100)
    words = ["--to", "tomoloc", "--tomogram", "TS_77", "--voxel-spacing", "10", "--overwrite"]
    assert run(GOLDEN / "TS_01.csv", out, *words) == 0
    assert read_table(out).particles.tomograms == ["TS_77"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["none.star", "out.star", "--to", "warp"], "none.star: no such file"),
        ([GOLDEN / "TS_01.csv", "out.star", "--to", "warp"], "--voxel-spacing"),
        ([GOLDEN / "warp.star", "out.star", "--to", "tomoloc"], "--tomogram-size X Y Z"),
        ([GOLDEN / "relion4.star", "out.star", "--to", "warp"], "cannot write warp"),
        ([GOLDEN / "tomoloc.star", "out.box", "--to", "eman-box"], "--box-size"),
        ([GOLDEN / "tomoloc.star", "out.star", "--to", "relion6"], "unknown format 'relion6'"),
        ([GOLDEN / "tomoloc.star", "out.star", "--to", "warp", "--from", "tbl"], "unknown format"),
        ([GOLDEN / "relion5_tomograms.star", "out.star", "--to", "warp"], "no particle coordinat"),
        ([GOLDEN / "tomoloc.star", "out.json", "--to", "copick"], "give the name of a folder"),
        ([GOLDEN / "tomoloc.star", "out.star"], "--to"),
        ([GOLDEN / "TS_01.csv", "out.star", "--to", "csv", "--tomogram", "x.mrc"], "x.mrc"),
        ([GOLDEN / "tomoloc.star", "out.star", "--to", "warp", "--center", "no"], "must be one of"),
        ([".", "out.star", "--to", "warp"], "no particle files"),
    ],
)
def test_wrong_use_is_one_line(tmp_path, monkeypatch, capsys, words, message):
    monkeypatch.chdir(tmp_path)
    if "x.mrc" in words:
        pytest.importorskip("tomoloc.io.tomograms")
    assert run(*words) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    assert message in lines[0]
    assert not list(tmp_path.iterdir())


def test_existing_file_is_kept(tmp_path, capsys):
    out = tmp_path / "out.tbl"
    out.write_text("mine")
    assert run(GOLDEN / "tomoloc.star", out, "--to", "dynamo") == 2
    assert "already exists" in capsys.readouterr().err
    assert out.read_text() == "mine"
    out.unlink()
    out.with_suffix(".doc").write_text("mine too")
    assert run(GOLDEN / "tomoloc.star", out, "--to", "dynamo") == 2
    assert out.with_suffix(".doc").read_text() == "mine too"
    assert not out.exists()
    assert run(GOLDEN / "tomoloc.star", out, "--to", "dynamo", "--overwrite") == 0
    assert out.with_suffix(".doc").read_text() == "1 TS_01\n"


def test_losses_go_to_the_log(tmp_path, caplog):
    with caplog.at_level("INFO", logger="tomoloc"):
        assert run(GOLDEN / "tomoloc.star", tmp_path / "a.coords", "--to", "coords") == 0
    lost = "left out, as coords cannot hold it: labels; scores; poses; columns someColumn"
    assert lost in caplog.text
    assert "3 particles, tomoloc to coords" in caplog.text


def test_folders_are_not_replaced(tmp_path, capsys):
    home = tmp_path / "home"
    home.mkdir()
    (home / "precious").write_text("x")
    assert run(GOLDEN / "tomoloc.star", home, "--to", "csv", "--overwrite") == 2
    assert "home is a folder; give the name of a file" in capsys.readouterr().err
    two = Particles(position=np.ones((2, 3)), tomogram=["TS_01", "TS_02"])
    write_particles(two, tmp_path / "two.csv", dialect="csv", voxel_spacing=10.0)
    assert run(tmp_path / "two.csv", home, "--to", "imod", "--overwrite", *SIZE) == 2
    assert "home holds other files (precious)" in capsys.readouterr().err
    assert [path.name for path in home.iterdir()] == ["precious"]
