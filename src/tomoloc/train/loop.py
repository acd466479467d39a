"""The training loop: endless samples, a ring of recent ones, checkpoints, validation.

Whatever a step does follows from the seed, its number, and the samples, so that a killed training
goes on from its last checkpoint to the very weights that an unbroken one has.
"""

from __future__ import annotations

import logging
import math
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeVar

import numpy as np
import torch
from torch import nn

from tomoloc.nn.device import computes_in_bfloat16
from tomoloc.nn.encoder import DenseEncoder
from tomoloc.progress import progress
from tomoloc.train.augment import Augmentation, Augmenting, augment, draw_augmentations
from tomoloc.train.checkpoints import Average, Log, as_model, read_checkpoint, write_checkpoint
from tomoloc.train.patches import Patching
from tomoloc.train.similarity import SimilarityTask
from tomoloc.train.team import Team
from tomoloc.types import Sample

__all__ = ["Report", "Scores", "Source", "Task", "TrainSettings", "learning_rate"]
__all__ += ["make_encoder", "read_settings", "train"]

logger = logging.getLogger(__name__)

T = TypeVar("T")

Source = Callable[[int], Iterator[Sample]]
"""Gives the samples from a number on, the same for the same number, without end."""

_RARE = -5.0
"""Logit of a centre's probability at the start."""


class Scores(Protocol):
    """How good a network is on held-out samples: a named tuple of numbers."""

    @property
    def score(self) -> float:
        """By which networks are compared; higher is better."""

    def _asdict(self) -> dict[str, float]: ...


class Task(Protocol):
    """What a network is taught: from samples to a loss."""

    @property
    def measures(self) -> tuple[str, ...]:
        """Names of the numbers that `losses` gives besides."""

    @property
    def scores(self) -> tuple[str, ...]:
        """Names of the numbers of a validation."""

    def prepare(self, sample: Sample) -> Any:
        """Bring a sample to what batches are cut from."""

    def draw(self, ring: Sequence[Any], rng: np.random.Generator) -> Any:
        """Cut a batch; its `data` is an array of shape (b, z, y, x)."""

    def run(self, model: nn.Module, data: torch.Tensor) -> Any:
        """What the network says of a batch's data, (b, 1, z, y, x); in half precision."""

    def losses(self, output: Any, batch: Any) -> tuple[torch.Tensor, dict[str, float]]:
        """How far that is from the truth of the batch; in full precision."""

    def validate(self, model: nn.Module, samples: Sequence[Any], *, device: str) -> Scores:
        """Score a network on samples that were prepared."""


@dataclass(frozen=True, kw_only=True)
class TrainSettings:
    """How a network is trained.

    Parameters
    ----------
    steps : int
        Batches. A training that has come to its end can be prolonged.
    learning_rate, weight_decay : float
        Of AdamW. The rate stays the same until it falls at the end.
    early : float
        Rate of the network's early layers (its `early_parameters`), relative to the others'.
    warm_up : int
        Steps in which the rate rises.
    decay : float
        Last fraction of the steps, in which the rate falls to 0.
    average : float
        What stays of the moving average of the weights at each step.
    temperature : float
        Of the contrastive loss.
    center_weight : float
        Of the centre map's loss.
    ring : int
        How many of the newest samples batches are cut from.
    first : int
        How many samples there are at the start.
    steps_per_sample : float
        Steps after which the next sample replaces the oldest.
    voxel_spacing : float
        Of the model: samples are brought to it.
    patching : Patching
    augmenting : Augmenting
    seed : int
    validate_every : int
        Steps from one validation to the next.
    patience : int
        Validations without a better F1 after which the training ends; 0 goes on to the end.
    checkpoint_minutes : float
    """

    steps: int = 10_000
    learning_rate: float = 1e-3
    weight_decay: float = 0.01
    early: float = 1.0
    warm_up: int = 200
    decay: float = 0.2
    average: float = 0.998
    temperature: float = 0.06
    center_weight: float = 1.0
    ring: int = 48
    first: int = 8
    steps_per_sample: float = 2.0
    voxel_spacing: float = 10.0
    patching: Patching = field(default_factory=Patching)
    augmenting: Augmenting = field(default_factory=Augmenting)
    seed: int = 0
    validate_every: int = 500
    patience: int = 0
    checkpoint_minutes: float = 3.0

    def __post_init__(self) -> None:
        for name in ("steps", "ring", "first", "validate_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1; got {getattr(self, name)}")
        if not (self.learning_rate > 0 and self.voxel_spacing > 0 and self.steps_per_sample > 0):
            raise ValueError("learning_rate, voxel_spacing and steps_per_sample must be positive")
        if self.early < 0:
            raise ValueError(f"early must not be negative; got {self.early}")
        if not (0 <= self.decay <= 1 and 0 <= self.average < 1):
            raise ValueError("decay must be from 0 to 1, and average from 0 to below 1")

    def samples_at(self, step: int) -> int:
        """How many samples have been taken when a step begins."""
        return self.first + int(step / self.steps_per_sample)


def read_settings(mapping: Mapping[str, Any]) -> TrainSettings:
    """Make settings from a mapping, as TOML has it, with tables for patching and augmenting.

    Raises
    ------
    ValueError
        If a name is unknown or a value is wrong.
    """
    values = dict(mapping)
    for name, kind in (("patching", Patching), ("augmenting", Augmenting)):
        if name in values:
            values[name] = _fill(kind, values[name])
    return _fill(TrainSettings, values)


def _fill(kind: type[T], values: Mapping[str, Any]) -> T:
    known = [item.name for item in fields(kind)]  # type: ignore[arg-type]
    for name in values:
        if name not in known:
            raise ValueError(f"{name} is no setting of training; known are {', '.join(known)}")
    return kind(**{k: tuple(v) if isinstance(v, list) else v for k, v in values.items()})


class Report(NamedTuple):
    """Where a training stands: steps done, samples seen, and the newest and best validation."""

    step: int
    samples: int
    validation: Scores | None
    best_f1: float
    finished: bool

    def to_dict(self) -> dict[str, float]:
        """Return the numbers that are known, by name."""
        values: dict[str, float] = {"steps": self.step, "samples": self.samples}
        scores = self.validation._asdict() if self.validation is not None else {}
        return values | {name: round(v, 4) for name, v in scores.items() if math.isfinite(v)}


def make_encoder(*, seed: int, **settings: Any) -> DenseEncoder:
    """Make a new network, which expects few centres.

    Parameters
    ----------
    seed : int
        Of its weights.
    **settings
        Of `DenseEncoder`.

    Returns
    -------
    DenseEncoder
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        encoder = DenseEncoder(**settings)
    # Otherwise the first hundreds of steps do little but learn how rare they are.
    if encoder.heads.bias is not None:
        nn.init.constant_(encoder.heads.bias[-1:], _RARE)
    return encoder


def learning_rate(step: int, settings: TrainSettings) -> float:
    """Rate at a step: a rise, a plateau, and a fall as 1 - sqrt [1]_.

    The plateau does not depend on the number of steps, so that a training can be prolonged.

    References
    ----------
    .. [1] Hägele et al., Scaling laws and compute-optimal training beyond fixed training
       durations (2024), arXiv:2405.18392.
    """
    rise = min(1.0, (step + 1) / max(settings.warm_up, 1))
    falling = settings.decay * settings.steps
    left = settings.steps - step
    fall = 1 - math.sqrt(1 - left / falling) if left < falling else 1.0
    return settings.learning_rate * rise * fall


def train(
    model: nn.Module,
    source: Source,
    *,
    settings: TrainSettings,
    folder: Path,
    task: Task | None = None,
    validation: Sequence[Sample] = (),
    device: str = "cpu",
    team: Team | None = None,
    publish: Callable[[nn.Module, Report], None] | None = None,
) -> nn.Module:
    """Train a network, or go on with a training.

    Parameters
    ----------
    model : Module
        Takes voxels (b, 1, z, y, x). It is moved to the device and changed.
    source : callable
        ``source(number)`` gives an iterator of samples from that number on.
    settings : TrainSettings
    folder : Path
        Of the training's own files: checkpoint.pt, steps.csv, validation.csv. With a checkpoint
        in it, the training goes on from there; settings that differ from its own count from now.
    task : Task, optional
        What is taught; by default, what a `tomoloc.nn.encoder.DenseEncoder` needs.
    validation : sequence of Sample
        Held out.
    device : str
    team : Team, optional
        Of processes that train together: `device` is that of this one. Each cuts batches of its
        own; samples should differ, too. The first validates, publishes and writes.
    publish : callable, optional
        Is given the averaged network, set to inference, and a `Report`, after each validation and
        at the end.

    Returns
    -------
    Module
        The averaged network, set to inference.

    Raises
    ------
    ValueError
        If the samples come to an end, the checkpoint is damaged or of another network, or the
        loss is no longer a number.
    OSError
        If the folder cannot be written to.
    """
    if task is None:
        task = SimilarityTask(
            voxel_spacing=settings.voxel_spacing,
            patching=settings.patching,
            temperature=settings.temperature,
            center_weight=settings.center_weight,
            seed=settings.seed,
        )
    team = team or Team(device=device)
    training = _Training(model, task, settings, folder, team)
    training.resume()
    held_out = [task.prepare(sample) for sample in validation if team.rank == 0]
    end = training.step if training.has_stalled else settings.steps
    left = range(training.step, end)
    with closing(_ahead(_feed(source, task, settings, left, rank=team.rank))) as feed:
        for food, waited in progress(feed, "training", total=len(left)):
            training.learn(food, waited=waited)
            last = training.step == settings.steps
            if last or training.step % settings.validate_every == 0:
                scores = training.validate(held_out) if held_out else None
                stop = team.tell(last or training.has_stalled)
                report = Report(training.step, food.samples, scores, training.best, stop)
                if publish is not None and team.rank == 0:
                    publish(training.averaged(), report)
                if stop:
                    break
            training.save(settings.checkpoint_minutes)
    training.save(0)
    return training.averaged()


class _Food(NamedTuple):
    """What a step learns from, and how many samples have been taken for it."""

    batch: Any
    changes: list[Augmentation]
    samples: int


def _feed(
    source: Source, task: Task, settings: TrainSettings, steps: range, *, rank: int
) -> Generator[_Food]:
    """Take samples when they are due, and draw a batch for each step."""
    ring: deque[Any] = deque(maxlen=settings.ring)
    made = max(0, settings.samples_at(steps.start) - settings.ring)
    samples = source(made) if steps else iter(())
    try:
        for step in steps:
            while made < settings.samples_at(step):
                ring.append(task.prepare(_next(samples)))
                made += 1
            rng = np.random.default_rng([settings.seed, step, *([rank] if rank else [])])
            batch = task.draw(ring, rng)
            changes = draw_augmentations(len(batch.data), augmenting=settings.augmenting, rng=rng)
            yield _Food(batch, changes, made)
    finally:
        if isinstance(samples, Generator):
            samples.close()


def _ahead(feed: Generator[_Food]) -> Generator[tuple[_Food, float]]:
    """Make the food of the next step in a thread, and tell how long each one was waited for."""
    with closing(feed), ThreadPoolExecutor(1) as pool:
        coming = pool.submit(next, feed, None)
        while True:
            started = time.monotonic()
            food = coming.result()
            if food is None:
                return
            coming = pool.submit(next, feed, None)
            yield food, time.monotonic() - started


class _Training:
    """The state of a training between steps."""

    def __init__(
        self, model: nn.Module, task: Task, settings: TrainSettings, folder: Path, team: Team
    ) -> None:
        self.task, self.settings, self.folder = task, settings, folder
        self.team, self.device = team, team.device
        # mypy: torch's types forget that modules can change their layout
        self.model = model.to(self.device).to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
        self.optimizer = torch.optim.AdamW(_group(model, settings), lr=settings.learning_rate)
        self.average = Average(self.model, settings.average)
        self.step, self.best, self.stale = 0, 0.0, 0
        self.saved = time.monotonic()

    def resume(self) -> None:
        """Take up the folder's checkpoint, if there is one, and open the logs."""
        self.team.meet()  # now nothing of an older training is left that should not be
        content = read_checkpoint(self.folder, device=self.device)
        self.team.meet()  # reading also removes drafts: of the first, none may be there yet
        if content is not None:
            try:
                self.model.load_state_dict(content["model"])
                self.optimizer.load_state_dict(content["optimizer"])
            except (RuntimeError, ValueError) as error:
                raise ValueError(
                    f"{self.folder} holds the checkpoint of another network; choose another"
                    " folder or delete it"
                ) from error
            self.average.state = content["average"]
            self.step, self.best, self.stale = content["step"], content["best"], content["stale"]
            self._say_changes(content["settings"])
        self.shared = self.team.share(self.model)
        if self.team.rank:
            return
        columns = ("step", "loss", *self.task.measures)
        columns += ("learning_rate", "gradient", "seconds", "waited")
        self.log = Log(self.folder / "steps.csv", columns, before=self.step)
        columns = ("step", *self.task.scores, "seconds")
        self.validations = Log(self.folder / "validation.csv", columns, before=self.step + 1)

    @property
    def has_stalled(self) -> bool:
        """Whether validation has not become better for too long."""
        return 0 < self.settings.patience <= self.stale

    def _say_changes(self, before: dict[str, Any]) -> None:
        now = asdict(self.settings)
        changed = [
            f"{key} {before.get(key)} -> {now[key]}" for key in now if now[key] != before.get(key)
        ]
        logger.info(
            "%s: going on after step %d%s", self.folder, self.step,
            f"; changed: {', '.join(changed)}" if changed else "",
        )  # fmt: skip

    def learn(self, food: _Food, *, waited: float) -> None:
        """Make one step."""
        settings, started = self.settings, time.monotonic()
        batch = food.batch
        rate = learning_rate(self.step, settings)
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group.get("relative", 1.0)
        self.model.train()
        with torch.no_grad():
            data = augment(torch.from_numpy(batch.data).to(self.device), food.changes)[:, None]
        data = data.contiguous(memory_format=torch.channels_last_3d)
        kind, half = torch.device(self.device).type, computes_in_bfloat16(self.device)
        with torch.autocast(kind, dtype=torch.bfloat16, enabled=half):
            output = self.task.run(self.shared, data)
        loss, measures = self.task.losses(output, batch)
        if not self.team.agree(bool(torch.isfinite(loss))):
            raise ValueError(
                f"the loss is no number at step {self.step}: go on from the last checkpoint with a"
                " lower learning rate"
            )
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        gradient = nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.average.update(self.model, self.step)
        if self.team.rank == 0:
            self.log.add(
                step=self.step,
                loss=loss.item(),
                **measures,
                learning_rate=rate,
                gradient=gradient.item(),
                seconds=time.monotonic() - started,
                waited=waited,
            )
        self.step += 1

    def validate(self, samples: Sequence[Any]) -> Scores:
        """Score the averaged network; remember how long it has not become better."""
        started = time.monotonic()
        scores = self.task.validate(self.averaged(), samples, device=self.device)
        self.validations.add(step=self.step, **scores._asdict(), seconds=time.monotonic() - started)
        said = ", ".join(f"{k} {v:.3f}" for k, v in scores._asdict().items())
        logger.info("step %d: %s", self.step, said)
        better = scores.score > self.best
        self.best = max(self.best, scores.score) if better else self.best
        self.stale = 0 if better else self.stale + 1
        return scores

    def averaged(self) -> nn.Module:
        """The averaged network, set to inference."""
        return as_model(self.model, self.average.state)

    def save(self, minutes: float) -> None:
        """Write a checkpoint if the last one is older than that."""
        if self.team.rank or time.monotonic() - self.saved < 60 * minutes:
            return
        write_checkpoint(
            self.folder,
            {
                "step": self.step,
                "best": self.best,
                "stale": self.stale,
                "settings": asdict(self.settings),
                "model": self.model.state_dict(),
                "average": self.average.state,
                "optimizer": self.optimizer.state_dict(),
            },
        )
        self.saved = time.monotonic()


def _group(model: nn.Module, settings: TrainSettings) -> list[dict[str, Any]]:
    """Sort a network's weights: biases and normalisations are not drawn to zero."""
    find = getattr(model, "early_parameters", None)
    early = {id(p) for p in find()} if settings.early != 1 and find is not None else set()
    groups = []
    for relative, own in ((1.0, False), (settings.early, True)):
        members = [p for p in model.parameters() if (id(p) in early) == own]
        for decay, ndims in ((settings.weight_decay, True), (0.0, False)):
            chosen = [p for p in members if (p.ndim > 1) == ndims]
            groups.append({"params": chosen, "weight_decay": decay, "relative": relative})
    return groups[:2] if not early else groups


def _next(samples: Iterator[Sample]) -> Sample:
    sample = next(samples, None)
    if sample is None:
        raise ValueError("training needs samples without end; the source has come to its own")
    return sample
