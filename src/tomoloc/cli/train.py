"""`tomoloc train`: teach a network from samples, simulated or annotated."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
from cyclopts import App, Parameter

from tomoloc.cli.segmentation import segmentation
from tomoloc.cli.sources import Data, read_data
from tomoloc.cli.template_learning import template_learning
from tomoloc.cli.training import (
    JUDGED,
    RING,
    Several,
    check_numbers,
    find_start,
    fine_settings,
    is_distractor,
    own_seed,
    read_diameters,
    read_sources,
    score_lines,
    start_team,
    take_up,
    teach,
    with_ranges,
)

if TYPE_CHECKING:
    from torch import nn

    from tomoloc.nn.monai import AnyHeatNetwork
    from tomoloc.nn.stored import StoredModel
    from tomoloc.pickers.centroid import Kinds
    from tomoloc.train.loop import Report
    from tomoloc.train.patches import Patching, Prepared
    from tomoloc.types import Particles, Sample

__all__ = ["train"]

logger = logging.getLogger(__name__)

_AVERAGED = 8
"""Samples kept for validation in which averages of candidates are tried, too."""

ACROSS = 20
"""Voxels of the largest kind, where it tells the voxel spacing."""

train = App(name="train", help="Teach a network from samples.")
train.command(segmentation)
train.command(template_learning)


@train.command
def embedding(
    *,
    data: Several,
    output: Annotated[Path, Parameter(name=["--output", "-o"])],
    start: Annotated[str | None, Parameter(name="--from")] = None,
    validation: Several | None = None,
    steps: int = 5000,
    patience: int = 10,
    learning_rate: float | None = None,
    voxel_spacing: float | None = None,
    seed: int = 0,
    device: Literal["auto", "cpu", "cuda"] = "auto",
    devices: int = 1,
    jobs: Annotated[int, Parameter(name=["--jobs", "-j"])] = 1,
    overwrite: Annotated[bool, Parameter(negative="")] = False,
) -> None:
    """Train the encoder of `tomoloc pick embedding`.

    It learns to tell apart whatever has different labels, and to find centres of particles. The
    more kinds of particles it meets, the better it is with those it has never met. The same
    command, given again, goes on where an interrupted or killed one was, and with more --steps
    prolongs a finished one. OUTPUT.training holds the checkpoint and the logs, steps.csv and
    validation.csv.

    Parameters
    ----------
    data
        Folders of samples, as `tomoloc simulate` writes them, shipped recipes or .toml files, of
        which new samples are made all the time.
    output
        Folder of the model; the best network so far is written after each validation.
    start
        Model to start from: the name of one that comes with tomoloc, or a folder.
    validation
        Held-out data, as in --data; by default a part of the samples, or others of the recipes.
    steps
        Batches of four patches.
    patience
        Stop after so many validations, 250 steps apart, without a better F1; 0 never does.
    learning_rate
        0.001 by default, and a third of that with --from.
    voxel_spacing
        Of the model in Å: data are brought to it. 10 by default, or that of --from.
    seed
        Of all chance.
    device
        auto takes a GPU where there is one.
    devices
        GPUs, or on a machine without any processes, that train together; several need pip install
        'tomoloc[devices]' (Lightning Fabric).
    jobs
        Processes that simulate; 0 simulates between steps.
    overwrite
        Replace a model that was trained otherwise.
    """
    from tomoloc.nn.stored import StoredModel, find_model, load_model, save_model
    from tomoloc.train.loop import TrainSettings, make_encoder

    check_numbers(jobs=jobs, patience=patience, seed=seed)
    team = start_team(devices, device, output)
    first = load_model(find_model(start)) if start is not None else None
    if first is not None and voxel_spacing not in {None, first.voxel_spacing}:
        raise ValueError(
            f"the model {start} is for voxels of {first.voxel_spacing:g} Å: leave out"
            " --voxel-spacing, or train one without --from"
        )
    settings = TrainSettings(
        steps=steps,
        patience=patience,
        learning_rate=learning_rate or (1e-3 if first is None else 3e-4),
        voxel_spacing=voxel_spacing or (10.0 if first is None else first.voxel_spacing),
        seed=seed,
        validate_every=250,
    )
    training = read_data(data, validation, seed=own_seed(seed, team), jobs=jobs)
    held_out, judged = training.held_out, training.few(JUDGED)
    record = {"data": data, "from": str(start or ""), "seed": seed}
    record["voxel_spacing"] = settings.voxel_spacing
    own = output.with_name(f"{output.name}.training")
    take_up(output, own, record, overwrite=overwrite, team=team)

    def publish(network: nn.Module, report: Report) -> None:
        scores = report.validation
        if scores is not None and scores.score < report.best_f1:
            return
        model = StoredModel(
            network=network.cpu(),
            voxel_spacing=settings.voxel_spacing,
            config={"training": {**record, **report.to_dict()}},
            card=_card(record, report),
        )
        model = with_ranges(model, judged)
        save_model(output, _calibrated(model, held_out, team.device))

    teach(
        make_encoder(seed=seed) if first is None else first.network,
        training, settings=settings, task=None, output=output, own=own, team=team, publish=publish,
    )  # fmt: skip


@train.command
def centroid(
    *,
    output: Annotated[Path, Parameter(name=["--output", "-o"])],
    data: Several | None = None,
    particles: Path | None = None,
    tomograms: Annotated[list[Path] | None, Parameter(consume_multiple=True, negative="")] = None,
    diameter: Several | None = None,
    labels: Several | None = None,
    ratio: Annotated[list[int] | None, Parameter(consume_multiple=True, negative="")] = None,
    start: Annotated[str | None, Parameter(name="--from")] = None,
    network: str | None = None,
    validation: Several | None = None,
    profile: Literal["gaussian", "binary"] = "gaussian",
    loss: Literal["entropy", "huber"] = "entropy",
    steps: int = 500,
    patience: int = 6,
    learning_rate: float | None = None,
    voxel_spacing: float | Literal["size"] | None = None,
    tomogram_spacing: float | None = None,
    contrast: Literal["auto", "dark", "light"] = "auto",
    seed: int = 0,
    device: Literal["auto", "cpu", "cuda"] = "auto",
    devices: int = 1,
    jobs: Annotated[int, Parameter(name=["--jobs", "-j"])] = 1,
    overwrite: Annotated[bool, Parameter(negative="")] = False,
) -> None:
    """Train a network of `tomoloc pick centroid` for what you look for.

    Two annotated tomograms are enough to begin with, as it starts from a network that already finds
    particles. Several kinds of particles of different sizes are learned at once. Picks that you
    have corrected, in any program, can be given as --particles again. The same command, given
    again, goes on where an interrupted or killed one was, and with more --steps prolongs a finished
    one. OUTPUT.training holds the checkpoint, the logs, steps.csv and validation.csv, and a picture
    for each validation.

    Parameters
    ----------
    output
        Folder of the model.
    data
        Folders of samples, as `tomoloc simulate` writes them, shipped recipes or .toml files, of
        which new samples are made all the time.
    particles
        Table of particles that you have marked, all of those of --tomograms, of any program.
    tomograms
        The tomograms that they lie in.
    diameter
        Of the particles in Å: one number, or LABEL=NUMBER for each. Measured where the data tell
        which voxels belong to which particle.
    labels
        Kinds to learn; by default all but distractors. Others are background.
    ratio
        How many samples are taken in a turn from each of --data, and last from --tomograms; by
        default one from all folders together, one of --tomograms and one from each recipe.
    start
        Model to start from: one that comes with tomoloc, a folder, or none for an untrained one;
        general by default.
    network
        A network of MONAI to start with instead, such as SwinUNETR, that of tomoCPT, if MONAI is
        installed. It is for GPUs.
    validation
        Held-out data, as in --data. By default one tomogram of three or more is held out, and
        others of the recipes.
    profile
        Of the heat around a centre: gaussian, or a ball.
    loss
        Cross entropy, or that of tomoCPT.
    steps
        Batches of four patches, or of two where particles are large.
    patience
        Stop after so many validations, 100 steps apart, without a better F1; 0 never does.
    learning_rate
        0.001 by default, and a third of that with --from.
    voxel_spacing
        Of the model in Å: data are brought to it. 10 by default, or that of --from. With `size`,
        the largest kind is 20 voxels across, as in tomoCPT: for particles of 400 Å and more, and
        small ones in fine tomograms.
    tomogram_spacing
        Voxel size of --tomograms in Å, where their files do not state it or state it wrong.
    contrast
        Of protein in --tomograms; detected by default.
    seed
        Of all chance.
    device
        auto takes a GPU where there is one.
    devices
        GPUs, or on a machine without any processes, that train together; several need pip install
        'tomoloc[devices]' (Lightning Fabric).
    jobs
        Processes that simulate; 0 simulates between steps.
    overwrite
        Replace a model that was trained otherwise.
    """
    from tomoloc.features.spectra import local_spectrum
    from tomoloc.nn.stored import StoredModel, save_model
    from tomoloc.pickers.centroid import Kinds
    from tomoloc.train.heat import HeatTask

    check_numbers(jobs=jobs, patience=patience, seed=seed)
    team = start_team(devices, device, output)
    if network is not None and start not in {None, "none"}:
        raise ValueError(f"--network {network} starts untrained: leave out --from")
    start = start or ("general" if network is None else "none")
    first = find_start(start)
    training = read_sources(
        data, validation, particles=particles, tomograms=tomograms, ratio=ratio, seed=seed,
        tomogram_spacing=tomogram_spacing, contrast=contrast, jobs=jobs, team=team,
    )  # fmt: skip
    names, sizes = _find_kinds(training, labels, diameter)
    suited = round(max(sizes) / ACROSS, 2) if voxel_spacing == "size" else voxel_spacing
    spacing = suited or (10.0 if first is None else first.voxel_spacing)
    task = HeatTask(
        labels=names,
        diameters=sizes,
        voxel_spacing=spacing,
        profile=profile,
        loss=loss,
        patching=_patching(max(sizes) / spacing),
    )
    settings = fine_settings(
        training,
        voxel_spacing=spacing,
        patching=task.patching,
        steps=steps,
        patience=patience,
        learning_rate=learning_rate or (1e-3 if first is None else 3e-4),
        seed=seed,
    )
    learner = _heat_network(first, names, seed, network=network)
    record = {
        "data": [*(data or []), *([str(particles)] if particles else [])],
        "from": start,
        "seed": seed,
        "voxel_spacing": spacing,
        "profile": profile,
        "loss": loss,
        "labels": list(names),
        "diameters": list(sizes),
    }
    record |= {"ratio": ratio} if ratio else {}
    record |= {"network": network} if network else {}
    own = output.with_name(f"{output.name}.training")
    take_up(output, own, record, overwrite=overwrite, team=team)
    few = training.few(JUDGED)
    judged = [task.prepare(sample) for sample in few]
    power = np.mean([local_spectrum(sample.data) for sample in judged], axis=0)

    def publish(found: nn.Module, report: Report) -> None:
        scores = report.validation
        if scores is not None and scores.score < report.best_f1:
            return
        thresholds = task.choose_thresholds(found, judged, device=team.device)
        kinds = Kinds(labels=names, diameters=sizes, thresholds=thresholds)
        model = StoredModel(
            network=found.cpu(),
            voxel_spacing=spacing,
            config={
                "training": {**record, **report.to_dict()},
                "particles": kinds.to_dict(),
                "spectrum": {"power": np.round(power, 5).tolist()},
            },
            card=_heat_card(record, report, kinds),
        )
        _draw(task.find(model.network, judged[0]), judged[0], kinds, own, report.step, spacing)
        save_model(output, with_ranges(model, few))

    teach(
        learner, training, settings=settings, task=task, output=output, own=own, team=team,
        publish=publish,
    )  # fmt: skip


def _find_kinds(
    training: Data, labels: list[str] | None, diameter: list[str] | None
) -> tuple[tuple[str, ...], tuple[float, ...]]:
    """Find out which kinds of particles there are, and how large they are."""
    from tomoloc.train.heat import measure_diameter

    samples = training.all(RING)
    there = {
        name: sample
        for sample in samples
        for name in sample.particles.labels
        if name and not is_distractor(sample, name)
    }
    if labels and (missing := [name for name in labels if name not in there]):
        raise ValueError(
            f"no particle is labelled {missing[0]}; the data have {', '.join(sorted(there))}"
        )
    names = tuple(labels or sorted(there))
    if not names:
        raise ValueError("the data hold no particles: there is nothing to learn")
    stated = read_diameters(diameter, names)
    sizes = []
    for name in names:
        size = stated.get(name) or measure_diameter(there[name], name)
        if size is None:
            raise ValueError(f"the size of {name} is not known: give --diameter {name}=NUMBER (Å)")
        sizes.append(round(size, 1))
    return names, tuple(sizes)


def _patching(diameter: float) -> Patching:
    """Patches that hold a particle of so many voxels with what surrounds it."""
    from tomoloc.train.patches import Patching

    side, number = (64, 4) if diameter <= 24 else (96, 2)
    return Patching(number=number, shape=(side, side, side), positive=0.7)


def _heat_network(
    first: StoredModel | None, labels: Sequence[str], seed: int, *, network: str | None
) -> AnyHeatNetwork:
    """Make the network to begin with."""
    import torch

    from tomoloc.nn.encoder import DenseEncoder, HeatNetwork
    from tomoloc.nn.monai import AnyHeatNetwork, MonaiHeatNetwork
    from tomoloc.pickers.centroid import Kinds
    from tomoloc.train.loop import make_encoder

    if network is not None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return MonaiHeatNetwork(kinds=len(labels), architecture=network)
    if first is None:
        return HeatNetwork.from_encoder(make_encoder(seed=seed), kinds=len(labels))
    if isinstance(first.network, DenseEncoder):
        return HeatNetwork.from_encoder(first.network, kinds=len(labels))
    if not isinstance(first.network, AnyHeatNetwork):
        raise ValueError(f"--from {first.name}: heat maps cannot start from a window network")
    known = Kinds.of(first).labels
    if missing := [name for name in labels if name not in known]:
        raise ValueError(
            f"the model {first.name} does not know {missing[0]} (it finds {', '.join(known)}):"
            " leave it out with --labels, or start --from general"
        )
    return first.network.select([known.index(name) for name in labels])


def _draw(
    found: tuple[Particles, Particles],
    sample: Prepared,
    kinds: Kinds,
    folder: Path,
    step: int,
    spacing: float,
) -> None:
    """Show what is found in a tomogram at this step: right ones, wrong ones and missed ones."""
    from tomoloc.atomic import writing
    from tomoloc.evaluate import match_particles
    from tomoloc.report.figures import draw_slices
    from tomoloc.types import Tomogram

    picks, truth = found
    threshold = dict(zip(kinds.labels, kinds.thresholds, strict=True))
    limits = np.array([threshold[str(label)] for label in np.asarray(picks.label)])
    picks = picks[np.asarray(picks.score) > limits]
    right, seen = np.zeros(len(picks), dtype=bool), np.zeros(len(truth), dtype=bool)
    for label, diameter in zip(kinds.labels, kinds.diameters, strict=True):
        rows = [np.flatnonzero(np.asarray(table.label) == label) for table in (picks, truth)]
        if min(map(len, rows)):
            pairs = match_particles(picks[rows[0]], truth[rows[1]], radius=diameter / 2).pairs
            right[rows[0][pairs[:, 0]]] = seen[rows[1][pairs[:, 1]]] = True
    figure = draw_slices(
        Tomogram(data=sample.data.astype(np.float32), voxel_spacing=spacing),
        picks,
        diameter=float(np.mean(kinds.diameters)),
        title=f"step {step}: {right.sum()} of {len(truth)} found, {(~right).sum()} wrong",
        right=right,
        missed=truth.position[~seen],
    )
    with writing(folder / f"step_{step:06d}.png") as draft:
        figure.savefig(draft, dpi=100, format="png")


def _heat_card(record: dict[str, Any], report: Report, kinds: Kinds) -> str:
    """Say what the network finds, what it has learned from and how well it did."""
    lines = [
        "# Heat maps for `tomoloc pick centroid`\n",
        f"Trained by `tomoloc train centroid` for {report.step} steps on {report.samples} samples"
        f" of {', '.join(record['data'])}, starting from {record['from']}.\n",
        "| finds | diameter (Å) | threshold |",
        "|---|---|---|",
    ]
    rows = zip(kinds.labels, kinds.diameters, kinds.thresholds, strict=True)
    lines += [f"| {label} | {size:g} | {threshold:.2f} |" for label, size, threshold in rows]
    return "\n".join(lines + score_lines(report)) + "\n"


def _calibrated(model: StoredModel, held_out: list[Sample], device: str) -> StoredModel:
    """Learn from held-out samples what similarities mean, where they have enough particles."""
    from tomoloc.pickers.calibration import calibrate

    try:
        calibration = calibrate(model, held_out, averaged=_AVERAGED, device=device)
    except ValueError as error:
        logger.warning("scores of this model are no probabilities yet: %s", error)
        return model
    return replace(model, config={**model.config, "calibration": calibration.to_dict()})


def _card(record: dict[str, Any], report: Report) -> str:
    """Say what the network has learned from and how well it did."""
    lines = [
        "# Dense encoder for `tomoloc pick embedding`\n",
        f"Trained by `tomoloc train embedding` for {report.step} steps on {report.samples} samples"
        f" of {', '.join(record['data'])}.",
    ]
    if record["from"]:
        lines.append(f"It started from the weights of {record['from']}.")
    return "\n".join(lines + score_lines(report)) + "\n"
