"""Kinds without a name: planted ones come back, at any scale, and one is never torn apart."""

from __future__ import annotations

import numpy as np
import pytest

from tomoloc.features.kinds import find_kinds, name_kinds

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


def test_names_have_components_of_their_own_beside_the_other_kinds(rng):
    vectors, truth, centers = _plant(rng, (40, 30, 25), noise=0.05)
    examples = vectors[[0, 40]]
    given = {"examples": examples, "start": examples}
    kinds, sure = find_kinds(vectors), np.ones(len(vectors))
    named = name_kinds(kinds, vectors, sure, hold=np.array([2.0, 2.0]), **given)
    assert len(named) == 3
    before = 1 - (examples * centers[:2]).sum(axis=1)
    assert (1 - (named.centers * centers).sum(axis=1) < 0.3 * before.min()).all()
    np.testing.assert_allclose(named.count, [40, 30, 25], atol=1)
    assert (named.membership(vectors).argmax(axis=1) == truth).all()
    held = name_kinds(kinds, vectors, sure, hold=np.array([1e9, 1e9]), **given)
    np.testing.assert_allclose(held.centers[:2], examples, atol=1e-6)


def test_an_example_of_what_is_no_kind_has_its_component_nevertheless(rng):
    vectors, *_ = _plant(rng, (40,), noise=0.05, background=5)
    strange, sure = _unit(rng.normal(size=(1, CHANNELS))), np.ones(45)
    given = {"examples": strange, "start": strange, "hold": np.array([2.0])}
    kinds = find_kinds(vectors)
    named = name_kinds(kinds, vectors, sure, **given)
    assert len(named) == len(kinds) + 1
    assert named.centers[0] @ strange[0] > 0.95
    assert named.centers[1] @ kinds.centers[0] > 0.999
    alone = name_kinds(find_kinds(vectors[:0]), vectors[:0], sure[:0], **given)
    np.testing.assert_allclose(alone.centers, strange)


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
