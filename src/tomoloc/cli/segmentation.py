"""`tomoloc train segmentation`: teach a network the class of every voxel."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
from cyclopts import Parameter

from tomoloc.cli.training import (
    JUDGED,
    RING,
    Several,
    check_numbers,
    find_start,
    fine_settings,
    is_distractor,
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

    from tomoloc.cli.sources import Data
    from tomoloc.nn.stored import StoredModel
    from tomoloc.nn.unet import SegmentationNetwork
    from tomoloc.pickers.segmentation import Kind, Role
    from tomoloc.train.loop import Report
    from tomoloc.train.patches import Patching
    from tomoloc.train.segment import Segmented, SegmentTask
    from tomoloc.types import Sample

__all__ = ["segmentation"]


def segmentation(
    *,
    output: Annotated[Path, Parameter(name=["--output", "-o"])],
    data: Several | None = None,
    particles: Path | None = None,
    tomograms: Annotated[list[Path] | None, Parameter(consume_multiple=True, negative="")] = None,
    diameter: Several | None = None,
    labels: Several | None = None,
    filaments: Several | None = None,
    ratio: Annotated[list[int] | None, Parameter(consume_multiple=True, negative="")] = None,
    start: Annotated[str, Parameter(name="--from")] = "none",
    validation: Several | None = None,
    network: str | None = None,
    channels: Annotated[list[int] | None, Parameter(consume_multiple=True, negative="")] = None,
    slices: int | None = None,
    loss: Literal["combined", "tversky", "dice", "entropy"] = "combined",
    balance: bool = True,
    steps: int = 1000,
    patience: int = 6,
    learning_rate: float | None = None,
    early: float | None = None,
    voxel_spacing: float | None = None,
    tomogram_spacing: float | None = None,
    contrast: Literal["auto", "dark", "light"] = "auto",
    seed: int = 0,
    device: Literal["auto", "cpu", "cuda"] = "auto",
    devices: int = 1,
    jobs: Annotated[int, Parameter(name=["--jobs", "-j"])] = 1,
    overwrite: Annotated[bool, Parameter(negative="")] = False,
) -> None:
    """Train a network of `tomoloc pick segmentation` for what you look for.

    It learns the class of every voxel: particles of any shape, filaments, membranes. The truth is
    the label volume of a sample; where there is only a table of particles, they are balls of their
    diameter. The same command, given again, goes on where an interrupted or killed one was, and
    with more --steps prolongs a finished one. OUTPUT.training holds the checkpoint, the logs,
    steps.csv and validation.csv, and a picture for each validation.

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
        Of the particles in Å: one number, or LABEL=NUMBER for each. Measured where the data tell.
    labels
        Classes to learn; by default particles but distractors, filaments and membranes. Parts of
        complexes, gold and whatever else is in the label volumes must be named.
    filaments
        Classes to trace as filaments, besides those that samples say are some.
    ratio
        How many samples are taken in a turn from each of --data, and last from --tomograms; by
        default one from all folders together, one of --tomograms and one from each recipe.
    start
        Model to start from, a folder, or none for an untrained one.
    validation
        Held-out data, as in --data. By default one tomogram of three or more is held out, and
        others of the recipes.
    network
        unet3d (the default), unet2.5d, or a network of MONAI by its name, if that is installed.
    channels
        Of the network's levels: 32 48 64 by default, as in DeepFinder. Half of them are a
        quarter of the work.
    slices
        Sections that unet2.5d looks at; 11 by default.
    loss
        Tversky index, Dice's, cross entropy, or the first and the last combined.
    balance
        Let each class count alike, however few voxels it has.
    steps
        Batches of four patches, or more where there are many classes.
    patience
        Stop after so many validations, 100 steps apart, without a better Dice; 0 never does.
    learning_rate
        0.002 by default, and a third of that with --from.
    early
        Rate of the network's way down relative to that of the rest; 1 by default, and 0.3 with
        --from.
    voxel_spacing
        Of the model in Å: data are brought to it. 10 by default, or that of --from.
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
    from tomoloc.train.segment import SegmentTask

    check_numbers(jobs=jobs, patience=patience, seed=seed)
    team = start_team(devices, device, output)
    first = find_start(start)
    training = read_sources(
        data, validation, particles=particles, tomograms=tomograms, ratio=ratio, seed=seed,
        tomogram_spacing=tomogram_spacing, contrast=contrast, jobs=jobs, team=team,
    )  # fmt: skip
    kinds = _find_kinds(training, labels, diameter, filaments)
    names = tuple(kind.label for kind in kinds)
    model = _make_network(
        first, names, seed, architecture=network, channels=channels, slices=slices
    )
    spacing = voxel_spacing or (10.0 if first is None else first.voxel_spacing)
    task = SegmentTask(
        labels=names,
        diameters=tuple(kind.diameter for kind in kinds),
        voxel_spacing=spacing,
        loss=loss,
        balance=balance,
        patching=_patching(kinds, model, spacing),
    )
    settings = fine_settings(
        training,
        voxel_spacing=spacing,
        patching=task.patching,
        steps=steps,
        patience=patience,
        learning_rate=learning_rate or (2e-3 if first is None else 7e-4),
        early=(1.0 if first is None else 0.3) if early is None else early,
        seed=seed,
    )
    record = {
        "data": [*(data or []), *([str(particles)] if particles else [])],
        "from": start,
        "seed": seed,
        "voxel_spacing": spacing,
        "network": model.architecture,
        "loss": loss,
        "balance": balance,
        "labels": list(names),
    }
    record |= {"ratio": ratio} if ratio else {}
    own = output.with_name(f"{output.name}.training")
    take_up(output, own, record, overwrite=overwrite, team=team)
    teach(
        model, training, settings=settings, task=task, output=output, own=own, team=team,
        publish=_Publisher(task, kinds, training, record, output, own, team.device),
    )  # fmt: skip


class _Publisher:
    """Writes the best network so far, with a picture of what it makes of a tomogram."""

    def __init__(
        self,
        task: SegmentTask,
        kinds: Sequence[Kind],
        training: Data,
        record: Mapping[str, Any],
        output: Path,
        folder: Path,
        device: str,
    ) -> None:
        from tomoloc.features.spectra import local_spectrum

        self.task, self.kinds, self.record = task, kinds, record
        self.output, self.folder, self.device = output, folder, device
        self.few = training.few(JUDGED)
        self.judged = [task.prepare(sample) for sample in self.few]
        power = np.mean([local_spectrum(sample.data) for sample in self.judged], axis=0)
        self.power = np.round(power, 5).tolist()

    def __call__(self, network: nn.Module, report: Report) -> None:
        from tomoloc.nn.stored import StoredModel, save_model

        shown = self.judged[0]
        found = self.task.find(network, shown, device=self.device)
        _draw(found, shown, self.task, self.folder, report)
        if report.validation is not None and report.validation.score < report.best_f1:
            return
        chosen = self.task.choose_thresholds(network, self.judged, device=self.device)
        kinds = [
            kind._replace(threshold=value) for kind, value in zip(self.kinds, chosen, strict=True)
        ]
        model = StoredModel(
            network=network.cpu(),
            voxel_spacing=self.task.voxel_spacing,
            config={
                "training": {**self.record, **report.to_dict()},
                "classes": [kind.to_dict() for kind in kinds],
                "spectrum": {"power": self.power},
            },
            card=_card(self.record, report, kinds),
        )
        save_model(self.output, with_ranges(model, self.few))


def _find_kinds(
    training: Data,
    labels: list[str] | None,
    diameter: list[str] | None,
    filaments: list[str] | None,
) -> tuple[Kind, ...]:
    """Find out which classes there are, what they are and how large."""
    from tomoloc.pickers.segmentation import Kind
    from tomoloc.train.heat import measure_diameter, measure_volume

    roles: dict[str, Role] = {}
    usual: list[str] = []
    samples: dict[str, Sample] = {}
    for sample in training.all(RING):
        for name, role, is_usual in _list_classes(sample):
            roles.setdefault(name, role)
            samples.setdefault(name, sample)
            usual += [name] if is_usual else []
    for name in filaments or ():
        roles |= {name: "filament"} if name in roles else {}
        usual.append(name)
    names = labels or sorted(set(usual))
    if missing := [name for name in names if name not in samples]:
        raise ValueError(
            f"nothing is labelled {missing[0]}; the data have {', '.join(sorted(samples))}"
        )
    if not names:
        raise ValueError("the data hold no particles, filaments or membranes: nothing to learn")
    stated = read_diameters(diameter, names)
    kinds = []
    for name in names:
        sample, volume = samples[name], 0.0
        size = stated.get(name)
        if roles[name] == "particle":
            size = size or measure_diameter(sample, name)
            volume = measure_volume(sample, name) or 0.0
        size = size or _measure_thickness(sample, name)
        if size is None:
            raise ValueError(f"the size of {name} is not known: give --diameter {name}=NUMBER (Å)")
        if sample.labels is None:
            volume = np.pi / 6 * size**3
        kinds.append(Kind(name, roles[name], round(size, 1), round(volume)))
    return tuple(kinds)


def _list_classes(sample: Sample) -> list[tuple[str, Role, bool]]:
    """Names of what is in a sample, what it is, and whether it is usually learned."""
    found: list[tuple[str, Role, bool]] = [
        (name, "particle", not is_distractor(sample, name))
        for name in sample.particles.labels
        if name
    ]
    if sample.filaments is not None:
        found += [(name, "filament", True) for name in sample.filaments.labels]
    if sample.membranes is not None:
        found += [(name, "region", True) for name in sample.membranes.labels]
    if sample.labels is None:
        return found
    there = set(np.unique(sample.labels.data).tolist())
    known = {name for name, _, _ in found}
    parts = sample.summary.get("parts", {})
    for value, name in sample.legend.items():
        if value in there and name not in known:
            found.append((name, "particle" if name in parts else "region", False))
    values = {name for value, name in sample.legend.items() if value in there}
    parents = {parts[name] for name in values if name in parts}
    return [one for one in found if one[0] in values | parents]


def _measure_thickness(sample: Sample, label: str) -> float | None:
    """Diameter of a filament around its axis, or twice the depth of a class, in Å."""
    from scipy import ndimage
    from scipy.spatial import KDTree

    if sample.labels is None:
        return None
    values = [value for value, name in sample.legend.items() if name == label]
    own = np.isin(sample.labels.data, values)
    if not own.any():
        return None
    spacing, points = sample.labels.voxel_spacing, sample.filaments
    axis = np.zeros((0, 3))
    if points is not None:
        axis = points.position[np.asarray(points.label) == label]
    if len(axis):
        place = sample.labels.to_position(np.argwhere(own))
        # Hollow ones, too, are as thick as their wall is far from the axis.
        return float(2 * np.percentile(KDTree(axis).query(place)[0], 80))
    depth = ndimage.distance_transform_edt(np.pad(own, 1))
    # Voxels at the surface are one voxel deep.
    return float(2 * np.percentile(depth[depth > 0], 99) - 1) * spacing


def _patching(kinds: Sequence[Kind], network: SegmentationNetwork, spacing: float) -> Patching:
    """Patches that hold a particle with what surrounds it, and enough of them for all classes."""
    from tomoloc.train.patches import Patching

    largest = max(kind.diameter for kind in kinds if kind.role != "region" or len(kinds) == 1)
    side = 48 if largest / spacing <= 36 else 64
    side = -(-side // network.period) * network.period
    return Patching(
        number=min(max(4, len(kinds) + 1), 8),
        shape=(side, side, side),
        positive=0.75,
        margin=network.margin,
    )


def _make_network(
    first: StoredModel | None, labels: Sequence[str], seed: int, **given: Any
) -> SegmentationNetwork:
    """Make the network to begin with."""
    import torch

    from tomoloc.nn.unet import SegmentationNetwork
    from tomoloc.pickers.segmentation import read_kinds

    stated = {name: value for name, value in given.items() if value is not None}
    if first is None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return SegmentationNetwork(kinds=len(labels), **stated)
    if stated:
        raise ValueError(
            f"--from {first.name} goes on with its network: leave out --network, --channels and"
            " --slices"
        )
    known = [kind.label for kind in read_kinds(first)]
    if missing := [name for name in labels if name not in known]:
        raise ValueError(
            f"the model {first.name} does not know {missing[0]} (it finds {', '.join(known)}):"
            " leave it out with --labels, or train one without --from"
        )
    network: SegmentationNetwork = first.network  # type: ignore[assignment]
    return network.select([known.index(name) for name in labels])


def _draw(
    found: np.ndarray, sample: Segmented, task: SegmentTask, folder: Path, report: Report
) -> None:
    """Show what the network takes the voxels of a tomogram for, and what they are."""
    from tomoloc.atomic import writing
    from tomoloc.report.classes import draw_classes
    from tomoloc.types import Volume

    score = "" if report.validation is None else f", Dice {report.validation.score:.2f}"
    figure = draw_classes(
        Volume(data=sample.data, voxel_spacing=task.voxel_spacing),
        [("found", found), ("true", sample.classes)],
        labels=task.labels,
        title=f"step {report.step}{score}",
    )
    with writing(folder / f"step_{report.step:06d}.png") as draft:
        figure.savefig(draft, dpi=100, format="png")


def _card(record: Mapping[str, Any], report: Report, kinds: Sequence[Kind]) -> str:
    """Say what the network finds, what it has learned from and how well it did."""
    lines = [
        "# Classes of voxels for `tomoloc pick segmentation`\n",
        f"Trained by `tomoloc train segmentation` for {report.step} steps on {report.samples}"
        f" samples of {', '.join(record['data'])}, starting from {record['from']}.\n",
        "| finds | as | diameter or thickness (Å) | threshold |",
        "|---|---|---|---|",
    ]
    lines += [
        f"| {kind.label} | {kind.role} | {kind.diameter:g} | {kind.threshold:g} |" for kind in kinds
    ]
    return "\n".join(lines + score_lines(report)) + "\n"
