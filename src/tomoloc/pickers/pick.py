"""From a tomogram to particles with any picker: contrast, spacing, mask, threshold, peaks."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
from numpy.typing import ArrayLike

from tomoloc.localize import find_peaks
from tomoloc.physics.contrast import ContrastSign, brighten, detect_contrast
from tomoloc.physics.filters import rescale
from tomoloc.types import FloatArray, Particles, ScoreMap, Tomogram, Volume

__all__ = ["Assessor", "Localiser", "Picker", "Picks", "Segmenter", "choose_contrast", "pick"]

logger = logging.getLogger(__name__)


class Picker(Protocol):
    """What a method provides: a frozen dataclass whose fields are its parameters."""

    @property
    def particle_diameter(self) -> float | FloatArray:
        """Of what it looks for, in angstrom: one for all labels, or one for each."""

    def working_spacing(self, voxel_spacing: float) -> float:
        """Voxel spacing that a tomogram of the given one should be rescaled to."""

    def score(self, tomogram: Tomogram) -> ScoreMap:
        """Score a tomogram whose protein is bright."""

    def threshold(
        self, scores: ScoreMap, *, min_distance: ArrayLike, mask: Volume | None = None
    ) -> FloatArray:
        """Set a threshold for each label without knowing the truth."""


@runtime_checkable
class Assessor(Protocol):
    """What a picker may provide besides: a second look at the particles found."""

    def assess(
        self,
        particles: Particles,
        scores: ScoreMap,
        *,
        min_distance: ArrayLike,
        mask: Volume | None = None,
    ) -> Particles:
        """Add columns, or leave particles out."""


@runtime_checkable
class Localiser(Protocol):
    """What a picker may provide besides: its own way from scores to particles."""

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
        """Find particles as `tomoloc.localize.find_peaks` does, best first."""


@runtime_checkable
class Segmenter(Protocol):
    """What a picker may provide besides: the class of every voxel."""

    def segment(
        self, scores: ScoreMap, *, threshold: ArrayLike, mask: Volume | None = None
    ) -> Volume:
        """Number the voxels of the scores' grid by their label, from 1; 0 is background."""

    def summarise(self, particles: Particles, segments: Volume) -> dict[str, Any]:
        """Count what was found, for the record of a run."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Picks:
    """What `pick` found, and how.

    Parameters
    ----------
    particles : Particles
    scores : ScoreMap
        What the particles were found in.
    threshold : ndarray, shape (label,)
    contrast : {"dark", "light"}
        Of protein in the tomogram as it came.
    diameter : float or ndarray, shape (label,)
        Of the particles, in angstrom: given, known to the picker or told by the tomogram.
    segments : Volume of uint8, data shape (z, y, x), optional
        Of a picker that segments: number of the label at each voxel of the scores, from 1.
    summary : mapping
        What such a picker has counted.
    """

    particles: Particles
    scores: ScoreMap
    threshold: FloatArray
    contrast: str
    diameter: float | FloatArray
    segments: Volume | None = None
    summary: Mapping[str, Any] = field(default_factory=dict)


def pick(
    tomogram: Tomogram,
    picker: Picker,
    *,
    contrast: Literal["auto", "dark", "light"] = "auto",
    threshold: ArrayLike | None = None,
    min_distance: float | None = None,
    max_particles: int | None = None,
    mask: Volume | None = None,
    scores: ScoreMap | None = None,
) -> Picks:
    """Find particles in a tomogram.

    Parameters
    ----------
    tomogram : Tomogram
        Of either contrast and any voxel spacing; it is inverted and rescaled as needed.
    picker : Picker
    contrast : {"auto", "dark", "light"}
        Of protein against the ice; auto finds out.
    threshold : float or array_like, shape (label,), optional
        Keep particles that score higher; set by the picker by default.
    min_distance : float, optional
        Between particles of one label, in angstrom; half the diameter by default.
    max_particles : int, optional
        Keep this many of each label.
    mask : Volume, data shape (z, y, x), optional
        Particles lie where this is not zero; on the tomogram's grid.
    scores : ScoreMap, optional
        Of an earlier run of the same picker on the same tomogram, to be used again.

    Returns
    -------
    Picks

    Raises
    ------
    ValueError
        If the mask has another shape than the tomogram, or the picker cannot use the tomogram.
    """
    if mask is not None and mask.shape != tomogram.shape:
        sizes = [" x ".join(map(str, volume.shape[::-1])) for volume in (mask, tomogram)]
        raise ValueError(
            f"the mask has {sizes[0]} voxels, the tomogram {sizes[1]} (x y z); they must agree"
        )
    largest = float(np.max(picker.particle_diameter))
    if largest > tomogram.extent.min():
        sides = " x ".join(f"{n:.0f}" for n in tomogram.extent)
        raise ValueError(
            f"a particle of {largest:.0f} Å is larger than the tomogram"
            f" ({sides} Å): check --voxel-spacing and what to look for, or give --diameter"
        )
    sign = choose_contrast(tomogram, contrast)
    if scores is None:
        bright = tomogram.with_data(brighten(tomogram.data, contrast=sign))
        spacing = picker.working_spacing(tomogram.voxel_spacing)
        if spacing != tomogram.voxel_spacing:
            logger.info("rescaling from %.4g to %.4g Å voxels", tomogram.voxel_spacing, spacing)
            bright = rescale(bright, spacing)
        scores = picker.score(bright)
    region = None
    if mask is not None:
        # Mask files seldom state an origin: a mask of the tomogram's size lies on its grid.
        placed = replace(mask, origin=tomogram.origin, voxel_spacing=tomogram.voxel_spacing)
        region = _onto_grid(placed, scores)
    diameter = picker.particle_diameter if scores.diameter is None else scores.diameter
    distance: ArrayLike = np.asarray(diameter) / 2 if min_distance is None else min_distance
    if threshold is None:
        threshold = picker.threshold(scores, min_distance=distance, mask=region)
    find = picker.locate if isinstance(picker, Localiser) else find_peaks
    particles = find(
        scores,
        threshold=threshold,
        min_distance=distance,
        diameter=diameter,
        max_particles=max_particles,
        mask=region,
    )
    if isinstance(picker, Assessor):
        particles = picker.assess(particles, scores, min_distance=distance, mask=region)
    thresholds = np.broadcast_to(np.asarray(threshold, dtype=float), (len(scores.labels),))
    segments, summary = None, {}
    if isinstance(picker, Segmenter):
        segments = picker.segment(scores, threshold=threshold, mask=region)
        summary = picker.summarise(particles, segments)
    return Picks(
        particles=particles,
        scores=scores,
        threshold=thresholds,
        contrast=sign,
        diameter=diameter,
        segments=segments,
        summary=summary,
    )


def choose_contrast(tomogram: Tomogram, contrast: Literal["auto", "dark", "light"]) -> ContrastSign:
    """Find out the contrast of a tomogram and say so, unless it is given.

    Parameters
    ----------
    tomogram : Tomogram
    contrast : {"auto", "dark", "light"}

    Raises
    ------
    ValueError
        If `contrast` is something else.
    """
    if contrast == "dark" or contrast == "light":
        return contrast
    if contrast != "auto":
        raise ValueError(f"contrast must be auto, dark or light; got {contrast!r}")
    found = detect_contrast(tomogram.data)
    if found.confidence < 0.99:
        logger.warning(
            "%s: protein seems %s, with little confidence (%.2f); give --contrast if you know it",
            tomogram.name,
            found.sign,
            found.confidence,
        )
    else:
        logger.info("%s: protein is %s (detected)", tomogram.name, found.sign)
    return found.sign


def _onto_grid(mask: Volume, grid: Volume) -> Volume:
    """Take a mask at the nearest voxel of each place of another grid; outside it is zero."""
    inside = np.asarray(mask.data) != 0
    for axis in range(3):
        place = np.zeros((grid.shape[axis], 3))
        place[:, axis] = np.arange(grid.shape[axis])
        nearest = np.rint(mask.to_index(grid.to_position(place))[:, axis]).astype(int)
        valid = (nearest >= 0) & (nearest < mask.shape[axis])
        inside = np.take(inside, np.clip(nearest, 0, mask.shape[axis] - 1), axis=axis)
        inside &= np.expand_dims(valid, tuple(i for i in range(3) if i != axis))
    return Volume(data=inside, voxel_spacing=grid.voxel_spacing, origin=grid.origin)
