"""`tomoloc pick`: find particles with any method.

The options of a method are the fields of its picker, their help the picker's docstring.
"""

from __future__ import annotations

import logging
import math
import sys
import time
import types
from collections.abc import Callable, Collection, Mapping
from contextlib import ExitStack
from dataclasses import MISSING, asdict, dataclass, field, fields, make_dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import numpy as np
from cyclopts import App, Parameter

from tomoloc import __version__
from tomoloc.atomic import check_writable, writing
from tomoloc.cli.objects import Given, find_reader, is_file_word, read_objects
from tomoloc.cli.runs import is_done, name_outputs, peak_memory_gib, repeat_run, run_each
from tomoloc.cli.scores import label_files, read_scores, score_files
from tomoloc.io.checks import check_tomogram
from tomoloc.io.star import check_text
from tomoloc.io.stored import volume_name
from tomoloc.nn.device import resolve_device
from tomoloc.pickers import PICKERS, load_picker
from tomoloc.pickers.pick import Picks, Segmenter
from tomoloc.pickers.pick import pick as pick_particles
from tomoloc.types import TiltSeries, Tomogram, Volume

__all__ = ["pick"]

logger = logging.getLogger(__name__)

POSITIVE = ("voxel_spacing", "min_distance", "max_particles")
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
        Also write the score maps and, where the method gives poses, those of all voxels.
    save_labels
        Also write a label volume, the class of each voxel of the tomogram, with the classes' names;
        for methods that tell it.
    from_scores
        Folder of an earlier run with --save-scores: pick again from its score maps, with another
        threshold, distance, mask or number of false positives, without a new search.
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
    save_labels: Flag = False
    from_scores: Path | None = None
    overwrite: Flag = False
    config: Path | None = None


def _add_methods() -> App:
    app = App(name="pick", help="Find particles in tomograms.", config=repeat_run)
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
    if all(item.default is not MISSING for item in fields(options)):
        command.__kwdefaults__ = {"own": options()}
    summary, _, rest = (picker.__doc__ or "").partition("\n\n")
    body = rest.partition("Parameters\n")[0]
    command.__doc__ = (
        f"{summary}\n\n{body}\n\nParameters\n----------\ntomograms\n"
        "    MRC (.mrc .rec .map .st .ali .mrc.gz), OME-Zarr, NumPy or TIFF files."
    )
    return command


def _option_class(method: str, picker: type) -> type:
    """Mirror a picker's fields as options; what a picker takes as an object comes as files."""
    hints = get_type_hints(picker)
    entries = []
    for item in fields(picker):
        hint, reader = hints[item.name], find_reader(hints[item.name])
        if reader is not None:
            hint = reader.hint
        elif hint is bool:
            hint = Flag if not item.default else bool
        elif _holds_tuple(hint):
            hint = Annotated[hint, Parameter(negative="")]
        required = item.default is MISSING and item.default_factory is MISSING
        default = None if required else item.default
        optional = not required or (reader is not None and reader.optional)
        entries.append((item.name, hint, field(default=default) if optional else field()))
        for name, further in (reader.more if reader else {}).items():
            entries.append((name, further, field(default=None)))
    made = make_dataclass(f"{method.title()}Options", entries, frozen=True, kw_only=True)
    made.__doc__, made.__module__ = picker.__doc__, __name__
    return made


def _holds_tuple(hint: Any) -> bool:
    parts = get_args(hint) if get_origin(hint) in {Union, types.UnionType} else (hint,)
    return any(get_origin(part) is tuple for part in parts)


def _run(
    method: str, picker_class: type, tomograms: list[Path], common: PickOptions, own: Any
) -> int:
    from tomoloc.progress import show_progress

    if not tomograms:
        raise ValueError(f"pick {method} needs at least one tomogram")
    if common.save_labels and not issubclass(picker_class, Segmenter):
        raise ValueError(f"pick {method} tells no class of voxels: leave out --save-labels")
    words = asdict(own)
    _check_options(common, {**asdict(common), **words})
    names = name_outputs(tomograms, ending=".star")
    hints = get_type_hints(picker_class)
    read = {name for name, hint in hints.items() if find_reader(hint) is not None}
    parameters = _parameters({**asdict(common), **words}, files=read)
    check_writable(common.output)
    _check_outputs([common.output / f"{name}.star" for name in names], parameters)
    with show_progress(sys.stderr.isatty()):
        given = Given(
            tomograms=tomograms,
            voxel_spacing=common.voxel_spacing,
            contrast=common.contrast,
            device=words["device"],
        )
        objects, inputs = read_objects(picker_class, words, given)
        check_text(inputs.get("examples", ()))
        values = {item.name: words[item.name] for item in fields(picker_class)}
        run = _Run(
            method=method,
            picker=picker_class(**{**values, **objects}),
            common=common,
            parameters=parameters,
            inputs=inputs,
        )
        return run_each(tomograms, lambda number: run.pick(tomograms[number], names[number]))


def _check_options(common: PickOptions, values: Mapping[str, Any]) -> None:
    """Refuse what no tomogram could be picked with, before the first one is read."""
    for name, value in values.items():
        option = f"--{name.replace('_', '-')}"
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError(f"{option} needs a finite number; got {value}")
        if name in POSITIVE and value is not None and value <= 0:
            raise ValueError(f"{option} must be positive; got {value:g}")
        if name == "seed" and value < 0:
            raise ValueError(f"--seed must be 0 or more; got {value}")
    if common.tilt_range is not None:
        low, high = common.tilt_range
        if common.tilt_file is not None:
            raise ValueError("give --tilt-range or --tilt-file, not both")
        if not -90 <= low < high <= 90:
            raise ValueError(f"--tilt-range needs -90 <= LO < HI <= 90; got {low:g} {high:g}")


def _check_outputs(tables: Collection[Path], parameters: Mapping[str, Any]) -> None:
    """Refuse to replace what is read, and to write into a folder that is read."""
    read = {word for value in parameters.values() for word in np.atleast_1d(value).astype(str)}
    for table in map(Path.resolve, tables):
        if lost := read & {str(table), str(table.parent)}:
            raise ValueError(f"{lost.pop()} is read and may not be written to; give another -o")


@dataclass(frozen=True, eq=False, kw_only=True)
class _Run:
    """What is done with each tomogram."""

    method: str
    picker: Any
    common: PickOptions
    parameters: Mapping[str, Any]
    inputs: Mapping[str, Any]

    def pick(self, path: Path, name: str) -> Path:
        """Pick one tomogram unless that has been done; return the table's path."""
        common, table = self.common, self.common.output / f"{name}.star"
        source = {"tomogram": str(path.resolve()), **self.inputs}
        if not common.overwrite and is_done(
            table, method=self.method, parameters=self.parameters, inputs=source
        ):
            return table
        start = time.perf_counter()
        tomogram, mask = _read(path, name, common)
        scores = None
        if common.from_scores is not None:
            scores = read_scores(common.from_scores / f"{name}.star", method=self.method)
        picks = pick_particles(
            tomogram,
            self.picker,
            contrast=common.contrast,
            threshold=common.threshold,
            min_distance=common.min_distance,
            max_particles=common.max_particles,
            mask=mask,
            scores=scores,
        )
        results = {
            "threshold": _threshold(picks),
            "n_particles": len(picks.particles),
            "diameter": np.round(picks.diameter, 1).tolist(),
            **picks.summary,
            "device": resolve_device(self.picker.device),
            "seconds": round(time.perf_counter() - start, 2),
        }
        peak = peak_memory_gib()
        if peak is not None:
            results["peak_memory_gib"] = round(peak, 3)
        record: dict[str, Any] = {
            "tomoloc": {"version": __version__, "command": f"pick {self.method}", "format": 1},
            "method": {"name": self.method},
            "parameters": dict(self.parameters),
            "inputs": source | _inputs(tomogram, picks.contrast),
            "results": results,
        }
        if common.save_scores:
            told = picks.scores.diameter
            record["scores"] = {"labels": list(picks.scores.labels)}
            record["scores"] |= {} if told is None else {"diameter": float(told)}
        files = dict(score_files(table, picks.scores)) if common.save_scores else {}
        if common.save_labels and picks.segments is not None:
            legend = picks.scores.labels
            files |= label_files(table, picks.segments, legend=legend, tomogram=tomogram)
        _write(picks, record, tomogram, table=table, files=files)
        thresholds = ", ".join(dict.fromkeys(f"{value:.4g}" for value in picks.threshold))
        # Points along filaments are no particles.
        counts = picks.summary.get("count", {"particles": results["n_particles"]})
        found = ", ".join(f"{number} {label}" for label, number in counts.items())
        logger.info("%s: %s above %s in %.1f s", name, found, thresholds, results["seconds"])
        return table


def _read(path: Path, name: str, common: PickOptions) -> tuple[Tomogram, Volume | None]:
    """Read a tomogram, what is known of its tilt series, and its mask."""
    from tomoloc.io.tomograms import read_tomogram, read_volume

    tomogram = read_tomogram(path, voxel_spacing=common.voxel_spacing)
    check_tomogram(replace(tomogram, name=str(path)))
    series = _tilt_series(path, common) or tomogram.tilt_series
    tomogram = replace(tomogram, name=name, tilt_series=series)
    if common.mask is None:
        return tomogram, None
    mask = read_volume(common.mask, voxel_spacing=tomogram.voxel_spacing)
    if not mask.data.any():
        raise ValueError(f"{common.mask} is zero everywhere: no place is left for particles")
    return tomogram, mask


def _write(
    picks: Picks,
    record: Mapping[str, Any],
    tomogram: Tomogram,
    *,
    table: Path,
    files: Mapping[Path, Callable[[Path], None]],
) -> None:
    """Write all of a tomogram's files, then put them in their places, the record last.

    Where something fails, what an earlier run left is still there; where it is cut off between two
    files, the record does not claim a table that it did not make.
    """
    import tomli_w

    from tomoloc.io.tables import Frame, write_particles

    frame = Frame(tomogram.name, tomogram.shape, tomogram.voxel_spacing)
    # Tables count from the centre of the tomogram's first voxel.
    position = picks.particles.position - tomogram.origin
    particles = replace(picks.particles, position=position)
    with writing(table.with_suffix(".run.toml")) as draft, ExitStack() as drafts:
        draft.write_text(tomli_w.dumps(record), "utf-8")
        write_particles(particles, drafts.enter_context(writing(table)), frames={frame.name: frame})
        for file, write in files.items():
            write(drafts.enter_context(writing(file)))


def _tilt_series(path: Path, common: PickOptions) -> TiltSeries | None:
    from tomoloc.io.tilts import find_tilt_files, list_tilt_series, read_tilt_series

    if common.tilt_range is not None:
        low, high = common.tilt_range
        return TiltSeries(tilt_angles=np.linspace(low, high, max(2, round((high - low) / 3) + 1)))
    file = common.tilt_file
    if file is None:
        file = path.parent / "tilt_series.star"
        if not file.is_file():
            for beside in find_tilt_files(path)[:1]:
                logger.info("%s lies beside it; --tilt-file %s uses it", beside.name, beside)
            return None
        logger.info("tilt angles, exposure and CTF from %s", file)
    several = len(list_tilt_series(file)) > 1
    return read_tilt_series(file, tomogram=volume_name(path) if several else None)


def _parameters(values: Mapping[str, Any], *, files: Collection[str]) -> dict[str, Any]:
    """Collect what makes a run, as TOML can hold it, with paths that are valid anywhere."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        if value is None or name in {"overwrite", "config", "output"}:
            continue
        if isinstance(value, list | tuple):
            found[name] = [_portable(word, may_be_file=name in files) for word in value]
            if name in files and len(value) == 1:
                found[name] = found[name][0]
        else:
            found[name] = _portable(value, may_be_file=name in files)
    return found


def _portable(value: Any, *, may_be_file: bool) -> Any:
    if isinstance(value, Path) or (may_be_file and is_file_word(value)):
        return str(Path(value).resolve())
    return value


def _threshold(picks: Picks) -> float | dict[str, float]:
    """State one threshold as a number, several by label."""
    values = dict(zip(picks.scores.labels, map(float, picks.threshold), strict=True))
    return next(iter(values.values())) if len(values) == 1 else values


def _inputs(tomogram: Tomogram, contrast: str) -> dict[str, Any]:
    series = tomogram.tilt_series
    inputs: dict[str, Any] = {
        "size": list(tomogram.shape[::-1]),
        "voxel_spacing": tomogram.voxel_spacing,
        "contrast": contrast,
    }
    if series is not None:
        inputs["tilt_angles"] = [float(angle) for angle in series.tilt_angles]
        inputs["ctf_known"] = series.ctf is not None
        inputs["exposure_known"] = series.dose_e_per_a2 is not None
    return inputs


pick = _add_methods()
