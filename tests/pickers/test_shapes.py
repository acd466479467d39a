"""Which seeds are particles, gold, or outside of the lamella."""

from __future__ import annotations

import numpy as np
import pytest

from tomoloc.features.blobs import Seeds
from tomoloc.pickers.shapes import describe_seeds, find_slab, rate_seeds, set_gold_apart
from tomoloc.types import Volume

GRID = Volume(data=np.zeros((60, 120, 140), np.int8), voxel_spacing=14.0, origin=[10.0, 20, -30])


def make_seeds(position, height, *, flat=0.0):
    """Round blobs of a height in deviations of the noise; flat ones have two small curvatures."""
    height, flat = np.broadcast_arrays(np.asarray(height, float), flat)
    shape = np.stack([np.ones_like(height), 1 - flat, 1 - flat], axis=-1)
    curvature = np.repeat((height[:, None] * shape)[:, None], 4, axis=1)
    order = np.arange(len(height))
    return Seeds(
        position=np.asarray(position, float),
        strength=np.cbrt(curvature[:, 1].prod(axis=-1)),
        curvature=curvature,
        sheet=3 * flat,
    )[order]


def test_strong_round_seeds_are_particles_and_sheets_are_not(rng) -> None:
    place = rng.uniform(0, 800, (60, 3))
    height = np.repeat([5.0, 0.7, 5.0], 20)
    flat = np.repeat([0.0, 0.0, 0.9], 20)
    score = rate_seeds(make_seeds(place, height, flat=flat), grid=GRID, slab=False)
    assert score[:20].min() > 0.9
    assert score[20:].max() < 0.1
    assert describe_seeds(make_seeds(place, height)).shape == (60, 17)


def test_gold_and_its_halo_are_set_apart(rng) -> None:
    place = np.vstack([rng.uniform(0, 800, (40, 3)), [[2000.0, 0, 0], [2080.0, 0, 0]]])
    height = np.append(np.full(40, 4.0), [40.0, 4.0])
    gold = set_gold_apart(make_seeds(place, height), np.ones(42))
    assert gold.tolist() == [False] * 40 + [True] * 2
    assert not set_gold_apart(make_seeds(place[:3], height[:3]), np.ones(3)).any()


@pytest.mark.parametrize("incline", [0.0, 0.15])
def test_the_slab_is_found_inclined_or_not(incline, rng) -> None:
    x, y = rng.uniform(0, 1900, 200), rng.uniform(0, 1600, 200)
    z = 300 + incline * x + rng.uniform(-120, 120, 200)
    odd = np.array([[400.0, 300.0, 760.0], [900.0, 900.0, -200.0]])
    position = np.vstack([np.column_stack([x, y, z]), odd])
    inside = find_slab(position, np.ones(202, dtype=bool), grid=GRID)
    assert inside[:200].all()
    assert not inside[200:].any()
    few = find_slab(position, np.arange(202) < 5, grid=GRID)
    assert few.all()
