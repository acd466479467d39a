"""The verb `simulate`."""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

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
    overwrite: Annotated[bool, Parameter(negative="")] = False,
    show_list: Annotated[bool, Parameter(name="--list", negative="")] = False,
) -> None:
    """Make tomograms with a perfect truth.

    Each sample becomes a folder with tomogram, particle table, labels and instances; the folders
    are printed. Samples that are already there, made with the same settings, are kept, so that
    an interrupted command goes on where it stopped.

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
    overwrite : bool
        Replace samples that were made with other settings.
    show_list : bool
        List the shipped recipes and stop.
    """
    from tomoloc.io.atomic import check_writable
    from tomoloc.io.samples import write_sample
    from tomoloc.progress import progress, show_progress
    from tomoloc.simulate.recipe import read_recipe, recipe_to_mapping, shipped_recipes
    from tomoloc.simulate.scene import Simulator, numbered_recipes

    if show_list:
        for name, shipped in shipped_recipes().items():
            sys.stdout.write(f"{name}\t{shipped.description}\n")
        return
    if recipe is None or output is None:
        raise ValueError("simulate needs a recipe and -o DIR; --list shows the shipped recipes")
    if number < 1:
        raise ValueError(f"--number must be at least 1; got {number}")
    simulator = Simulator(read_recipe(recipe))
    plans = numbered_recipes(simulator.recipe, number=number, seed=seed)
    extras = ["tilt_series.mrc"] * tilt_series + ["density.mrc"] * density
    finished = {
        plan.name
        for plan in plans
        if not overwrite
        and _is_finished(output / plan.name, recipe_to_mapping(plan), wanted=extras)
    }
    check_writable(output)
    with show_progress(sys.stderr.isatty()):
        for plan in progress(plans, f"simulating {simulator.recipe.name}"):
            folder = output / plan.name
            if plan.name in finished:
                logger.info("%s is there already and was kept", folder)
            else:
                sample = simulator.render(simulator.draw_resolved(plan))
                write_sample(
                    sample,
                    folder,
                    recipe=recipe_to_mapping(plan),
                    tilt_series=tilt_series,
                    density=density,
                )
            sys.stdout.write(f"{folder}\n")
            sys.stdout.flush()


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
