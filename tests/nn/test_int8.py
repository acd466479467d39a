"""Networks in integers of 8 bits."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from tomoloc.features.dense import DenseRun
from tomoloc.nn.encoder import DenseEncoder, HeatNetwork
from tomoloc.nn.int8 import Int8Network, computes_in_int8, measure_ranges

pytestmark = pytest.mark.skipif(not computes_in_int8(), reason="the processor has no VNNI")
SMALL = {"widths": (8, 12, 16), "down": (1, 1, 1), "up": (1, 1), "head": 16}


def make(kind=DenseEncoder, **settings):
    torch.manual_seed(3)
    network = kind(**{**SMALL, **settings})
    with torch.no_grad():
        for _ in range(3):
            network(torch.randn(2, 1, 32, 32, 48))
    return network.eval()


def make_volume(shape=(46, 51, 70), *, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def run(network, data, *, tile_bytes=1 << 30):
    dense = DenseRun(network=network, data=data, median=0, deviation=1, tile_bytes=tile_bytes)
    out = np.zeros((*dense.output_shape, dense.channels), dtype=np.float32)
    for target, block in dense.blocks():
        out[target] = block
    return out


def in_int8(network, *, seed=1):
    return Int8Network(network.fuse(), measure_ranges(network, [make_volume(seed=seed)]))


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"head": 0},
        {"down": (0, 2, 1), "up": (2, 0)},
        {"down": (0, 1, 0), "up": (0, 1)},
        {"widths": (8,), "down": (2,), "up": ()},
        {"widths": (8, 8, 8, 8), "down": (0, 1, 1, 1), "up": (1, 0, 1)},
    ],
    ids=str,
)
def test_vectors_and_centers_are_those_of_the_network(settings):
    network, data = make(**settings), make_volume()
    exact, rough = run(network.fuse(), data), run(in_int8(network), data)
    cosine = (exact[..., :-1] * rough[..., :-1]).sum(axis=-1)
    assert np.quantile(cosine, 0.01) > 0.98
    assert np.abs(exact[..., -1] - rough[..., -1]).mean() < 0.02
    # another volume's answer is another one
    other = run(network.fuse(), make_volume(seed=9))
    assert np.median((exact[..., :-1] * other[..., :-1]).sum(axis=-1)) < 0.9


def test_a_map_of_heat_is_the_networks():
    network, data = make(HeatNetwork, kinds=3), make_volume()
    exact, rough = run(network.fuse(), data), run(in_int8(network), data)
    assert exact.std() > 0.05
    assert np.abs(exact - rough).mean() < 0.1 * exact.std()


def test_tiles_are_the_whole_to_the_bit():
    network, data = in_int8(make()), make_volume()
    np.testing.assert_array_equal(run(network, data), run(network, data, tile_bytes=60_000))


def test_a_flipped_volume_has_the_flipped_grid():
    network = make()
    for module in network.modules():
        if isinstance(module, (torch.nn.Conv3d, torch.nn.ConvTranspose3d)):
            weight = module.weight.detach()
            for axis in (2, 3, 4):
                weight = (weight + weight.flip(axis)) / 2  # a filter that knows no side
            module.weight.data = weight
    network, data = in_int8(network), make_volume((32, 48, 64))
    for axes in itertools.combinations((0, 1, 2), 2):
        turned = run(network, np.flip(data, axes).copy())
        np.testing.assert_allclose(np.flip(turned, axes), run(network, data), atol=2e-2)


def test_gold_does_not_stretch_the_ranges():
    network, data = make(), make_volume((64, 64, 64))
    data[30:34, 30:34, 30:34] = 15
    gold = measure_ranges(network, [data])
    data[30:34, 30:34, 30:34] *= 1000
    assert measure_ranges(network, [data])["stem"] < 1.5 * gold["stem"]


def test_ranges_are_the_largest_of_all_volumes():
    network = make()
    small, large = (
        measure_ranges(network, [scale * make_volume()])["stem"] for scale in (1.0, 3.0)
    )
    both = measure_ranges(network, [make_volume(), 3 * make_volume()])
    assert both["stem"] == large > 2 * small


def test_wrong_use_is_told():
    network = make()
    with pytest.raises(ValueError, match="no volume"):
        measure_ranges(network, [])
    with pytest.raises(ValueError, match="smaller than 8 a side"):
        measure_ranges(network, [np.zeros((4, 30, 30))])
    with pytest.raises(ValueError, match="no range of activations for"):
        Int8Network(network.fuse(), {"stem": 3.0})
