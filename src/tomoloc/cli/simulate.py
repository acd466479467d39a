"""The verb `simulate`."""

from __future__ import annotations

import logging
import sys
from contextlib import closing
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

if TYPE_CHECKING:
    from tomoloc.simulate.recipe import Recipe
    from tomoloc.simulate.scene import Simulator

__all__ = ["simulate"]

logger = logging.getLogger(__name__)


def simulate(
    recipe: str | None = None,
    /,
    *,
    number: Annotated[int, Parameter(name=["--number", "-n"])] = 1,
    seed: int | None = None,
    output: Annotated[Path | None, Parameter(name=["--output", "-o"])] = None,
    tilt_series: Annotated[bool, Parameter(negative="")] = False,
    density: Annotated[bool, Parameter(negative="")] = False,
    jobs: Annotated[int, Parameter(name=["--jobs", "-j"])] = 1,
    overwrite: Annotated[bool, Parameter(negative="")] = False,
    show_list: Annotated[bool, Parameter(name="--list", negative="")] = False,
) -> None:
    """Make tomograms with a perfect truth.

    Each sample becomes a folder with tomogram, particle table, labels and instances; the folders
    are printed. Samples that are already there, made with the same settings, are kept, so that
    an interrupted or killed command, given again, goes on where it stopped.

    Parameters
    ----------
    recipe : str
        Name of a shipped recipe (see --list), or a .toml file: your own, or the recipe.toml of
        a sample to make that sample again.
    number : int
        How many samples.
    seed : int
        Of the first sample's chance; 0, or the recipe's own. Sample i is the same for any number.
    output : Path
        Folder for the samples' folders.
    tilt_series : bool
        Also write the images, tilt_series.mrc and tilt_angles.tlt.
    density : bool
        Also write the potential, density.mrc.
    jobs : int
        How many samples to make at a time, each in a process of its own that needs memory of its
        own. The samples are the same.
    overwrite : bool
        Replace samples that were made with other settings.
    show_list : bool
        List the shipped recipes and stop.
    """
    from tomoloc.atomic import check_writable, remove_drafts
    from tomoloc.progress import progress, show_progress
    from tomoloc.simulate.recipe import read_recipe, recipe_to_mapping, shipped_recipes
    from tomoloc.simulate.scene import numbered_recipes
    from tomoloc.simulate.stream import map_in_order

    if show_list:
        for name, shipped in shipped_recipes().items():
            sys.stdout.write(f"{name}\t{shipped.description}\n")
        return
    if recipe is None or output is None:
        raise ValueError("simulate needs a recipe and -o DIR; --list shows the shipped recipes")
    for option, value in (("--number", number), ("--jobs", jobs)):
        if value < 1:
            raise ValueError(f"{option} must be at least 1; got {value}")
    asked = read_recipe(recipe)
    if seed is not None and seed < 0:
        raise ValueError(f"--seed must not be negative; got {seed}")
    plans = numbered_recipes(asked, number=number, seed=seed)
    extras = ["tilt_series.mrc"] * tilt_series + ["density.mrc"] * density
    finished = {
        plan.name
        for plan in plans
        if not overwrite
        and _is_finished(output / plan.name, recipe_to_mapping(plan), wanted=extras)
    }
    check_writable(output)
    if remove_drafts(output):
        logger.info("%s: removed what a killed command left half written", output)
    missing = [plan for plan in plans if plan.name not in finished]
    maker = _Maker(recipe=asked, output=output, tilt_series=tilt_series, density=density)
    try:
        with (
            show_progress(sys.stderr.isatty()),
            closing(map_in_order(maker, missing, workers=jobs if jobs > 1 else 0)) as made,
        ):
            for plan in progress(plans, f"simulating {asked.name}"):
                folder = output / plan.name
                if plan.name in finished:
                    logger.info("%s is there already and was kept", folder)
                else:
                    next(made)
                sys.stdout.write(f"{folder}\n")
                sys.stdout.flush()
    finally:
        remove_drafts(output)  # of processes that were ended with this one


@dataclass(kw_only=True)
class _Maker:
    """Makes and writes the sample of a resolved recipe, here or in another process."""

    recipe: Recipe
    output: Path
    tilt_series: bool
    density: bool

    @cached_property
    def simulator(self) -> Simulator:
        from tomoloc.simulate.scene import Simulator

        return Simulator(self.recipe)

    def __call__(self, plan: Recipe) -> None:
        from tomoloc.io.samples import write_sample
        from tomoloc.simulate.recipe import recipe_to_mapping

        sample = self.simulator.render(self.simulator.draw_resolved(plan))
        write_sample(
            sample,
            self.output / plan.name,
            recipe=recipe_to_mapping(plan),
            tilt_series=self.tilt_series,
            density=self.density,
        )


def _is_finished(folder: Path, recipe: dict[str, object], *, wanted: list[str]) -> bool:
    """Tell whether a sample is there with all files; complain if it is another one."""
    from tomoloc.io.samples import read_recipe_mapping

    if not folder.exists():
        return False
    if read_recipe_mapping(folder) != recipe:
        raise ValueError(
            f"{folder} exists and was made with other settings; choose another folder or give"
            " --overwrite"
        )
    return all((folder / name).is_file() for name in wanted)
