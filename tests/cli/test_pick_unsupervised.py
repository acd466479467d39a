"""`pick unsupervised` and `denoise` from the command line."""

from __future__ import annotations

import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest

from tomoloc.cli.main import main
from tomoloc.io.tomograms import read_volume, write_volume
from tomoloc.types import Volume

sys.path.insert(0, str(Path(__file__).parents[1] / "pickers"))
from planting import make_lobes, plant


@pytest.fixture(scope="module")
def tomogram(tmp_path_factory):
    lobes = make_lobes([(0, 0, 0), (55, 0, 0), (0, 40, 30)], [38, 26, 22], name="lobes")
    made, _ = plant(lobes, n=6, noise=0.8, rng=np.random.default_rng(3))
    path = tmp_path_factory.mktemp("data") / "TS_01.mrc"
    write_volume(Volume(data=made.data, voxel_spacing=made.voxel_spacing), path)
    return path


def test_picks_a_table_a_record_and_nothing_twice(tomogram, tmp_path, capsys) -> None:
    words = ["pick", "unsupervised", str(tomogram), "-o", str(tmp_path), "--features", "invariant"]
    assert main(words) == 0
    record = tomllib.loads((tmp_path / "TS_01.run.toml").read_text())
    assert record["parameters"]["clustering"] == "kmeans"
    assert 60 <= record["results"]["diameter"] < 250
    assert 4 <= record["results"]["n_particles"] <= 8
    first = (tmp_path / "TS_01.star").read_bytes()
    assert main(words) == 0
    assert (tmp_path / "TS_01.star").read_bytes() == first
    assert capsys.readouterr().out.count("TS_01.star") == 2


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--features", "wavelet"], "wavelet"),
        (["--paper"], "paper needs features"),
        (["--smallest", "900"], "in this order"),
    ],
)
def test_wrong_use_is_one_line(words, message, tomogram, tmp_path, capsys) -> None:
    assert main(["pick", "unsupervised", str(tomogram), "-o", str(tmp_path), *words]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error


def test_denoise_writes_a_tomogram_of_the_same_grid(tomogram, tmp_path, capsys) -> None:
    words = ["denoise", str(tomogram), "-o", str(tmp_path), "--method", "gaussian", "--sigma", "20"]
    assert main(words) == 0
    out = Path(capsys.readouterr().out.strip())
    smooth, plain = read_volume(out), read_volume(tomogram)
    assert smooth.shape == plain.shape
    assert smooth.voxel_spacing == plain.voxel_spacing
    assert smooth.data.std() < 0.9 * plain.data.std()
    assert main(words) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert main([*words, "--overwrite"]) == 0
    assert main(["denoise", str(tomogram), "-o", str(tomogram.parent), "--overwrite"]) == 2
    assert main(["denoise", "-o", str(tmp_path)]) == 2
