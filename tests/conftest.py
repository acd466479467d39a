"""Fixtures shared by all tests."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

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
