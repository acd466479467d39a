"""Pictures of simulated samples, and their page."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from matplotlib.colors import to_hex

from tomoloc.cli.main import main
from tomoloc.io.samples import write_sample
from tomoloc.report.samples import find_samples
from tomoloc.report.scenes import draw_scene, label_colours, shade_model
from tomoloc.types import Particles, Sample, TiltSeries, Tomogram, Volume

SHAPE = (12, 30, 40)


@pytest.fixture
def sample(rng) -> Sample:
    labels = np.zeros(SHAPE, dtype=np.uint16)
    labels[4:8, 5:12, 6:16] = 1
    labels[5:9, 20:26, 20:30] = 2
    labels[2:4, 24:28, 4:12] = 3
    images = rng.poisson(50, (3, *SHAPE[1:])).astype(np.float32)
    series = TiltSeries(tilt_angles=[-50, 2, 50], images=images, pixel_spacing=12.0)
    tomogram = Tomogram(
        data=rng.normal(size=SHAPE).astype(np.float32),
        voxel_spacing=12.0,
        name="x_000",
        tilt_series=series,
    )
    grid = Volume(data=labels, voxel_spacing=12.0)
    particles = Particles(
        position=grid.to_position([[6, 8, 10], [7, 23, 25]]),
        label=["prey", "crowd"],
        tomogram="x_000",
        extra={"tomolocRole": np.array(["target", "distractor"])},
    )
    return Sample(
        tomogram=tomogram,
        particles=particles,
        labels=grid,
        legend={1: "prey", 2: "crowd", 3: "gold"},
        instances=grid,
        summary={"volume_fraction": 0.25},
    )


def test_colours_tell_targets_distractors_and_gold_apart(sample):
    colours = label_colours(sample)
    assert [to_hex(colour) for colour in colours] == ["#000000", "#4c9be8", "#8d97a3", "#ffd700"]
    alone = replace(sample, particles=sample.particles[[1]])
    assert to_hex(label_colours(alone)[2]) != "#8d97a3"


def test_the_uppermost_label_is_seen(sample):
    labels = np.asarray(sample.labels.data).copy()
    labels[10, 5:12, 6:16] = 3
    colours = label_colours(sample)
    before, after = (shade_model(one, colours) for one in (sample.labels.data, labels))
    assert before.shape == (*SHAPE[1:], 3)
    assert before.min() >= 0
    assert before.max() <= 1
    # Gold is yellow: far less blue than red. It covers the blue particle below it.
    gold = (after[..., 0] > 1.5 * after[..., 2]) & ~(before[..., 0] > 1.5 * before[..., 2])
    assert 30 < gold.sum() < 120
    empty = shade_model(np.zeros(SHAPE, int), colours)
    assert np.ptp(empty.reshape(-1, 3), axis=0).max() == 0


def test_panels(sample):
    texts = [text.get_text() for text in draw_scene(sample).texts]
    assert texts == ["model", "image at 2°", "tomogram", "atlas"]
    series = replace(sample.tomogram.tilt_series, images=None)
    without = replace(sample, tomogram=replace(sample.tomogram, tilt_series=series))
    assert [t.get_text() for t in draw_scene(without).texts] == ["model", "tomogram", "atlas"]
    with pytest.raises(ValueError, match="x_000 has no labels"):
        draw_scene(replace(sample, labels=None))


def test_page_of_samples(sample, tmp_path, capsys):
    for name in ("x_000", "x_001"):
        write_sample(sample, tmp_path / name)
    assert main(["report", str(tmp_path)]) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'report.html'}\n"
    page = (tmp_path / "report.html").read_text("utf-8")
    for words in ("2 simulated samples", "x_001", "25.0 %", "crowd", "40 x 30 x 12 voxels"):
        assert words in page
    assert (tmp_path / "pictures" / "x_000_scene.png").is_file()
    assert find_samples(tmp_path) == [tmp_path / "x_000", tmp_path / "x_001"]
    # The page beside them does not keep the samples from being made again.
    write_sample(sample, tmp_path / "x_000")


def test_page_of_one_sample_and_of_a_damaged_one(sample, tmp_path, capsys):
    write_sample(sample, tmp_path / "x_000")
    assert main(["report", str(tmp_path / "x_000")]) == 0
    assert (tmp_path / "report.html").is_file()
    write_sample(sample, tmp_path / "x_001")
    (tmp_path / "x_001" / "tomogram.mrc").write_bytes(b"short")
    assert main(["report", str(tmp_path)]) == 0
    page = (tmp_path / "report.html").read_text("utf-8")
    assert "This sample cannot be read" in page
    assert "x_001: not shown" in capsys.readouterr().err
