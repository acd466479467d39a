"""Pick with a network that was trained for what is looked for: heat maps of centres."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from tomoloc.features.learned import LearnedFeatures
from tomoloc.localize import find_peaks
from tomoloc.nn.encoder import DenseEncoder, HeatNetwork
from tomoloc.nn.monai import AnyHeatNetwork
from tomoloc.nn.published import open_model
from tomoloc.nn.stored import StoredModel
from tomoloc.physics.contrast import is_flat
from tomoloc.pickers.trained import check_spectrum, empty_scores, match_training
from tomoloc.train.frames import Views
from tomoloc.train.heat import DEFAULT_THRESHOLD
from tomoloc.types import FloatArray, ScoreMap, Tomogram, Volume

__all__ = ["CentroidPicker", "Kinds"]

_ANY = "particle"
_ANY_DIAMETER, _LIKELY = 100.0, 0.5
"""Å and probability: of what an encoder takes for the centre of any particle."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Kinds:
    """What a model finds: the table [particles] of its config.toml.

    Parameters
    ----------
    labels : tuple of str
    diameters : tuple of float
        In angstrom.
    thresholds : tuple of float
        Of the heat, each the best for its label on what the model has not learned from.
    """

    labels: tuple[str, ...]
    diameters: tuple[float, ...]
    thresholds: tuple[float, ...] = ()

    @classmethod
    def of(cls, model: StoredModel) -> Kinds:
        """Read them from a model; an encoder finds particles of any kind.

        Raises
        ------
        ValueError
            If it is neither an encoder nor a model of `tomoloc train centroid`, or its table is
            damaged.
        """
        if isinstance(model.network, DenseEncoder):
            return cls(labels=(_ANY,), diameters=(_ANY_DIAMETER,), thresholds=(_LIKELY,))
        if not isinstance(model.network, AnyHeatNetwork):
            raise ValueError(
                f"the model {model.name or type(model.network).__name__} gives no heat maps: train"
                " one with tomoloc train centroid"
            )
        table: Mapping[str, Any] = model.config.get("particles", {})
        try:
            kinds = cls(
                labels=tuple(str(name) for name in table["labels"]),
                diameters=tuple(float(d) for d in table["diameters"]),
                thresholds=tuple(float(t) for t in table.get("thresholds", ())),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"the model {model.name} does not say what it finds ([particles] in config.toml:"
                f" {error}); copy it again"
            ) from error
        sizes = {len(kinds.labels), len(kinds.diameters), model.network.kinds}
        if len(sizes) > 1 or len(kinds.thresholds) not in {0, len(kinds.labels)}:
            raise ValueError(
                f"the model {model.name} has {model.network.kinds} heat maps for"
                f" {len(kinds.labels)} labels, {len(kinds.diameters)} diameters and"
                f" {len(kinds.thresholds)} thresholds; copy it again"
            )
        return kinds

    def to_dict(self) -> dict[str, list[Any]]:
        """Return the table."""
        return {
            "labels": list(self.labels),
            "diameters": [round(d, 1) for d in self.diameters],
            "thresholds": [round(t, 4) for t in self.thresholds],
        }


@dataclass(frozen=True, eq=False, kw_only=True)
class CentroidPicker:
    """Find what a network was trained for, in heat maps of centres.

    The network gives a heat map for each kind of particle that it has learned, from simulation or
    from a few annotated tomograms (`tomoloc train centroid`); particles are its maxima. Kinds of
    different sizes are found at once, each with its own distance between neighbours. The idea is
    that of tomoCPT [1]_. The shipped model `general` finds particles of any kind.

    Parameters
    ----------
    model : StoredModel or str
        Folder of a model that `tomoloc train centroid` has made, or the name of a shipped one.
    diameter : float, optional
        Of the particles in angstrom, if not that of the training. It only sets how far they are
        apart at least (half of it), and which of them reach over the border.
    views : {1, 2, 4}
        Average the heat over so many views, turned by half a turn about the axes: so many times the
        work.
    match_spectrum : bool
        Filter the tomogram so that its radial spectrum is that of the training data, where they
        were made in another way [2]_.
    device : str
        auto, cpu or cuda.
    seed : int
        Nothing in this method is random; it stands in the record of a run.

    References
    ----------
    .. [1] Shah et al., tomoCPT: a generalizable model for 3D particle detection and localization
       in cryo-electron tomograms, Acta Cryst. D 81 (2025).
    .. [2] De Teresa-Trueba et al., Nature Methods 20, 284 (2023), doi:10.1038/s41592-022-01746-2.
    """

    model: StoredModel | str = "general"
    diameter: float | None = None
    views: Views = 1
    match_spectrum: bool = False
    device: str = "auto"
    seed: int = 0

    def __post_init__(self) -> None:
        if self.diameter is not None and not self.diameter > 0:
            raise ValueError(f"diameter must be positive; got {self.diameter}")
        Kinds.of(self._model)
        if self.match_spectrum:
            check_spectrum(self._model)

    @property
    def particle_diameter(self) -> FloatArray:
        """Of each kind, in angstrom."""
        stated = Kinds.of(self._model).diameters
        return np.array(stated) if self.diameter is None else np.full(len(stated), self.diameter)

    def working_spacing(self, voxel_spacing: float) -> float:
        """Return the model's voxel spacing, or the tomogram's where it hardly differs.

        Raises
        ------
        ValueError
            If the tomogram is too coarse for the model.
        """
        return self._features.working_spacing(voxel_spacing)

    def score(self, tomogram: Tomogram) -> ScoreMap:
        """Compute the heat maps of a tomogram.

        Parameters
        ----------
        tomogram : Tomogram
            Protein bright.

        Returns
        -------
        ScoreMap
            Heat from 0 to 1, on the network's grid of every second voxel.

        Raises
        ------
        ValueError
            If the tomogram is too small or too coarse.
        """
        labels = Kinds.of(self._model).labels
        if is_flat(tomogram.data):
            return empty_scores(tomogram, labels)
        if self.match_spectrum:
            tomogram = match_training(
                tomogram, self._model, spacing=self.working_spacing(tomogram.voxel_spacing)
            )
        heat = self._features.embed(tomogram)
        return ScoreMap(
            data=np.array(heat.data, dtype=np.float32),
            voxel_spacing=heat.voxel_spacing,
            origin=heat.origin,
            name=tomogram.name,
            labels=labels,
        )

    def threshold(
        self,
        scores: ScoreMap,
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
        stated = Kinds.of(self._model).thresholds
        return np.array(stated) if stated else np.full(len(scores.labels), DEFAULT_THRESHOLD)

    # Heat falls off around a centre as a Gaussian.
    locate = staticmethod(partial(find_peaks, shape="gaussian"))

    @cached_property
    def _model(self) -> StoredModel:
        return self.model if isinstance(self.model, StoredModel) else open_model(self.model)

    @cached_property
    def _features(self) -> LearnedFeatures:
        model = self._model
        if isinstance(model.network, DenseEncoder):
            model = replace(model, network=HeatNetwork.from_encoder(model.network, kinds=1))
        return LearnedFeatures(model=model, device=self.device, views=self.views)
