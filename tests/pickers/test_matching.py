"""The compressed search gives what the exhaustive one does, and knows poses and places better."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from planting import make_noise, plant
from scipy.spatial.transform import Rotation

from tomoloc.evaluate import match_particles
from tomoloc.localize import find_peaks
from tomoloc.physics.rotations import angular_distance, sample_rotations
from tomoloc.pickers.compressed import (
    component_weights,
    energy_peaks,
    search_components,
)
from tomoloc.pickers.correlation import RotatedReference, correlate, spherical_mask
from tomoloc.pickers.matching import imbalance
from tomoloc.pickers.pick import pick
from tomoloc.pickers.poses import Bank, best_poses, make_basis, refine_poses
from tomoloc.pickers.template import TemplatePicker
from tomoloc.simulate.structures import make_complex

STRUCTURE = make_complex(3, mass_kda=500, symmetry="C1")
SIZE = 17


@pytest.fixture(scope="module")
def reference():
    rng = np.random.default_rng(2)
    density = np.zeros((2 * SIZE + 1,) * 3, np.float32)
    for center in rng.uniform(11, 24, (5, 3)):
        away = ((np.moveaxis(np.indices(density.shape), 0, -1) - center) ** 2).sum(-1)
        density += np.exp(-away / rng.uniform(6, 16)).astype(np.float32)
    weights = np.ones((SIZE, SIZE, SIZE // 2 + 1), np.float32)
    weights[:, :, 5:] = 0.3  # a filter of the tilt series
    return RotatedReference(density, weights, spherical_mask(SIZE, 13.0))


@pytest.fixture(scope="module")
def rotations():
    return sample_rotations(25.0)


@pytest.fixture(scope="module")
def planted():
    tomogram, truth = plant(STRUCTURE, n=6, noise=1.5, rng=np.random.default_rng(21))
    return tomogram.with_data(-tomogram.data), truth


def test_all_components_hold_all_of_a_turned_copy(reference, rotations) -> None:
    few = rotations[::8]
    basis = make_basis(reference, few, n_components=len(few))
    assert basis.energy == pytest.approx(1, abs=1e-3)
    assert (np.diff(basis.variance) <= 1e-6).all()
    gram = basis.components @ basis.components.T
    np.testing.assert_allclose(gram[:20, :20], np.eye(20), atol=1e-3)
    half = basis.first(20)
    assert half.energy == pytest.approx(basis.variance[:20].sum())


def test_windows_times_copies_are_local_correlations(reference, rotations, rng) -> None:
    few = rotations[::8]
    data = rng.normal(size=(24, 30, 28)).astype(np.float32)
    data -= data.mean()
    ((score, index),) = correlate(data, [reference], few)
    basis = make_basis(reference, few, n_components=len(few))
    places = np.array([[12, 15, 14], [3, 20, 9], [20, 9, 25]])
    found = best_poses(Bank(basis, few), basis.windows(data, places), keep=2)
    expected = score[tuple(places.T)]
    np.testing.assert_allclose(found.score[:, 0], expected, atol=0.01)
    assert (found.index[:, 0] == index[tuple(places.T)]).sum() >= 2
    exact = basis.exact(data, places, few[found.index[:, 0]])
    np.testing.assert_allclose(exact[:, 0], expected, atol=0.003)


def test_energy_peaks_are_where_particles_are_in_tiles_too(reference, rotations, rng) -> None:
    data = 0.6 * rng.normal(size=(40, 62, 58)).astype(np.float32)
    places = np.array([[9, 12, 40], [29, 30, 11], [20, 50, 45]])
    half = SIZE // 2
    for place, turn in zip(places, Rotation.random(3, rng=rng), strict=True):
        z, y, x = (slice(c - half, c + half + 1) for c in place)
        data[z, y, x] += reference.profiles(Rotation.concatenate([turn]), "cpu")[0].numpy()
    data -= data.mean()
    basis = make_basis(reference, rotations[::3], n_components=40)
    whole, tiled = (
        energy_peaks(data, [basis], counts=[3], max_voxels=n)[0] for n in (1 << 26, 60_000)
    )
    np.testing.assert_array_equal(whole, tiled)
    away = np.abs(whole[:, None] - places).max(axis=-1).min(axis=0)
    assert away.max() <= 1


def test_components_weigh_as_much_as_they_tell() -> None:
    variance = np.array([0.5, 0.3, 0.1, 0.05, 0.001])
    weight = component_weights(variance)
    assert (np.diff(weight) < 0).all()
    assert 0 < weight[-1] < 0.1 < 0.9 < weight[0] < 1
    counts = [search_components(variance, detectability=d) for d in (0.1, 0.8, 0.99, 1.0)]
    assert counts == sorted(counts)
    assert counts[0] == 1
    assert counts[-1] == 5


def test_poses_leave_the_grid(reference, rng) -> None:
    coarse = sample_rotations(30.0)
    basis = make_basis(reference, coarse, n_components=160)
    true = Rotation.random(8, rng=rng)
    tilted = Rotation.from_rotvec(np.deg2rad(10) * np.eye(3)[rng.integers(3, size=8)]) * true
    windows = basis.copies(true)
    refined = refine_poses(basis, windows, tilted, step=8.0)
    error = angular_distance(refined, true)
    assert np.median(error) < 2.5
    assert error.max() < 10


def test_the_exhaustive_search_is_reproduced(planted) -> None:
    tomogram, _ = planted
    picker = TemplatePicker(template=STRUCTURE, angular_step=30.0, refine=False)
    full = replace(picker, exhaustive=True)
    found, expected = (
        find_peaks(p.score(tomogram), threshold=0, min_distance=90, max_particles=6)
        for p in (picker, full)
    )
    pairs = match_particles(found, expected, radius=17.5).pairs
    assert len(pairs) >= 5  # of the sixth particle, part lies outside
    first, second = (np.asarray(t.score)[pairs[:, i]] for i, t in enumerate((found, expected)))
    np.testing.assert_allclose(first, second, atol=0.012)
    angle = angular_distance(found.rotation[pairs[:, 0]], expected.rotation[pairs[:, 1]])
    assert (angle <= 30).mean() >= 0.75


def test_places_and_poses_are_finer_than_the_grids(planted) -> None:
    tomogram, truth = planted
    picker = TemplatePicker(template=STRUCTURE, label="hand", angular_step=20.0, handedness=True)
    found = pick(tomogram, picker, contrast="light").particles
    near = match_particles(replace(found, label=""), replace(truth, label=""), radius=20)
    own, other = near.pairs.T
    assert len(own) >= 5
    # The mirror image loses.
    right = np.asarray(found.label)[own] == "hand"
    assert right.mean() > 0.8
    whole = other != 0  # of the first one, part lies outside
    assert np.mean(near.distances[whole & right]) < 3.0
    angle = angular_distance(found.rotation[own[right]], truth.rotation[other[right]])
    assert np.median(angle) < 7


def test_noise_alone_is_no_particle() -> None:
    tomogram, _ = plant(STRUCTURE, n=1, noise=1.0, rng=np.random.default_rng(1))
    noise = tomogram.with_data(make_noise(np.random.default_rng(9)))
    found = pick(noise, TemplatePicker(template=STRUCTURE, angular_step=40.0), contrast="light")
    assert len(found.particles) <= 3
    assert {"tomolocPValue", "tomolocFDR"} <= set(found.particles.extra)


@pytest.mark.parametrize("ratio", [0.7, 1.0, 1.3])
def test_imbalance_is_the_ratio_of_heights_in_noise(ratio: float, rng) -> None:
    voxel = rng.integers(0, 200, (600, 3))
    score = (rng.exponential(0.01, 600) * np.repeat([ratio, -1], 300)).astype(np.float32)
    assert imbalance(voxel, score, diameter=6.0) == pytest.approx(ratio, rel=0.25)
    # A neighbour of a peak is not counted again.
    double = np.concatenate([voxel, voxel + 1]), np.concatenate([score, 0.9 * score])
    assert imbalance(*double, diameter=6.0) == imbalance(voxel, score, diameter=6.0)


def test_too_few_peaks_tell_nothing_about_imbalance() -> None:
    voxel = np.arange(0, 90, 10)[:, None].repeat(3, axis=1)
    assert imbalance(voxel, np.linspace(-1, 2, 9, dtype=np.float32), diameter=4.0) == 1
    assert imbalance(voxel[:0], np.zeros(0, np.float32), diameter=4.0) == 1
