"""Features of a trained network, on the network's own exact grid."""

from __future__ import annotations

import copy
import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal, Self

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from tomoloc.arrays import allocate, release
from tomoloc.features.blended import BlendedRun
from tomoloc.features.candidates import look_up, look_up_centers
from tomoloc.features.dense import DenseRun
from tomoloc.features.windows import WindowRun
from tomoloc.nn.device import computes_in_bfloat16, resolve_device
from tomoloc.nn.encoder import DenseEncoder, DenseNetwork, HeatNetwork
from tomoloc.nn.int8 import Int8Network, computes_in_int8
from tomoloc.nn.monai import AnyHeatNetwork, MonaiHeatNetwork
from tomoloc.nn.stored import StoredModel
from tomoloc.nn.window import WindowEncoder
from tomoloc.physics.contrast import robust_scale
from tomoloc.physics.filters import rescale
from tomoloc.tiling import read_mirrored
from tomoloc.train.frames import Views, choose_turns
from tomoloc.types import Tomogram, Volume

__all__ = ["RANGES", "LearnedFeatures", "choose_spacing", "fit_tomogram"]
__all__ += ["default_views", "takes_int8", "tile_bytes"]

logger = logging.getLogger(__name__)

Precision = Literal["auto", "int8", "bfloat16", "float32"]
RANGES = "ranges"
"""Table of a model's config: of its activations, for int8."""

_SAME_SPACING = 0.02
"""Spacings that differ by less are one: it moves no particle's edge by half a voxel."""
_COARSEST = 2.0
"""In units of the model's spacing; beyond, most of what the model looks at is not there."""
_FINEST = 0.25
_LEAST_SIDE = 8
"""In voxels: of a tomogram, once rescaled."""
_TILE_BYTES = 640 << 20
_LEAST_LENGTH = 1e-6
"""Of a mean of unit vectors that is made one again."""


@dataclass(frozen=True, eq=False, kw_only=True)
class LearnedFeatures:
    """What a trained network makes of each place of a tomogram.

    Parameters
    ----------
    model : StoredModel
        As `tomoloc.nn.stored.load_model` reads it.
    device : {"auto", "cpu", "cuda"}
    precision : {"auto", "int8", "bfloat16", "float32"}
        Of the arithmetic. Auto takes integers of 8 bits where the processor is made for them and
        the model tells the ranges of its activations, or else bfloat16 where the machine computes
        in it.
    tile_bytes : int, optional
        Memory for what is computed at one time; less is slower.
    views : {1, 2, 4}
        Average over so many views: as it is, after half a turn about x, and about the other two
        axes, which leave the missing wedge alone; each costs as much as the first. Vectors are of
        length 1 again. For dense networks.

    Raises
    ------
    ValueError
        If there are not 1, 2 or 4 views, or several of a network that looks at windows.
    """

    model: StoredModel
    device: str = "auto"
    precision: Precision = "auto"
    tile_bytes: int | None = None
    views: Views = 1

    def __post_init__(self) -> None:
        turns = choose_turns(self.views)
        if len(turns) > 1 and isinstance(self.model.network, WindowEncoder):
            raise ValueError(
                f"several views are for dense networks; the model {self.model.name} looks at"
                " windows: ask for one"
            )

    @property
    def channels(self) -> int:
        """Numbers at each place, without the probability of a centre."""
        network = self._network
        return network.kinds if isinstance(network, AnyHeatNetwork) else network.channels

    @property
    def finds_centers(self) -> bool:
        """Whether one more channel holds the probability of a particle's centre."""
        return isinstance(self._network, DenseEncoder)

    def with_vectors(self) -> Self:
        """Return these features if they are vectors that can be compared.

        Raises
        ------
        ValueError
            If the model gives heat maps of what it was trained for.
        """
        if isinstance(self.model.network, AnyHeatNetwork):
            raise ValueError(
                f"the model {self.model.name} finds what it was trained for and gives no vectors to"
                " compare: use it with tomoloc pick centroid"
            )
        return self

    def working_spacing(self, voxel_spacing: float) -> float:
        """Voxel spacing that a tomogram of the given one is rescaled to.

        Raises
        ------
        ValueError
            If the tomogram is too coarse for the model.
        """
        return choose_spacing(voxel_spacing, wanted=self.model.voxel_spacing)

    def embed(self, tomogram: Tomogram) -> Volume:
        """Put a tomogram whose protein is bright through the network.

        Parameters
        ----------
        tomogram : Tomogram
            Of any spacing up to twice the model's; it is rescaled as needed.

        Returns
        -------
        Volume, data of float16, shape (channels + 1, z, y, x)
            Of an encoder, unit vectors and, if it `finds_centers`, last, the probability of a
            particle's centre; of a `HeatNetwork`, one heat map for each kind and nothing more. On
            a grid of about twice the model's spacing. The numbers of one place lie side by side in
            memory, or in a temporary file where they are many.

        Raises
        ------
        ValueError
            If the tomogram is too coarse, too small or without any contrast.
        """
        tomogram = self._fit(tomogram)
        return self._whole(*self._start(tomogram, robust_scale(tomogram.data)))

    def embed_at(
        self, tomogram: Tomogram, position: ArrayLike
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Embed some places of a tomogram whose protein is bright.

        Parameters
        ----------
        tomogram : Tomogram
            As for `embed`.
        position : array_like, shape (n, 3)
            xyz in angstrom, inside the tomogram.

        Returns
        -------
        vectors : ndarray of float32, shape (n, channels)
            What `look_up` finds in what `embed` gives. Where they are few, only what the network
            sees around them is computed.
        center : ndarray of float32, shape (n,)
            Probability that a particle's centre is there; 1 where the model does not tell.

        Raises
        ------
        ValueError
            As of `embed`.
        """
        tomogram = self._fit(tomogram)
        places = np.reshape(np.asarray(position, dtype=float), (-1, 3))
        network = self._network
        if not isinstance(network, DenseNetwork | WindowEncoder):
            return self._look_up(self.embed(tomogram), places)
        if isinstance(network, WindowEncoder):
            parts = (self._embed_windows(network, tomogram, place) for place in places)
        else:
            crops = [_crop(network, tomogram, place) for place in places]
            if sum(math.prod(crop.shape) for crop in crops) >= tomogram.data.size:
                return self._look_up(self.embed(tomogram), places)
            scale = robust_scale(tomogram.data)
            parts = (self._whole(*self._start(crop, scale)) for crop in crops)
        vectors, centers = [np.zeros((0, self.channels), "f4")], [np.zeros(0, "f4")]
        for part, place in zip(parts, places, strict=True):
            vector, center = self._look_up(part, place[None])
            vectors.append(vector)
            centers.append(center)
        return np.concatenate(vectors), np.concatenate(centers)

    def _look_up(
        self, embedding: Volume, places: NDArray[np.floating[Any]]
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        vectors = look_up(embedding, places, centers=self.finds_centers)
        if not self.finds_centers:
            return vectors, np.ones(len(places), dtype=np.float32)
        return vectors, look_up_centers(embedding, places)

    @staticmethod
    def _embed_windows(
        network: WindowEncoder, tomogram: Tomogram, position: NDArray[np.floating[Any]]
    ) -> Volume:
        """Encode the windows of the grid points around a place."""
        run = WindowRun(network=network, data=tomogram.data)
        last = np.array(run.output_shape) - 1
        low = np.floor(tomogram.to_index(position) / network.stride).astype(int)
        low = np.clip(low, 0, np.maximum(last - 1, 0))
        first, end = low * network.stride, (np.minimum(low + 1, last) + 1) * network.stride
        tile = read_mirrored(tomogram.data, tuple(first - run.halo), tuple(end + run.halo))
        return Volume(
            data=run.encode(tile),
            voxel_spacing=tomogram.voxel_spacing * network.stride,
            origin=tomogram.to_position(first + run.offset),
        )

    def _fit(self, tomogram: Tomogram) -> Tomogram:
        return fit_tomogram(tomogram, wanted=self.model.voxel_spacing)

    def _start(
        self, volume: Volume, scale: tuple[float, float]
    ) -> tuple[Sequence[BlendedRun | DenseRun | WindowRun], Volume]:
        """Prepare the runs to average, and the grid that their output will be on."""
        runs = self._runs(volume.data, scale)
        grid = Volume(
            data=np.broadcast_to(np.float16(0), runs[0].output_shape),
            voxel_spacing=volume.voxel_spacing * self._network.stride,
            origin=volume.to_position(np.full(3, runs[0].offset)),
            name=volume.name,
        )
        return runs, grid

    def _runs(
        self, data: NDArray[Any], scale: tuple[float, float]
    ) -> Sequence[BlendedRun | DenseRun | WindowRun]:
        release(data)
        network = self._engine
        if isinstance(network, WindowEncoder):
            return [WindowRun(network=network, data=data)]
        how: dict[str, Any] = {
            "median": scale[0],
            "deviation": scale[1],
            "tile_bytes": self.tile_bytes or tile_bytes(self._device),
        }
        if isinstance(network, MonaiHeatNetwork):
            half = self._choose_precision() == "bfloat16"
            return [BlendedRun(network=network, data=data, half=half, views=self.views, **how)]
        run = DenseRun(network=network, data=data, **how)
        return [replace(run, flipped=axes) for axes in choose_turns(self.views)]

    def _whole(self, runs: Sequence[BlendedRun | DenseRun | WindowRun], grid: Volume) -> Volume:
        """Put the blocks of the runs together."""
        data = allocate((*grid.shape, runs[0].channels), np.float16)
        points = torch.from_numpy(data)  # NumPy takes its time over half precision
        for number, run in enumerate(runs):
            for target, block in run.blocks():
                share = torch.from_numpy(np.ascontiguousarray(block)).div_(len(runs))
                points[target] = points[target].add_(share) if number else share
                release(data)
        if self.views > 1 and not isinstance(self._network, AnyHeatNetwork):
            for section in points:
                vectors = section[..., : self.channels].float()
                length = torch.linalg.vector_norm(vectors, dim=-1, keepdim=True)
                section[..., : self.channels] = vectors.div_(length.clamp_min(_LEAST_LENGTH))
                release(data)
        return Volume(
            data=np.moveaxis(data, -1, 0),
            voxel_spacing=grid.voxel_spacing,
            origin=grid.origin,
            name=grid.name,
        )

    @cached_property
    def _device(self) -> str:
        return resolve_device(self.device)

    @cached_property
    def _network(self) -> DenseEncoder | HeatNetwork | MonaiHeatNetwork | WindowEncoder:
        network = self.model.network
        if isinstance(network, DenseEncoder | HeatNetwork):
            return network.fuse()
        if isinstance(network, MonaiHeatNetwork | WindowEncoder):
            return copy.deepcopy(network).eval()
        raise ValueError(
            f"the model {self.model.name} has a {type(network).__name__} and gives no vectors:"
            " use it with the method that it was trained for"
        )

    @cached_property
    def _engine(
        self,
    ) -> DenseEncoder | HeatNetwork | Int8Network | MonaiHeatNetwork | WindowEncoder:
        """What computes: the network on its device, in its precision."""
        network = self._network
        precision = self._choose_precision()
        if isinstance(network, MonaiHeatNetwork):  # which changes its precision on its way
            return copy.deepcopy(network).to(self._device)
        if precision == "int8" and isinstance(network, DenseNetwork):
            return Int8Network(network, self.model.config[RANGES])
        kind = torch.bfloat16 if precision == "bfloat16" else torch.float32
        network = copy.deepcopy(network).to(self._device, kind)
        for weight in network.parameters():
            if weight.ndim == 5:
                weight.data = weight.data.contiguous(memory_format=torch.channels_last_3d)
        return network

    def _choose_precision(self) -> Precision:
        if self.precision not in {"auto", "int8"}:
            return self.precision
        if takes_int8(self.model, self._device):
            return "int8"
        if self.precision == "int8":
            raise ValueError(
                "int8 wants a processor with VNNI instructions and a model that tells the ranges of"
                " its activations: leave precision at auto"
            )
        return "bfloat16" if computes_in_bfloat16(self._device) else "float32"


def default_views(model: StoredModel) -> Views:
    """Tell how many views of a tomogram a model should be shown: 4, or 1 if it takes no more."""
    return 1 if isinstance(model.network, WindowEncoder) else 4


def choose_spacing(voxel_spacing: float, *, wanted: float) -> float:
    """Voxel spacing that a tomogram is rescaled to for a model: its own where they hardly differ.

    Parameters
    ----------
    voxel_spacing : float
        Of the tomogram, in angstrom.
    wanted : float
        Of the model.

    Raises
    ------
    ValueError
        If the tomogram is too coarse for the model.
    """
    if voxel_spacing > _COARSEST * wanted:
        raise ValueError(
            f"voxels of {voxel_spacing:.4g} Å are too coarse for this model, which wants"
            f" {wanted:.4g} Å and takes at most {_COARSEST * wanted:.4g} Å: check"
            " --voxel-spacing, or bin less"
        )
    if voxel_spacing < _FINEST * wanted:
        logger.warning(
            "voxels of %.4g Å are reduced to the model's %.4g Å; give --voxel-spacing if this"
            " is not their size",
            voxel_spacing,
            wanted,
        )
    return voxel_spacing if abs(voxel_spacing / wanted - 1) < _SAME_SPACING else wanted


def fit_tomogram(tomogram: Tomogram, *, wanted: float) -> Tomogram:
    """Rescale a tomogram to voxels that a model takes.

    Parameters
    ----------
    tomogram : Tomogram
    wanted : float
        Voxel spacing of the model, in angstrom.

    Raises
    ------
    ValueError
        If it is too coarse or too small.
    """
    spacing = choose_spacing(tomogram.voxel_spacing, wanted=wanted)
    if spacing != tomogram.voxel_spacing:
        logger.info("rescaling from %.4g to %.4g Å voxels", tomogram.voxel_spacing, spacing)
        tomogram = rescale(tomogram, spacing)
    if min(tomogram.shape) < _LEAST_SIDE:
        sides = " x ".join(f"{n * spacing:.0f}" for n in tomogram.shape[::-1])
        raise ValueError(
            f"a tomogram of {sides} Å is too small: at least {_LEAST_SIDE * spacing:.0f} Å"
            " are needed each way; check --voxel-spacing"
        )
    return tomogram


def _crop(network: DenseNetwork, tomogram: Tomogram, position: NDArray[np.floating[Any]]) -> Volume:
    """Cut out all that matters for the grid points near a place; the grid stays the same."""
    reach, period = network.halo + 2 * network.stride, network.period
    index, size = tomogram.to_index(position), np.array(tomogram.shape)
    start = np.floor((index - reach) / period).astype(int) * period
    end = size // network.stride * network.stride  # of the grid, where flipped runs begin
    stop = end - np.floor((end - index - reach - 1) / period).astype(int) * period
    return tomogram.crop(np.clip(start, 0, (size - 1) // period * period), np.clip(stop, 1, size))


def takes_int8(model: StoredModel, device: str) -> bool:
    """Whether a model is computed in integers of 8 bits on a device: where that is faster.

    Parameters
    ----------
    model : StoredModel
        Its config must tell the ranges of its activations.
    device : {"cpu", "cuda"}
    """
    return RANGES in model.config and device == "cpu" and computes_in_int8()


def tile_bytes(device: str) -> int:
    """Memory for what is computed at one time on a device."""
    if device == "cuda":
        return min(torch.cuda.mem_get_info()[0] // 4, 16 << 30)
    return _TILE_BYTES
