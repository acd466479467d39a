"""Fixtures shared by all tests."""

from __future__ import annotations

import os
from pathlib import Path

# One thread for each test process: with more, those of several processes wait for each other.
for _name in ("OMP_NUM_THREADS", "NUMBA_NUM_THREADS"):
    os.environ.setdefault(_name, "1")

import numpy as np  # noqa: E402
import pytest  # noqa: E402

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def shared() -> Path:
    """Folder of real structures and experimental data; tests that need it skip without it."""
    folder = Path(os.environ.get("TOMOLOC_SHARED", ROOT.parent / "shared"))
    if not folder.is_dir():
        pytest.skip("the shared reference data are not here (set TOMOLOC_SHARED)")
    return folder


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(7)
