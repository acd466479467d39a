"""Structures and tomograms with planted particles, made from physics alone."""

from __future__ import annotations

import numpy as np
import pytest
from planting import make_lobes, plant

from tomoloc.types import Structure


@pytest.fixture(scope="session")
def lobes() -> Structure:
    return make_lobes([(0, 0, 0), (55, 0, 0), (0, 40, 30)], [38, 26, 22], name="lobes")


@pytest.fixture(scope="session")
def planted(lobes: Structure):
    """Six particles, one cut by the border, in a tomogram of unequal sides away from the origin."""
    return plant(lobes, n=6, noise=1.0, rng=np.random.default_rng(3))
