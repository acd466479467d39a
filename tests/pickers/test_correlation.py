from __future__ import annotations

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from tomoloc.pickers.correlation import (
    RotatedReference,
    correlate,
    spherical_mask,
)

SHAPE = (22, 27, 31)
SIZE = 13


def gaussians(places: np.ndarray, shape: tuple[int, ...], width: float) -> np.ndarray:
    grid = np.indices(shape).astype(float)
    return sum(
        weight * np.exp(-((grid - place[:, None, None, None]) ** 2).sum(axis=0) / (2 * width**2))
        for place, weight in zip(places, (1.0, 0.8, 0.6), strict=True)
    ).astype(np.float32)


LOBES = np.array([[0.0, 0, 0], [0, 0, 3], [0, 2.5, -1]])  # zyx, voxels of the tomogram


@pytest.fixture
def reference() -> RotatedReference:
    density = gaussians(LOBES * 2 + SIZE, (2 * SIZE + 1,) * 3, 2.4)
    weights = np.ones((SIZE, SIZE, SIZE // 2 + 1), dtype=np.float32)
    return RotatedReference(density, weights, spherical_mask(SIZE, 9))


def turned(rotation: Rotation, place: np.ndarray) -> np.ndarray:
    lobes = rotation.apply(LOBES[:, ::-1])[:, ::-1] + place
    return gaussians(lobes, SHAPE, 1.2)


def test_place_rotation_and_perfect_correlation(reference, rng) -> None:
    rotations = Rotation.random(40, rng=rng)
    place = np.array([9, 15, 20])
    [(score, index)] = correlate(turned(rotations[17], place), [reference], rotations)
    best = np.unravel_index(score.argmax(), SHAPE)
    assert best == tuple(place)
    assert index[best] == 17
    assert score[best] == pytest.approx(1, abs=0.01)


def test_equals_the_definition(reference, rng) -> None:
    """Mask-weighted Pearson correlation at places in the middle and at the border."""
    rotations = Rotation.random(3, rng=rng)
    data = rng.standard_normal(SHAPE).astype(np.float32)
    [(score, index)] = correlate(data, [reference], rotations)
    half, mask = SIZE // 2, reference.mask.astype(float)
    padded = np.pad(data - data.mean(), half)
    kernels = reference.kernels(rotations, "cpu").numpy()
    for place in [(11, 13, 15), (0, 0, 0), (21, 26, 30), (3, 25, 1)]:
        around = padded[tuple(slice(i, i + SIZE) for i in place)].astype(float)
        mean = (mask * around).sum()
        deviation = np.sqrt((mask * around**2).sum() - mean**2)
        expected = (kernels * around).sum(axis=(1, 2, 3)) / deviation
        assert score[place] == pytest.approx(expected.max(), abs=2e-4)
        assert index[place] == expected.argmax()


def test_scale_and_offset_do_not_matter(reference, rng) -> None:
    rotations = Rotation.random(4, rng=rng)
    data = rng.standard_normal(SHAPE).astype(np.float32)
    [(first, _)] = correlate(data, [reference], rotations)
    [(second, _)] = correlate(30 * data - 70, [reference], rotations)
    np.testing.assert_allclose(first, second, atol=1e-4)


def test_empty_region_scores_nothing(reference, rng) -> None:
    data = rng.standard_normal(SHAPE).astype(np.float32)
    data[:, :, 16:] = 0
    [(score, _)] = correlate(data, [reference], Rotation.random(10, rng=rng))
    assert np.abs(score[:, :, 26:]).max() < 0.05


def test_mask_is_a_ball() -> None:
    mask = spherical_mask(21, 12)
    assert mask.sum() == pytest.approx(1, abs=1e-5)
    solid = mask / mask.max()
    assert solid.sum() == pytest.approx(np.pi / 6 * 12**3, rel=0.05)
    np.testing.assert_allclose(solid[10, 10, 16], 0.5, atol=0.01)
    assert solid[0].max() == 0


@pytest.mark.gpu
def test_gpu_gives_the_same(reference, rng) -> None:
    import torch

    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    rotations = Rotation.random(20, rng=rng)
    data = rng.standard_normal(SHAPE).astype(np.float32)
    [(cpu, _)] = correlate(data, [reference], rotations)
    [(gpu, _)] = correlate(data, [reference], rotations, device="cuda")
    np.testing.assert_allclose(cpu, gpu, atol=1e-4)
