"""`tomoloc report`: the page's path on stdout, one line on stderr where it cannot."""

from __future__ import annotations

from tomoloc.cli.main import main

STAR = """\
data_tomoloc

_tomolocVersion 0.1.0
_rlnTomoName TS_3
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
TS_3 10 20 30 a 0.5
"""


def test_report(tmp_path, capsys):
    (tmp_path / "TS_3.star").write_text(STAR)
    assert main(["report", str(tmp_path), "--diameter", "120"]) == 0
    captured = capsys.readouterr()
    assert captured.out == f"{tmp_path / 'report.html'}\n"
    assert "1 particle" in (tmp_path / "report.html").read_text("utf-8")


def test_errors(tmp_path, capsys):
    empty = tmp_path / "empty"
    empty.mkdir()
    (tmp_path / "TS_3.star").write_text(STAR)
    for words, message in (
        ([empty], "holds no picks"),
        ([tmp_path / "nowhere"], "no such folder"),
        ([tmp_path, "--radius", "0"], "--radius must be positive"),
        ([tmp_path, "--truth", tmp_path / "none.star"], "none.star"),
    ):
        assert main(["report", *map(str, words)]) == 2
        captured = capsys.readouterr()
        assert message in captured.err
        assert captured.err.count("\n") == 1
        assert captured.out == ""
    assert not (tmp_path / "report.html").exists()
    (tmp_path / "TS_3.run.toml").write_text("not toml =")
    assert main(["report", str(tmp_path)]) == 2
    assert "no valid TOML" in capsys.readouterr().err
