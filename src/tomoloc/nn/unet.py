"""Networks that tell the class of every voxel: U-Nets in 3D and 2.5D, and those of MONAI.

U-shaped (Ronneberger, Fischer & Brox 2015, doi:10.1007/978-3-319-24574-4_28); the default has the
layout of DeepFinder's (Moebel et al., Nature Methods 2021, doi:10.1038/s41592-021-01275-4) and
batch normalisation, which is folded into the convolutions for inference.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional

from tomoloc.nn.encoder import Unit, check_input
from tomoloc.nn.monai import PERIOD, make_monai

__all__ = ["ARCHITECTURES", "SegmentationNetwork"]

ARCHITECTURES = ("unet3d", "unet2.5d")
"""Those that need no other package."""

_BOTTOM = 4  # convolutions at the coarsest level, where others have two each way
_TENSORS = 6  # of the finest level's size that are in memory at one time


class SegmentationNetwork(nn.Module):
    """A network that gives a logit for background and for each kind of matter at every voxel.

    Parameters
    ----------
    kinds : int
        Classes besides background, which comes first.
    architecture : str
        unet3d, unet2.5d, or the name of a network of MONAI (``pip install tomoloc[monai]``), such
        as SegResNet or SwinUNETR.
    channels : sequence of int
        Of the two U-Nets, at each level from the finest on; the grid is halved in between.
    slices : int
        Of unet2.5d: sections that it looks at to label the middle one; odd.
    options : mapping, optional
        Of a network of MONAI, besides its numbers of dimensions and channels.

    Raises
    ------
    ValueError
        If a number is out of range, or MONAI has no such network or is not installed.
    """

    def __init__(
        self,
        *,
        kinds: int = 1,
        architecture: str = "unet3d",
        channels: Sequence[int] = (32, 48, 64),
        slices: int = 11,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.kinds, self.architecture, self.channels = kinds, architecture, tuple(channels)
        self.slices, self.options = slices, dict(options or {})
        if kinds < 1 or not self.channels or min(self.channels) < 1:
            raise ValueError("a segmentation network needs kinds and channels; got none")
        if slices < 1 or slices % 2 == 0:
            raise ValueError(f"slices must be odd, so that one is the middle; got {slices}")
        self.body: nn.Module
        if architecture in ARCHITECTURES:
            depth = slices if architecture == "unet2.5d" else None
            self.body = _UNet(self.channels, outputs=kinds + 1, slices=depth)
        else:
            self.body = make_monai(architecture, outputs=kinds + 1, options=self.options)

    @property
    def is_own(self) -> bool:
        """Whether it is one of the two U-Nets."""
        return self.architecture in ARCHITECTURES

    @property
    def stride(self) -> int:
        """Voxels from one output point to the next."""
        return 1

    @property
    def period(self) -> int:
        """Sides must be multiples of it."""
        return 2 ** (len(self.channels) - 1) if self.is_own else PERIOD

    @property
    def halo(self) -> int:
        """Voxels around a point beyond which nothing matters; of MONAI's, what is usual."""
        if not self.is_own:
            return PERIOD
        reach = 0
        for level in range(len(self.channels)):
            is_last = level == len(self.channels) - 1
            # Four convolutions, and half a cell each way for halving and doubling the grid.
            reach += 2**level * (_BOTTOM if is_last else 5)
        flat = self.slices // 2 if self.architecture == "unet2.5d" else 0
        return -(-max(reach, flat) // self.period) * self.period

    @property
    def margin(self) -> int:
        """Voxels at a patch's borders that see too little to be learned from."""
        return self.slices // 2 if self.architecture == "unet2.5d" else 2

    @property
    def bytes_per_voxel(self) -> int:
        """Memory that inference takes in single precision, about."""
        return _TENSORS * 4 * self.channels[0]

    @property
    def settings(self) -> dict[str, object]:
        """What the class must be called with to make this network again."""
        own: dict[str, object] = {"architecture": self.architecture, "kinds": self.kinds}
        if not self.is_own:
            return own | {"options": self.options}
        own["channels"] = list(self.channels)
        return own | ({"slices": self.slices} if self.architecture == "unet2.5d" else {})

    def compute(self, x: Tensor) -> Tensor:
        """Compute logits.

        Parameters
        ----------
        x : Tensor, shape (b, 1, z, y, x)
            Voxels of mean 0 and standard deviation 1, protein bright; sides are multiples of
            `period`.

        Returns
        -------
        Tensor, shape (b, 1 + kinds, z, y, x)

        Raises
        ------
        ValueError
            If the shape is not as above.
        """
        check_input(x, period=self.period)
        logits: Tensor = self.body(x)
        return logits

    def forward(self, x: Tensor) -> Tensor:
        """Probabilities, shape (b, 1 + kinds, z, y, x); `x` as for `compute`."""
        return torch.softmax(self.compute(x).float(), dim=1)

    def select(self, kinds: Sequence[int]) -> Self:
        """Return a network for some of the kinds alone, by their numbers from 0.

        Raises
        ------
        ValueError
            If it is one of MONAI's, whose last layer is not known, and kinds are left out.
        """
        if list(kinds) == list(range(self.kinds)):
            return copy.deepcopy(self)
        if not self.is_own:
            raise ValueError(
                f"a network {self.architecture} of MONAI goes on with all {self.kinds} of its kinds"
                " or none"
            )
        network = type(self)(
            kinds=len(kinds),
            architecture=self.architecture,
            channels=self.channels,
            slices=self.slices,
        )
        rows = [0, *(kind + 1 for kind in kinds)]
        network.load_state_dict(
            {
                name: value[rows] if name.startswith("body.head.") else value
                for name, value in self.state_dict().items()
            }
        )
        return network

    def early_parameters(self) -> Iterator[nn.Parameter]:
        """Those of the way down, which see what all tomograms have in common."""
        if isinstance(self.body, _UNet):
            yield from self.body.downward.parameters()

    def fuse(self) -> Self:
        """Return a copy for inference, with the batch normalisations folded in."""
        fused = copy.deepcopy(self).eval()
        for module in fused.modules():
            if isinstance(module, Unit):
                module.fold()
        return fused


class _UNet(nn.Module):
    """Two convolutions at each level down and up, four at the last, and a point-wise answer.

    A 2.5D network, whose convolutions are flat but for a first one across all sections, is so
    applied to every section of a volume at once.
    """

    def __init__(self, channels: Sequence[int], *, outputs: int, slices: int | None) -> None:
        super().__init__()
        kernel, self.step = ((3, 3, 3), (2, 2, 2)) if slices is None else ((1, 3, 3), (1, 2, 2))
        first = kernel if slices is None else (slices, 3, 3)
        last = len(channels) - 1
        self.downward = nn.ModuleList(
            _convolutions(
                channels[level - 1] if level else 1,
                width,
                kernels=[kernel if level else first]
                + [kernel] * ((_BOTTOM if level == last else 2) - 1),
            )
            for level, width in enumerate(channels)
        )
        steps = list(itertools.pairwise(channels))
        self.enlarge = nn.ModuleList(
            nn.Sequential(
                Unit(nn.ConvTranspose3d(coarse, fine, self.step, stride=self.step, bias=False)),
                nn.ReLU(inplace=True),
            )
            for fine, coarse in steps
        )
        self.upward = nn.ModuleList(
            _convolutions(2 * fine, fine, kernels=[kernel] * 2) for fine, _ in steps
        )
        self.head = nn.Conv3d(channels[0], outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        kept: list[Tensor] = []
        for level, block in enumerate(self.downward):
            x = block(functional.max_pool3d(x, self.step) if level else x)
            kept.append(x)
        kept.pop()
        for enlarge, block in zip(reversed(self.enlarge), reversed(self.upward), strict=True):
            x = block(torch.cat([enlarge(x), kept.pop()], dim=1))
        return self.head(x)


def _convolutions(
    channels: int, width: int, *, kernels: Sequence[tuple[int, int, int]]
) -> nn.Sequential:
    layers: list[nn.Module] = []
    for number, kernel in enumerate(kernels):
        before = width if number else channels
        # sides are odd, so that the grid stays the same
        convolution = nn.Conv3d(before, width, kernel, padding="same", bias=False)
        layers += [Unit(convolution), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers)
