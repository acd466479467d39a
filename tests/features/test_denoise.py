"""Denoising of planted edges and speckles."""

from __future__ import annotations

import numpy as np
import pytest

from tomoloc.features import denoise as module
from tomoloc.features.denoise import denoise, despeckle, diffuse
from tomoloc.types import Volume

SHAPE = (22, 30, 26)


@pytest.fixture
def step(rng):
    """Two halves, 0 and 4, in noise of deviation 1."""
    truth = np.zeros(SHAPE, dtype=np.float32)
    truth[:, 15:] = 4
    return truth, (truth + rng.standard_normal(SHAPE)).astype(np.float32)


def test_diffusion_keeps_edges_better_than_a_gaussian(step) -> None:
    truth, noisy = step
    volume = Volume(data=noisy, voxel_spacing=10.0, origin=[5, 6, 7])
    smooth = denoise(volume, "diffusion", iterations=12)
    blurred = denoise(volume, "gaussian", sigma=15.0)
    inner = (slice(4, -4), slice(3, 11), slice(4, -4))
    assert smooth.data[inner].std() < 0.45 * noisy[inner].std()

    def jump(data):
        profile = data[4:-4, :, 4:-4].mean(axis=(0, 2))
        return profile[15] - profile[14]

    assert jump(smooth.data) > 1.5 * jump(blurred.data)
    np.testing.assert_array_equal(smooth.origin, volume.origin)
    assert np.abs(smooth.data - truth).mean() < np.abs(blurred.data - truth).mean()


def test_diffusion_keeps_the_mean_and_flat_stays_flat(step) -> None:
    _, noisy = step
    assert diffuse(noisy, contrast=1.0).mean() == pytest.approx(noisy.mean(), abs=1e-4)
    flat = np.full((5, 6, 7), 3.0, dtype=np.float32)
    np.testing.assert_allclose(diffuse(flat, contrast=1.0), flat)


def test_tiles_give_what_the_whole_gives(step, monkeypatch) -> None:
    volume = Volume(data=step[1], voxel_spacing=10.0)
    whole = {name: denoise(volume, name, iterations=3).data for name in ("gaussian", "median")}
    monkeypatch.setattr(module, "_TILE_VOXELS", 14_000)
    for name, expected in whole.items():
        np.testing.assert_allclose(denoise(volume, name).data, expected, atol=1e-5)


def test_median_removes_what_is_small() -> None:
    data = np.zeros((7, 8, 9), dtype=np.float32)
    data[3, 4, 5] = 9
    data[4:, 5:, 6:] = 1
    out = denoise(Volume(data=data, voxel_spacing=3.0), "median").data
    assert out[3, 4, 5] == 0
    assert out[6, 7, 8] == 1


def test_speckles_go_and_gold_stays(rng) -> None:
    data = rng.standard_normal(SHAPE).astype(np.float32)
    data[9:13, 10:14, 10:14] += 40
    speckled = data.copy()
    hit = rng.random(SHAPE) < 0.01
    hit[8:14, 9:15, 9:15] = False
    speckled[hit] = 30
    out = despeckle(speckled)
    assert (out[hit] < 6).mean() > 0.95
    np.testing.assert_array_equal(out[10:12, 11:13, 11:13], data[10:12, 11:13, 11:13])
    assert (out[~hit] == speckled[~hit]).mean() > 0.99


@pytest.mark.parametrize(
    ("method", "given"),
    [("wavelets", {}), ("gaussian", {"sigma": -1.0}), ("median", {"iterations": 0})],
)
def test_wrong_use_is_told(method, given) -> None:
    with pytest.raises(ValueError, match="must be"):
        denoise(Volume(data=np.ones((4, 5, 6)), voxel_spacing=1.0), method, **given)
    with pytest.raises(ValueError, match="contrast must be positive"):
        diffuse(np.ones((4, 5, 6), dtype=np.float32), contrast=0.0)
