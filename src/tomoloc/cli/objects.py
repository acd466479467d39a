"""What a picker takes as an object, the command line takes as files.

A field of a picker becomes an option. Where `READERS` has a reader for the field's type, the option
takes what the reader reads, and the reader may bring further options with it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_type_hints

from cyclopts import Parameter

from tomoloc.cli.main import describe_error
from tomoloc.cli.references import read_references
from tomoloc.features.learned import default_views
from tomoloc.io.checks import check_tomogram
from tomoloc.io.stored import WHAT_TO_DO
from tomoloc.io.targets import Targets, check_model, read_targets
from tomoloc.nn.monai import AnyHeatNetwork
from tomoloc.nn.published import open_model
from tomoloc.nn.stored import StoredModel, is_shipped
from tomoloc.nn.unet import SegmentationNetwork
from tomoloc.pickers.competition import Calibration
from tomoloc.types import Structure, Volume

__all__ = ["READERS", "Given", "Reader", "find_reader", "is_file_word", "read_objects"]


@dataclass(frozen=True, kw_only=True)
class Given:
    """What readers may need besides their own words.

    Parameters
    ----------
    tomograms : sequence of Path
        That are picked.
    voxel_spacing : float, optional
    contrast : {"auto", "dark", "light"}
    device : str
    objects : mapping
        Those that have been read, by field.
    """

    tomograms: Sequence[Path] = ()
    voxel_spacing: float | None = None
    contrast: Literal["auto", "dark", "light"] = "auto"
    device: str = "auto"
    objects: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Reader:
    """How objects of a type are read.

    Parameters
    ----------
    types : tuple of type
        A field that takes one of these is read.
    hint : type
        Of the option that is called like the field.
    read : callable
        Takes the field's name, the words of all options and what is `Given`.
    describe : callable
        Takes the object and the words; returns what a run's record shall say of its inputs. If
        that changes, a table that is there already is out of date.
    more : mapping of str to type
        Of further options, with their help; none of them must be given.
    optional : bool
        The field needs a value, but not necessarily from the option of its name.
    """

    types: tuple[type, ...]
    hint: Any
    read: Callable[[str, Mapping[str, Any], Given], Any]
    describe: Callable[[Any, Mapping[str, Any]], dict[str, Any]] = lambda *_: {}
    more: Mapping[str, Any] = field(default_factory=dict)
    optional: bool = False


def find_reader(hint: Any) -> Reader | None:
    """Return the reader of a field's type; None where the words themselves are the value."""
    types = set(get_args(hint) or (hint,))
    return next((reader for reader in READERS if types & set(reader.types)), None)


def is_file_word(word: str) -> bool:
    """Tell whether a word that stands for an object is a file; a model's name may look like one."""
    return Path(word).exists() and not is_shipped(word)


def read_objects(
    picker: type, words: Mapping[str, Any], given: Given
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Read what a picker takes as objects.

    Parameters
    ----------
    picker : type
    words : mapping
        Values of all options.
    given : Given

    Returns
    -------
    objects : dict
        By field.
    inputs : dict
        What the record of a run shall say about them.
    """
    hints = get_type_hints(picker)
    readers = {item.name: find_reader(hints[item.name]) for item in fields(picker)}
    objects: dict[str, Any] = {}
    inputs: dict[str, Any] = {}
    for reader in READERS:
        for name in (name for name, own in readers.items() if own is reader):
            if words[name] is None and not reader.optional:
                continue
            objects[name] = reader.read(name, words, replace(given, objects=objects))
            inputs |= reader.describe(objects[name], words)
    return objects, inputs


def _read_templates(
    name: str, words: Mapping[str, Any], _: Given
) -> Structure | Volume | tuple[Structure | Volume, ...]:
    option = f"--{name.replace('_', '-')}"
    found = tuple(_read_template(source, option) for source in words[name])
    return found if len(found) > 1 else found[0]


def _read_template(source: str, option: str) -> Structure | Volume:
    from tomoloc.io.structures import read_structure

    if source.startswith("builtin:"):
        from tomoloc.simulate.structures import make_complex

        seed = source.removeprefix("builtin:")
        if not seed.isdigit():
            raise ValueError(f"built-in structures are builtin:SEED, a whole number; got {source}")
        return make_complex(int(seed))
    try:
        found = read_structure(source)
        if isinstance(found, Volume):
            if min(found.shape) < 2:
                raise ValueError(f"{source} is a single image; a density map is needed")
            check_tomogram(replace(found, name=source))
    except (ValueError, OSError) as error:
        # Of the template the voxel size cannot be given, of the tomogram it can.
        text = describe_error(error).replace(WHAT_TO_DO, "write it into the map's header")
        raise ValueError(f"{option}: {text}") from error
    return found


def _read_model(name: str, words: Mapping[str, Any], _: Given) -> StoredModel:
    return open_model(words[name])


def _describe_model(model: StoredModel, words: Mapping[str, Any]) -> dict[str, Any]:
    """Say which model it is, and what else of it decides about the picks."""
    if isinstance(model.network, AnyHeatNetwork):
        from tomoloc.pickers.centroid import Kinds

        return {"model": model.identity, "particles": Kinds.of(model).to_dict()}
    if isinstance(model.network, SegmentationNetwork):
        from tomoloc.pickers.segmentation import read_kinds

        classes = [kind.to_dict() for kind in read_kinds(model)]
        return {"model": model.identity, "classes": classes}
    calibration = Calibration.of(model.config).to_dict()
    described: dict[str, Any] = {"model": model.identity, "calibration": calibration}
    if "views" in words:
        described["views"] = words["views"] or default_views(model)
    return described


def _read_targets(name: str, words: Mapping[str, Any], given: Given) -> Targets:
    table, targets = words[name], words["targets"]
    option = f"--{name.replace('_', '-')}"
    if (table is None) == (targets is None):
        problem = "not both" if table is not None else "to say what to look for"
        raise ValueError(
            f"give {option} FILE (positions of examples) or --targets FILE (from tomoloc"
            f" cluster), {problem}"
        )
    model = next(found for found in given.objects.values() if isinstance(found, StoredModel))
    if targets is not None:
        found = read_targets(targets)
        check_model(found.model, model.identity, what=str(targets))
        if not len(found):
            raise ValueError(f"{targets} holds no targets; there is nothing to look for")
        return found
    return read_references(
        table,
        model=model,
        tomograms=given.tomograms,
        elsewhere=words["reference_tomogram"] or (),
        voxel_spacing=given.voxel_spacing,
        contrast=given.contrast,
        views=words["views"],
        device=given.device,
    )


def _describe_targets(targets: Targets, words: Mapping[str, Any]) -> dict[str, Any]:
    """Let a run know its examples again, whatever becomes of their file."""
    file = words["targets"] or words["reference"]
    labels = targets.label.tolist() if not isinstance(targets.label, str) else [targets.label]
    inputs: dict[str, Any] = {"examples": {name: labels.count(name) for name in targets.labels}}
    digest = hashlib.blake2b(digest_size=8)
    for path in sorted(file.rglob("*")) if file.is_dir() else [file]:
        if path.is_file():
            digest.update(path.read_bytes())
    return {**inputs, "examples_digest": digest.hexdigest()}


READERS = (
    Reader(
        types=(Structure, Volume),
        hint=Annotated[list[str], Parameter(negative="")],
        read=_read_templates,
    ),
    Reader(
        types=(StoredModel,),
        hint=str,
        read=_read_model,
        describe=_describe_model,
    ),
    Reader(
        types=(Targets,),
        hint=Path | None,
        read=_read_targets,
        describe=_describe_targets,
        more={
            "targets": Annotated[
                Path | None, Parameter(help="Targets of tomoloc cluster, instead of examples.")
            ],
            "reference_tomogram": Annotated[
                list[Path] | None,
                Parameter(
                    help="Tomograms that hold examples but are not picked.",
                    negative="",
                    consume_multiple=True,
                ),
            ],
        },
        optional=True,
    ),
)
"""In the order in which they read: later ones may need the objects of earlier ones."""
