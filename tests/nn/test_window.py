"""The window network, written out here once more as plain functions."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from tomoloc.nn.published import open_model, read_tomotwin
from tomoloc.nn.stored import load_model, save_model
from tomoloc.nn.window import WindowEncoder

WIDTHS, HIDDEN, CHANNELS = (4, 8, 8, 12, 16), 20, 6
CONFIG = {
    "identifier": "SiameseNet",
    "network_config": {
        "norm_name": "GroupNorm",
        "norm_kwargs": {"num_groups": 4},
        "output_channels": CHANNELS,
        "dropout": 0.2,
    },
    "train_config": {"lr": 1e-4},
}


def published_weights(seed=4):
    """A state dictionary with the names that published checkpoints use."""
    rng = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(shape, generator=rng) * 0.3

    weights = {}
    for i, (narrow, wide) in enumerate(itertools.pairwise((1, *WIDTHS))):
        norm = {"weight": 1 + draw(wide), "bias": draw(wide)}
        for place, width in ((0, narrow), (3, wide)):
            weights[f"conv_layer{i}.{place}.weight"] = draw(wide, width, 3, 3, 3)
            weights[f"conv_layer{i}.{place}.bias"] = draw(wide)
            for name, value in norm.items():  # one module, stored under two names
                weights[f"conv_layer{i}.{place + 1}.{name}"] = value
    sizes = (WIDTHS[-1] * 8, HIDDEN, HIDDEN, CHANNELS)
    for place, (narrow, wide) in zip((1, 3, 5), itertools.pairwise(sizes), strict=True):
        weights[f"headnet.{place}.weight"] = draw(wide, narrow)
        weights[f"headnet.{place}.bias"] = draw(wide)
    return weights


def definition(weights, x):
    """Methods of Rice et al. 2023, step by step."""

    def convolve(x, i, place):
        x = functional.conv3d(
            x, weights[f"conv_layer{i}.{place}.weight"], weights[f"conv_layer{i}.{place}.bias"]
        )
        scale, shift = (weights[f"conv_layer{i}.{place + 1}.{n}"] for n in ("weight", "bias"))
        grouped = x.reshape(len(x), 4, -1)
        mean, variance = grouped.mean(-1), grouped.var(-1, unbiased=False)
        grouped = (grouped - mean[..., None]) / (variance[..., None] + 1e-5).sqrt()
        x = grouped.reshape(x.shape) * scale[:, None, None, None] + shift[:, None, None, None]
        return torch.where(x > 0, x, 0.01 * x)

    whole = torch.zeros(len(x), 1, 40, 40, 40)
    whole[:, :, 1:38, 1:38, 1:38] = x
    x = convolve(convolve(whole, 0, 0), 0, 3)
    n = x.shape[-1] // 2
    x = x.reshape(len(x), -1, n, 2, n, 2, n, 2).amax((3, 5, 7))
    for i in range(1, 5):
        x = convolve(convolve(x, i, 0), i, 3)
    assert x.shape[2:] == (2, 2, 2)  # nothing is left to pool
    x = x.reshape(len(x), -1)
    for place in (1, 3, 5):
        x = x @ weights[f"headnet.{place}.weight"].T + weights[f"headnet.{place}.bias"]
        if place < 5:
            x = torch.where(x > 0, x, 0.01 * x)
    return x / x.norm(dim=1, keepdim=True)


@pytest.fixture
def windows():
    return torch.randn(3, 1, 37, 37, 37, generator=torch.Generator().manual_seed(8))


@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.module.", "model."])
def test_published_weights_give_what_the_definition_gives(tmp_path, windows, prefix):
    weights = published_weights()
    stored = {prefix + name: value for name, value in weights.items()}
    path = tmp_path / "tomotwin_latest.pth"
    torch.save({"tomotwin_config": CONFIG, "model_state_dict": stored, "epoch": 3}, path)
    model = open_model(path)
    with torch.inference_mode():
        embedding = model.network(windows)
    torch.testing.assert_close(embedding, definition(weights, windows), atol=1e-5, rtol=1e-4)
    assert model.voxel_spacing == 10
    assert "tomotwin_latest.pth" in model.card


def test_full_size_costs_what_the_paper_says():
    """30.3 GFLOP a window."""
    with torch.device("meta"):
        network = WindowEncoder().eval()
        counted = FlopCounterMode(display=False)
        with counted:
            network(torch.zeros(1, 1, 37, 37, 37))
    assert counted.get_total_flops() == pytest.approx(30.3e9, rel=0.01)


def test_a_state_dictionary_alone_will_do(tmp_path, windows):
    full = {**CONFIG, "network_config": {"groups": 4}}  # older files
    torch.save({"tomotwin_config": full, "model_state_dict": published_weights()}, tmp_path / "a")
    weights = {
        name: torch.cat([value] * 16) if name.startswith("conv_layer") else value
        for name, value in published_weights().items()
    }  # sixteen times as wide, so that the default of 64 groups is right
    for name, value in weights.items():
        if name.startswith("conv_layer") and value.ndim > 1 and value.shape[1] > 1:
            weights[name] = torch.cat([value] * 16, 1)
    weights["headnet.1.weight"] = torch.cat([weights["headnet.1.weight"]] * 16, 1)
    torch.save(weights, tmp_path / "b")
    assert read_tomotwin(tmp_path / "a").network.settings["groups"] == 4
    assert read_tomotwin(tmp_path / "b").network.settings["groups"] == 64


def test_power_means_leave_two_by_two_by_two_points_as_they_are(tmp_path, windows):
    config = {**CONFIG["network_config"], "gem_pooling_p": 3}
    content = {"tomotwin_config": {**CONFIG, "network_config": config}}
    torch.save({**content, "model_state_dict": published_weights()}, tmp_path / "a")
    network = read_tomotwin(tmp_path / "a").network
    seen = []
    network.head[0].register_forward_pre_hook(lambda module, x: seen.append(x[0]))
    network.blocks[-1].register_forward_hook(lambda module, x, y: seen.append(y.flatten(1)))
    with torch.inference_mode():
        network(windows)
    torch.testing.assert_close(seen[1], seen[0].clamp(min=1e-6), atol=1e-5, rtol=1e-4)


def test_as_a_model_folder(tmp_path, windows):
    torch.save(
        {"tomotwin_config": CONFIG, "model_state_dict": published_weights()}, tmp_path / "a.pth"
    )
    model = read_tomotwin(tmp_path / "a.pth")
    save_model(tmp_path / "tomotwin", model)
    again = load_model(tmp_path / "tomotwin")
    with torch.inference_mode():
        assert torch.equal(again.network(windows), model.network(windows))
    assert "doi" in again.card


class Evil:
    def __reduce__(self):
        return print, ("this must not run",)


def broken(change):
    weights = published_weights()
    change(weights)
    return {"tomotwin_config": CONFIG, "model_state_dict": weights}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"model_state_dict": Evil()}, "more than numbers"),
        ([1, 2], "no weights of TomoTwin"),
        ({"model_state_dict": 3}, "no weights of TomoTwin"),
        ({}, "layers are missing"),
        (
            {"tomotwin_config": {"identifier": "DenseNet3D"}, "model_state_dict": {}},
            "only SiameseNet",
        ),
        (broken(lambda w: w.pop("conv_layer2.3.bias")), r"blocks\.2\.second\.bias is missing"),
        (broken(lambda w: w.pop("headnet.5.weight")), "layers are missing"),
        (broken(lambda w: w.update({"rep_layers0.0.conv1.weight": torch.zeros(1)})), "rep_layers0"),
        (broken(lambda w: w.update({"headnet.3.bias": torch.zeros(7)})), r"of shape \(7,\)"),
        (broken(lambda w: w["headnet.3.bias"].fill_(torch.nan)), r"head\.1\.bias is not finite"),
        (broken(lambda w: w.pop("headnet.1.weight")), r"can be read: 'head\.0\.weight'"),
        (
            {
                "tomotwin_config": {"network_config": {"groups": 0}},
                "model_state_dict": published_weights(),
            },
            "no network of TomoTwin that can be read",
        ),
    ],
)
def test_other_files(tmp_path, content, message, capsys):
    torch.save(content, tmp_path / "a.pth")
    with pytest.raises(ValueError, match=message) as caught:
        read_tomotwin(tmp_path / "a.pth")
    assert "\n" not in str(caught.value)
    assert capsys.readouterr().out == ""


def test_damaged_and_missing_files(tmp_path):
    (tmp_path / "text.pth").write_text("hello")
    with pytest.raises(ValueError, match=r"text\.pth"):
        read_tomotwin(tmp_path / "text.pth")
    torch.save(broken(dict), tmp_path / "whole.pth")
    cut = (tmp_path / "whole.pth").read_bytes()[:3000]
    (tmp_path / "cut.pth").write_bytes(cut)
    with pytest.raises(ValueError, match="damaged"):
        read_tomotwin(tmp_path / "cut.pth")
    with pytest.raises(FileNotFoundError):
        read_tomotwin(tmp_path / "none.pth")


def test_wrong_windows():
    network = WindowEncoder(widths=(4, 4), groups=4, hidden=3)
    with pytest.raises(ValueError, match="37, 37, 37"):
        network(torch.zeros(1, 1, 36, 37, 37))
    with pytest.raises(ValueError, match="multiples of the groups"):
        WindowEncoder(widths=(4, 6), groups=4)
