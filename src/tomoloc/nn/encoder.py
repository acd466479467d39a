"""Dense networks: what stands at each place of a volume, and whether a particle's centre is there.

U-shaped (Ronneberger, Fischer & Brox 2015, doi:10.1007/978-3-319-24574-4_28) with residual blocks
(He et al. 2016, doi:10.1109/CVPR.2016.90), without any work at full resolution: the first
convolution halves the grid, and the output stays there.

At inference nothing depends on the volume as a whole (batch normalisation is folded into the
convolutions), so a tile with `halo` voxels around it gives what the whole volume gives.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional

__all__ = ["DenseEncoder", "DenseNetwork", "HeatNetwork", "Unit", "check_input"]


def check_input(x: Tensor, *, period: int) -> None:
    """Refuse volumes that a network cannot take.

    Raises
    ------
    ValueError
        If the shape is not (b, 1, z, y, x) with sides that are multiples of the period.
    """
    if x.ndim != 5 or x.shape[1] != 1 or any(n % period or n == 0 for n in x.shape[2:]):
        raise ValueError(
            "the network needs input of shape (b, 1, z, y, x) with sides that are multiples of"
            f" {period}; got {tuple(x.shape)}"
        )


class DenseNetwork(nn.Module):
    """A network that gives some numbers at every second voxel.

    Output point i stands at voxel ``stride * i + (stride - 1) / 2``, half way between two voxels,
    so that a flipped volume gives the flipped grid. Outside the volume, the network sees zeros.

    Parameters
    ----------
    widths : sequence of int
        Channels at strides 2, 4, 8, ...
    down, up : sequence of int
        Residual blocks at each of these strides on the way down, and on the way back up (the last
        of `down` has no way up: `up` has one entry less).
    outputs : int
        Numbers at each point.
    head : int
        Channels of a hidden layer from strides 2 and 4 to the answer, beside the straight way from
        stride 2: what a particle is takes more channels than where it is. 0 leaves it out, as
        does a single width.

    Raises
    ------
    ValueError
        If the numbers of levels disagree or a number is not positive.
    """

    def __init__(
        self,
        *,
        widths: Sequence[int] = (32, 64, 128),
        down: Sequence[int] = (1, 2, 2),
        up: Sequence[int] = (1, 2),
        outputs: int = 1,
        head: int = 96,
    ) -> None:
        super().__init__()
        self.widths, self.down, self.up = tuple(widths), tuple(down), tuple(up)
        levels = len(self.widths)
        self.outputs, self.head = outputs, head if levels > 1 else 0
        if levels < 1 or len(self.down) != levels or len(self.up) != levels - 1:
            raise ValueError(
                f"an encoder of {levels} widths needs {levels} numbers of blocks down and"
                f" {levels - 1} up; got {len(self.down)} and {len(self.up)}"
            )
        if min(*self.widths, outputs, 1) < 1 or min(*self.down, *self.up, head, 0) < 0:
            raise ValueError("an encoder needs positive widths and no negative number of blocks")
        first = self.widths[0]
        self.stem = Unit(nn.Conv3d(1, first, 4, stride=2, padding=1, bias=False))
        self.downward = nn.ModuleList(_blocks(*pair) for pair in zip(widths, down, strict=True))
        steps = list(zip(self.widths, self.widths[1:], strict=False))
        self.reduce = nn.ModuleList(
            Unit(nn.Conv3d(fine, coarse, 2, stride=2, bias=False)) for fine, coarse in steps
        )
        self.enlarge = nn.ModuleList(
            Unit(nn.ConvTranspose3d(coarse, fine, 2, stride=2, bias=False))
            for fine, coarse in steps
        )
        self.upward = nn.ModuleList(_blocks(*pair) for pair in zip(widths, up, strict=False))
        self.heads = nn.Conv3d(first, outputs, 1)
        self.hidden: _Hidden | None = None
        if self.head:
            self.hidden = _Hidden(first, self.widths[1], head, outputs)

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return self.heads.weight.device

    @property
    def voxel_type(self) -> torch.dtype:
        """Of the numbers that it takes."""
        return self.heads.weight.dtype

    @property
    def point_type(self) -> torch.dtype:
        """Of the numbers that one level hands to the next."""
        return self.heads.weight.dtype

    @property
    def stride(self) -> int:
        """Voxels from one output point to the next."""
        return 2

    @property
    def period(self) -> int:
        """Sides must be multiples of it, and a shift by it shifts the output exactly."""
        return 2 ** len(self.widths)

    @property
    def halo(self) -> int:
        """Voxels around an output point beyond which nothing matters: a multiple of `period`."""
        reach = 2.0  # of the first convolution, from the middle of its two voxels
        for level, blocks in enumerate(self.down):
            step = 2 ** (level + 1)
            convolutions = 2 * (blocks + (self.up[level] if level < len(self.up) else 0))
            # going up and down takes a point anywhere in a coarser cell: half a cell each way
            reach += step * convolutions + (step if level < len(self.up) else 0)
        return int(-(-reach // self.period)) * self.period

    @property
    def settings(self) -> dict[str, object]:
        """What the class must be called with to make this network again."""
        return {
            "widths": list(self.widths),
            "down": list(self.down),
            "up": list(self.up),
            "head": self.head,
        }

    def compute(self, x: Tensor) -> Tensor:
        """Compute what `finish` makes the answer of.

        Parameters
        ----------
        x : Tensor, shape (b, 1, z, y, x)
            Voxels of mean 0 and standard deviation 1, protein bright; sides are multiples of
            `period`.

        Returns
        -------
        Tensor, shape (b, outputs, z / 2, y / 2, x / 2)

        Raises
        ------
        ValueError
            If the shape is not as above.
        """
        check_input(x, period=self.period)
        kept: list[Tensor] = []
        for level in range(len(self.widths)):
            x = self.descend(x, level=level)
            kept.append(x)
        coarse = x
        for level in reversed(range(len(self.widths) - 1)):
            coarse, x = x, self.ascend(x, kept[level], level=level)
        return self.answer(x, coarse)

    def finish(self, points: Tensor) -> Tensor:
        """Turn what `compute` gives, the outputs moved to the last axis, into the answer."""
        return points

    def descend(self, x: Tensor, *, level: int) -> Tensor:
        """Go from the voxels, or from a level, to the level with half as many points along an axis.

        A point depends on `reach_down` points of its own level around it. With this and the two
        methods that follow, a large volume can be encoded level by level, each in small tiles,
        where tiles through all levels would need the wide `halo`.
        """
        step = self.reduce[level - 1] if level else self.stem
        return self.downward[level](functional.relu(step(x), inplace=True))

    def ascend(self, coarse: Tensor, kept: Tensor, *, level: int) -> Tensor:
        """Go back to a level from the one with half as many points.

        A point depends on `reach_up` points of its own level around it.

        Parameters
        ----------
        coarse : Tensor, shape (b, widths[level + 1], z, y, x)
        kept : Tensor, shape (b, widths[level], 2 z, 2 y, 2 x)
            What `descend` gave for this level.
        level : int
        """
        x = self.enlarge[level](coarse)
        x += kept
        return self.upward[level](functional.relu(x, inplace=True))

    def answer(self, x: Tensor, coarse: Tensor) -> Tensor:
        """Turn what `ascend` gave for level 0, and for level 1, into the output."""
        y = self.heads(x)
        return y if self.hidden is None else y + self.hidden(x, coarse)

    def reach_down(self, level: int) -> int:
        """Points of a level around a point that matter on the way down to it."""
        return 2 * self.down[level] + (level == 0)  # the first convolution overlaps

    def reach_up(self, level: int) -> int:
        """Points of a level around a point that matter on the way back up to it."""
        return 2 * self.up[level]

    def grow_from(self, smaller: DenseNetwork) -> None:
        """Take the weights of a network with fewer blocks or channels, and answer as it does.

        What this network has besides counts for nothing until it is trained: the last
        normalisation of another block gives 0, and what is here already ignores other channels
        (Chen, Goodfellow & Shlens 2016, arXiv:1511.05641).

        Raises
        ------
        ValueError
            If the other network is not smaller.
        """
        old, new = smaller.state_dict(), self.state_dict()  # whose tensors are the network's own
        for name, value in old.items():
            mine = new.get(name)
            if mine is None or any(n > m for n, m in zip(value.shape, mine.shape, strict=True)):
                raise ValueError(f"this network has no place for {name} of the other one")
        for name, value in old.items():
            mine = new[name]
            if value.ndim > 1:  # (outputs, inputs, ...), the other way round on the way up
                inputs = 0 if name.startswith("enlarge.") else 1
                mine.narrow(1 - inputs, 0, value.shape[1 - inputs]).zero_()
            mine[tuple(slice(n) for n in value.shape)] = value
        for name in new.keys() - old.keys():
            if name.endswith((".second.norm.weight", ".second.norm.bias")):
                new[name].zero_()

    def fuse(self) -> Self:
        """Return a copy for inference, with the batch normalisations folded in."""
        fused = copy.deepcopy(self).eval()
        for module in fused.modules():
            if isinstance(module, Unit):
                module.fold()
        return fused


class DenseEncoder(DenseNetwork):
    """A network that gives a unit vector and a centre's logit at every second voxel.

    Parameters
    ----------
    channels : int
        Length of the unit vectors.
    **settings
        Of `DenseNetwork`, without `outputs`.
    """

    def __init__(self, *, channels: int = 32, **settings: Any) -> None:
        if channels < 1:
            raise ValueError(f"an encoder needs vectors of at least one number; got {channels}")
        super().__init__(outputs=channels + 1, **settings)
        self.channels = channels

    @property
    def settings(self) -> dict[str, object]:
        """What `DenseEncoder` must be called with to make this network again."""
        return {**super().settings, "channels": self.channels}

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Encode volumes.

        Parameters
        ----------
        x : Tensor, shape (b, 1, z, y, x)
            As for `compute`.

        Returns
        -------
        embedding : Tensor, shape (b, channels, z / 2, y / 2, x / 2)
            Of length 1 along the channels.
        logit : Tensor, shape (b, 1, z / 2, y / 2, x / 2)
            Of the probability that a particle's centre is here.

        Raises
        ------
        ValueError
            If the shape is not as above.
        """
        vector, logit = self.encode(x)
        return functional.normalize(vector, dim=1), logit

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Do as `forward` but leave the vectors' lengths as they come.

        A loss that looks at few points normalises those alone, in full precision.
        """
        y = self.compute(x)
        return y[:, : self.channels], y[:, self.channels :]

    def finish(self, points: Tensor) -> Tensor:
        """Unit vectors, and last the probability of a centre."""
        vector = functional.normalize(points[..., : self.channels], dim=-1)
        return torch.cat([vector, torch.sigmoid(points[..., self.channels :])], dim=-1)


class HeatNetwork(DenseNetwork):
    """A network that gives a heat map of centres for each kind of particle.

    Parameters
    ----------
    kinds : int
        Of particles.
    **settings
        Of `DenseNetwork`, without `outputs`.
    """

    def __init__(self, *, kinds: int = 1, **settings: Any) -> None:
        super().__init__(outputs=kinds, **settings)
        self.kinds = kinds

    @classmethod
    def from_encoder(cls, encoder: DenseEncoder, *, kinds: int) -> Self:
        """Start from an encoder: all kinds are what it takes for the centre of any particle."""
        # The last output of an encoder is the logit of a centre.
        return cls._taking(encoder, [encoder.outputs - 1] * kinds)

    def select(self, kinds: Sequence[int]) -> Self:
        """Return a network for some of the kinds alone, by their numbers."""
        return self._taking(self, kinds)

    @classmethod
    def _taking(cls, other: DenseNetwork, outputs: Sequence[int]) -> Self:
        own = {"channels", "kinds"}
        settings: dict[str, Any] = {k: v for k, v in other.settings.items() if k not in own}
        network = cls(kinds=len(outputs), **settings)
        network.load_state_dict(
            {
                name: value[list(outputs)] if _is_last(name) else value
                for name, value in other.state_dict().items()
            }
        )
        return network

    @property
    def settings(self) -> dict[str, object]:
        """What `HeatNetwork` must be called with to make this network again."""
        return {**super().settings, "kinds": self.kinds}

    def forward(self, x: Tensor) -> Tensor:
        """Heat from 0 to 1, shape (b, kinds, z / 2, y / 2, x / 2); `x` as for `compute`."""
        return torch.sigmoid(self.compute(x))

    def finish(self, points: Tensor) -> Tensor:
        """Heat, from logits."""
        return torch.sigmoid(points)


def _is_last(name: str) -> bool:
    return name.startswith(("heads.", "hidden.last."))


class _Hidden(nn.Module):
    """A layer between two levels and the answer, point by point."""

    def __init__(self, fine: int, coarse: int, width: int, channels: int) -> None:
        super().__init__()
        self.fine = nn.Conv3d(fine, width, 1)
        self.coarse = nn.Conv3d(coarse, width, 1, bias=False)
        self.last = nn.Conv3d(width, channels, 1, bias=False)

    def forward(self, x: Tensor, coarse: Tensor) -> Tensor:
        y = self.fine(x) + functional.interpolate(self.coarse(coarse), scale_factor=2.0)
        return self.last(functional.relu(y, inplace=True))


class Unit(nn.Module):
    """A convolution and its batch normalisation.

    Parameters
    ----------
    convolution : Conv3d or ConvTranspose3d
        Without bias.
    """

    def __init__(self, convolution: nn.Conv3d | nn.ConvTranspose3d) -> None:
        super().__init__()
        self.convolution = convolution
        self.norm: nn.Module = nn.BatchNorm3d(convolution.out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """Convolve and normalise."""
        return self.norm(self.convolution(x))

    def fold(self) -> None:
        """Let the convolution do the normalisation's work, for inference."""
        if isinstance(self.norm, nn.BatchNorm3d):
            transposed = isinstance(self.convolution, nn.ConvTranspose3d)
            self.convolution = nn.utils.fuse_conv_bn_eval(
                self.convolution, self.norm, transpose=transposed
            )
            self.norm = nn.Identity()


class _Residual(nn.Module):
    """Two 3 x 3 x 3 convolutions beside a straight path."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = Unit(nn.Conv3d(width, width, 3, padding=1, bias=False))
        self.second = Unit(nn.Conv3d(width, width, 3, padding=1, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        y = self.second(functional.relu(self.first(x), inplace=True))
        y += x
        return functional.relu(y, inplace=True)


def _blocks(width: int, count: int) -> nn.Sequential:
    return nn.Sequential(*(_Residual(width) for _ in range(count)))
