"""Targets on disk: what a model makes of the particles to look for. Never a pickle."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy
from numpy.typing import NDArray

from tomoloc.atomic import writing
from tomoloc.types import FloatArray

__all__ = ["Targets", "check_model", "read_targets", "write_targets"]

_KEY, _KIND, _FORMAT = "tomoloc", "tomoloc targets", "1"
_UNIT = 1e-2
"""Lengths of unit vectors may differ from 1 by this: they come in half precision, too."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Targets:
    """Vectors of what is looked for.

    Parameters
    ----------
    vectors : array_like, shape (n, channels)
        Of length 1.
    label : array_like of str, shape (n,), or str
        Several vectors of one label are several examples of it.
    model : str
        Identity of the model (`StoredModel.identity`) that gave the vectors: those of another one
        mean nothing.
    n_members : array_like of int, shape (n,), or int
        How many particles each vector stands for.

    Raises
    ------
    ValueError
        If the shapes disagree or a vector is not of length 1.
    """

    vectors: FloatArray
    label: NDArray[np.str_] | str
    model: str
    n_members: NDArray[np.integer[Any]] | int = 1

    def __post_init__(self) -> None:
        vectors = np.asarray(self.vectors, dtype=np.float32)
        if vectors.ndim != 2:
            raise ValueError(f"targets need vectors of shape (n, channels); got {vectors.shape}")
        n = len(vectors)
        columns: dict[str, NDArray[Any]] = {}
        for name, dtype in (("label", np.str_), ("n_members", np.int64)):
            value = np.asarray(getattr(self, name), dtype=dtype)
            columns[name] = np.full(n, value) if value.ndim == 0 else value
            if columns[name].shape != (n,):
                raise ValueError(f"{name} must have one entry for each of {n} targets")
        length = np.linalg.norm(vectors, axis=1)
        if not (np.abs(length - 1) < _UNIT).all():
            bad = int(np.flatnonzero(~(np.abs(length - 1) < _UNIT))[0])
            raise ValueError(f"target {bad + 1} must be of length 1; it is of {length[bad]:.4g}")
        for name, value in {"vectors": vectors, **columns}.items():
            object.__setattr__(self, name, value)

    def __len__(self) -> int:
        return len(self.vectors)

    @property
    def labels(self) -> list[str]:
        """The distinct labels, sorted."""
        return sorted({str(label) for label in np.asarray(self.label)})

    def of(self, label: str) -> FloatArray:
        """Return the vectors of one label, shape (k, channels)."""
        return self.vectors[np.asarray(self.label) == label]


def check_model(identity: str, model: str, *, what: str) -> None:
    """Refuse vectors of another model; the same model may have another name.

    Parameters
    ----------
    identity : str
        Of the model that gave the vectors.
    model : str
        Identity of the model that they are to be used with.
    what : str
        The vectors, for the message: "targets.safetensors", "the targets".

    Raises
    ------
    ValueError
        If the two differ in more than their names.
    """
    if identity.rpartition(":")[2] != model.rpartition(":")[2]:
        raise ValueError(
            f"{what}: vectors of model {identity} mean nothing to model {model}; give --model, or"
            " make them anew with this one"
        )


def write_targets(targets: Targets, path: str | Path, *, overwrite: bool = True) -> None:
    """Write targets as .safetensors.

    Parameters
    ----------
    targets : Targets
    path : path
    overwrite : bool
        Whether an existing file may be replaced.

    Raises
    ------
    OSError
        If the file cannot be written, or exists and may not be replaced.
    """
    metadata = {
        "kind": _KIND,
        "format": _FORMAT,
        "model": targets.model,
        "label": np.asarray(targets.label).tolist(),
    }
    tensors = {"vectors": targets.vectors, "n_members": np.asarray(targets.n_members)}
    # One entry, as the library writes several in an order of chance.
    held = {_KEY: json.dumps(metadata, ensure_ascii=False)}
    with writing(path, overwrite=overwrite) as draft:
        draft.write_bytes(safetensors.numpy.save(tensors, held))


def read_targets(path: str | Path) -> Targets:
    """Read targets.

    Raises
    ------
    ValueError
        If the file is something else, or damaged.
    OSError
        If it cannot be read.
    """
    file = Path(path)
    if not file.is_file():
        raise FileNotFoundError(f"no file of targets {file}")
    try:
        with safetensors.safe_open(file, framework="numpy") as content:
            metadata = _read_metadata(content.metadata() or {})
            tensors = {name: content.get_tensor(name) for name in content.keys()}  # noqa: SIM118
    except safetensors.SafetensorError as error:
        raise ValueError(f"{file} is damaged, or no file of targets ({error})") from error
    if metadata.get("kind") != _KIND:
        raise ValueError(f"{file} holds no targets; tomoloc cluster makes such files")
    if metadata.get("format") != _FORMAT:
        raise ValueError(
            f"{file} is of format {metadata.get('format')}, this version of tomoloc reads format"
            f" {_FORMAT}: update tomoloc"
        )
    try:
        return Targets(
            vectors=tensors["vectors"],
            label=_read_labels(metadata["label"]),
            model=metadata["model"],
            n_members=tensors["n_members"],
        )
    except KeyError as error:
        raise ValueError(f"{file} is damaged: it lacks {error}") from error
    except (TypeError, ValueError) as error:
        raise ValueError(f"{file} is damaged: {error}") from error


def _read_metadata(held: Mapping[str, str]) -> dict[str, Any]:
    """Return what was written of the targets; nothing for a file of something else."""
    try:
        metadata = json.loads(held.get(_KEY, "{}"))
    except ValueError:
        return {}
    return metadata if isinstance(metadata, dict) else {}


def _read_labels(found: Any) -> NDArray[np.str_]:
    if not isinstance(found, list) or not all(isinstance(label, str) for label in found):
        raise ValueError("label must be a list of strings")
    return np.array(found, dtype=np.str_)
