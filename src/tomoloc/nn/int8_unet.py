"""The U-Nets of `tomoloc.nn.unet` in integers of 8 bits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from numba import njit, prange
from torch import Tensor, nn

from tomoloc.nn.int8 import MOST, Bytes, Int8Convolution, as_points, points_of
from tomoloc.nn.unet import SegmentationNetwork

__all__ = ["Int8UNet"]

_SLAB = 16
"""Sections of a coarse grid that are made finer at one time."""


class Int8UNet:
    """Compute what a `SegmentationNetwork` does, in 8 bits.

    A byte cannot be negative: rounding rectifies what a convolution gives.

    Parameters
    ----------
    network : SegmentationNetwork
        One of the two U-Nets; fused, in single precision, on the processor.
    ranges : mapping of str to float
        From `measure_ranges` of the same network.

    Raises
    ------
    ValueError
        If a layer has no range, or the network is one of MONAI's.
    """

    def __init__(self, network: SegmentationNetwork, ranges: Mapping[str, float]) -> None:
        if not network.is_own:
            raise ValueError(f"a network {network.architecture} of MONAI has no form in int8")
        self.kinds, self.period, self.channels = network.kinds, network.period, network.channels
        self._ranges = ranges
        body: Any = network.body
        self._step: tuple[int, int, int] = body.step
        last = len(self.channels) - 1
        self._first = _First(body.downward[0][0].convolution, scale=self._scale("downward.0.1"))
        self._downward: list[list[Int8Convolution]] = []
        self._enlarge: list[Int8Convolution] = []
        self._upward: list[list[Int8Convolution]] = []
        joined, before = [], 0.0
        for level, layers in enumerate(body.downward):
            scales = self._scales(f"downward.{level}", len(layers))
            if level < last:
                # what is enlarged will lie beside what is kept, on the same scale
                scales[-1] = max(scales[-1], self._scale(f"enlarge.{level}.1"))
                joined.append(scales[-1])
            made = _chain(layers, [before, *scales]) if level else _chain(layers[2:], scales)
            self._downward.append(made)
            before = scales[-1]
        for level in reversed(range(last)):
            wide = as_points(body.enlarge[level][0].convolution)
            self._enlarge.append(Int8Convolution.of(wide, scale=before, out=joined[level]))
            layers = body.upward[level]
            scales = [joined[level], *self._scales(f"upward.{level}", len(layers))]
            self._upward.append(_chain(layers, scales))
            before = scales[-1]
        self._head = Int8Convolution.of(body.head, scale=before, out=None)

    @property
    def bytes_per_voxel(self) -> int:
        """Memory that computing takes, about."""
        return 3 * self.channels[0] + 4 * (3 * self.kinds + 5)

    @torch.inference_mode()
    def __call__(self, x: Tensor) -> Tensor:
        """Compute probabilities.

        Parameters
        ----------
        x : Tensor of float32, shape (1, 1, z, y, x)
            As `SegmentationNetwork.compute` takes it.

        Returns
        -------
        Tensor of float32, shape (1, 1 + kinds, z, y, x)
        """
        kept: list[Tensor] = []
        y = self._first(x)
        for level, layers in enumerate(self._downward):
            y = _run(layers, self._halve(y) if level else y)
            kept.append(y)
        kept.pop()
        for enlarge, layers in zip(self._enlarge, self._upward, strict=True):
            y = _run(layers, self._join(enlarge, y, kept.pop()))
        return torch.softmax(self._head(y), dim=1)

    def _halve(self, x: Tensor) -> Tensor:
        z, y, x_ = (n // step for n, step in zip(x.shape[2:], self._step, strict=True))
        out = _empty(x.shape[1], (z, y, x_))
        _pool(points_of(x), self._step, points_of(out))
        return out

    def _join(self, enlarge: Int8Convolution, coarse: Tensor, kept: Tensor) -> Tensor:
        """Put what is enlarged before what is kept."""
        out = _empty(2 * kept.shape[1], kept.shape[2:])
        depth, step = coarse.shape[2], self._step[0]
        for start in range(0, depth, _SLAB):
            wide = enlarge(coarse[:, :, start : start + _SLAB])
            part = slice(start * step, (start + _SLAB) * step)
            _place(points_of(wide), points_of(kept)[part], self._step, points_of(out)[part])
        return out

    def _scales(self, name: str, layers: int) -> list[float]:
        """Of what each rectifier of a sequence gives."""
        return [self._scale(f"{name}.{number}") for number in range(1, layers, 2)]

    def _scale(self, name: str) -> float:
        if (name := f"body.{name}") not in self._ranges:
            raise ValueError(f"no range of activations for {name}: copy the model again")
        return float(self._ranges[name]) / MOST


class _First:
    """The first convolution, of single precision, rounded."""

    def __init__(self, layer: nn.Conv3d, *, scale: float) -> None:
        if layer.bias is None:
            raise ValueError("the network is not fused")
        weight = layer.weight.detach()[:, 0].permute(1, 2, 3, 0) / scale
        self._weight = np.ascontiguousarray(weight.numpy())
        self._bias = layer.bias.detach().numpy() / np.float32(scale) + np.float32(0.5)

    def __call__(self, x: Tensor) -> Tensor:
        around = [(n // 2, n // 2) for n in self._weight.shape[:3]]
        out = _empty(len(self._bias), x.shape[2:])
        _convolve(np.pad(x[0, 0].numpy(), around), self._weight, self._bias, points_of(out))
        return out


def _chain(layers: nn.Sequential, scales: Sequence[float]) -> list[Int8Convolution]:
    """Round a sequence of units and rectifiers; of `scales`, the first is that of its input."""
    units: Any = layers[::2]
    return [
        Int8Convolution.of(unit.convolution, scale=scale, out=out)
        for unit, (scale, out) in zip(units, pairwise(scales), strict=True)
    ]


def _run(layers: Sequence[Int8Convolution], x: Tensor) -> Tensor:
    for layer in layers:
        x = layer(x)
    return x


def _empty(channels: int, sides: Sequence[int]) -> Tensor:
    """Bytes of shape (1, channels, z, y, x), channels last in memory."""
    return torch.empty((1, *sides, channels), dtype=torch.uint8).permute(0, 4, 1, 2, 3)


@njit(parallel=True, cache=True, fastmath=True)
def _convolve(x: Bytes, weight: Bytes, bias: Bytes, out: Bytes) -> None:
    """Convolve with three taps along a row, row by row."""
    depth, height, width, channels = out.shape
    deep, high, _, _ = weight.shape
    for z in prange(depth):
        total = np.empty((width, channels), dtype=np.float32)
        for y in range(height):
            total[:] = bias
            for i in range(deep):
                for j in range(high):
                    row, taps = x[z + i, y + j], weight[i, j]
                    for n in range(width):
                        a, b, d = row[n], row[n + 1], row[n + 2]
                        own = total[n]
                        for c in range(channels):
                            own[c] += a * taps[0, c] + b * taps[1, c] + d * taps[2, c]
            made = out[z, y]
            for n in range(width):
                for c in range(channels):
                    made[n, c] = np.uint8(min(max(total[n, c], np.float32(0)), np.float32(255)))


@njit(parallel=True, cache=True)
def _pool(x: Bytes, step: tuple[int, int, int], out: Bytes) -> None:
    """Take the largest of the points that become one."""
    depth, height, width, channels = out.shape
    deep, high, wide = step
    for z in prange(depth):
        for y in range(height):
            for x_ in range(width):
                made = out[z, y, x_]
                made[:] = 0
                for i in range(deep):
                    for j in range(high):
                        for k in range(wide):
                            one = x[z * deep + i, y * high + j, x_ * wide + k]
                            for c in range(channels):
                                made[c] = max(made[c], one[c])


@njit(parallel=True, cache=True)
def _place(new: Bytes, kept: Bytes, step: tuple[int, int, int], out: Bytes) -> None:
    """Put beside points what each coarser one has for those that it becomes."""
    depth, height, width, channels = kept.shape
    deep, high, wide = step
    for z in prange(depth):
        for y in range(height):
            for x in range(width):
                first = ((z % deep * high + y % high) * wide + x % wide) * channels
                one = new[z // deep, y // high, x // wide, first : first + channels]
                old, made = kept[z, y, x], out[z, y, x]
                for c in range(channels):
                    made[c] = one[c]
                    made[channels + c] = old[c]
