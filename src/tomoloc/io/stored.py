"""What a volume file holds, before it is decided whether that will do."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tomoloc.arrays import allocate

__all__ = [
    "StoredVolume",
    "angstrom_per",
    "choose_spacing",
    "decoding",
    "native",
    "slabs",
    "volume_name",
]

SLAB_BYTES = 64 << 20
ENDINGS = (
    "mrc", "mrcs", "rec", "map", "st", "ali", "zarr", "npy", "npz", "tif", "tiff",
    "pdb", "ent", "cif", "mmcif",
)  # fmt: skip
ANGSTROM_PER_UNIT = {
    "picometer": 0.01, "pm": 0.01,
    "angstrom": 1.0, "a": 1.0, "å": 1.0, "\u212b": 1.0,
    "nanometer": 10.0, "nm": 10.0,
    "micrometer": 1e4, "micron": 1e4, "um": 1e4, "\u00b5m": 1e4, "\u03bcm": 1e4, "\\u00b5m": 1e4,
    "millimeter": 1e7, "mm": 1e7,
    "meter": 1e10, "m": 1e10,
}  # fmt: skip
WHAT_TO_DO = "pass --voxel-spacing in angstrom (voxel_spacing= in Python, map_spacing in a recipe)"


@dataclass(frozen=True, eq=False, kw_only=True)
class StoredVolume:
    """Values and what their file says about them.

    Parameters
    ----------
    data : ndarray, shape (..., z, y, x)
        Values in native byte order; often memory-mapped.
    spacing : tuple of float, optional
        Voxel size along x, y and z as the file states it, in angstrom: zeros, ones and unequal
        numbers included. None where the format has no place for it.
    recorded : bool
        False where `spacing` is only the ratio between levels, not a length.
    origin : ndarray, shape (3,)
        Position xyz of the centre of the first voxel, in angstrom.
    kind : str
        File format and number type, for people.
    levels : tuple of float
        Voxel spacings of all levels of a multiscale file.
    """

    data: NDArray[Any]
    spacing: tuple[float, float, float] | None = None
    recorded: bool = True
    origin: NDArray[np.float64] = field(default_factory=lambda: np.zeros(3))
    kind: str = ""
    levels: tuple[float, ...] = ()


@contextmanager
def decoding(
    message: str, *, but: tuple[type[Exception], ...] = (OSError, MemoryError)
) -> Iterator[None]:
    """Take whatever a library raises while it reads a file as a sign that bytes are not right.

    Where bytes have been lost or changed, there is no end to what libraries raise.

    Parameters
    ----------
    message : str
        What is said, before what the library says.
    but : tuple of exceptions
        What is let through.

    Raises
    ------
    ValueError
        With the message.
    """
    try:
        yield
    except but:
        raise
    except Exception as error:
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise ValueError(f"{message} ({reason})") from error


def choose_spacing(stored: StoredVolume, given: float | None, *, path: str | Path) -> float:
    """Decide on one voxel spacing: the given one, else the recorded one if it can be trusted.

    Parameters
    ----------
    stored : StoredVolume
        What the file holds.
    given : float, optional
        What the user says, in angstrom; it overrules the file.
    path : path
        For the message.

    Returns
    -------
    float
        Voxel spacing in angstrom.

    Raises
    ------
    ValueError
        If the file does not record a voxel size (0 and 1 mean that it does not), or one that
        differs by 1 % or more between the axes.
    """
    if given is not None:
        if not (np.isfinite(given) and given > 0):
            raise ValueError(f"voxel_spacing must be positive (angstrom); got {given}")
        return float(given)
    if stored.spacing is None:
        raise ValueError(f"{path}: voxel size not recorded; {WHAT_TO_DO}")
    sizes = np.array(stored.spacing, dtype=float)
    says = " x ".join(f"{size:g}" for size in sizes)
    unusable = not np.isfinite(sizes).all() or (sizes <= 0).any()
    if unusable or np.allclose(sizes, 1, atol=1e-6) or not stored.recorded:
        says = f"{sizes[0]:g}" if np.ptp(sizes) == 0 else says
        raise ValueError(f"{path}: voxel size not recorded (header says {says}); {WHAT_TO_DO}")
    if sizes.max() >= 1.01 * sizes.min():
        raise ValueError(
            f"{path}: expected voxels of equal sides; the header says {says} (x y z, angstrom);"
            f" resample the volume, or {WHAT_TO_DO} if the header is wrong"
        )
    return float(np.median(sizes))


def volume_name(path: str | Path) -> str:
    """Return the file name without the endings that tomoloc knows.

    Of `TS_1_10.00Apx.mrc.gz`, that is `TS_1_10.00Apx`.

    Parameters
    ----------
    path : path
        Of a file or a folder.
    """
    name = Path(path).name.removesuffix(".gz")
    stem, dot, ending = name.rpartition(".")
    if dot and stem and ending.lower() in ENDINGS:
        name = stem
    return name.removesuffix(".ome")


def angstrom_per(unit: str) -> float:
    """Return how many angstrom a unit of length has, NaN for what is none."""
    return ANGSTROM_PER_UNIT.get(unit.strip().lower(), np.nan)


def native(data: NDArray[Any]) -> NDArray[Any]:
    """Return the values in this machine's byte order; most libraries take no other."""
    if data.dtype.isnative:
        return data
    result = allocate(data.shape, data.dtype.newbyteorder("="))
    for slab in slabs(data):
        result[slab] = data[slab]
    return result


def slabs(data: NDArray[Any]) -> Iterator[tuple[int | slice, ...]]:
    """Yield indices of blocks of whole sections, in file order, that fit into memory with ease."""
    section = int(np.prod(data.shape[-2:])) * max(data.itemsize, 8)
    step = max(1, SLAB_BYTES // section)
    for lead in np.ndindex(data.shape[:-3]):
        for start in range(0, data.shape[-3], step):
            yield (*lead, slice(start, start + step))
