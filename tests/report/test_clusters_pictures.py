"""Pictures of clusters."""

from __future__ import annotations

import numpy as np

from tomoloc.report.clusters import cut_slices


def test_slices_are_of_the_middle_however_small_the_cubes(rng):
    for side in (3, 5, 7, 9):
        boxes = rng.normal(size=(2, side, side, side))
        middle = side // 2
        expected = boxes[:, max(0, middle - 3) : middle + 4].mean(axis=1)
        np.testing.assert_array_equal(cut_slices(boxes, 10.0), expected)
