import numpy as np
import pytest
import torch
from torch import nn

from tomoloc.train.patches import prepare
from tomoloc.train.validate import validate
from tomoloc.types import Particles, Sample, Tomogram

SHAPE = (40, 52, 64)


@pytest.fixture
def sample(rng):
    """Eighteen particles on a lattice, of three labels."""
    index = np.stack(np.meshgrid([10, 26], [8, 24, 42], [10, 30, 52], indexing="ij"), axis=-1)
    index = index.reshape(-1, 3) + rng.uniform(-1, 1, (18, 3))
    tomogram = Tomogram(data=rng.normal(size=SHAPE), voxel_spacing=10.0, origin=(5, -70, 30))
    return Sample(
        tomogram=tomogram,
        particles=Particles(
            position=tomogram.to_position(index), label=np.array(list("abc"))[np.arange(18) % 3]
        ),
    )


class Oracle(nn.Module):
    """Knows the truth, but for a share of the labels, and of the centres."""

    def __init__(self, made, *, wrong=0, missed=0):
        super().__init__()
        self.made, self.wrong, self.missed = made, wrong, missed

    def forward(self, x):
        shape = [n // 2 for n in x.shape[2:]]
        grid = np.stack(np.meshgrid(*(np.arange(n) * 2 + 0.5 for n in shape), indexing="ij"), -1)
        grid = grid - 16  # what is reflected around the sample
        away = np.linalg.norm(grid[..., None, :] - self.made.index, axis=-1)
        names = np.unique(self.made.label)
        number = np.searchsorted(names, self.made.label)
        number[: self.wrong] = (number[: self.wrong] + 1) % len(names)
        embedding = np.moveaxis(np.eye(len(names))[number[away.argmin(axis=-1)]], -1, 0)
        heat = np.exp(-(away[..., self.missed :].min(axis=-1) ** 2) / 8)
        logit = torch.logit(torch.from_numpy(heat).float(), eps=1e-6)
        return torch.from_numpy(embedding).float()[None], logit[None, None]


def prepared(sample):
    return prepare(sample, voxel_spacing=10.0, least=(16, 16, 16))


def test_who_knows_all_scores_all(sample):
    made = prepared(sample)
    assert validate(Oracle(made), [made, made], voxel_spacing=10.0) == (1, 1, 1)


def test_missed_centres_cost_recall(sample):
    made = prepared(sample)
    scores = validate(Oracle(made, missed=6), [made], voxel_spacing=10.0)
    assert scores.accuracy == 1
    assert scores.center_f1 == pytest.approx(2 * 12 / (12 + 18))


def test_wrong_labels_cost_accuracy_alone(sample):
    made = prepared(sample)
    scores = validate(Oracle(made, wrong=3), [made], voxel_spacing=10.0)
    assert scores.center_f1 == 1
    assert scores.accuracy < 1
    assert scores.pick_f1 < 1


def test_particles_that_are_cut_off_neither_help_nor_harm(sample):
    made = prepared(sample)
    made.usable[:6] = False
    assert validate(Oracle(made), [made], voxel_spacing=10.0) == (1, 1, 1)


def test_a_network_that_sees_nothing_scores_nothing(sample):
    class Blind(nn.Module):
        def forward(self, x):
            shape = [n // 2 for n in x.shape[2:]]
            return torch.ones(1, 3, *shape), torch.full((1, 1, *shape), -9.0)

    made = prepared(sample)
    scores = validate(Blind(), [made], voxel_spacing=10.0)
    assert scores.accuracy == pytest.approx(1 / 3)
    assert scores[1:] == (0, 0)


def test_nothing_to_look_for_is_not_a_number(sample):
    empty = prepared(Sample(tomogram=sample.tomogram, particles=Particles(position=[])))
    made = prepared(sample)
    assert np.isnan(validate(Oracle(made), [], voxel_spacing=10.0)).all()
    assert np.isnan(validate(Oracle(made), [empty], voxel_spacing=10.0)).all()
