from __future__ import annotations

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from tomoloc.physics.rotations import angular_distance, sample_rotations, symmetry_group

ORDERS = {"C1": 1, "C7": 7, "D2": 4, "D7": 14, "T": 12, "O": 24, "I": 60}


@pytest.mark.parametrize(("symmetry", "order"), ORDERS.items())
def test_groups_are_closed(symmetry: str, order: int) -> None:
    group = symmetry_group(symmetry)
    assert len(group) == order
    np.testing.assert_allclose(group[0].magnitude(), 0, atol=1e-12)
    first = group[order // 2]
    for element in group:
        product = (first * element).as_quat()
        assert np.isclose(np.abs(group.as_quat() @ product), 1).sum() == 1


def test_axes_of_the_groups() -> None:
    rotvec = symmetry_group("D3").as_rotvec()
    assert np.isclose(np.abs(rotvec), [np.pi, 0, 0]).all(axis=1).any()
    assert np.isclose(np.abs(rotvec), [0, 0, 2 * np.pi / 3]).all(axis=1).any()
    for name, angle in (("T", np.pi), ("O", np.pi / 2), ("I", np.pi)):
        rotvec = symmetry_group(name).as_rotvec()
        for axis in np.eye(3):
            assert np.isclose(np.abs(rotvec), angle * axis).all(axis=1).any(), (name, axis)


@pytest.mark.parametrize("name", ["", "C0", "X", "D", "C"])
def test_unknown_group(name: str) -> None:
    with pytest.raises(ValueError, match="symmetry must be"):
        symmetry_group(name)


@pytest.mark.parametrize("symmetry", ["C1", "D2", "O"])
def test_every_orientation_has_a_neighbour_within_one_step(
    symmetry: str, rng: np.random.Generator
) -> None:
    step = 20.0
    samples = sample_rotations(step, symmetry)
    expected = 8 * np.pi**2 / np.deg2rad(step) ** 3 / ORDERS[symmetry]
    assert len(samples) == pytest.approx(expected, rel=0.05)
    for rotation in Rotation.random(100, rng=rng):
        others = Rotation.from_quat(np.tile(rotation.as_quat(), (len(samples), 1)))
        assert angular_distance(samples, others, symmetry=symmetry).min() < step


def test_sampling_is_even() -> None:
    # Where the x axis goes must be uniform on the sphere: no mean direction, no mean tensor.
    x_axis = sample_rotations(10).apply([1, 0, 0])
    np.testing.assert_allclose(x_axis.mean(axis=0), 0, atol=0.01)
    np.testing.assert_allclose(x_axis.T @ x_axis / len(x_axis), np.eye(3) / 3, atol=0.01)


def test_distance_is_an_angle_and_knows_symmetry(rng: np.random.Generator) -> None:
    start = Rotation.random(5, rng=rng)
    turned = start * Rotation.from_euler("z", 100, degrees=True)
    np.testing.assert_allclose(angular_distance(start, turned), 100)
    np.testing.assert_allclose(angular_distance(start, turned, symmetry="C4"), 10, atol=1e-6)


def test_step_out_of_range() -> None:
    with pytest.raises(ValueError, match="angular_step"):
        sample_rotations(0)
