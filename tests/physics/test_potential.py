"""Potentials against closed forms."""

from __future__ import annotations

import gemmi
import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from tomoloc.physics.potential import (
    ICE_POTENTIAL,
    POTENTIAL_PER_SCATTERING,
    make_potential,
    molecular_mass_kda,
    normalize_map,
    potential_integral,
)
from tomoloc.simulate.structures import make_complex
from tomoloc.types import Structure, Volume


def molecule(rng, n=300, extent=40.0, numbers=(6, 7, 8, 16)):
    position = rng.uniform(-extent / 2, extent / 2, (n, 3)) * [1.0, 0.7, 0.5]
    position += np.array([100, -50, 20])
    return Structure(position=position, atomic_number=rng.choice(numbers, n))


def atom_potential(number, radius, b_factor):
    """The transform of one atom's five Gaussians less that of the ice it displaces."""
    volume = {6: 16.44, 8: 9.13}[number]
    coefficients = gemmi.Element(number).c4322
    terms = [
        (POTENTIAL_PER_SCATTERING * a, b)
        for a, b in zip(coefficients.a, coefficients.b, strict=True)
    ]
    terms.append((-ICE_POTENTIAL * volume, 4 * np.pi * volume ** (2 / 3)))
    return sum(
        a * (4 * np.pi / (b + b_factor)) ** 1.5 * np.exp(-4 * np.pi**2 * radius**2 / (b + b_factor))
        for a, b in terms
    )


def test_ice_has_the_published_mean_potential():
    # Vulović et al. 2013: 4.53 V in the isolated-atom approximation.
    assert pytest.approx(4.53, abs=0.01) == ICE_POTENTIAL


@pytest.mark.parametrize("voxel_spacing", [2.0, 7.0, 10.0])
def test_integral_is_the_sum_of_scattering_factors(rng, voxel_spacing):
    structure = molecule(rng, numbers=(1, 6, 7, 8))  # with hydrogens of its own
    expected = sum(
        POTENTIAL_PER_SCATTERING * sum(gemmi.Element(int(z)).c4322.a)
        - ICE_POTENTIAL * {1: 5.15, 6: 16.44, 7: 2.49, 8: 9.13}[int(z)]
        for z in structure.atomic_number
    )
    assert potential_integral(structure) == pytest.approx(expected, rel=1e-6)
    volume = make_potential(structure, voxel_spacing=voxel_spacing)
    assert volume.data.sum(dtype=float) * voxel_spacing**3 == pytest.approx(expected, rel=1e-4)


def test_missing_hydrogens_and_weights_count(rng):
    structure = molecule(rng)
    heavier = Structure(
        position=structure.position,
        atomic_number=structure.atomic_number,
        weight=np.full(300, 2.5),
    )
    assert potential_integral(heavier) == pytest.approx(2.5 * potential_integral(structure))
    assert molecular_mass_kda(heavier) == pytest.approx(2.5 * molecular_mass_kda(structure))
    volume = make_potential(heavier, voxel_spacing=4)
    assert volume.data.sum(dtype=float) * 64 == pytest.approx(potential_integral(heavier), rel=1e-4)


@pytest.mark.parametrize("number", [6, 8])
@pytest.mark.parametrize("shape", [(36, 37, 42), (41, 40, 35)])
def test_one_atom_has_its_closed_form_profile(number, shape):
    # A hydrogen without weight keeps implied hydrogens away.
    structure = Structure(
        position=[[3, 4, 5.0]] * 2, atomic_number=[number, 1], weight=[1.0, 0.0], name="atom"
    )
    volume = make_potential(structure, voxel_spacing=0.5, shape=shape, b_factor=60)
    z, y, x = np.indices(shape)
    position = volume.to_position(np.stack([z, y, x], -1))
    expected = atom_potential(number, np.linalg.norm(position, axis=-1), 60)
    assert volume.name == "atom"
    np.testing.assert_allclose(volume.data, expected, atol=3e-3 * expected.max())


@pytest.mark.parametrize("shape", [(24, 25, 28), (25, 24, 27)])
def test_center_lies_in_the_middle_of_even_and_odd_boxes(rng, shape):
    half = rng.uniform(-15, 15, (40, 3))
    structure = Structure(position=np.r_[half, -half] + 7, atomic_number=np.full(80, 6))
    volume = make_potential(structure, voxel_spacing=3.0, shape=shape)
    np.testing.assert_allclose(volume.to_position((np.array(shape) - 1) / 2), 0, atol=1e-9)
    np.testing.assert_allclose(volume.data, volume.data[::-1, ::-1, ::-1], atol=1e-4)


def test_coarse_voxels_are_samples_of_the_band_limited_potential(rng):
    structure = molecule(rng, n=2000, extent=90)
    coarse = make_potential(structure, voxel_spacing=10, shape=(33, 35, 37))
    fine = make_potential(structure, voxel_spacing=5, shape=(65, 69, 73), low_pass=20)
    np.testing.assert_allclose(fine.data[::2, ::2, ::2], coarse.data, atol=0.01 * coarse.data.max())


def test_rotation_turns_the_molecule_about_its_center(rng):
    structure = molecule(rng)
    turn = Rotation.from_euler("z", 90, degrees=True)
    upright = make_potential(structure, voxel_spacing=3, shape=(20, 26, 26))
    turned = make_potential(structure, voxel_spacing=3, shape=(20, 26, 26), rotation=turn)
    # x goes to y: the array's axes 1 and 2 turn from the last to the first.
    np.testing.assert_allclose(turned.data, np.rot90(upright.data, 1, axes=(2, 1)), atol=1e-4)
    turn = Rotation.random(rng=rng)
    moved = Structure(
        position=turn.apply(structure.position) + 11, atomic_number=structure.atomic_number
    )
    np.testing.assert_allclose(
        make_potential(moved, voxel_spacing=3, shape=(24, 26, 28)).data,
        make_potential(structure, voxel_spacing=3, shape=(24, 26, 28), rotation=turn).data,
        atol=1e-4,
    )


def test_default_box_holds_every_rotation(rng):
    structure = molecule(rng, extent=120)
    for turn in Rotation.random(5, rng=rng):
        volume = make_potential(structure, voxel_spacing=5, rotation=turn)
        assert len(set(volume.shape)) == 1
        rim = volume.data.copy()
        rim[1:-1, 1:-1, 1:-1] = 0
        assert np.abs(rim).max() < 0.05 * volume.data.max()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"shape": (4, 30, 30)}, "needs a box of"),
        ({"low_pass": 4.0}, r"low_pass must be at least two voxels \(6 Å\); got 4"),
        ({"voxel_spacing": 0.0}, "voxel_spacing must be positive"),
    ],
)
def test_wrong_options_are_refused(rng, options, message):
    with pytest.raises(ValueError, match=message):
        make_potential(molecule(rng), **{"voxel_spacing": 3.0, **options})


def test_unknown_elements_are_refused():
    structure = Structure(position=np.eye(3), atomic_number=[6, 0, 7])
    with pytest.raises(ValueError, match="atomic number 0"):
        make_potential(structure, voxel_spacing=3)


def test_maps_are_normalized_whatever_their_units(rng):
    ball = np.linalg.norm(np.indices((20, 24, 28)).T - [9.5, 11.5, 13.5], axis=-1).T < 6
    data = ball + 0.02 * rng.normal(size=ball.shape)
    volume = Volume(data=data, voxel_spacing=5.0)
    normal = normalize_map(volume)
    assert normal.data[ball].mean() == pytest.approx(2.3, rel=0.02)
    assert normal.data[~ball].mean() == pytest.approx(0, abs=0.05)
    scaled = normalize_map(volume.with_data(-40 + 1e3 * data))
    np.testing.assert_allclose(scaled.data, normal.data, atol=1e-3)
    mass = 2.3 * ball.sum() * 125 / 3.6 / 1000
    by_mass = normalize_map(volume, mass_kda=2 * mass)
    np.testing.assert_allclose(by_mass.data, 2 * normal.data, rtol=0.02, atol=0.05)


@pytest.mark.parametrize("seed", [7, 9, 28])
def test_a_normalized_map_of_atoms_is_their_potential(seed):
    structure = make_complex(seed)
    potential = make_potential(structure, voxel_spacing=8.0)
    free = normalize_map(potential.with_data(potential.data * 40 + 7))
    known = normalize_map(potential, mass_kda=molecular_mass_kda(structure))
    assert free.data.max() == pytest.approx(potential.data.max(), rel=0.2)
    assert known.data.sum() == pytest.approx(potential.data.sum(), rel=0.1)


def test_a_map_without_density_is_refused():
    with pytest.raises(ValueError, match="no density above its background"):
        normalize_map(Volume(data=np.ones((5, 6, 7)), voxel_spacing=5.0))
