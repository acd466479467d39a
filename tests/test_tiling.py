"""Tiles: every point once, the same as the whole, bounded, mirrored."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from tomoloc.tiling import Tiling, blend_tiles, map_tiles, read_mirrored

SHAPE = (21, 34, 47)


def assemble(data, function, tiling):
    out = None
    for target, block in map_tiles(data, function, tiling=tiling):
        if out is None:
            out = np.full((*block.shape[:-3], *tiling.output_shape), np.nan)
        assert np.isnan(out[..., *target]).all(), "a point in two tiles"
        out[..., *target] = block
    assert not np.isnan(out).any(), "a point in no tile"
    return out


def pool(data):
    """Means over cells of two voxels."""
    z, y, x = (n // 2 for n in data.shape)
    return data.reshape(z, 2, y, 2, x, 2).mean(axis=(1, 3, 5))


@pytest.mark.parametrize("max_voxels", [10**9, 9000, 16**3])
@pytest.mark.parametrize("period", [2, 4])
def test_tiles_are_the_whole_where_the_function_meets_the_sides(rng, period, max_voxels):
    """The function pads with zeros itself, as a convolution does."""

    def blur(tile):
        return pool(ndimage.uniform_filter(tile, 7, mode="constant"))[None]

    data = rng.standard_normal(SHAPE).astype(np.float32)
    tiling = Tiling(shape=SHAPE, stride=2, offset=0.5, period=period, halo=4, max_voxels=max_voxels)
    padded = read_mirrored(data, (0, 0, 0), tuple(-(-n // period) * period for n in SHAPE))
    assert tiling.output_shape == (10, 17, 23)
    result = assemble(data, blur, tiling)
    np.testing.assert_allclose(result, blur(padded)[:, :10, :17, :23], atol=1e-5)
    assert all(np.prod(tile.shape) <= max_voxels for tile in tiling.tiles())
    assert (len(tiling.tiles()) == 1) == (max_voxels == 10**9)


@pytest.mark.parametrize("max_voxels", [10**9, 20**3])
def test_tiles_are_the_whole_where_it_is_mirrored(rng, max_voxels):
    def blur(tile):
        sums = ndimage.uniform_filter(tile, 7, mode="constant")
        return np.stack([sums, -sums])[:, 3:-3:2, 3:-3:2, 3:-3:2]

    data = rng.standard_normal(SHAPE).astype(np.float32)
    tiling = Tiling(shape=SHAPE, stride=2, period=2, halo=3, mirror=True, max_voxels=max_voxels)
    expected = ndimage.uniform_filter(data, 7, mode="mirror")[::2, ::2, ::2]
    assert tiling.output_shape == expected.shape == (11, 17, 24)
    np.testing.assert_allclose(assemble(data, blur, tiling), [expected, -expected], atol=1e-5)


def test_a_halo_too_small_shows(rng):
    data = rng.standard_normal(SHAPE).astype(np.float32)

    def blur(tile):
        return ndimage.uniform_filter(tile, 7, mode="constant")

    enough, few = (
        assemble(data, blur, Tiling(shape=SHAPE, halo=halo, max_voxels=9000)) for halo in (3, 2)
    )
    assert abs(enough - blur(data)).max() < 1e-6
    assert abs(few - blur(data)).max() > 1e-3


def test_mirrored_like_numpy(rng):
    data = rng.standard_normal((5, 1, 7)).astype(np.float32)
    block = read_mirrored(data, (-9, -3, 2), (14, 4, 11))
    expected = np.pad(data, ((9, 9), (3, 3), (2, 4)), mode="reflect")[:, :, 4:]
    np.testing.assert_array_equal(block, expected)
    assert block.dtype == np.float32


def test_only_tiles_are_read(rng, tmp_path):
    data = np.memmap(tmp_path / "x", np.int16, "w+", shape=SHAPE)
    data[:] = rng.integers(-99, 99, SHAPE)
    seen = []

    def keep(tile):
        seen.append(tile.size)
        assert type(tile) is np.ndarray
        return tile

    tiling = Tiling(shape=SHAPE, halo=2, max_voxels=5000)
    np.testing.assert_array_equal(assemble(data, keep, tiling), data)
    assert max(seen) <= 5000


def test_the_cut_costs_little():
    """A flat slab is not cut through its thickness."""
    tiling = Tiling(
        shape=(148, 608, 855), stride=2, offset=0.5, period=8, halo=80, max_voxels=30_000_000
    )
    tiles = tiling.tiles()
    assert {tile.shape[0] for tile in tiles} == {152}
    assert sum(np.prod(tile.shape) for tile in tiles) < 1.8 * np.prod(tiling.shape)
    assert len(tiles) < 8


def test_volumes_of_a_few_voxels():
    tiling = Tiling(shape=(1, 2, 3), stride=2, offset=0.5, period=8, halo=16)
    assert tiling.output_shape == (1, 1, 1)
    assert tiling.tiles()[0].shape == (8, 8, 8)
    data = np.ones(tiling.shape, np.float32)
    np.testing.assert_array_equal(assemble(data, pool, tiling), np.ones((1, 1, 1)))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"shape": (0, 4, 4)}, "at least 1"),
        ({"halo": -1}, "no negative halo"),
        ({"stride": 2, "period": 3}, "multiple of the stride"),
        ({"period": 8, "halo": 12}, "multiple of the period"),
        ({"offset": 1.0}, "offset"),
    ],
    ids=str,
)
def test_impossible_tilings(settings, message):
    with pytest.raises(ValueError, match=message):
        Tiling(**{"shape": SHAPE, **settings})


def test_too_little_memory():
    with pytest.raises(ValueError, match="at least 13824 voxels"):
        Tiling(shape=(100, 100, 100), period=8, halo=8, max_voxels=1000, mirror=True).tiles()


def test_wrong_sizes_are_said():
    tiling = Tiling(shape=SHAPE, stride=2, period=2)
    with pytest.raises(ValueError, match="the data of"):
        next(map_tiles(np.zeros((3, 4, 5)), pool, tiling=tiling))
    with pytest.raises(ValueError, match="expected blocks"):
        next(map_tiles(np.zeros(SHAPE), lambda tile: tile, tiling=tiling))


# ------------------------------------------------------------------------------------- blending


@pytest.mark.parametrize("halo", [0, 4, 8])
@pytest.mark.parametrize("max_voxels", [10**9, 24**3 + 1])
def test_blended_tiles_are_the_whole(rng, halo, max_voxels):
    """What every tile knows of a voxel comes out as it is, for all its channels."""
    data = rng.standard_normal(SHAPE).astype(np.float32)
    tiling = Tiling(shape=SHAPE, period=4, halo=halo, mirror=True, max_voxels=max_voxels)
    assert (len(tiling.tiles()) > 1) == (max_voxels < 10**9)
    out = np.zeros((2, *SHAPE), np.float32)
    blend_tiles(data, lambda tile: np.stack([tile, -2 * tile]), tiling=tiling, out=out)
    np.testing.assert_allclose(out[0], data, atol=1e-5)
    np.testing.assert_allclose(out[1], -2 * data, atol=1e-5)


@pytest.mark.parametrize("max_voxels", [10**9, 24**3 + 1])
def test_strided_tiles_are_the_whole(rng, max_voxels):
    """A grid of every second voxel, also where a side is odd."""
    shape = (16, 27, 40)
    data = rng.standard_normal(shape).astype(np.float32)
    tiling = Tiling(
        shape=shape, stride=2, offset=0.5, period=4, halo=4, mirror=True, max_voxels=max_voxels
    )
    out = np.zeros((1, *tiling.output_shape), np.float32)
    blend_tiles(data, lambda tile: pool(tile)[None], tiling=tiling, out=out)
    np.testing.assert_allclose(out[0], pool(data[:, :26]), atol=1e-5)


def test_blending_fades_from_tile_to_tile():
    """Tiles that disagree leave no step: neighbours differ by a part of what tiles differ by."""
    shape = (8, 8, 96)
    tiling = Tiling(shape=shape, period=4, halo=8, mirror=True, max_voxels=24 * 24 * 64)
    counted = []

    def count(tile):
        counted.append(tile)
        return np.full((1, *tile.shape), len(counted), np.float32)

    out = np.zeros((1, *shape), np.float32)
    blend_tiles(np.zeros(shape, np.float32), count, tiling=tiling, out=out)
    line = out[0, 0, 0]
    assert (line[0], line[-1]) == (1, len(counted))
    assert len(counted) == 2
    assert 0 < np.abs(np.diff(line)).max() < 0.12
    assert (np.diff(line) >= 0).all()


def test_only_mirrored_tiles_are_blended():
    tiling = Tiling(shape=SHAPE)
    with pytest.raises(ValueError, match="mirrored halos"):
        blend_tiles(np.zeros(SHAPE), lambda tile: tile, tiling=tiling, out=np.zeros((1, *SHAPE)))
