from __future__ import annotations

import math

import torch
from torch.nn.functional import normalize

from tomoloc.train.losses import contrastive_loss
from tomoloc.train.memory import Memory


def test_keeps_one_mean_for_each_particle_and_the_newest() -> None:
    memory = Memory(3)
    vectors = torch.tensor([[3.0, 0], [0, 2], [0, 5], [1, 0], [7, 7]])
    label = torch.tensor([4, 9, 9, 4, 0])
    memory.keep(vectors, label, torch.tensor([0, 1, 1, 0, 2]), 2)
    assert memory.label.tolist() == [4, 9]
    torch.testing.assert_close(memory.vectors, torch.eye(2))
    mixed = torch.tensor([[1.0, 0], [0, 1]])
    memory.keep(mixed, torch.tensor([5, 5]), torch.tensor([0, 0]), 1)
    memory.keep(mixed, torch.tensor([6, 7]), torch.tensor([1, 0]), 2)
    assert memory.label.tolist() == [5, 7, 6]
    torch.testing.assert_close(memory.vectors[0], torch.full((2,), 1 / math.sqrt(2)))
    other = Memory(3)
    other.load_state_dict(memory.state_dict())
    assert other.label.tolist() == [5, 7, 6]


def test_none_remembers_nothing() -> None:
    memory = Memory(0)
    memory.keep(torch.ones(2, 4), torch.tensor([1, 2]), torch.tensor([0, 1]), 2)
    assert memory.size == 0


def test_remembered_particles_count_as_if_they_were_in_the_batch() -> None:
    torch.manual_seed(1)
    vectors = normalize(torch.randn(7, 5), dim=1)
    label = torch.tensor([1, 1, 2, 2, 1, 2, 3])
    instance = torch.arange(7)
    whole = contrastive_loss(vectors, label, instance)
    batch = contrastive_loss(vectors[:4], label[:4], instance[:4], memory=(vectors[4:], label[4:]))
    # All that the batch's own particles are compared with is the same.
    similarity = vectors @ vectors.T / 0.06
    similarity.fill_diagonal_(-torch.inf)
    each = []
    for i in range(4):
        alike = [j for j in range(7) if j != i and label[j] == label[i]]
        each.append(similarity[i].logsumexp(0) - similarity[i, alike].mean())
    torch.testing.assert_close(batch, torch.stack(each).mean())
    assert batch != whole


def test_a_lone_particle_learns_from_memory() -> None:
    vectors = torch.eye(3, requires_grad=True)
    label, instance = torch.tensor([1, 2, 0]), torch.arange(3)
    assert float(contrastive_loss(vectors, label, instance).detach()) == 0
    memory = (torch.eye(3)[[1]], torch.tensor([1]))
    loss = contrastive_loss(vectors, label, instance, memory=memory)
    assert float(loss.detach()) > 1
