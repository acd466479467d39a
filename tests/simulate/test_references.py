"""Turned references against structures that are rendered turned."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage
from scipy.spatial.transform import Rotation

from tomoloc.physics.potential import PROTEIN_CONTRAST, make_potential, potential_integral
from tomoloc.simulate.references import add_particles, make_reference
from tomoloc.simulate.structures import make_complex
from tomoloc.types import Volume

SPACING = 10.0
MIDDLE = np.array([160.0, 220.0, 320.0])


def place(reference, rotation, position, shape=(38, 40, 42)):
    grid = Volume(
        data=np.zeros(shape, np.float32), voxel_spacing=SPACING, origin=[-50.0, 20.0, 130.0]
    )
    instances = np.zeros(shape, np.uint16)
    add_particles(
        grid.data,
        instances,
        [reference],
        index=grid.to_index(position)[None],
        rotation=Rotation.from_quat([rotation.as_quat()]),
        species=np.array([0]),
    )
    return grid, instances


def test_a_placed_particle_is_the_structure_rendered_turned(rng):
    structure = make_complex(26)  # no symmetry that could hide a wrong turn
    reference = make_reference(structure, voxel_spacing=SPACING)
    for rotation in Rotation.random(3, rng=rng):
        grid, _ = place(reference, rotation, MIDDLE)
        expected = make_potential(
            structure, voxel_spacing=SPACING, shape=(33, 33, 33), rotation=rotation
        )
        # Position 160 220 320 is voxel 21 20 19 (xyz), the middle of the crop.
        crop = grid.data[3:36, 4:37, 5:38]
        error = np.abs(crop - expected.data).max()
        assert error < 0.03 * expected.data.max()
        assert np.corrcoef(crop.ravel(), expected.data.ravel())[0, 1] > 0.999


def test_positions_between_voxels_are_exact(rng):
    structure = make_complex(5)
    reference = make_reference(structure, voxel_spacing=SPACING)
    for position in rng.uniform(-5, 5, (4, 3)) + MIDDLE:
        grid, _ = place(reference, Rotation.random(rng=rng), position)
        assert grid.data.sum() * SPACING**3 == pytest.approx(
            potential_integral(structure), rel=0.01
        )
        inside = np.where(grid.data > 0.5, grid.data, 0)
        centroid = grid.to_position(ndimage.center_of_mass(inside))
        np.testing.assert_allclose(centroid, position, atol=2)


@pytest.mark.parametrize("seed", [19, 13, 21])
def test_the_center_of_a_ring_belongs_to_it(rng, seed):
    reference = make_reference(make_complex(seed), voxel_spacing=SPACING)
    middle = tuple(n // 2 for n in reference.envelope.shape)
    assert reference.potential.data[middle] < 0.3 * PROTEIN_CONTRAST  # a hole
    for rotation in Rotation.random(5, rng=rng):
        position = rng.uniform(-5, 5, 3) + MIDDLE
        grid, instances = place(reference, rotation, position)
        z, y, x = np.rint(grid.to_index(position)).astype(int)
        assert instances[z, y, x] == 1
        assert (grid.data[instances == 1] > 0.3 * PROTEIN_CONTRAST).mean() > 0.4


def test_envelope_follows_the_density_where_there_is_no_hole():
    reference = make_reference(make_complex(9), voxel_spacing=SPACING)
    np.testing.assert_array_equal(
        reference.envelope, reference.potential.data > 0.4 * PROTEIN_CONTRAST
    )
    assert np.linalg.norm(reference.points, axis=1).max() < make_complex(9).diameter / 2 + SPACING


def test_a_map_is_centered_and_scaled(rng):
    structure = make_complex(28)
    fine = make_potential(structure, voxel_spacing=7.0, shape=(44, 46, 48))
    shifted = Volume(
        data=np.roll(fine.data, (2, -1, 3), axis=(0, 1, 2)) * 17 + 5, voxel_spacing=7.0, name="map"
    )
    atoms = make_reference(structure, voxel_spacing=SPACING)
    density = make_reference(shifted, voxel_spacing=SPACING)
    assert density.potential.voxel_spacing == atoms.potential.voxel_spacing == 5.0
    assert density.potential.name == "map"
    rotation, position = Rotation.random(rng=rng), MIDDLE
    a, b = (place(reference, rotation, position)[0].data for reference in (atoms, density))
    assert np.corrcoef(a.ravel(), b.ravel())[0, 1] > 0.97
    assert b.sum() == pytest.approx(a.sum(), rel=0.25)
