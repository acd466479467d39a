"""U-Nets in integers of 8 bits."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tomoloc.nn.int8 import computes_in_int8, measure_ranges
from tomoloc.nn.int8_unet import Int8UNet
from tomoloc.nn.unet import SegmentationNetwork
from tomoloc.train.predict import predict

pytestmark = pytest.mark.skipif(not computes_in_int8(), reason="the processor has no VNNI")
SHAPE = (24, 40, 64)


def make(**given):
    torch.manual_seed(5)
    network = SegmentationNetwork(**{"kinds": 2, "channels": (8, 12, 16), "slices": 5, **given})
    with torch.no_grad():
        for _ in range(20):  # until the normalisations know what comes
            network(torch.randn(2, 1, 16, 32, 48))
        network.body.head.weight *= 8  # so that the classes differ
    return network.eval()


def make_volume(*, seed=0, shape=SHAPE):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def in_int8(network):
    return Int8UNet(network.fuse(), measure_ranges(network, [make_volume(seed=1)]))


def run(network, data):
    with torch.inference_mode():
        return network(torch.from_numpy(data)[None, None])[0].numpy()


@pytest.mark.parametrize("architecture", ["unet3d", "unet2.5d"])
@pytest.mark.parametrize(
    "given",
    [{}, {"channels": (8,)}, {"channels": (16, 8), "kinds": 1}, {"channels": (5, 7, 6, 9)}],
    ids=str,
)
def test_probabilities_are_those_of_the_network(architecture, given):
    network = make(architecture=architecture, **given)
    exact, rough = run(network.fuse(), make_volume()), run(in_int8(network), make_volume())
    assert rough.shape == exact.shape
    np.testing.assert_allclose(rough.sum(axis=0), 1, atol=1e-5)
    assert exact.std(axis=(1, 2, 3)).min() > 0.03
    apart = np.abs(exact - rough).mean()
    assert apart < 0.1 * exact.std()
    for other in (make_volume(seed=9), np.flip(make_volume(), 2).copy()):
        assert np.abs(run(in_int8(network), other) - exact).mean() > 4 * apart


@pytest.mark.parametrize("architecture", ["unet3d", "unet2.5d"])
def test_tiles_are_blended(architecture):
    network, data = make(architecture=architecture), make_volume(shape=(37, 50, 75))
    exact = predict(network.fuse(), data, max_bytes=1 << 20)
    rough = predict(in_int8(network), data, max_bytes=1 << 20)
    assert rough.shape == (2, *data.shape)
    assert np.abs(exact - rough).mean() < 0.1 * exact.std()


def test_every_activation_of_both_networks_has_a_range():
    for architecture in ("unet3d", "unet2.5d"):
        ranges = measure_ranges(make(architecture=architecture), [make_volume(), make_volume()])
        assert len(ranges) == 2 + 2 + 4 + 2 * (1 + 2)
        assert min(ranges.values()) > 0
        assert "body.enlarge.1.1" in ranges


def test_wrong_use_is_told():
    network = make()
    with pytest.raises(ValueError, match="no volume"):
        measure_ranges(network, [])
    with pytest.raises(ValueError, match="smaller than 4 a side"):
        measure_ranges(network, [np.zeros((3, 30, 30))])
    with pytest.raises(ValueError, match=r"no range of activations for body.downward.0.1"):
        Int8UNet(network.fuse(), {})
    with pytest.raises(ValueError, match="not fused"):
        Int8UNet(network, measure_ranges(network, [make_volume()]))
    network.architecture = "SegResNet"
    with pytest.raises(ValueError, match="SegResNet of MONAI"):
        measure_ranges(network, [make_volume()])
    with pytest.raises(ValueError, match="SegResNet of MONAI"):
        Int8UNet(network, {})
