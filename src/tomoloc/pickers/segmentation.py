"""Pick with a network that tells the class of every voxel: particles, filaments, membranes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from scipy.spatial.transform import Rotation

from tomoloc.arrays import interpolate
from tomoloc.features.filaments import trace_filaments
from tomoloc.features.instances import find_regions
from tomoloc.features.learned import (
    RANGES,
    choose_spacing,
    fit_tomogram,
    takes_int8,
    tile_bytes,
)
from tomoloc.features.segments import SegmentMethod, remove_dust, segment_instances
from tomoloc.localize import EDGE_COLUMN, flag_edges, suppress
from tomoloc.nn.device import computes_in_bfloat16, resolve_device
from tomoloc.nn.int8_unet import Int8UNet
from tomoloc.nn.published import open_model
from tomoloc.nn.stored import StoredModel
from tomoloc.nn.unet import SegmentationNetwork
from tomoloc.physics.contrast import is_flat, robust_scale
from tomoloc.physics.rotations import turn_to
from tomoloc.pickers.trained import check_spectrum, empty_scores, match_training
from tomoloc.train.frames import Views
from tomoloc.train.predict import predict
from tomoloc.train.segment import mark_class
from tomoloc.types import FloatArray, Particles, ScoreMap, Tomogram, Volume

__all__ = ["FILAMENT_COLUMN", "ROLES", "Kind", "SegmentationPicker", "read_kinds"]

Role = Literal["particle", "filament", "region"]
ROLES: tuple[Role, ...] = ("particle", "filament", "region")
"""Regions (membranes, carbon) are in the label volume alone."""
FILAMENT_COLUMN = "tomolocFilament"
"""Extra column: number of the filament that a point belongs to; 0 for particles."""

_TILE_BYTES = 5 << 29
"""Memory for a tile on a processor; less of it means more work, as tiles overlap."""
_LEAST_PART = 0.4
"""Of a particle's usual volume, below which an instance is none."""
_VOLUME_OF_PROTEIN = 1210.0
"""Å³ of a kilodalton: 0.73 cm³ of a gram."""


class Kind(NamedTuple):
    """A class of a model: a table of [[classes]] in its config.toml.

    Parameters
    ----------
    label : str
    role : {"particle", "filament", "region"}
    diameter : float
        Of a particle or a filament, thickness of a region, in angstrom.
    volume : float
        Usual volume of a particle as it was labelled, in cubic angstrom; 0 where it is not known.
    threshold : float
        Probability above which a voxel is of the class: the best for Dice in training.
    """

    label: str
    role: Role
    diameter: float
    volume: float = 0.0
    threshold: float = 0.5

    def to_dict(self) -> dict[str, Any]:
        """Return the table."""
        return {
            "label": self.label,
            "role": self.role,
            "diameter": round(self.diameter, 1),
            "volume": round(self.volume),
            "threshold": round(self.threshold, 3),
        }


def read_kinds(model: StoredModel) -> tuple[Kind, ...]:
    """Read the classes of a model.

    Raises
    ------
    ValueError
        If it is no model of `tomoloc train segmentation`, or its tables are damaged.
    """
    if not isinstance(model.network, SegmentationNetwork):
        raise ValueError(
            f"the model {model.name or type(model.network).__name__} segments nothing: train one"
            " with tomoloc train segmentation"
        )
    try:
        tables: list[Mapping[str, Any]] = list(model.config["classes"])
        kinds = tuple(
            Kind(
                label=str(table["label"]),
                role=ROLES[ROLES.index(table["role"])],
                diameter=float(table["diameter"]),
                volume=float(table.get("volume", 0.0)),
                threshold=float(table.get("threshold", 0.5)),
            )
            for table in tables
        )
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"the model {model.name} does not say what it finds ([[classes]] in config.toml:"
            f" {error}); copy it again"
        ) from error
    if len(kinds) != model.network.kinds or min(kind.diameter for kind in kinds) <= 0:
        raise ValueError(
            f"the model {model.name} has {model.network.kinds} classes, and describes {len(kinds)},"
            " or a diameter is not positive; copy it again"
        )
    return kinds


@dataclass(frozen=True, eq=False, kw_only=True)
class SegmentationPicker:
    """Find particles, filaments and membranes by the class of every voxel.

    A network that was trained for it, mostly from simulation (`tomoloc train segmentation`), gives
    the probability of each class at each voxel, as DeepFinder does [1]_. The voxels of particles
    are cut into instances, class by class; filaments are traced, and come as points along them;
    membranes and the like are in the label volume alone (--save-labels). The shipped model
    `cytoplasm` knows membranes, microtubules, actin and ribosomes.

    Parameters
    ----------
    model : StoredModel or str
        Folder of a model that `tomoloc train segmentation` has made, or the name of a shipped one.
    instances : {"watershed", "components", "mean-shift"}
        Watershed parts touching particles; connected components do not; mean shift also gathers
        the pieces of one.
    diameter : float, optional
        Of the particles in angstrom, if not that of the training.
    diameter_range : tuple of float, optional
        Keep instances with the volume of a ball whose diameter is in this range, in angstrom; by
        default, from two fifths of the usual volume on.
    mass_range_kda : tuple of float, optional
        Keep instances with the volume of a protein whose mass is in this range.
    filament_step : float
        Between points along a filament, in angstrom.
    dust : float
        Voxels of the model below which a connected region is left out of the label volume.
    views : {1, 2, 4}
        Average over so many views, turned by half a turn about the axes: so many times the work.
    match_spectrum : bool
        Filter the tomogram so that its radial spectrum is that of the training data [2]_.
    device : str
        auto, cpu or cuda.
    seed : int
        Chooses the voxels that mean shift looks at, where they are many.

    References
    ----------
    .. [1] Moebel et al., Nature Methods 18, 1386 (2021), doi:10.1038/s41592-021-01275-4.
    .. [2] De Teresa-Trueba et al., Nature Methods 20, 284 (2023), doi:10.1038/s41592-022-01746-2.
    """

    model: StoredModel | str = "cytoplasm"
    instances: SegmentMethod = "watershed"
    diameter: float | None = None
    diameter_range: tuple[float, float] | None = None
    mass_range_kda: tuple[float, float] | None = None
    filament_step: float = 40.0
    dust: float = 50.0
    views: Views = 1
    match_spectrum: bool = False
    device: str = "auto"
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("diameter", "filament_step"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f"{name} must be positive; got {value}")
        for name in ("diameter_range", "mass_range_kda"):
            limits = getattr(self, name)
            if limits is not None and not 0 <= limits[0] < limits[1]:
                raise ValueError(f"{name} needs two numbers from 0 on, in this order; got {limits}")
        if self.diameter_range is not None and self.mass_range_kda is not None:
            raise ValueError("give diameter_range or mass_range_kda, not both")
        read_kinds(self._model)
        if self.match_spectrum:
            check_spectrum(self._model)

    @property
    def particle_diameter(self) -> FloatArray:
        """Of each class, in angstrom."""
        return np.array([kind.diameter for kind in self._kinds])

    def working_spacing(self, voxel_spacing: float) -> float:
        """Return the model's voxel spacing, or the tomogram's where it hardly differs.

        Raises
        ------
        ValueError
            If the tomogram is too coarse for the model.
        """
        return choose_spacing(voxel_spacing, wanted=self._model.voxel_spacing)

    def score(self, tomogram: Tomogram) -> ScoreMap:
        """Compute the probability of each class at each voxel.

        Parameters
        ----------
        tomogram : Tomogram
            Protein bright.

        Returns
        -------
        ScoreMap
            At the model's voxel spacing. With background, probabilities add up to 1.

        Raises
        ------
        ValueError
            If the tomogram is too small or too coarse.
        """
        labels = tuple(kind.label for kind in self._kinds)
        if is_flat(tomogram.data):
            return empty_scores(tomogram, labels)
        if self.match_spectrum:
            spacing = self.working_spacing(tomogram.voxel_spacing)
            tomogram = match_training(tomogram, self._model, spacing=spacing)
        tomogram = fit_tomogram(tomogram, wanted=self._model.voxel_spacing)
        device = resolve_device(self.device)
        return ScoreMap(
            data=predict(
                self._network,
                tomogram.data,
                device=device,
                half=device != "cpu" and computes_in_bfloat16(device),
                views=self.views,
                scale=robust_scale(tomogram.data),
                max_bytes=_TILE_BYTES if device == "cpu" else tile_bytes(device),
            ),
            voxel_spacing=tomogram.voxel_spacing,
            origin=tomogram.origin,
            name=tomogram.name,
            labels=labels,
        )

    def threshold(
        self,
        scores: ScoreMap,  # noqa: ARG002
        *,
        min_distance: ArrayLike,  # noqa: ARG002
        mask: Volume | None = None,  # noqa: ARG002
    ) -> FloatArray:
        """Take the thresholds that were the best in training.

        Parameters
        ----------
        scores : ScoreMap
            From `score`.
        min_distance : float or array_like
            As for `find_peaks`.
        mask : Volume, optional
            As for `find_peaks`.

        Returns
        -------
        ndarray, shape (label,)
        """
        return np.array([kind.threshold for kind in self._kinds])

    def locate(
        self,
        scores: ScoreMap,
        *,
        threshold: ArrayLike,
        min_distance: ArrayLike,
        diameter: ArrayLike,
        max_particles: int | None = None,
        mask: Volume | None = None,
    ) -> Particles:
        """Cut the classes' voxels into particles, and trace filaments.

        Parameters
        ----------
        scores : ScoreMap, data shape (label, z, y, x)
            From `score`.
        threshold : float or array_like, shape (label,)
            A voxel is of the class with the highest probability, if that is above.
        min_distance : float or array_like, shape (label,)
            Between two particles of a class, in angstrom.
        diameter : float or array_like, shape (label,)
            Of a particle, in angstrom.
        max_particles : int, optional
            Keep this many of each class, or so many filaments.
        mask : Volume, data shape (z, y, x), optional
            Where particles may be.

        Returns
        -------
        Particles
            Scores are mean probabilities, over an instance's voxels or at a point of a filament.
            The extra column tomolocVolume is the volume in cubic angstrom, 0 for filaments. Where
            the model knows filaments, there are a rotation, which takes z to the tangent (particles
            have none: it is the identity), tomolocFilament and tomolocArcLength. Particles come
            first, best first, then filaments, the longest first.
        """
        n = len(scores.labels)
        distances = np.broadcast_to(np.asarray(min_distance, dtype=float), (n,))
        diameters = np.broadcast_to(np.asarray(diameter, dtype=float), (n,))
        if not (distances > 0).all():
            raise ValueError(f"min_distance must be positive (angstrom); got {distances.min():g}")
        found, points = [], []
        for channel, own in self._masks(scores, threshold, mask):
            field = Volume(
                data=scores.data[channel],
                voxel_spacing=scores.voxel_spacing,
                origin=scores.origin,
                name=scores.name,
            )
            place = _Place(field, own, self._kinds[channel], float(diameters[channel]))
            if place.kind.role == "particle":
                found.append(self._cut(place, float(distances[channel]), max_particles))
            elif place.kind.role == "filament":
                points.append(self._trace(place, max_particles))
        none = Particles(position=np.zeros((0, 3)), score=np.zeros(0), tomogram=scores.name)
        particles = Particles.concatenate([*found, none])
        particles = particles[np.argsort(-np.asarray(particles.score), kind="stable")]
        if not any(kind.role == "filament" for kind in self._kinds):
            return particles
        return Particles.concatenate([_as_point(particles), *_number(points), _as_point(none)])

    def segment(
        self, scores: ScoreMap, *, threshold: ArrayLike, mask: Volume | None = None
    ) -> Volume:
        """Number the voxels by their class.

        Parameters
        ----------
        scores, threshold, mask
            As for `locate`.

        Returns
        -------
        Volume, data of uint8, shape (z, y, x)
            1 for the first label, and so on; 0 for background and dust.
        """
        labels = np.zeros(scores.shape, dtype=np.uint8)
        for channel, own in self._masks(scores, threshold, mask):
            labels[remove_dust(own, least=self.dust)] = channel + 1
        return Volume(
            data=labels, voxel_spacing=scores.voxel_spacing, origin=scores.origin, name=scores.name
        )

    def summarise(self, particles: Particles, segments: Volume) -> dict[str, Any]:
        """Count particles and filaments, and measure what all voxels of a class fill.

        Parameters
        ----------
        particles : Particles
            From `locate`.
        segments : Volume
            From `segment`.

        Returns
        -------
        dict
            Of each label, `count`, of regions none, and `volume_nm3`.
        """
        voxels = np.bincount(segments.data.ravel(), minlength=len(self._kinds) + 1)[1:]
        label = np.asarray(particles.label)
        counts = {}
        for kind in self._kinds:
            rows = label == kind.label
            if kind.role == "particle":
                counts[kind.label] = int(rows.sum())
            elif kind.role == "filament":
                numbers = np.asarray(particles.extra.get(FILAMENT_COLUMN, np.zeros(len(label))))
                counts[kind.label] = len(np.unique(numbers[rows]))
        volume = voxels * segments.voxel_spacing**3 / 1000
        names = [kind.label for kind in self._kinds]
        volumes = dict(zip(names, np.round(volume, 1).tolist(), strict=True))
        return {"count": counts, "volume_nm3": volumes}

    @cached_property
    def _model(self) -> StoredModel:
        return self.model if isinstance(self.model, StoredModel) else open_model(self.model)

    @cached_property
    def _kinds(self) -> tuple[Kind, ...]:
        kinds = read_kinds(self._model)
        if self.diameter is None:
            return kinds
        # A usual volume is that of the usual diameter.
        size = float(self.diameter)
        return tuple(
            kind._replace(diameter=size, volume=kind.volume * (size / kind.diameter) ** 3)
            if kind.role == "particle"
            else kind
            for kind in kinds
        )

    @cached_property
    def _network(self) -> torch.nn.Module | Int8UNet:
        network, device = self._model.network, resolve_device(self.device)
        if isinstance(network, SegmentationNetwork):
            network = network.fuse()
            if network.is_own and takes_int8(self._model, device):
                return Int8UNet(network, self._model.config[RANGES])
        # mypy: torch's types forget that modules can change their layout
        placed: torch.nn.Module = network.to(device).to(
            memory_format=torch.channels_last_3d  # type: ignore[call-overload]
        )
        return placed

    def _masks(
        self, scores: ScoreMap, threshold: ArrayLike, mask: Volume | None
    ) -> Iterator[tuple[int, NDArray[np.bool_]]]:
        """Voxels of each class, one class after the other."""
        if mask is not None and mask.shape != scores.shape:
            raise ValueError(
                f"the mask must have the scores' shape {scores.shape}; got {mask.shape}"
            )
        n = len(scores.labels)
        thresholds = np.broadcast_to(np.asarray(threshold, dtype=float), (n,))
        for channel in range(n):
            own = mark_class(scores.data, channel, threshold=float(thresholds[channel]))
            if mask is not None:
                own &= np.asarray(mask.data) != 0
            yield channel, own

    def _cut(self, place: _Place, min_distance: float, max_particles: int | None) -> Particles:
        labels = segment_instances(
            place.field,
            place.mask,
            method=self.instances,
            diameter=place.diameter,
            min_distance=min_distance,
            seed=self.seed,
        )
        regions = find_regions(labels, field=place.field)
        there = np.nonzero(labels)
        total = np.bincount(labels[there], place.field.data[there], minlength=len(regions) + 1)[1:]
        voxel = place.field.voxel_spacing**3
        score = total / np.maximum(regions.volume / voxel, 1)
        low, high = self._volumes(place.kind)
        large = np.flatnonzero((regions.volume >= low) & (regions.volume <= high))
        kept = suppress(regions.position[large], score[large], min_distance=min_distance)
        rows = large[kept][:max_particles]
        position = regions.position[rows]
        edge = flag_edges(place.field, position, diameter=place.diameter)
        return Particles(
            position=position,
            label=place.kind.label,
            tomogram=place.field.name,
            score=score[rows],
            extra={EDGE_COLUMN: edge, "tomolocVolume": np.round(regions.volume[rows])},
        )

    def _volumes(self, kind: Kind) -> tuple[float, float]:
        """Least and largest volume of an instance, in cubic angstrom."""
        if self.mass_range_kda is not None:
            low, high = (mass * _VOLUME_OF_PROTEIN for mass in self.mass_range_kda)
            return low, high
        if self.diameter_range is not None:
            low, high = (np.pi / 6 * size**3 for size in self.diameter_range)
            return float(low), float(high)
        return _LEAST_PART * kind.volume, np.inf

    def _trace(self, place: _Place, max_filaments: int | None) -> list[Particles]:
        """Points of each filament; filaments are numbered later."""
        field = place.field
        mask = Volume(data=place.mask, voxel_spacing=field.voxel_spacing, origin=field.origin)
        tables = []
        for curve in trace_filaments(mask, diameter=place.diameter, step=self.filament_step):
            index = field.to_index(curve.position)
            points = np.asarray(field.data)[..., None]
            edge = flag_edges(field, curve.position, diameter=place.diameter)
            tables.append(
                Particles(
                    position=curve.position,
                    label=place.kind.label,
                    tomogram=field.name,
                    score=interpolate(points, index)[:, 0],
                    rotation=turn_to(curve.tangent),
                    extra={
                        EDGE_COLUMN: edge,
                        "tomolocVolume": np.zeros(len(index)),
                        "tomolocArcLength": np.round(curve.arc_length, 3),
                    },
                )
            )
        return tables[:max_filaments]


class _Place(NamedTuple):
    """A class of a tomogram: its probability, its voxels and its kind."""

    field: Volume
    mask: NDArray[np.bool_]
    kind: Kind
    diameter: float


def _as_point(particles: Particles) -> Particles:
    """Give particles the columns that points of filaments have."""
    n = len(particles)
    extra = {FILAMENT_COLUMN: np.zeros(n, dtype=int), "tomolocArcLength": np.zeros(n)}
    still = Rotation.from_quat(np.tile([0.0, 0.0, 0.0, 1.0], (n, 1)))
    return replace(particles, rotation=still, extra={**particles.extra, **extra})


def _number(tables: list[list[Particles]]) -> list[Particles]:
    """Number the filaments of all classes from 1 on."""
    numbered: list[Particles] = []
    for table in (table for group in tables for table in group):
        number = np.full(len(table), len(numbered) + 1)
        numbered.append(replace(table, extra={**table.extra, FILAMENT_COLUMN: number}))
    return numbered
