"""Weights that others have published, as models. Reading them runs no code of theirs."""

from __future__ import annotations

import pickle
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tomoloc.nn.stored import StoredModel, find_model, load_model
from tomoloc.nn.window import WindowEncoder

__all__ = ["open_model", "read_tomotwin"]

_SPACING = 10.0
_CARD = """\
# TomoTwin

Weights of {name}, read for the window network. They were trained by others: see Rice et al.,
Nature Methods 20 (2023), doi:10.1038/s41592-023-01878-z, and the terms they were published under.
Tomograms of about {spacing:g} Å voxels; proteins above about 150 kDa.
"""


def open_model(model: Path | str) -> StoredModel:
    """Read a model, whatever stands for it.

    Parameters
    ----------
    model : Path or str
        Name of a model that comes with tomoloc, a model folder, or a checkpoint of TomoTwin
        (.pth).

    Returns
    -------
    StoredModel

    Raises
    ------
    OSError
        If there is no such model.
    ValueError
        If it is damaged or of an unknown kind.
    """
    path = Path(model)
    if path.suffix == ".pth" and not path.is_dir():
        return read_tomotwin(path)
    return load_model(find_model(model))


def read_tomotwin(path: Path | str) -> StoredModel:
    """Read a published checkpoint of TomoTwin without running any code in it.

    Parameters
    ----------
    path : Path or str
        Of a `.pth` file: a state dictionary, or one with its configuration.

    Returns
    -------
    StoredModel
        With a `WindowEncoder`; `save_model` makes a model folder of it.

    Raises
    ------
    OSError
        If the file cannot be read.
    ValueError
        If it holds something else, or a variant of the network that is not supported.
    """
    path = Path(path)
    checkpoint = _read_checkpoint(path)
    weights = checkpoint.get("model_state_dict", checkpoint)
    config = checkpoint.get("tomotwin_config") or {}
    if not isinstance(weights, Mapping) or not isinstance(config, Mapping):
        raise ValueError(f"{path} holds no weights of TomoTwin")
    identifier = str(config.get("identifier", "SiameseNet"))
    if identifier.upper() != "SIAMESENET":
        raise ValueError(f"{path} holds a network {identifier}; only SiameseNet is supported")
    try:
        network = _build(dict(weights), config.get("network_config") or {})
    except (ValueError, TypeError, AttributeError, LookupError, ArithmeticError) as error:
        raise ValueError(
            f"{path} holds no network of TomoTwin that can be read: {error}"
        ) from error
    card = _CARD.format(name=path.name, spacing=_SPACING)
    return StoredModel(network=network, voxel_spacing=_SPACING, card=card, name=path.stem)


def _read_checkpoint(path: Path) -> Mapping[str, Any]:
    with path.open("rb") as file:
        if not zipfile.is_zipfile(file):
            raise ValueError(f"{path} is no checkpoint of PyTorch or is damaged; copy it again")
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ValueError(f"{path} holds more than numbers: code that is not run here") from error
    except (RuntimeError, EOFError) as error:
        raise ValueError(f"{path} is damaged; copy it again") from error
    if not isinstance(checkpoint, Mapping):
        raise ValueError(f"{path} holds no weights of TomoTwin")
    return checkpoint


def _build(weights: dict[str, Tensor], config: Mapping[str, Any]) -> WindowEncoder:
    """Make the network that the published names and shapes describe."""
    renamed: dict[str, Tensor] = {}
    for name, value in weights.items():
        plain = re.sub(r"^(module\.|_orig_mod\.|model\.)+", "", name)
        renamed[_our_name(plain)] = value.float()
    widths = [
        len(renamed[f"blocks.{i}.first.weight"])
        for i in range(len({name.split(".")[1] for name in renamed if name.startswith("blocks.")}))
    ]
    if not widths or "head.2.weight" not in renamed:
        raise ValueError("layers are missing")
    groups = config.get("groups", (config.get("norm_kwargs") or {}).get("num_groups", 64))
    settings = {
        "widths": widths,
        "groups": groups,
        "hidden": len(renamed["head.0.weight"]),
        "channels": len(renamed["head.2.weight"]),
        "pooling": float(config.get("gem_pooling_p", 0)),
        "dropout": float(config.get("dropout", 0.2)),
    }
    with torch.device("meta"):
        network = WindowEncoder(**settings)
    expected = network.state_dict()
    if differing := sorted(expected.keys() ^ renamed.keys()):
        raise ValueError(f"the layer {differing[0]} is missing or unexpected")
    for name, value in expected.items():
        if value.shape != renamed[name].shape:
            raise ValueError(f"{name} is of shape {tuple(renamed[name].shape)}")
        if not renamed[name].isfinite().all():
            raise ValueError(f"{name} is not finite")
    network.load_state_dict(renamed, assign=True)
    return network.eval()


def _our_name(name: str) -> str:
    """Translate a published name; the two normalisations of a block are one and the same."""
    layers = {"0": "first", "1": "norm", "3": "second", "4": "norm"}
    if match := re.fullmatch(r"conv_layer(\d)\.([0134])\.(weight|bias)", name):
        return f"blocks.{match[1]}.{layers[match[2]]}.{match[3]}"
    if match := re.fullmatch(r"headnet\.([135])\.(weight|bias)", name):
        return f"head.{int(match[1]) // 2}.{match[2]}"
    raise ValueError(f"the layer {name} belongs to a variant that is not supported")
