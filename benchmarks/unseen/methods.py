"""What is compared: the embedding picker with its work on a tomogram kept, and template matching.

The picker runs as `tomoloc.pick` runs it. Only its embedding of a tomogram is kept, so that
several draws of examples do not each pay for the network.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch

from tomoloc import TemplatePicker, find_peaks, pick
from tomoloc.features.candidates import Candidates, find_candidates, look_up
from tomoloc.features.classification import LEAST_CENTER, Classification
from tomoloc.features.learned import LearnedFeatures
from tomoloc.io.targets import Targets
from tomoloc.localize import EDGE_COLUMN
from tomoloc.nn.stored import StoredModel, find_model, load_model
from tomoloc.pickers.competition import Calibration
from tomoloc.pickers.embedding import EmbeddingPicker
from tomoloc.train.frames import Views
from tomoloc.types import Particles, Tomogram, Volume
from unseen.scenes import Protein

__all__ = ["Embedded", "Found", "cluster", "find_with_template", "open_model", "random_model"]


@dataclass(frozen=True, eq=False, kw_only=True)
class Found:
    """Picks of any score, and the default threshold of each label."""

    picks: Particles
    threshold: dict[str, float]

    def chosen(self, label: str) -> Particles:
        """Picks of a label above the default threshold."""
        own = np.asarray(self.picks.label) == label
        return self.picks[own & (np.asarray(self.picks.score) > self.threshold[label])]


def open_model(model: str) -> StoredModel:
    """Load a shipped model by its name, or a folder."""
    return load_model(find_model(model))


def random_model(model: StoredModel, *, seed: int) -> StoredModel:
    """The same network before any training."""
    torch.manual_seed(seed)
    network = type(model.network)(**model.network.settings).eval()
    return StoredModel(network=network, voxel_spacing=model.voxel_spacing, name=f"random-{seed}")


@dataclass(frozen=True, eq=False, kw_only=True)
class Embedded:
    """A tomogram whose protein is dark, and what a model makes of it.

    Parameters
    ----------
    tomogram : Tomogram
    model : StoredModel
    device : str
    views : {1, 2, 4}
        Average over so many half turns, of which the first is none.
    average : bool
        Whether the picker averages candidates.
    """

    tomogram: Tomogram
    model: StoredModel
    device: str = "auto"
    views: Views = 2
    average: bool = True

    @cached_property
    def features(self) -> LearnedFeatures:
        """Of the model; they embed this tomogram once."""
        return _Kept(model=self.model, device=self.device, views=self.views)

    @cached_property
    def embedding(self) -> Volume:
        """Of the tomogram turned bright."""
        return self.features.embed(self.tomogram.with_data(-np.asarray(self.tomogram.data)))

    @property
    def candidates(self) -> Candidates:
        """Places of particles, whatever they are."""
        return find_candidates(self.embedding, centers=self.features.finds_centers)

    def targets(self, examples: Particles) -> Targets:
        """Vectors at the places of examples."""
        vectors = look_up(self.embedding, examples.position, centers=self.features.finds_centers)
        return Targets(vectors=vectors, label=examples.label, model=self.model.identity)

    def cluster(self) -> tuple[Targets, Particles]:
        """Sort candidates into groups; give a target for each and the members, labelled by it."""
        return cluster([self.candidates], self.model)

    def pick(self, targets: Targets) -> Found:
        """Pick with the settings that `tomoloc pick embedding` has by default."""
        picker = _KeptPicker(
            reference=targets,
            model=self.model,
            average=self.average,
            device=self.device,
            kept=self.features,
        )
        found = pick(self.tomogram, picker, contrast="dark", threshold=0.0)
        default = picker.threshold(found.scores, min_distance=picker.particle_diameter / 2)
        return Found(
            picks=found.particles,
            threshold=dict(zip(found.scores.labels, default.tolist(), strict=True)),
        )


@dataclass(frozen=True, eq=False, kw_only=True)
class _Kept(LearnedFeatures):
    """Features that know the last tomogram again by its name."""

    def embed(self, tomogram: Tomogram) -> Volume:
        kept: dict[str, Volume] = self.__dict__.setdefault("_embeddings", {})
        if tomogram.name not in kept:
            kept.clear()
            kept[tomogram.name] = super().embed(tomogram)
        return kept[tomogram.name]


@dataclass(frozen=True, eq=False, kw_only=True)
class _KeptPicker(EmbeddingPicker):
    """A picker that knows its features and the last tomogram's averages again."""

    kept: LearnedFeatures

    def _average(
        self, tomogram: Tomogram, candidates: Candidates, calibration: Calibration
    ) -> Classification | None:
        rows = np.flatnonzero(np.asarray(candidates.particles.score) > LEAST_CENTER)
        kept: dict[str, Classification | None] = self.kept.__dict__.setdefault("_averages", {})
        if tomogram.name not in kept:
            kept.clear()
            kept[tomogram.name] = super()._average(tomogram, candidates[rows], calibration)
        found = kept[tomogram.name]
        return found if found is None else found.among(rows, len(candidates))

    @property
    def _features(self) -> LearnedFeatures:  # type: ignore[override]
        return self.kept


def cluster(candidates: Sequence[Candidates], model: StoredModel) -> tuple[Targets, Particles]:
    """Sort the candidates of some tomograms into groups, as `tomoloc cluster` does."""
    from tomoloc.features.clusters import cluster_candidates

    particles = Particles.concatenate([one.particles for one in candidates])
    clusters = cluster_candidates(
        np.concatenate([one.vectors for one in candidates]),
        np.asarray(particles.score),
        whole=np.asarray(particles.extra[EDGE_COLUMN]) == 0,
        spread=Calibration.of(model.config).spread,
    )
    names = np.array([*clusters.names, ""], dtype=np.str_)
    targets = Targets(
        vectors=clusters.targets,
        label=names[:-1],
        model=model.identity,
        n_members=clusters.n_members,
    )
    return targets, replace(particles, label=names[clusters.label])[clusters.label >= 0]


def find_with_template(
    tomogram: Tomogram, protein: Protein, *, angular_step: float, device: str = "auto"
) -> Found:
    """Search for a protein with its true structure."""
    picker = TemplatePicker(
        template=protein.read(), label=protein.label, angular_step=angular_step, device=device
    )
    found = pick(tomogram, picker, contrast="dark")
    distance = picker.particle_diameter / 2
    every = find_peaks(found.scores, threshold=0.0, min_distance=distance)
    return Found(
        picks=replace(every, rotation=None), threshold={protein.label: float(found.threshold[0])}
    )
