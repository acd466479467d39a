"""MRC files: whatever microscopes and thirty years of programs put into them."""

from __future__ import annotations

import gzip
import logging
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tomoloc.arrays import allocate
from tomoloc.atomic import writing
from tomoloc.io.checks import measure
from tomoloc.io.stored import StoredVolume, native, slabs
from tomoloc.types import Volume

__all__ = ["read_mrc", "write_mrc"]

logger = logging.getLogger(__name__)

HEADER_BYTES = 1024
DTYPES = {0: "i1", 1: "i2", 2: "f4", 6: "u2", 12: "f2"}
REFUSED = {
    3: "complex integers, a Fourier transform",
    4: "complex numbers, a Fourier transform",
    16: "RGB colours",
    101: "4-bit integers",
}
IMOD_STAMP = 1146047817
VOLUME_STACK = 401
OWN_LABEL = b"tomoloc: origin in angstrom from the first voxel of the tomogram"

Header = Any  # one record of mrcfile.dtypes.HEADER_DTYPE


def read_mrc(path: str | Path, *, mmap: bool = True) -> StoredVolume:
    """Read an MRC file of mode 0, 1, 2, 6 or 12, plain or gzipped.

    Wrong machine stamps and missing MAP ids are logged and forgiven. Bytes (mode 0) are signed
    unless IMOD's flag or the header's maximum says otherwise. The origin fields are not used,
    because programs disagree on them; only origins that `write_mrc` wrote come back.

    Parameters
    ----------
    path : path
        Of the file.
    mmap : bool
        Whether to map plain files into memory instead of reading them.

    Returns
    -------
    StoredVolume, data shape (z, y, x) or (volume, z, y, x)

    Raises
    ------
    ValueError
        If the file is not MRC, is truncated or damaged, or holds something else than real numbers.
    OSError
        If it cannot be read.
    """
    path = Path(path)
    with _opened(path) as (file, packed):
        header = _parse_header(file.read(HEADER_BYTES), path=path)
        dtype = _dtype(header, path=path)
        shape = _shape(header)
        offset = HEADER_BYTES + int(header["nsymbt"])
        if packed:
            data = _unpack(file, shape, dtype, skip=offset - HEADER_BYTES, path=path)
        else:
            _check_size(
                path, expected=offset + int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
            )
            data = np.memmap(path, dtype=dtype, mode="r", offset=offset, shape=shape)
    data = native(data) if mmap or packed else np.array(data, dtype=dtype.newbyteorder("="))
    cell = header["cella"]
    intervals = [
        int(header[m]) or int(header[n]) for m, n in (("mx", "nx"), ("my", "ny"), ("mz", "nz"))
    ]
    x, y, z = (_shortest(float(cell[axis]) / n) for axis, n in zip("xyz", intervals, strict=True))
    own = header["label"][0].startswith(OWN_LABEL)
    return StoredVolume(
        data=_in_axis_order(data, header, path=path),
        spacing=(x, y, z),
        origin=np.array([float(header["origin"][axis]) for axis in "xyz"]) if own else np.zeros(3),
        kind=f"MRC mode {int(header['mode'])} ({np.dtype(dtype).name})",
    )


def write_mrc(volume: Volume, path: str | Path, *, overwrite: bool = True) -> None:
    """Write a volume as MRC, gzipped where the name ends in `.gz`; see `write_volume`.

    Parameters
    ----------
    volume : Volume, data shape (z, y, x) or (volume, z, y, x)
        Numbers keep their type where MRC has it. Others become the smallest type that holds
        them exactly; double precision becomes single.
    path : path
        Of the file.
    overwrite : bool
        Whether it may exist.

    Raises
    ------
    ValueError
        If the numbers fit into no MRC mode.
    OSError
        If the file cannot be written; nothing is left behind then.
    """
    data = volume.data
    if data.ndim > 4 or data.dtype.kind not in "biuf":
        raise ValueError(f"MRC cannot hold {data.dtype} data of shape {data.shape}; convert it")
    found = measure(data)
    dtype = _storage_dtype(data, low=found.minimum, high=found.maximum)
    header = _make_header(volume, dtype)
    for name, value in (("dmin", found.minimum), ("dmax", found.maximum), ("dmean", found.mean)):
        header[name] = np.nan_to_num(value)
    header["rms"] = np.nan_to_num(found.std)
    with writing(path, overwrite=overwrite) as draft, draft.open("wb") as raw:
        if draft.suffix == ".gz":
            with gzip.GzipFile("", "wb", compresslevel=4, fileobj=raw, mtime=0) as file:
                _write_blocks(file, header, data, dtype)
        else:
            _write_blocks(raw, header, data, dtype)


def _write_blocks(file: Any, header: Header, data: NDArray[Any], dtype: np.dtype[Any]) -> None:
    file.write(header.tobytes())
    for slab in slabs(data):
        file.write(np.ascontiguousarray(data[slab], dtype=dtype).data)


def _storage_dtype(data: NDArray[Any], *, low: float, high: float) -> np.dtype[Any]:
    kind, size = data.dtype.kind, data.dtype.itemsize
    if kind == "f":
        return np.dtype("<f2" if size == 2 else "<f4")
    if kind == "b" or data.dtype == np.int8:
        return np.dtype("<i1")
    if kind in "iu":
        for candidate in ("<u2", "<i2") if kind == "u" and size == 2 else ("<i2", "<u2"):
            if np.iinfo(candidate).min <= low and high <= np.iinfo(candidate).max:
                return np.dtype(candidate)
        if max(abs(low), abs(high)) <= 1 << 24:
            return np.dtype("<f4")
    raise ValueError(f"MRC cannot hold {data.dtype} from {low:g} to {high:g}; convert it")


def _make_header(volume: Volume, dtype: np.dtype[Any]) -> Header:
    from mrcfile.dtypes import HEADER_DTYPE

    z, y, x = volume.shape
    n = volume.data.shape[0] if volume.data.ndim == 4 else 1
    header = np.zeros(1, dtype=HEADER_DTYPE.newbyteorder("<"))[0]
    header["nx"], header["ny"], header["nz"] = x, y, z * n
    header["mode"] = next(mode for mode, code in DTYPES.items() if code == dtype.str[1:])
    header["mx"], header["my"], header["mz"] = x, y, z
    header["cella"] = tuple(volume.extent)
    header["cellb"] = (90, 90, 90)
    header["mapc"], header["mapr"], header["maps"] = 1, 2, 3
    header["ispg"] = VOLUME_STACK if volume.data.ndim == 4 else 1
    header["nversion"] = 20140
    header["origin"] = tuple(volume.origin)
    header["map"], header["machst"] = b"MAP ", (0x44, 0x44, 0, 0)
    header["nlabl"], header["label"][0] = 1, OWN_LABEL
    return header


@contextmanager
def _opened(path: Path) -> Iterator[tuple[Any, bool]]:
    """Open a file, unpacking gzip by content, not by name."""
    with path.open("rb") as raw:
        packed = raw.read(2) == b"\x1f\x8b"
        raw.seek(0)
        if not packed:
            yield raw, False
            return
        try:
            with gzip.GzipFile(fileobj=raw) as file:
                yield file, True
        except EOFError as error:
            raise ValueError(f"{path} is truncated: its gzip stream ends too early") from error
        except (gzip.BadGzipFile, zlib.error) as error:
            raise ValueError(f"{path} is damaged: {error}") from error


def _parse_header(raw: bytes, *, path: Path) -> Header:
    """Return the header in the byte order that makes sense of it."""
    from mrcfile.dtypes import HEADER_DTYPE

    if raw and b"\0" not in raw:
        raise ValueError(f"{path} is not an MRC file: it looks like text")
    if len(raw) < HEADER_BYTES:
        raise ValueError(
            f"{path} is truncated: expected {HEADER_BYTES} bytes of MRC header, found {len(raw)}"
        )
    stamp = raw[212:214]
    first = ">" if stamp == b"\x11\x11" else "<"
    for order in (first, "<" if first == ">" else ">"):
        header = np.frombuffer(raw, dtype=HEADER_DTYPE.newbyteorder(order))[0]
        sizes = [int(header[name]) for name in ("nx", "ny", "nz")]
        sane = all(0 < size < 1 << 24 for size in sizes) and int(header["nsymbt"]) >= 0
        if sane and 0 <= int(header["mode"]) < 256:
            break
    else:
        raise ValueError(
            f"{path} is not an MRC file, or its header is damaged: it states a size of"
            f" {sizes[0]} x {sizes[1]} x {sizes[2]} and mode {int(header['mode'])}"
        )
    if order != first or stamp not in (b"\x44\x44", b"\x44\x41", b"\x11\x11"):
        endian = "little" if order == "<" else "big"
        logger.warning("%s: wrong machine stamp %s; read as %s endian", path, stamp.hex(), endian)
    if header["map"] != b"MAP ":
        logger.warning("%s: no MAP id in the header; read as MRC all the same", path)
    return header


def _dtype(header: Header, *, path: Path) -> np.dtype[Any]:
    mode = int(header["mode"])
    if mode not in DTYPES:
        what = REFUSED.get(mode, "unknown to tomoloc")
        known = ", ".join(map(str, DTYPES))
        raise ValueError(f"{path}: MRC mode {mode} ({what}); expected one of the modes {known}")
    code = "u1" if mode == 0 and _unsigned(header) else DTYPES[mode]
    return np.dtype(code).newbyteorder(header.dtype["nx"].byteorder)


def _unsigned(header: Header) -> bool:
    """Tell whether mode 0 means 0..255.

    Bit 0 of IMOD's flags marks signed bytes. Files without IMOD's stamp are signed by MRC 2014;
    older ones are not, which a maximum beyond 127 gives away.
    """
    order = header.dtype["nx"].byteorder
    stamp, flags = np.frombuffer(header["extra2"].tobytes(), dtype=f"{order}i4")[10:12]
    if stamp == IMOD_STAMP:
        return not flags & 1
    return bool(header["dmax"] > 127)


def _shape(header: Header) -> tuple[int, ...]:
    x, y, z, mz = (int(header[name]) for name in ("nx", "ny", "nz", "mz"))
    if int(header["ispg"]) >= VOLUME_STACK and 0 < mz <= z and z % mz == 0:
        return z // mz, mz, y, x
    return z, y, x


def _in_axis_order(data: NDArray[Any], header: Header, *, path: Path) -> NDArray[Any]:
    """Turn a map stored along other axes (crystallographers do) to z, y, x."""
    stored = [int(header[name]) for name in ("maps", "mapr", "mapc")]
    if stored in ([3, 2, 1], [0, 0, 0]):
        return data
    if sorted(stored) != [1, 2, 3]:
        logger.warning("%s: axis order %s makes no sense; read as x fastest", path, stored[::-1])
        return data
    lead = data.ndim - 3
    return data.transpose(*range(lead), *(lead + stored.index(axis) for axis in (3, 2, 1)))


def _check_size(path: Path, *, expected: int) -> None:
    found = path.stat().st_size
    if found < expected:
        raise ValueError(f"{path} is truncated: expected {expected} bytes, found {found}")
    if found > expected:
        logger.warning("%s: %d bytes more than its header states", path, found - expected)


def _unpack(
    file: Any, shape: tuple[int, ...], dtype: np.dtype[Any], *, skip: int, path: Path
) -> NDArray[Any]:
    file.seek(HEADER_BYTES + skip)
    data = allocate(shape, dtype)
    found = 0
    for slab in slabs(data):
        block = data[slab]
        raw = file.read(block.nbytes)
        found += len(raw)
        if len(raw) < block.nbytes:
            raise ValueError(
                f"{path} is truncated: expected {data.nbytes} bytes of data, found {found}"
            )
        block[...] = np.frombuffer(raw, dtype=dtype).reshape(block.shape)
    if file.read(1):  # at the end of its stream, gzip compares the checksum
        logger.warning("%s: more bytes than its header states", path)
    return data


def _shortest(value: float) -> float:
    """Return the shortest decimal that single precision cannot tell from `value`.

    Cell edges are stored as single precision: 64 voxels of 7.84 come back as 7.84000015.
    """
    if not np.isfinite(value) or value == 0:
        return value
    for digits in range(1, 9):
        short = float(f"{value:.{digits}g}")
        if abs(short - value) <= 1.2e-7 * abs(value):
            return short
    return value
