"""Segmentation networks: shapes, reach, folding, storing, and those of MONAI."""

import builtins
import errno
import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch

from tomoloc.nn.stored import StoredModel, load_model, save_model
from tomoloc.nn.unet import SegmentationNetwork

HAS_MONAI = importlib.util.find_spec("monai") is not None


def make(seed=0, **given):
    torch.manual_seed(seed)
    settings = {"kinds": 2, "channels": (4, 6, 8), "slices": 5}
    network = SegmentationNetwork(**{**settings, **given}).eval()
    with torch.no_grad():  # so that the normalisations do something
        for name, value in network.named_buffers():
            if name.endswith("running_var"):
                value.uniform_(0.05, 0.15)
    return network


def test_the_default_has_the_channels_of_deepfinder():
    network = SegmentationNetwork()
    widths = [module.out_channels for module in network.modules() if hasattr(module, "stride")
              and isinstance(module, torch.nn.Conv3d)]  # fmt: skip
    assert widths == [32, 32, 48, 48, 64, 64, 64, 64, 32, 32, 48, 48, 2]


@pytest.mark.parametrize("architecture", ["unet3d", "unet2.5d"])
def test_every_voxel_has_probabilities(architecture):
    network = make(architecture=architecture)
    x = torch.randn(2, 1, 8, 12, 20)
    y = network(x)
    assert y.shape == (2, 3, 8, 12, 20)
    torch.testing.assert_close(y.sum(dim=1), torch.ones(2, 8, 12, 20))
    torch.testing.assert_close(network.fuse()(x), y, atol=1e-5, rtol=1e-4)
    half = network.to(memory_format=torch.channels_last_3d)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = half(x.contiguous(memory_format=torch.channels_last_3d))
    assert float((rough - y).detach().abs().mean()) < 0.01


@pytest.mark.parametrize("architecture", ["unet3d", "unet2.5d"])
def test_nothing_beyond_the_halo_matters(architecture):
    network = make(architecture=architecture)
    halo, period = network.halo, network.period
    assert halo % period == 0
    side = 2 * halo + 2 * period
    for axis in range(3):
        shape = [4, 4, 4]
        shape[axis] = side
        x = torch.randn(1, 1, *shape)
        other = x.clone()
        other.narrow(axis + 2, 0, period).normal_()
        changed = (network(x) - network(other)).abs().amax(dim=1)[0]
        per_plane = changed.movedim(axis, 0).flatten(1).amax(1).detach().numpy()
        assert per_plane[: period + halo].max() > 0
        assert per_plane[period + halo :].max() == 0
        # and the halo is not much wider than it must be
        reach = int(np.flatnonzero(per_plane).max()) + 1 - period
        assert reach > (halo - 2 * period if axis or architecture == "unet3d" else 0)


def test_a_section_of_the_flat_network_sees_its_neighbours_alone():
    network = make(architecture="unet2.5d")
    x = torch.randn(1, 1, 16, 8, 8)
    other = x.clone()
    other[:, :, 8] += 3
    changed = (network(x) - network(other)).abs().amax(dim=(0, 1, 3, 4))
    assert np.flatnonzero(changed.detach().numpy()).tolist() == [6, 7, 8, 9, 10]


def test_models_are_stored(tmp_path):
    for architecture in ("unet3d", "unet2.5d"):
        network = make(architecture=architecture)
        save_model(tmp_path / "model", StoredModel(network=network, voxel_spacing=12.0))
        again = load_model(tmp_path / "model").network
        assert again.settings == network.settings
        x = torch.randn(1, 1, 8, 8, 8)
        torch.testing.assert_close(again(x), network(x))


def test_kinds_are_selected():
    network = make()
    x = torch.randn(1, 1, 8, 8, 8)
    one = network.select([1]).eval()
    torch.testing.assert_close(one.compute(x), network.compute(x)[:, [0, 2]])
    early = {id(p) for p in network.early_parameters()}
    assert 0 < len(early) < len(list(network.parameters()))


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"kinds": 0}, "needs kinds and channels"),
        ({"channels": ()}, "needs kinds and channels"),
        ({"slices": 4}, "slices must be odd"),
    ],
)
def test_wrong_settings_are_refused(given, said):
    with pytest.raises(ValueError, match=said):
        make(**given)


def test_wrong_shapes_are_refused():
    with pytest.raises(ValueError, match="multiples of 4"):
        make()(torch.zeros(1, 1, 8, 8, 9))


def test_without_monai_its_networks_are_refused_in_a_line(monkeypatch):
    def refuse(name, *rest, **more):
        if name.startswith("monai"):
            raise ModuleNotFoundError(name)
        return usual(name, *rest, **more)

    usual = builtins.__import__
    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(ValueError, match=r"pip install 'tomoloc\[monai\]'"):
        make(architecture="SegResNet")


@pytest.mark.skipif(not HAS_MONAI, reason="needs MONAI")
@pytest.mark.filterwarnings("default")
def test_networks_of_monai(tmp_path):
    network = make(architecture="SegResNet", options={"init_filters": 8})
    save_model(tmp_path / "model", StoredModel(network=network, voxel_spacing=12.0))
    again = load_model(tmp_path / "model").network
    x = torch.randn(1, 1, 32, 32, 32)
    torch.testing.assert_close(again(x), network(x))
    assert network(x).shape == (1, 3, 32, 32, 32)
    assert network.select([0, 1]).settings == network.settings
    with pytest.raises(ValueError, match="all 2 of its kinds"):
        network.select([1])
    with pytest.raises(ValueError, match="nor MONAI has a network Nonsense"):
        make(architecture="Nonsense")
    with pytest.raises(ValueError, match="cannot be made so"):
        make(architecture="SegResNet", options={"nonsense": 1})


def test_a_model_for_which_there_is_no_room(tmp_path, monkeypatch):
    def fill(path, data):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", fill)
    with pytest.raises(OSError, match=r"cannot write the model .*: No space left on device"):
        save_model(tmp_path / "model", StoredModel(network=make(), voxel_spacing=12.0))
    assert list(tmp_path.iterdir()) == []
