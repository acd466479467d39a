"""What lets a training go on after it was stopped, however that happened."""

from __future__ import annotations

import copy
import csv
import io
import math
import pickle
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tomoloc.atomic import remove_drafts, writing

__all__ = ["Average", "Log", "as_model", "read_checkpoint", "write_checkpoint"]

NAME = "checkpoint.pt"
FORMAT = 1


class Average:
    """Moving average of a network's weights, which does better than any one of them.

    Parameters
    ----------
    model : Module
        Its present weights are the start.
    decay : float
        What stays of the average at each step; early on less, as there is little to average.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.state = {name: value.detach().clone() for name, value in model.state_dict().items()}

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        """Add the weights that step number `step`, from 0, has led to."""
        decay = min(self.decay, (1 + step) / (10 + step))
        for name, value in model.state_dict().items():
            if value.is_floating_point():
                self.state[name].lerp_(value, 1 - decay)
            else:
                self.state[name].copy_(value)


def write_checkpoint(folder: Path, content: Mapping[str, Any]) -> None:
    """Write a checkpoint whole or not at all.

    Raises
    ------
    OSError
        If there is no room for it, or it cannot be written for another reason.
    """
    # torch would not say of a full disk that it is full.
    buffer = io.BytesIO()
    torch.save({"format": FORMAT, **content}, buffer)
    try:
        with writing(folder / NAME) as draft:
            draft.write_bytes(buffer.getbuffer())
    except OSError as error:
        raise OSError(
            f"cannot write {folder / NAME}: {error.strerror or error}; the last one is kept: make"
            " room and give the same command again"
        ) from error


def read_checkpoint(folder: Path, *, device: str) -> dict[str, Any] | None:
    """Read the checkpoint of a folder; None where there is none.

    Raises
    ------
    ValueError
        If it is damaged, or of another version.
    """
    path = folder / NAME
    remove_drafts(folder)
    if not path.is_file():
        return None
    try:
        content = torch.load(path, map_location=device, weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError) as error:
        raise ValueError(
            f"{path} cannot be read ({type(error).__name__}): delete it to start anew"
        ) from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise ValueError(f"{path} is no checkpoint of this version: delete it to start anew")
    return content


class Log:
    """Rows of numbers in a CSV file, written through at once.

    Parameters
    ----------
    path : Path
    columns : tuple of str
        The first is the step.
    before : int
        Rows from this step on are of a run that was killed, and are dropped.
    """

    def __init__(self, path: Path, columns: tuple[str, ...], *, before: int) -> None:
        self.path, self.columns = path, columns
        rows = [row for row in _read_rows(path) if int(row["step"]) < before]
        with writing(path) as draft, draft.open("w", newline="") as file:
            writer = csv.DictWriter(file, columns, restval="", extrasaction="ignore")
            writer.writeheader()
            writer.writerows(rows)

    def add(self, **values: float) -> None:
        """Append a row; what is not a number is left empty."""
        cells = [values.get(name, math.nan) for name in self.columns]
        with self.path.open("a", newline="") as file:
            csv.writer(file).writerow("" if math.isnan(c) else f"{c:.6g}" for c in cells)


def _read_rows(path: Path) -> Iterator[dict[str, str]]:
    if not path.is_file():
        return
    with path.open(newline="") as file:
        for row in csv.DictReader(file):
            if (row.get("step") or "").isdigit() and None not in row.values():
                yield row


def as_model(model: nn.Module, state: Mapping[str, Tensor]) -> nn.Module:
    """Return a copy of a network with other weights, set to inference."""
    other = copy.deepcopy(model)
    other.load_state_dict(state)
    return other.eval()
