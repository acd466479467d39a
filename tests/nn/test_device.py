"""Names of devices."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest
import torch

from tomoloc.nn.device import resolve_device


def test_auto_takes_what_is_there():
    assert resolve_device("cpu") == "cpu"
    assert resolve_device("auto") == ("cuda" if torch.cuda.is_available() else "cpu")


def test_unknown_and_missing_devices(monkeypatch):
    with pytest.raises(ValueError, match="auto, cpu or cuda"):
        resolve_device("tpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match="no CUDA device"):
        resolve_device("cuda")


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="of glibc")
def test_freed_memory_is_kept():
    """Blocks allocated over and over fault in their pages once, not each time."""
    script = """
import resource
from tomoloc.nn.device import keep_memory
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        bytes(1) * 40_000_000
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
before = faults()
keep_memory()
print(before, faults())
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    before, after = map(int, done.stdout.split())
    assert after < before / 5
