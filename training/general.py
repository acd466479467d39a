"""Train the model `general`, which tomoloc ships: python training/general.py -o MODEL.

Scenes are simulated on the way, in groups that share their species: random complexes, each of them
met in one group only, and, with --structures, those of a folder of files in turn with them. Of a
group, one scene is sparse, one crowded, three are cell-like and one lies at the edge of the support
film; each has optics and errors of its own.

The same command, given again, goes on where a stopped or killed one was. A finished training is
prolonged by a larger --steps. MODEL.training holds the checkpoint, steps.csv and validation.csv;
the averaged network is written to MODEL after each validation.
"""

from __future__ import annotations

import argparse
import logging
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from tomoloc.io.structures import summarize_structure
from tomoloc.simulate.recipe import Recipe, read_recipe
from tomoloc.simulate.scene import Simulator, draw_seed
from tomoloc.simulate.settings import BuiltIn, Species
from tomoloc.simulate.stream import map_in_order
from tomoloc.types import Sample

logger = logging.getLogger("tomoloc.training")

FOLDER = Path(__file__).with_name("general")
ENDINGS = (".pdb", ".ent", ".cif", ".mmcif")
PLAN = ("sparse", "crowded", "cell", "cell", "edge", "cell")
"""Scenes of one group."""
POOL = 22
"""Species of one group, of which a scene has some."""
MASSES = (40.0, 1500.0)
"""Of random complexes, in kDa, evenly in their logarithm."""
ALIKE = 1.5
"""Ratio of the largest to the smallest mass of species that are alike."""
LARGEST, HEAVIEST = 420.0, 92
"""Diameter in Å and atomic number, beyond which structures are left out."""
ATTEMPTS = 5
"""Scenes that may fail, one after the other."""
NEVER_TRAINED_ON = 10**9
"""Random complexes from this seed on are for validation."""

CARD = """# general

A dense encoder of protein complexes in tomograms, trained on simulated scenes alone by
`training/general.py`; `config.toml` tells how long.
"""


@dataclass
class Groups:
    """Makes groups of samples; travels to other processes without its simulator.

    Parameters
    ----------
    seed : int
    files : tuple of str
        Structures that stand beside random complexes.
    share : float
        Of the species of a group that come from files, where so many have a mass that is wanted.
    hard : float
        Of the groups whose species have one to three masses, nearly: hard negatives of each other.
    plan : tuple of str
        Names of the scenes of a group.
    first_complex : int
        Seeds of random complexes are drawn from here on.
    """

    seed: int
    files: tuple[str, ...] = ()
    share: float = 0.5
    hard: float = 0.0
    plan: tuple[str, ...] = PLAN
    first_complex: int = 0
    simulator: Simulator | None = field(default=None, init=False)
    masses: dict[str, float] = field(default_factory=dict, init=False)
    """Of files that have been read, in kDa; NaN for those that cannot be used."""

    def __call__(self, number: int) -> list[Sample]:
        """Make the samples of a group."""
        rng = np.random.default_rng([self.seed, number])
        pool = self.draw_pool(rng)
        samples = []
        for place, scene in enumerate(self.plan):
            name = f"{scene}_{number}_{place}"
            samples.append(self.make_one(name, pool, rng))
        return samples

    def make_one(self, name: str, pool: list[Species], rng: np.random.Generator) -> Sample:
        """Make a sample; where a scene cannot be made, another one of its kind."""
        path = FOLDER / "scenes" / f"{name.partition('_')[0]}.toml"
        problem = None
        for _ in range(ATTEMPTS):
            recipe = fill(read_recipe(path), pool, rng)
            try:
                return self.make(recipe.resolve(draw_seed(rng), name=name))
            except ValueError as error:
                logger.warning("%s is drawn anew: %s", name, error)
                problem = error
        raise ValueError(f"{path} gave no scene {ATTEMPTS} times") from problem

    def draw_pool(self, rng: np.random.Generator) -> list[Species]:
        """Draw the species of a group."""
        ranges, of_files = [MASSES], [(0.0, np.inf)]
        if rng.random() < self.hard:
            lowest = np.exp(rng.uniform(*np.log(MASSES), size=rng.integers(1, 4)))
            ranges = of_files = [(low, ALIKE * low) for low in lowest.tolist()]
        pool = [
            Species(structure=file, label=Path(file).name.split(".")[0], count=1)
            for file in self.draw_files(of_files, rng)
        ]
        for seed in rng.integers(NEVER_TRAINED_ON, size=POOL - len(pool)).tolist():
            mass = float(np.exp(rng.uniform(*np.log(ranges[rng.integers(len(ranges))]))))
            structure = BuiltIn(seed=self.first_complex + seed, mass_kda=round(mass, 1))
            # The same seed with another mass is another complex.
            pool.append(Species(structure=structure, label=f"{seed}-{mass:.0f}", count=1))
        return [pool[i] for i in rng.permutation(len(pool))]

    def draw_files(self, ranges: list[tuple[float, float]], rng: np.random.Generator) -> list[str]:
        """Draw structures of some masses, as many as there should be or are."""
        chosen: list[str] = []
        for i in rng.permutation(len(self.files)):
            if len(chosen) == round(self.share * POOL):
                break
            mass = self.mass(self.files[i])
            if any(low <= mass <= high for low, high in ranges):
                chosen.append(self.files[i])
        return chosen

    def mass(self, file: str) -> float:
        """Mass of a structure in kDa; NaN if it cannot be simulated."""
        if file not in self.masses:
            try:
                self.masses[file] = _weigh(file)
            except (ValueError, OSError) as error:
                logger.warning("%s is left out: %s", file, error)
                self.masses[file] = np.nan
        return self.masses[file]

    def make(self, recipe: Recipe) -> Sample:
        """Simulate, and keep what is trained on."""
        if self.simulator is None:
            self.simulator = Simulator(recipe)
        sample = self.simulator.render(self.simulator.draw_resolved(recipe))
        return Sample(
            tomogram=replace(sample.tomogram, tilt_series=None),
            particles=sample.particles,
            labels=sample.labels,
            legend=sample.legend,
            summary=sample.summary,
        )


def _weigh(file: str) -> float:
    summary = summarize_structure(file)
    structure = summary.structure
    if structure.atomic_number.max() > HEAVIEST:
        raise ValueError(f"it has an element of number {structure.atomic_number.max()}")
    if structure.diameter > LARGEST:
        raise ValueError(f"its diameter is {structure.diameter:.0f} Å")
    return summary.mass_kda


def fill(recipe: Recipe, pool: list[Species], rng: np.random.Generator) -> Recipe:
    """Let species of the pool take the places that a scene has for them, each at most once."""
    left = [pool[i] for i in rng.permutation(len(pool))]
    species: list[Species] = []
    for place in recipe.species:
        wanted = int(place.choose) if isinstance(place.choose, (int, float)) else 1
        taken, left = left[:wanted], left[wanted:]
        species += [
            replace(place, structure=one.structure, label=one.label, choose=None) for one in taken
        ]
    return replace(recipe, species=tuple(species))


@dataclass(frozen=True)
class Endless:
    """All samples from a number on, made ahead in other processes, a group at a time."""

    groups: Groups
    workers: int

    def __call__(self, start: int) -> Iterator[Sample]:
        """Yield samples."""
        first, skipped = divmod(start, len(self.groups.plan))
        made = map_in_order(self.groups, range(first, sys.maxsize), workers=self.workers)
        for group in made:
            yield from group[skipped:]
            skipped = 0


def list_structures(folder: Path | None) -> tuple[str, ...]:
    """Structure files of a folder."""
    if folder is None:
        return ()
    files = sorted(folder.iterdir())
    found = tuple(str(f) for f in files if f.name.lower().removesuffix(".gz").endswith(ENDINGS))
    if not found:
        raise ValueError(f"{folder} holds no structures ({', '.join(ENDINGS)})")
    return found


def main() -> None:
    """Train."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    parser.add_argument("-o", "--output", type=Path, required=True, help="folder of the model")
    parser.add_argument("--structures", type=Path, help="folder of structures to train on, too")
    parser.add_argument("--validation", type=Path, help="folder of structures held out")
    parser.add_argument("--recipe", choices=("cpu", "gpu"), default="cpu")
    parser.add_argument("--steps", type=int, help="instead of the recipe's")
    parser.add_argument("--learning-rate", type=float, help="instead of the recipe's")
    parser.add_argument("--decay", type=float, help="fraction of the steps in which the rate falls")
    parser.add_argument(
        "--from", dest="start", metavar="MODEL", help="go on from this model, or from `general`"
    )
    parser.add_argument("--workers", type=int, help="processes that make scenes")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, help="of the network on a processor")
    given = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    logging.getLogger("tomoloc.simulate").setLevel(logging.ERROR)  # no room for one more particle
    run(given)


def run(given: argparse.Namespace) -> None:
    """Put scenes, network and loop together."""
    import torch

    from tomoloc.nn.device import keep_memory
    from tomoloc.nn.stored import StoredModel, find_model, load_model, save_model
    from tomoloc.train.loop import Report, make_encoder, read_settings, train

    keep_memory()
    if given.threads:
        torch.set_num_threads(given.threads)
    content = tomllib.loads((FOLDER / f"{given.recipe}.toml").read_text("utf-8"))
    changes: dict[str, Any] = {
        "steps": given.steps,
        "learning_rate": given.learning_rate,
        "decay": given.decay,
    }
    changes = {name: value for name, value in changes.items() if value is not None}
    settings = read_settings({**content["training"], **changes, "seed": given.seed})
    workers = given.workers if given.workers is not None else content["scenes"]["workers"]
    groups = Groups(
        seed=given.seed, files=list_structures(given.structures), hard=content["scenes"]["hard"]
    )
    held_out = Groups(
        seed=given.seed + 1,
        files=list_structures(given.validation),
        share=1.0,
        plan=("sparse", "crowded", "cell"),
        first_complex=NEVER_TRAINED_ON,
    )

    def publish(network: Any, report: Report) -> None:
        config = {"training": {**report.to_dict(), "recipe": given.recipe, "seed": given.seed}}
        model = StoredModel(
            network=network.cpu(), voxel_spacing=settings.voxel_spacing, config=config, card=CARD
        )
        save_model(given.output, model)

    network = make_encoder(seed=given.seed, **content["network"])
    if given.start is not None:
        network.grow_from(load_model(find_model(given.start)).network)
    train(
        network,
        Endless(groups, workers),
        settings=settings,
        folder=given.output.with_name(f"{given.output.name}.training"),
        validation=[sample for number in range(2) for sample in held_out(number)],
        device="cuda" if given.recipe == "gpu" else "cpu",
        publish=publish,
    )


if __name__ == "__main__":
    main()
