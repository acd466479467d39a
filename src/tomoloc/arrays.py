"""Arrays that may be larger than memory: they live in nameless temporary files."""

from __future__ import annotations

import errno
import mmap
import os
from tempfile import TemporaryFile, gettempdir
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

__all__ = ["LARGE_BYTES", "allocate", "release", "sparse_zeros"]

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
