"""Random packing."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage, stats

from tomoloc.simulate.packing import pack
from tomoloc.simulate.references import add_particles, make_reference
from tomoloc.simulate.structures import make_complex
from tomoloc.types import Volume

SPACING = 10.0


@pytest.fixture(scope="module")
def references():
    kinds = [(19, None), (2, None), (24, None)]  # a ring, a compact and a long one
    return [
        make_reference(make_complex(seed, mass_kda=mass), voxel_spacing=SPACING)
        for seed, mass in kinds
    ]


def render(references, packing, shape):
    density, instances = np.zeros(shape, np.float32), np.zeros(shape, np.uint16)
    grid = Volume(data=density, voxel_spacing=SPACING)
    add_particles(
        density,
        instances,
        references,
        index=grid.to_index(packing.position),
        rotation=packing.rotation,
        species=packing.species,
    )
    return density, instances


def test_particles_keep_the_clearance(references):
    shape, clearance = (40, 56, 64), 30.0
    packing = pack(
        references,
        [8, 12, 10],
        shape=shape,
        voxel_spacing=SPACING,
        rng=np.random.default_rng(1),
        clearance=clearance,
    )
    np.testing.assert_array_equal(packing.placed, packing.asked)
    assert np.bincount(packing.species).tolist() == [8, 12, 10]
    _, instances = render(references, packing, shape)
    assert sorted(np.unique(instances)) == list(range(31))
    nearest = []
    for row in range(1, 31):
        own = instances == row
        others = ndimage.distance_transform_edt((instances == 0) | own)
        nearest.append(others[own].min() * SPACING)
    # Distances between voxel centres are up to a voxel's diagonal less exact.
    assert min(nearest) >= clearance - SPACING
    np.testing.assert_allclose(packing.visible, 1)


def test_orientations_are_uniform(references):
    packing = pack(
        [references[2]],
        [1200],
        shape=(96, 144, 160),
        voxel_spacing=SPACING,
        rng=np.random.default_rng(2),
        border="cut",
    )
    assert len(packing.position) == 1200
    # The mean of uniform rotation matrices is 0, each entry with variance 1/3.
    mean = packing.rotation.as_matrix().mean(axis=0)
    assert np.abs(mean).max() < 4 * np.sqrt(1 / 3 / 1200)
    # The rotation angle has the density (1 - cos) / pi.
    angle = packing.rotation.magnitude()
    assert stats.kstest(angle, lambda t: (t - np.sin(t)) / np.pi).pvalue > 0.01
    assert stats.kstest(packing.position[:, 0], "uniform", (-5, 1600)).pvalue > 0.01


def test_particles_stay_inside_the_ice(references):
    shape = (40, 50, 60)
    packing = pack(
        references,
        [5, 20, 10],
        shape=shape,
        voxel_spacing=SPACING,
        rng=np.random.default_rng(3),
        thickness=240.0,
    )
    _, instances = render(references, packing, shape)
    z, y, x = np.nonzero(instances)
    assert z.min() >= 7
    assert z.max() <= 32
    assert min(y.min(), x.min()) >= 0
    np.testing.assert_allclose(packing.visible, 1)


def test_border_may_cut_particles(references):
    packing = pack(
        references,
        [40, 40, 40],
        shape=(40, 50, 60),
        voxel_spacing=SPACING,
        rng=np.random.default_rng(4),
        border="cut",
    )
    assert packing.visible.min() < 0.9
    assert (packing.visible > 0.05).all()
    low, high = packing.position.min(axis=0), packing.position.max(axis=0)
    assert (low >= -5).all()
    assert (high <= [595, 495, 395]).all()


def test_reports_what_found_no_room(references):
    packing = pack(
        references,
        [0, 500, 0],
        shape=(16, 24, 28),
        voxel_spacing=SPACING,
        rng=np.random.default_rng(5),
    )
    assert packing.asked.tolist() == [0, 500, 0]
    assert 2 < packing.placed[1] < 100
    assert len(packing.position) == packing.placed[1] == len(packing.rotation)
    volume = references[1].volume * packing.placed[1]
    assert packing.fraction == pytest.approx(volume / (16 * 24 * 28 * 1000), rel=1e-6)


def test_nothing_asked_is_an_empty_packing(references):
    packing = pack(
        references,
        [0, 0, 0],
        shape=(16, 24, 28),
        voxel_spacing=SPACING,
        rng=np.random.default_rng(5),
    )
    assert packing.position.shape == (0, 3)
    assert len(packing.rotation) == 0


def test_too_large_a_particle_is_an_error(references):
    with pytest.raises(ValueError, match=r"complex-19 does not fit into the ice of 240 x 200 x 50"):
        pack(
            references,
            [1, 0, 0],
            shape=(16, 20, 24),
            voxel_spacing=SPACING,
            rng=np.random.default_rng(6),
            thickness=50.0,
        )


def test_same_seed_same_places(references):
    first, again, other = (
        pack(
            references,
            [3, 3, 3],
            shape=(30, 40, 50),
            voxel_spacing=SPACING,
            rng=np.random.default_rng(seed),
        )
        for seed in (7, 7, 8)
    )
    assert first.position.tobytes() == again.position.tobytes()
    assert first.rotation.as_quat().tobytes() == again.rotation.as_quat().tobytes()
    assert first.position.tobytes() != other.position.tobytes()
