"""Read tomograms, maps, masks and label volumes; write MRC."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np

from tomoloc.io.mrc import read_mrc, write_mrc
from tomoloc.io.stored import (
    StoredVolume,
    angstrom_per,
    choose_spacing,
    decoding,
    native,
    volume_name,
)
from tomoloc.types import Tomogram, Volume

__all__ = ["open_volume", "read_tomogram", "read_volume", "volume_name", "write_volume"]

logger = logging.getLogger(__name__)

MRC_ENDINGS = (".mrc", ".mrcs", ".rec", ".map", ".st", ".ali")


def read_tomogram(
    path: str | Path,
    *,
    voxel_spacing: float | None = None,
    level_spacing: float | None = None,
    mmap: bool = True,
) -> Tomogram:
    """Read a tomogram: MRC (also gzipped), OME-Zarr, TIFF stack, .npy or .npz.

    Positions in a tomogram count from the centre of its first voxel, as particle tables do.
    The origin fields of MRC headers are therefore not used; translations of OME-Zarr are.

    Parameters
    ----------
    path : path
        File, or folder of an OME-Zarr image.
    voxel_spacing : float, optional
        In angstrom; overrules what the file says, and is needed where it says nothing.
    level_spacing : float, optional
        Of a multiscale file, read the coarsest level that is not coarser than this (angstrom);
        the finest by default.
    mmap : bool
        Whether to map uncompressed files into memory instead of reading them.

    Returns
    -------
    Tomogram
        Named after the file.

    Raises
    ------
    ValueError
        If the file is not of these kinds, is truncated or damaged, holds a single image, or
        records no voxel size that can be trusted while none is given.
    OSError
        If it cannot be read.
    """
    stored = open_volume(path, level_spacing=level_spacing, mmap=mmap)
    data = stored.data
    while data.ndim > 3 and data.shape[0] == 1:
        data = data[0]
    if data.ndim > 3:
        raise ValueError(
            f"{path}: expected one volume (z, y, x); it holds {' x '.join(map(str, data.shape))}"
        )
    if data.shape[0] == 1:
        raise ValueError(
            f"{path}: expected a tomogram; it holds a single image of"
            f" {data.shape[1]} x {data.shape[2]} pixels (y x)"
        )
    spacing, origin = _grid(stored, voxel_spacing, path=path)
    if stored.kind.startswith("MRC"):
        origin = np.zeros(3)
    return Tomogram(data=data, voxel_spacing=spacing, origin=origin, name=volume_name(path))


def read_volume(path: str | Path, *, voxel_spacing: float | None = None) -> Volume:
    """Read any volume: a density map, a mask, labels, scores, a stack of images.

    Parameters
    ----------
    path : path
        As for `read_tomogram`.
    voxel_spacing : float, optional
        In angstrom; overrules what the file says, and is needed where it says nothing.

    Returns
    -------
    Volume, data shape (..., z, y, x)
        Its origin is zero unless the file is OME-Zarr or was written by `write_volume`.

    Raises
    ------
    ValueError, OSError
        As for `read_tomogram`.
    """
    stored = open_volume(path)
    spacing, origin = _grid(stored, voxel_spacing, path=path)
    return Volume(data=stored.data, voxel_spacing=spacing, origin=origin, name=volume_name(path))


def write_volume(volume: Volume, path: str | Path, *, overwrite: bool = True) -> None:
    """Write a volume as MRC: whole or not at all.

    Parameters
    ----------
    volume : Volume, data shape (z, y, x) or (volume, z, y, x)
        float32, float16, int16, uint16 and int8 are kept; float64 becomes float32, bool int8, and
        other integers the smallest type that holds them. The origin is written to the header.
    path : path
        Ending in .mrc, .mrcs, .rec, .map, .st or .ali, with .gz to compress it.
    overwrite : bool
        Whether the file may exist.

    Raises
    ------
    ValueError
        If the ending is another, or the numbers fit into no MRC mode.
    OSError
        If the file exists and may not be replaced, or cannot be written.
    """
    if _ending(path) not in MRC_ENDINGS:
        raise ValueError(f"expected a name that ends in {', '.join(MRC_ENDINGS)}; got {path}")
    write_mrc(volume, path, overwrite=overwrite)


def open_volume(
    path: str | Path, *, level_spacing: float | None = None, mmap: bool = True
) -> StoredVolume:
    """Return what a volume file holds, without asking whether its voxel size is recorded.

    Parameters
    ----------
    path, level_spacing, mmap
        As for `read_tomogram`.

    Returns
    -------
    StoredVolume, data shape (..., z, y, x)
        Single images have one section.

    Raises
    ------
    ValueError, OSError
        As for `read_tomogram`, but for the voxel size.
    """
    path = Path(path)
    if "://" in str(path) or str(path).startswith(("s3:", "http:", "https:")):
        raise ValueError(f"expected a local file or folder; got {path}: download it first")
    if not path.exists():
        raise FileNotFoundError(f"no such file or folder: {path}")
    if (path / "tomogram.mrc").is_file():
        raise ValueError(f"{path} is a sample, not a volume; give {path / 'tomogram.mrc'}")
    if path.is_dir():
        from tomoloc.io.omezarr import read_omezarr

        stored = read_omezarr(path, level_spacing=level_spacing)
    else:
        stored = _open_file(path, mmap=mmap)
    if stored.data.dtype.kind not in "biuf":
        raise ValueError(f"{path}: expected real numbers; it holds {stored.data.dtype}")
    if stored.data.ndim < 3 or 0 in stored.data.shape:
        raise ValueError(f"{path}: expected a volume; it holds data of shape {stored.data.shape}")
    return stored


def _open_file(path: Path, *, mmap: bool) -> StoredVolume:
    ending = _ending(path)
    if ending in MRC_ENDINGS:
        return read_mrc(path, mmap=mmap)
    if ending in (".tif", ".tiff"):
        return _read_tiff(path, mmap=mmap)
    if ending in (".npy", ".npz"):
        return _read_numpy(path, mmap=mmap)
    with path.open("rb") as file:
        head = file.read(212)
    if head[208:] == b"MAP ":
        return read_mrc(path, mmap=mmap)
    raise ValueError(
        f"{path}: unknown kind of volume; expected a name that ends in"
        f" {', '.join(MRC_ENDINGS)} (or any of them with .gz), .zarr, .tif, .npy or .npz"
    )


def _ending(path: str | Path) -> str:
    return Path(Path(path).name.removesuffix(".gz")).suffix.lower()


def _grid(
    stored: StoredVolume, given: float | None, *, path: str | Path
) -> tuple[float, np.ndarray[Any, Any]]:
    """Return voxel spacing and origin; an origin was stated in the file's own unit of length."""
    spacing = choose_spacing(stored, given, path=path)
    stated = float(np.median(stored.spacing)) if stored.spacing else 0.0
    if given is None or stated <= 0:
        return spacing, stored.origin
    if stored.recorded and abs(stated - spacing) > 0.01 * spacing and stated != 1:
        logger.warning("%s: voxel spacing %g given; the file says %g", path, spacing, stated)
    return spacing, stored.origin * (spacing / stated)


def _read_numpy(path: Path, *, mmap: bool) -> StoredVolume:
    """Read an array; an .npz may hold `data`, `voxel_spacing` and `origin` (xyz)."""
    with decoding(f"{path} is not a NumPy file of numbers, or is damaged"):
        if path.suffix.lower() == ".npy":
            arrays = {"data": np.load(path, mmap_mode="r" if mmap else None)}
        else:
            with path.open("rb") as file, np.load(file) as archive:
                arrays = dict(archive)
    names = [name for name, array in arrays.items() if array.ndim >= 2]
    if "data" not in names and len(names) != 1:
        raise ValueError(f"{path}: expected an array named data; it holds {', '.join(arrays)}")
    data = arrays["data" if "data" in names else names[0]]
    data = data[None] if data.ndim == 2 else data
    sizes = arrays.get("voxel_spacing")
    return StoredVolume(
        data=native(data),
        spacing=None if sizes is None else tuple(np.broadcast_to(sizes, 3).tolist()),
        origin=np.asarray(arrays.get("origin", np.zeros(3)), dtype=float),
        kind=f"NumPy ({data.dtype.name})",
    )


def _read_tiff(path: Path, *, mmap: bool) -> StoredVolume:
    import tifffile

    with decoding(f"{path} is not a TIFF file, or is damaged"):
        with tifffile.TiffFile(path) as file:
            series = file.series[0]
            axes, offset = series.axes, series.dataoffset
            spacing = _tiff_spacing(file)
            data = None if mmap and offset is not None else series.asarray()
        if data is None:
            data = tifffile.memmap(path, mode="r")
    if "S" in axes:
        raise ValueError(f"{path}: expected grey values; it is a colour picture")
    data = data.reshape([n for n in data.shape[:-2] if n > 1] + list(data.shape[-2:]))
    data = data[None] if data.ndim == 2 else data
    return StoredVolume(data=native(data), spacing=spacing, kind=f"TIFF ({data.dtype.name})")


def _tiff_spacing(file: Any) -> tuple[float, float, float] | None:
    """Return voxel sizes xyz in angstrom where ImageJ's or OME's metadata state them."""
    if file.ome_metadata:
        for element in ElementTree.fromstring(file.ome_metadata).iter():
            if element.tag.endswith("Pixels") and "PhysicalSizeX" in element.attrib:
                # Micrometres are OME's default unit.
                sizes = [
                    float(element.get(f"PhysicalSize{axis}", "nan"))
                    * angstrom_per(element.get(f"PhysicalSize{axis}Unit", "um"))
                    for axis in "XYZ"
                ]
                return sizes[0], sizes[1], sizes[2]
    metadata = file.imagej_metadata or {}
    unit = angstrom_per(str(metadata.get("unit", "")))
    tags = file.pages[0].tags
    if not np.isfinite(unit) or "XResolution" not in tags or "YResolution" not in tags:
        return None
    (nx, dx), (ny, dy) = tags["XResolution"].value, tags["YResolution"].value
    if not (nx and ny):
        return None
    x, y = round(unit * dx / nx, 6), round(unit * dy / ny, 6)
    return x, y, round(unit * float(metadata.get("spacing", dx / nx)), 6)
