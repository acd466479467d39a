"""STAR files of particles: our own, RELION 3, 4 and 5, and Warp."""

from __future__ import annotations

import contextlib
import linecache
import logging
import re
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.spatial.transform import Rotation

from tomoloc import __version__
from tomoloc.io.frames import Frame, Given, ParticleTable, each
from tomoloc.types import FloatArray, Particles

if TYPE_CHECKING:
    import pandas as pd

__all__ = [
    "check_text",
    "detect_star",
    "numbers",
    "plain",
    "read_blocks",
    "read_relion3",
    "read_relion4",
    "read_relion5",
    "read_tomoloc",
    "read_warp",
    "relion_angles",
    "relion_rotation",
    "write_blocks",
    "write_relion3",
    "write_relion4",
    "write_relion5",
    "write_tomoloc",
    "write_warp",
]

logger = logging.getLogger(__name__)

_EMPTY_AT_END = re.compile(r"^[ \t]*data_(\S*)(?:\s|#.*)*\Z", re.MULTILINE)


def _xyz(head: str, tail: str = "") -> list[str]:
    return [f"{head}{axis}{tail}" for axis in "XYZ"]


NAMES = ("rlnTomoName", "rlnMicrographName")
VOXELS = _xyz("rlnCoordinate")
CENTERED = _xyz("rlnCenteredCoordinate", "Angst")
SHIFTS = _xyz("rlnOrigin", "Angst")
SHIFTS_PIXELS = _xyz("rlnOrigin")
ANGLES = ["rlnAngleRot", "rlnAngleTilt", "rlnAnglePsi"]
SUBTOMOGRAM_ANGLES = ["rlnTomoSubtomogramRot", "rlnTomoSubtomogramTilt", "rlnTomoSubtomogramPsi"]
SUBTOMOGRAM_PRIORS = ["rlnAngleTiltPrior", "rlnAnglePsiPrior"]
LABEL, SCORE = "tomolocLabel", "rlnAutopickFigureOfMerit"
LABELS = (LABEL, "rlnParticleName")
SCORES = (SCORE, "rlnLCCmax", "ptmLCCmax")
TILT_PIXEL, IMAGE_PIXEL, DETECTOR_PIXEL = (
    "rlnTomoTiltSeriesPixelSize",
    "rlnImagePixelSize",
    "rlnDetectorPixelSize",
)
SPACING_SOURCES = (
    TILT_PIXEL,
    "rlnMicrographPixelSize",
    "rlnMicrographOriginalPixelSize",
    "rlnPixelSize",
    DETECTOR_PIXEL,
    IMAGE_PIXEL,
)
"""Columns that may state the voxel size of `rlnCoordinateX/Y/Z`; the first that is there counts."""

OPTICS = re.compile(
    r"rln(OpticsGroup(Name)?|Voltage|SphericalAberration|AmplitudeContrast|ImageDimensionality"
    r"|ImageSize|CtfDataAreCtfPremultiplied|TomoSubtomogramBinning|MicrographBinning|MtfFileName"
    r"|BeamTilt[XY]|(Even|Odd)Zernike|(Image|TomoTiltSeries|Micrograph(Original)?)PixelSize)"
)
"""Columns of the block `optics`. They travel as columns of each particle."""

GENERAL = ("rlnTomoSubTomosAre2DStacks",)
"""Values of the block `general`. They travel as columns of each particle."""

CENTER_WORDS = {"half": "N/2", "picker": "N/2 - 1 unbinned voxels"}


def relion_rotation(angles: FloatArray) -> Rotation:
    """Turn RELION's Rot, Tilt and Psi, shape (n, 3), into rotations of reference to tomogram.

    RELION's angles are intrinsic ZYZ, in degrees, of the rotation of tomogram to reference.
    """
    return Rotation.from_euler("ZYZ", np.reshape(angles, (-1, 3)), degrees=True).inv()


def relion_angles(rotation: Rotation) -> FloatArray:
    """Turn rotations of reference to tomogram into RELION's Rot, Tilt and Psi, shape (n, 3)."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Gimbal lock")
        return rotation.inv().as_euler("ZYZ", degrees=True)


# --- files ------------------------------------------------------------------------------------


def read_blocks(path: Path) -> dict[str, Any]:
    """Read a STAR file into data frames (loops) and dicts (lists) of text, by block name.

    Raises
    ------
    ValueError
        If it is no STAR file.
    """
    import starfile

    text = path.read_text(errors="replace")
    if not re.search(r"^\s*data_", text, re.MULTILINE):
        raise ValueError("not a STAR file: it has no data_ block")
    columns = sorted(set(re.findall(r"^\s*_(\S+)", text, re.MULTILINE)))
    try:
        return starfile.read(path, always_dict=True, parse_as_string=columns)
    except (ValueError, TypeError) as error:
        linecache.clearcache()  # it would hide from the next reader that the file was mended
        empty = _EMPTY_AT_END.search(text)
        reason = f"block data_{empty[1]} is empty" if empty else " ".join(str(error).split())
        raise ValueError(f"not a valid STAR file ({reason})") from error


def write_blocks(
    blocks: Mapping[str, Any], path: Path, *, remark: str = "", missing: str = "nan"
) -> None:
    """Write data frames and dicts as a STAR file; the same content gives the same bytes."""
    import pandas as pd
    import starfile

    for block in blocks.values():
        words = block.select_dtypes(exclude="number") if isinstance(block, pd.DataFrame) else block
        for column in words:
            check_text(map(str, pd.unique(pd.Series(words[column], dtype=object))))
    text = starfile.to_string(dict(blocks), float_format="%.9g", na_rep=missing)
    _, _, body = text.partition("\n")  # the first line has a date
    path.write_text(f"# tomoloc {__version__}{remark and f'; {remark}'}\n{body}")


def check_text(words: Iterable[str]) -> None:
    """Refuse names that would not be read again as they are written.

    Raises
    ------
    ValueError
        If one holds quotes, # or a character that is not printed.
    """
    for word in words:
        if re.search(r"[\x00-\x1f\x85\u2028\u2029'\"#]", word):
            raise ValueError(f"STAR tables cannot hold the name {word!r}: no quotes, no #, no tabs")


def detect_star(path: Path) -> str:
    """Tell the dialect of a STAR file by its blocks and columns."""
    blocks = read_blocks(path)
    for block, dialect in (("tomoloc", "tomoloc"), ("cryolo", "cbox")):
        if block in blocks:
            return dialect
    table, _ = _load(path, blocks)
    if set(CENTERED) <= set(table):
        return "relion5"
    places = numbers(table, VOXELS)
    if len(places) and (abs(places - 0.5) < 0.6).all():
        return "warp"
    return "relion4" if "rlnTomoName" in table else "relion3"


def _load(path: Path, blocks: dict[str, Any]) -> tuple[pd.DataFrame, Path | None]:
    """Return the table of particles, joined with optics, and the file of tomograms if there is one.

    An optimisation set is followed to the files that it names.
    """
    import pandas as pd

    for block in blocks.values():
        if "rlnTomoParticlesFile" in block:
            row = block if isinstance(block, dict) else block.iloc[0]
            particles = _relative(path, str(row["rlnTomoParticlesFile"]))
            table, tomograms = _load(particles, read_blocks(particles))
            if "rlnTomoTomogramsFile" in block:
                tomograms = _relative(path, str(row["rlnTomoTomogramsFile"]))
            return table, tomograms
    tables = [block for block in blocks.values() if isinstance(block, pd.DataFrame)]
    found = [table for table in tables if {*CENTERED} <= {*table} or {*VOXELS} <= {*table}]
    if not found:
        columns = [str(name) for block in blocks.values() for name in block]
        raise ValueError(
            "no particle coordinates (rlnCoordinateX/Y/Z or rlnCenteredCoordinateX/Y/ZAngst)"
            f" found; columns are: {', '.join(columns[:40]) or 'none'}"
        )
    siblings = (path.with_name(f"{path.stem}_tomograms.star"), path.with_name("tomograms.star"))
    return _join(found[0], blocks), next((file for file in siblings if file.exists()), None)


def _relative(path: Path, name: str) -> Path:
    """Find a file that a STAR file names: beside it, or from a folder above (RELION's project)."""
    for folder in path.resolve().parents:
        if (folder / name).exists():
            return folder / name
    raise FileNotFoundError(f"{path} names {name}, which is neither beside it nor above it")


def _join(table: pd.DataFrame, blocks: dict[str, Any]) -> pd.DataFrame:
    """Add what the blocks of optics groups and general values say to each particle."""
    import pandas as pd

    optics, general = blocks.get("optics"), blocks.get("general")
    if optics is not None:
        optics = pd.DataFrame([optics]) if isinstance(optics, dict) else optics
        new = [name for name in optics if name not in table]
        if "rlnOpticsGroup" in table and "rlnOpticsGroup" in optics:
            table = table.merge(optics[["rlnOpticsGroup", *new]], on="rlnOpticsGroup", how="left")
        elif len(optics) == 1:
            table = table.assign(**{str(name): optics[name].iloc[0] for name in new})
    if isinstance(general, dict):
        table = table.assign(**{name: general[name] for name in GENERAL if name in general})
    return table


def _read_tomograms(path: Path | None) -> dict[str, tuple[Frame, float]]:
    """Read frames and tilt series pixel sizes by name from RELION's file of tomograms."""
    if path is None:
        return {}
    wanted = {"rlnTomoName", *_xyz("rlnTomoSize"), TILT_PIXEL}
    table = next((block for block in read_blocks(path).values() if wanted <= {*block}), None)
    if table is None:
        return {}
    tomograms = {}
    for row in [table] if isinstance(table, dict) else table.to_dict("records"):
        name, pixel = str(row["rlnTomoName"]), float(row[TILT_PIXEL])
        x, y, z = (float(row[column]) * pixel for column in _xyz("rlnTomoSize"))
        spacing = pixel * float(row.get("rlnTomoTomogramBinning", 1))
        tomograms[name] = (Frame(name, None, spacing, (x, y, z)), pixel)
    logger.info("sizes of tomograms from %s", path)
    return tomograms


# --- columns ----------------------------------------------------------------------------------


def numbers(table: pd.DataFrame, columns: Sequence[str]) -> FloatArray:
    """Return columns as numbers, shape (n, number of columns), or raise ValueError."""
    missing = [name for name in columns if name not in table]
    if missing:
        listed = ", ".join(map(str, table))
        raise ValueError(f"missing columns {', '.join(missing)}; columns are: {listed}")
    try:
        return table[list(columns)].to_numpy(dtype=float)
    except ValueError as error:
        listed = ", ".join(columns)
        raise ValueError(f"text where {listed} should be numbers ({error})") from error


def plain(column: pd.Series[Any]) -> NDArray[Any]:
    """Return a column as numbers if it is one; what begins with 0, such as 007, is a name."""
    import pandas as pd

    if column.dtype.kind in "iufb":
        return column.to_numpy()
    text = column.fillna("nan").astype(str)
    if not text.str.match(r"[-+]?0\d").any():
        with contextlib.suppress(ValueError):
            return pd.to_numeric(text).to_numpy()
    return text.to_numpy(dtype=np.str_)


def _text(column: pd.Series[Any]) -> NDArray[np.str_]:
    return column.fillna("nan").astype(str).to_numpy(dtype=np.str_)


def _names(table: pd.DataFrame, path: Path, given: Given) -> NDArray[np.str_]:
    """Return each particle's tomogram."""
    column = next((name for name in NAMES if name in table), None)
    if column is None:
        return np.full(len(table), given.tomogram or path.stem)
    return _text(table[column])


def _spacing_source(table: pd.DataFrame) -> str | None:
    """Tell the column that states the voxel size of the coordinates.

    RELION 4 counts in voxels of the tilt series, but WarpTools in voxels of the particle images.
    """
    column = next((name for name in NAMES if name in table), None)
    first = "" if column is None or not len(table) else str(table[column].iloc[0])
    from_warp = first.endswith(".tomostar") and IMAGE_PIXEL in table
    sources = (IMAGE_PIXEL,) if from_warp else SPACING_SOURCES
    return next((name for name in sources if name in table), None)


def _stated_spacing(table: pd.DataFrame) -> FloatArray | None:
    """Return the voxel size of each particle's coordinates, as the table states it."""
    source = _spacing_source(table)
    if source is None:
        return None
    spacing = numbers(table, [source])[:, 0]
    if source == DETECTOR_PIXEL and "rlnMagnification" in table:
        spacing = spacing * 1e4 / numbers(table, ["rlnMagnification"])[:, 0]
    return spacing


def _with_tilt_pixel(
    table: pd.DataFrame, names: NDArray[np.str_], tomograms: Mapping[str, tuple[Frame, float]]
) -> pd.DataFrame:
    """Add the tilt series' pixel size from tomograms.star where the table does not state it."""
    if TILT_PIXEL in table or not {*names.tolist()} <= {*tomograms}:
        return table
    return table.assign(**{TILT_PIXEL: [tomograms[name][1] for name in names.tolist()]})


def _frames(
    names: NDArray[np.str_],
    stated: FloatArray | None,
    tomograms: Mapping[str, tuple[Frame, float]],
    given: Given,
) -> dict[str, Frame]:
    """Put together what is known of each tomogram that the particles name."""
    frames = {}
    for name in list(dict.fromkeys(names.tolist())) or list(tomograms):
        spacings = set() if stated is None else set(stated[names == name].tolist())
        if len(spacings) > 1:
            raise ValueError(f"tomogram {name!r} has several voxel sizes: {sorted(spacings)}")
        known = tomograms[name][0] if name in tomograms else None
        frames[name] = given.frame(name, voxel_spacing=next(iter(spacings), None), known=known)
    return frames


def _particles(
    table: pd.DataFrame, position: FloatArray, names: NDArray[np.str_], *, pixel: FloatArray
) -> Particles:
    """Apply shifts and poses to positions, and keep every column that has no other place.

    RELION composes the pose of a particle as A_subtomogram @ A_particle and subtracts
    A_subtomogram @ shift from its coordinates.
    """
    columns = {*table}
    taken = {*VOXELS, *CENTERED, *SHIFTS, *SHIFTS_PIXELS, *ANGLES, LABEL, SCORE}
    taken |= {next((name for name in NAMES if name in columns), "")}
    shift = np.zeros_like(position)
    if {*SHIFTS} <= columns:
        shift = numbers(table, SHIFTS)
    elif {*SHIFTS_PIXELS} <= columns:
        shift = numbers(table, SHIFTS_PIXELS) * pixel
    rotation = relion_rotation(numbers(table, ANGLES)) if {*ANGLES} <= columns else None
    if {*SUBTOMOGRAM_ANGLES} <= columns:
        first = relion_rotation(numbers(table, SUBTOMOGRAM_ANGLES))
        shift = np.einsum("nij,nj->ni", first.as_matrix(), shift)
        rotation = first if rotation is None else first * rotation
        taken |= {*SUBTOMOGRAM_ANGLES, *SUBTOMOGRAM_PRIORS}
    label = next((name for name in LABELS if name in columns), None)
    score = next((name for name in SCORES if name in columns), None)
    return Particles(
        position=position - shift,
        label="" if label is None else _text(table[label]),
        tomogram=names,
        score=None if score is None else numbers(table, [score])[:, 0],
        rotation=rotation,
        extra={str(name): plain(column) for name, column in table.items() if name not in taken},
    )


def _table(particles: Particles, columns: Mapping[str, Any]) -> pd.DataFrame:
    """Put together the columns of a STAR table; extra columns come last."""
    import pandas as pd

    table = dict(columns)
    if any(particles.labels):
        table[LABEL] = particles.label
    if particles.score is not None:
        table[SCORE] = particles.score
    if particles.rotation is not None:
        table.update(zip(ANGLES, relion_angles(particles.rotation).T, strict=True))
    return pd.DataFrame({**table, **{k: v for k, v in particles.extra.items() if k not in table}})


# --- our own ----------------------------------------------------------------------------------


def read_tomoloc(path: Path, given: Given) -> ParticleTable:
    """Read our STAR: voxel coordinates, and the grid of each tomogram in the block `tomoloc`."""
    blocks = read_blocks(path)
    head = blocks.get("tomoloc")
    if head is None:
        raise ValueError("no block data_tomoloc: not a table that tomoloc wrote")
    table, _ = _load(path, blocks)
    rows = [head] if isinstance(head, dict) else head.to_dict("records")
    frames = {str(row["rlnTomoName"]): _read_head(row, given) for row in rows}
    names = _names(table, path, given)
    unknown = {*names.tolist()} - {*frames}
    if unknown:
        raise ValueError(f"data_tomoloc says nothing of tomogram {', '.join(sorted(unknown))}")
    spacing = each(names, frames, Frame.known_spacing)
    particles = _particles(table, numbers(table, VOXELS) * spacing, names, pixel=spacing)
    return ParticleTable(particles=particles, frames=frames)


def _read_head(row: Mapping[str, Any], given: Given) -> Frame:
    import pandas as pd

    known: dict[str, tuple[Any, Any, Any]] = {}
    for key, columns in (("size", _xyz("tomolocSize")), ("extent", _xyz("tomolocExtent", "Angst"))):
        if {*columns} <= {*row} and not any(pd.isna(row[name]) for name in columns):
            x, y, z = (float(row[name]) for name in columns)
            known[key] = (int(z), int(y), int(x)) if key == "size" else (x, y, z)
    name, spacing = str(row["rlnTomoName"]), float(row["tomolocVoxelSpacing"])
    frame = Frame(name, known.get("size"), spacing, known.get("extent"))
    return given.frame(name, known=frame)


def write_tomoloc(table: ParticleTable, path: Path, given: Given) -> None:
    """Write our STAR: coordinates in voxels and, where sizes are known, in angstrom from N/2."""
    import pandas as pd

    particles = table.particles
    columns: dict[str, Any] = {"rlnTomoName": particles.tomogram}
    columns.update(zip(VOXELS, table.index().T, strict=True))
    if all(frame.extent is not None for frame in table.frames.values()):
        columns.update(zip(CENTERED, _centered(table, given).T, strict=True))
    columns[LABEL] = particles.label
    heads = [_head(frame, given) for frame in table.frames.values()]
    head = heads[0] if len(heads) == 1 else pd.DataFrame(heads)
    write_blocks({"tomoloc": head, "particles": _table(particles, columns)}, path)


def _head(frame: Frame, given: Given) -> dict[str, Any]:
    head: dict[str, Any] = {"tomolocVersion": __version__, "rlnTomoName": frame.name}
    if frame.shape is not None and frame.extent is not None:
        head.update(zip(_xyz("tomolocSize"), frame.shape[::-1], strict=True))
        exact = np.array(frame.shape[::-1]) * frame.known_spacing()
        if not np.allclose(exact, frame.extent, rtol=0, atol=1e-6):
            head.update(zip(_xyz("tomolocExtent", "Angst"), frame.extent, strict=True))
    head["tomolocVoxelSpacing"] = frame.known_spacing()
    head["tomolocConvention"] = (
        "rlnCoordinate: voxels xyz, 0 is the centre of the first voxel;"
        f" rlnCenteredCoordinate: angstrom from {CENTER_WORDS[given.center]};"
        " angles: RELION, tomogram to reference"
    )
    return head


# --- RELION -----------------------------------------------------------------------------------


def _center(half: FloatArray, pixel: ArrayLike, given: Given) -> FloatArray:
    """Return where centred coordinates count from, for each particle, shape (n, 3).

    RELION itself turns them into voxels with N/2 of the unbinned tomogram; its picker, and
    pytom-match-pick where it knows the unbinned size, write them from N/2 - 1.
    """
    return half if given.center == "half" else half - np.reshape(pixel, (-1, 1))


def _half(frame: Frame) -> FloatArray:
    return frame.known_extent() / 2


def _centered(table: ParticleTable, given: Given) -> FloatArray:
    pixel = table.particles.extra.get(TILT_PIXEL)
    if pixel is None:
        pixel = table.each(Frame.known_spacing)
    return table.particles.position - _center(table.each(_half), pixel, given)


def read_relion3(path: Path, given: Given) -> ParticleTable:
    """Read voxel coordinates; the voxel size is given or in a column or optics group."""
    table, tomogram_file = _load(path, read_blocks(path))
    names, tomograms = _names(table, path, given), _read_tomograms(tomogram_file)
    if _spacing_source(table) is None:
        table = _with_tilt_pixel(table, names, tomograms)
    frames = _frames(names, _stated_spacing(table), tomograms, given)
    spacing = each(names, frames, Frame.known_spacing)
    particles = _particles(table, numbers(table, VOXELS) * spacing, names, pixel=spacing)
    return ParticleTable(particles=particles, frames=frames)


read_relion4 = read_relion3


def read_relion5(path: Path, given: Given) -> ParticleTable:
    """Read angstrom from the middle of the tomogram, whose size is given or in tomograms.star."""
    table, tomogram_file = _load(path, read_blocks(path))
    names, tomograms = _names(table, path, given), _read_tomograms(tomogram_file)
    table = _with_tilt_pixel(table, names, tomograms)
    frames = _frames(names, None if tomograms else _stated_spacing(table), tomograms, given)
    half = each(names, frames, _half)
    spacing = each(names, frames, Frame.known_spacing)
    pixel = numbers(table, [TILT_PIXEL]) if TILT_PIXEL in table else spacing
    position = numbers(table, CENTERED) + _center(half, pixel, given)
    return ParticleTable(particles=_particles(table, position, names, pixel=pixel), frames=frames)


def _voxel_table(table: ParticleTable, given: Given, *, names: str, source: str) -> pd.DataFrame:
    """Make a table in voxels of the size that its own columns state, as RELION will take them.

    Where they state none, or the caller asks for a size, it is that of the frames and the column
    `source` states it.
    """
    star = _table(table.particles, {names: table.particles.tomogram, **dict.fromkeys(VOXELS, 0.0)})
    spacing = _stated_spacing(star)
    if spacing is None or given.voxel_spacing is not None:
        spacing = table.each(Frame.known_spacing)[:, 0]
        column = _spacing_source(star) or source
        star = star.assign(**{column: spacing})
        if column == DETECTOR_PIXEL and "rlnMagnification" in star:
            star = star.assign(rlnMagnification=1e4)
    star[VOXELS] = table.particles.position / spacing[:, None]
    return star


def write_relion3(table: ParticleTable, path: Path, given: Given) -> None:
    """Write one block in voxels with `rlnMicrographName`, all values in each particle's row."""
    star = _voxel_table(table, given, names="rlnMicrographName", source="rlnPixelSize")
    write_blocks({"": star}, path)


def write_relion4(table: ParticleTable, path: Path, given: Given) -> None:
    """Write voxels with `rlnTomoName`, and optics groups where they are known."""
    star = _voxel_table(table, given, names="rlnTomoName", source=TILT_PIXEL)
    write_blocks(_split(star), path)


def write_relion5(table: ParticleTable, path: Path, given: Given) -> None:
    """Write angstrom from the middle of the tomogram, and optics groups where they are known."""
    columns: dict[str, Any] = {"rlnTomoName": table.particles.tomogram}
    columns.update(zip(CENTERED, _centered(table, given).T, strict=True))
    remark = f"rlnCenteredCoordinate counts from {CENTER_WORDS[given.center]}"
    write_blocks(_split(_table(table.particles, columns)), path, remark=remark)


def _split(table: pd.DataFrame) -> dict[str, Any]:
    """Move what belongs to optics groups and to the whole file out of the table of particles.

    RELION makes optics groups itself, from its tomograms, where a list has none.
    """
    blocks: dict[str, Any] = {}
    general = {name: table[name].iloc[0] for name in GENERAL if name in table and len(table)}
    if general:
        blocks["general"] = general
        table = table.drop(columns=list(general))
    columns = [str(name) for name in table if OPTICS.fullmatch(str(name))]
    if "rlnOpticsGroup" in columns and len(columns) > 1:
        optics = table[columns].drop_duplicates().sort_values("rlnOpticsGroup")
        if optics["rlnOpticsGroup"].is_unique:
            blocks["optics"] = optics
            table = table.drop(columns=[n for n in columns if n != "rlnOpticsGroup"])
    return {**blocks, "particles": table}


# --- Warp -------------------------------------------------------------------------------------


def read_warp(path: Path, given: Given) -> ParticleTable:
    """Read fractions of the tomogram's edges, as Warp's template matching writes them."""
    table, tomogram_file = _load(path, read_blocks(path))
    names = _names(table, path, given)
    frames = _frames(names, None, _read_tomograms(tomogram_file), given)
    extent = each(names, frames, Frame.known_extent)
    particles = _particles(table, numbers(table, VOXELS) * extent, names, pixel=extent)
    return ParticleTable(particles=particles, frames=frames)


def write_warp(table: ParticleTable, path: Path, _given: Given) -> None:
    """Write fractions of the tomogram's edges; Warp knows tomograms as `<name>.tomostar`."""
    fraction = table.particles.position / table.each(Frame.known_extent)
    columns: dict[str, Any] = dict(zip(VOXELS, fraction.T, strict=True))
    names = np.asarray(table.particles.tomogram).tolist()
    columns["rlnMicrographName"] = [f"{name.removesuffix('.tomostar')}.tomostar" for name in names]
    write_blocks({"": _table(table.particles, columns)}, path)
