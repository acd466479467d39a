"""Networks of MONAI, an optional package, and heat maps by them."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional

from tomoloc.nn.encoder import HeatNetwork, check_input

__all__ = ["PERIOD", "AnyHeatNetwork", "MonaiHeatNetwork", "make_monai"]

PERIOD = 32
"""Sides that all of MONAI's networks take are multiples of it."""

_TOMOCPT = {"SwinUNETR": {"feature_size": 36, "use_v2": True}}
"""Options of a network where none are given: those of tomoCPT."""


class MonaiHeatNetwork(nn.Module):
    """A network of MONAI that gives a heat map of centres for each kind of particle.

    Its points are those of `tomoloc.nn.encoder.HeatNetwork`: each is the mean of the network's
    logits at eight voxels.

    Parameters
    ----------
    kinds : int
        Of particles.
    architecture : str
        Name of a network of MONAI whose output has as many voxels as its input. SwinUNETR without
        options is that of tomoCPT [1]_: version 2, with 36 features.
    options : mapping, optional
        Besides its numbers of dimensions and channels.

    Raises
    ------
    ValueError
        If MONAI has no such network or is not installed.

    References
    ----------
    .. [1] Shah et al., TomoCPT, Acta Cryst. D 81 (2025).
    """

    def __init__(
        self,
        *,
        kinds: int = 1,
        architecture: str = "SwinUNETR",
        options: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        if kinds < 1:
            raise ValueError(f"a network needs at least one kind of particle; got {kinds}")
        self.kinds, self.architecture = kinds, architecture
        self.options = dict(_TOMOCPT.get(architecture, {}) if options is None else options)
        self.body = make_monai(architecture, outputs=kinds, options=self.options)

    @property
    def stride(self) -> int:
        """Voxels from one output point to the next."""
        return 2

    @property
    def period(self) -> int:
        """Sides must be multiples of it."""
        return PERIOD

    @property
    def settings(self) -> dict[str, object]:
        """What the class must be called with to make this network again."""
        return {"kinds": self.kinds, "architecture": self.architecture, "options": self.options}

    def select(self, kinds: Sequence[int]) -> Self:
        """Return a copy; a network of MONAI keeps all its kinds.

        Raises
        ------
        ValueError
            If kinds are left out: which of its layers is the last is not known.
        """
        if list(kinds) != list(range(self.kinds)):
            raise ValueError(
                f"a network {self.architecture} of MONAI goes on with all {self.kinds} of its kinds"
                " or none"
            )
        return copy.deepcopy(self)

    def compute(self, x: Tensor) -> Tensor:
        """Compute logits.

        Parameters
        ----------
        x : Tensor, shape (b, 1, z, y, x)
            Voxels of mean 0 and standard deviation 1, protein bright; sides are multiples of
            `period`.

        Returns
        -------
        Tensor, shape (b, kinds, z / 2, y / 2, x / 2)

        Raises
        ------
        ValueError
            If the shape is not as above, or the network's output is of another shape.
        """
        check_input(x, period=PERIOD)
        found = self.body(x)
        if not isinstance(found, Tensor) or found.shape != (len(x), self.kinds, *x.shape[2:]):
            raise ValueError(
                f"MONAI's {self.architecture} gives no map of the tomogram's size: take another"
            )
        return functional.avg_pool3d(found, self.stride)

    def forward(self, x: Tensor) -> Tensor:
        """Heat from 0 to 1, shape (b, kinds, z / 2, y / 2, x / 2); `x` as for `compute`."""
        return torch.sigmoid(self.compute(x))


AnyHeatNetwork = HeatNetwork | MonaiHeatNetwork
"""Whatever gives a heat map of centres for each kind of particle."""


def make_monai(name: str, *, outputs: int, options: Mapping[str, Any]) -> nn.Module:
    """Make a network of MONAI for volumes of one channel.

    Parameters
    ----------
    name : str
        Of a class in `monai.networks.nets`.
    outputs : int
        Channels.
    options : mapping
        Further arguments.

    Raises
    ------
    ValueError
        If MONAI is not installed, has no such network, or cannot make it so.
    """
    try:
        from monai.networks import nets
    except ModuleNotFoundError as error:
        raise ValueError(
            f"the network {name} is none of tomoloc's: those of MONAI need pip install"
            " 'tomoloc[monai]'"
        ) from error
    kind = getattr(nets, name, None)
    if not (isinstance(kind, type) and issubclass(kind, nn.Module)):
        raise ValueError(f"neither tomoloc nor MONAI has a network {name}")
    try:
        # Some compute with numbers while they are made, which a device without any cannot.
        with torch.device("cpu"):
            network: nn.Module = kind(
                spatial_dims=3, in_channels=1, out_channels=outputs, **options
            )
    except (TypeError, ValueError) as error:
        raise ValueError(f"MONAI's {name} cannot be made so: {error}") from error
    return network
