"""`tomoloc info` on every kind of file, good and bad."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest

from tomoloc.cli.main import main
from tomoloc.io.tomograms import write_volume
from tomoloc.types import Volume

SHAPE = (24, 28, 36)
BLANK_SPACING = slice(40, 52)


@pytest.fixture
def run(capsys):
    """Run the command; return exit code, stdout and stderr."""

    def call(*words):
        code = main(["info", *map(str, words)])
        said = capsys.readouterr()
        return code, said.out, said.err

    return call


@pytest.fixture
def facts(run):
    """Run the command with --json and return what it prints."""

    def call(path):
        code, out, _ = run(path, "--json")
        assert code == 0
        return json.loads(out)

    return call


@pytest.fixture
def particles(rng):
    """A tomogram with dark balls in noise."""
    z, y, x = np.indices(SHAPE)
    data = rng.normal(size=SHAPE)
    for center in ((8, 8, 8), (15, 20, 25), (16, 6, 28)):
        near = sum((a - c) ** 2 for a, c in zip((z, y, x), center, strict=True)) < 9
        data[near] -= 8
    return data.astype(np.float32)


@pytest.fixture
def tomogram(tmp_path, particles):
    path = tmp_path / "TS_1.mrc"
    write_volume(Volume(data=particles, voxel_spacing=13.48), path)
    return path


def test_volume(run, tomogram):
    code, out, err = run(tomogram)
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert lines[0] == f"{tomogram}: volume, MRC mode 2 (float32)"
    assert " ".join(lines[1].split()) == "size 36 x 28 x 24 voxels (x y z)"
    assert lines[2].split() == ["voxel", "spacing", "13.48", "Å"]
    assert "protein looks dark" in out
    assert lines[-1].split() == ["lacks", "nothing"]


def test_volume_as_json(facts, tomogram, particles):
    found = facts(tomogram)
    assert found["size"] == [36, 28, 24]
    assert found["voxel_spacing"] == 13.48
    assert found["values"]["minimum"] == pytest.approx(particles.min())
    assert found["contrast"]["sign"] == "dark"
    assert found["lacks"] == []


def test_tilt_files_beside_a_volume(facts, tomogram):
    tomogram.with_suffix(".tlt").write_text("-3\n0\n3\n")
    assert facts(tomogram)["tilt_files"] == ["TS_1.tlt"]


def test_what_a_volume_lacks(facts, tomogram, tmp_path, particles):
    content = bytearray(tomogram.read_bytes())
    content[BLANK_SPACING] = b"\0" * 12
    tomogram.write_bytes(content)
    found = facts(tomogram)
    assert found["voxel_spacing"] is None
    assert found["lacks"] == [
        "voxel size not recorded (header says 0); pass --voxel-spacing in angstrom"
        " (voxel_spacing= in Python, map_spacing in a recipe)"
    ]
    particles[3, 4, 5] = np.nan
    np.save(tmp_path / "a.npy", particles)
    assert "1 voxels are NaN" in facts(tmp_path / "a.npy")["lacks"][1]
    np.save(tmp_path / "b.npy", np.full(SHAPE, 4.0))
    assert "variation" in facts(tmp_path / "b.npy")["lacks"][1]
    np.save(tmp_path / "c.npy", particles[0])
    assert "single image" in facts(tmp_path / "c.npy")["lacks"][1]
    np.save(tmp_path / "d.npy", particles[5:9])
    assert "only 4 sections" in facts(tmp_path / "d.npy")["remarks"][0]


def test_labels_have_no_contrast(facts, tmp_path):
    data = np.zeros(SHAPE, dtype=np.int8)
    data[3:9, 4:8, 5:30] = 3
    write_volume(Volume(data=data, voxel_spacing=10.0), tmp_path / "labels.mrc")
    found = facts(tmp_path / "labels.mrc")
    assert found["labels"] == [0, 3]
    assert "contrast" not in found


def test_multiscale(facts, tmp_path, particles):
    import zarr

    group = zarr.open_group(str(tmp_path / "a.zarr"), mode="w", zarr_format=2)
    datasets = []
    for level in range(2):
        data = particles[:: 2**level, :: 2**level, :: 2**level]
        group.create_array(str(level), data=data, chunks=(12, 12, 12))
        scale = {"type": "scale", "scale": [10.0 * 2**level] * 3}
        datasets.append({"path": str(level), "coordinateTransformations": [scale]})
    axes = [{"name": n, "type": "space", "unit": "angstrom"} for n in "zyx"]
    group.attrs["multiscales"] = [{"version": "0.4", "axes": axes, "datasets": datasets}]
    found = facts(tmp_path / "a.zarr")
    assert found["kind"] == "volume, OME-Zarr 0.4, level 0 of 2 (float32)"
    assert found["levels"] == [10, 20]


def test_structure(run, facts, tmp_path):
    path = tmp_path / "1abc.pdb"
    path.write_text(
        "ATOM      1  N   ALA A   1       1.000   2.000   3.000  1.00 20.00           N\n"
        "ATOM      2  CA  ALA A   1       2.000   2.000   3.000  1.00 20.00           C\n"
        "ATOM      3  CA  GLY B   2       5.000   2.000   3.000  1.00 20.00           C\n"
        "END\n"
    )
    found = facts(path)
    assert found["atoms"] == 3
    assert found["chains"] == 2
    assert found["mass_kda"] == pytest.approx((14.007 + 12.011 + 4 * 13.2) / 930, rel=1e-4)
    assert "1 residues are given by their CA or P alone" in found["remarks"][0]
    assert "kDa" in run(path)[1]


def test_tilt_files(run, facts, tmp_path):
    path = tmp_path / "TS_1.tlt"
    path.write_text("-60\n-57\n0\n3\n60.5\n")
    found = facts(path)
    assert (found["tilts"], found["tilt_range"], found["lacks"]) == (
        5,
        [-60, 60.5],
        ["dose", "CTF"],
    )
    star = tmp_path / "TS_1.star"
    star.write_text(
        "data_TS_1\n\nloop_\n_rlnTomoYTilt #1\n_rlnMicrographPreExposure #2\n_rlnDefocusU #3\n"
        "_rlnDefocusV #4\n_rlnDefocusAngle #5\n-3 3 30000 29000 5\n0 0 31000 30000 5\n"
    )
    found = facts(star)
    assert found["dose_e_per_a2"] == 6
    assert found["defocus_um"] == pytest.approx([2.9, 3.1])
    assert found["lacks"] == []
    assert "2.90 to 3.10 µm" in run(star)[1]


STAR = """\
data_particles

loop_
_rlnTomoName #1
_rlnCoordinateX #2
_rlnCoordinateY #3
_rlnCoordinateZ #4
_rlnMyColumn #5
"""


def test_particle_table(facts, run, tmp_path):
    path = tmp_path / "picks.star"
    path.write_text(STAR + "TS_1 1 2 3 7\nTS_1 4 5 6 7\nTS_2 1 1 1 8\n")
    found = facts(path)
    assert found["kind"] == "particle table, relion4"
    assert found["particles"] == 3
    assert found["tomograms"] == {"TS_1": 2, "TS_2": 1}
    assert "rlnMyColumn" in found["columns"]
    assert "voxel_spacing" not in found
    lacks = " | ".join(found["lacks"])
    assert "voxel size" in lacks
    assert "scores" in lacks
    assert "poses" in lacks
    assert "TS_1 2" in run(path)[1]


def test_table_without_coordinates(facts, tmp_path):
    star = tmp_path / "a.star"
    star.write_text("data_\n\nloop_\n_rlnMicrographName #1\n_rlnOther #2\na 1\nb 2\n")
    assert facts(star)["kind"] == "table, but no particle table"
    assert facts(star)["columns"] == ["rlnMicrographName", "rlnOther"]
    csv = tmp_path / "a.csv"
    csv.write_text("file,z_nm,y_nm\na,1,2\n")
    assert facts(csv)["columns"] == ["file", "z_nm", "y_nm"]
    text = tmp_path / "README.md"
    text.write_text("Nothing, really\n")
    assert facts(text)["lacks"] == ["anything that tomoloc reads"]


def test_optimisation_set(facts, tmp_path):
    path = tmp_path / "optimisation_set.star"
    path.write_text("data_\n\n_rlnTomoParticlesFile p.star\n_rlnTomoTomogramsFile t.star\n")
    (tmp_path / "t.star").write_text("")
    found = facts(path)
    assert found["kind"] == "RELION optimisation set"
    assert found["lacks"] == ["the file p.star it names"]


def test_settings_models_and_samples(facts, tmp_path, tomogram):
    record = tmp_path / "TS_1.run.toml"
    record.write_text('[tomoloc]\nversion = "0.1"\n[method]\nname = "template"\n')
    assert facts(record)["kind"] == "run record"
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.toml").write_text("[network]\nwidth = 32\n")
    (model / "card.md").write_text("trained on nothing\n")
    found = facts(model)
    assert (found["kind"], found["network"]) == ("model", {"width": 32})
    assert found["lacks"] == ["weights.safetensors"]
    sample = tmp_path / "sample"
    sample.mkdir()
    tomogram.rename(sample / "tomogram.mrc")
    (sample / "particles.star").write_text(STAR + "TS_1 1 2 3 7\n")
    found = facts(sample)
    assert found["kind"].startswith("simulated sample, volume, MRC")
    assert found["particles"] == 1


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("none.mrc", None, "no such file or folder"),
        ("text.mrc", b"plain words\n" * 100, "looks like text"),
        ("short.mrc", b"\0" * 100, "truncated: expected 1024 bytes"),
        ("bad.toml", b"= 1", "not TOML"),
        ("empty.star", b"", "empty"),
        ("empty.csv", b"", "empty"),
        ("a.bin", bytes(range(256)) * 20, "no kind of file that tomoloc reads"),
        ("a.pdb", b"hello\n", "no atoms"),
        ("a.tlt", b"hello\n", "expected a tilt angle"),
        ("folder", "folder", "not a Zarr image"),
    ],
)
def test_bad_files_get_one_line(run, tmp_path, name, content, said):
    path = tmp_path / name
    if content == "folder":
        path.mkdir()
    elif content is not None:
        path.write_bytes(content)
    code, out, err = run(path)
    assert (code, out) == (2, "")
    assert len(err.splitlines()) == 1
    assert said in err
    assert str(path) in err


def test_truncated_volume(run, tomogram):
    tomogram.write_bytes(tomogram.read_bytes()[:-7])
    code, _, err = run(tomogram)
    assert code == 2
    assert err.startswith("tomoloc: ")
    assert "truncated: expected 97792 bytes, found 97785" in err


def test_every_real_file(facts, shared):
    """Each is named for what it is, and what it lacks is said."""
    kinds = {
        "README.md": "text",
        "rec3D.rec": "volume, MRC mode 0 (uint8)",
        "axis_points.csv": "table, but no particle table",
        "czii_train_particles.csv": "particle table, csv",
        "rubisco.star": "particle table",
        "hsp60.star": "particle table",
        "tomograms.star": "RELION tomograms",
        "optimisation_set.star": "RELION optimisation set",
        "_mask.tif": "volume, TIFF (uint8)",
    }
    files = [path for path in shared.glob("real/**/*") if path.is_file()]
    assert len(files) >= 22
    for path in files:
        found = facts(path)
        expected = next((k for end, k in kinds.items() if path.name.endswith(end)), "")
        assert found["kind"].startswith(expected), path
        if path.suffix in (".mrc", ".tif", ".rec"):
            sized = path.parent.name == "microtubule" or path.suffix == ".rec"
            assert any("voxel size not recorded" in lack for lack in found["lacks"]) != sized, path
        if path.name.endswith("mask.tif"):
            assert found["labels"] == [0, 1]
        if path.parent.name == "microtubule" and path.suffix == ".tif":
            assert found["contrast"]["sign"] == "light"
            assert found["voxel_spacing"] == pytest.approx(10.52)


def test_nothing_heavy_is_loaded_for_a_volume(tomogram):
    code = (
        "import sys; from tomoloc.cli.main import main; main(['info', sys.argv[1]]);"
        "print([m for m in ('torch', 'matplotlib', 'gemmi', 'zarr') if m in sys.modules])"
    )
    result = subprocess.run(
        [sys.executable, "-c", code, str(tomogram)], capture_output=True, text=True, check=True
    )
    assert result.stdout.splitlines()[-1] == "[]"
