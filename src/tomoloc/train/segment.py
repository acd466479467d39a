"""What networks of `pick segmentation` are taught: the class of every voxel."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from tomoloc.train.frames import (
    Framed,
    ball_window,
    draw_half_turn,
    frame,
    is_usable,
    learned_part,
    nearest_values,
)
from tomoloc.train.losses import entropy_loss, tversky_loss
from tomoloc.train.patches import Patching, choose_start
from tomoloc.train.predict import predict
from tomoloc.types import FloatArray, Sample

__all__ = [
    "UNKNOWN",
    "DiceScores",
    "SegmentBatch",
    "SegmentTask",
    "Segmented",
    "draw_segments",
    "find_classes",
    "mark_class",
]

SegmentLoss = Literal["combined", "tversky", "dice", "entropy"]
Classes = NDArray[np.uint8]

UNKNOWN = 255
"""Number of voxels of which it is not known what they are."""

_PLACES = 400
"""Of each class, around which patches are laid."""
_THRESHOLDS = (*(n / 20 for n in range(4, 19)), 0.93, 0.95, 0.97, 0.98)


@dataclass(frozen=True, eq=False, kw_only=True)
class Segmented:
    """What is kept of a sample while it is trained on.

    Parameters
    ----------
    data : ndarray of float16, shape (z, y, x)
        As of `tomoloc.train.patches.Framed`.
    classes : ndarray of uint8, shape (z, y, x)
        0 for background, a kind's number from 1, or `UNKNOWN`.
    index : ndarray, shape (n, 3)
        Some voxels zyx of each class.
    label : ndarray of int, shape (n,)
        Their classes.
    inside : tuple of (int, int)
        First voxel and last one plus one of the tomogram itself along z, y and x.
    """

    data: NDArray[np.float16]
    classes: Classes
    index: FloatArray
    label: NDArray[np.integer]
    inside: tuple[tuple[int, int], ...]

    @property
    def usable(self) -> NDArray[np.bool_]:
        """Which of the voxels count: all."""
        return np.ones(len(self.label), dtype=bool)


class SegmentBatch(NamedTuple):
    """Patches, and the classes that are true of them.

    Parameters
    ----------
    data : ndarray of float32, shape (b, z, y, x)
    classes : ndarray of uint8, shape (b, z, y, x)
        `UNKNOWN` where nothing can be learned.
    """

    data: NDArray[np.float32]
    classes: Classes


@dataclass(frozen=True)
class DiceScores:
    """How well the classes of held-out tomograms were found.

    Parameters
    ----------
    dice : mapping of str to float
        Of each class, mean over the tomograms that have it or in which it was found; not a number
        where there is none.
    """

    dice: dict[str, float]

    @property
    def score(self) -> float:
        """By which networks are compared: the mean over classes."""
        known = [value for value in self.dice.values() if np.isfinite(value)]
        return float(np.mean(known)) if known else np.nan

    def _asdict(self) -> dict[str, float]:
        return {"dice": self.score, **{f"dice {name}": value for name, value in self.dice.items()}}


@dataclass(frozen=True, kw_only=True)
class SegmentTask:
    """The class of every voxel.

    Parameters
    ----------
    labels : tuple of str
        Kinds: particles, their parts, filaments, membranes or whatever else samples have labels
        of. All else is background.
    diameters : tuple of float
        Of each, in angstrom: particles of samples that have no label volume become balls.
    voxel_spacing : float
        Of the model: samples are brought to it.
    loss : {"combined", "tversky", "dice", "entropy"}
        See `tomoloc.train.losses`. The combined one is the sum of Tversky's and the entropy: with
        the former alone, a class that is not found at first may never be.
    balance : bool
        Whether every class counts alike, however few voxels it has.
    patching : Patching
        Its margin is in voxels here.
    """

    labels: tuple[str, ...]
    diameters: tuple[float, ...]
    voxel_spacing: float = 10.0
    loss: SegmentLoss = "combined"
    balance: bool = True
    patching: Patching = field(default_factory=Patching)

    measures = ("accuracy",)

    def __post_init__(self) -> None:
        n = len(self.labels)
        if not 0 < n < UNKNOWN or n != len(self.diameters) or n != len(set(self.labels)):
            raise ValueError(
                f"expected from 1 to {UNKNOWN - 1} different labels and a diameter for each; got"
                f" {n} and {len(self.diameters)}"
            )
        if min(self.diameters) <= 0:
            raise ValueError(f"diameters must be positive (angstrom); got {min(self.diameters)}")

    @property
    def scores(self) -> tuple[str, ...]:
        """Names of the numbers of a validation."""
        return ("dice", *(f"dice {label}" for label in self.labels))

    def prepare(self, sample: Sample) -> Segmented:
        """Bring a sample to what the network sees."""
        framed = frame(sample.tomogram, voxel_spacing=self.voxel_spacing, least=self.patching.shape)
        classes = np.pad(find_classes(sample, self, framed), framed.pads)
        index, label = [], []
        for number in range(1, len(self.labels) + 1):
            places = np.flatnonzero(classes == number)
            chosen = places[np.linspace(0, len(places) - 1, min(len(places), _PLACES)).astype(int)]
            index.append(np.stack(np.unravel_index(chosen, classes.shape), axis=1))
            label.append(np.full(len(chosen), number))
        return Segmented(
            data=framed.data,
            classes=classes,
            index=np.concatenate(index).astype(np.float32),
            label=np.concatenate(label),
            inside=framed.inside,
        )

    def draw(self, ring: Sequence[Segmented], rng: np.random.Generator) -> SegmentBatch:
        """Cut a batch: some patches lie anywhere, the others around a class, each in its turn."""
        number = self.patching.number
        anywhere = round(number * (1 - self.patching.positive))
        turns = np.resize(rng.permutation(len(self.labels)) + 1, number - anywhere).tolist()
        parts = []
        for wanted in [*turns, *[0] * anywhere]:
            having = [one for one in ring if wanted in one.label] if wanted else list(ring)
            choice = having or list(ring)
            sample = choice[int(rng.integers(len(choice)))]
            parts.append(draw_segments(sample, wanted, patching=self.patching, rng=rng))
        return SegmentBatch(*(np.stack(arrays) for arrays in zip(*parts, strict=True)))

    def run(self, model: nn.Module, data: Tensor) -> Tensor:
        """Logits of the classes."""
        logits: Tensor = getattr(model, "compute", model)(data)
        return logits

    def losses(self, output: Tensor, batch: SegmentBatch) -> tuple[Tensor, dict[str, float]]:
        """Compare classes."""
        truth = torch.from_numpy(batch.classes).to(output.device).long()
        counts = truth != UNKNOWN
        truth = torch.where(counts, truth, 0)
        logits = output.float()
        if self.loss == "entropy":
            loss = entropy_loss(logits, truth, counts, balance=self.balance)
        else:
            weights = (
                {"false_positives": 0.5, "false_negatives": 0.5} if self.loss == "dice" else {}
            )
            probability = torch.softmax(logits, dim=1)
            loss = tversky_loss(probability, truth, counts, balance=self.balance, **weights)
            if self.loss == "combined":
                loss = loss + entropy_loss(logits, truth, counts, balance=self.balance)
        right = (logits.detach().argmax(dim=1) == truth)[counts]
        return loss, {"accuracy": float(right.float().mean()) if len(right) else np.nan}

    def validate(
        self, model: nn.Module, samples: Sequence[Segmented], *, device: str
    ) -> DiceScores:
        """Compare the classes of held-out tomograms, one by one."""
        table = np.full((len(samples), len(self.labels)), np.nan)
        for row, sample in enumerate(samples):
            found = self.find(model, sample, device=device)
            known = sample.classes != UNKNOWN
            for kind in range(len(self.labels)):
                said, true = found == kind + 1, sample.classes == kind + 1
                total = np.count_nonzero(said & known) + np.count_nonzero(true)
                if total:
                    table[row, kind] = 2 * np.count_nonzero(said & true) / total
        seen = np.isfinite(table)
        means = np.where(seen, table, 0).sum(axis=0) / np.maximum(seen.sum(axis=0), 1)
        means = np.where(seen.any(axis=0), means, np.nan)
        return DiceScores(dict(zip(self.labels, means.tolist(), strict=True)))

    def choose_thresholds(
        self, model: nn.Module, samples: Sequence[Segmented], *, device: str
    ) -> tuple[float, ...]:
        """Choose for each class the probability above which Dice is the best; 0.5 if it is absent.

        Parameters
        ----------
        model : Module
            Set to inference.
        samples : sequence of Segmented
        device : str
            Where the model is.
        """
        both, total = np.zeros((2, len(self.labels), len(_THRESHOLDS)))
        for sample in samples:
            probability = predict(model, sample.data, device=device, half=device != "cpu")
            inside = np.zeros(sample.data.shape, dtype=bool)
            inside[tuple(slice(*limits) for limits in sample.inside)] = True
            known = inside & (sample.classes != UNKNOWN)
            for kind in range(len(self.labels)):
                true = sample.classes == kind + 1
                for number, threshold in enumerate(_THRESHOLDS):
                    said = mark_class(probability, kind, threshold=threshold) & known
                    both[kind, number] += np.count_nonzero(said & true)
                    total[kind, number] += np.count_nonzero(said) + np.count_nonzero(true)
        dice = 2 * both / np.maximum(total, 1)
        best = [_THRESHOLDS[int(row.argmax())] if row.any() else 0.5 for row in dice]
        return tuple(best)

    def find(self, model: nn.Module, sample: Segmented, *, device: str = "cpu") -> Classes:
        """Tell the most probable class of each voxel of a sample.

        Parameters
        ----------
        model : Module
            Set to inference.
        sample : Segmented
        device : str
            Where the model is.

        Returns
        -------
        ndarray of uint8, shape (z, y, x)
            0 outside the tomogram.
        """
        probability = predict(model, sample.data, device=device, half=device != "cpu")
        found = np.zeros(sample.data.shape, dtype=np.uint8)
        inside = tuple(slice(*limits) for limits in sample.inside)
        best = probability[:, *inside]
        rest = 1 - best.sum(axis=0)
        found[inside] = np.where(best.max(axis=0) > rest, best.argmax(axis=0) + 1, 0)
        return found


def find_classes(sample: Sample, task: SegmentTask, framed: Framed) -> Classes:
    """Tell what is true of each voxel of a rescaled tomogram.

    Parameters
    ----------
    sample : Sample
        Where it has a label volume, that counts: parts of a complex that have no class of their
        own belong to it. Otherwise, particles are balls, and those of which little is seen unknown.
    task : SegmentTask
    framed : Framed
        The sample's tomogram.

    Returns
    -------
    ndarray of uint8, shape of the tomogram
    """
    numbers = {label: number for number, label in enumerate(task.labels, start=1)}
    if sample.labels is not None:
        wholes = dict(sample.summary.get("parts", {}))
        limit = max([*sample.legend, int(sample.labels.data.max())]) + 1
        table = np.zeros(limit, dtype=np.uint8)
        for value, name in sample.legend.items():
            table[value] = numbers.get(name, numbers.get(wholes.get(name, ""), 0))
        return table[nearest_values(sample.labels, framed.tomogram)]
    classes = np.zeros(framed.tomogram.shape, dtype=np.uint8)
    index = framed.tomogram.to_index(sample.particles.position).reshape(-1, 3)
    names, usable = np.asarray(sample.particles.label), is_usable(sample)
    for row in np.flatnonzero(np.isin(names, task.labels)):
        number = numbers[str(names[row])]
        radius = task.diameters[number - 1] / 2 / task.voxel_spacing
        if (found := ball_window(index[row], radius, classes.shape)) is not None:
            part, distance = found
            classes[part][distance <= radius] = number if usable[row] else UNKNOWN
    return classes


def mark_class(
    probability: NDArray[np.floating], kind: int, *, threshold: float
) -> NDArray[np.bool_]:
    """Tell which voxels are of a class: it is the most likely one, and likely enough.

    Parameters
    ----------
    probability : ndarray, shape (kinds, z, y, x)
    kind : int
        From 0 on.
    threshold : float
        Its probability is above. Whether background is more likely does not matter.

    Returns
    -------
    ndarray of bool, shape (z, y, x)
    """
    own = np.asarray(probability[kind]) > threshold
    # From a half on, nothing else can be more likely.
    for other in range(len(probability)) if threshold < 0.5 else ():
        if other != kind:
            beats = np.greater if other < kind else np.greater_equal
            own &= beats(probability[kind], probability[other])
    return own


def draw_segments(
    sample: Segmented, wanted: int, *, patching: Patching, rng: np.random.Generator
) -> tuple[NDArray[np.float32], Classes]:
    """Cut a patch, turned so that the missing wedge stays, with its classes.

    Parameters
    ----------
    sample : Segmented
    wanted : int
        A class that lies in the patch where the sample has it; with 0 the patch lies anywhere.
    patching : Patching
    rng : numpy.random.Generator

    Returns
    -------
    data : ndarray of float32, shape of a patch
    classes : ndarray of uint8, shape of a patch
    """
    around = replace(patching, positive=1.0 if wanted else 0.0)
    start = choose_start(sample, np.array([wanted]), around, rng)
    place = tuple(slice(a, a + n) for a, n in zip(start, patching.shape, strict=True))
    classes = np.full(patching.shape, UNKNOWN, dtype=np.uint8)
    part = learned_part(sample.inside, start, patching.shape, margin=patching.margin)
    classes[part] = sample.classes[place][part]
    axes = draw_half_turn(rng)
    return np.flip(sample.data[place].astype(np.float32), axes), np.flip(classes, axes)
