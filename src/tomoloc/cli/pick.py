"""`tomoloc pick`: find particles with any method.

The options of a method are the fields of its picker, their help the picker's docstring.
"""

from __future__ import annotations

import logging
import sys
import time
import tomllib
import types
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, field, fields, make_dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from cyclopts import App, Parameter

from tomoloc.pickers import PICKERS, load_picker
from tomoloc.types import Particles, Structure, TiltSeries, Tomogram, Volume

__all__ = ["expand_config", "pick"]

logger = logging.getLogger(__name__)

Flag = Annotated[bool, Parameter(negative="")]


@dataclass(frozen=True, kw_only=True)
class PickOptions:
    """Options of all methods.

    Parameters
    ----------
    output
        Folder for the tables.
    voxel_spacing
        Voxel size in Å, where a file does not state it or states it wrong.
    contrast
        Of protein in the tomogram; detected by default.
    mask
        Label volume of the tomogram's size; particles lie where it is not zero.
    tilt_range
        First and last tilt angle, where there is no tilt file.
    tilt_file
        Tilt angles and, where it has them, exposure and CTF: .tlt, .rawtlt, .mdoc, RELION
        .star, Warp .xml. A tilt_series.star beside the tomogram is taken by itself.
    threshold
        Keep particles that score higher; set by the method by default.
    min_distance
        Smallest distance between particles in Å; half the diameter by default.
    max_particles
        Keep this many of each label.
    save_scores
        Also write the score maps.
    overwrite
        Replace tables that were made with other parameters.
    config
        Repeat a run: take what is not given here from its .run.toml.
    """

    output: Annotated[Path, Parameter(name=["--output", "-o"])]
    voxel_spacing: float | None = None
    contrast: Literal["auto", "dark", "light"] = "auto"
    mask: Path | None = None
    tilt_range: Annotated[tuple[float, float] | None, Parameter(negative="")] = None
    tilt_file: Path | None = None
    threshold: float | None = None
    min_distance: float | None = None
    max_particles: int | None = None
    save_scores: Flag = False
    overwrite: Flag = False
    config: Path | None = None


def _add_methods() -> App:
    app = App(name="pick", help="Find particles in tomograms.")
    for method in PICKERS:
        app.command(_command(method, load_picker(method)), name=method)
    return app


def _command(method: str, picker: type) -> Callable[..., int]:
    """Make the command of a picker from its fields."""
    options = _option_class(method, picker)

    def command(*tomograms: Path, common: Any, own: Any) -> int:
        return _run(method, picker, list(tomograms), common, own)

    command.__annotations__ = {
        "tomograms": Path,
        "common": Annotated[PickOptions, Parameter(name="*")],
        "own": Annotated[options, Parameter(name="*")],
        "return": int,
    }
    summary, _, rest = (picker.__doc__ or "").partition("\n\n")
    body = rest.partition("Parameters\n")[0]
    command.__doc__ = (
        f"{summary}\n\n{body}\n\nParameters\n----------\ntomograms\n"
        "    MRC (.mrc .rec .map .st .ali .mrc.gz), OME-Zarr, NumPy or TIFF files."
    )
    return command


def _option_class(method: str, picker: type) -> type:
    """Mirror a picker's fields as options; what a picker takes as an object comes as a file."""
    hints = get_type_hints(picker)
    entries = []
    for item in fields(picker):
        hint = hints[item.name]
        if {Structure, Volume} & set(get_args(hint) or (hint,)):
            hint = str
        elif hint is bool:
            hint = Flag if not item.default else bool
        elif _holds_tuple(hint):
            hint = Annotated[hint, Parameter(negative="")]
        required = item.default is MISSING and item.default_factory is MISSING
        entry = field() if required else field(default=item.default)
        entries.append((item.name, hint, entry))
    made = make_dataclass(f"{method.title()}Options", entries, frozen=True, kw_only=True)
    made.__doc__, made.__module__ = picker.__doc__, __name__
    return made


def _holds_tuple(hint: Any) -> bool:
    parts = get_args(hint) if get_origin(hint) in {Union, types.UnionType} else (hint,)
    return any(get_origin(part) is tuple for part in parts)


def expand_config(words: Sequence[str]) -> list[str]:
    """Fill in from `--config FILE` what the words after `pick` leave out.

    Raises
    ------
    ValueError
        If the file is not the record of a run.
    """
    words = list(words)
    if "--config" not in words[:-1]:
        return words
    path = Path(words[words.index("--config") + 1])
    try:
        record = tomllib.loads(path.read_text("utf-8"))
        method, parameters = record["method"]["name"], record["parameters"]
        tomogram = record["inputs"]["tomogram"]
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, KeyError) as error:
        raise ValueError(f"{path} is not the record of a run (.run.toml): {error!r}") from error
    given = {word.split("=")[0] for word in words if word.startswith("-")}
    if "-o" in given:
        given.add("--output")
    has_method = bool(words) and not words[0].startswith("-")
    has_tomogram = has_method and len(words) > 1 and not words[1].startswith("-")
    head = [] if has_method else [method]
    start, rest = (words[:1], words[1:]) if has_method else ([], words)
    filled = [*head, *start, *([] if has_tomogram else [tomogram]), *rest]
    for name, value in parameters.items():
        option = "--" + name.replace("_", "-")
        if option in given or value is False:
            continue
        if value is True:
            filled.append(option)
        else:
            values = value if isinstance(value, list) else [value]
            filled += [option, *map(str, values)]
    return filled


def _run(
    method: str, picker_class: type, tomograms: list[Path], common: PickOptions, own: Any
) -> int:
    from tomoloc.progress import show_progress

    if not tomograms:
        raise ValueError(f"pick {method} needs at least one tomogram")
    if common.tilt_range is not None and common.tilt_file is not None:
        raise ValueError("give --tilt-range or --tilt-file, not both")
    values = asdict(own)
    hints = get_type_hints(picker_class)
    for name, hint in hints.items():
        if {Structure, Volume} & set(get_args(hint)) and values.get(name) is not None:
            values[name] = _read_template(values[name])
    picker = picker_class(**values)
    parameters = _parameters(common, own)
    common.output.mkdir(parents=True, exist_ok=True)
    names = _output_names(tomograms)
    failures = []
    with show_progress(sys.stderr.isatty()):
        for path, name in zip(tomograms, names, strict=True):
            try:
                table = common.output / f"{name}.star"
                if not _is_done(table, parameters, overwrite=common.overwrite):
                    _pick_one(path, name, method, picker, common, parameters)
                sys.stdout.write(f"{table}\n")
                sys.stdout.flush()
            except (ValueError, OSError) as error:
                if len(tomograms) == 1:
                    raise
                message = " ".join(str(error).split())
                logger.error("%s failed: %s", path, message)
                failures.append(path)
    if failures:
        listed = ", ".join(str(path) for path in failures)
        logger.error("%d of %d tomograms failed: %s", len(failures), len(tomograms), listed)
    return 1 if failures else 0


def _pick_one(
    path: Path,
    name: str,
    method: str,
    picker: Any,
    common: PickOptions,
    parameters: Mapping[str, Any],
) -> None:
    from tomoloc.io.checks import check_tomogram
    from tomoloc.io.tables import Frame, write_particles
    from tomoloc.io.tomograms import read_tomogram, read_volume
    from tomoloc.pickers.pick import pick as pick_particles

    start = time.perf_counter()
    tomogram = read_tomogram(path, voxel_spacing=common.voxel_spacing)
    check_tomogram(tomogram)
    tomogram = Tomogram(
        data=tomogram.data,
        voxel_spacing=tomogram.voxel_spacing,
        origin=tomogram.origin,
        name=name,
        tilt_series=_tilt_series(path, common) or tomogram.tilt_series,
    )
    mask = None
    if common.mask is not None:
        mask = read_volume(common.mask, voxel_spacing=tomogram.voxel_spacing)
    picks = pick_particles(
        tomogram,
        picker,
        contrast=common.contrast,
        threshold=common.threshold,
        min_distance=common.min_distance,
        max_particles=common.max_particles,
        mask=mask,
    )
    frame = Frame(name=name, shape=tomogram.shape, voxel_spacing=tomogram.voxel_spacing)
    _write_scores(picks.scores, common, name)
    record = {
        "tomoloc": _provenance(method),
        "method": {"name": method},
        "parameters": dict(parameters),
        "inputs": _inputs(path, tomogram, picks.contrast),
        "results": {
            "threshold": [float(value) for value in picks.threshold],
            "n_particles": len(picks.particles),
            "diameter": float(picker.particle_diameter),
            "device": _device(picker),
            "seconds": round(time.perf_counter() - start, 2),
            "peak_memory_gib": round(_peak_memory_gib(), 3),
        },
    }
    _write_record(record, common.output / f"{name}.run.toml")
    particles = _relative_to_first_voxel(picks.particles, tomogram)
    write_particles(particles, common.output / f"{name}.star", frames={name: frame})
    logger.info(
        "%s: %d particles above %s in %.1f s",
        name,
        len(particles),
        ", ".join(f"{value:.4g}" for value in picks.threshold),
        record["results"]["seconds"],
    )


def _read_template(source: str) -> Structure | Volume:
    from tomoloc.io.structures import read_structure

    if source.startswith("builtin:"):
        from tomoloc.simulate.structures import make_complex

        seed = source.removeprefix("builtin:")
        if not seed.isdigit():
            raise ValueError(f"built-in structures are builtin:SEED, a whole number; got {source}")
        return make_complex(int(seed))
    return read_structure(source)


def _tilt_series(path: Path, common: PickOptions) -> TiltSeries | None:
    from tomoloc.io.tilts import read_tilt_series

    if common.tilt_range is not None:
        import numpy as np

        low, high = common.tilt_range
        if not -90 <= low < high <= 90:
            raise ValueError(f"--tilt-range needs -90 <= LO < HI <= 90; got {low:g} {high:g}")
        return TiltSeries(tilt_angles=np.linspace(low, high, max(2, round((high - low) / 3) + 1)))
    beside = path.parent / "tilt_series.star"
    if common.tilt_file is not None:
        return read_tilt_series(common.tilt_file)
    if beside.is_file():
        logger.info("tilt angles, exposure and CTF from %s", beside)
        return read_tilt_series(beside)
    return None


def _relative_to_first_voxel(particles: Particles, tomogram: Tomogram) -> Particles:
    """Tables count from the centre of the tomogram's first voxel."""
    from dataclasses import replace

    return replace(particles, position=particles.position - tomogram.origin)


def _output_names(tomograms: Sequence[Path]) -> list[str]:
    """Name tables after their tomograms, and after the folders where those are all alike."""
    from tomoloc.io.stored import volume_name

    stems = [volume_name(path) for path in tomograms]
    counts = Counter(stems)
    names = [
        stem if counts[stem] == 1 else Path(path).resolve().parent.name
        for stem, path in zip(stems, tomograms, strict=True)
    ]
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise ValueError(
            f"several tomograms would be written as {twice[0]}.star; pick them into separate"
            " folders"
        )
    return names


def _parameters(common: PickOptions, own: Any) -> dict[str, Any]:
    """Collect what makes a run, as TOML can hold it, with paths that are valid anywhere."""
    skipped = {"overwrite", "config", "output"}
    values = {**asdict(common), **asdict(own)}
    found: dict[str, Any] = {}
    for name, value in values.items():
        if value is None or name in skipped:
            continue
        if isinstance(value, Path) or (isinstance(value, str) and Path(value).is_file()):
            found[name] = str(Path(value).resolve())
        else:
            found[name] = list(value) if isinstance(value, tuple) else value
    return found


def _is_done(table: Path, parameters: Mapping[str, Any], *, overwrite: bool) -> bool:
    """Tell whether a table is there and was made with the same parameters."""
    if overwrite or not table.exists():
        return False
    record = table.with_suffix(".run.toml")
    if record.is_file() and tomllib.loads(record.read_text("utf-8"))["parameters"] == parameters:
        logger.info("%s is there already and was kept (--overwrite makes it anew)", table)
        return True
    raise ValueError(
        f"{table} exists and was made with other parameters; choose another folder or give"
        " --overwrite"
    )


def _write_scores(scores: Any, common: PickOptions, name: str) -> None:
    from tomoloc.io.tomograms import write_volume

    if not common.save_scores:
        return
    for channel, label in enumerate(scores.labels):
        middle = "" if len(scores.labels) == 1 else f".{label}"
        volume = Volume(
            data=scores.data[channel], voxel_spacing=scores.voxel_spacing, origin=scores.origin
        )
        write_volume(volume, common.output / f"{name}{middle}.scores.mrc")


def _provenance(method: str) -> dict[str, Any]:
    from tomoloc import __version__

    return {"version": __version__, "command": f"pick {method}", "format": 1}


def _inputs(path: Path, tomogram: Tomogram, contrast: str) -> dict[str, Any]:
    series = tomogram.tilt_series
    inputs: dict[str, Any] = {
        "tomogram": str(path.resolve()),
        "size": list(tomogram.shape[::-1]),
        "voxel_spacing": tomogram.voxel_spacing,
        "contrast": contrast,
    }
    if series is not None:
        inputs["tilt_angles"] = [float(angle) for angle in series.tilt_angles]
        inputs["ctf_known"] = series.ctf is not None
        inputs["exposure_known"] = series.dose_e_per_a2 is not None
    return inputs


def _device(picker: Any) -> str:
    from tomoloc.pickers.correlation import resolve_device

    return resolve_device(picker.device)


def _peak_memory_gib() -> float:
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**30 if sys.platform == "darwin" else 2**20)


def _write_record(record: Mapping[str, Any], path: Path) -> None:
    import tomli_w

    from tomoloc.io.atomic import writing

    with writing(path) as draft:
        draft.write_text(tomli_w.dumps(record), "utf-8")


pick = _add_methods()
