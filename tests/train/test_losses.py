import math

import pytest
import torch

from tomoloc.train.losses import center_loss, contrastive_loss, neighbour_accuracy
from tomoloc.train.patches import BACKGROUND, OFF_CENTER

T = 0.06


def axes(*numbers):
    return torch.eye(6)[list(numbers)]


def test_two_tight_classes_cost_next_to_nothing():
    label = torch.tensor([5, 5, 9, 9])
    loss = contrastive_loss(axes(0, 0, 1, 1), label, torch.arange(4), temperature=T)
    # each has one alike at similarity 1 and two others at 0
    assert loss.item() == pytest.approx(math.log(1 + 2 * math.exp(-1 / T)), abs=1e-6)


def test_alike_vectors_cost_as_much_as_guessing():
    label = torch.tensor([5, 5, 9, 9])
    loss = contrastive_loss(axes(0, 0, 0, 0), label, torch.arange(4), temperature=T)
    assert loss.item() == pytest.approx(math.log(3))


def test_points_of_one_particle_say_nothing_about_each_other():
    vectors = axes(0, 1, 0, 1, 2, 2)
    label = torch.tensor([5, 5, 5, 5, 9, 9])
    together = contrastive_loss(vectors, label, torch.tensor([0, 0, 1, 1, 2, 3]), temperature=T)
    apart = contrastive_loss(vectors, label, torch.arange(6), temperature=T)
    # of two alike, one is the same: -log(1/2) + half of 1 / T; apart, one of three
    assert together.item() == pytest.approx((math.log(1) + 0.5 / T + 0) / 2, rel=1e-3)
    assert apart.item() == pytest.approx((2 / 3 / T) / 2, rel=1e-3)


def test_every_class_counts_alike():
    vectors = torch.nn.functional.normalize(torch.randn(12, 6, generator=torch.manual_seed(1)))
    label = torch.tensor([1] * 8 + [2] * 2 + [3] * 2)
    ids = torch.arange(12)
    loss = contrastive_loss(vectors, label, ids, temperature=T)
    similarity = vectors @ vectors.T / T
    by_class = []
    for name in (1, 2, 3):
        each = []
        for i in torch.where(label == name)[0]:
            others = ids != i
            alike = others & (label == name)
            each.append((torch.logsumexp(similarity[i][others], 0) - similarity[i][alike]).mean())
        by_class.append(torch.stack(each).mean())
    assert loss.item() == pytest.approx(torch.stack(by_class).mean().item(), rel=1e-5)


def test_places_off_centre_are_pushed_away_but_not_together():
    vectors = axes(0, 0, 0, 1).requires_grad_()
    label = torch.tensor([5, 5, OFF_CENTER, OFF_CENTER])
    loss = contrastive_loss(vectors, label, torch.arange(4), temperature=T)
    assert loss.item() == pytest.approx(math.log(2), rel=1e-4)
    alone = contrastive_loss(vectors[2:], label[2:], torch.arange(2), temperature=T)
    assert alone.item() == 0


def test_without_pairs_the_loss_is_zero_and_can_be_differentiated():
    vectors = axes(0, 1, 2).requires_grad_()
    loss = contrastive_loss(vectors, torch.tensor([1, 2, 3]), torch.arange(3))
    loss.backward()
    assert loss.item() == 0
    assert not vectors.grad.any()


def test_descent_gathers_the_classes():
    vectors = torch.randn(30, 6, generator=torch.manual_seed(2)).requires_grad_()
    label, ids = torch.arange(30) % 3, torch.arange(30)
    everything = torch.ones(30, dtype=torch.bool)
    assert neighbour_accuracy(vectors, label, ids, everything) < 0.7
    optimizer = torch.optim.Adam([vectors], 0.05)
    for _ in range(60):
        optimizer.zero_grad()
        contrastive_loss(vectors, label, ids, temperature=T).backward()
        optimizer.step()
    assert neighbour_accuracy(vectors, label, ids, everything) == 1


def test_only_particles_with_their_like_are_counted():
    label = torch.tensor([1, 1, 2, BACKGROUND, BACKGROUND])
    particle = torch.tensor([True, True, True, False, False])
    right = neighbour_accuracy(axes(0, 0, 1, 2, 2), label, torch.arange(5), particle)
    assert right == 1
    wrong = neighbour_accuracy(axes(0, 1, 0, 1, 2), label, torch.arange(5), particle)
    assert wrong == 0
    assert math.isnan(neighbour_accuracy(axes(0, 1), label[1:3], torch.arange(2), particle[:2]))


def test_the_right_heat_map_costs_nothing():
    heat = torch.rand(2, 4, 5, 6, generator=torch.manual_seed(3)).clamp(0.01, 0.99)
    counts = torch.ones_like(heat, dtype=torch.bool)
    assert center_loss(torch.logit(heat), heat, counts).item() < 1e-9
    assert center_loss(torch.logit(1 - heat), heat, counts).item() > 0.1


def test_places_that_do_not_count_do_not_cost():
    heat = torch.zeros(1, 4, 5, 6)
    heat[0, 2, 2, 2] = 1
    counts = torch.ones_like(heat, dtype=torch.bool)
    logit = torch.full_like(heat, -20.0)
    logit[0, 2, 2, 2] = 20
    logit[0, 0, 0, 0] = 20
    assert center_loss(logit, heat, counts).item() == pytest.approx(20 / 17, rel=1e-4)
    counts[0, 0, 0, 0] = False
    assert center_loss(logit, heat, counts).item() < 1e-6
