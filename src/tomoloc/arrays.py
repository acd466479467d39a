"""Arrays that may be larger than memory: they live in nameless temporary files."""

from __future__ import annotations

import errno
import mmap
import os
from itertools import product
from tempfile import TemporaryFile, gettempdir
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

__all__ = ["LARGE_BYTES", "allocate", "interpolate", "release", "sparse_zeros"]

LARGE_BYTES = 1 << 30
"""Arrays of this size and larger are put in a temporary file, not in memory."""


def allocate(shape: tuple[int, ...], dtype: DTypeLike) -> NDArray[Any]:
    """Return an array to fill: in memory, or in a nameless temporary file where it is large.

    Raises
    ------
    OSError
        If the disk has no room for it.
    """
    n_bytes = int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
    if n_bytes < LARGE_BYTES:
        return np.empty(shape, dtype)
    with TemporaryFile() as file:
        _reserve(file.fileno(), n_bytes)
        return np.memmap(file, dtype=dtype, mode="w+", shape=shape)


def _reserve(file: int, n_bytes: int) -> None:
    """Take room on the disk: who writes to a mapped page that has none is killed."""
    if not hasattr(os, "posix_fallocate"):
        return
    try:
        os.posix_fallocate(file, 0, n_bytes)
    except OSError as error:
        if error.errno in {errno.ENOSPC, errno.EDQUOT}:  # others: the disk cannot tell
            raise OSError(
                f"no room for a temporary file of {n_bytes / 1e9:.1f} GB in {gettempdir()}"
                f" ({error.strerror}); set TMPDIR to a larger disk"
            ) from error


def sparse_zeros(shape: tuple[int, ...], dtype: DTypeLike) -> NDArray[Any]:
    """Return zeros that take memory only where they are written to, in small pages."""
    if not hasattr(mmap, "MADV_NOHUGEPAGE"):
        return np.zeros(shape, dtype)
    n_bytes = int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | getattr(mmap, "MAP_NORESERVE", 0)
    pages = mmap.mmap(-1, max(n_bytes, 1), flags=flags)
    pages.madvise(mmap.MADV_NOHUGEPAGE)
    return np.ndarray(shape, dtype, buffer=pages)


def release(array: NDArray[Any]) -> None:
    """Take the pages of a memory-mapped file out of this process; the file keeps them.

    Otherwise all that was ever touched counts as memory of the process.
    """
    shared = isinstance(array, np.memmap) and array.mode in {"r", "r+", "w+"}
    if shared and hasattr(mmap, "MADV_DONTNEED"):
        array._mmap.madvise(mmap.MADV_DONTNEED)  # type: ignore[attr-defined]


def interpolate(points: NDArray[Any], index: NDArray[np.floating[Any]]) -> NDArray[np.float32]:
    """Read values between grid points; of a memory-mapped array, nothing else is read.

    Parameters
    ----------
    points : ndarray, shape (z, y, x, channels)
    index : ndarray, shape (n, 3)
        Places zyx in grid points. Outside the grid, the nearest place on it is taken.

    Returns
    -------
    ndarray, shape (n, channels)
        Trilinear.
    """
    last = np.array(points.shape[:3]) - 1
    place = np.clip(index, 0, last)
    low = np.minimum(np.floor(place).astype(np.intp), np.maximum(last - 1, 0))
    share = (place - low).astype(np.float32)
    out = np.zeros((len(index), points.shape[-1]), dtype=np.float32)
    for corner in product((0, 1), repeat=3):
        weight = np.where(corner, share, 1 - share).prod(axis=1, keepdims=True)
        z, y, x = np.minimum(low + corner, last).T
        out += weight * points[z, y, x].astype(np.float32)
    return out
