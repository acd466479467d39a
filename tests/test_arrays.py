"""Arrays that may be larger than memory."""

from __future__ import annotations

import errno
import os
import re
import sys
from pathlib import Path

import numpy as np
import pytest

from tomoloc import arrays
from tomoloc.arrays import allocate, release, sparse_zeros


def resident():
    """KiB of files that this process holds in memory."""
    status = Path("/proc/self/status").read_text()
    return sum(map(int, re.findall(r"(?:RssFile|RssShmem):\s+(\d+)", status)))


def test_small_arrays_lie_in_memory():
    array = allocate((3, 4, 5), np.int16)
    assert (array.shape, array.dtype) == ((3, 4, 5), np.int16)
    assert not isinstance(array, np.memmap)


def test_large_arrays_lie_in_a_file(monkeypatch):
    monkeypatch.setattr(arrays, "LARGE_BYTES", 60 * 8)
    assert not isinstance(allocate((3, 4, 5), np.int16), np.memmap)
    array = allocate((3, 4, 5), float)
    assert isinstance(array, np.memmap)
    array[1] = 7
    release(array)
    np.testing.assert_array_equal(array.sum(axis=(1, 2)), [0, 140, 0])


@pytest.mark.skipif(sys.platform != "linux", reason="counts memory as Linux does")
def test_released_pages_do_not_count(monkeypatch):
    monkeypatch.setattr(arrays, "LARGE_BYTES", 1)
    array = allocate((5, 1000, 1000), np.float32)
    array[:] = 1
    before = resident()
    release(array[2:])  # a view will do
    assert before - resident() > 19_000
    assert array[4, 999, 999] == 1


def test_a_full_disk_is_told_before_it_is_written_to(monkeypatch):
    def refuse(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(arrays, "LARGE_BYTES", 1)
    monkeypatch.setattr(os, "posix_fallocate", refuse, raising=False)
    with pytest.raises(OSError, match=r"no room for a temporary file of 3\.0 GB in .*TMPDIR"):
        allocate((1000, 1000, 1000), "V3")


@pytest.mark.skipif(sys.platform != "linux", reason="counts memory as Linux does")
def test_sparse_zeros_take_memory_where_they_are_written_to():
    def own():
        return int(re.findall(r"RssAnon:\s+(\d+)", Path("/proc/self/status").read_text())[0])

    before = own()
    array = sparse_zeros((40, 50, 500, 500), np.float32)  # 2 GB
    array[::10, ::10, 7, 8] = 3
    assert own() - before < 2000
    assert array[:11].sum() == 3 * 10
    assert own() - before < 40_000
    assert array.flags.writeable


def test_releasing_what_is_in_memory_does_nothing():
    array = np.ones((3, 4, 5))
    release(array)
    assert array.sum() == 60
