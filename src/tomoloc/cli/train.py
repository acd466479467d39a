"""`tomoloc train`: teach a network from samples, simulated or annotated."""

from __future__ import annotations

import logging
import shutil
import sys
import tomllib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
from cyclopts import App, Parameter

if TYPE_CHECKING:
    from torch import nn

    from tomoloc.nn.stored import StoredModel
    from tomoloc.simulate.recipe import Recipe
    from tomoloc.simulate.scene import Simulator
    from tomoloc.simulate.settings import Species
    from tomoloc.train.loop import Report
    from tomoloc.types import Sample

__all__ = ["train"]

logger = logging.getLogger(__name__)

train = App(name="train", help="Teach a network from samples.")

Several = Annotated[list[str], Parameter(consume_multiple=True, negative="")]
_HELD_OUT = 3
"""Samples for validation where none are given."""
_DRAWN = "*"
"""Label of species that are drawn anew for each sample, until they are told apart."""


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
    jobs
        Processes that simulate; 0 simulates between steps.
    overwrite
        Replace a model that was trained otherwise.
    """
    from tomoloc.io.atomic import check_writable
    from tomoloc.nn.device import resolve_device
    from tomoloc.nn.stored import StoredModel, find_model, load_model, save_model
    from tomoloc.progress import show_progress
    from tomoloc.train.loop import TrainSettings, make_encoder
    from tomoloc.train.loop import train as train_network

    if jobs < 0 or patience < 0 or seed < 0:
        raise ValueError("--jobs, --patience and --seed must not be negative")
    where = resolve_device(device)
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
    training, held_out = _read_data(data, validation, seed=seed, jobs=jobs)
    record = {"data": data, "from": str(start or ""), "seed": seed}
    record["voxel_spacing"] = settings.voxel_spacing
    own = output.with_name(f"{output.name}.training")
    check_writable(output.parent)
    _take_up(output, own, record, overwrite=overwrite)

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
        save_model(output, _calibrated(model, held_out, where))

    with show_progress(sys.stderr.isatty()):
        train_network(
            make_encoder(seed=seed) if first is None else first.network,
            training,
            settings=settings,
            folder=own,
            validation=held_out,
            device=where,
            publish=publish,
        )
    sys.stdout.write(f"{output}\n")


def _calibrated(model: StoredModel, held_out: list[Sample], device: str) -> StoredModel:
    """Learn from held-out samples what similarities mean, where they have enough particles."""
    from tomoloc.pickers.calibration import calibrate

    try:
        calibration = calibrate(model, held_out, device=device)
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
    if report.validation is not None:
        lines += ["\n| on held-out samples | |", "|---|---|"]
        lines += [f"| {k} | {v:.3f} |" for k, v in report.validation._asdict().items()]
    return "\n".join(lines) + "\n"


def _take_up(output: Path, own: Path, record: dict[str, Any], *, overwrite: bool) -> None:
    """Make sure that what is there was made by the same command; note what makes it."""
    import tomli_w

    from tomoloc.io.atomic import writing

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


# ----------------------------------------------------------------------------------------- data


def _read_data(
    data: Sequence[str], validation: Sequence[str] | None, *, seed: int, jobs: int
) -> tuple[_Mixture, list[Sample]]:
    """Find samples and recipes; set some samples aside."""
    folders, recipes = _find_data(data, option="--data")
    if validation is not None:
        others, unseen = _find_data(validation, option="--validation")
    else:
        unseen = recipes
        others = folders[:: -max(2, len(folders) // _HELD_OUT)][:_HELD_OUT]
        folders = [folder for folder in folders if folder not in others]
        if not folders and not recipes:
            raise ValueError("--data has one sample alone; give another one as --validation")
    held_out = _Files(others, seed).read_once()
    parts: list[Any] = [_Files(folders, seed)] if folders else []
    parts += [_Simulated(recipe, seed, jobs) for recipe in recipes]
    for recipe in unseen:
        held_out += islice(_Simulated(recipe, seed + 1, 0)(0), _HELD_OUT)
    return _Mixture(parts), held_out


def _find_data(words: Sequence[str], *, option: str) -> tuple[list[Path], list[Recipe]]:
    """Sort words into folders of samples and recipes."""
    from tomoloc.simulate.recipe import read_recipe

    folders: list[Path] = []
    recipes: list[Recipe] = []
    for word in words:
        path = Path(word)
        if not path.is_dir():
            recipes.append(read_recipe(word))
            continue
        found = [path, *sorted(path.iterdir())]
        found = [one for one in found if (one / "tomogram.mrc").is_file()]
        if not found:
            raise ValueError(f"{option}: {path} holds no sample (a folder with a tomogram.mrc)")
        folders += found
    if not folders and not recipes:
        raise ValueError(f"{option} needs folders of samples or recipes")
    return folders, recipes


@dataclass(frozen=True)
class _Mixture:
    """Takes samples from several sources in turn."""

    parts: Sequence[Any]

    def __call__(self, start: int) -> Iterator[Sample]:
        n = len(self.parts)
        # Part i gives the samples number i, i + n, i + 2 n and so on.
        streams = [part((start - i + n - 1) // n) for i, part in enumerate(self.parts)]
        number = start
        while True:
            yield next(streams[number % n])
            number += 1


@dataclass(frozen=True)
class _Files:
    """Reads samples again and again, each time in another order."""

    folders: Sequence[Path]
    seed: int

    def __call__(self, start: int) -> Iterator[Sample]:
        n, number = len(self.folders), start
        while True:
            turn, place = divmod(number, n)
            order = np.random.default_rng([self.seed, turn]).permutation(n)
            yield _read(self.folders[int(order[place])])
            number += 1

    def read_once(self) -> list[Sample]:
        return [_read(folder) for folder in self.folders]


def _read(folder: Path) -> Sample:
    from tomoloc.io.samples import read_sample

    sample = read_sample(folder)
    if len(sample.particles) == 0:
        logger.warning("%s has no particles", folder)
    return sample


@dataclass(frozen=True)
class _Simulated:
    """Simulates samples after a recipe."""

    recipe: Recipe
    seed: int
    jobs: int

    def __call__(self, start: int) -> Iterator[Sample]:
        from tomoloc.simulate.stream import map_in_order

        maker = _Maker(_mark_drawn(self.recipe), self.seed)
        return map_in_order(maker, range(start, sys.maxsize), workers=self.jobs)


@dataclass
class _Maker:
    """Makes the sample of a number, in which different structures have different labels."""

    recipe: Recipe
    seed: int
    simulator: Simulator | None = field(default=None, init=False)

    def __call__(self, number: int) -> Sample:
        from tomoloc.simulate.scene import Simulator, draw_seed

        if self.simulator is None:
            self.simulator = Simulator(self.recipe)
        seed = draw_seed(np.random.default_rng([self.seed, number]))
        plan = self.recipe.resolve(seed, name=f"{self.recipe.name}_{number:03d}")
        species = tuple(
            replace(one, label=_identity(one)) if one.label == _DRAWN else one
            for one in plan.species
        )
        sample = self.simulator.render(self.simulator.draw_resolved(replace(plan, species=species)))
        # What is not trained on need not travel between processes.
        tomogram = replace(sample.tomogram, tilt_series=None)
        return replace(
            sample, tomogram=tomogram, instances=None, halves=(), scene=None, density=None
        )


def _mark_drawn(recipe: Recipe) -> Recipe:
    """Take away labels that stand for other structures in each sample, or for several."""
    species = tuple(replace(one, label=_DRAWN) if _is_drawn(one) else one for one in recipe.species)
    return replace(recipe, species=species)


def _is_drawn(species: Species) -> bool:
    from tomoloc.simulate.settings import BuiltIn

    structure = species.structure
    if isinstance(structure, BuiltIn):
        fixed = (int, float, str, type(None))
        return not all(
            isinstance(value, fixed)
            for value in (structure.seed, structure.mass_kda, structure.symmetry)
        )
    several = not isinstance(structure, str) or Path(structure).is_dir()
    return species.choose is not None or (several and not species.label)


def _identity(species: Species) -> str:
    """Name a structure so that no other has its name."""
    from tomoloc.simulate.settings import BuiltIn

    structure = species.structure
    if isinstance(structure, BuiltIn):
        parts = (structure.seed, structure.mass_kda, structure.symmetry)
        return "-".join(["complex", *(str(part) for part in parts if part is not None)])
    return replace(species, label="").name
