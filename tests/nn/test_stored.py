"""Model folders: what is written is read; what is missing or damaged is said in one line."""

from __future__ import annotations

import pytest
import safetensors.torch
import torch

from tomoloc.nn import stored
from tomoloc.nn.encoder import DenseEncoder
from tomoloc.nn.stored import StoredModel, find_model, load_model, save_model

SETTINGS = {"widths": (4, 6), "down": (1, 1), "up": (1,), "channels": 5}


@pytest.fixture
def model():
    torch.manual_seed(3)
    network = DenseEncoder(**SETTINGS)
    network(torch.randn(2, 1, 8, 12, 16))  # gives the normalisations something to remember
    return StoredModel(
        network=network.eval(),
        voxel_spacing=10,
        config={"training": {"steps": 12, "recipes": ["a", "b"]}},
        card="# Ångström\n",
    )


@pytest.fixture
def folder(model, tmp_path):
    save_model(tmp_path / "deep" / "general", model)
    return tmp_path / "deep" / "general"


def encode(network):
    x = torch.randn(1, 1, 8, 12, 16, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        return network(x)[0]


def test_round_trip(model, folder):
    again = load_model(folder)
    assert torch.equal(encode(again.network), encode(model.network))
    assert not again.network.training
    assert (again.voxel_spacing, again.card, again.name) == (10.0, model.card, "general")
    assert again.config == model.config
    assert sorted(p.name for p in folder.parent.iterdir()) == ["general"]


def test_half_is_half_as_large_and_close(model, folder, tmp_path):
    save_model(tmp_path / "half", model, half=True)
    again = load_model(tmp_path / "half")
    assert {p.dtype for p in again.network.parameters()} == {torch.float32}
    assert (encode(again.network) * encode(model.network)).sum(1).min() > 0.999
    sizes = [(f / "weights.safetensors").stat().st_size for f in (tmp_path / "half", folder)]
    assert sizes[0] < 0.7 * sizes[1]


def test_trains_on(folder):
    network = load_model(folder).network.train()
    network(torch.randn(2, 1, 8, 12, 16))[1].sum().backward()
    assert all(p.grad is not None for n, p in network.named_parameters() if "heads" in n)


def test_an_older_model_is_replaced(model, folder):
    with torch.no_grad():
        model.network.heads.bias += 1
    save_model(folder, model)
    assert torch.equal(encode(load_model(folder).network), encode(model.network))
    assert sorted(p.name for p in folder.parent.iterdir()) == ["general"]


def test_other_folders_are_left_alone(model, tmp_path):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter1.txt").write_text("x")
    with pytest.raises(FileExistsError, match="no model"):
        save_model(tmp_path / "thesis", model)
    assert (tmp_path / "thesis" / "chapter1.txt").exists()


def test_a_failed_save_leaves_the_old_one(model, folder):
    before = encode(load_model(folder).network)
    with torch.no_grad():
        model.network.heads.bias[0] = torch.nan
    with pytest.raises(ValueError, match=r"heads\.bias is not finite"):
        save_model(folder, model)
    assert torch.equal(encode(load_model(folder).network), before)
    assert sorted(p.name for p in folder.parent.iterdir()) == ["general"]


def test_networks_that_cannot_be_stored(model, tmp_path):
    fused = StoredModel(network=model.network.fuse(), voxel_spacing=10)
    with pytest.raises(ValueError, match="before fuse"):
        save_model(tmp_path / "fused", fused)
    with pytest.raises(ValueError, match="DenseEncoder"):
        save_model(tmp_path / "other", StoredModel(network=torch.nn.ReLU(), voxel_spacing=10))
    clash = StoredModel(network=model.network, voxel_spacing=10, config={"format": 3})
    with pytest.raises(ValueError, match="must not set format"):
        save_model(tmp_path / "clash", clash)
    assert list(tmp_path.iterdir()) == []


def test_identity_is_of_the_weights(model, folder, tmp_path):
    name, digest = load_model(folder).identity.split(":")
    assert name == "general"
    assert digest == model.identity.removeprefix("DenseEncoder:")
    save_model(tmp_path / "copy", model)
    assert load_model(tmp_path / "copy").identity == f"copy:{digest}"
    with torch.no_grad():
        model.network.heads.bias[0] += 1e-3
    save_model(folder, model)
    assert load_model(folder).identity.split(":")[1] != digest


def test_names_of_models(model, folder, tmp_path, monkeypatch):
    monkeypatch.setattr(stored, "SHIPPED", folder.parent)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "general").mkdir()
    assert find_model("general") == folder
    assert find_model(tmp_path / "general") == tmp_path / "general"
    with pytest.raises(FileNotFoundError, match=r"no model genral: .* tomoloc ships \(general\)"):
        find_model("genral")
    monkeypatch.setattr(stored, "SHIPPED", tmp_path / "nothing")
    with pytest.raises(FileNotFoundError, match="neither a folder nor shipped with tomoloc"):
        find_model("genral")


def test_no_folder(tmp_path):
    with pytest.raises(FileNotFoundError, match="no model folder"):
        load_model(tmp_path / "nothing")


@pytest.mark.parametrize("name", ["config.toml", "weights.safetensors", "card.md"])
def test_missing_files(folder, name):
    (folder / name).unlink()
    with pytest.raises(OSError, match=f"lacks its file {name}"):
        load_model(folder)


@pytest.mark.parametrize("keep", [0, 7, 500, -1])
def test_cut_weights(folder, keep):
    path = folder / "weights.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ValueError, match=r"weights\.safetensors is damaged") as caught:
        load_model(folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"heads.bias": None}, r"heads\.bias is missing"),
        ({"heads.other": torch.zeros(3)}, r"heads\.other has no place"),
        ({"heads.bias": torch.zeros(9)}, r"heads\.bias must have shape \(6,\); got \(9,\)"),
        ({"heads.bias": torch.full((6,), torch.inf)}, r"heads\.bias is not finite"),
    ],
    ids=str,
)
def test_weights_of_something_else(folder, change, message):
    path = folder / "weights.safetensors"
    weights = {**safetensors.torch.load_file(path), **change}
    safetensors.torch.save_file({k: v for k, v in weights.items() if v is not None}, path)
    with pytest.raises(ValueError, match=message):
        load_model(folder)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("format = 1", "format = 9", "update tomoloc"),
        ("format = 1", "", "does not state format"),
        (
            "DenseEncoder",
            "Magic",
            "names the network 'Magic'; known: DenseEncoder, HeatNetwork, MonaiHeatNetwork, Seg",
        ),
        ('"DenseEncoder"', "[1]", r"names the network \[1\]; known"),
        ("voxel_spacing = 10.0", "voxel_spacing = -3", "must be positive"),
        ("voxel_spacing = 10.0", 'voxel_spacing = "x"', "config.toml"),
        ("channels = 5", 'channels = "x"', "does not describe a network"),
        ("channels = 5", "chanels = 5", "does not describe a network"),
        ("channels = 5", "channels = 1000000000000", "does not fit config.toml"),
        ("[settings]", "[settings", "not valid TOML"),
        ("[settings]", "\x00", "not valid TOML"),
    ],
)
def test_damaged_config(folder, old, new, message):
    path = folder / "config.toml"
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))
    with pytest.raises(ValueError, match=message) as caught:
        load_model(folder)
    assert "\n" not in str(caught.value)


def test_damaged_card(folder):
    (folder / "card.md").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match=r"card\.md is not text"):
        load_model(folder)
