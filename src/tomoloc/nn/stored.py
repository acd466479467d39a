"""Models on disk: folders of `config.toml`, `weights.safetensors`, `card.md`. Never a pickle."""

from __future__ import annotations

import hashlib
import json
import math
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import tomli_w
import torch
from torch import Tensor, nn

from tomoloc.atomic import writing
from tomoloc.nn.encoder import DenseEncoder, HeatNetwork
from tomoloc.nn.monai import MonaiHeatNetwork
from tomoloc.nn.unet import SegmentationNetwork
from tomoloc.nn.window import WindowEncoder

__all__ = ["StoredModel", "find_model", "is_shipped", "load_model", "save_model"]

SHIPPED = Path(__file__).parents[1] / "models"
"""Models that come with tomoloc."""

_FORMAT = 1
_CONFIG, _WEIGHTS, _CARD = "config.toml", "weights.safetensors", "card.md"
_NETWORKS: dict[str, type[Any]] = {
    network.__name__: network
    for network in (
        DenseEncoder,
        HeatNetwork,
        MonaiHeatNetwork,
        SegmentationNetwork,
        WindowEncoder,
    )
}
_OWN_KEYS = {"format", "network", "voxel_spacing", "settings"}


@dataclass(frozen=True, eq=False, kw_only=True)
class StoredModel:
    """A trained network and what must be known to use it.

    Parameters
    ----------
    network : Module
        On the processor, in single precision, set to inference.
    voxel_spacing : float
        Of the tomograms that it takes, in angstrom.
    config : mapping
        Further tables of `config.toml`: how it was trained, calibrated thresholds, ...
    card : str
        For people: trained on what, measured how, where it fails.
    name : str
    """

    network: nn.Module
    voxel_spacing: float
    config: Mapping[str, Any] = field(default_factory=dict)
    card: str = ""
    name: str = ""

    def __post_init__(self) -> None:
        if not (math.isfinite(self.voxel_spacing) and self.voxel_spacing > 0):
            raise ValueError(
                f"a model's voxel_spacing must be positive (angstrom); got {self.voxel_spacing}"
            )

    @cached_property
    def identity(self) -> str:
        """Name, colon, and a digest of all that makes the vectors: those of others mean nothing."""
        kind = type(self.network).__name__
        settings = getattr(self.network, "settings", {})
        head = json.dumps([kind, settings, float(self.voxel_spacing)], sort_keys=True)
        digest = hashlib.blake2b(head.encode(), digest_size=8)
        for name, value in sorted(self.network.state_dict().items()):
            digest.update(name.encode())
            digest.update(value.detach().cpu().contiguous().numpy().tobytes())
        return f"{self.name or kind}:{digest.hexdigest()}"


def save_model(folder: Path | str, model: StoredModel, *, half: bool = False) -> None:
    """Write a model folder, all of it or nothing.

    Parameters
    ----------
    folder : Path or str
        New, or an older model, which is replaced.
    model : StoredModel
        Its name is not written: the folder's is the name.
    half : bool
        Store the convolutions in 16 bits (normalisations stay in 32).

    Raises
    ------
    ValueError
        If the network is of an unknown kind or already fused, a weight is not finite, or a table
        of `config` has a reserved name.
    OSError
        If the folder holds something else or cannot be written.
    """
    folder, network = Path(folder), model.network
    kind = type(network).__name__
    if _NETWORKS.get(kind) is not type(network):
        raise ValueError(f"expected a network of {' or '.join(_NETWORKS)}; got {kind}")
    if reserved := _OWN_KEYS & model.config.keys():
        raise ValueError(f"a model's config must not set {', '.join(sorted(reserved))}")
    if folder.exists() and not (folder / _CONFIG).is_file():
        raise FileExistsError(f"{folder} exists and is no model; choose another folder")
    config = {
        "format": _FORMAT,
        "network": kind,
        "voxel_spacing": float(model.voxel_spacing),
        "settings": network.settings,
        **model.config,
    }
    weights = {name: _packed(name, value, half) for name, value in network.state_dict().items()}
    if differing := _difference(weights, _expected(kind, config["settings"])):
        raise ValueError(f"the network cannot be stored ({differing}): save it before fuse()")
    try:
        with writing(folder) as draft:
            draft.mkdir()
            (draft / _CONFIG).write_text(tomli_w.dumps(config), encoding="utf-8")
            (draft / _CARD).write_text(model.card, encoding="utf-8")
            # safetensors would make a file for its owner alone
            (draft / _WEIGHTS).write_bytes(safetensors.torch.save(weights))
    except OSError as error:
        raise OSError(f"cannot write the model {folder}: {error.strerror or error}") from error


def find_model(model: Path | str) -> Path:
    """Find the folder of a model.

    Parameters
    ----------
    model : Path or str
        Name of a model that comes with tomoloc, or a folder.

    Raises
    ------
    FileNotFoundError
        If it is neither.
    """
    folder = Path(model)
    if is_shipped(model):
        return SHIPPED / folder
    if folder.is_dir():
        return folder
    shipped = sorted(f.parent.name for f in SHIPPED.glob(f"*/{_CONFIG}"))
    names = f"one that tomoloc ships ({', '.join(shipped)})" if shipped else "shipped with tomoloc"
    raise FileNotFoundError(f"no model {model}: neither a folder nor {names}")


def is_shipped(model: Path | str) -> bool:
    """Tell whether a word is the name of a model that comes with tomoloc."""
    word = str(model)
    return word == Path(word).name and (SHIPPED / word / _CONFIG).is_file()


def load_model(folder: Path | str) -> StoredModel:
    """Read a model folder.

    Raises
    ------
    OSError
        If the folder or one of its files is missing or cannot be read.
    ValueError
        If a file is damaged, or the files do not belong together.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"no model folder {folder}")
    for name in (_CONFIG, _WEIGHTS, _CARD):
        if not (folder / name).is_file():
            raise FileNotFoundError(f"the model {folder} lacks its file {name}; copy it again")
    config = _read_config(folder / _CONFIG)
    kind, settings = config["network"], config["settings"]
    try:
        expected = _expected(kind, settings)
    except (TypeError, ValueError, RuntimeError, ArithmeticError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"{folder / _CONFIG} does not describe a network: {reason}") from error
    weights = _read_weights(folder / _WEIGHTS)
    if differing := _difference(weights, expected):
        raise ValueError(f"{folder / _WEIGHTS} does not fit {_CONFIG}: {differing}")
    with torch.device("meta"):
        network = _NETWORKS[kind](**settings)
    network.load_state_dict(weights, assign=True)
    try:
        return StoredModel(
            network=network.eval(),
            voxel_spacing=float(config["voxel_spacing"]),
            config={key: value for key, value in config.items() if key not in _OWN_KEYS},
            card=(folder / _CARD).read_text(encoding="utf-8"),
            name=folder.resolve().name,
        )
    except UnicodeDecodeError as error:
        raise ValueError(f"{folder / _CARD} is not text in UTF-8; copy it again") from error
    except (TypeError, ValueError) as error:
        raise ValueError(f"{folder / _CONFIG}: {error}") from error


def _packed(name: str, value: Tensor, half: bool) -> Tensor:  # noqa: FBT001
    value = value.detach().cpu().contiguous()
    if half and value.ndim > 1:
        value = value.half()
    if not value.isfinite().all():
        raise ValueError(f"weight {name} is not finite (or too large for 16 bits); not saved")
    return value


def _expected(kind: str, settings: Mapping[str, Any]) -> dict[str, Tensor]:
    """Names and shapes of a network's weights, without any memory for them."""
    with torch.device("meta"):
        return dict(_NETWORKS[kind](**settings).state_dict())


def _difference(weights: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> str:
    """Say in a few words what is the first to disagree; empty if nothing does."""
    for name in sorted(expected.keys() - weights.keys()):
        return f"{name} is missing"
    for name in sorted(weights.keys() - expected.keys()):
        return f"{name} has no place in the network"
    for name, value in expected.items():
        if weights[name].shape != value.shape:
            shapes = [tuple(t.shape) for t in (value, weights[name])]
            return f"{name} must have shape {shapes[0]}; got {shapes[1]}"
    return ""


def _read_config(path: Path) -> dict[str, Any]:
    try:
        config = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not valid TOML: {error}") from error
    if missing := _OWN_KEYS - config.keys():
        raise ValueError(f"{path} does not state {', '.join(sorted(missing))}")
    if config["format"] != _FORMAT:
        raise ValueError(
            f"{path} is of format {config['format']!r}, this version of tomoloc reads format"
            f" {_FORMAT}: update tomoloc or the model"
        )
    if config["network"] not in list(_NETWORKS):  # it may be anything
        raise ValueError(
            f"{path} names the network {config['network']!r}; known: {', '.join(_NETWORKS)}"
        )
    if not isinstance(config["settings"], dict):
        raise ValueError(f"{path}: settings must be a table; got {config['settings']!r}")
    return config


def _read_weights(path: Path) -> dict[str, Tensor]:
    try:
        weights = safetensors.torch.load_file(path)
    except safetensors.SafetensorError as error:
        raise ValueError(f"{path} is damaged ({error}); copy it again") from error
    weights = {
        name: value.float() if value.is_floating_point() else value
        for name, value in weights.items()
    }
    for name, value in weights.items():
        if not value.isfinite().all():
            raise ValueError(f"{path} is damaged: {name} is not finite")
    return weights
