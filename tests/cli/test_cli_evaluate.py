"""`tomoloc evaluate`: a table a person reads, JSON on request, one line where it cannot."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from tomoloc.cli.main import main


def csv(path: Path, rows) -> Path:
    path.write_text("".join(",".join(map(str, row)) + "\n" for row in rows))
    return path


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    """Voxels of 10 Å: two right picks, one wrong; one of three truths missed."""
    picks = [("x", "y", "z", "score"), (11, 20, 30, 0.9), (50, 60, 72, 0.5), (5, 5, 5, 0.7)]
    truth = [(10, 20, 30), (50, 60, 70), (90, 20, 10)]
    return csv(tmp_path / "picks.csv", picks), csv(tmp_path / "truth.csv", truth)


def run(*words, code: int = 0, capsys) -> str:
    assert main(["evaluate", *map(str, words)]) == code
    captured = capsys.readouterr()
    if code:
        assert captured.out == ""
        assert captured.err.count("\n") == 1
        assert "Traceback" not in captured.err
        return captured.err
    return captured.out


def test_table(files, capsys):
    out = run(*files, "--radius", 25, "--voxel-spacing", 10, "--diameter", 100, capsys=capsys)
    lines = out.splitlines()
    assert lines[0] == "rule gated, radius 25 Å, 1 tomogram"
    titles = "label truth picks TP FP FN precision recall F1 AP best F1 at score RMSE Å RMSE/d"
    assert " ".join(lines[2].split()) == titles
    rmse = np.sqrt((10**2 + 20**2) / 2)
    assert lines[3].split() == [
        "(all)", "3", "3", "2", "1", "1", "0.667", "0.667", "0.667",
        f"{1 / 3 + 2 / 9:.3f}", "0.667", "0.5", f"{rmse:.1f}", f"{rmse / 100:.3f}",
    ]  # fmt: skip
    assert lines[5] == "one tomogram: no intervals over tomograms"
    assert len(lines[2]) == len(lines[3])


def test_radius_and_rule_decide(files, capsys):
    out = run(*files, "--radius", 15, "--voxel-spacing", 10, "--rule", "czii", capsys=capsys)
    assert out.startswith("rule czii, radius 15 Å")
    assert "best F4" in out
    assert out.splitlines()[3].split()[3:6] == ["1", "2", "2"]
    out = run(*files, "--radius", 15, "--voxel-spacing", 10, "--rule", "picket", capsys=capsys)
    assert "rel. recall" in out


def test_json(files, tmp_path, capsys):
    target = tmp_path / "new" / "scores.json"
    run(*files, "--radius", 25, "--voxel-spacing", 10, "--json", target, capsys=capsys)
    scores = json.loads(target.read_text())
    assert scores["rule"] == "gated"
    assert scores["micro"]["chosen"]["n_tp"] == 2
    assert scores["micro"]["curve"]["recall"] == pytest.approx([1 / 3, 1 / 3, 2 / 3])
    assert scores["micro"]["chosen"]["rmse_diameters"] is None


STAR = """\
data_tomoloc

_tomolocVersion 0.1.0
_rlnTomoName {name}
_tomolocSizeX 100
_tomolocSizeY 90
_tomolocSizeZ 80
_tomolocVoxelSpacing 10


data_particles

loop_
_rlnTomoName #1
_rlnCoordinateX #2
_rlnCoordinateY #3
_rlnCoordinateZ #4
_tomolocLabel #5
_rlnAutopickFigureOfMerit #6
"""


def star(path: Path, name: str, rows) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = "".join(f"{name} {x} {y} {z} {label} {s}\n" for x, y, z, label, s in rows)
    path.write_text(STAR.format(name=name) + lines)


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    """Picks as `pick` leaves them and truth as `simulate` does; the third sample is empty."""
    picks, truth = tmp_path / "picks", tmp_path / "samples"
    for i in range(3):
        rows = [(10 + i, 20, 30, "a", 0.9), (50, 60, 70, "b", 0.8)]
        star(picks / f"s_{i}.star", f"s_{i}_rec.mrc", rows)
        (picks / f"s_{i}.run.toml").write_text("")
        star(truth / f"s_{i}" / "particles.star", f"s_{i}", rows if i < 2 else [])
        # Not particles: must not be read as such.
        (truth / f"s_{i}" / "tilt_series.star").write_text("data_\n\nloop_\n_rlnTiltAngle\n1\n")
    return picks, truth


def test_folders(folders, capsys):
    out = run(*folders, "--radius", 5, capsys=capsys)
    assert "3 tomograms" in out
    rows = [line.split() for line in out.splitlines()]
    assert rows[3][:6] == ["a", "2", "3", "2", "1", "0"]
    assert "95 % intervals over 3 tomograms (bootstrap)" in out


def test_labels(folders, capsys):
    picks, truth = folders
    text = (picks / "s_0.star").read_text()
    (picks / "s_0.star").write_text(text.replace(" a ", " emd_1 "))
    err = run(picks / "s_0.star", truth, "--radius", 5, "--label", "c", code=2, capsys=capsys)
    assert "no particle has label 'c'" in err
    out = run(picks, truth, "--radius", 5, "--label", "a", "--rename", "emd_1=a", capsys=capsys)
    assert out.splitlines()[3].split()[:4] == ["a", "2", "3", "2"]
    out = run(picks, truth, "--radius", 5, "--ignore-labels", capsys=capsys)
    assert out.splitlines()[3].split()[:4] == ["(all)", "4", "6", "4"]
    out = run(picks, truth, "--radius", 5, "--label-radius", "a=7.5", capsys=capsys)
    assert "a 7.5 Å, b 5 Å, emd_1 5 Å" in out
    for option, message in (
        (("--rename", "x=a"), "no pick has that label"),
        (("--rename", "a"), "--rename needs NAME=VALUE; got 'a'"),
        (("--label-radius", "a=wide"), "--label-radius needs LABEL=NUMBER"),
    ):
        assert message in run(picks, truth, "--radius", 5, *option, code=2, capsys=capsys)


def test_distractors_of_a_sample_are_no_misses(folders, tmp_path, capsys):
    picks, truth = folders
    table = truth / "s_0" / "particles.star"
    rows = table.read_text().replace("_rlnAutopickFigureOfMerit", "_tomolocRole")
    table.write_text(rows.replace("a 0.9", "a target").replace("b 0.8", "b distractor"))
    star(tmp_path / "other.star", "s_0", [(10, 20, 30, "a", 0.9), (50, 60, 70, "c", 0.8)])
    out = run(tmp_path / "other.star", truth / "s_0", "--radius", 5, capsys=capsys)
    found = [line.split()[:6] for line in out.splitlines()[3:5]]
    assert found == [["a", "1", "1", "1", "0", "0"], ["c", "0", "1", "0", "1", "0"]]
    out = run(picks / "s_0.star", truth / "s_0", "--radius", 5, capsys=capsys)
    found = [line.split()[:6] for line in out.splitlines()[3:5]]
    assert found == [["a", "1", "1", "1", "0", "0"], ["b", "1", "1", "1", "0", "0"]]
    words = (tmp_path / "other.star", truth / "s_0", "--radius", 5, "--ignore-labels")
    assert run(*words, capsys=capsys).splitlines()[3].split()[1:6] == ["1", "2", "1", "1", "0"]


def test_errors(files, tmp_path, capsys):
    picks, truth = files
    spacing = ("--voxel-spacing", 10)
    cases = {
        (tmp_path / "no.csv", truth, "--radius", 5, *spacing): "no such file",
        (picks, truth, "--radius", 5): "--voxel-spacing",
        (picks, truth, "--radius", -5, *spacing): "radius must be positive",
        (picks, truth, "--radius", 5, "--rule", "x", *spacing): "unknown rule 'x'",
        (picks, truth): "--radius",
        (picks, tmp_path / "picks.csv", "--radius", "wide"): "radius",
    }
    for words, message in cases.items():
        assert message in run(*words, code=2, capsys=capsys)
    target = tmp_path / "truth.csv" / "scores.json"
    err = run(*files, "--radius", 5, *spacing, "--json", target, code=2, capsys=capsys)
    assert "truth.csv" in err
