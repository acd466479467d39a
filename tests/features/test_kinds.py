"""Kinds without a name: planted ones come back, at any scale, and one is never torn apart."""

from __future__ import annotations

import numpy as np
import pytest

from tomoloc.features.kinds import find_kinds

CHANNELS = 16


def _unit(values):
    return values / np.linalg.norm(values, axis=-1, keepdims=True)


def _plant(rng, sizes, *, noise, background=0):
    centers = _unit(rng.normal(size=(len(sizes), CHANNELS)))
    truth = np.repeat(np.arange(len(sizes)), sizes)
    vectors = centers[truth] + noise * rng.normal(size=(len(truth), CHANNELS))
    strange = rng.normal(size=(background, CHANNELS))
    truth = np.concatenate([truth, np.full(background, -1)])
    return _unit(np.concatenate([vectors, strange])), truth, centers


@pytest.mark.parametrize("noise", [0.006, 0.06])
def test_planted_kinds_are_found_at_any_scale(rng, noise):
    vectors, truth, centers = _plant(rng, (40, 25, 12, 200), noise=noise, background=60)
    kinds = find_kinds(vectors)
    assert len(kinds) == 4
    own = (kinds.centers @ centers.T).argmax(axis=1)
    assert sorted(own) == [0, 1, 2, 3]
    assert (1 - (kinds.centers @ centers.T).max(axis=1)).max() < 3 * noise**2
    np.testing.assert_allclose(kinds.count, np.bincount(truth[truth >= 0])[own], rtol=0.1)
    chance = kinds.membership(vectors)
    assert chance.sum(axis=1).max() <= 1 + 1e-9
    named = np.where(chance.max(axis=1) > 0.5, own[chance.argmax(axis=1)], -1)
    assert (named == truth).mean() > 0.99


@pytest.mark.parametrize("dimensions", [3, CHANNELS])
@pytest.mark.parametrize("n", [30, 4000])
def test_one_kind_is_one_however_many(rng, n, dimensions):
    noise = np.zeros((n, CHANNELS))
    noise[:, :dimensions] = 0.2 / np.sqrt(dimensions) * rng.normal(size=(n, dimensions))
    kinds = find_kinds(_unit(np.eye(CHANNELS)[-1] + noise), spread=0.02)
    assert len(kinds) == 1
    assert kinds.count[0] > 0.95 * n


def test_candidates_that_count_little_make_no_kind(rng):
    vectors, truth, centers = _plant(rng, (30, 30), noise=0.03)
    kinds = find_kinds(vectors, np.where(truth == 0, 1.0, 0.01))
    assert len(kinds) == 1
    assert kinds.centers[0] @ centers[0] > 0.99


def test_nothing_dense_is_nothing(rng):
    assert len(find_kinds(_unit(rng.normal(size=(40, CHANNELS))), np.full(40, 0.7))) == 0
    for n in (0, 1):
        kinds = find_kinds(np.eye(CHANNELS)[:n])
        assert len(kinds) == 0
        assert kinds.membership(np.eye(CHANNELS)).shape == (CHANNELS, 0)


def test_copies_of_one_vector_are_a_kind():
    kinds = find_kinds(np.repeat(np.eye(CHANNELS)[:1], 12, axis=0))
    assert len(kinds) == 1
    assert kinds.count[0] > 11
