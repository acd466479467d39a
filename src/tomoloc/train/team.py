"""Processes that train one network together, each on a device of its own, by Lightning Fabric."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import nn

__all__ = ["Team", "gather"]

T = TypeVar("T")

_METHODS = ("compute", "encode")
"""Ways through a network besides its own call, in which gradients are shared, too."""


@dataclass(frozen=True, kw_only=True)
class Team:
    """One process, alone or among several.

    Parameters
    ----------
    device : str
        Of this process.
    fabric : Fabric, optional
        Of Lightning, launched, if there are several.
    """

    device: str = "cpu"
    fabric: Any = None

    @property
    def rank(self) -> int:
        """Number of this process; the first, 0, is the one that writes."""
        return self.fabric.global_rank if self.fabric else 0

    @property
    def size(self) -> int:
        """How many processes there are."""
        return self.fabric.world_size if self.fabric else 1

    def share(self, model: nn.Module) -> nn.Module:
        """Return what to call in the network's place, so that all have the mean gradient."""
        if self.fabric is None:
            return model
        shared = self.fabric.setup_module(model, move_to_device=False)
        for name in _METHODS:
            if hasattr(model, name):
                shared.mark_forward_method(name)
        found: nn.Module = shared
        return found

    def meet(self) -> None:
        """Wait until all are here."""
        if self.fabric is not None:
            self.fabric.barrier()

    def tell(self, value: T) -> T:
        """Give all the value that the first has."""
        return value if self.fabric is None else self.fabric.broadcast(value)

    def agree(self, value: bool) -> bool:  # noqa: FBT001
        """Tell whether it is true for all."""
        if self.fabric is None:
            return value
        count = torch.tensor(float(value), device=self.device)
        return int(self.fabric.all_reduce(count, reduce_op="sum")) == self.size


def gather(devices: int, device: str) -> Team:
    """Start as many processes as there are devices to train on.

    The program's command line is given again by each of them; this process is the first.

    Parameters
    ----------
    devices : int
    device : {"cpu", "cuda"}

    Raises
    ------
    ValueError
        If there are not as many, or Lightning Fabric is not installed.
    """
    if devices < 1:
        raise ValueError(f"--devices must be at least 1; got {devices}")
    if devices == 1:
        return Team(device=device)
    if device == "cuda" and devices > (there := torch.cuda.device_count()):
        raise ValueError(f"--devices {devices}: this machine has {there}")
    try:
        from lightning_fabric import Fabric
    except ModuleNotFoundError as error:
        raise ValueError("several devices need pip install 'tomoloc[devices]'") from error
    fabric = Fabric(accelerator=device, devices=devices, strategy="ddp")
    fabric.launch()
    return Team(device=str(fabric.device), fabric=fabric)
