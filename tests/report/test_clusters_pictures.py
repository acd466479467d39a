"""Pictures of clusters."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from tomoloc.physics.potential import make_potential
from tomoloc.physics.rotations import sample_rotations
from tomoloc.report.clusters import average_turned, cut_slices
from tomoloc.simulate.structures import make_complex
from tomoloc.types import Tomogram


def test_slices_are_of_the_middle_however_small_the_cubes(rng):
    for side in (3, 5, 7, 9):
        boxes = rng.normal(size=(2, side, side, side))
        middle = side // 2
        expected = boxes[:, max(0, middle - 3) : middle + 4].mean(axis=1)
        np.testing.assert_array_equal(cut_slices(boxes, 10.0), expected)


def most_alike(truth, average):
    """Highest correlation over all orientations."""
    middle = np.array(truth.shape) // 2
    best = 0.0
    for matrix in sample_rotations(15.0).as_matrix():
        turned = ndimage.affine_transform(truth, matrix, middle - matrix @ middle, order=1)
        best = max(best, np.corrcoef(turned.ravel(), average.ravel())[0, 1])
    return best


@pytest.mark.parametrize(("dark", "spacing"), [(True, 10.0), (False, 8.0)])
def test_members_turned_onto_each_other_show_the_particle(rng, dark, spacing):
    structure = make_complex(5, mass_kda=400, symmetry="C1")
    side = 25
    cube = make_potential(structure, voxel_spacing=spacing, shape=(side,) * 3, low_pass=25.0).data
    cube = cube / cube.max()
    data = rng.normal(0, 0.4, (48, 3 * 38, 4 * 38))
    corners = [(11, 7 + 38 * i, 5 + 38 * j) for i in range(3) for j in range(4)]
    for turn, corner in enumerate(corners):
        place = tuple(slice(c, c + side) for c in corner)
        data[place] += np.rot90(cube, turn, axes=(1, 2))  # about z
    tomogram = Tomogram(
        data=(-data if dark else data).astype(np.float32),
        voxel_spacing=spacing,
        origin=(100.0, -20.0, 33.0),
    )
    position = tomogram.to_position(np.array(corners) + side // 2)
    groups = [position, position[:8]]
    average, of_few = average_turned(tomogram, groups, dark=dark, width=240.0, spacing=12.0)
    assert average.shape == of_few.shape == (21, 21, 21)
    assert average_turned(tomogram, [], dark=dark, width=240.0, spacing=12.0) == []
    truth = ndimage.zoom(cube, spacing / 12.0, order=1)
    n = min(len(truth), 21) // 2
    inner = [slice(len(a) // 2 - n, len(a) // 2 + n + 1) for a in (truth, average)]
    truth, average = truth[(inner[0],) * 3], -average[(inner[1],) * 3]
    # It lies along its own axes, and is no mirror image.
    assert most_alike(truth, average) > 0.7
    assert most_alike(truth[::-1], average) < most_alike(truth, average) - 0.03
    weight = np.where(average > average.max() / 4, average, 0).ravel()
    spread = np.cov(np.indices(average.shape).reshape(3, -1), aweights=weight)
    assert np.abs(spread - np.diag(np.diag(spread))).max() < 0.1 * np.diag(spread).max()
