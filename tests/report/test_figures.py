"""Figures hold what they should; how they look is for eyes."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from matplotlib.collections import PatchCollection

from tomoloc.evaluate import evaluate_particles
from tomoloc.report.figures import (
    cut_patch,
    draw_montage,
    draw_precision_recall,
    draw_score_histogram,
    draw_slices,
    scale_bar_length,
)
from tomoloc.report.labels import draw_labels
from tomoloc.types import Particles, Tomogram

ORIGIN = np.array([100.0, -50, 30])


@pytest.fixture
def tomogram(rng) -> Tomogram:
    data = rng.normal(size=(21, 31, 41)).astype(np.float32)
    return Tomogram(data=data, voxel_spacing=10, origin=ORIGIN, name="TS_1")


@pytest.fixture
def particles(tomogram) -> Particles:
    # In the middle; off the xy slice; off all three slices.
    index = [[10, 15, 20], [2, 15, 20], [2, 3, 4]]
    return Particles(position=tomogram.to_position(index), score=[0.9, 0.5, 0.1])


def circles(figure) -> list[int]:
    """Number of circles in each panel."""
    panels = [axes for axes in figure.axes if axes.images]
    return [
        sum(len(c.get_paths()) for c in axes.collections if isinstance(c, PatchCollection))
        for axes in panels
    ]


def test_slices_show_the_particles_they_cut(tomogram, particles):
    figure = draw_slices(tomogram, particles, diameter=60, title="TS_1")
    assert circles(figure) == [1, 2, 2]
    assert [axes.images[0].get_array().shape for axes in figure.axes[:3]] == [
        (31, 41),
        (21, 41),
        (31, 21),
    ]


def test_circles_lie_on_the_particles_with_their_diameter(tomogram, particles):
    figure = draw_slices(tomogram, particles[:1], diameter=60)
    for axes, center in zip(figure.axes, [(20, 15), (20, 10), (10, 15)], strict=False):
        path = next(c for c in axes.collections if c.get_paths()).get_paths()[0]
        low, high = path.get_extents().min, path.get_extents().max
        np.testing.assert_allclose((low + high) / 2, center, atol=0.01)
        np.testing.assert_allclose(high - low, 6, atol=0.01)


def test_slices_show_the_middle_of_the_data():
    data = np.zeros((11, 15, 19), dtype=np.float32)
    data[5, 7, 9], data[5, 2, 9], data[5, 7, 1] = 3, 1, 1
    tomogram = Tomogram(data=data, voxel_spacing=10)
    figure = draw_slices(
        tomogram, Particles(position=[]), diameter=1e-3, thickness=10
    )  # no smoothing
    xy, xz, yz = (np.asarray(axes.images[0].get_array()) for axes in figure.axes[:3])
    np.testing.assert_array_equal(xy, data[5])
    np.testing.assert_array_equal(xz, data[:, 7])
    np.testing.assert_array_equal(yz, data[:, :, 9].T)


def test_wrong_picks_are_dotted_and_missed_particles_crossed(tomogram, particles):
    figure = draw_slices(
        tomogram,
        particles,
        diameter=60,
        right=np.array([True, False, False]),
        missed=tomogram.to_position([[10, 20, 30]]),
    )
    solid, dotted = figure.axes[1].collections
    assert (len(solid.get_paths()), len(dotted.get_paths())) == (1, 1)
    assert dotted.get_linestyle()[0][1] is not None
    np.testing.assert_allclose(figure.axes[0].lines[-1].get_xydata(), [[30, 20]])
    names = [text.get_text() for text in figure.legends[0].get_texts()]
    assert names == ["pick, right", "pick, wrong", "particle, missed"]


@pytest.mark.parametrize("score", [None, [0.5, 0.5, 0.5]])
def test_slices_without_a_range_of_scores(tomogram, particles, score):
    table = Particles(position=particles.position, score=score)
    assert circles(draw_slices(tomogram, table, diameter=60)) == [1, 2, 2]


def test_pyplot_is_not_touched():
    code = "import sys, tomoloc.report.picks; sys.exit('matplotlib.pyplot' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(
    ("extent", "length"), [(1900, 200), (5000, 1000), (2400, 200), (2600, 500), (40, 5)]
)
def test_scale_bars_are_round(extent, length):
    assert scale_bar_length(extent) == pytest.approx(length)


def test_patches_are_cut_around_the_particle():
    data = np.zeros((21, 31, 41), dtype=np.float32)
    data[10, 15, 20] = 1
    tomogram = Tomogram(data=data, voxel_spacing=10, origin=ORIGIN)
    patch = cut_patch(tomogram, tomogram.to_position([10, 15, 20]), 60)
    assert patch.shape == (11, 11)
    assert np.unravel_index(patch.argmax(), patch.shape) == (5, 5)
    corner = cut_patch(tomogram, tomogram.to_position([0, 0, 0]), 60)
    assert np.isnan(corner[:5]).all()
    assert np.isnan(corner[:, :5]).all()
    assert np.isfinite(corner[5:, 5:]).all()
    assert np.isnan(cut_patch(tomogram, tomogram.to_position([90, 0, 0]), 60)).all()


@pytest.mark.parametrize(("n", "n_patches"), [(0, 0), (1, 1), (3, 3), (40, 32)])
def test_montage_shows_best_and_borderline(tomogram, rng, n, n_patches):
    picks = Particles(position=rng.uniform(0, 200, (n, 3)) + ORIGIN, score=np.linspace(1, 0.5, n))
    figure = draw_montage(tomogram, picks, diameter=60, right=np.ones(n, dtype=bool))
    assert len(figure.axes) == n_patches
    shown = [axes.get_xlabel() for axes in figure.axes]
    if n == 40:
        assert shown[0] == "1.00"
        assert shown[-1] == "0.50"
    assert len(set(shown)) > n_patches / 2 or n < 2


def test_histogram_counts_every_pick(rng):
    scores = rng.normal(size=200)
    right = scores > 0
    figure = draw_score_histogram(scores, threshold=-1.0, right=right)
    (axes,) = figure.axes
    assert max(bar.get_y() + bar.get_height() for bar in axes.patches) <= 200
    assert sum(bar.get_height() for bar in axes.patches) == 200
    assert list(axes.lines[0].get_xdata()) == [-1, -1]
    names = [text.get_text() for text in figure.legends[0].get_texts()]
    assert f"right ({right.sum()})" in names
    assert "threshold -1" in names
    assert draw_score_histogram(np.zeros(0), threshold=None).axes


def test_precision_recall_marks_both_thresholds(particles):
    truth = Particles(position=particles.position[[0, 2]])
    results = evaluate_particles(particles, truth, radius=10).labels
    figure = draw_precision_recall(results)
    marks = {
        line.get_marker(): (line.get_xdata()[0], line.get_ydata()[0])
        for line in figure.axes[0].lines
        if line.get_marker() in {"o", "*"}
    }
    assert marks["o"] == (1, pytest.approx(2 / 3))
    assert marks["*"] == (1, pytest.approx(2 / 3))
    assert "set threshold: F1 0.80" in [t.get_text() for t in figure.axes[0].legend_.get_texts()]


def test_each_label_has_a_panel_with_its_own_picks(tomogram):
    middle = np.array([10.0, 15.0, 20.0])
    picks = Particles(
        position=tomogram.to_position(middle + np.arange(9)[:, None] * [0.0, 1.0, -1.0]),
        label=["one"] * 3 + ["two"] * 5 + ["three"],
        score=np.linspace(0.5, 1, 9),
    )
    figure = draw_labels(tomogram, picks, diameters={"one": 40.0, "two": 60.0, "three": 20.0})
    panels = [axes for axes in figure.axes if axes.images]
    assert [axes.texts[0].get_text() for axes in panels] == ["one: 3", "three: 1", "two: 5"]
    assert circles(figure) == [3, 1, 5]
    sizes = [np.ptp(axes.collections[0].get_paths()[0].vertices[:, 0]) for axes in panels]
    np.testing.assert_allclose(sizes, [4, 2, 6], rtol=1e-6)
