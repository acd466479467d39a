"""TomoTwin's network, for its published weights: one window in, one unit vector out.

The architecture is that of Rice et al., Nature Methods 20 (2023), doi:10.1038/s41592-023-01878-z:
30 GFLOP for each window of 37 voxels a side, and a window for each point of the output.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn
from torch.nn import functional

__all__ = ["WindowEncoder"]

_POOLED = 2
_LEAST = 1e-6  # of what is raised to a power


class WindowEncoder(nn.Module):
    """A network that gives a unit vector for a window of a tomogram.

    Each block has two 3 x 3 x 3 convolutions without padding, each followed by the same group
    normalisation and a leaky rectifier. The window gets zeros, one voxel before and two voxels
    after it, and the first block's output is halved by its maxima.

    Parameters
    ----------
    widths : sequence of int
        Channels of the blocks.
    groups : int
        Of the normalisations; divides the widths.
    hidden : int
        Width of the two layers before the last.
    channels : int
        Length of the vectors.
    pooling : float
        Power of the mean that leads to 2 x 2 x 2 points; 0 for the plain mean.
    dropout : float
        While it is trained.
    """

    window = 37
    stride = 2

    def __init__(
        self,
        *,
        widths: Sequence[int] = (64, 128, 256, 512, 1024),
        groups: int = 64,
        hidden: int = 2048,
        channels: int = 32,
        pooling: float = 0.0,
        dropout: float = 0.2,
    ) -> None:
        super().__init__()
        self.widths, self.groups, self.hidden = tuple(widths), groups, hidden
        self.channels, self.pooling, self.dropout = channels, pooling, dropout
        if not self.widths or any(n < 1 or n % groups for n in self.widths):
            raise ValueError(f"widths must be multiples of the groups ({groups}); got {widths}")
        pairs = itertools.pairwise((1, *self.widths))
        self.blocks = nn.ModuleList(_Block(*pair, groups=groups) for pair in pairs)
        sizes = [self.widths[-1] * _POOLED**3, hidden, hidden, channels]
        self.head = nn.ModuleList(nn.Linear(*pair) for pair in itertools.pairwise(sizes))

    @property
    def settings(self) -> dict[str, Any]:
        """What `WindowEncoder` must be called with to make this network again."""
        return {
            "widths": list(self.widths),
            "groups": self.groups,
            "hidden": self.hidden,
            "channels": self.channels,
            "pooling": self.pooling,
            "dropout": self.dropout,
        }

    def forward(self, x: Tensor) -> Tensor:
        """Encode windows.

        Parameters
        ----------
        x : Tensor, shape (b, 1, window, window, window)
            Protein bright, each window of mean 0 and standard deviation 1.

        Returns
        -------
        Tensor, shape (b, channels)
            Of length 1.

        Raises
        ------
        ValueError
            If the shape is not as above.
        """
        if x.shape[1:] != (1, *3 * (self.window,)):
            raise ValueError(f"expected windows of shape (b, 1, 37, 37, 37); got {tuple(x.shape)}")
        x = functional.pad(x, 3 * (1, 2))
        for place, block in enumerate(self.blocks):
            x = block(x)
            if place == 0:
                x = functional.max_pool3d(x, 2)
        if self.pooling:
            x = x.clamp(min=_LEAST) ** self.pooling
        x = functional.adaptive_avg_pool3d(x, _POOLED)
        if self.pooling:
            x = x ** (1 / self.pooling)
        x = functional.dropout(x.flatten(1), self.dropout, self.training)
        for place, layer in enumerate(self.head):
            x = layer(functional.leaky_relu(x) if place else x)
        return functional.normalize(x, dim=1)


class _Block(nn.Module):
    def __init__(self, narrow: int, wide: int, *, groups: int) -> None:
        super().__init__()
        self.first = nn.Conv3d(narrow, wide, 3)
        self.second = nn.Conv3d(wide, wide, 3)
        self.norm = nn.GroupNorm(groups, wide)

    def forward(self, x: Tensor) -> Tensor:
        for convolution in (self.first, self.second):
            x = functional.leaky_relu(self.norm(convolution(x)))
        return x
