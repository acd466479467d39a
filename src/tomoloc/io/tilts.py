"""Read tilt angles, dose and CTF from the files of IMOD, SerialEM, RELION and Warp.

All of them are brought to the geometry of `TiltSeries`, in which a point falls on the detector at
x cos t + z sin t:

* IMOD and SerialEM (.tlt, .rawtlt, .mdoc): angles as they are, which is right for the z of IMOD's
  `tilt`. `trimvol -rx` reverses z, and nothing in the files tells (see docs/conventions.md).
* RELION: `rlnTomoYTilt`, or the angle in a projection matrix Rz(axis) Ry(tilt) Rx.
* Warp (.xml, .tomostar): its matrices put the point at x cos t - z sin t, so angles change sign.

RELION and Warp state the exposure before each image, `TiltSeries` the one after it.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
from numpy.typing import NDArray

from tomoloc.io.stored import volume_name
from tomoloc.types import CTF, TiltSeries

__all__ = ["find_tilt_files", "list_tilt_series", "read_tilt_series"]

FloatArray = NDArray[np.float64]
Block = Any  # a pandas DataFrame, or a dict for a STAR block without loop

ENDINGS = (".tlt", ".rawtlt", ".mdoc", ".star", ".tomostar", ".xml")


def read_tilt_series(path: str | Path, *, tomogram: str | None = None) -> TiltSeries:
    """Read how a tomogram's tilt series was taken.

    Parameters
    ----------
    path : path
        .tlt or .rawtlt (IMOD), .mdoc (SerialEM), .star (RELION 5 tilt series or tomograms.star,
        RELION 4 tomograms.star with projection matrices), .tomostar or .xml (Warp).
    tomogram : str, optional
        Which one, where the file describes several; endings such as `.tomostar`, `_10.00Apx` and
        `_rec` do not count.

    Returns
    -------
    TiltSeries
        In the order of the file, without tilts that Warp excludes. Dose and CTF where the file
        has them.

    Raises
    ------
    ValueError
        If the file is of another kind, has no tilt angles, or describes several tomograms and
        not the one asked for.
    OSError
        If it cannot be read.
    """
    path = Path(path)
    if path.suffix.lower() not in ENDINGS:
        raise ValueError(f"{path}: expected a tilt file ({', '.join(ENDINGS)})")
    if not path.is_file():
        raise FileNotFoundError(f"no such file: {path}")
    try:
        columns = _READERS[path.suffix.lower()](path, tomogram)
    except LookupError as error:  # a column, a word or an encoding that is not there
        raise ValueError(f"{path} is damaged: {error}") from error
    try:
        return TiltSeries(**columns)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def list_tilt_series(path: str | Path) -> list[str]:
    """Return the names of the tomograms a tilt file describes; one file, one name for most.

    Parameters
    ----------
    path : path
        As for `read_tilt_series`.

    Raises
    ------
    ValueError, OSError
        As for `read_tilt_series`.
    """
    path = Path(path)
    if path.suffix.lower() == ".star":
        overview = _overview(_read_star(path))
        if overview is not None:
            return [str(name) for name in overview["rlnTomoName"]]
    return [path.name.removesuffix(path.suffix)]


def find_tilt_files(tomogram: str | Path) -> list[Path]:
    """Return the tilt files beside a tomogram that bear its name, the most telling first.

    Parameters
    ----------
    tomogram : path
        Of the volume: beside `TS_1_10.00Apx.mrc`, `TS_1.xml` and `TS_1.mrc.mdoc` are found.

    Returns
    -------
    list of Path
        Empty if there is none.
    """
    path = Path(tomogram)
    stems = dict.fromkeys((volume_name(path), _plain(volume_name(path))))
    endings = (".xml", ".tomostar", ".tlt", ".mrc.mdoc", ".st.mdoc", ".mdoc", ".rawtlt")
    candidates = [path.parent / f"{stem}{ending}" for ending in endings for stem in stems]
    return [candidate for candidate in candidates if candidate.is_file()]


def _read_tlt(path: Path, tomogram: str | None) -> dict[str, Any]:  # noqa: ARG001
    angles = []
    for number, line in enumerate(path.read_text(errors="replace").splitlines(), start=1):
        words = line.split("#")[0].replace(",", " ").split()
        if not words:
            continue
        try:
            angles.append(float(words[0]))  # further columns (AreTomo) are order and dose
        except ValueError as error:
            raise ValueError(
                f"{path}, line {number}: expected a tilt angle; found {words[0]!r}"
            ) from error
    if not angles:
        raise ValueError(f"{path} holds no tilt angles")
    return {"tilt_angles": angles}


def _read_mdoc(path: Path, tomogram: str | None) -> dict[str, Any]:  # noqa: ARG001
    import mdocfile

    try:
        with _quiet("mdocfile"):
            table = mdocfile.read(path)
    except (ValueError, IndexError, KeyError) as error:
        raise ValueError(f"{path} is not an mdoc file, or is damaged") from error
    if "TiltAngle" not in table or table["TiltAngle"].isna().any():
        raise ValueError(f"{path}: expected a TiltAngle in each section")
    columns: dict[str, Any] = {"tilt_angles": table["TiltAngle"].to_numpy(float)}
    title = re.search(r"tilt ?axis ?angle *= *(-?[\d.]+)", " ".join(table["titles"].iloc[0]), re.I)
    if title:
        columns["tilt_axis_angle"] = float(title[1])
    if "PixelSpacing" in table and table["PixelSpacing"].iloc[0] > 0:
        columns["pixel_spacing"] = float(table["PixelSpacing"].iloc[0])
    if "ExposureDose" in table and (table["ExposureDose"] > 0).all():
        columns["dose_e_per_a2"] = _dose_after(table)
    return columns


def _dose_after(table: Block) -> FloatArray:
    """Return the exposure up to the end of each image of an mdoc table."""
    import pandas as pd

    each = table["ExposureDose"].to_numpy(float)
    if "PriorRecordDose" in table and table["PriorRecordDose"].notna().all():
        return table["PriorRecordDose"].to_numpy(float) + each
    order = np.arange(len(each))
    if "DateTime" in table and table["DateTime"].notna().all():
        text = table["DateTime"].str.split().str.join(" ")
        times = pd.to_datetime(text, format="%d-%b-%y %H:%M:%S", errors="coerce")
        times = times.fillna(pd.to_datetime(text, format="%d-%b-%Y %H:%M:%S", errors="coerce"))
        if times.notna().all():
            order = np.argsort(times.to_numpy(), kind="stable")
    dose = np.empty(len(each))
    dose[order] = each[order].cumsum()
    return dose


def _read_star(path: Path) -> dict[str, Block]:
    import starfile

    try:
        blocks = starfile.read(path, always_dict=True)
    except (ValueError, IndexError, KeyError, TypeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not a STAR file, or is damaged") from error
    if not blocks:
        raise ValueError(f"{path} is not a STAR file, or is empty")
    return dict(blocks)


def _read_relion(path: Path, tomogram: str | None) -> dict[str, Any]:
    blocks = _read_star(path)
    overview = _overview(blocks)
    if overview is None:
        series = [block for block in blocks.values() if _tilt_column(block)]
        if len(series) != 1:
            raise ValueError(
                f"{path}: expected tilt angles (rlnTomoYTilt, rlnTomoNominalStageTiltAngle or"
                " rlnTomoProjX); it has none: give a tomograms.star or a tilt-series STAR file"
            )
        return _relion_columns(series[0], optics={}, path=path)
    row = _choose(overview, tomogram, path=path)
    name = str(row["rlnTomoName"])
    if name in blocks:
        return _relion_columns(blocks[name], optics=row, path=path)
    if "rlnTomoTiltSeriesStarFile" not in row:
        raise ValueError(f"{path}: expected a block data_{name} with the tilts; it has none")
    file = _find_near(Path(str(row["rlnTomoTiltSeriesStarFile"])), path)
    block = next((b for b in _read_star(file).values() if _tilt_column(b)), None)
    if block is None:
        raise ValueError(f"{file} holds no tilt angles")
    return _relion_columns(block, optics=row, path=file)


def _overview(blocks: dict[str, Block]) -> Block | None:
    """Return the block with one row a tomogram, if there is one."""
    import pandas as pd

    marks = ("rlnTomoTiltSeriesStarFile", "rlnTomoTiltSeriesName")
    for block in blocks.values():
        if "rlnTomoName" in block and any(mark in block for mark in marks):
            return block if isinstance(block, pd.DataFrame) else pd.DataFrame([block])
    return None


def _choose(overview: Block, tomogram: str | None, *, path: Path) -> dict[str, Any]:
    names = [str(name) for name in overview["rlnTomoName"]]
    shown = ", ".join(names[:4]) + (" ..." if len(names) > 4 else "")
    if tomogram is None:
        if len(names) > 1:
            raise ValueError(f"{path} describes {len(names)} tomograms ({shown}); say which one")
        return dict(overview.iloc[0])
    for i, name in enumerate(names):
        if _plain(name) == _plain(tomogram):
            return dict(overview.iloc[i])
    raise ValueError(f"{path} does not describe {tomogram}; it has {shown}")


def _plain(name: str) -> str:
    """Return a tomogram's name without what programs append to it."""
    return re.sub(r"(\.tomostar|\.mrc|\.rec|_\d+(\.\d+)?Apx|_rec)+$", "", Path(name).name)


def _find_near(named: Path, path: Path) -> Path:
    """Find a file that is named relative to a project folder somewhere above `path`."""
    for folder in (Path(), *path.resolve().parents):
        if (folder / named).is_file():
            return folder / named
    for beside in (path.parent / named.name, path.parent / "tilt_series" / named.name):
        if beside.is_file():
            return beside
    raise FileNotFoundError(f"{path} names {named}, which is neither here nor in a folder above")


def _tilt_column(block: Block) -> str | None:
    names = ("rlnTomoYTilt", "rlnTomoProjX", "rlnTomoNominalStageTiltAngle", "wrpAngleTilt")
    return next((name for name in names if name in block), None)


def _relion_columns(block: Block, *, optics: dict[str, Any], path: Path) -> dict[str, Any]:
    import pandas as pd

    table = block if isinstance(block, pd.DataFrame) else pd.DataFrame([block])
    column = _tilt_column(table)
    columns: dict[str, Any] = {}
    if column == "rlnTomoProjX":
        # The first column of Rz(axis) Ry(tilt) Rx(other) is
        # (cos axis cos tilt, sin axis cos tilt, -sin tilt).
        x, y, z = (_vectors(table[f"rlnTomoProj{axis}"], path=path)[:, 0] for axis in "XYZ")
        columns["tilt_angles"] = np.degrees(np.arctan2(-z, np.hypot(x, y)))
        columns["tilt_axis_angle"] = _mean_angle(np.degrees(np.arctan2(y, x)))
    elif column is None:
        raise ValueError(f"{path} holds no tilt angles")
    else:
        columns["tilt_angles"] = table[column].to_numpy(float)
        for name in ("rlnTomoZRot", "rlnTomoNominalTiltAxisAngle"):
            if name in table:
                columns["tilt_axis_angle"] = _mean_angle(table[name].to_numpy(float))
                break
    if "rlnMicrographPreExposure" in table:
        before = table["rlnMicrographPreExposure"].to_numpy(float)
        columns["dose_e_per_a2"] = before + _step(before, optics.get("rlnTomoImportFractionalDose"))
    spacing = optics.get("rlnTomoTiltSeriesPixelSize")
    if spacing is not None and float(spacing) > 0:
        columns["pixel_spacing"] = float(spacing)
    if {"rlnDefocusU", "rlnDefocusV", "rlnDefocusAngle"} <= set(table):
        columns["ctf"] = _relion_ctf(table, optics)
    return columns


def _relion_ctf(table: Block, optics: dict[str, Any]) -> CTF:
    return CTF(
        defocus_u_um=table["rlnDefocusU"].to_numpy(float) / 1e4,
        defocus_v_um=table["rlnDefocusV"].to_numpy(float) / 1e4,
        defocus_angle=table["rlnDefocusAngle"].to_numpy(float),
        voltage_kv=float(optics.get("rlnVoltage", 300.0)),
        spherical_aberration_mm=float(optics.get("rlnSphericalAberration", 2.7)),
        amplitude_contrast=float(optics.get("rlnAmplitudeContrast", 0.07)),
        phase_shift=table["rlnPhaseShift"].to_numpy(float) if "rlnPhaseShift" in table else 0.0,
    )


def _vectors(column: Any, *, path: Path) -> FloatArray:
    """Parse entries such as [0.1,-0.99,0.03,0]."""
    try:
        return np.array([[float(n) for n in str(row).strip("[]").split(",")] for row in column])
    except ValueError as error:
        raise ValueError(f"{path}: cannot read a projection matrix ({error})") from error


def _mean_angle(angles: FloatArray) -> float:
    radians = np.radians(angles)
    return float(np.degrees(np.arctan2(np.sin(radians).mean(), np.cos(radians).mean())))


def _step(before: FloatArray, stated: Any = None) -> float:
    """Return the exposure of one image from the exposures before all of them."""
    if stated is not None and float(stated) > 0:
        return float(stated)
    steps = np.diff(np.unique(before.round(4)))
    return float(np.median(steps)) if len(steps) else 0.0


def _read_tomostar(path: Path, tomogram: str | None) -> dict[str, Any]:  # noqa: ARG001
    block = next((b for b in _read_star(path).values() if "wrpAngleTilt" in b), None)
    if block is None:
        raise ValueError(f"{path}: expected a column wrpAngleTilt")
    columns: dict[str, Any] = {"tilt_angles": -np.asarray(block["wrpAngleTilt"], dtype=float)}
    if "wrpDose" in block:
        before = np.asarray(block["wrpDose"], dtype=float)
        columns["dose_e_per_a2"] = before + _step(before)
    if "wrpAxisAngle" in block:
        columns["tilt_axis_angle"] = _mean_angle(np.asarray(block["wrpAxisAngle"], dtype=float))
    return columns


def _read_warp(path: Path, tomogram: str | None) -> dict[str, Any]:  # noqa: ARG001
    try:
        root = ElementTree.parse(path).getroot()
        angles = _numbers(root, "Angles")
        if root.tag != "TiltSeries" or len(angles) == 0:
            raise ValueError(f"{path}: expected a Warp tilt series; it has no Angles")
        used = [word == "True" for word in (root.findtext("UseTilt") or "").split()]
        keep = np.array(used if len(used) == len(angles) else [True] * len(angles))
        columns: dict[str, Any] = {"tilt_angles": -angles[keep]}
        before = _numbers(root, "Dose")
        if len(before) == len(angles):
            columns["dose_e_per_a2"] = (before + _step(before))[keep]
        axis = _numbers(root, "AxisAngle")
        if len(axis) == len(angles):
            columns["tilt_axis_angle"] = _mean_angle(axis[keep])
        ctf = _warp_ctf(root, len(angles), keep)
    except ElementTree.ParseError as error:
        raise ValueError(f"{path} is not XML, or is truncated: {error}") from error
    if ctf is not None:
        columns["ctf"] = ctf
    return columns


def _numbers(root: ElementTree.Element, name: str) -> FloatArray:
    return np.array([float(word) for word in (root.findtext(name) or "").split()])


def _warp_ctf(root: ElementTree.Element, n: int, keep: NDArray[np.bool_]) -> CTF | None:
    """Read the CTF: defocus is the mean of U and V, delta their difference, phase counts in pi."""
    defocus = _grid(root, "GridCTF", n)
    if defocus is None:
        return None
    delta, angle, phase = (
        values if values is not None else np.zeros(n)
        for values in (
            _grid(root, f"GridCTF{name}", n) for name in ("DefocusDelta", "DefocusAngle", "Phase")
        )
    )
    named = {item.get("Name"): item.get("Value") for item in root.iterfind("CTF/Param")}
    return CTF(
        defocus_u_um=(defocus + delta / 2)[keep],
        defocus_v_um=(defocus - delta / 2)[keep],
        defocus_angle=angle[keep],
        voltage_kv=float(named.get("Voltage") or 300.0),
        spherical_aberration_mm=float(named.get("Cs") or 2.7),
        amplitude_contrast=float(named.get("Amplitude") or 0.07),
        phase_shift=180 * phase[keep],
    )


def _grid(root: ElementTree.Element, name: str, n: int) -> FloatArray | None:
    """Return one value a tilt: the mean of the nodes that a grid has at its depth."""
    nodes: dict[int, list[float]] = {}
    for node in root.iterfind(f"{name}/Node"):
        nodes.setdefault(int(node.get("Z", "0")), []).append(float(node.get("Value", "nan")))
    values = np.array([np.mean(nodes[z]) for z in sorted(nodes)])
    if len(values) == 1:
        return np.full(n, values[0])
    return values if len(values) == n else None


@contextmanager
def _quiet(name: str) -> Iterator[None]:
    """Keep a library's log still for a while; mdocfile warns of every field it does not know."""
    log = logging.getLogger(name)
    before, log.disabled = log.disabled, True
    try:
        yield
    finally:
        log.disabled = before


_READERS = {
    ".tlt": _read_tlt,
    ".rawtlt": _read_tlt,
    ".mdoc": _read_mdoc,
    ".star": _read_relion,
    ".tomostar": _read_tomostar,
    ".xml": _read_warp,
}
