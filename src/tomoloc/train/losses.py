"""Losses: embeddings of one class together and of others apart; a heat map of centres."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from tomoloc.train.patches import OFF_CENTER

__all__ = ["center_loss", "contrastive_loss", "neighbour_accuracy"]


def contrastive_loss(
    embedding: Tensor, label: Tensor, instance: Tensor, *, temperature: float = 0.06
) -> Tensor:
    """Pull embeddings of one label together and push all others away [1]_.

    Every class counts alike, however many points it has. Points of one particle say nothing about
    each other. There is no weight for any class, so that classes may be endless.

    Parameters
    ----------
    embedding : Tensor, shape (m, channels)
        Unit vectors.
    label : Tensor of int, shape (m,)
        `OFF_CENTER` is pushed away from all others, but not drawn to its like.
    instance : Tensor of int, shape (m,)
        Particle that each point belongs to.
    temperature : float

    Returns
    -------
    Tensor, shape ()
        0 where no label has two instances.

    References
    ----------
    .. [1] Khosla et al., Supervised contrastive learning, NeurIPS (2020), arXiv:2004.11362.
    """
    embedding = functional.normalize(embedding.float(), dim=1)
    similarity = embedding @ embedding.T
    other = instance[:, None] != instance[None]
    alike = (label[:, None] == label[None]) & other
    n_alike = alike.sum(dim=1)
    anchor = (n_alike > 0) & (label != OFF_CENTER)
    if not bool(anchor.any()):
        return embedding.sum() * 0
    logits = (similarity / temperature).masked_fill(~other, -torch.inf)
    apart = torch.logsumexp(logits, dim=1)
    together = torch.where(alike, similarity / temperature, 0).sum(dim=1) / n_alike.clamp(min=1)
    each = (apart - together)[anchor]
    _, group, size = label[anchor].unique(return_inverse=True, return_counts=True)
    weight = 1 / size[group].to(each.dtype)
    return (each * weight).sum() / len(size)


@torch.no_grad()
def neighbour_accuracy(
    embedding: Tensor, label: Tensor, instance: Tensor, particle: Tensor
) -> float:
    """Tell how often a particle's nearest neighbour, of all other things, has the same label.

    Parameters
    ----------
    embedding, label, instance : Tensor
        As in `contrastive_loss`.
    particle : Tensor of bool, shape (m,)
        Which points ask; of those, only such as have their like.

    Returns
    -------
    float
        NaN where no label has two instances.
    """
    embedding = functional.normalize(embedding.float(), dim=1)
    other = instance[:, None] != instance[None]
    asks = ((label[:, None] == label[None]) & other).any(dim=1) & particle
    similarity = (embedding @ embedding.T).masked_fill(~other, -torch.inf)
    right = (label[similarity.argmax(dim=1)] == label)[asks]
    return float(right.float().mean()) if len(right) else math.nan


def center_loss(logit: Tensor, heat: Tensor, counts: Tensor, *, power: float = 2.0) -> Tensor:
    """Cross entropy with a heat map, weighted by how wrong each point still is [1]_.

    Parameters
    ----------
    logit, heat : Tensor, one shape
        What the network says, and what is true, from 0 to 1.
    counts : Tensor of bool, the same shape
        Points that count.
    power : float
        Of the distance between the two in the weight.

    Returns
    -------
    Tensor, shape ()
        Summed over points and divided by the sum of the heat: as much for one particle, however
        large the patch.

    References
    ----------
    .. [1] Li et al., Generalized focal loss, NeurIPS (2020), arXiv:2006.04388.
    """
    logit, heat = logit.float()[counts], heat[counts]
    weight = (heat - torch.sigmoid(logit)).abs() ** power
    entropy = functional.binary_cross_entropy_with_logits(logit, heat, reduction="none")
    return (weight * entropy).sum() / (heat.sum() + 16)
