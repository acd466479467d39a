from __future__ import annotations

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter, maximum_filter, minimum_filter
from scipy.spatial.transform import Rotation

from tomoloc import localize
from tomoloc.localize import (
    EDGE_COLUMN,
    estimate_threshold,
    find_components,
    find_peaks,
    local_maxima,
    separate_scores,
)
from tomoloc.types import ScoreMap, Volume

SHAPE = (48, 56, 64)
SPACING = 7.5
ORIGIN = (100.0, -50.0, 20.0)


def score_map(data: np.ndarray, **more: object) -> ScoreMap:
    data = data if data.ndim == 4 else data[None]
    labels = tuple("abc"[: len(data)])
    return ScoreMap(
        data=data, voxel_spacing=SPACING, origin=ORIGIN, name="grid", labels=labels, **more
    )


def blobs(index: np.ndarray, heights: np.ndarray, width: float = 2.5) -> np.ndarray:
    grid = np.indices(SHAPE).reshape(3, -1).T
    data = np.zeros(SHAPE)
    for center, height in zip(index, heights, strict=True):
        squared = ((grid - center) ** 2).sum(axis=1).reshape(SHAPE)
        data += height * np.exp(-squared / (2 * width**2))
    return data


@pytest.fixture
def planted(rng: np.random.Generator) -> np.ndarray:
    cells = np.array([(12, 14, 10), (12, 40, 50), (36, 14, 30), (36, 42, 12), (24, 28, 55)])
    return cells + rng.uniform(-0.5, 0.5, cells.shape)


def test_peaks_are_found_between_voxels(planted: np.ndarray) -> None:
    scores = score_map(blobs(planted, np.linspace(2, 1, 5)))
    found = find_peaks(scores, threshold=0.5, min_distance=60)
    truth = scores.to_position(planted)
    assert len(found) == 5
    assert found.tomograms == ["grid"]
    # A parabola through a Gaussian of this width is right to 0.03 voxels.
    np.testing.assert_allclose(found.position, truth, atol=0.03 * SPACING)
    assert (np.diff(found.score) <= 0).all()


def test_peaks_as_narrow_as_voxels_are_found_between_them(planted: np.ndarray) -> None:
    scores = score_map(blobs(planted, np.linspace(2, 1, 5), width=0.7))
    truth = scores.to_position(planted)
    off = {}
    for shape in ("parabola", "gaussian"):
        found = find_peaks(scores, threshold=0.3, min_distance=60, shape=shape)
        away = np.linalg.norm(found.position[:, None] - truth, axis=-1)
        assert len(set(away.argmin(axis=1))) == len(found) == 5
        off[shape] = away.min(axis=1).max() / SPACING
    assert off["gaussian"] < 0.01
    assert off["parabola"] > 0.1


def test_minimum_distance_keeps_the_better_one() -> None:
    data = blobs(np.array([[20, 20, 20], [20, 20, 28]]), np.array([1.0, 2.0]), width=1.5)
    scores = score_map(data)
    both = find_peaks(scores, threshold=0.3, min_distance=7.9 * SPACING)
    one = find_peaks(scores, threshold=0.3, min_distance=8.1 * SPACING)
    assert len(both) == 2
    np.testing.assert_allclose(one.position, scores.to_position([[20, 20, 28]]), atol=0.5)


def test_labels_do_not_suppress_each_other(planted: np.ndarray) -> None:
    data = np.stack([blobs(planted, np.ones(5)), 2 * blobs(planted[:2], np.ones(2))])
    found = find_peaks(score_map(data), threshold=[0.5, 1.5], min_distance=60)
    assert [list(found.label).count(label) for label in "ab"] == [5, 2]


def test_edge_particles_are_kept_and_flagged() -> None:
    index = np.array([[0, 28, 32], [24, 28, 63], [24, 28, 30]])
    found = find_peaks(
        score_map(blobs(index, np.array([3.0, 2.0, 1.0]))),
        threshold=0.5,
        min_distance=30,
        diameter=60,
    )
    assert len(found) == 3
    assert found.extra[EDGE_COLUMN].tolist() == [1, 1, 0]


def test_mask_and_limit(planted: np.ndarray) -> None:
    scores = score_map(blobs(planted, np.linspace(2, 1, 5)))
    half = np.zeros(SHAPE)
    half[:24] = 1
    mask = Volume(data=half, voxel_spacing=SPACING, origin=ORIGIN)
    assert len(find_peaks(scores, threshold=0.5, min_distance=60, mask=mask)) == 2
    assert len(find_peaks(scores, threshold=0.5, min_distance=60, max_particles=3)) == 3
    with pytest.raises(ValueError, match="48 x 48 x 48 voxels for 64 x 56 x 48"):
        find_peaks(
            scores,
            threshold=0.5,
            min_distance=60,
            mask=Volume(data=np.ones((48, 48, 48)), voxel_spacing=SPACING),
        )


def test_nothing_is_an_empty_table() -> None:
    found = find_peaks(score_map(np.zeros(SHAPE)), threshold=0.5, min_distance=60)
    assert len(found) == 0
    assert found.position.shape == (0, 3)
    assert len(find_components(score_map(np.zeros(SHAPE)), threshold=0.5)) == 0


def test_constant_region_gives_one_peak() -> None:
    data = np.zeros(SHAPE)
    data[20:23, 20:23, 20:23] = 1
    assert len(find_peaks(score_map(data), threshold=0.5, min_distance=60)) == 1


def test_maxima_are_those_of_a_maximum_filter(rng, monkeypatch) -> None:
    data = np.round(gaussian_filter(rng.normal(size=(20, 31, 43)), 1.5), 2)  # with ties
    data[:6] = data.max() - 0.1  # flat
    data[9, 11, 13], data[9, 20, 30] = np.inf, np.nan
    inside = rng.uniform(size=data.shape) < 0.9
    known = np.nan_to_num(data, nan=-np.inf)
    peak = (known >= maximum_filter(known, 3)) & (known > minimum_filter(known, 3))
    expected = np.argwhere(peak & inside & (data > 0.1) & np.isfinite(data))
    assert len(expected) > 20
    for slab in (1 << 24, 5 * 31 * 43):
        monkeypatch.setattr(localize, "_SLAB_VOXELS", slab)
        found = local_maxima(data, threshold=0.1, inside=inside)
        np.testing.assert_array_equal(found, expected)


def test_rotation_of_the_best_voxel(planted: np.ndarray, rng: np.random.Generator) -> None:
    rotations = Rotation.random(7, rng=rng)
    index = rng.integers(0, 7, (1, *SHAPE))
    scores = score_map(blobs(planted, np.ones(5)), rotations=rotations, rotation_index=index)
    found = find_peaks(scores, threshold=0.5, min_distance=60)
    voxels = np.rint(scores.to_index(found.position)).astype(int)
    expected = rotations[index[0][tuple(voxels.T)]]
    np.testing.assert_allclose(found.rotation.as_matrix(), expected.as_matrix())


def test_components_by_size(planted: np.ndarray) -> None:
    data = blobs(planted, np.ones(5), width=4)
    data[2, 2, 2] = 1  # dust
    scores = score_map(data)
    # Above half its height the Gaussian is a ball of 2.355 sigma.
    diameter = 2.355 * 4 * SPACING
    found = find_components(scores, threshold=0.5, diameter_range=(0.8 * diameter, 1.2 * diameter))
    assert len(found) == 5
    truth = scores.to_position(planted)
    nearest = np.linalg.norm(found.position[:, None] - truth[None], axis=2).min(axis=1)
    assert nearest.max() < 0.1 * SPACING
    assert len(find_components(scores, threshold=0.5)) == 6
    assert not found.extra[EDGE_COLUMN].any()


@pytest.mark.parametrize("expected", [0.3, 1, 10, 100])
def test_threshold_lets_the_stated_number_pass(expected: float) -> None:
    counts = []
    for seed in range(12):
        rng = np.random.default_rng(seed)
        null, fresh = (score_map(gaussian_filter(rng.standard_normal(SHAPE), 1)) for _ in range(2))
        threshold = estimate_threshold(null, false_positives=expected, min_distance=30)
        counts.append(len(find_peaks(fresh, threshold=threshold, min_distance=30)))
    assert 0.3 * expected - 0.3 <= np.mean(counts) <= 1.3 * expected + 0.2


def test_threshold_counts_only_inside_the_mask(rng: np.random.Generator) -> None:
    null = score_map(gaussian_filter(rng.standard_normal(SHAPE), 1))
    quarter = np.zeros(SHAPE)
    quarter[:, :28, :32] = 1
    mask = Volume(data=quarter, voxel_spacing=SPACING, origin=ORIGIN)
    masked = estimate_threshold(null, false_positives=10, min_distance=30, mask=mask)
    whole = estimate_threshold(null, false_positives=40, min_distance=30)
    assert masked == pytest.approx(whole, rel=0.05)
    nowhere = Volume(data=np.zeros(SHAPE), voxel_spacing=SPACING)
    assert np.isinf(
        estimate_threshold(null, false_positives=10, min_distance=30, mask=nowhere)
    ).all()


@pytest.mark.parametrize("value", [0, -1])
def test_wrong_numbers(value: float) -> None:
    scores = score_map(np.zeros(SHAPE))
    with pytest.raises(ValueError, match="min_distance"):
        find_peaks(scores, threshold=0, min_distance=value)
    with pytest.raises(ValueError, match="false_positives"):
        estimate_threshold(scores, false_positives=value, min_distance=10)


@pytest.mark.parametrize(("n_wrong", "n_right"), [(10, 10), (74, 25), (3, 40), (200, 30)])
def test_two_groups_of_scores_are_separated(n_wrong: int, n_right: int) -> None:
    errors = []
    for seed in range(5):
        rng = np.random.default_rng(seed)
        wrong = 0.1 + np.abs(rng.normal(0, 0.03, n_wrong))
        right = rng.normal(0.34, 0.035, n_right)
        threshold = separate_scores(np.concatenate([wrong, right]), lower=0.1)
        errors.append((right < threshold).sum() + (wrong > threshold).sum())
    assert np.mean(errors) <= 0.05 * (n_wrong + n_right) + 0.5 * (n_wrong < 5) * n_wrong


@pytest.mark.parametrize("n", [8, 15, 60, 200])
@pytest.mark.parametrize("shape", ["normal", "skew", "uniform", "exponential"])
def test_one_group_is_left_alone(shape: str, n: int) -> None:
    rng = np.random.default_rng(n)
    n_split = 0
    for _ in range(6):
        score = {
            "normal": 0.3 + 0.05 * rng.standard_normal(n),
            "skew": 0.12 + rng.gamma(3, 0.04, n),
            "uniform": rng.uniform(0.12, 0.4, n),
            "exponential": 0.1 + rng.exponential(0.05, n),
        }[shape]
        n_split += separate_scores(score[score > 0.1], lower=0.1) > 0.1
    assert n_split <= 1


def test_separation_does_not_depend_on_units() -> None:
    rng = np.random.default_rng(1)
    score = np.concatenate([rng.normal(2, 0.2, 30), rng.normal(4, 0.3, 30)])
    first = separate_scores(score, lower=1)
    second = separate_scores(100 * score - 50, lower=50)
    assert first == pytest.approx((second + 50) / 100, rel=1e-3)
    assert 2.5 < first < 3.5
