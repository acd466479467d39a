"""The steps of all unsupervised workflows on one tomogram; what two of them share is done once."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from itertools import product
from typing import Literal, NamedTuple, get_args

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from tomoloc.arrays import release
from tomoloc.features.banks import Bank, InvariantBank, make_bank
from tomoloc.features.blobs import BLOCK, Seeds, Survey, read_block, spread_blocks, survey
from tomoloc.features.candidates import find_candidates
from tomoloc.features.denoise import Method, denoise, despeckle
from tomoloc.features.foreground import (
    Clustering,
    Foreground,
    fit_foreground,
    segment,
)
from tomoloc.features.instances import (
    Regions,
    ball_diameter,
    find_regions,
    join_seeds,
    label_mask,
    watershed,
)
from tomoloc.features.learned import LearnedFeatures
from tomoloc.features.scales import SCALES, ScaleSpace
from tomoloc.physics.contrast import robust_scale
from tomoloc.physics.filters import rescale
from tomoloc.pickers.shapes import rate_seeds
from tomoloc.types import FloatArray, Particles, Tomogram, Volume

__all__ = ["WORKFLOWS", "Instances", "Workbench", "Workflow"]

Features = Literal["learned", "invariant", "gabor", "fft", "intensity"]
Segments = Literal["watershed", "components"]

SPACING = 14.0
"""Å: five voxels are a particle of medium size, and the finest scale still has 1.4 voxels."""
_FINER = 0.85
"""Tomograms whose voxels are smaller than this part of it are rescaled."""
_CLIP = 10.0
"""Robust deviations beyond which there is only gold."""
_BLOCKS = 25
_ROWS = 15_000
"""Voxels of each kind that clusters are learned from."""
_RICH = 0.05
"""Part of the voxels that are of high contrast."""
_REACH, _VALLEY, _CLOSEST = 150.0, 0.7, 90.0
"""Å, part, Å: how seeds are joined; chosen on simulated scenes."""
_LEAST_STRENGTH = 0.8
_PATCH_BLUR = SCALES[0]
_CENTER = 0.05
"""Probability of a centre from which on there is a candidate."""
_SURE = 0.5


class Workflow(NamedTuple):
    """Which features, how they are clustered, and how clusters become particles."""

    features: Features
    clustering: Clustering
    instances: Segments

    def __str__(self) -> str:
        return "-".join(self)


WORKFLOWS: tuple[Workflow, ...] = tuple(
    Workflow(*words)
    for words in product(*(get_args(words) for words in (Features, Clustering, Segments)))
)
"""All, the best first."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Instances:
    """What a workflow found.

    Parameters
    ----------
    labels : Volume, data of int32, shape (z, y, x)
        The segmentation: row plus one, 0 where there is no particle.
    position : ndarray, shape (n, 3)
        xyz in angstrom.
    score : ndarray, shape (n,)
        Probability that it is a particle.
    diameter : ndarray, shape (n,)
        Of a ball of the same size, in angstrom.
    """

    labels: Volume
    position: FloatArray
    score: FloatArray
    diameter: FloatArray

    def __len__(self) -> int:
        return len(self.score)

    @property
    def typical_diameter(self) -> float:
        """Median of the likely ones, in angstrom; 0 if there are none."""
        likely = self.diameter[self.score > _SURE]
        return float(np.median(likely)) if len(likely) else 0.0


@dataclass(frozen=True, eq=False)
class Workbench:
    """One tomogram and what has been made of it so far.

    Parameters
    ----------
    tomogram : Tomogram
        Protein bright.
    features : LearnedFeatures, optional
        Of a trained network.
    method : str
        Of denoising, before all else.
    smallest, largest : float
        Diameters of particles in angstrom; what is smaller is dust, what is longer no particle,
        except where a network says so.
    slab : bool
        Leave out what lies outside the lamella.
    invert : bool
        Take the other cluster for the particles.
    seed : int
    """

    tomogram: Tomogram
    features: LearnedFeatures | None = None
    method: Method = "none"
    smallest: float = 40.0
    largest: float = 500.0
    slab: bool = True
    invert: bool = False
    seed: int = 0

    def run(self, workflow: Workflow) -> Instances:
        """Find particles with one workflow."""
        if workflow.features == "learned":
            return self._run_learned(workflow)
        mask = self._mask(workflow.features, workflow.clustering)
        seeds, score = self._seeds
        field = self._survey.field
        return self._instances(workflow, field, mask, seeds.position, score, self._basins)

    # ---------------------------------------------------------------------------- by hand

    @cached_property
    def volume(self) -> Volume:
        """At the working spacing, without speckles, standardised and cut at gold."""
        source = self.tomogram
        clean = replace(source, data=despeckle(source.data))
        clean = denoise(clean, self.method)
        if source.voxel_spacing < _FINER * SPACING:
            clean = rescale(clean, SPACING)
        data = np.asarray(clean.data, dtype=np.float32)
        middle, deviation = robust_scale(data)
        data = data if data is not source.data else data.copy()
        data -= np.float32(middle)
        data *= np.float32(1 / deviation)
        np.clip(data, -_CLIP, _CLIP, out=data)
        return Volume(
            data=data,
            voxel_spacing=clean.voxel_spacing,
            origin=clean.origin,
            name=source.name,
        )

    @cached_property
    def _space(self) -> ScaleSpace:
        volume = self.volume
        halo = ScaleSpace(voxel_spacing=volume.voxel_spacing).halo
        blocks = [read_block(volume.data, place, halo=halo) for place in self._places]
        return ScaleSpace.measure(blocks, voxel_spacing=volume.voxel_spacing)

    @cached_property
    def _places(self) -> list[tuple[slice, ...]]:
        rng = np.random.default_rng([self.seed, 0])
        number = int(np.clip(self.volume.data.size // (2 * BLOCK**3), 4, _BLOCKS))
        return spread_blocks(self.volume.shape, side=BLOCK, number=number, rng=rng)

    @cached_property
    def _survey(self) -> Survey:
        return survey(self.volume, self._space)

    def find_seeds(self) -> Seeds:
        """Find seeds of which no two are one particle."""
        found = self._survey.seeds
        found = found[found.strength > _LEAST_STRENGTH]
        owner = join_seeds(
            found.position,
            found.strength,
            field=self._survey.field,
            reach=_REACH,
            valley=_VALLEY,
            min_distance=_CLOSEST,
        )
        kept = np.flatnonzero(owner == np.arange(len(found)))
        return found[kept[np.argsort(-found.strength[kept], kind="stable")]]

    @cached_property
    def _seeds(self) -> tuple[Seeds, FloatArray]:
        """Seeds, and the probability of each."""
        seeds = self.find_seeds()
        return seeds, rate_seeds(seeds, grid=self.volume, slab=self.slab)

    @cached_property
    def _blurred(self) -> Volume:
        width = _PATCH_BLUR / self.volume.voxel_spacing
        data = ndimage.gaussian_filter(self.volume.data, width, truncate=3.0, mode="nearest")
        # Gold would be a cluster of its own.
        limit = _CLIP * robust_scale(data)[1]
        return self.volume.with_data(np.clip(data, -limit, limit))

    @cached_property
    def _masks(self) -> dict[tuple[str, str], NDArray[np.bool_]]:
        return {}

    def prepare(self, features: str, clusterings: tuple[Clustering, ...]) -> None:
        """Segment with several clusterings in one pass over the features."""
        if features == "learned":
            return
        todo = [name for name in clusterings if (features, name) not in self._masks]
        if not todo:
            return
        source = self.volume if features == "invariant" else self._blurred
        bank = make_bank(
            features,
            space=self._space,
            sample=read_block(source.data, self._places[len(self._places) // 2], halo=0),
        )
        models = self._fit(bank, source, todo)
        for name, mask in zip(
            todo, segment(source.data, bank, models, description=features), strict=True
        ):
            self._masks[features, name] = mask

    def _mask(self, features: Features, clustering: Clustering) -> NDArray[np.bool_]:
        self.prepare(features, (clustering,))
        return self._masks[features, clustering]

    @cached_property
    def _drawn(self) -> tuple[list[NDArray[np.intp]], NDArray[np.bool_], FloatArray]:
        """Voxels of each block that clusters are learned from; which are even; their contrast."""
        rng = np.random.default_rng([self.seed, 1])
        bank = InvariantBank(space=self._space)
        blocks = [
            np.sinh(bank(read_block(self.volume.data, place, halo=bank.halo))[:, 3:6]).sum(axis=1)
            for place in self._places
        ]
        limit = np.quantile(np.concatenate(blocks), 1 - _RICH)
        each = -(-_ROWS // len(blocks))
        rows, even = [], []
        for value in blocks:
            anywhere = rng.permutation(len(value))[:each]
            bright = rng.permutation(np.flatnonzero(value >= limit))[: 2 * each]
            rows.append(np.concatenate([anywhere, bright]))
            even.append(np.arange(len(rows[-1])) < len(anywhere))
        contrast = [value[chosen] for value, chosen in zip(blocks, rows, strict=True)]
        return rows, np.concatenate(even), np.concatenate(contrast)

    def _fit(self, bank: Bank, source: Volume, names: list[Clustering]) -> list[Foreground]:
        """Fit clusters to voxels of blocks, half of them from where contrast is high."""
        rows, even, contrast = self._drawn
        features = np.concatenate(
            [
                bank(read_block(source.data, place, halo=bank.halo), chosen)
                for place, chosen in zip(self._places, rows, strict=True)
            ]
        )
        return [
            fit_foreground(
                features[even],
                features[~even],
                contrast=(contrast[even], contrast[~even]),
                clustering=name,
                seed=self.seed,
                invert=self.invert,
            )
            for name in names
        ]

    # ---------------------------------------------------------------------------- learned

    @cached_property
    def _embedding(self) -> tuple[Volume, Volume]:
        """Vectors and centres, and the blurred tomogram on the same grid."""
        if self.features is None:
            raise ValueError("learned features need a network")
        source = self.tomogram
        clean = denoise(replace(source, data=despeckle(source.data)), self.method)
        embedding = self.features.embed(clean)
        middle, deviation = robust_scale(clean.data)
        grid = Volume(
            data=np.broadcast_to(np.float32(0), embedding.shape),
            voxel_spacing=embedding.voxel_spacing,
            origin=embedding.origin,
            name=embedding.name,
        )
        field = _sample(clean, grid, sigma=_PATCH_BLUR)
        field -= middle
        field /= deviation
        return embedding, grid.with_data(field)

    @cached_property
    def _candidates(self) -> Particles:
        return find_candidates(self._embedding[0], centers=True, threshold=_CENTER).particles

    @cached_property
    def _learned_masks(self) -> dict[str, NDArray[np.bool_]]:
        return {}

    def _learned_mask(self, clustering: Clustering) -> NDArray[np.bool_]:
        """Cluster the vectors, half of those looked at from where a centre may be."""
        if clustering not in self._learned_masks:
            points = np.moveaxis(self._embedding[0].data, 0, -1)
            center = points[..., -1].astype(np.float32)
            rng = np.random.default_rng([self.seed, 2])
            even = rng.integers(0, center.size, _ROWS)
            near = np.flatnonzero(center > _CENTER)
            if not len(near):
                self._learned_masks[clustering] = np.zeros(center.shape, dtype=bool)
                return self._learned_masks[clustering]
            near = rng.permutation(near)[:_ROWS]
            vectors, values = points.reshape(-1, points.shape[-1]), center.ravel()
            model = fit_foreground(
                vectors[even, :-1],
                vectors[near, :-1],
                contrast=(values[even], values[near]),
                clustering=clustering,
                seed=self.seed,
                invert=self.invert,
            )
            mask = np.empty(center.shape, dtype=bool)
            for section, out in zip(points, mask, strict=True):
                out[:] = model(section.reshape(-1, points.shape[-1])[:, :-1]).reshape(out.shape)
                release(points)
            self._learned_masks[clustering] = mask
        return self._learned_masks[clustering]

    def _run_learned(self, workflow: Workflow) -> Instances:
        field = self._embedding[1]
        mask = self._learned_mask(workflow.clustering)
        position, score = self._candidates.position, np.asarray(self._candidates.score, dtype=float)
        return self._instances(workflow, field, mask, position, score, self._learned_basins)

    # ---------------------------------------------------------------------------- instances

    @cached_property
    def _basins(self) -> Regions:
        """Regions of all seeds, whatever a mask makes of them."""
        field, seeds = self._survey.field, self._seeds[0]
        return find_regions(watershed(field, seeds.position), field=field, number=len(seeds))

    @cached_property
    def _learned_basins(self) -> Regions:
        field, position = self._embedding[1], self._candidates.position
        return find_regions(watershed(field, position), field=field, number=len(position))

    def _instances(
        self,
        workflow: Workflow,
        field: Volume,
        mask: NDArray[np.bool_],
        position: FloatArray,
        score: FloatArray,
        basins: Regions,
    ) -> Instances:
        """Make instances of seeds and a mask; leave out what has not the size of a particle."""
        if workflow.instances == "watershed":
            regions = basins
            sigma = _PATCH_BLUR if workflow.features == "learned" else SCALES[1]
            diameter = ball_diameter(regions.volume, sigma=sigma)
            kept = _touches(mask, field, position)
            if workflow.features != "learned":
                position = regions.position
        else:
            regions = find_regions(label_mask(mask), field=field)
            score = _best_scores(regions, field, position, score)
            position = regions.position
            diameter = np.cbrt(6 * regions.volume / np.pi)
            kept = diameter >= self.smallest
        if workflow.features != "learned":  # the network knows what is too long to be a particle
            kept &= regions.length <= self.largest
        kept &= (regions.volume > 0) & (score > 0)
        number = np.zeros(len(kept) + 1, dtype=np.int32)
        number[1:][kept] = np.arange(1, kept.sum() + 1)
        labels = number[regions.labels.data] * mask
        return Instances(
            labels=replace(regions.labels, data=labels),
            position=position[kept],
            score=score[kept],
            diameter=diameter[kept],
        )


def _around(field: Volume, position: FloatArray) -> tuple[NDArray[np.intp], ...]:
    """Indices z, y, x of the voxels around places: three arrays of shape (27, n)."""
    last = np.array(field.shape) - 1
    place = np.clip(np.rint(field.to_index(position)).astype(int), 0, last)
    near = (np.indices((3, 3, 3)).reshape(3, -1).T - 1)[:, None]
    z, y, x = np.moveaxis(np.clip(place + near, 0, last), -1, 0)
    return z, y, x


def _touches(mask: NDArray[np.bool_], field: Volume, position: FloatArray) -> NDArray[np.bool_]:
    """Whether a voxel of the mask is no further than a neighbour."""
    return np.asarray(mask[_around(field, position)].any(axis=0))


def _best_scores(
    regions: Regions, field: Volume, position: FloatArray, score: FloatArray
) -> FloatArray:
    """Give each region the best score of the seeds in it; 0 where there is none."""
    own = regions.labels.data[_around(field, position)].max(axis=0)
    best = np.zeros(len(regions))
    np.maximum.at(best, own[own > 0] - 1, score[own > 0])
    return best


def _sample(volume: Volume, grid: Volume, *, sigma: float) -> NDArray[np.float32]:
    """Blur a volume and interpolate it at the places of another grid."""
    data = ndimage.gaussian_filter(
        np.asarray(volume.data, dtype=np.float32),
        sigma / volume.voxel_spacing,
        truncate=3.0,
        mode="nearest",
    )
    for axis, n in enumerate(grid.shape):
        place = np.zeros((n, 3))
        place[:, axis] = np.arange(n)
        index = np.clip(volume.to_index(grid.to_position(place))[:, axis], 0, data.shape[axis] - 1)
        low = np.minimum(index.astype(int), max(0, data.shape[axis] - 2))
        high = np.minimum(low + 1, data.shape[axis] - 1)
        part = (index - low).astype(np.float32).reshape([-1 if i == axis else 1 for i in range(3)])
        data = np.take(data, low, axis=axis) * (1 - part) + np.take(data, high, axis=axis) * part
    return np.asarray(data, dtype=np.float32)
