"""Samples as folders."""

from __future__ import annotations

import errno
import json
from dataclasses import replace

import mrcfile
import numpy as np
import pytest
import starfile
from scipy.spatial.transform import Rotation

from tomoloc.io import samples
from tomoloc.io.samples import read_recipe_mapping, read_sample, write_sample
from tomoloc.types import CTF, Particles, Sample, TiltSeries, Tomogram, Volume

SHAPE = (12, 16, 20)
RECIPE = {"name": "made", "seed": 5, "specimen": {"shape": [12, 16, 20], "border": "cut"}}


def grid(values):
    return Volume(data=values, voxel_spacing=8.5, name="made")


def points(rng, first, n):
    """Points of two objects with the instance numbers `first` and the next."""
    return Particles(
        position=rng.uniform(0, 90, (2 * n, 3)),
        label="curve",
        tomogram="made",
        rotation=Rotation.random(2 * n, rng=rng),
        extra={"tomolocInstance": np.repeat([first, first + 1], n)},
    )


@pytest.fixture
def sample(rng):
    n = 5
    series = TiltSeries(
        tilt_angles=[-40, -20, 0, 20, 40.0],
        images=rng.poisson(50, (n, 16, 20)).astype(np.float32),
        pixel_spacing=8.5,
        dose_e_per_a2=[10, 6, 2, 4, 8.0],
        ctf=CTF(
            defocus_u_um=np.linspace(2.1, 2.5, n),
            defocus_v_um=np.linspace(2.0, 2.4, n),
            defocus_angle=np.full(n, 33.0),
            voltage_kv=200,
            amplitude_contrast=0.1,
            phase_shift=12.0,
        ),
    )

    return Sample(
        tomogram=Tomogram(
            data=rng.normal(size=SHAPE).astype(np.float32),
            voxel_spacing=8.5,
            name="made",
            tilt_series=series,
        ),
        particles=Particles(
            position=rng.uniform(0, 90, (4, 3)),
            label=["a", "b b", "a", "a"],
            tomogram="made",
            rotation=Rotation.random(4, rng=rng),
            extra={"tomolocConformer": np.arange(4)},
        ),
        labels=grid(rng.integers(0, 3, SHAPE).astype(np.uint16)),
        legend={1: "a", 2: "b b"},
        instances=grid(rng.integers(0, 5, SHAPE).astype(np.uint16)),
        density=grid(rng.normal(size=SHAPE).astype(np.float32)),
    )


def test_round_trip(sample, tmp_path):
    write_sample(sample, tmp_path / "s", recipe=RECIPE, tilt_series=True, density=True)
    back = read_sample(tmp_path / "s")
    for name in ("tomogram", "labels", "instances", "density"):
        was, now = getattr(sample, name), getattr(back, name)
        np.testing.assert_array_equal(now.data, was.data)
        assert now.voxel_spacing == pytest.approx(8.5)
    assert back.labels.data.dtype == np.uint16
    assert back.tomogram.name == "made"
    assert back.legend == sample.legend
    assert back.scene == RECIPE
    np.testing.assert_allclose(back.particles.position, sample.particles.position, atol=1e-5)
    assert back.particles.label.tolist() == ["a", "b b", "a", "a"]
    assert (back.particles.rotation * sample.particles.rotation.inv()).magnitude().max() < 1e-6
    assert back.particles.extra["tomolocConformer"].tolist() == [0, 1, 2, 3]
    was, now = sample.tomogram.tilt_series, back.tomogram.tilt_series
    np.testing.assert_array_equal(now.images, was.images)
    for name in ("tilt_angles", "dose_e_per_a2", "pixel_spacing", "tilt_axis_angle"):
        np.testing.assert_allclose(getattr(now, name), getattr(was, name))
    for name in ("defocus_u_um", "defocus_v_um", "defocus_angle", "phase_shift", "voltage_kv"):
        np.testing.assert_allclose(getattr(now.ctf, name), getattr(was.ctf, name))
    assert now.ctf.amplitude_contrast == 0.1


def test_files_are_those_of_the_manual_and_open_with_other_programs(sample, tmp_path):
    write_sample(sample, tmp_path / "s", recipe=RECIPE)
    files = {path.name for path in (tmp_path / "s").iterdir()}
    assert files == {
        "tomogram.mrc", "particles.star", "labels.mrc", "labels.json", "instances.mrc",
        "tilt_series.star", "recipe.toml",
    }  # fmt: skip
    with mrcfile.open(tmp_path / "s" / "tomogram.mrc") as mrc:
        np.testing.assert_array_equal(mrc.data, sample.tomogram.data)
        assert float(mrc.voxel_size.x) == pytest.approx(8.5)
    table = starfile.read(tmp_path / "s" / "particles.star", always_dict=True)["particles"]
    np.testing.assert_allclose(
        table["rlnCoordinateX"], sample.particles.position[:, 0] / 8.5, atol=1e-5
    )
    assert json.loads((tmp_path / "s" / "labels.json").read_text()) == {"1": "a", "2": "b b"}
    write_sample(sample, tmp_path / "s", recipe=RECIPE, tilt_series=True, density=True)
    more = {path.name for path in (tmp_path / "s").iterdir()} - files
    assert more == {"tilt_series.mrc", "tilt_angles.tlt", "density.mrc"}
    assert (tmp_path / "s" / "tilt_angles.tlt").read_text().split()[0] == "-40.00"


def test_cellular_truth_comes_back(sample, rng, tmp_path):
    halves = [rng.normal(size=SHAPE).astype(np.float32) for _ in range(2)]
    whole = replace(
        sample,
        membranes=points(rng, 5, 6),
        filaments=points(rng, 7, 3),
        halves=tuple(Tomogram(data=x, voxel_spacing=8.5, name="made") for x in halves),
        summary={"fraction": 0.25, "placed": {"ä": [3, 4]}},
    )
    write_sample(whole, tmp_path / "s", recipe=RECIPE)
    back = read_sample(tmp_path / "s")
    for name in ("membranes", "filaments"):
        was, now = getattr(whole, name), getattr(back, name)
        np.testing.assert_allclose(now.position, was.position, atol=1e-5)
        assert (now.rotation * was.rotation.inv()).magnitude().max() < 1e-6
        assert now.extra["tomolocInstance"].tolist() == was.extra["tomolocInstance"].tolist()
    assert back.summary == whole.summary
    for was, now in zip(halves, back.halves, strict=True):
        np.testing.assert_array_equal(now.data, was)
        assert now.name == "made"
        np.testing.assert_array_equal(now.tilt_series.tilt_angles, [-40, -20, 0, 20, 40])
        assert now.tilt_series.images is None


def test_cellular_truth_opens_with_other_programs(sample, rng, tmp_path):
    whole = replace(sample, membranes=points(rng, 5, 6), filaments=points(rng, 7, 3))
    write_sample(whole, tmp_path / "s")
    for name, column in (("membranes", "Normal"), ("filaments", "Tangent")):
        was = getattr(whole, name)
        table = starfile.read(tmp_path / "s" / f"{name}.star", always_dict=True)["particles"]
        found = table[[f"tomoloc{column}{axis}" for axis in "XYZ"]].to_numpy()
        np.testing.assert_allclose(found, was.rotation.as_matrix()[:, :, 2], atol=1e-7)
        place = table[[f"rlnCoordinate{axis}" for axis in "XYZ"]].to_numpy()
        np.testing.assert_allclose(place * 8.5, was.position, atol=1e-5)


def test_no_points_are_an_empty_table(sample, tmp_path):
    empty = Particles(position=np.zeros((0, 3)))
    write_sample(replace(sample, membranes=empty), tmp_path / "s")
    back = read_sample(tmp_path / "s")
    assert len(back.membranes) == 0
    assert back.filaments is None
    assert (back.halves, back.summary) == ((), {})


@pytest.mark.parametrize("value", [np.float32(1), float("nan")])
def test_a_summary_that_is_no_json_leaves_nothing(sample, tmp_path, value):
    with pytest.raises(ValueError, match=r"scene\.json must hold what JSON can"):
        write_sample(replace(sample, summary={"x": value}), tmp_path / "s")
    assert list(tmp_path.iterdir()) == []


def test_same_sample_same_bytes(sample, tmp_path):
    for name in ("first", "second"):
        write_sample(sample, tmp_path / name, recipe=RECIPE, tilt_series=True, density=True)
    for path in (tmp_path / "first").iterdir():
        assert path.read_bytes() == (tmp_path / "second" / path.name).read_bytes(), path.name


def test_little_is_enough(tmp_path):
    least = Sample(
        tomogram=Tomogram(data=np.zeros(SHAPE, np.float32), voxel_spacing=8.5, name="bare"),
        particles=Particles(position=np.zeros((0, 3))),
    )
    write_sample(least, tmp_path / "bare", tilt_series=True, density=True)
    back = read_sample(tmp_path / "bare")
    assert len(back.particles) == 0
    assert back.labels is back.scene is back.density is back.tomogram.tilt_series is None
    assert back.legend == {}
    assert back.tomogram.name == "bare"
    assert read_recipe_mapping(tmp_path / "bare") is None


def test_a_full_disk_leaves_nothing_new(sample, tmp_path, monkeypatch):
    write_sample(sample, tmp_path / "old", recipe=RECIPE)
    before = (tmp_path / "old" / "tomogram.mrc").read_bytes()

    def fail(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(samples, "write_particles", fail)
    for name in ("new", "old"):
        with pytest.raises(OSError, match=rf"cannot write the sample .*{name}: No space left"):
            write_sample(sample, tmp_path / name, recipe=RECIPE)
    assert [path.name for path in tmp_path.iterdir()] == ["old"]
    assert (tmp_path / "old" / "tomogram.mrc").read_bytes() == before


def test_existing_folders_are_kept_on_request(sample, tmp_path):
    write_sample(sample, tmp_path / "s")
    with pytest.raises(FileExistsError, match="already exists"):
        write_sample(sample, tmp_path / "s", overwrite=False)


def test_a_folder_with_other_things_is_not_replaced(sample, tmp_path):
    folder = tmp_path / "made"
    write_sample(sample, folder)
    (folder / "picks").mkdir()
    with pytest.raises(FileExistsError, match=r"no part of a sample \(picks\)"):
        write_sample(sample, folder)
    assert (folder / "picks").is_dir()
    assert (folder / "tomogram.mrc").is_file()


def test_what_is_no_sample_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="no sample: it has no tomogram"):
        read_sample(tmp_path)
    (tmp_path / "recipe.toml").write_text("name =")
    with pytest.raises(ValueError, match=r"recipe\.toml is no valid TOML"):
        read_recipe_mapping(tmp_path)
