"""What networks of `pick centroid` are taught: a heat map of centres for each kind of particle.

Labels, loss and peaks after tomoCPT (Shah et al., Acta Cryst. D 81 (2025)), lifted to several kinds
of particles of different sizes at once.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from tomoloc.evaluate import evaluate_particles
from tomoloc.evaluate.results import Curve, Result
from tomoloc.localize import find_peaks
from tomoloc.nn.device import computes_in_bfloat16
from tomoloc.nn.monai import MonaiHeatNetwork
from tomoloc.train.frames import STRIDE, ball_window, draw_half_turn, learned_part
from tomoloc.train.losses import center_loss
from tomoloc.train.patches import Patching, Prepared, choose_start, label_number, prepare
from tomoloc.train.predict import predict
from tomoloc.train.validate import mark_inside, run_whole
from tomoloc.types import FloatArray, Particles, Sample, ScoreMap

__all__ = [
    "DEFAULT_THRESHOLD",
    "HeatBatch",
    "HeatScores",
    "HeatTask",
    "draw_heat",
    "heat_loss",
    "make_profile",
    "measure_diameter",
    "measure_volume",
]

Profile = Literal["gaussian", "binary"]
Loss = Literal["entropy", "huber"]

_FRACTIONS = (0.95, 0.5)
"""Of the radius: three standard deviations of the two Gaussians."""
_LEAST_RADIUS = 50.0
"""Å; smaller particles are drawn this large, as the grid has a point every 20 Å or so."""
_CURVED = 10.0
"""Weight of the second derivatives in the loss."""
DEFAULT_THRESHOLD = 0.3
"""Where nothing is known: what the authors of tomoCPT take."""
_NEARLY = 0.05
"""F1 that thresholds may lose to be in the middle."""
_REACH = 80  # voxels around a centre in which its particle's are looked for
_LOWEST = 0.05  # heat from which on peaks are looked at


class HeatBatch(NamedTuple):
    """Patches, and the heat that is true of them.

    Parameters
    ----------
    data : ndarray of float32, shape (b, z, y, x)
    heat : ndarray of float32, shape (b, kind, z / 2, y / 2, x / 2)
    counts : ndarray of bool, shape (b, 1, z / 2, y / 2, x / 2)
        Where the heat is known.
    """

    data: NDArray[np.float32]
    heat: NDArray[np.float32]
    counts: NDArray[np.bool_]


class HeatScores(NamedTuple):
    """Means over kinds of particles.

    Parameters
    ----------
    f1 : float
        Each kind at its best threshold, one to one within half its diameter.
    error : float
        Root mean square distance of the right ones from the true centres, in angstrom.
    error_percent : float
        The same in percent of the diameter.
    """

    f1: float
    error: float
    error_percent: float

    @property
    def score(self) -> float:
        """By which networks are compared: F1."""
        return self.f1


@dataclass(frozen=True, kw_only=True)
class HeatTask:
    """Heat maps of centres, one for each kind of particle.

    Parameters
    ----------
    labels : tuple of str
        Kinds of particles. All others in the samples are background.
    diameters : tuple of float
        Of each kind, in angstrom.
    voxel_spacing : float
        Of the model: samples are brought to it.
    profile : {"gaussian", "binary"}
        See `make_profile`.
    loss : {"entropy", "huber"}
        See `tomoloc.train.losses.center_loss` and `heat_loss`.
    patching : Patching
    """

    labels: tuple[str, ...]
    diameters: tuple[float, ...]
    voxel_spacing: float = 10.0
    profile: Profile = "gaussian"
    loss: Loss = "entropy"
    patching: Patching = field(default_factory=Patching)

    measures = ("level", "curvature")
    scores = HeatScores._fields

    def __post_init__(self) -> None:
        if not self.labels or len(self.labels) != len(self.diameters):
            raise ValueError(
                f"expected a diameter for each of at least one label; got {len(self.diameters)} for"
                f" {len(self.labels)}"
            )
        if min(self.diameters) <= 0:
            raise ValueError(f"diameters must be positive (angstrom); got {min(self.diameters)}")

    def prepare(self, sample: Sample) -> Prepared:
        """Bring a sample to what the network sees."""
        return prepare(sample, voxel_spacing=self.voxel_spacing, least=self.patching.shape)

    def draw(self, ring: Sequence[Prepared], rng: np.random.Generator) -> HeatBatch:
        """Cut a batch."""
        chosen = [ring[int(i)] for i in rng.integers(len(ring), size=self.patching.number)]
        parts = [draw_heat(sample, self, rng) for sample in chosen]
        return HeatBatch(*(np.stack(arrays) for arrays in zip(*parts, strict=True)))

    def run(self, model: nn.Module, data: Tensor) -> Tensor:
        """Logits of the heat."""
        logits: Tensor = getattr(model, "compute", model)(data)
        return logits

    def losses(self, output: Tensor, batch: HeatBatch) -> tuple[Tensor, dict[str, float]]:
        """Compare heat maps."""
        heat = torch.from_numpy(batch.heat).to(output.device)
        counts = torch.from_numpy(batch.counts).to(output.device)
        level, curvature = heat_loss(torch.sigmoid(output.float()), heat, counts)
        if self.loss == "huber":
            loss = level + _CURVED * curvature
        else:
            loss = center_loss(output, heat, counts.expand_as(heat))
        return loss, {"level": level.item(), "curvature": curvature.item()}

    def validate(self, model: nn.Module, samples: Sequence[Prepared], *, device: str) -> HeatScores:
        """Find particles in held-out samples, all of them together."""
        picks, truth = self._find(model, samples, device)
        if not len(truth):
            return HeatScores(np.nan, np.nan, np.nan)
        best = [result.best for result in self._best(picks, truth).values()]
        table = np.array([(b.f1, b.rmse, 100 * b.rmse_diameters) for b in best]).reshape(-1, 3)
        seen = np.isfinite(table)
        means = np.where(seen, table, 0).sum(axis=0) / np.maximum(seen.sum(axis=0), 1)
        _, error, percent = np.where(seen.any(axis=0), means, np.nan).tolist()
        # A kind that was never found has no F1, which is 0.
        f1 = np.nan_to_num(table[:, 0]).sum() / len(truth.labels)
        return HeatScores(float(f1), error, percent)

    def _find(
        self, model: nn.Module, samples: Sequence[Prepared], device: str
    ) -> tuple[Particles, Particles]:
        """Picks of any heat, and the truth, of all samples."""
        found = [
            self.find(model, sample, name=str(number), device=device)
            for number, sample in enumerate(samples)
        ]
        picks, truth = zip(*found, strict=True)
        return Particles.concatenate(list(picks)), Particles.concatenate(list(truth))

    def find(
        self, model: nn.Module, sample: Prepared, *, name: str = "", device: str = "cpu"
    ) -> tuple[Particles, Particles]:
        """Find particles of any heat in a sample; also return the true ones.

        Parameters
        ----------
        model : Module
            Set to inference.
        sample : Prepared
        name : str
            Of the tomogram in both tables.
        device : str
            Where the model is.

        Returns
        -------
        picks, truth : Particles
            From the sample's first voxel.
        """
        if isinstance(model, MonaiHeatNetwork):  # for a whole sample there may be no memory
            heat = predict(model, sample.data, device=device, half=computes_in_bfloat16(device))
        else:
            (heat,) = run_whole(model, sample, device=device)
        scores = self._scores(np.where(mark_inside(sample), heat, 0), name)
        half = np.array(self.diameters) / 2
        picks = find_peaks(scores, threshold=_LOWEST, min_distance=half, shape="gaussian")
        return picks, self._truth(sample, name)

    def choose_thresholds(
        self, model: nn.Module, samples: Sequence[Prepared], *, device: str
    ) -> tuple[float, ...]:
        """Heat of each kind in the middle of where F1 is nearly the best it can be.

        On what was trained on, the best itself is often at the lower end, where other tomograms
        have wrong picks. `DEFAULT_THRESHOLD` where none is found.
        """
        best = self._best(*self._find(model, samples, device))
        found = {label: result.curve for label, result in best.items() if result.best.n_tp}
        return tuple(
            _middle(found[label]) if label in found else DEFAULT_THRESHOLD for label in self.labels
        )

    def _best(self, picks: Particles, truth: Particles) -> dict[str, Result]:
        """Scores of each kind that is there."""
        known = [label for label in self.labels if label in truth.labels]
        if not known or not len(picks):
            return {}
        diameters = dict(zip(self.labels, self.diameters, strict=True))
        found = evaluate_particles(
            picks,
            truth,
            radius={label: d / 2 for label, d in diameters.items()},
            diameter=diameters,
            labels=known,
        )
        return {label: found.labels[label] for label in known}

    def _scores(self, heat: NDArray[np.float32], name: str) -> ScoreMap:
        return ScoreMap(
            data=heat,
            voxel_spacing=STRIDE * self.voxel_spacing,
            origin=np.full(3, (STRIDE - 1) / 2 * self.voxel_spacing),
            labels=self.labels,
            name=name,
        )

    def _truth(self, sample: Prepared, name: str) -> Particles:
        numbers = {label_number(label): label for label in self.labels}
        rows = np.flatnonzero(np.isin(sample.label, list(numbers)))
        return Particles(
            position=sample.index[rows][:, ::-1] * self.voxel_spacing,
            label=np.array([numbers[int(n)] for n in sample.label[rows]], dtype=np.str_),
            tomogram=name,
        )


def _middle(curve: Curve) -> float:
    """Middle of the thresholds around the best one at which F1 is nearly the same."""
    best = int(curve.f_beta.argmax())
    poor = np.flatnonzero(curve.f_beta < curve.f_beta[best] - _NEARLY)
    above, below = poor[poor < best], poor[poor > best]
    upper = curve.threshold[above[-1] + 1 if len(above) else 0]
    lower = curve.threshold[below[0]] if len(below) else _LOWEST
    return float(max((upper + lower) / 2, _LOWEST))


def make_profile(distance: FloatArray, radius: float, *, profile: Profile) -> FloatArray:
    """Heat at distances from a centre.

    Parameters
    ----------
    distance : ndarray
        In any unit.
    radius : float
        Of the particle, in the same unit.
    profile : {"gaussian", "binary"}
        Two Gaussians, cut off at the radius, or a ball of half the radius.

    Returns
    -------
    ndarray
        1 at the centre.

    References
    ----------
    .. [1] Shah et al., TomoCPT, Acta Cryst. D 81 (2025), equations 1 to 5: standard deviations of
       a third of 0.95 and 0.5 of the radius.
    """
    if profile == "binary":
        return np.where(distance <= radius / 2, 1.0, 0.0)
    parts = [np.exp(-0.5 * (3 * distance / (f * radius)) ** 2) for f in _FRACTIONS]
    return np.where(distance <= radius, sum(parts) / len(parts), 0.0)


def measure_diameter(sample: Sample, label: str) -> float | None:
    """Measure the diameter of a kind of particle, where it is known which voxels are of which.

    Parameters
    ----------
    sample : Sample
    label : str

    Returns
    -------
    float or None
        Twice the distance from the centre to the farthest voxel, in angstrom, the median of ten
        whole particles at most. None where the sample does not tell.
    """
    found = [2 * np.linalg.norm(own, axis=1).max() + 1 for own in _bodies(sample, label)]
    return float(np.median(found)) * sample.tomogram.voxel_spacing if found else None


def measure_volume(sample: Sample, label: str) -> float | None:
    """Measure the volume of a kind of particle in cubic angstrom, as `measure_diameter` does."""
    found = [len(own) for own in _bodies(sample, label)]
    return float(np.median(found)) * sample.tomogram.voxel_spacing**3 if found else None


def _bodies(sample: Sample, label: str) -> Iterator[FloatArray]:
    """Voxels zyx from the centre of each of ten whole particles at most."""
    if sample.instances is None:
        return
    particles, data = sample.particles, np.asarray(sample.instances.data)
    visible = np.asarray(particles.extra.get("tomolocVisibleFraction", np.ones(len(particles))))
    rows = np.flatnonzero((np.asarray(particles.label) == label) & (visible.astype(float) > 0.99))
    index = sample.instances.to_index(particles.position)
    for row in rows[:10]:
        # Larger particles than this are not among those that are marked by their centres.
        low = np.maximum(np.rint(index[row]).astype(int) - _REACH, 0)
        block = data[tuple(slice(a, a + 2 * _REACH + 1) for a in low)]
        own = np.argwhere(block == row + 1) + low - index[row]
        if len(own):
            yield own


def draw_heat(
    sample: Prepared, task: HeatTask, rng: np.random.Generator
) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.bool_]]:
    """Cut a patch, turned so that the missing wedge stays, with its heat and where that counts."""
    patching = task.patching
    wanted = np.array([label_number(label) for label in task.labels])
    # All kinds take their turn, also rare ones.
    start = choose_start(sample, wanted[rng.permutation(len(wanted))[:1]], patching, rng)
    grid = tuple(n // STRIDE for n in patching.shape)
    heat = np.zeros((len(wanted), *grid), dtype=np.float32)
    counts = np.zeros((1, *grid), dtype=bool)
    part = learned_part(sample.inside, start // STRIDE, grid, margin=patching.margin)
    counts[0][part] = True
    place = (sample.index - start - (STRIDE - 1) / 2) / STRIDE
    step = STRIDE * task.voxel_spacing
    for kind, (number, diameter) in enumerate(zip(wanted, task.diameters, strict=True)):
        radius = max(diameter / 2, _LEAST_RADIUS) / step
        for row in np.flatnonzero(sample.label == number):
            _draw_particle(heat[kind], place[row], radius, task.profile)
            if not sample.usable[row]:
                _leave_out(counts[0], place[row], radius)
    z, y, x = (slice(a, a + n) for a, n in zip(start, patching.shape, strict=True))
    data = sample.data[z, y, x].astype(np.float32)
    axes = draw_half_turn(rng)
    shifted = tuple(axis + 1 for axis in axes)
    return np.flip(data, axes), np.flip(heat, shifted), np.flip(counts, shifted)


def _draw_particle(
    heat: NDArray[np.float32], place: FloatArray, radius: float, profile: Profile
) -> None:
    if (found := ball_window(place, radius, heat.shape)) is not None:
        part, distance = found
        drawn = make_profile(distance, radius, profile=profile).astype(np.float32)
        np.maximum(heat[part], drawn, out=heat[part])


def _leave_out(counts: NDArray[np.bool_], place: FloatArray, radius: float) -> None:
    if (found := ball_window(place, radius, counts.shape)) is not None:
        part, distance = found
        counts[part] &= distance > radius


def heat_loss(
    predicted: Tensor, heat: Tensor, counts: Tensor, *, width: float = 0.1
) -> tuple[Tensor, Tensor]:
    """Weighted Huber loss of heat maps, and Huber loss of their second derivatives.

    Points with heat weigh as much, all together, as those without, kind by kind.

    Parameters
    ----------
    predicted, heat : Tensor, shape (b, kind, z, y, x)
        From 0 to 1.
    counts : Tensor of bool, shape (b, 1, z, y, x)
        Points that count.
    width : float
        Difference beyond which the loss grows linearly.

    Returns
    -------
    level, curvature : Tensor, shape ()

    References
    ----------
    .. [1] Shah et al., TomoCPT, Acta Cryst. D 81 (2025), equations 6 to 9.
    """
    both = counts.expand_as(heat)
    positive, negative = both & (heat > 0), both & (heat == 0)
    # One particle more or less in a batch must not change the weights without bound.
    least = 8.0
    each = functional.huber_loss(predicted, heat, reduction="none", delta=width) / width
    dims = (0, 2, 3, 4)
    level = (each * positive).sum(dims) / positive.sum(dims).clamp(min=least)
    level = level + (each * negative).sum(dims) / negative.sum(dims).clamp(min=least)
    bent = []
    for axis in (2, 3, 4):
        known = _inner(both, axis)
        said, true = (_second(values, axis)[known] for values in (predicted, heat))
        loss = functional.huber_loss(said, true, reduction="sum", delta=width) / width
        bent.append(loss / known.sum().clamp(min=1))
    return level.mean(), torch.stack(bent).mean()


def _second(values: Tensor, axis: int) -> Tensor:
    n = values.shape[axis]
    middle = values.narrow(axis, 1, n - 2)
    return values.narrow(axis, 0, n - 2) - 2 * middle + values.narrow(axis, 2, n - 2)


def _inner(counts: Tensor, axis: int) -> Tensor:
    n = counts.shape[axis]
    outer = counts.narrow(axis, 0, n - 2) & counts.narrow(axis, 2, n - 2)
    return outer & counts.narrow(axis, 1, n - 2)
