"""Losses: embeddings of one class together and of others apart; a heat map of centres."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from tomoloc.train.patches import OFF_CENTER

__all__ = ["center_loss", "contrastive_loss", "entropy_loss", "neighbour_accuracy", "tversky_loss"]


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


def tversky_loss(
    probability: Tensor,
    truth: Tensor,
    counts: Tensor,
    *,
    false_positives: float = 0.3,
    false_negatives: float = 0.7,
    balance: bool = True,
) -> Tensor:
    """1 less the Tversky index of predicted and true classes [1]_, which with halves is Dice's.

    Parameters
    ----------
    probability : Tensor, shape (b, 1 + kinds, z, y, x)
        Of background and of each kind.
    truth : Tensor of int, shape (b, z, y, x)
        0 for background, or a kind's number from 1.
    counts : Tensor of bool, shape (b, z, y, x)
        Voxels that count.
    false_positives, false_negatives : float
        Weights of either fault. More of the latter finds more of what is rare.
    balance : bool
        Every class counts alike, however few voxels it has; otherwise, voxels of all kinds count
        alike and background does not.

    Returns
    -------
    Tensor, shape ()
        From 0 to 1.

    References
    ----------
    .. [1] Salehi, Erdogmus & Gholipour, Tversky loss function for image segmentation using 3D
       fully convolutional deep networks, MLMI (2017), doi:10.1007/978-3-319-67389-9_44.
    """
    number = probability.shape[1]
    known = counts[:, None]
    true = functional.one_hot(truth, number).movedim(-1, 1).to(probability.dtype) * known
    said = probability * known
    dims = (0, 2, 3, 4)
    both = (said * true).sum(dims)
    wrong, missed = said.sum(dims) - both, true.sum(dims) - both
    if not balance:
        both, wrong, missed = (
            value[1:].sum(dim=0, keepdim=True) for value in (both, wrong, missed)
        )
    # One voxel more: a class that is not there is predicted right where nothing is.
    index = (both + 1) / (both + false_positives * wrong + false_negatives * missed + 1)
    return 1 - index.mean()


def entropy_loss(logits: Tensor, truth: Tensor, counts: Tensor, *, balance: bool = True) -> Tensor:
    """Cross entropy of predicted and true classes.

    Parameters
    ----------
    logits : Tensor, shape (b, 1 + kinds, z, y, x)
    truth, counts, balance
        As in `tversky_loss`; unbalanced, all voxels count alike.

    Returns
    -------
    Tensor, shape ()
    """
    each = functional.cross_entropy(logits, truth, reduction="none")[counts]
    classes = truth[counts]
    if not len(each):
        return logits.sum() * 0
    if not balance:
        return each.mean()
    size = torch.bincount(classes, minlength=logits.shape[1]).clamp(min=1)
    there = torch.bincount(classes, minlength=logits.shape[1]) > 0
    return (each / size[classes]).sum() / there.sum()


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
