"""Curvatures of planted blobs, lines and sheets, and the seeds found in them."""

from __future__ import annotations

import numpy as np
import pytest

from tomoloc.features import blobs
from tomoloc.features.blobs import spread_blocks, survey
from tomoloc.features.scales import SCALES, ScaleSpace, blobness, curvatures
from tomoloc.types import Volume

SPACING = 14.0
SHAPE = (44, 52, 60)
CENTERS = np.array([[12.3, 14.1, 15.8], [30.2, 36.6, 18.4], [22.9, 20.4, 44.7]])


def grid():
    return np.stack(np.meshgrid(*map(np.arange, SHAPE), indexing="ij"), axis=-1)


def balls():
    away = np.linalg.norm(grid()[..., None, :] - CENTERS, axis=-1)
    return np.clip(3.5 - away, 0, 1).max(axis=-1).astype(np.float32)


def test_curvatures_are_eigenvalues_of_the_hessian(rng) -> None:
    data = rng.standard_normal((6, 7, 8)).astype(np.float32)
    found = curvatures(data, 2.0)
    z, y, x = 3, 2, 5
    hessian = np.zeros((3, 3))
    for i in range(3):
        for j in range(3):
            a, b = np.eye(3, dtype=int)[[i, j]]
            here = np.array([z, y, x])
            if i == j:
                value = data[tuple(here + a)] + data[tuple(here - a)] - 2 * data[tuple(here)]
            else:
                value = 0.25 * sum(
                    p * q * data[tuple(here + p * a + q * b)] for p in (-1, 1) for q in (-1, 1)
                )
            hessian[i, j] = value
    expected = np.sort(-2 * np.linalg.eigvalsh(hessian))[::-1]
    np.testing.assert_allclose(found[:, z - 1, y - 1, x - 1], expected, rtol=1e-4, atol=1e-4)


def test_blobs_sheets_and_lines_differ() -> None:
    place = grid() - np.array(SHAPE) / 2
    shapes = {
        "blob": np.exp(-(place**2).sum(axis=-1) / 8),
        "line": np.exp(-(place[..., 1:] ** 2).sum(axis=-1) / 8),
        "sheet": np.exp(-(place[..., 0] ** 2) / 8),
    }
    space = ScaleSpace(voxel_spacing=SPACING)
    halo = space.halo
    middle = tuple(n // 2 - halo for n in SHAPE)
    ratio = {}
    for name, data in shapes.items():
        curvature, _ = space(data.astype(np.float32))
        here = curvature[1][(slice(None), *middle)]
        ratio[name] = here[1] / here[0], here[2] / here[0], blobness(curvature[1])[middle] / here[0]
    assert min(ratio["blob"]) > 0.95
    assert ratio["line"][0] > 0.95
    assert abs(ratio["line"][1]) < 0.02
    assert abs(ratio["sheet"][0]) < 0.02
    assert ratio["line"][2] < 0.3
    assert ratio["sheet"][2] < 0.05


@pytest.mark.parametrize("filled", [0.0, 0.3])
def test_noise_is_measured_beside_particles(filled, rng) -> None:
    halo = ScaleSpace(voxel_spacing=SPACING).halo
    side = 26 + 2 * halo
    blocks = [rng.standard_normal((side, side, side)).astype(np.float32) for _ in range(6)]
    plain = ScaleSpace.measure(blocks, voxel_spacing=SPACING)
    for block in blocks[: round(filled * 6)]:
        block += 5 * rng.standard_normal(block.shape).astype(np.float32)
    found = ScaleSpace.measure(blocks, voxel_spacing=SPACING)
    np.testing.assert_allclose(found.noise, plain.noise, rtol=0.12)
    trace = found(rng.standard_normal((70, 70, 70)).astype(np.float32))[0].sum(axis=1)
    np.testing.assert_allclose(trace.std(axis=(1, 2, 3)), 1, atol=0.15)
    assert len(found.noise) == len(SCALES)


def test_flat_volumes_are_refused() -> None:
    with pytest.raises(ValueError, match="flat"):
        ScaleSpace.measure([np.zeros((40, 40, 40), np.float32)], voxel_spacing=SPACING)


@pytest.mark.parametrize("max_voxels", [10_000_000, 90_000])
def test_seeds_are_the_balls_whatever_the_tiles(max_voxels, monkeypatch, rng) -> None:
    monkeypatch.setattr(blobs, "TILE_VOXELS", max_voxels)
    noise = 0.02 * rng.standard_normal(SHAPE).astype(np.float32)
    volume = Volume(data=balls() + noise, voxel_spacing=SPACING, origin=[100, -50, 8])
    found = survey(volume, ScaleSpace(voxel_spacing=SPACING, noise=(0.01,) * 4)).seeds
    best = found[np.arange(3)]
    away = np.linalg.norm(best.position[:, None] - volume.to_position(CENTERS), axis=2)
    assert sorted(away.argmin(axis=1)) == [0, 1, 2]
    assert away.min(axis=1).max() < 8.0
    assert (np.diff(found.strength) <= 0).all()


def test_blocks_lie_in_the_volume(rng) -> None:
    places = spread_blocks((20, 90, 70), side=28, number=9, rng=rng)
    assert len(places) == 9
    for z, y, x in places:
        assert (z.start, z.stop) == (0, 20)
        assert 0 <= y.start < y.stop <= 90
        assert 0 <= x.start < x.stop <= 70
