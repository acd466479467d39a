"""Clusters of candidates: planted groups come back, chance makes none, a seed decides all."""

from __future__ import annotations

import numpy as np
import pytest

from tomoloc.features import clusters
from tomoloc.features.clusters import cluster_candidates

SIZES = (60, 44, 33, 25, 16)
CHANNELS = 16


def _unit(values):
    return values / np.linalg.norm(values, axis=-1, keepdims=True)


def _spread(rng, centres, sizes, noise=0.06):
    """Draw groups of unit vectors around centres, and the number of each one's group."""
    truth = np.repeat(np.arange(len(sizes)), sizes)
    return _unit(centres[truth] + noise * rng.normal(size=(len(truth), CHANNELS))), truth


@pytest.fixture
def planted(rng):
    """Five groups, places that look like nothing, and background with a low score; shuffled."""
    vectors, truth = _spread(rng, _unit(rng.normal(size=(5, CHANNELS))), SIZES)
    strange = _unit(rng.normal(size=(20, CHANNELS)))
    background, _ = _spread(rng, _unit(rng.normal(size=(1, CHANNELS))), (90,))
    vectors = np.concatenate([vectors, strange, background]).astype(np.float16)
    scores = np.concatenate([rng.uniform(0.3, 1, 198), rng.uniform(0.05, 0.19, 90)])
    truth = np.concatenate([truth, np.full(110, -1)])
    order = rng.permutation(len(truth))
    return vectors[order], scores[order], truth[order]


@pytest.fixture
def flat(monkeypatch):
    """Lay candidates out by their two main directions: in a moment, and without chance."""

    def lay_out(vectors, *, seed):
        assert seed >= 0
        centred = vectors - vectors.mean(axis=0)
        return (centred @ np.linalg.svd(centred, full_matrices=False)[2][:2].T).astype(np.float32)

    monkeypatch.setattr(clusters, "_map", lay_out)


def test_planted_groups_are_found_and_the_seed_decides(planted):
    vectors, scores, truth = planted
    found = cluster_candidates(vectors, scores, seed=3)
    assert found.n_members.tolist() == pytest.approx(SIZES, abs=1)
    assert found.names == [f"cluster_{i}" for i in range(1, 6)]
    agree = found.label == truth  # both are ordered by size
    assert agree[truth >= 0].all()
    assert agree.mean() > 0.99
    assert (found.label[scores < 0.2] == -1).all()
    np.testing.assert_allclose(np.linalg.norm(found.targets, axis=1), 1, atol=1e-6)
    np.testing.assert_array_equal(np.isfinite(found.coordinates[:, 0]), scores >= 0.2)
    again = cluster_candidates(vectors, scores, seed=3)
    for name in ("label", "targets", "coordinates", "similarity"):
        assert getattr(found, name).tobytes() == getattr(again, name).tobytes()


def test_halves_of_a_group_are_joined_and_groups_with_a_gap_are_not(rng):
    whole = rng.normal(size=(300, CHANNELS))
    halves = (whole[:, 0] > 0).astype(np.int64)
    assert clusters._join(whole, halves).max() == 0
    # In many dimensions the means of a few vectors always differ: that is no gap.
    few = rng.normal(size=(24, CHANNELS))
    assert clusters._join(few, np.repeat([0, 1], 12)).max() == 0
    apart = whole + 5.0 * halves[:, None] * np.eye(CHANNELS)[1]
    assert clusters._join(apart, halves).max() == 1
    three = np.where(np.arange(300) < 20, -1, halves)
    assert (clusters._join(apart, three) == -1).sum() == 20


def test_groups_that_are_joined_are_as_if_they_had_been_one(rng):
    a, b = rng.normal(size=(7, 4)), rng.normal(size=(11, 4)) + 1
    joined = clusters._Group.of(a).with_(clusters._Group.of(b))
    one = clusters._Group.of(np.concatenate([a, b]))
    assert joined.n == one.n
    np.testing.assert_allclose(joined.mean, one.mean)
    np.testing.assert_allclose(joined.scatter, one.scatter)


@pytest.mark.usefixtures("flat")
def test_those_that_are_not_laid_out_join_the_nearest_group(rng, monkeypatch):
    monkeypatch.setattr(clusters, "MAPPED", 120)
    monkeypatch.setattr(clusters, "_ROWS", 77)
    centres = np.eye(CHANNELS)[:3]
    vectors, truth = _spread(rng, centres, (300, 250, 200), noise=0.03)
    found = cluster_candidates(vectors, np.ones(750), seed=1)
    assert np.isfinite(found.coordinates).all(axis=1).sum() == 120
    np.testing.assert_array_equal(found.label, truth)
    other = cluster_candidates(vectors, np.ones(750), seed=2)
    np.testing.assert_array_equal(other.label, truth)
    assert other.coordinates.tobytes() != found.coordinates.tobytes()


@pytest.mark.usefixtures("flat")
def test_what_the_border_cuts_joins_but_does_not_shape(rng):
    centres = np.eye(CHANNELS)[:3]
    vectors, truth = _spread(rng, centres, (50, 40, 30), noise=0.03)
    whole = truth != 2
    found = cluster_candidates(vectors, np.ones(120), whole=whole)
    assert len(found) == 2
    assert (found.label[~whole] == -1).all()
    whole = np.arange(120) % 5 > 0
    found = cluster_candidates(vectors, np.ones(120), whole=whole)
    np.testing.assert_array_equal(found.label, truth)
    assert not np.isfinite(found.coordinates[~whole]).any()


@pytest.mark.usefixtures("flat")
def test_medoids_are_members(rng):
    vectors, _ = _spread(rng, np.eye(CHANNELS)[:2], (50, 40))
    vectors = vectors.astype(np.float32)
    found = cluster_candidates(vectors, np.ones(90), target="medoid")
    for i, medoid in enumerate(found.targets):
        members = vectors[found.label == i]
        best = (members @ members.T).sum(axis=1).argmax()
        np.testing.assert_allclose(medoid, members[best], atol=1e-6)


@pytest.mark.usefixtures("flat")
def test_one_kind_of_particle_is_one_group(rng):
    vectors, _ = _spread(rng, np.eye(CHANNELS)[:1], (80,))
    found = cluster_candidates(vectors, np.ones(80))
    assert len(found) == 1
    assert found.n_members[0] > 70


def test_too_few_are_no_group(rng):
    vectors, _ = _spread(rng, np.eye(CHANNELS)[:1], (29,))
    for n in (29, 0):
        found = cluster_candidates(vectors[:n], np.ones(n))
        assert len(found) == 0
        assert found.targets.shape == (0, CHANNELS)
        assert found.label.tolist() == [-1] * n
        assert found.names == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"scores": np.ones(4)}, r"got \(5, 3\) and \(4,\)"),
        ({"target": "mode"}, "mean or medoid"),
        ({"min_size": 1}, "at least 2"),
    ],
)
def test_wrong_parameters_are_refused(change, message):
    values = {"vectors": np.ones((5, 3)), "scores": np.ones(5)} | change
    with pytest.raises(ValueError, match=message):
        cluster_candidates(values.pop("vectors"), values.pop("scores"), **values)
