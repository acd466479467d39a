"""Pick without knowing anything: voxels in two clusters, and what in one of them is a particle."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from tomoloc.features.denoise import Method
from tomoloc.features.foreground import Clustering
from tomoloc.features.learned import LearnedFeatures
from tomoloc.localize import paint_peaks
from tomoloc.nn.published import open_model
from tomoloc.nn.stored import StoredModel
from tomoloc.physics.contrast import is_flat
from tomoloc.pickers.consensus import CONSENSUS, agree
from tomoloc.pickers.published import run_published
from tomoloc.pickers.workflows import (
    SPACING,
    WORKFLOWS,
    Features,
    Instances,
    Segments,
    Workbench,
    Workflow,
)
from tomoloc.types import FloatArray, ScoreMap, Tomogram, Volume

__all__ = ["UnsupervisedPicker"]

logger = logging.getLogger(__name__)

_THRESHOLD = 0.5
_DIAMETER = 120.0
"""Å, where nothing was found that would tell."""
_LEAST_DISTANCE = 60.0
LABEL = "particle"


@dataclass(frozen=True, eq=False, kw_only=True)
class UnsupervisedPicker:
    """Find particles in a tomogram of which nothing is known; no example, no template, no size.

    Numbers that describe the neighbourhood of each voxel are sorted into two clusters, particle
    and rest, and the particles' cluster is cut into instances, as PickET [1]_ does it. Which
    cluster that is, how large particles are, where neighbours are to be parted, what is membrane,
    gold or dust, and between which heights the lamella lies follows from the data. The score is
    the probability that it is a particle, and the threshold 0.5.

    Parameters
    ----------
    features : {"learned", "invariant", "gabor", "fft", "intensity"}
        Learned: the vectors of a network that was trained on simulated tomograms of thousands of
        complexes. The others need no network: curvatures at several scales, in units of the noise
        and the same in all orientations; Gabor filters, Fourier magnitudes or intensities of 5 x 5
        x 5 voxels.
    clustering : {"kmeans", "gmm"}
        K-means, or a mixture of two Gaussians.
    instances : {"watershed", "components"}
        Watershed parts touching particles; connected components do not.
    all : bool
        Run all twenty workflows. Each is a label of its own, and label `consensus` tells on which
        particles they agree: its score is the mean of theirs.
    paper : bool
        Do as published: filters with their means, the smaller cluster, no limit of size, and
        nothing decided by the data. For comparison.
    denoise : {"none", "diffusion", "gaussian", "median"}
        Before all else. Diffusion smooths along edges, not across; the network wants none.
    diameter : float, optional
        Of the particles, in angstrom; estimated by default. Half of it is the least distance.
    smallest : float
        Diameter in angstrom below which a component is dust.
    largest : float
        Length in angstrom above which nothing is a particle; with learned features, the network
        decides.
    slab : bool
        Find out between which heights particles lie, and leave out what is beyond.
    invert : bool
        Take the other cluster for the particles.
    model : StoredModel or str
        Network of the learned features: name of one that comes with tomoloc, or a folder.
    device : str
        auto, cpu or cuda.
    seed : int
        Chooses the voxels that clusters are learned from.

    References
    ----------
    .. [1] Arvindekar, Golatkar & Viswanath, PickET, bioRxiv (2025).
    """

    features: Features = "learned"
    clustering: Clustering = "kmeans"
    instances: Segments = "watershed"
    all: bool = False
    paper: bool = False
    denoise: Method = "none"
    diameter: float | None = None
    smallest: float = 40.0
    largest: float = 500.0
    slab: bool = True
    invert: bool = False
    model: StoredModel | str = "general"
    device: str = "auto"
    seed: int = 0

    def __post_init__(self) -> None:
        workflow = Workflow(self.features, self.clustering, self.instances)
        if workflow not in WORKFLOWS:
            known = (" | ".join(dict.fromkeys(words)) for words in zip(*WORKFLOWS, strict=True))
            raise ValueError(f"a workflow is {', '.join(known)}; got {', '.join(workflow)}")
        if self.paper and (self.all or self.features in {"learned", "invariant"}):
            raise ValueError("paper needs features gabor, fft or intensity, and one workflow")
        if self.diameter is not None and not self.diameter > 0:
            raise ValueError(f"diameter must be positive; got {self.diameter}")
        if not 0 <= self.smallest < self.largest:
            raise ValueError(
                f"smallest and largest must be 0 or more, in this order; got {self.smallest} and"
                f" {self.largest}"
            )

    @property
    def particle_diameter(self) -> float:
        """As given, or a usual one, in angstrom."""
        return _DIAMETER if self.diameter is None else self.diameter

    def working_spacing(self, voxel_spacing: float) -> float:
        """Return the network's voxel spacing where it is used; others rescale by themselves.

        Raises
        ------
        ValueError
            If the tomogram is too coarse.
        """
        if self._learns:
            return self._network.working_spacing(voxel_spacing)
        if voxel_spacing > 2 * SPACING:
            raise ValueError(
                f"voxels of {voxel_spacing:.4g} Å are too coarse to see particles: at most"
                f" {2 * SPACING:g} Å; check --voxel-spacing, or bin less"
            )
        return voxel_spacing

    def score(self, tomogram: Tomogram) -> ScoreMap:
        """Find instances and paint them.

        Parameters
        ----------
        tomogram : Tomogram
            Protein bright.

        Returns
        -------
        ScoreMap
            0 but for a small paraboloid at each instance, whose peak is its score. Its diameter is
            the typical one of what was found, unless one was given.

        Raises
        ------
        ValueError
            If the tomogram is too small or too coarse.
        """
        if is_flat(tomogram.data):
            labels = [CONSENSUS] if self.all else [LABEL]
            return paint_peaks(tomogram, dict.fromkeys(labels, _NOTHING))
        found = self.find_instances(tomogram)
        tables = {name: (item.position, item.score) for name, item in found.items()}
        if self.all:
            tables = {CONSENSUS: agree(tables), **tables}
            _tell(tomogram.name, tables)
        sizes = [item.typical_diameter for item in found.values() if len(item)]
        size = float(np.median(sizes)) if sizes else 0.0
        diameter = self.diameter
        if diameter is None and size > 0:
            diameter = float(np.clip(size, _LEAST_DISTANCE, self.largest))
            name = f"{tomogram.name}: " if tomogram.name else ""
            logger.info("%sparticles seem to be %.0f Å in diameter", name, diameter)
        return paint_peaks(tomogram, tables, diameter=diameter)

    def find_instances(self, tomogram: Tomogram) -> dict[str, Instances]:
        """Segment a tomogram.

        Parameters
        ----------
        tomogram : Tomogram
            Protein bright.

        Returns
        -------
        dict of str to Instances
            One, called "particle", or one for each workflow, by its name.
        """
        own = Workflow(self.features, self.clustering, self.instances)
        if self.paper:
            return {
                LABEL: run_published(tomogram, own, denoising=self.denoise, seed=self.seed,
                                     invert=self.invert, diameter=self.diameter)
            }  # fmt: skip
        bench = Workbench(
            tomogram,
            features=self._network if self._learns else None,
            method=self.denoise,
            smallest=self.smallest,
            largest=self.largest,
            slab=self.slab,
            invert=self.invert,
            seed=self.seed,
        )
        if not self.all:
            return {LABEL: bench.run(own)}
        return {str(workflow): bench.run(workflow) for workflow in WORKFLOWS}

    def threshold(
        self,
        scores: ScoreMap,
        *,
        min_distance: float,  # noqa: ARG002
        mask: Volume | None = None,  # noqa: ARG002
    ) -> FloatArray:
        """Take what is more likely a particle than not.

        Parameters
        ----------
        scores : ScoreMap
            From `score`.
        min_distance : float
            As for `find_peaks`, in angstrom.
        mask : Volume, data shape (z, y, x), optional
            Where peaks count.

        Returns
        -------
        ndarray, shape (label,)
            0.5 for each.
        """
        return np.full(len(scores.labels), _THRESHOLD)

    @property
    def _learns(self) -> bool:
        return not self.paper and (self.all or self.features == "learned")

    @cached_property
    def _network(self) -> LearnedFeatures:
        model = self.model
        if not isinstance(model, StoredModel):
            model = open_model(model)
        features = LearnedFeatures(model=model, device=self.device)
        if not features.finds_centers:
            raise ValueError("this model finds no centres: give another --model or --features")
        return features


_NOTHING = (np.zeros((0, 3)), np.zeros(0))


def _tell(name: str, tables: dict[str, tuple[FloatArray, FloatArray]]) -> None:
    """Say how many particles each workflow finds, and how many of these the others confirm."""
    sure = tables[CONSENSUS][0][tables[CONSENSUS][1] > _THRESHOLD]
    logger.info("%s: %d particles that workflows agree on", name, len(sure))
    for workflow, (position, score) in tables.items():
        if workflow == CONSENSUS:
            continue
        own = position[score > _THRESHOLD]
        shared = _count_near(own, sure)
        logger.info("  %-30s %6d particles, %6d of them agreed on", workflow, len(own), shared)


def _count_near(position: FloatArray, others: FloatArray, *, reach: float = 60.0) -> int:
    from scipy.spatial import KDTree

    if not len(position) or not len(others):
        return 0
    away, _ = KDTree(others).query(position)
    return int(np.count_nonzero(away <= reach))
