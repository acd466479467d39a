"""Heat maps by networks of MONAI: its own ones where it is installed, or a stand-in."""

import importlib.util

import numpy as np
import pytest
import torch
from torch import nn

from tomoloc.nn import monai
from tomoloc.nn.monai import MonaiHeatNetwork
from tomoloc.nn.stored import StoredModel, load_model, save_model

needs_monai = pytest.mark.skipif(
    importlib.util.find_spec("monai") is None, reason="needs pip install 'tomoloc[monai]'"
)


@pytest.fixture
def plain(monkeypatch):
    """In place of MONAI's networks, one that gives half of each voxel for every kind."""

    def make(name, *, outputs, options):
        body = nn.Conv3d(1, outputs, 1)
        nn.init.constant_(body.weight, 0.5)
        nn.init.zeros_(body.bias)
        return body

    monkeypatch.setattr(monai, "make_monai", make)


@pytest.mark.usefixtures("plain")
def test_points_are_means_of_eight_logits():
    network = MonaiHeatNetwork(kinds=2)
    x = torch.randn(1, 1, 32, 64, 32)
    cells = x.reshape(16, 2, 32, 2, 16, 2).mean(dim=(1, 3, 5)) / 2
    torch.testing.assert_close(network.compute(x), cells.expand(1, 2, -1, -1, -1))
    torch.testing.assert_close(network(x), torch.sigmoid(network.compute(x)))
    assert network.options == {"feature_size": 36, "use_v2": True}
    assert network.select([0, 1]).settings == network.settings
    with pytest.raises(ValueError, match="all 2 of its kinds"):
        network.select([1])
    with pytest.raises(ValueError, match="multiples of 32"):
        network.compute(torch.zeros(1, 1, 32, 32, 16))


@pytest.mark.usefixtures("plain")
def test_networks_that_give_no_map_are_refused():
    network = MonaiHeatNetwork()
    network.body = nn.Sequential(network.body, nn.AvgPool3d(2))
    with pytest.raises(ValueError, match="no map of the tomogram's size"):
        network.compute(torch.zeros(1, 1, 32, 32, 32))
    with pytest.raises(ValueError, match="at least one kind"):
        MonaiHeatNetwork(kinds=0)


@needs_monai
@pytest.mark.filterwarnings("default")
def test_the_network_of_tomocpt(tmp_path):
    network = MonaiHeatNetwork(kinds=2, options={"feature_size": 12, "use_v2": True}).eval()
    save_model(tmp_path / "model", StoredModel(network=network, voxel_spacing=12.0))
    again = load_model(tmp_path / "model").network
    x = torch.from_numpy(np.random.default_rng(1).normal(size=(1, 1, 32, 32, 64))).float()
    with torch.inference_mode():
        heat = network(x)
        torch.testing.assert_close(again(x), heat)
    assert heat.shape == (1, 2, 16, 16, 32)
    with pytest.raises(ValueError, match="has a network Nonsense"):
        MonaiHeatNetwork(architecture="Nonsense")
    with pytest.raises(ValueError, match="cannot be made so"):
        MonaiHeatNetwork(options={"feature_size": 13})
