"""Write and read samples: a folder with a tomogram and all that is known about it."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from tomoloc.atomic import writing
from tomoloc.io.star import write_blocks
from tomoloc.io.tables import Frame, read_particles, write_particles
from tomoloc.io.tilts import list_tilt_series, read_tilt_series
from tomoloc.io.tomograms import read_tomogram, read_volume, write_volume
from tomoloc.types import Particles, Sample, TiltSeries, Tomogram, Volume

__all__ = ["read_recipe_mapping", "read_sample", "write_sample"]

FILES = {
    "tomogram.mrc", "particles.star", "labels.mrc", "labels.json", "instances.mrc",
    "membranes.star", "filaments.star", "tomogram_half1.mrc", "tomogram_half2.mrc", "scene.json",
    "tilt_series.star", "recipe.toml", "tilt_series.mrc", "tilt_angles.tlt", "density.mrc",
}  # fmt: skip

# The z axis of each point, written out for those who do not want to compose angles.
AXES = {"membranes": "tomolocNormal", "filaments": "tomolocTangent"}


def write_sample(
    sample: Sample,
    folder: str | Path,
    *,
    recipe: Mapping[str, Any] | None = None,
    tilt_series: bool = False,
    density: bool = False,
    overwrite: bool = True,
) -> None:
    """Write a sample as a folder, whole or not at all.

    Files are there for what the sample has:

    ================================== ======================================================
    tomogram.mrc                       protein dark
    particles.star                     positions, labels, poses and further columns
    labels.mrc, labels.json            class at each voxel, and the names of the classes
    instances.mrc                      row of the table, from 1, at each voxel; then all else
    membranes.star                     points on bilayers, with normals
    filaments.star                     subunits along filaments, with tangents
    tomogram_half1.mrc, ..._half2.mrc  with independent noise
    scene.json                         what else is true: `Sample.summary`
    tilt_series.star                   tilt angles, dose and CTF, as RELION names them
    recipe.toml                        what it was made by, resolved
    tilt_series.mrc, tilt_angles.tlt   with `tilt_series`
    density.mrc                        with `density`
    ================================== ======================================================

    Parameters
    ----------
    sample : Sample
    folder : path
    recipe : mapping, optional
        Content of recipe.toml.
    tilt_series, density : bool
        Whether to write the images and the potential, where the sample has them.
    overwrite : bool
        Whether an existing folder may be replaced.

    Raises
    ------
    OSError
        If the folder exists and may not be replaced or holds something else, or cannot be
        written. Nothing is left then.
    ValueError
        If the summary is no JSON.
    """
    folder = Path(folder)
    strange = sorted({file.name for file in folder.iterdir()} - FILES) if folder.is_dir() else []
    if strange:
        raise FileExistsError(
            f"{folder} holds what is no part of a sample ({strange[0]}) and would be lost; move it"
            " or choose another folder"
        )
    try:
        with writing(folder, overwrite=overwrite) as draft:
            draft.mkdir()
            _write_files(sample, draft, recipe, tilt_series=tilt_series, density=density)
    except FileExistsError:
        raise
    except OSError as error:
        reason = error.strerror or str(error)
        raise OSError(f"cannot write the sample {folder}: {reason}; nothing was left") from error


def read_sample(folder: str | Path) -> Sample:
    """Read a sample's folder, as `write_sample` writes it.

    Parameters
    ----------
    folder : path
        One that `tomoloc simulate` made.

    Returns
    -------
    Sample
        Volumes are mapped into memory. `scene` is the content of recipe.toml, or None.

    Raises
    ------
    OSError
        If the folder has no tomogram.mrc or particles.star.
    ValueError
        If a file is damaged.
    """
    folder = Path(folder)
    if not (folder / "tomogram.mrc").is_file():
        raise FileNotFoundError(f"{folder} is no sample: it has no tomogram.mrc")
    particles = read_particles(folder / "particles.star", dialect="tomoloc")
    tilts = folder / "tilt_series.star"
    series = read_tilt_series(tilts) if tilts.is_file() else None
    images = _read_optional(folder / "tilt_series.mrc")
    if series is not None and images is not None:
        series = replace(series, images=images.data, pixel_spacing=images.voxel_spacing)
    names = list_tilt_series(tilts) if series is not None else particles.tomograms
    name = names[0] if names else folder.name
    tomogram = read_tomogram(folder / "tomogram.mrc")
    legend = _read_json(folder / "labels.json")
    return Sample(
        tomogram=replace(tomogram, name=name, tilt_series=series),
        particles=particles,
        labels=_read_optional(folder / "labels.mrc"),
        legend={int(value): str(label) for value, label in legend.items()},
        instances=_read_optional(folder / "instances.mrc"),
        membranes=_read_points(folder / "membranes.star"),
        filaments=_read_points(folder / "filaments.star"),
        halves=_read_halves(folder, name=name, series=series),
        summary=_read_json(folder / "scene.json"),
        scene=read_recipe_mapping(folder),
        density=_read_optional(folder / "density.mrc"),
    )


def read_recipe_mapping(folder: str | Path) -> dict[str, Any] | None:
    """Read the recipe.toml of a sample's folder; None where there is none."""
    path = Path(folder) / "recipe.toml"
    if not path.is_file():
        return None
    try:
        return tomllib.loads(path.read_text("utf-8"))
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"{path} is no valid TOML: {error}") from error


def _write_files(
    sample: Sample,
    folder: Path,
    recipe: Mapping[str, Any] | None,
    *,
    tilt_series: bool,
    density: bool,
) -> None:
    tomogram, series = sample.tomogram, sample.tomogram.tilt_series
    write_volume(tomogram, folder / "tomogram.mrc")
    frames = {tomogram.name: Frame(tomogram.name, tomogram.shape, tomogram.voxel_spacing)}
    write_particles(sample.particles, folder / "particles.star", frames=frames)
    if sample.labels is not None:
        write_volume(sample.labels, folder / "labels.mrc")
        legend = {str(value): name for value, name in sample.legend.items()}
        _write_json(legend, folder / "labels.json")
    if sample.instances is not None:
        write_volume(sample.instances, folder / "instances.mrc")
    for item, column in AXES.items():
        if (points := getattr(sample, item)) is not None:
            write_particles(_with_axes(points, column), folder / f"{item}.star", frames=frames)
    for number, half in enumerate(sample.halves, start=1):
        write_volume(half, folder / f"tomogram_half{number}.mrc")
    if sample.summary:
        _write_json(sample.summary, folder / "scene.json")
    if series is not None:
        _write_tilts(series, folder / "tilt_series.star", name=tomogram.name)
    if tilt_series and series is not None and series.images is not None:
        spacing = series.pixel_spacing or tomogram.voxel_spacing
        write_volume(Volume(data=series.images, voxel_spacing=spacing), folder / "tilt_series.mrc")
        lines = "".join(f"{angle:.2f}\n" for angle in series.tilt_angles)
        (folder / "tilt_angles.tlt").write_text(lines, "utf-8")
    if density and sample.density is not None:
        write_volume(sample.density, folder / "density.mrc")
    if recipe is not None:
        import tomli_w

        # Last: a folder with a recipe is complete even where it was copied file by file.
        (folder / "recipe.toml").write_text(tomli_w.dumps(dict(recipe)), "utf-8")


def _write_tilts(series: TiltSeries, path: Path, *, name: str) -> None:
    import pandas as pd

    overview: dict[str, Any] = {"rlnTomoName": name, "rlnTomoTiltSeriesName": "tilt_series.mrc"}
    tilts: dict[str, Any] = {"rlnTomoNominalStageTiltAngle": series.tilt_angles}
    tilts["rlnTomoZRot"] = np.full(len(series), series.tilt_axis_angle)
    if series.pixel_spacing is not None:
        overview["rlnTomoTiltSeriesPixelSize"] = series.pixel_spacing
    if series.dose_e_per_a2 is not None:
        each = float(np.diff(np.sort(series.dose_e_per_a2), prepend=0).mean())
        overview["rlnTomoImportFractionalDose"] = each
        tilts["rlnMicrographPreExposure"] = series.dose_e_per_a2 - each
    ctf = series.ctf
    if ctf is not None:
        overview["rlnVoltage"] = ctf.voltage_kv
        overview["rlnSphericalAberration"] = ctf.spherical_aberration_mm
        overview["rlnAmplitudeContrast"] = ctf.amplitude_contrast
        tilts["rlnDefocusU"] = ctf.defocus_u_um * 1e4
        tilts["rlnDefocusV"] = ctf.defocus_v_um * 1e4
        tilts["rlnDefocusAngle"] = ctf.defocus_angle
        tilts["rlnPhaseShift"] = ctf.phase_shift
    write_blocks({"global": overview, name: pd.DataFrame(tilts)}, path)


def _with_axes(points: Particles, column: str) -> Particles:
    """Add the z axes of the points as plain columns."""
    if points.rotation is None:
        return points
    axes = points.rotation.apply([0.0, 0.0, 1.0]).reshape(-1, 3)
    values = {f"{column}{axis}": axes[:, i] for i, axis in enumerate("XYZ")}
    return replace(points, extra={**points.extra, **values})


def _read_points(path: Path) -> Particles | None:
    return read_particles(path, dialect="tomoloc") if path.is_file() else None


def _read_halves(folder: Path, *, name: str, series: TiltSeries | None) -> tuple[Tomogram, ...]:
    """Read the two half tomograms; the images they were made from are not kept."""
    files = [folder / f"tomogram_half{number}.mrc" for number in (1, 2)]
    if series is not None:
        series = replace(series, images=None)
    halves = (read_tomogram(file) for file in files if file.is_file())
    return tuple(replace(half, name=name, tilt_series=series) for half in halves)


def _write_json(values: Mapping[str, Any], path: Path) -> None:
    try:
        text = json.dumps(dict(values), indent=2, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path.name} must hold what JSON can: {error}") from error
    path.write_text(text + "\n", "utf-8")


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        values = json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is no valid JSON: {error}") from error
    if not isinstance(values, dict):
        raise ValueError(f"{path} must hold a JSON object; got {type(values).__name__}")
    return values


def _read_optional(path: Path) -> Volume | None:
    return read_volume(path) if path.is_file() else None
