"""Instances of a class: touching balls, pieces of one, dust."""

import numpy as np
import pytest

from tomoloc.features.segments import remove_dust, segment_instances
from tomoloc.types import Volume

SHAPE = (32, 40, 56)


def balls(centers, radius=5.0):
    grid = np.stack(np.indices(SHAPE), axis=-1)
    away = [np.linalg.norm(grid - np.asarray(c), axis=-1) for c in centers]
    return np.min(away, axis=0) <= radius


def cut(mask, method, **given):
    probability = Volume(data=0.95 * mask, voxel_spacing=10.0, origin=(70, -20, 5))
    settings = {"diameter": 100.0, "min_distance": 50.0} | given
    return segment_instances(probability, mask, method=method, **settings)


TOUCHING = [(16, 20, 14), (16, 20, 24), (16, 22, 44)]


@pytest.mark.parametrize(
    ("method", "number"), [("components", 2), ("watershed", 3), ("mean-shift", 3)]
)
def test_touching_balls(method, number):
    mask = balls(TOUCHING)
    labels = cut(mask, method)
    assert (labels > 0).tolist() == mask.tolist()
    assert sorted(np.unique(labels)) == list(range(number + 1))
    if number == 3:
        middles = [np.argwhere(labels == i).mean(axis=0) for i in (1, 2, 3)]
        away = np.linalg.norm(np.array(middles)[:, None] - TOUCHING, axis=-1).min(axis=0)
        assert away.max() < 1
    again = cut(mask, method)
    assert (again == labels).all()


def test_mean_shift_gathers_pieces_and_many_voxels():
    pieces = balls([(16, 20, 14)])
    pieces[:, :, 14] = False
    labels = cut(pieces, "mean-shift")
    assert labels.max() == 1
    assert cut(pieces, "components").max() == 2
    # more voxels than it looks at: all of them are given to an instance
    large = balls([(16, 20, 16), (16, 20, 40)], radius=14.5)
    labels = cut(large, "mean-shift", diameter=290.0, seed=3)
    assert ((labels > 0) == large).all()
    sizes = np.bincount(labels.ravel())[1:]
    assert len(sizes) == 2
    assert sizes.min() > 0.9 * sizes.max()


def test_components_between_the_maxima_are_kept():
    """A small piece near a large one has no maximum of its own that is far enough."""
    mask = balls([(16, 20, 20)])
    mask[16, 20, 27:29] = True
    labels = cut(mask, "watershed", min_distance=120.0)
    assert labels.max() == 2
    assert (labels[16, 20, 27:29] == labels[16, 20, 27]).all()
    assert labels[16, 20, 27] != labels[16, 20, 20]


@pytest.mark.parametrize("method", ["components", "watershed", "mean-shift"])
def test_nothing_is_nothing(method):
    assert cut(np.zeros(SHAPE, bool), method).max() == 0


def test_dust_is_removed():
    mask = balls([(16, 20, 20)], radius=3.0)
    mask[2, 2, 2:6] = True
    assert (remove_dust(mask, least=5) == balls([(16, 20, 20)], radius=3.0)).all()
    assert (remove_dust(mask, least=4) == mask).all()
