"""`tomoloc info`: what a file is, and what it lacks."""

from __future__ import annotations

import json as json_module
import math
import re
import sys
import tomllib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
from cyclopts import Parameter

if TYPE_CHECKING:
    from tomoloc.io.tables import ParticleTable

__all__ = ["info"]

VOLUME_ENDINGS = (".mrc", ".mrcs", ".rec", ".map", ".st", ".ali", ".tif", ".tiff", ".npy", ".npz")
STRUCTURE_ENDINGS = (".pdb", ".ent", ".cif", ".mmcif")
TILT_ENDINGS = (".tlt", ".rawtlt", ".mdoc", ".xml", ".tomostar")
SHOWN = 8
MOST_LABELS = 64
LEAST_SECTIONS = 16


def info(
    file: str, /, *, json: Annotated[bool, Parameter(negative="", help="Print JSON.")] = False
) -> None:
    """Say what a file is and what it lacks.

    Volumes (MRC, OME-Zarr, TIFF, NumPy), structures, tilt files, particle tables, recipes, run
    records, model folders, embeddings, targets and simulated samples are known.

    Parameters
    ----------
    file
        File or folder, or a code such as pdb:1bxn.
    json
        Print one JSON object instead of lines for people.
    """
    report = _describe(file)
    sys.stdout.write(report.to_json(file) if json else report.to_text(file))


@dataclass
class _Report:
    """What was found out: facts with a machine's and a reader's form, what is odd, what lacks."""

    kind: str
    facts: dict[str, Any] = field(default_factory=dict)
    lines: dict[str, str] = field(default_factory=dict)
    remarks: list[str] = field(default_factory=list)
    lacks: list[str] = field(default_factory=list)

    def add(self, name: str, value: Any, text: str | None = None) -> None:
        self.facts[name.replace(" ", "_")] = value
        self.lines[name] = str(value) if text is None else text

    def to_json(self, file: str) -> str:
        content = {"file": file, "kind": self.kind, **self.facts}
        content |= {"remarks": self.remarks, "lacks": self.lacks}
        return json_module.dumps(_plain(content), ensure_ascii=False, indent=2) + "\n"

    def to_text(self, file: str) -> str:
        rows = list(self.lines.items())
        rows += [("remark", line) for line in self.remarks]
        rows += [("lacks", line) for line in self.lacks] or [("lacks", "nothing")]
        width = max(16, *(len(name) + 2 for name, _ in rows))
        return "\n".join([f"{file}: {self.kind}", *(f"  {k:<{width}}{v}" for k, v in rows)]) + "\n"


def _plain(value: Any) -> Any:
    """Return what JSON can hold: no NumPy numbers, no NaN."""
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | np.ndarray):
        return [_plain(item) for item in value]
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _describe(file: str) -> _Report:
    path = Path(file)
    ending = Path(path.name.removesuffix(".gz")).suffix.lower()
    if file.lower().startswith("pdb:") or ending in STRUCTURE_ENDINGS:
        return _structure(file)
    if not path.exists():
        raise FileNotFoundError(f"no such file or folder: {file}")
    if path.is_dir():
        return _folder(path)
    if ending in VOLUME_ENDINGS:
        return _volume(path)
    if ending in TILT_ENDINGS:
        return _tilt_series(path)
    if ending == ".toml":
        return _toml(path)
    if ending == ".star":
        return _star(path)
    if ending == ".safetensors":
        return _targets(path)
    return _table_or_text(path)


def _without_name(error: Exception, path: Path) -> str:
    """Return an error's text without the file's name in front, which the first line has."""
    text = " ".join(str(error).split())
    return re.sub(rf"^{re.escape(str(path))}(:| is| has)? ?", "", text)


def _volume(path: Path) -> _Report:
    from tomoloc.io.checks import measure
    from tomoloc.io.stored import choose_spacing
    from tomoloc.io.tilts import find_tilt_files
    from tomoloc.io.tomograms import open_volume

    stored = open_volume(path)
    report = _Report(f"volume, {stored.kind}")
    z, y, x = stored.data.shape[-3:]
    report.add("size", [x, y, z], f"{x} x {y} x {z} voxels (x y z)")
    if stored.data.ndim > 3:
        report.add("channels", list(stored.data.shape[:-3]))
    try:
        spacing = choose_spacing(stored, None, path=path)
        report.add("voxel spacing", spacing, f"{spacing:g} Å")
        edges = " x ".join(f"{n * spacing / 10:.1f}" for n in (x, y, z))
        report.add("extent", [n * spacing for n in (x, y, z)], f"{edges} nm (x y z)")
    except ValueError as error:
        report.add("voxel spacing", None, "unknown")
        report.lacks.append(_without_name(error, path))
    if len(stored.levels) > 1:
        report.add("levels", stored.levels, ", ".join(f"{s:g} Å" for s in stored.levels))
    if stored.origin.any():
        report.add(
            "origin", stored.origin, " ".join(f"{o:g}" for o in stored.origin) + " Å (x y z)"
        )
    found = measure(stored.data)
    report.add("type", stored.data.dtype.name)
    report.add(
        "values",
        {"minimum": found.minimum, "maximum": found.maximum, "mean": found.mean, "std": found.std},
        f"{found.minimum:g} to {found.maximum:g}, mean {found.mean:.4g}, deviation {found.std:.4g}",
    )
    if found.n_bad:
        report.lacks.append(f"finite values: {found.n_bad:,} voxels are NaN or infinite")
    if found.minimum == found.maximum:
        report.lacks.append("variation: every voxel has the same value")
    _add_content(
        report, stored.data.reshape(-1, y, x) if stored.data.ndim == 3 else None, found.n_bad
    )
    beside = [file.name for file in find_tilt_files(path)]
    if beside:
        report.add("tilt files", beside, ", ".join(beside))
    if z == 1 and stored.data.ndim == 3:
        report.lacks.append("a third dimension: it is a single image, no tomogram")
    return report


def _add_content(report: _Report, data: np.ndarray[Any, Any] | None, n_bad: int) -> None:
    """Say whether it looks like labels, else which contrast it has."""
    from tomoloc.physics.contrast import detect_contrast

    if data is None or n_bad or report.lacks[-1:] == ["variation: every voxel has the same value"]:
        return
    values = np.unique(data[:: max(1, len(data) // 16)])
    whole = values[0] == 0 and np.array_equal(values, np.round(values))
    if whole and len(values) <= MOST_LABELS:
        shown = ", ".join(f"{value:g}" for value in values[:SHOWN])
        more = " ..." if len(values) > SHOWN else ""
        report.add("labels", values, f"a mask or labels: {shown}{more}")
    elif len(data) < LEAST_SECTIONS:
        if len(data) > 1:
            report.remarks.append(f"only {len(data)} sections: a stack of images, no tomogram?")
    else:
        contrast = detect_contrast(data)
        facts = {"sign": contrast.sign, "confidence": contrast.confidence}
        text = f"protein looks {contrast.sign} (confidence {contrast.confidence:.2f})"
        report.add("contrast", facts, text)


def _structure(source: str) -> _Report:
    from tomoloc.io.structures import summarize_structure

    found = summarize_structure(source)
    structure = found.structure
    report = _Report("atomic structure")
    report.add(
        "atoms", len(structure.position), f"{len(structure.position):,}, no water or hydrogen"
    )
    report.add("mass_kda", found.mass_kda, f"about {found.mass_kda:,.0f} kDa")
    report.lines["mass"] = report.lines.pop("mass_kda")
    report.add("diameter", structure.diameter, f"{structure.diameter:.0f} Å")
    report.add("chains", found.n_chains)
    report.add("residues", found.n_residues, f"{found.n_residues:,}")
    if found.n_models > 1:
        report.add("models", found.n_models, f"{found.n_models}, of which the first is used")
    report.add("assemblies", found.assemblies, ", ".join(found.assemblies) or "none stated")
    if found.n_coarse:
        report.remarks.append(f"{found.n_coarse:,} residues are given by their CA or P alone")
    return report


def _tilt_series(path: Path) -> _Report:
    from tomoloc.io.tilts import list_tilt_series, read_tilt_series

    report = _Report(f"tilt series ({path.suffix})")
    names = list_tilt_series(path)
    if len(names) > 1:
        shown = ", ".join(names[:SHOWN]) + (" ..." if len(names) > SHOWN else "")
        report.add("tomograms", names, f"{len(names)}: {shown}; of {names[0]}:")
    series = read_tilt_series(path, tomogram=names[0])
    angles = series.tilt_angles
    report.add("tilts", len(series))
    report.add("tilt range", [angles.min(), angles.max()], f"{angles.min():g} to {angles.max():g}°")
    if len(series) > 1:
        step = float(np.median(np.diff(np.sort(angles))))
        report.add("tilt step", step, f"{step:.3g}° (median)")
    report.add("tilt axis", series.tilt_axis_angle, f"{series.tilt_axis_angle:g}°")
    if series.pixel_spacing is not None:
        report.add("pixel spacing", series.pixel_spacing, f"{series.pixel_spacing:g} Å")
    if series.dose_e_per_a2 is None:
        report.lacks.append("dose")
    else:
        total = float(series.dose_e_per_a2.max())
        report.add("dose_e_per_a2", total, f"{total:g} e/Å² in all")
        report.lines["dose"] = report.lines.pop("dose_e_per_a2")
    if series.ctf is None:
        report.lacks.append("CTF")
    else:
        defocus = np.stack([series.ctf.defocus_u_um, series.ctf.defocus_v_um])
        text = f"{defocus.min():.2f} to {defocus.max():.2f} µm"
        report.add("defocus_um", [defocus.min(), defocus.max()], text)
        report.lines["defocus"] = report.lines.pop("defocus_um")
        report.add("voltage_kv", series.ctf.voltage_kv, f"{series.ctf.voltage_kv:g} kV")
        report.lines["voltage"] = report.lines.pop("voltage_kv")
    return report


def _star(path: Path) -> _Report:
    """Tell the many kinds of STAR files by their columns."""
    import starfile

    try:
        blocks = starfile.read(path, always_dict=True)
    except (ValueError, IndexError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is not a STAR file, or is damaged") from error
    columns = list(dict.fromkeys(str(column) for block in blocks.values() for column in block))
    if not columns:
        raise ValueError(f"{path} is not a STAR file, or is empty")
    if "rlnTomoParticlesFile" in columns:
        report = _Report("RELION optimisation set")
        for block in blocks.values():
            for name in block:
                report.add(str(name), str(block[name]))
                if "/" not in str(block[name]) and not (path.parent / str(block[name])).exists():
                    report.lacks.append(f"the file {block[name]} it names")
        return report
    coordinates = any(re.fullmatch(r"rln(Centered)?Coordinate[XYZ](Angst)?", c) for c in columns)
    tilts = {"rlnTomoTiltSeriesStarFile", "rlnTomoProjX", "rlnTomoYTilt", "wrpAngleTilt"}
    tilts |= {"rlnTomoNominalStageTiltAngle"}
    if not coordinates and tilts & set(columns):
        report = _tilt_series(path)
        report.kind = "RELION tomograms or tilt series"
        return report
    return _table_or_text(path, columns=columns)


def _table_or_text(path: Path, *, columns: Sequence[str] = ()) -> _Report:
    from tomoloc.io.tables import detect_dialect

    try:
        dialect = detect_dialect(path)
        table, lack = _read_table(path)
    except ValueError as error:
        with path.open("rb") as file:
            head = file.read(4096)
        if not head:
            raise ValueError(f"{path} is empty") from error
        if b"\0" in head:
            raise ValueError(f"{path} is no kind of file that tomoloc reads") from error
        return _text(path, lack=_without_name(error, path), columns=columns)
    report = _Report(f"particle table, {dialect}")
    if lack:
        report.lacks.append(lack)
    _add_particles(report, table)
    if columns:
        report.add("columns", list(columns), ", ".join(columns))
    return report


def _read_table(path: Path) -> tuple[ParticleTable, str]:
    """Read a table; where it lacks a voxel or tomogram size, say so and count all the same."""
    from tomoloc.io.tables import read_table

    try:
        return read_table(path), ""
    except ValueError as error:
        try:
            # These sizes are made up, and so are the positions; only counts are taken from them.
            table = read_table(path, voxel_spacing=1.0, shape=(1 << 20,) * 3)
            return replace(table, frames={}), _without_name(error, path)
        except ValueError:
            raise error from None


def _add_particles(report: _Report, table: ParticleTable) -> None:
    particles = table.particles
    report.add("particles", len(particles), f"{len(particles):,}")
    for name, column in (("labels", particles.label), ("tomograms", particles.tomogram)):
        counts = Counter(str(value) for value in np.asarray(column))
        shown = ", ".join(f"{key or '(none)'} {n:,}" for key, n in counts.most_common(SHOWN))
        more = f" and {len(counts) - SHOWN} more" if len(counts) > SHOWN else ""
        report.add(name, dict(counts), f"{len(counts)}: {shown}{more}" if counts else "none")
    if particles.score is not None and len(particles):
        low, high = float(particles.score.min()), float(particles.score.max())
        report.add("scores", [low, high], f"{low:g} to {high:g}")
    else:
        report.lacks.append("scores")
    report.add(
        "poses", particles.rotation is not None, "no" if particles.rotation is None else "yes"
    )
    if particles.rotation is None:
        report.lacks.append("poses (orientations)")
    if particles.extra:
        report.add("further columns", list(particles.extra), ", ".join(particles.extra))
    frames = table.frames.values()
    spacings = sorted({frame.voxel_spacing for frame in frames if frame.voxel_spacing})
    if spacings:
        report.add("voxel spacing", spacings, ", ".join(f"{s:g}" for s in spacings) + " Å")
    if not all(frame.voxel_spacing for frame in frames) and not any(
        "voxel" in t for t in report.lacks
    ):
        report.lacks.append("voxel size of the tomograms: pass --voxel-spacing to convert it")
    if not all(frame.extent for frame in frames):
        report.lacks.append("size of the tomograms (formats with centred coordinates need it)")


def _text(path: Path, *, lack: str, columns: Sequence[str]) -> _Report:
    lines = [line for line in path.read_text(errors="replace").splitlines() if line.strip()]
    if (
        not columns
        and lines
        and "," in lines[0]
        and path.suffix.lower() in (".csv", ".tsv", ".txt")
    ):
        columns = [word.strip() for word in lines[0].split(",")]
    report = _Report("table, but no particle table" if columns else "text")
    report.add("lines", len(lines))
    if columns:
        report.add("columns", list(columns), ", ".join(columns))
    report.lacks.append("anything that tomoloc reads" + (f": {lack}" if columns else ""))
    return report


def _toml(path: Path) -> _Report:
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not TOML, or is damaged: {error}") from error
    kinds = {"method": "run record", "specimen": "simulation recipe"}
    kind = next((name for key, name in kinds.items() if key in content), "TOML settings")
    report = _Report(kind)
    for key, value in content.items():
        if isinstance(value, dict):
            text = ", ".join(f"{name} = {item}" for name, item in value.items())
        else:
            text = f"{len(value)} entries" if isinstance(value, list) else str(value)
        report.add(key, value, text)
    return report


def _folder(path: Path) -> _Report:
    if (path / "config.toml").is_file() and (path / "card.md").is_file():
        report = _toml(path / "config.toml")
        report.kind = "model"
        if not (path / "weights.safetensors").is_file():
            report.lacks.append("weights.safetensors")
        return report
    if (path / "tomogram.mrc").is_file() and (path / "particles.star").is_file():
        report = _volume(path / "tomogram.mrc")
        report.kind = "simulated sample, " + report.kind
        lacks = list(report.lacks)
        table, _ = _read_table(path / "particles.star")
        _add_particles(report, table)
        report.lacks = lacks
        report.add("files", sorted(p.name for p in path.iterdir()))
        report.lines["files"] = ", ".join(report.facts["files"])
        return report
    if (path / "candidates").is_dir():
        return _embedding(path)
    return _volume(path)


def _embedding(path: Path) -> _Report:
    from tomoloc.io.embeddings import read_embedding

    stored = read_embedding(path)
    source, report = stored.source, _Report("embedding")
    report.add("tomogram", str(source.tomogram))
    report.add("size", source.size, " x ".join(map(str, source.size)) + " voxels (x y z)")
    report.add("voxel spacing", source.voxel_spacing, f"{source.voxel_spacing:g} Å")
    report.add("contrast", source.contrast)
    report.add("model", source.model)
    report.add("views", source.views)
    report.add("candidates", stored.n_candidates)
    report.add("vector", stored.channels, f"{stored.channels} numbers")
    x, y, z = stored.shape[::-1]
    grid = f"{x} x {y} x {z} points (x y z), {stored.grid_spacing:g} Å apart"
    report.add("grid", [x, y, z], grid if stored.is_dense else f"{grid}, not kept")
    if not source.tomogram.is_file():
        report.remarks.append("the tomogram is no longer there: cluster cannot show its particles")
    return report


def _targets(path: Path) -> _Report:
    from tomoloc.io.targets import read_targets

    targets, report = read_targets(path), _Report("targets")
    members = dict(zip(targets.label, np.asarray(targets.n_members).tolist(), strict=True))
    report.add("labels", members, ", ".join(f"{name} ({n})" for name, n in members.items()))
    report.add("model", targets.model)
    return report
