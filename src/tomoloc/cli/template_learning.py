"""`tomoloc train template-learning`: from structures to a network, in one command."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from tomoloc.cli.segmentation import segmentation
from tomoloc.cli.training import Several

if TYPE_CHECKING:
    from tomoloc.simulate.recipe import Recipe

__all__ = ["template_learning"]

logger = logging.getLogger(__name__)


def template_learning(
    *templates: str,
    output: Annotated[Path, Parameter(name=["--output", "-o"])],
    distractors: Several | None = None,
    recipe: str = "template-learning",
    label: str = "",
    start: Annotated[str, Parameter(name="--from")] = "none",
    channels: Annotated[list[int] | None, Parameter(consume_multiple=True, negative="")] = None,
    steps: int = 3000,
    patience: int = 6,
    seed: int = 0,
    device: Literal["auto", "cpu", "cuda"] = "auto",
    devices: int = 1,
    jobs: Annotated[int, Parameter(name=["--jobs", "-j"])] = 1,
    overwrite: Annotated[bool, Parameter(negative="")] = False,
) -> None:
    """Train a network to segment what you have a structure of, without any annotated tomogram.

    Flexible variants of the templates are simulated in a crowd of distractors, over many settings
    of the microscope, and a network learns to find them (Template Learning). The recipe that is
    made of them, OUTPUT.recipe.toml, can be changed and given to tomoloc train segmentation.

    Parameters
    ----------
    templates
        Structures of what you look for: .pdb, .cif, density maps, pdb:CODE, builtin:NUMBER. Each is
        a class of its own, but with --label.
    output
        Folder of the model.
    distractors
        Structures, or folders of them, of what else there may be; by default those of the recipe,
        a hundred built-in complexes that are drawn anew for each sample.
    recipe
        Name of a recipe that comes with tomoloc, or a file, in which the templates take the place
        of the first target, and the distractors that of the first distractor.
    label
        Of all templates, where they are one kind.
    start
        Model to start from, a folder, or none for an untrained one.
    channels
        Of the network's levels: 32 48 64 by default.
    steps
        Batches of patches.
    patience
        Stop after so many validations, 100 steps apart, without a better Dice; 0 never does.
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
    import tomli_w

    from tomoloc.atomic import check_writable, writing
    from tomoloc.simulate.recipe import read_recipe, recipe_to_mapping

    if not templates:
        raise ValueError("template-learning needs at least one template: a structure or a map")
    made = _put_in(read_recipe(recipe), templates, distractors or (), label)
    check_writable(output.parent)
    path = output.with_name(f"{output.name}.recipe.toml")
    text = tomli_w.dumps(recipe_to_mapping(made))
    if not overwrite and path.is_file() and path.read_text("utf-8") != text:
        raise ValueError(
            f"{path} is another recipe; choose another folder or give --overwrite, or use it with"
            f" tomoloc train segmentation --data {path}"
        )
    with writing(path) as draft:
        draft.write_text(text, "utf-8")
    logger.info("the recipe is %s", path)
    segmentation(
        output=output,
        data=[str(path)],
        start=start,
        channels=channels,
        steps=steps,
        patience=patience,
        voxel_spacing=made.specimen.voxel_spacing if start == "none" else None,
        seed=seed,
        device=device,
        devices=devices,
        jobs=jobs,
        overwrite=overwrite,
    )


def _put_in(
    recipe: Recipe, templates: Sequence[str], distractors: Sequence[str], label: str
) -> Recipe:
    """Put structures in the place of a recipe's own."""
    from tomoloc.simulate.recipe import recipe_from_mapping, recipe_to_mapping

    mapping: dict[str, Any] = recipe_to_mapping(recipe)
    for role, words in (("target", templates), ("distractor", distractors)):
        own = [one for one in mapping.get("species", ()) if one.get("role", "target") == role]
        if not words:
            continue
        if not own:
            raise ValueError(f"the recipe {recipe.name} has no species of the role {role}")
        own[0]["structure"] = [_absolute(word) for word in words]
        own[0].pop("choose", None)
        if role == "target":
            own[0]["label"] = label
    return recipe_from_mapping(mapping)


def _absolute(word: str) -> str:
    if ":" in word:
        return word
    path = Path(word).expanduser()
    if not path.exists():
        raise FileNotFoundError(f"no structure {word}: neither a file, a folder nor pdb:CODE")
    return str(path.resolve())
