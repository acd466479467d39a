"""What the commands of `tomoloc train` share."""

from __future__ import annotations

import logging
import shutil
import sys
import tomllib
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
from cyclopts import Parameter

from tomoloc.cli.sources import Data, read_annotated, read_data

if TYPE_CHECKING:
    from torch import nn

    from tomoloc.nn.stored import StoredModel
    from tomoloc.train.loop import Report, Task, TrainSettings
    from tomoloc.train.patches import Patching
    from tomoloc.train.team import Team
    from tomoloc.types import Sample

__all__ = ["JUDGED", "RING", "Several", "check_numbers", "find_start", "fine_settings"]
__all__ += ["is_distractor", "own_seed", "read_diameters", "read_sources", "score_lines"]
__all__ += ["start_team", "take_up", "teach", "with_ranges"]

logger = logging.getLogger(__name__)

Several = Annotated[list[str], Parameter(consume_multiple=True, negative="")]

JUDGED = 3
"""Samples that thresholds are chosen on, where none are held out."""
_APART = 1_000_003
"""From the seed of one process to that of the next."""
RING = 48
"""Samples that batches are cut from, at most."""


def check_numbers(*, jobs: int, patience: int, seed: int) -> None:
    """Refuse numbers that make no sense."""
    if jobs < 0 or patience < 0 or seed < 0:
        raise ValueError("--jobs, --patience and --seed must not be negative")


def read_sources(
    data: Sequence[str] | None,
    validation: Sequence[str] | None,
    *,
    particles: Path | None,
    tomograms: Sequence[Path] | None,
    tomogram_spacing: float | None,
    contrast: Literal["auto", "dark", "light"],
    ratio: Sequence[int] | None,
    seed: int,
    jobs: int,
    team: Team,
) -> Data:
    """Find what a network is to learn from: samples, recipes and marked tomograms."""
    if (particles is None) != (tomograms is None):
        raise ValueError("--particles and --tomograms belong together: give both")
    annotated: list[Sample] = []
    if particles is not None and tomograms is not None:
        annotated = read_annotated(
            particles, tomograms, voxel_spacing=tomogram_spacing, contrast=contrast
        )
    return read_data(
        data or [], validation, seed=own_seed(seed, team), jobs=jobs, apart=False,
        annotated=annotated, ratio=ratio,
    )  # fmt: skip


def own_seed(seed: int, team: Team) -> int:
    """Seed of the samples of a process: none simulates what another does."""
    return seed + _APART * team.rank


def find_start(word: str) -> StoredModel | None:
    """Load the model to start from, if there is to be one."""
    from tomoloc.nn.stored import find_model, load_model

    return None if word == "none" else load_model(find_model(word))


def with_ranges(model: StoredModel, judged: Sequence[Sample]) -> StoredModel:
    """Tell the ranges of a model's activations, so that it is fast on processors made for int8."""
    from tomoloc.features.learned import RANGES
    from tomoloc.nn.encoder import DenseNetwork
    from tomoloc.nn.int8 import measure_ranges
    from tomoloc.nn.unet import SegmentationNetwork
    from tomoloc.train.frames import frame

    network = model.network
    if not judged or not isinstance(network, DenseNetwork | SegmentationNetwork):
        return model
    if isinstance(network, SegmentationNetwork) and not network.is_own:
        return model
    least = (network.period,) * 3
    volumes = (
        frame(sample.tomogram, voxel_spacing=model.voxel_spacing, least=least).data
        for sample in judged[:JUDGED]
    )
    return replace(model, config={**model.config, RANGES: measure_ranges(network, volumes)})


def is_distractor(sample: Sample, label: str) -> bool:
    """Tell whether all particles of a label are there to be left alone."""
    particles = sample.particles
    role = np.asarray(particles.extra.get("tomolocRole", np.full(len(particles), "")))
    return bool((role[np.asarray(particles.label) == label] == "distractor").all())


def read_diameters(words: list[str] | None, names: Sequence[str]) -> dict[str, float]:
    """Read --diameter: one number for all, or one for each label."""
    found: dict[str, float] = {}
    for word in words or ():
        name, _, number = word.rpartition("=")
        try:
            value = float(number)
        except ValueError:
            value = 0.0
        if not 0 < value < 1e5 or (name and name not in names):
            raise ValueError(
                f"--diameter takes a number of Å, or LABEL=NUMBER with {' or '.join(names)}; got"
                f" {word}"
            )
        found |= {name: value} if name else dict.fromkeys(names, value)
    return found


def fine_settings(
    training: Data, *, voxel_spacing: float, patching: Patching, **given: Any
) -> TrainSettings:
    """Settings for fine-tuning: few samples are all kept, new ones replace the oldest."""
    from tomoloc.train.loop import TrainSettings

    few = 0 < training.number <= RING
    return TrainSettings(
        **given,
        voxel_spacing=voxel_spacing,
        patching=patching,
        warm_up=30,
        decay=0.5,
        average=0.98,
        ring=training.number if few else RING,
        first=training.number if few else 6,
        steps_per_sample=1e9 if few else 3.0,
        validate_every=100,
    )


def score_lines(report: Report) -> list[str]:
    """Write the scores of the last validation as rows of a table."""
    if report.validation is None:
        return ["\nNothing was held out, so that it is not known how good it is."]
    values = report.validation._asdict().items()
    return ["\n| on held-out samples | |", "|---|---|", *(f"| {k} | {v:.3f} |" for k, v in values)]


def start_team(devices: int, device: str, output: Path) -> Team:
    """Start the processes that train together, and make sure that the first can write."""
    from tomoloc.atomic import check_writable
    from tomoloc.nn.device import keep_memory, resolve_device
    from tomoloc.train.team import gather

    check_writable(output.parent)
    keep_memory()
    team = gather(devices, resolve_device(device))
    if team.rank:  # the first speaks for all
        logging.getLogger("tomoloc").setLevel(logging.ERROR)
    return team


def teach(
    network: nn.Module,
    training: Data,
    *,
    settings: TrainSettings,
    task: Task | None,
    output: Path,
    own: Path,
    team: Team,
    publish: Callable[[nn.Module, Report], None],
) -> None:
    """Train a network, and print where the model is."""
    from tomoloc.progress import show_progress
    from tomoloc.train.loop import train

    if not training.held_out:
        logger.warning(
            "nothing is held out to tell how good the model is and to set thresholds by:"
            " --validation helps"
        )
    with show_progress(sys.stderr.isatty() and team.rank == 0):
        train(
            network,
            training.source,
            settings=settings,
            folder=own,
            task=task,
            validation=training.held_out,
            device=team.device,
            team=team,
            publish=publish,
        )
    if team.rank == 0:
        sys.stdout.write(f"{output}\n")


def take_up(
    output: Path, own: Path, record: dict[str, Any], *, overwrite: bool, team: Team
) -> None:
    """Make sure that what is there was made by the same command; note what makes it."""
    if team.rank:
        return
    import tomli_w

    from tomoloc.atomic import writing

    path = own / "record.toml"
    if overwrite:
        for folder in (own, output):
            if folder.exists() and not (path.is_file() or (folder / "config.toml").is_file()):
                raise FileExistsError(f"{folder} exists and is no model; choose another folder")
        for folder in (output, own):
            shutil.rmtree(folder, ignore_errors=True)
    if path.is_file():
        made = tomllib.loads(path.read_text("utf-8"))
        other = [name for name in record if made.get(name) != record[name]]
        if other:
            raise ValueError(
                f"{output} was trained otherwise ({other[0]} {made.get(other[0])!r}, now"
                f" {record[other[0]]!r}); choose another folder or give --overwrite"
            )
        return
    if output.exists():
        raise FileExistsError(f"{output} exists; choose another folder or give --overwrite")
    with writing(path) as draft:
        draft.write_text(tomli_w.dumps(record), "utf-8")
