"""Pick by example: what lies near an example in the space of a trained network's vectors."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from tomoloc.features.candidates import Candidates, find_candidates
from tomoloc.features.classification import Classification, classify_candidates
from tomoloc.features.learned import LearnedFeatures, default_views
from tomoloc.io.targets import Targets, check_model
from tomoloc.localize import find_peaks, paint_peaks
from tomoloc.nn.published import open_model
from tomoloc.nn.stored import StoredModel
from tomoloc.physics.contrast import is_flat
from tomoloc.pickers.competition import Calibration, best_threshold, compete, mean_direction
from tomoloc.train.frames import Views
from tomoloc.types import FloatArray, Particles, ScoreMap, Tomogram, Volume

__all__ = ["EmbeddingPicker", "embed_examples"]

logger = logging.getLogger(__name__)

_LEAST = 0.2
"""Below this probability, nothing is picked by default."""
_NOTHING_THERE = 0.05
"""Probability of a centre below which an example is doubted."""
_UNKNOWN = 0.5
"""Threshold for scores that are no probabilities."""


@dataclass(frozen=True, eq=False, kw_only=True)
class EmbeddingPicker:
    """Find more of what a few examples show; any particle, no training.

    A network has learned from thousands of simulated complexes to give each place of a tomogram a
    vector, alike for particles of one kind and unlike for others, and the probability that a
    particle's centre is there. Candidates are the maxima of that probability, and of the
    similarity to the examples. All labels compete for each of them, beside all that is none of
    them; the score is the probability that it is of its label. The default threshold needs no
    truth: it is where these probabilities promise the highest F1. The sum of what the scores of the
    picks lack to 1 is the expected number of false ones. The idea is that of TomoTwin [1]_.

    Parameters
    ----------
    reference : Targets
        Examples, one or more of each label: as a file, a table of positions in any program's
        format; as an object, what `embed_examples` makes of them with the same model.
    model : StoredModel or str
        Trained network: name of one that comes with tomoloc, a folder, or a checkpoint of TomoTwin
        (.pth), which is very slow.
    diameter : float
        Of the particles, in angstrom. It only sets how far they are apart at least (half of it),
        and which of them reach over the border.
    refine : bool
        Let each label's target move from its examples towards the kind of particles that they are
        of: one example is one view.
    average : bool
        Turn candidates onto each other, average those that are alike, and let how well each fits
        these averages decide beside its vector. That tells like particles apart which the network
        confuses, and takes a minute or two for some hundred candidates.
    views : {1, 2, 4}, optional
        Average vectors and probabilities over so many views, turned by half a turn about the axes:
        the more the better, each at the cost of the first. By default 4, or 1 with weights of
        TomoTwin, which take no more.
    device : str
        auto, cpu or cuda.
    seed : int
        Nothing in this method is random; it stands in the record of a run.

    References
    ----------
    .. [1] Rice et al., Nature Methods 20, 871 (2023), doi:10.1038/s41592-023-01878-z.
    """

    reference: Targets
    model: StoredModel | str = "general"
    diameter: float = 120.0
    refine: bool = True
    average: bool = True
    views: Views | None = None
    device: str = "auto"
    seed: int = 0

    def __post_init__(self) -> None:
        if not len(self.reference):
            raise ValueError("reference holds no examples; give at least one for each label")
        if not self.diameter > 0:
            raise ValueError(f"diameter must be positive; got {self.diameter}")

    @property
    def particle_diameter(self) -> float:
        """As given, in angstrom."""
        return self.diameter

    def working_spacing(self, voxel_spacing: float) -> float:
        """Return the model's voxel spacing, or the tomogram's where it hardly differs.

        Raises
        ------
        ValueError
            If the tomogram is too coarse for the model.
        """
        return self._features.working_spacing(voxel_spacing)

    def score(self, tomogram: Tomogram) -> ScoreMap:
        """Embed a tomogram and let the labels compete for the candidates.

        Parameters
        ----------
        tomogram : Tomogram
            Protein bright.

        Returns
        -------
        ScoreMap
            On the network's grid; 0 but for a small paraboloid around each candidate, whose peak
            is its probability and lies, between grid points, at its position. That is halfway
            between the maximum of the map of centres and the middle of the average that fits best.

        Raises
        ------
        ValueError
            If the examples are of another model, or the tomogram is too small.
        """
        labels = self.reference.labels
        if is_flat(tomogram.data):
            return paint_peaks(tomogram, {label: (np.zeros((0, 3)), []) for label in labels})
        features = self._features
        if not self._is_calibrated:
            logger.warning("this model is not calibrated: take its scores as ranks, not as chances")
        examples = [self.reference.of(label) for label in labels]
        embedding = features.embed(tomogram)
        candidates = find_candidates(
            embedding,
            centers=features.finds_centers,
            targets=[mean_direction(vectors) for vectors in examples],
        )
        calibration = Calibration.of(features.model.config)
        averages = self._average(tomogram, candidates, calibration)
        grid = Volume(
            data=np.broadcast_to(np.float32(0), embedding.shape),
            voxel_spacing=embedding.voxel_spacing,
            origin=embedding.origin,
            name=embedding.name,
        )
        del embedding
        center = np.asarray(candidates.particles.score)
        probability = compete(
            candidates.vectors,
            center,
            examples=examples,
            calibration=calibration,
            refine=self.refine,
            fitted=averages,
        )
        position = candidates.particles.position
        if averages is not None:  # two estimates are better than one
            position = position + averages.offset / 2
        return paint_peaks(
            grid, {label: (position, probability[:, i]) for i, label in enumerate(labels)}
        )

    def _average(
        self, tomogram: Tomogram, candidates: Candidates, calibration: Calibration
    ) -> Classification | None:
        """Averages of the candidates, if these are asked for and the model tells what they mean."""
        if not self.average:
            return None
        if calibration.averaged is None:
            logger.info("this model does not tell what averages mean: candidates are not averaged")
            return None
        return classify_candidates(tomogram, candidates, spread=calibration.spread)

    def threshold(
        self, scores: ScoreMap, *, min_distance: float, mask: Volume | None = None
    ) -> FloatArray:
        """Choose for each label where the expected F1 is highest, and tell how many will be wrong.

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
            From 0.2 to 0.5; 0.5 with a model that is not calibrated.
        """
        if not self._is_calibrated:
            return np.full(len(scores.labels), _UNKNOWN)
        found = find_peaks(scores, threshold=0.0, min_distance=min_distance, mask=mask)
        probability, label = np.asarray(found.score), np.asarray(found.label)
        thresholds = np.array(
            [best_threshold(probability[label == name], least=_LEAST) for name in scores.labels]
        )
        limit = dict(zip(scores.labels, thresholds.tolist(), strict=True))
        chosen = probability[probability > np.array([limit[str(name)] for name in label])]
        name = f"{scores.name}: " if scores.name else ""
        message = "%sof %d picks, %.1f are expected to be wrong"
        logger.info(message, name, len(chosen), float(np.sum(1 - chosen)))
        return thresholds

    @property
    def _is_calibrated(self) -> bool:
        return "calibration" in self._features.model.config

    @cached_property
    def _features(self) -> LearnedFeatures:
        model = self.model
        if not isinstance(model, StoredModel):
            model = open_model(model)
        check_model(self.reference.model, model.identity, what="reference")
        views = self.views or default_views(model)
        features = LearnedFeatures(model=model, device=self.device, views=views)
        return features.with_vectors()


def embed_examples(
    tomogram: Tomogram,
    examples: Particles,
    *,
    model: StoredModel,
    views: Views | None = None,
    device: str = "auto",
) -> Targets:
    """Embed the examples in a tomogram.

    Parameters
    ----------
    tomogram : Tomogram
        Protein bright; of any spacing up to twice the model's.
    examples : Particles
        One or more of each label. Those that name another tomogram are left out.
    model : StoredModel
    views : {1, 2, 4}, optional
        As for the picker that looks for them.
    device : {"auto", "cpu", "cuda"}

    Returns
    -------
    Targets
        One for each example.

    Raises
    ------
    ValueError
        If an example lies outside the tomogram, or has no label.
    """
    rows = np.flatnonzero(np.isin(np.asarray(examples.tomogram), ["", tomogram.name]))
    own = examples[rows]
    for row, label, inside, position in zip(
        rows, np.asarray(own.label), tomogram.contains(own.position), own.position, strict=True
    ):
        if not label:
            raise ValueError(f"example {row + 1} has no label; name what each example shows")
        if not inside:
            place = ", ".join(f"{x:.0f}" for x in position - tomogram.origin)
            sides = " x ".join(f"{x:.0f}" for x in tomogram.extent)
            raise ValueError(
                f"example {row + 1} ({label}) at ({place}) Å lies outside tomogram"
                f" {tomogram.name}, which has {sides} Å (x y z)"
            )
    views = views or default_views(model)
    features = LearnedFeatures(model=model, device=device, views=views).with_vectors()
    vectors, center = features.embed_at(tomogram, own.position)
    for row in np.flatnonzero(center < _NOTHING_THERE):
        logger.warning(
            "example %d (%s): the network sees no particle there (probability %.2f); is it where it"
            " should be, in the right units and tomogram?",
            rows[row] + 1, np.asarray(own.label)[row], center[row],
        )  # fmt: skip
    return Targets(vectors=vectors, label=own.label, model=model.identity)
