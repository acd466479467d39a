"""Clusters of touching bodies."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage, signal

from tomoloc.simulate.placing import Space, draw_body
from tomoloc.simulate.references import make_reference
from tomoloc.simulate.room import CYTOSOL, LUMEN, Room
from tomoloc.simulate.structures import make_complex
from tomoloc.simulate.tetris import Cluster

SPACING = 20.0
SHAPE = (22, 25, 27)  # one window


@pytest.fixture(scope="module")
def reference():
    return make_reference(make_complex(2), voxel_spacing=SPACING)


def make_space(shape=SHAPE, *, cut=False):
    room = Room(
        compartment=np.full(shape, CYTOSOL, np.uint8),
        occupied=np.zeros(shape, bool),
        voxel_spacing=SPACING,
    )
    return Space(room=room, reach=12, cut=cut)


def place(space, cluster, body, center):
    space.stamp(body, center)
    cluster.grow(body, center)


def correlate(space, body):
    """Correlation of the insertion shell with what is taken, by Fourier transforms."""
    reach = int(np.abs(body.voxels).max()) + 1
    binary = np.zeros((2 * reach + 1,) * 3)
    binary[tuple((body.voxels + reach).T)] = 1
    shell = ndimage.binary_dilation(binary, np.ones((3, 3, 3))) - binary
    inside = space.core == 1 << CYTOSOL
    contact = signal.correlate(space.core == 0, shell, "same", "fft")
    clash = signal.correlate(np.pad(~inside, reach, constant_values=True), binary, "valid", "fft")
    return np.where(clash > 0.5, -np.inf, contact)


def test_the_place_is_the_maximum_of_the_shell_correlation(reference):
    space, rng = make_space(), np.random.default_rng(1)
    cluster = Cluster(space)
    first = draw_body(reference, voxel_spacing=SPACING, rng=rng)
    place(space, cluster, first, np.array([10, 12, 13]))
    for _ in range(8):
        body = draw_body(reference, voxel_spacing=SPACING, rng=rng)
        expected = correlate(space, body)
        found = cluster.find(body, "anywhere")
        assert expected.max() > 5
        assert expected[tuple(found)] == pytest.approx(expected.max(), abs=0.1)
        place(space, cluster, body, found)


def test_holes_are_filled_before_new_ground(reference):
    space, rng = make_space((22, 25, 200)), np.random.default_rng(2)
    cluster = Cluster(space)
    start = draw_body(reference, voxel_spacing=SPACING, rng=rng)
    place(space, cluster, start, np.array([10, 12, 100]))
    x = []
    for _ in range(60):
        body = draw_body(reference, voxel_spacing=SPACING, rng=rng)
        found = cluster.find(body, "anywhere")
        place(space, cluster, body, found)
        x.append(found[2])
    # The cluster grows about its seed, and has no gaps.
    assert np.abs(np.array(x[:20]) - 100).max() < 45
    assert min(x) > 20
    taken = np.flatnonzero((space.core == 0).any(axis=(0, 1)))
    assert len(taken) == np.ptp(taken) + 1
    _, number = ndimage.label(space.core == 0, np.ones((3, 3, 3)))
    assert number == 1


def test_a_cluster_knows_no_other_room(reference):
    space, rng = make_space((22, 25, 54)), np.random.default_rng(3)
    cluster = Cluster(space)
    body = draw_body(reference, voxel_spacing=SPACING, rng=rng)
    assert cluster.find(body, "anywhere") is None  # nothing to touch
    place(space, cluster, body, np.array([10, 12, 13]))
    assert cluster.find(body, "lumen") is None
    assert cluster.find(body, "cytosol") is not None


def test_a_full_window_is_closed_to_what_is_as_large(reference):
    space, rng = make_space((12, 14, 15)), np.random.default_rng(4)
    cluster = Cluster(space)
    for _ in range(200):
        body = draw_body(reference, voxel_spacing=SPACING, rng=rng)
        found = cluster.find(body, "anywhere") if cluster.space.core.min() == 0 else None
        if found is None and space.core.min() == 0:
            break
        place(space, cluster, body, np.array([6, 7, 7]) if found is None else found)
    else:
        pytest.fail("the cluster never filled its room")
    assert (space.core == 0).mean() > 0.3
    small = make_reference(make_complex(2, mass_kda=12.0), voxel_spacing=SPACING)
    body = draw_body(small, voxel_spacing=SPACING, rng=rng)
    assert cluster.find(body, "anywhere") is not None


def test_a_lumen_is_filled_from_its_own_seed(reference):
    space, rng = make_space((22, 25, 54)), np.random.default_rng(5)
    space.core[:, :, 27:] = 1 << LUMEN
    cluster = Cluster(space)
    body = draw_body(reference, voxel_spacing=SPACING, rng=rng)
    place(space, cluster, body, np.array([10, 12, 40]))
    found = cluster.find(body, "lumen")
    assert ((body.voxels + found)[:, 2] >= 27).all()
