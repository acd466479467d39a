"""Segmentation: labels, patches, losses, prediction, validation, learning, going on."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from cheap import SHAPE, kill_training, make_sample, read_rows
from torch import nn

from tomoloc.nn.unet import SegmentationNetwork
from tomoloc.train.loop import TrainSettings, train
from tomoloc.train.losses import entropy_loss, tversky_loss
from tomoloc.train.patches import Patching
from tomoloc.train.predict import predict
from tomoloc.train.segment import UNKNOWN, SegmentTask, draw_segments, mark_class
from tomoloc.types import Particles, Sample, Tomogram, Volume

PATCHING = Patching(number=4, shape=(16, 24, 32), positive=0.75)
LEGEND = {1: "ball", 2: "wall", 3: "flange", 4: "else"}


def make_task(**given):
    settings = {"labels": ("ball", "wall"), "diameters": (60.0, 40.0), "patching": PATCHING}
    return SegmentTask(**{**settings, **given})


def make_scene(number, *, spacing=10.0, origin=(0, 0, 0)):
    """Balls and a wall in noise, with their label volume; a flange is part of the ball."""
    rng = np.random.default_rng([5, number])
    z, y, x = np.indices(SHAPE)
    labels = np.zeros(SHAPE, dtype=np.uint16)
    labels[:, 2:6, :] = 2
    index = np.column_stack([rng.uniform(6, n - 6, 5) for n in SHAPE])
    index[:, 1] = rng.uniform(12, SHAPE[1] - 5, 5)
    for a, b, c in index:
        labels[(z - a) ** 2 + (y - b) ** 2 + (x - c) ** 2 <= 16] = 1
    labels[(labels == 1) & (x % 7 == 0)] = 3
    labels[:3, -3:, :3] = 4
    signal = np.choose(labels, [0, -4, 3, -4, 0])
    tomogram = Tomogram(
        data=signal + rng.normal(size=SHAPE), voxel_spacing=spacing, origin=origin,
        name=f"scene-{number}",
    )  # fmt: skip
    return Sample(
        tomogram=tomogram,
        particles=Particles(position=tomogram.to_position(index), label="ball"),
        labels=Volume(data=labels, voxel_spacing=spacing, origin=origin),
        legend=LEGEND,
        summary={"parts": {"flange": "ball"}},
    )


def endless(start):
    number = start
    while True:
        yield make_scene(number % 4)
        number += 1


def tiny(seed=0, **given):
    torch.manual_seed(seed)
    return SegmentationNetwork(**{"kinds": 2, "channels": (8, 12), **given})


# --------------------------------------------------------------------------------------- labels


def test_classes_come_from_the_label_volume_with_their_parts():
    sample = make_scene(0)
    classes = make_task().prepare(sample).classes
    values = sample.labels.data
    np.testing.assert_array_equal(classes == 1, np.isin(values, (1, 3)))
    np.testing.assert_array_equal(classes == 2, values == 2)
    own = make_task(labels=("flange", "ball")).prepare(sample).classes
    np.testing.assert_array_equal(own == 1, values == 3)
    np.testing.assert_array_equal(own == 2, values == 1)


def test_classes_follow_the_voxel_spacing_and_the_origin():
    sample = make_scene(1, spacing=5.0, origin=(40, -30, 8))
    task = make_task(patching=Patching(number=1, shape=(16, 16, 16)))
    made = task.prepare(sample)
    assert made.classes.shape == (16, 20, 24) == made.data.shape
    for number in (1, 2):
        expected = np.isin(sample.labels.data, (1, 3) if number == 1 else 2).sum() / 8
        assert (made.classes == number).sum() == pytest.approx(expected, rel=0.15)
    # The wall is bright in the tomogram, so negative here, in its second and third row.
    assert made.data[:, 1:3].mean() < -1


def test_without_label_volume_particles_are_balls_of_their_diameter():
    tomogram = Tomogram(data=make_sample(0).tomogram.data, voxel_spacing=10.0, origin=(7, 50, -9))
    index = np.array([[10.2, 12.0, 15.0], [20.0, 30.0, 40.0], [16.0, 8.0, 40.0]])
    particles = Particles(
        position=tomogram.to_position(index),
        label=["ball", "wall", "ball"],
        extra={"tomolocVisibleFraction": [1, 1, 0.3]},
    )
    task = make_task(diameters=(80.0, 120.0))
    classes = task.prepare(Sample(tomogram=tomogram, particles=particles)).classes
    for number, radius, row in ((1, 4, 0), (2, 6, 1), (UNKNOWN, 4, 2)):
        own = np.argwhere(classes == number)
        assert len(own) == pytest.approx(4 / 3 * np.pi * radius**3, rel=0.1)
        np.testing.assert_allclose(own.mean(axis=0), index[row], atol=0.3)


def test_wrong_kinds_are_refused():
    with pytest.raises(ValueError, match="a diameter for each"):
        make_task(diameters=(100.0,))
    with pytest.raises(ValueError, match="different labels"):
        make_task(labels=("ball", "ball"))
    with pytest.raises(ValueError, match="must be positive"):
        make_task(diameters=(100.0, 0.0))


# -------------------------------------------------------------------------------------- patches


def test_patches_turn_with_their_classes(rng):
    task = make_task()
    made = task.prepare(make_scene(2))
    marked = replace(made, data=made.classes.astype(np.float16))
    turned = 0
    for seed in range(8):
        rng = np.random.default_rng(seed)
        data, classes = draw_segments(marked, seed % 3, patching=PATCHING, rng=rng)
        known = classes != UNKNOWN
        assert known[2:-2, 2:-2, 2:-2].all()
        assert not known[:, 0].any()
        np.testing.assert_array_equal(data[known], classes[known])
        wall = np.argwhere(classes == 2)
        turned += bool(len(wall)) and wall[:, 1].mean() > 12
    assert turned


def test_each_class_appears_in_every_batch(rng):
    task = make_task()
    ring = [task.prepare(make_scene(number)) for number in range(2)]
    # one sample without balls must not take their turn
    ring.append(replace(ring[0], index=ring[0].index[-5:], label=ring[0].label[-5:]))
    for _ in range(10):
        batch = task.draw(ring, rng)
        assert batch.data.shape == (4, *PATCHING.shape)
        assert {1, 2} <= set(np.unique(batch.classes))


def test_what_was_added_around_a_small_tomogram_does_not_count(rng):
    task = make_task(patching=Patching(number=1, shape=(48, 48, 48)))
    made = task.prepare(make_scene(3))
    assert made.data.shape == (48, 48, 48)
    _, classes = draw_segments(made, 0, patching=task.patching, rng=rng)
    assert (classes != UNKNOWN).sum() == 32 * 40 * 44  # a margin of 2 along x alone


# ----------------------------------------------------------------------------------------- loss


def one_hot(truth, number=3):
    return nn.functional.one_hot(truth, number).movedim(-1, 1).float()


def test_tversky_weighs_faults_as_in_its_equation():
    truth = torch.zeros(1, 4, 5, 6, dtype=torch.long)
    truth[0, 1:3, 1:4, 2:4] = 1  # 12 voxels
    counts = torch.ones_like(truth, dtype=torch.bool)
    assert float(tversky_loss(one_hot(truth, 2), truth, counts)) == pytest.approx(0)
    said = truth.clone()
    said[0, 1, 1, 2] = 0
    said[0, 0, 0, :2] = 1  # one missed, two false
    background = (120 - 12 - 2 + 1) / (120 - 12 - 2 + 0.3 * 1 + 0.7 * 2 + 1)
    kind = (11 + 1) / (11 + 0.3 * 2 + 0.7 * 1 + 1)
    expected = 1 - (background + kind) / 2
    assert float(tversky_loss(one_hot(said, 2), truth, counts)) == pytest.approx(expected)
    pooled = tversky_loss(one_hot(said, 2), truth, counts, balance=False)
    assert float(pooled) == pytest.approx(1 - kind)
    halves = {"false_positives": 0.5, "false_negatives": 0.5}
    dice = tversky_loss(one_hot(said, 2), truth, counts, balance=False, **halves)
    assert float(dice) == pytest.approx(1 - (2 * 11 + 2) / (12 + 13 + 2))
    counts[said != truth] = False
    assert float(tversky_loss(one_hot(said, 2), truth, counts)) == pytest.approx(0)


def test_entropy_of_rare_classes():
    truth = torch.zeros(1, 4, 5, 6, dtype=torch.long)
    truth[0, 0, 0, 0] = 1
    counts = torch.ones_like(truth, dtype=torch.bool)
    logits = torch.zeros(1, 2, 4, 5, 6)
    logits[:, 0] = 2.0  # always background
    right, wrong = np.log1p(np.exp(-2)), np.log1p(np.exp(2))
    balanced = float(entropy_loss(logits, truth, counts))
    assert balanced == pytest.approx((right + wrong) / 2, rel=1e-5)
    plain = float(entropy_loss(logits, truth, counts, balance=False))
    assert plain == pytest.approx((119 * right + wrong) / 120, rel=1e-5)
    assert float(entropy_loss(logits, truth, ~counts)) == 0


@pytest.mark.parametrize("loss", ["combined", "tversky", "dice", "entropy"])
def test_each_loss_falls_as_a_network_learns(loss):
    task = make_task(loss=loss)
    network = tiny()
    ring = [task.prepare(make_scene(0))]
    batch = task.draw(ring, np.random.default_rng(1))
    optimizer = torch.optim.Adam(network.parameters(), lr=0.01)
    values = []
    for _ in range(12):
        output = task.run(network, torch.from_numpy(batch.data)[:, None])
        value, measures = task.losses(output, batch)
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        values.append(value.item())
    assert values[-1] < 0.8 * values[0]
    assert 0.5 < measures["accuracy"] <= 1


# ------------------------------------------------------------------------ prediction, validation


class Known(nn.Module):
    """Says what each voxel's value is: -9 the first kind, 9 the second."""

    kinds, period = 2, 4

    def forward(self, x):
        kinds = torch.cat([(x < -5).float(), (x > 5).float()], dim=1)
        return torch.cat([1 - kinds.sum(dim=1, keepdim=True), kinds], dim=1)


def test_prediction_is_that_of_the_whole_volume():
    network = tiny(channels=(4, 6)).eval()
    data = np.random.default_rng(0).normal(size=(8, 60, 90)).astype(np.float32)
    assert network.halo <= 16
    whole = predict(network, data)
    assert whole.shape == (2, 8, 60, 90)
    tiles = predict(network, data, max_bytes=1)
    np.testing.assert_allclose(tiles, whole, atol=1e-3)
    rough = predict(network, data, half=True)
    assert 0 < np.abs(rough - whole).mean() < 0.01


def test_views_are_averaged():
    network = tiny(channels=(4, 6)).eval()
    data = np.random.default_rng(0).normal(size=(16, 24, 32)).astype(np.float32)
    flipped = predict(network, np.flip(data, (0, 2)), views=4)
    both = predict(network, data, views=4)
    np.testing.assert_allclose(np.flip(flipped, (1, 3)), both, atol=1e-3)
    plain = predict(network, data)
    assert np.abs(plain - both).max() > 5e-3


def test_validation_is_dice_by_class():
    task = make_task()
    made = task.prepare(make_scene(0))
    values = np.choose(made.classes, [0, -9, 9]).astype(np.float16)
    right = task.validate(Known(), [replace(made, data=values)], device="cpu")
    assert right.dice == {"ball": 1, "wall": 1}
    assert right._asdict() == {"dice": 1, "dice ball": 1, "dice wall": 1}
    half = values.copy()
    half[:, 2:4] = 0
    scores = task.validate(Known(), [replace(made, data=half)], device="cpu")
    assert scores.dice["wall"] == pytest.approx(2 / 3)
    assert scores.score == pytest.approx(5 / 6)
    absent = replace(made, data=np.zeros_like(values), classes=np.zeros_like(made.classes))
    both = task.validate(Known(), [replace(made, data=values), absent], device="cpu")
    assert both.dice == {"ball": 1, "wall": 1}
    assert np.isnan(task.validate(Known(), [absent], device="cpu").score)


class Graded(Known):
    """As sure of the first kind as its value, and of the second half as much."""

    def forward(self, x):
        kinds = torch.cat([x / 10, x / 20], dim=1).clamp(0, 1)
        return torch.cat([1 - kinds.sum(dim=1, keepdim=True), kinds], dim=1)


def test_thresholds_are_the_best_for_dice():
    task = make_task()
    made = task.prepare(make_scene(0))
    # True voxels are 0.42 sure, some others 0.32.
    values = np.where(made.classes == 1, 4.2, 0.0).astype(np.float16)
    values[:, 20:30, :10][made.classes[:, 20:30, :10] == 0] = 3.2
    chosen = task.choose_thresholds(Graded(), [replace(made, data=values)], device="cpu")
    assert chosen[0] == 0.35
    assert chosen[1] == 0.5  # never the most likely
    probability = np.array([[[[0.4, 0.3, 0.6]]], [[[0.4, 0.35, 0.1]]]])
    assert mark_class(probability, 0, threshold=0.25).tolist() == [[[True, False, True]]]
    assert mark_class(probability, 1, threshold=0.25).tolist() == [[[False, True, False]]]


# ------------------------------------------------------------------------------ learning, going on

SETTINGS = TrainSettings(
    steps=60,
    learning_rate=1e-2,
    warm_up=5,
    average=0.9,
    ring=4,
    first=4,
    steps_per_sample=1e9,
    patching=PATCHING,
    validate_every=60,
    checkpoint_minutes=5,
)


@pytest.mark.parametrize("architecture", ["unet3d", "unet2.5d"])
def test_a_tiny_network_learns_two_classes(architecture, tmp_path):
    task = make_task()
    reports = []
    train(
        tiny(architecture=architecture, slices=5),
        endless,
        settings=SETTINGS,
        folder=tmp_path,
        task=task,
        validation=[make_scene(10)],
        publish=lambda _, report: reports.append(report),
    )
    (report,) = reports
    assert report.validation.dice["ball"] > 0.75
    assert report.validation.dice["wall"] > 0.75
    header = (tmp_path / "validation.csv").read_text().splitlines()[0]
    assert header == "step,dice,dice ball,dice wall,seconds"


SCRIPT = """
import sys; sys.path.insert(0, {tests!r})
from pathlib import Path
from test_segment import QUICK, endless, make_scene, make_task, replace, tiny, train
train(tiny(), endless, settings=replace(QUICK, steps=400), folder=Path(sys.argv[1]),
      task=make_task(), validation=[make_scene(9)])
"""
QUICK = replace(
    SETTINGS, ring=2, first=1, steps_per_sample=1.5, validate_every=2, checkpoint_minutes=0
)


def test_a_killed_training_goes_on_to_the_same_weights_and_scores(tmp_path):
    folder, whole = tmp_path / "killed", tmp_path / "whole"
    done = kill_training(SCRIPT, folder)
    settings = replace(QUICK, steps=done + 3, decay=0.0)
    given = {"settings": settings, "task": make_task(), "validation": [make_scene(9)]}
    resumed = train(tiny(seed=2), endless, folder=folder, **given)
    unbroken = train(tiny(), endless, folder=whole, **given)
    for name, value in resumed.state_dict().items():
        assert torch.equal(value, unbroken.state_dict()[name])
    for file, columns in (
        ("steps.csv", ("step", "loss", "accuracy", "gradient")),
        ("validation.csv", ("step", "dice", "dice ball", "dice wall")),
    ):
        before, after = read_rows(folder / file), read_rows(whole / file)
        for name in columns:
            assert [row[name] for row in before] == [row[name] for row in after]


def test_early_layers_learn_more_slowly(tmp_path):
    start = tiny()
    settings = replace(SETTINGS, steps=1, early=0.0, warm_up=1, average=0.0, weight_decay=0.0)
    after = train(tiny(), endless, settings=settings, folder=tmp_path, task=make_task())
    early = {name for name, _ in start.named_parameters() if name.startswith("body.downward")}
    changed = {
        name
        for name, value in start.named_parameters()
        if not torch.equal(value, dict(after.named_parameters())[name])
    }
    assert changed
    assert early
    assert not changed & early


def test_a_loss_that_is_no_number_says_what_to_do(tmp_path):
    network = tiny()
    with torch.no_grad():
        network.body.head.weight.fill_(torch.nan)
    with pytest.raises(ValueError, match=r"no number at step 0: go on .* lower learning rate"):
        train(network, endless, settings=SETTINGS, folder=tmp_path, task=make_task())
