"""Alignment without a reference, and classification by it: planted particles come back."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
from scipy import fft, ndimage
from scipy.spatial.transform import Rotation

from tomoloc.features.averages import Average, align
from tomoloc.features.boxes import Boxes
from tomoloc.features.candidates import Candidates
from tomoloc.features.classification import classify, classify_candidates, find_groups
from tomoloc.physics.potential import make_potential
from tomoloc.physics.rotations import angular_distance
from tomoloc.physics.wedge import missing_wedge
from tomoloc.simulate.structures import make_complex
from tomoloc.types import Particles, Volume

SPACING, SIDE = 10.0, 21
EACH = 12
NOISE = 0.6


@dataclass(frozen=True, kw_only=True)
class Scene:
    """A tomogram of two kinds, where a picker saw them, where they are, and how they lie."""

    volume: Volume
    position: np.ndarray
    center: np.ndarray
    kind: np.ndarray
    rotation: Rotation
    density: list[np.ndarray]


def turn(density, rotation):
    """Turn a cube about its middle voxel."""
    matrix = rotation.inv().as_matrix()[::-1, ::-1]  # arrays are zyx, rotations xyz
    middle = np.array(density.shape) // 2
    return ndimage.affine_transform(density, matrix, middle - matrix @ middle, order=3)


def make_density(seed, mass):
    structure = make_complex(seed, mass_kda=mass, symmetry="C1")
    cube = make_potential(structure, voxel_spacing=SPACING, shape=(SIDE,) * 3, low_pass=25.0).data
    return np.asarray(cube / cube.max(), dtype=np.float32)


@pytest.fixture(scope="module")
def scene() -> Scene:
    rng = np.random.default_rng(5)
    density = [make_density(5, 350), make_density(8, 350)]
    shape = (62, 150, 176)
    y, x = np.meshgrid(np.arange(16, 150, 29), np.arange(16, 176, 29), indexing="ij")
    y, x = y.ravel()[: 2 * EACH], x.ravel()[: 2 * EACH]
    kind = rng.permutation(np.arange(len(y)) % 2)
    rotation = Rotation.random(len(y), rng=rng)
    index = np.column_stack([rng.uniform(24, 38, len(y)), y, x]) + rng.uniform(
        -0.5, 0.5, (len(y), 3)
    )
    data = np.zeros(shape, dtype=np.float32)
    for place, which, one in zip(index, kind, rotation, strict=True):
        nearest = np.rint(place).astype(int)
        turned = ndimage.shift(turn(density[which], one), place - nearest, order=3)
        data[tuple(slice(i - SIDE // 2, i + SIDE // 2 + 1) for i in nearest)] += turned
    data += rng.normal(0, NOISE, shape).astype(np.float32)
    data = fft.irfftn(fft.rfftn(data) * missing_wedge(shape, (-60, 60)), s=shape)
    volume = Volume(
        data=data.astype(np.float32), voxel_spacing=SPACING, origin=(-310.0, 40.0, 77.0)
    )
    seen = index + rng.uniform(-0.6, 0.6, index.shape)  # as a picker gives them
    return Scene(
        volume=volume,
        position=volume.to_position(seen),
        center=volume.to_position(index),
        kind=kind,
        rotation=rotation,
        density=density,
    )


@pytest.fixture(scope="module")
def boxes(scene) -> Boxes:
    return Boxes.of(scene.volume, scene.position)


@pytest.fixture(scope="module")
def average(boxes, scene) -> Average:
    return align(boxes, np.flatnonzero(scene.kind == 0))


def test_noise_of_boxes_is_one(boxes, scene):
    rng = np.random.default_rng(0)
    empty = scene.volume.with_data(rng.normal(3.0, 2.0, scene.volume.shape).astype(np.float32))
    values = Boxes.of(empty, scene.position).values
    assert np.mean(np.abs(values) ** 2) == pytest.approx(1, rel=0.05)
    assert np.mean(np.abs(boxes.values) ** 2) > 1.05


def test_unseen_frequencies_are_left_out(boxes):
    tilt = np.rad2deg(np.arctan2(boxes.frequency[:, 0], boxes.frequency[:, 2]))
    far = np.hypot(boxes.frequency[:, 0], boxes.frequency[:, 2]) > 5
    inside = (np.abs(tilt) > 70) & (np.abs(tilt) < 110) & far
    assert not inside.any()
    assert far.sum() > 200


def test_relative_orientations_come_back(average, scene):
    found, true = average.fit.orientation, scene.rotation[average.rows]
    # The frame of an average is free: what turns it to the truth is the same for all.
    frame = (found.inv() * true).mean()
    assert np.median(angular_distance(found * frame, true)) < 8


def test_average_is_the_particle(average, boxes, scene):
    found, true = average.fit.orientation, scene.rotation[average.rows]
    half = (boxes.size - SIDE) // 2
    truth = np.pad(scene.density[0], half)
    laid = turn(truth, (found.inv() * true).mean())
    density = average.density(boxes)
    assert np.corrcoef(density[average.mask > 0.5], laid[average.mask > 0.5])[0, 1] > 0.75


def test_gain_tells_kinds_apart(average, boxes, scene):
    fit = average.compare(boxes, np.arange(len(boxes)), None)
    own, other = fit.gain[scene.kind == 0], fit.gain[scene.kind == 1]
    assert np.median(own) > 1.3 * np.median(other)
    assert (own > np.median(other)).mean() > 0.9


def test_noise_gains_little_from_its_own_average(scene, average):
    rng = np.random.default_rng(1)
    empty = scene.volume.with_data(rng.normal(size=scene.volume.shape).astype(np.float32))
    noise = align(Boxes.of(empty, scene.position), average.rows)
    # The best of thousands of poses gains a little anywhere.
    assert noise.gain < 0.2 * average.gain


def test_a_mixed_group_falls_apart(boxes, scene):
    vectors = np.random.default_rng(2).normal(size=(len(boxes), 8))
    found = classify(boxes, [np.arange(len(boxes))], vectors=vectors, certainty=np.ones(len(boxes)))
    assert len(found) == 2
    side = found.gain.argmax(axis=1)
    assert max(np.mean(side == scene.kind), np.mean(side != scene.kind)) > 0.95


def test_a_group_without_differences_is_taken_apart_and_joined(boxes, scene):
    """Both kinds, with one vector: parts are divided by chance, and find what there is."""
    vectors = np.tile(np.eye(8)[0], (len(boxes), 1))
    found = classify(boxes, [np.arange(len(boxes))], vectors=vectors, certainty=np.ones(len(boxes)))
    assert len(found) == 2


def test_groups_of_one_kind_join(boxes, scene):
    own, other = np.flatnonzero(scene.kind == 0), np.flatnonzero(scene.kind == 1)
    vectors = np.random.default_rng(2).normal(size=(len(boxes), 8))
    groups = [own[:6], own[6:], other]
    found = classify(boxes, groups, vectors=vectors, certainty=np.ones(len(boxes)))
    assert len(found) == 2
    side = found.gain.argmax(axis=1)
    assert max(np.mean(side == scene.kind), np.mean(side != scene.kind)) > 0.95


def test_the_same_input_gives_the_same_average(average, boxes):
    again = align(boxes, average.rows)
    np.testing.assert_array_equal(again.fit.rotation, average.fit.rotation)
    np.testing.assert_array_equal(again.fit.gain, average.fit.gain)


def test_little_is_no_kind(boxes):
    found = classify(boxes, [[0, 1]], vectors=np.eye(len(boxes)), certainty=np.ones(len(boxes)))
    assert len(found) == 0
    assert found.gain.shape == (len(boxes), 0)


def test_wrong_use_is_refused(scene, boxes):
    with pytest.raises(ValueError, match="at least three voxels, 30 Å; got 20"):
        Boxes.of(scene.volume, scene.position, resolution=20)
    flat = scene.volume.with_data(np.ones(scene.volume.shape, np.float32))
    with pytest.raises(ValueError, match="no contrast"):
        Boxes.of(flat, scene.position)
    with pytest.raises(ValueError, match="nothing to align"):
        align(boxes, [])


def test_boxes_may_reach_over_the_border(scene):
    corner = scene.volume.to_position([[0, 0, 0], [61, 149, 175]])
    assert np.isfinite(Boxes.of(scene.volume, corner).values).all()


def test_empty_margins_are_no_noise(scene, boxes):
    wide = np.zeros((62, 150, 500), dtype=np.float32)
    wide[:, :, :176] = scene.volume.data
    volume = Volume(data=wide, voxel_spacing=SPACING, origin=scene.volume.origin)
    found = Boxes.of(volume, scene.position)
    assert np.mean(np.abs(found.values) ** 2) == pytest.approx(
        np.mean(np.abs(boxes.values) ** 2), rel=0.15
    )


def test_candidates_of_a_tomogram_are_classified(scene):
    rng = np.random.default_rng(3)
    n, stray = len(scene.kind), 4
    vectors = 0.05 * rng.normal(size=(n + stray, 8)) + [1.0, *np.zeros(7)]
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    score = np.append(np.full(n, 0.9), np.full(stray, 0.05))
    position = np.concatenate([scene.position, scene.position[:stray] + 60])
    order = rng.permutation(n + stray)
    particles = Particles(position=position[order], score=score[order], label="candidate")
    candidates = Candidates(particles=particles, vectors=vectors[order].astype(np.float32))
    found = classify_candidates(scene.volume, candidates, spread=0.02)
    hardly = score[order] < 0.1
    assert np.isneginf(found.gain[hardly]).all()
    assert found.gain.shape == (n + stray, 2)
    side, kind = found.gain[~hardly].argmax(axis=1), scene.kind[order[~hardly]]
    assert max(np.mean(side == kind), np.mean(side != kind)) > 0.9
    # A picker was told wrong places, and averages know it.
    away = candidates.particles.position[~hardly] - scene.center[order[~hardly]]
    left = away + found.offset[~hardly]
    left -= np.median(left, axis=0)
    assert np.linalg.norm(left, axis=1).mean() < 0.85 * np.linalg.norm(away, axis=1).mean()
    assert (found.offset[hardly] == 0).all()
    for i, average in enumerate(found.averages):
        assert not hardly[average.rows].any()
        assert found.usual[i] == pytest.approx(np.median(found.gain[average.rows, i]))


def test_no_candidates_no_averages(scene, caplog):
    none = Candidates(
        particles=Particles(position=np.zeros((0, 3)), score=np.zeros(0), label=""),
        vectors=np.zeros((0, 8), dtype=np.float32),
    )
    assert len(classify_candidates(scene.volume, none)) == 0
    particles = Particles(position=scene.position, score=np.ones(len(scene.kind)), label="")
    vectors = np.tile(np.eye(8, dtype=np.float32)[:1], (len(particles), 1))
    flat = scene.volume.with_data(np.ones(scene.volume.shape, np.float32))
    found = classify_candidates(flat, Candidates(particles=particles, vectors=vectors), spread=0.02)
    assert len(found) == 0
    assert "not averaged: the tomogram has no contrast" in caplog.text


def test_rare_kinds_are_groups_too():
    rng = np.random.default_rng(4)
    directions = np.linalg.qr(rng.normal(size=(16, 16)))[0][:6]
    kind = np.repeat(np.arange(6), [30, 25, 5, 5, 4, 4])
    vectors = directions[kind] + 0.05 * rng.normal(size=(len(kind), 16))
    strays = rng.normal(size=(20, 16))
    vectors = np.concatenate([vectors, strays])
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    certainty = np.append(np.full(len(kind), 0.8), np.full(20, 0.2))
    groups = find_groups(vectors, certainty, spread=0.02)
    for k in range(6):
        own = np.flatnonzero(kind == k)
        assert any(len(np.intersect1d(own, rows)) > 0.8 * len(own) for rows in groups)
    together = np.concatenate(groups)
    assert len(np.unique(together)) == len(together)
    assert together.max() < len(kind)
    assert find_groups(vectors[:0], certainty[:0]) == []
