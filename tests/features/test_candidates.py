"""Candidates of an embedding with planted centres and planted vectors."""

from __future__ import annotations

import numpy as np
import pytest

from tomoloc.features import candidates
from tomoloc.features.candidates import Candidates, find_candidates, look_up
from tomoloc.localize import EDGE_COLUMN
from tomoloc.types import Particles, Volume

SHAPE, SPACING, CHANNELS = (18, 15, 21), 20.0, 6
ORIGIN = np.array([35.0, -12.0, 400.0])
CENTERS = np.array([[4.3, 5.1, 6.8], [9.2, 9.6, 3.4], [12.9, 4.4, 15.7], [0.2, 7.0, 9.1]])
UNSEEN = np.array([13.4, 10.2, 8.3])
"""A place whose vector is a target's, where the map of centres is low."""


def bump(index, width):
    grid = np.stack(np.meshgrid(*map(np.arange, SHAPE), indexing="ij"), axis=-1)
    return np.exp(-((grid - index) ** 2).sum(axis=-1) / (2 * width**2))


def make_embedding(rng, *, centers=True, dtype=np.float16):
    """All of background's direction but around the particles, which have the first axis's."""
    background = rng.standard_normal(CHANNELS)
    background[0] = 0
    background /= np.linalg.norm(background)
    data = np.tile(background, (*SHAPE, 1))
    probability = np.zeros(SHAPE)
    for index in [*CENTERS, UNSEEN]:
        share = bump(index, 1.2)[..., None]
        data += share * (3 * np.eye(CHANNELS)[0] - data)
    for height, index in zip((0.95, 0.7, 0.3, 0.5), CENTERS, strict=True):
        probability = np.maximum(probability, height * bump(index, 1.2))
    probability += 0.02 * bump(UNSEEN, 1.2)
    data /= np.linalg.norm(data, axis=-1, keepdims=True)
    if centers:
        data = np.concatenate([data, probability[..., None]], axis=-1)
    return Volume(
        data=np.moveaxis(data.astype(dtype), -1, 0),
        voxel_spacing=SPACING,
        origin=ORIGIN,
        name="TS_3",
    )


def test_centers_are_found_between_grid_points(rng):
    embedding = make_embedding(rng)
    found = find_candidates(embedding, centers=True)
    assert len(found) == 4
    np.testing.assert_allclose(found.particles.score, (0.95, 0.7, 0.5, 0.3), rtol=0.15)
    index = embedding.to_index(found.particles.position)
    np.testing.assert_allclose(index[[0, 1, 3]], CENTERS[:3], atol=0.1)
    np.testing.assert_allclose(index[2], np.round(CENTERS[3]), atol=0.5)
    np.testing.assert_array_equal(found.particles.extra[EDGE_COLUMN], [0, 0, 1, 0])
    assert found.particles.labels == ["candidate"]
    assert found.particles.tomograms == ["TS_3"]
    np.testing.assert_allclose(np.linalg.norm(found.vectors, axis=1), 1, atol=1e-6)
    assert (found.vectors[:, 0] > 0.9).all()
    assert find_candidates(embedding, centers=True, threshold=0.4)[1:].vectors.shape == (2, 6)


def test_what_resembles_a_target_is_a_candidate_too_and_none_comes_twice(rng):
    embedding = make_embedding(rng)
    target = np.eye(CHANNELS)[:1]
    found = find_candidates(embedding, centers=True, targets=target)
    assert len(found) == 5
    np.testing.assert_allclose(embedding.to_index(found.particles.position[4]), UNSEEN, atol=0.4)
    assert found.particles.score[4] < 0.05
    other = -np.eye(CHANNELS)[:1]
    assert len(find_candidates(embedding, centers=True, targets=other)) == 4
    both = find_candidates(embedding, centers=True, targets=np.concatenate([other, target]))
    np.testing.assert_array_equal(both.particles.position, found.particles.position)
    assert len(find_candidates(embedding, centers=True, targets=target, similarity=0.9999)) == 4


def test_what_resembles_the_ice_does_not_swamp_the_rest(rng, monkeypatch):
    embedding = make_embedding(rng)
    ice = np.asarray(embedding.data[:-1, 0, 0, 0], dtype=float)[None]
    ice /= np.linalg.norm(ice)
    embedding.data[:-1] += (0.02 * rng.standard_normal((CHANNELS, *SHAPE))).astype(np.float16)
    assert len(find_candidates(embedding, centers=True, targets=ice)) == 104
    monkeypatch.setattr(candidates, "_SIMILAR", 2)
    assert len(find_candidates(embedding, centers=True, targets=ice)) == 8


def test_without_a_map_of_centers(rng):
    embedding = make_embedding(rng, centers=False)
    found = find_candidates(embedding, centers=False, targets=np.eye(CHANNELS)[:1])
    assert len(found) == 5
    np.testing.assert_array_equal(found.particles.score, 0.5)
    with pytest.raises(ValueError, match="finds no centres"):
        find_candidates(embedding, centers=False)
    with pytest.raises(ValueError, match=r"expected targets of shape \(n, 6\)"):
        find_candidates(embedding, centers=False, targets=np.eye(4))


def test_slabs_do_not_show(rng, monkeypatch):
    embedding = make_embedding(rng)
    embedding.data[:-1, 3:5] = rng.standard_normal((CHANNELS, 2, *SHAPE[1:]))
    embedding.data[-1] += (0.2 * rng.random(SHAPE)).astype(np.float16)
    wanted = {"centers": True, "targets": np.eye(CHANNELS)[:2]}
    whole = find_candidates(embedding, **wanted)
    monkeypatch.setattr(candidates, "_SLAB_BYTES", 1)
    monkeypatch.setattr(candidates, "_ROWS", 100)
    parts = find_candidates(embedding, **wanted)
    assert len(whole) > 20
    np.testing.assert_allclose(parts.particles.position, whole.particles.position, rtol=1e-12)
    np.testing.assert_allclose(parts.vectors, whole.vectors, atol=1e-6)


def test_memory_mapped(rng, tmp_path):
    embedding = make_embedding(rng)
    stored = np.memmap(tmp_path / "x", np.float16, "w+", shape=(*SHAPE, CHANNELS + 1))
    stored[:] = np.moveaxis(embedding.data, 0, -1)
    mapped = embedding.with_data(np.moveaxis(stored, -1, 0))
    first, second = (find_candidates(volume, centers=True) for volume in (embedding, mapped))
    np.testing.assert_array_equal(first.vectors, second.vectors)


def test_nothing_there_is_an_empty_table(rng):
    embedding = make_embedding(rng)
    embedding.data[-1] = 0
    found = find_candidates(embedding, centers=True)
    assert len(found) == 0
    assert found.vectors.shape == (0, CHANNELS)
    assert EDGE_COLUMN in found.particles.extra
    assert len(look_up(embedding, [])) == 0


def test_look_up_interpolates(rng):
    data = rng.standard_normal((4, 5, 6, 7))
    volume = Volume(data=data, voxel_spacing=SPACING, origin=ORIGIN)
    index = np.array([[1, 2, 3], [4, 5, 6], [2, 2.25, 3], [-3, 0, 9]])
    vectors = look_up(volume, volume.to_position(index), centers=False)
    expected = [
        data[:, 1, 2, 3],
        data[:, 4, 5, 6],
        data[:, 2, 2, 3] * 0.75 + data[:, 2, 3, 3] * 0.25,
        data[:, 0, 0, 6],
    ]
    expected = [v / np.linalg.norm(v) for v in expected]
    np.testing.assert_allclose(vectors, expected, rtol=1e-5)


def test_look_up_averages_around_what_a_network_that_finds_centers_says(rng):
    data = rng.standard_normal((4, 7, 8, 9))
    volume = Volume(data=data, voxel_spacing=SPACING, origin=ORIGIN)
    index = np.array([[3, 4, 5], [0, 7, 4]])
    padded = np.pad(data[:3], [(0, 0), (1, 1), (1, 1), (1, 1)], mode="edge")
    weight = np.array([0.75, 1.5, 0.75])  # of a place's neighbours along an axis
    for vector, place in zip(look_up(volume, volume.to_position(index)), index, strict=True):
        z, y, x = (slice(n, n + 3) for n in place)
        mean = np.einsum("czyx,z,y,x->c", padded[:, z, y, x], weight, weight, weight)
        np.testing.assert_allclose(vector, mean / np.linalg.norm(mean), rtol=1e-5)


def test_one_vector_for_each_candidate():
    with pytest.raises(ValueError, match="a vector for each of 2"):
        Candidates(particles=Particles(position=np.zeros((2, 3))), vectors=np.zeros((3, 4)))


def test_a_long_particle_that_the_map_shows_in_parts_is_one_candidate() -> None:
    centers = np.zeros((16, 20, 24), np.float32)
    centers[8, 10, 5:9] = (0.4, 0.3, 0.3, 0.4)  # two maxima, with hardly a valley
    centers[8, 4, 14] = centers[8, 4, 18] = 0.35  # two, with nothing between them
    embedding = Volume(
        data=np.stack([np.ones_like(centers), centers]), voxel_spacing=20.0, origin=(9.0, -5.0, 2.0)
    )
    found = find_candidates(embedding, centers=True).particles
    assert len(found) == 3
    np.testing.assert_allclose(embedding.to_index(found.position)[0], [8, 10, 6.5], atol=0.3)
    assert found.score[0] == pytest.approx(1 - 0.6**2, abs=0.02)
    assert (np.asarray(found.score[1:]) < 0.5).all()
