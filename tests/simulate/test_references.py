"""Turned references against structures that are rendered turned."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys

import numpy as np
import pytest
from scipy import ndimage
from scipy.spatial.transform import Rotation

from tomoloc.physics.potential import PROTEIN_CONTRAST, make_potential, potential_integral
from tomoloc.simulate.references import add_particles, make_reference, part_of_atoms
from tomoloc.simulate.settings import Part
from tomoloc.simulate.structures import make_complex
from tomoloc.types import Structure, Volume

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
    inside = reference.potential.data > 0.4 * PROTEIN_CONTRAST
    assert not (inside & ~reference.envelope).any()
    more = reference.potential.to_position(np.argwhere(reference.envelope & ~inside))
    # Only the few voxels around the centre that every envelope has.
    assert len(more) < 10
    assert np.linalg.norm(more, axis=1).max() < 2.6 * reference.potential.voxel_spacing


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


def dumbbell():
    """Two balls of carbon, chains A at -x and B at +x and +y, off the origin."""
    rng = np.random.default_rng(0)
    offset = rng.normal(size=(600, 3))
    offset *= 28 * rng.uniform(0, 1, (600, 1)) ** (1 / 3) / np.linalg.norm(offset, axis=1)[:, None]
    middle = np.repeat([[-45.0, 0, 0], [45.0, 30, 0]], 300, axis=0)
    return Structure(
        position=offset + middle + [100, 200, -50],
        atomic_number=np.full(600, 6),
        weight=np.full(600, 8.0),
        name="dumbbell",
        chain=np.repeat(["A1", "B"], 300),
    )


def test_parts_and_labels_lie_where_their_atoms_do(rng):
    structure = dumbbell()
    parts = [Part(label="second", chains=("B",)), Part(label="first", chains=("A",))]
    reference = make_reference(structure, voxel_spacing=SPACING, parts=parts)
    np.testing.assert_allclose(reference.center, structure.center)
    plain = make_reference(dumbbell(), voxel_spacing=SPACING, parts=parts[:1])
    shape = (38, 40, 42)
    density, instances = np.zeros(shape, np.float32), np.zeros(shape, np.uint16)
    labels = np.zeros(shape, np.uint16)
    labels[:, :, :5], instances[:, :, :5] = 77, 500
    index = np.array([[19.3, 12.1, 10.6], [18.0, 28.4, 30.2]])
    rotation = Rotation.random(2, rng=rng)
    add_particles(
        density,
        instances,
        [reference, plain],
        index=index,
        rotation=rotation,
        species=np.array([0, 1]),
        values=np.array([40, 9]),
        labels=labels,
        label_values=[[3, 4, 5], np.array([6, 8])],
    )
    assert set(np.unique(instances)) == {0, 9, 40, 500}
    assert set(np.unique(labels[instances == 40])) == {4, 5}  # every atom is in a part
    assert set(np.unique(labels[instances == 9])) == {6, 8}
    assert (labels[instances == 500] == 77).all()
    assert (labels[instances == 0] == 0).all()
    for row, label, chain in ((0, 4, "B"), (0, 5, "A1"), (1, 8, "B"), (1, 6, "A1")):
        atoms = structure.position[structure.chain == chain] - structure.center
        expected = rotation[row].apply(atoms).mean(axis=0) / SPACING + index[row][::-1]
        found = np.argwhere(labels == label).mean(axis=0)[::-1]
        np.testing.assert_allclose(found, expected, atol=0.5)


def test_chains_of_parts():
    structure = dumbbell()
    both = part_of_atoms(structure, [Part(label="all", chains=("A1", "B"))])
    np.testing.assert_array_equal(both, 1)
    with pytest.raises(ValueError, match=r"part x: dumbbell has no chain 'C'; it has A1, B$"):
        part_of_atoms(structure, [Part(label="x", chains=("B", "C"))])
    nameless = Structure(position=np.zeros((1, 3)), atomic_number=[6])
    with pytest.raises(ValueError, match="it has none"):
        part_of_atoms(nameless, [Part(label="x", chains=("A",))])


CROWD = """
import sys
import numpy as np
from scipy.spatial.transform import Rotation
from tomoloc.simulate.references import add_particles, make_reference
from tomoloc.simulate.structures import make_complex
rng = np.random.default_rng(0)
shape = (20, 44, 46)
density, instances = np.zeros(shape, np.float32), np.zeros(shape, np.uint16)
add_particles(
    density, instances, [make_reference(make_complex(i), voxel_spacing=12.0) for i in (5, 9)],
    index=rng.uniform(0, shape, (60, 3)), rotation=Rotation.random(60, rng=rng),
    species=rng.integers(0, 2, 60),
)
sys.stdout.buffer.write(density.tobytes() + instances.tobytes())
"""


def test_overlapping_particles_are_the_same_on_any_number_of_threads():
    hashes = set()
    for threads in "12":
        environment = {**os.environ, "NUMBA_NUM_THREADS": threads, "OMP_NUM_THREADS": threads}
        ran = subprocess.run(
            [sys.executable, "-c", CROWD], env=environment, capture_output=True, check=True
        )
        hashes.add(hashlib.sha256(ran.stdout).hexdigest())
        assert np.frombuffer(ran.stdout[: 4 * 20 * 44 * 46], np.float32).max() > PROTEIN_CONTRAST
    assert len(hashes) == 1


def test_little_is_lost_outside_of_the_envelope(rng):
    reference = make_reference(make_complex(3), voxel_spacing=SPACING)
    grid, _ = place(reference, Rotation.random(rng=rng), MIDDLE)
    spacing = reference.potential.voxel_spacing
    whole = reference.potential.data.sum() * spacing**3
    assert grid.data.sum() * SPACING**3 == pytest.approx(whole, rel=0.005)
    assert (grid.data != 0).mean() < 0.15  # most of the box is left alone
