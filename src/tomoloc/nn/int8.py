"""Networks in integers of 8 bits, for processors that multiply four of them at once.

Activations after a rectifier are whole numbers from 0 to 255, weights from -127 to 127 with a scale
for each output channel, sums have 32 bits (Jacob et al. 2018, arXiv:1712.05877). oneDNN computes
the convolutions; what lies between them is done here, in one pass over memory each. How large
activations become is measured once for a model, and stored with it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
from numba import njit, prange
from numpy.typing import NDArray
from torch import Tensor, nn

from tomoloc.nn.encoder import DenseNetwork, Unit
from tomoloc.nn.unet import SegmentationNetwork

__all__ = ["MOST", "Bytes", "Int8Convolution", "Int8Network", "as_points", "computes_in_int8"]
__all__ += ["measure_ranges", "points_of"]

Bytes = NDArray[Any]

_QUANTILE = 0.99999
"""Of the activations of a volume, beyond which they are cut."""
_SAMPLE = 1 << 21
"""Activations of a volume that the quantile is taken of, about."""
_CLIP = 20.0
"""Deviations beyond which a voxel is no protein."""
_SIDE = 128
"""Voxels of a volume's middle, at most, along an axis."""
MOST = 255
"""The largest activation, as a whole number."""
_MOST_SIGNED = 127


def measure_ranges(
    network: DenseNetwork | SegmentationNetwork, volumes: Iterable[NDArray[Any]]
) -> dict[str, float]:
    """Measure how large each activation of a network becomes.

    Parameters
    ----------
    network : DenseNetwork or SegmentationNetwork
        In single precision, on the processor.
    volumes : iterable of ndarray, shape (z, y, x)
        Voxels as the network takes them, which should show what it is used for; of each one its
        middle is looked at.

    Returns
    -------
    dict of str to float
        Names of layers and the largest value that is kept. What is larger and rare is cut, as is
        what only voxels of more than 20 deviations give, such as gold.

    Raises
    ------
    ValueError
        If there is no volume, one is smaller than the network's period, or the network is one of
        MONAI's.
    """
    if isinstance(network, SegmentationNetwork) and not network.is_own:
        raise ValueError(f"a network {network.architecture} of MONAI does not compute in int8")
    network = network.fuse().float()
    found: dict[str, list[float]] = {}

    def note(name: str, value: Tensor) -> None:
        flat = value.detach().flatten()
        flat = flat[:: max(1, len(flat) // _SAMPLE)].float().abs()
        rank = max(1, round(_QUANTILE * len(flat)))
        found.setdefault(name, []).append(float(flat.kthvalue(rank).values))

    for name, module in network.named_modules():
        if _is_activation(name, module, network):
            module.register_forward_hook(lambda _, __, y, n=name: note(n, y))
        if name == "hidden.last" or (name.startswith("upward.") and name.count(".") == 1):
            # the sum of what comes from both sides
            module.register_forward_pre_hook(lambda _, x, n=name: note(f"{n}:in", x[0]))
    with torch.inference_mode():
        for volume in volumes:
            network.compute(_middle(volume, network.period))
    if not found:
        raise ValueError("no volume to measure the activations of")
    return {name: float(f"{max(*values, 1e-6):.4g}") for name, values in found.items()}


def _middle(volume: NDArray[Any], period: int) -> Tensor:
    """Cut the middle out, of sides that the network takes: shape (1, 1, z, y, x)."""
    sides = [min(n, _SIDE) // period * period for n in volume.shape]
    if min(sides) == 0:
        raise ValueError(f"a volume of {volume.shape} voxels is smaller than {period} a side")
    first = [(n - side) // 2 for n, side in zip(volume.shape, sides, strict=True)]
    part = volume[tuple(slice(a, a + n) for a, n in zip(first, sides, strict=True))]
    part = np.clip(np.asarray(part, dtype=np.float32), -_CLIP, _CLIP)
    return torch.from_numpy(part)[None, None]


def _is_activation(name: str, module: nn.Module, network: nn.Module) -> bool:
    """Whether what a module gives becomes bytes."""
    if isinstance(network, SegmentationNetwork):
        return isinstance(module, nn.ReLU)
    parts = name.split(".")
    is_block = len(parts) == 3 and parts[0] in ("downward", "upward")
    return is_block or name in ("hidden.fine", "hidden.coarse") or isinstance(module, Unit)


@cache
def computes_in_int8() -> bool:
    """Whether this machine multiplies integers of 8 bits faster than others, and torch rightly."""
    able: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    if not (able.get("avx512_vnni") or able.get("avx_vnni") or able.get("amx_int8")):
        return False
    rng = torch.Generator().manual_seed(0)
    weight = torch.randn(16, 16, 3, 3, 3, generator=rng)
    x = torch.randint(0, 256, (1, 16, 5, 6, 7), generator=rng, dtype=torch.uint8)
    layer = nn.Conv3d(16, 16, 3, padding=1)
    with torch.no_grad():
        layer.weight.copy_(weight)
    try:
        mine = Int8Convolution.of(layer, scale=0.01, out=None)(x)
    except (AttributeError, RuntimeError, TypeError):
        return False
    with torch.inference_mode():
        return bool((mine - layer(0.01 * x.float())).std() < 0.05 * mine.std())


class Int8Network:
    """Compute what a `DenseNetwork` does, in 8 bits: the same methods, level by level.

    Parameters
    ----------
    network : DenseNetwork
        Fused, in single precision, on the processor.
    ranges : mapping of str to float
        From `measure_ranges` of the same network.

    Raises
    ------
    ValueError
        If a layer has no range.
    """

    device = torch.device("cpu")
    voxel_type = torch.float32
    point_type = torch.uint8

    def __init__(self, network: DenseNetwork, ranges: Mapping[str, float]) -> None:
        self.network, self._ranges = network, ranges
        self.widths, self.head = network.widths, network.head
        self.stride, self.period, self.outputs = network.stride, network.period, network.outputs
        self.reach_down, self.reach_up = network.reach_down, network.reach_up
        self.finish = network.finish
        modules: dict[str, Any] = dict(network.named_modules())
        self._blocks: dict[str, list[_Block]] = {}
        self._reduce: list[Int8Convolution] = []
        self._enlarge: list[Int8Convolution] = []
        levels = len(self.widths)
        for level in range(levels):
            self._make_blocks(f"downward.{level}", self._scale(_step_down(level)), modules)
            if level + 1 < levels:
                self._make_blocks(f"upward.{level}", self._scale(f"upward.{level}:in"), modules)
        for level in range(levels - 1):
            reduce, enlarge = modules[f"reduce.{level}"], modules[f"enlarge.{level}"]
            self._reduce.append(
                Int8Convolution.of(
                    reduce.convolution,
                    scale=self._after("downward", level),
                    out=self._scale(f"reduce.{level}"),
                )
            )
            self._enlarge.append(
                Int8Convolution.of(
                    as_points(enlarge.convolution),
                    scale=self._coarse(level),
                    out=self._signed(f"enlarge.{level}"),
                    signed=True,
                )
            )
        last = self._after("upward" if levels > 1 else "downward", 0)
        self._heads = Int8Convolution.of(network.heads, scale=last, out=None)
        if network.hidden is not None:
            hidden = network.hidden
            self._fine = Int8Convolution.of(
                hidden.fine, scale=last, out=self._signed("hidden.fine"), signed=True
            )
            self._beside = Int8Convolution.of(
                hidden.coarse, scale=self._coarse(0), out=self._signed("hidden.coarse"), signed=True
            )
            self._last = Int8Convolution.of(
                hidden.last, scale=self._scale("hidden.last:in"), out=None
            )

    def descend(self, x: Tensor, *, level: int) -> Tensor:
        """See `DenseNetwork.descend`; voxels are float32, points uint8."""
        if level == 0:
            y = self.network.stem(x).contiguous(memory_format=torch.channels_last_3d)
            out = torch.empty_like(y, dtype=torch.uint8)
            _round(_flat(y), np.float32(1 / self._scale("stem")), _flat(out))
        else:
            out = self._reduce[level - 1](x)
        return self._run(f"downward.{level}", out)

    def ascend(self, coarse: Tensor, kept: Tensor, *, level: int) -> Tensor:
        """See `DenseNetwork.ascend`."""
        layer, scale = self._enlarge[level], self._scale(f"upward.{level}:in")
        out = torch.empty_like(kept)
        _add_coarse(
            points_of(kept),
            points_of(layer(coarse)),
            np.float32(self._after("downward", level) / scale),
            np.float32(layer.out / scale),
            points_of(out),
        )
        return self._run(f"upward.{level}", out)

    def answer(self, x: Tensor, coarse: Tensor) -> Tensor:
        """See `DenseNetwork.answer`; float32."""
        y = self._heads(x)
        if self.network.hidden is None:
            return y
        fine, beside, scale = self._fine(x), self._beside(coarse), self._scale("hidden.last:in")
        out = torch.empty_like(fine, dtype=torch.uint8)
        _add_coarse(
            points_of(fine),
            points_of(beside),
            np.float32(self._fine.out / scale),
            np.float32(self._beside.out / scale),
            points_of(out),
        )
        return y.add_(self._last(out))

    def _run(self, name: str, x: Tensor) -> Tensor:
        for block in self._blocks[name]:
            x = block(x)
        return x

    def _make_blocks(self, name: str, scale: float, modules: Mapping[str, Any]) -> None:
        """Make the residual blocks of a level; `scale` is that of what comes in."""
        made = self._blocks[name] = []
        for number in range(len(modules[name])):
            own = f"{name}.{number}"
            middle, after = self._scale(f"{own}.first"), self._scale(own)
            first, second = modules[f"{own}.first"], modules[f"{own}.second"]
            made.append(
                _Block(
                    first=Int8Convolution.of(first.convolution, scale=scale, out=middle),
                    second=Int8Convolution.of(
                        second.convolution,
                        scale=middle,
                        out=self._signed(f"{own}.second"),
                        signed=True,
                    ),
                    before=scale,
                    after=after,
                )
            )
            scale = after

    def _after(self, way: str, level: int) -> float:
        """Scale of what the blocks of a level give."""
        blocks = self._blocks[f"{way}.{level}"]
        if blocks:
            return blocks[-1].after
        return self._scale(_step_down(level) if way == "downward" else f"upward.{level}:in")

    def _coarse(self, level: int) -> float:
        """Scale of what is enlarged to a level."""
        last = level + 2 == len(self.widths)
        return self._after("downward" if last else "upward", level + 1)

    def _scale(self, name: str) -> float:
        return self._range(name) / MOST

    def _signed(self, name: str) -> float:
        return self._range(name) / _MOST_SIGNED

    def _range(self, name: str) -> float:
        if name not in self._ranges:
            raise ValueError(f"no range of activations for {name}: copy the model again")
        return float(self._ranges[name])


def _step_down(level: int) -> str:
    return f"reduce.{level - 1}" if level else "stem"


def as_points(layer: nn.ConvTranspose3d) -> nn.Conv3d:
    """What makes a grid finer, as a convolution of points with as many times the channels."""
    times = math.prod(layer.kernel_size)
    wide = nn.Conv3d(layer.in_channels, times * layer.out_channels, 1)
    with torch.no_grad():
        weight = layer.weight.permute(2, 3, 4, 1, 0)
        wide.weight.copy_(weight.reshape(wide.weight.shape))
        if layer.bias is None or wide.bias is None:
            raise ValueError("the network is not fused")
        wide.bias.copy_(layer.bias.repeat(times))
    return wide


@dataclass(frozen=True, eq=False, kw_only=True)
class Int8Convolution:
    """A convolution of bytes, of shape (1, channels, z, y, x) and channels last in memory.

    Parameters
    ----------
    weight : Tensor
        As oneDNN packs it.
    weight_scale, bias : Tensor, shape (channels,)
    stride, padding : list of int (z, y, x)
    scale, out : float
        Of what it takes and gives: values are bytes times the scale.
    dtype : dtype
        Of what it gives.
    """

    weight: Tensor
    weight_scale: Tensor
    bias: Tensor
    stride: list[int]
    padding: list[int]
    scale: float
    out: float
    dtype: torch.dtype

    @classmethod
    def of(
        cls, layer: nn.Conv3d, *, scale: float, out: float | None, signed: bool = False
    ) -> Int8Convolution:
        """Round a layer.

        Parameters
        ----------
        layer : Conv3d
        scale : float
            Of what it takes.
        out : float or None
            Scale of what it gives; None gives single precision.
        signed : bool
            Whether it gives signed numbers. Otherwise what is negative becomes 0.
        """
        weight = layer.weight.detach().float()
        own = weight.abs().amax((1, 2, 3, 4)).clamp_min(1e-12) / _MOST_SIGNED
        rounded = (weight / own.reshape(-1, 1, 1, 1, 1)).round().to(torch.int8)
        bias = torch.zeros(len(weight)) if layer.bias is None else layer.bias.detach().float()
        stride, padding = list(layer.stride), _padding(layer)
        packed = torch.ops.onednn.qconv_prepack(
            rounded, own, scale, 0, stride, padding, [1, 1, 1], 1, None
        )
        kind = torch.float32 if out is None else torch.int8 if signed else torch.uint8
        return cls(
            weight=packed, weight_scale=own, bias=bias, stride=stride, padding=padding,
            scale=scale, out=1.0 if out is None else out, dtype=kind,
        )  # fmt: skip

    def __call__(self, x: Tensor) -> Tensor:
        """Convolve bytes."""
        zero = torch.zeros(len(self.weight_scale), dtype=torch.int32)
        return torch.ops.onednn.qconv3d_pointwise(
            x.contiguous(memory_format=torch.channels_last_3d), self.scale, 0, self.weight,
            self.weight_scale, zero, self.bias, self.stride, self.padding, [1, 1, 1], 1, self.out,
            0, self.dtype, "none", [], "",
        )  # fmt: skip


def _padding(layer: nn.Conv3d) -> list[int]:
    if layer.padding == "same":
        return [n // 2 for n in layer.kernel_size]
    return [int(n) for n in layer.padding]


@dataclass(frozen=True, eq=False, kw_only=True)
class _Block:
    """A residual block; `before` and `after` are the scales of its input and output."""

    first: Int8Convolution
    second: Int8Convolution
    before: float
    after: float

    def __call__(self, x: Tensor) -> Tensor:
        y = self.second(self.first(x))
        out = torch.empty_like(x)
        beside, straight = self.second.out / self.after, self.before / self.after
        _add(_flat(y), _flat(x), np.float32(beside), np.float32(straight), _flat(out))
        return out


def points_of(x: Tensor) -> Bytes:
    """View of shape (z, y, x, channels), as it lies in memory."""
    return x[0].permute(1, 2, 3, 0).numpy()


def _flat(x: Tensor) -> Bytes:
    return points_of(x).reshape(-1)


@njit(inline="always")
def _as_byte(value: np.float32) -> np.uint8:
    return np.uint8(min(max(value + np.float32(0.5), np.float32(0)), np.float32(255)))


@njit(parallel=True, cache=True, fastmath=True)
def _round(values: Bytes, factor: np.float32, out: Bytes) -> None:
    for i in prange(len(values)):
        out[i] = _as_byte(values[i] * factor)


@njit(parallel=True, cache=True, fastmath=True)
def _add(a: Bytes, b: Bytes, of_a: np.float32, of_b: np.float32, out: Bytes) -> None:
    for i in prange(len(a)):
        out[i] = _as_byte(np.float32(a[i]) * of_a + np.float32(b[i]) * of_b)


@njit(parallel=True, cache=True, fastmath=True)
def _add_coarse(
    fine: Bytes, coarse: Bytes, of_fine: np.float32, of_coarse: np.float32, out: Bytes
) -> None:
    """Add to points what each coarser one has for its eight, or, with as many channels, for all."""
    depth, height, width, channels = fine.shape
    for z in prange(depth):
        for y in range(height):
            for x in range(width):
                first = ((z % 2 * 2 + y % 2) * 2 + x % 2) * channels % coarse.shape[3]
                above = coarse[z // 2, y // 2, x // 2, first : first + channels]
                own, made = fine[z, y, x], out[z, y, x]
                for c in range(channels):
                    value = np.float32(own[c]) * of_fine + np.float32(above[c]) * of_coarse
                    made[c] = _as_byte(value)
