"""Clusters of candidates: planted groups come back, and chance makes none."""

from __future__ import annotations

import numpy as np
import pytest

from tomoloc.features import clusters
from tomoloc.features.clusters import cluster_candidates, lay_out

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


def test_planted_groups_are_found(planted):
    vectors, scores, truth = planted
    found = cluster_candidates(vectors, scores)
    assert found.n_members.tolist() == pytest.approx(SIZES, abs=1)
    assert found.names == [f"cluster_{i}" for i in range(1, 6)]
    agree = found.label == truth  # both are ordered by size
    assert agree[truth >= 0].all()
    assert agree.mean() > 0.99
    assert (found.label[scores < 0.2] == -1).all()
    np.testing.assert_allclose(np.linalg.norm(found.targets, axis=1), 1, atol=1e-6)
    again = cluster_candidates(vectors, scores)
    for name in ("label", "targets", "similarity"):
        assert getattr(found, name).tobytes() == getattr(again, name).tobytes()


def test_like_candidates_lie_together_and_the_seed_decides_where(planted):
    vectors, scores, truth = planted
    plane = lay_out(vectors, scores, seed=3)
    np.testing.assert_array_equal(np.isfinite(plane[:, 0]), scores >= 0.2)
    assert lay_out(vectors, scores, seed=3).tobytes() == plane.tobytes()
    middles = np.stack([np.median(plane[truth == i], axis=0) for i in range(5)])
    rows = np.flatnonzero(truth >= 0)
    away = np.linalg.norm(plane[rows, None] - middles, axis=-1)
    assert (away.argmin(axis=1) == truth[rows]).mean() > 0.95
    few = lay_out(vectors[:20], scores[:20], min_score=0.5)
    assert not np.isfinite(few).any()


def test_those_that_are_too_many_to_shape_groups_join_them(rng, monkeypatch):
    monkeypatch.setattr(clusters, "SHAPING", 120)
    monkeypatch.setattr(clusters, "_ROWS", 77)
    centres = np.eye(CHANNELS)[:3]
    vectors, truth = _spread(rng, centres, (300, 250, 200), noise=0.03)
    found = cluster_candidates(vectors, np.ones(750), seed=1)
    np.testing.assert_array_equal(found.label, truth)
    other = cluster_candidates(vectors, np.ones(750), seed=2)
    np.testing.assert_array_equal(other.label, truth)


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


def test_medoids_are_members(rng):
    vectors, _ = _spread(rng, np.eye(CHANNELS)[:2], (50, 40))
    vectors = vectors.astype(np.float32)
    found = cluster_candidates(vectors, np.ones(90), target="medoid")
    for i, medoid in enumerate(found.targets):
        members = vectors[found.label == i]
        best = (members @ members.T).sum(axis=1).argmax()
        np.testing.assert_allclose(medoid, members[best], atol=1e-6)


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
