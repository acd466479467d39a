"""Heat maps: labels, loss, patches, validation."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from cheap import SHAPE, kill_training, make_sample, read_rows
from torch import nn

from tomoloc.nn.encoder import HeatNetwork
from tomoloc.train.heat import (
    HeatTask,
    draw_heat,
    heat_loss,
    make_profile,
    measure_diameter,
)
from tomoloc.train.loop import TrainSettings, train
from tomoloc.train.patches import Patching
from tomoloc.types import Particles, Sample, Tomogram, Volume

PATCHING = Patching(number=2, shape=(24, 32, 40))


def make_task(**given):
    settings = {"labels": ("ball", "pair"), "diameters": (120.0, 200.0), "patching": PATCHING}
    return HeatTask(**{**settings, **given})


# --------------------------------------------------------------------------------------- labels


def test_profiles_are_one_at_the_centre_and_zero_beyond_the_radius():
    distance = np.linspace(0, 15, 301)
    for profile in ("gaussian", "binary"):
        heat = make_profile(distance, 10.0, profile=profile)
        assert heat[0] == 1
        assert (np.diff(heat) <= 0).all()
        assert (heat[distance > 10] == 0).all()
    smooth = make_profile(distance, 10.0, profile="gaussian")
    # equations 1 to 5 of the paper, by hand, at half the radius
    expected = (np.exp(-(5**2) / (2 * (9.5 / 3) ** 2)) + np.exp(-(5**2) / (2 * (5 / 3) ** 2))) / 2
    assert smooth[100] == pytest.approx(expected)


def test_patches_turn_with_their_heat(rng):
    """A voxel of a particle's own brightness stays where its heat is."""
    index = np.array([[8.5, 14.5, 20.5], [16.5, 6.5, 30.5]])
    data = np.zeros(SHAPE)
    for z, y, x in index.astype(int):
        data[z : z + 2, y : y + 2, x : x + 2] = -100.0
    tomogram = Tomogram(data=data + rng.normal(size=SHAPE), voxel_spacing=10.0)
    particles = Particles(position=tomogram.to_position(index), label=["ball", "pair"])
    task = make_task()
    made = task.prepare(Sample(tomogram=tomogram, particles=particles))
    hottest = []
    for seed in range(12):
        patch, heat, counts = draw_heat(made, task, np.random.default_rng(seed))
        assert patch.shape == PATCHING.shape
        assert heat.shape == (2, 12, 16, 20)
        for seen in heat * counts:
            place = np.array(np.unravel_index(seen.argmax(), seen.shape))
            if seen.max() < 0.99:
                continue
            z, y, x = 2 * place
            block = patch[z : z + 2, y : y + 2, x : x + 2]
            hottest.append(block.max() > 0.5 * patch.max())
    assert len(hottest) > 8
    assert all(hottest)


def test_kinds_have_their_own_sizes_and_maps(rng):
    task = make_task()
    _, heat, _ = draw_heat(task.prepare(make_sample(3)), task, rng)
    wide = [(kind > 0).sum() / max((kind > 0.9).sum(), 1) for kind in heat]
    assert heat.max() > 0.5
    assert wide[1] > wide[0] or min(wide) == 0


def test_particles_of_which_little_is_seen_do_not_count():
    sample = make_sample(1)
    seen = np.ones(len(sample.particles))
    seen[0] = 0.2
    particles = replace(sample.particles, extra={"tomolocVisibleFraction": seen})
    task = make_task(patching=Patching(number=1, shape=(32, 40, 48)))
    made = task.prepare(replace(sample, particles=particles))
    _, _, counts = draw_heat(made, task, np.random.default_rng(0))
    whole = task.prepare(sample)
    _, _, all_counts = draw_heat(whole, task, np.random.default_rng(0))
    assert 0 < counts.sum() < all_counts.sum()


def test_diameters_are_measured_where_voxels_are_known():
    sample = make_sample(2)
    owner = np.zeros(SHAPE, dtype=np.int16)
    z, y, x = np.indices(SHAPE)
    for row, center in enumerate(sample.tomogram.to_index(sample.particles.position)):
        away = np.sqrt(((np.stack([z, y, x], -1) - center) ** 2).sum(-1))
        owner[away <= (3 if row % 2 == 0 else 6)] = row + 1
    instances = Volume(data=owner, voxel_spacing=10.0)
    known = replace(sample, instances=instances)
    assert measure_diameter(known, "ball") == pytest.approx(65, abs=8)
    assert measure_diameter(known, "pair") == pytest.approx(125, abs=8)
    assert measure_diameter(sample, "ball") is None
    assert measure_diameter(known, "nothing") is None


def test_wrong_kinds_are_refused():
    with pytest.raises(ValueError, match="a diameter for each"):
        make_task(diameters=(100.0,))
    with pytest.raises(ValueError, match="must be positive"):
        make_task(diameters=(100.0, -1.0))


# ----------------------------------------------------------------------------------------- loss


def test_the_loss_is_least_at_the_truth_and_weighs_rare_heat():
    heat = torch.zeros(1, 1, 12, 14, 16)
    heat[0, 0, 4:7, 5:8, 6:9] = torch.rand(3, 3, 3)
    counts = torch.ones(1, 1, 12, 14, 16, dtype=torch.bool)
    assert sum(heat_loss(heat, heat, counts)) == 0
    missed, _ = heat_loss(torch.zeros_like(heat), heat, counts)
    few = heat.clone()
    few[0, 0, 0, 0, :3] = 0.5
    invented, _ = heat_loss(few, heat, counts)
    assert missed > 10 * invented
    _, curved = heat_loss(few, heat, counts)
    assert curved > 0
    counts[0, 0, :2] = False
    level, curved = heat_loss(few, heat, counts)
    assert level == 0
    assert curved == 0


# --------------------------------------------------------------------------- learning, validation


class Known(nn.Module):
    """Gives the true heat, or that of places a little off."""

    def __init__(self, task, made, *, off=0.0, missed=0):
        super().__init__()
        self.task, self.made, self.off, self.missed = task, made, off, missed

    def forward(self, x):
        shape = [n // 2 for n in x.shape[2:]]
        grid = np.stack(np.meshgrid(*(2 * np.arange(n) + 0.5 for n in shape), indexing="ij"), -1)
        grid = grid - 16  # what is reflected around the sample
        heat = []
        truth = self.task._truth(self.made, "")
        for label, diameter in zip(self.task.labels, self.task.diameters, strict=True):
            index = truth.position[np.asarray(truth.label) == label][self.missed :, ::-1] / 10
            away = np.linalg.norm(grid[..., None, :] - index - [0, self.off, 0], axis=-1)
            nearest = away.min(axis=-1, initial=np.inf)
            heat.append(make_profile(nearest, diameter / 20, profile="gaussian"))
        return torch.from_numpy(np.stack(heat)).float()[None]


def test_validation_and_thresholds():
    task = make_task(patching=Patching(number=1, shape=(32, 40, 48)))
    index = np.array([[10, 10, 12], [20, 28, 34], [12, 30, 10], [20, 8, 38]]) + 0.3
    tomogram = Tomogram(data=make_sample(5).tomogram.data, voxel_spacing=10.0, origin=(3, -9, 70))
    labels = ["ball", "ball", "pair", "pair"]
    sample = Sample(
        tomogram=tomogram, particles=Particles(position=tomogram.to_position(index), label=labels)
    )
    made = task.prepare(sample)
    right = task.validate(Known(task, made), [made, made], device="cpu")
    assert right.f1 == right.score == 1
    assert right.error < 3
    off = task.validate(Known(task, made, off=1.0), [made], device="cpu")
    assert off.f1 == 1
    assert off.error == pytest.approx(10, abs=2.5)
    assert off.error_percent == pytest.approx(100 * 10 * (1 / 120 + 1 / 200) / 2, abs=2)
    half = task.validate(Known(task, made, missed=1), [made], device="cpu")
    assert half.f1 == pytest.approx(2 / 3)
    thresholds = task.choose_thresholds(Known(task, made), [made], device="cpu")
    assert all(0.3 < t < 1 for t in thresholds)
    nothing = task.choose_thresholds(Known(task, made, missed=2), [made], device="cpu")
    assert nothing == (0.3, 0.3)


def test_a_tiny_network_learns_where_two_kinds_are(tmp_path):
    torch.manual_seed(1)
    task = make_task(patching=Patching(number=3, shape=(24, 32, 40)))
    network = HeatNetwork(kinds=2, widths=(12, 16), down=(1, 1), up=(1,), head=0)
    reports = []
    settings = TrainSettings(
        steps=120,
        learning_rate=4e-3,
        warm_up=10,
        average=0.9,
        ring=6,
        first=6,
        steps_per_sample=1e9,
        patching=task.patching,
        validate_every=120,
        checkpoint_minutes=5,
    )
    train(
        network,
        lambda start: (make_sample(i % 6) for i in range(start, 10_000)),
        settings=settings,
        folder=tmp_path,
        task=task,
        validation=[make_sample(10), make_sample(11)],
        publish=lambda _, report: reports.append(report),
    )
    (report,) = reports
    assert report.validation.f1 > 0.7
    assert report.validation.error_percent < 25  # neighbours overlap


SCRIPT = """
import sys; sys.path.insert(0, {tests!r})
from pathlib import Path
from test_heat import QUICK, endless, make_sample, make_task, replace, tiny, train
train(tiny(), endless, settings=replace(QUICK, steps=400), folder=Path(sys.argv[1]),
      task=make_task(), validation=[make_sample(9)])
"""
QUICK = TrainSettings(
    steps=6, patching=PATCHING, ring=2, first=1, steps_per_sample=1.5, validate_every=2,
    checkpoint_minutes=0, warm_up=2,
)  # fmt: skip


def tiny(seed=0):
    torch.manual_seed(seed)
    return HeatNetwork(kinds=2, widths=(4, 6), down=(1, 1), up=(1,), head=0)


def endless(first):
    return (make_sample(number) for number in itertools.count(first))


def test_a_killed_training_goes_on_to_the_same_weights_and_scores(tmp_path):
    folder, whole = tmp_path / "killed", tmp_path / "whole"
    done = kill_training(SCRIPT, folder)
    settings = replace(QUICK, steps=done + 3, decay=0.0)
    given = {"settings": settings, "task": make_task(), "validation": [make_sample(9)]}
    resumed = train(tiny(seed=2), endless, folder=folder, **given)
    unbroken = train(tiny(), endless, folder=whole, **given)
    for name, value in resumed.state_dict().items():
        assert torch.equal(value, unbroken.state_dict()[name])
    for name in ("steps.csv", "validation.csv"):
        before, after = (
            [{key: row[key] for key in row if key not in {"seconds", "waited"}} for row in rows]
            for rows in (read_rows(folder / name), read_rows(whole / name))
        )
        assert before == after
