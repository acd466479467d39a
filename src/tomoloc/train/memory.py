"""What a training remembers of the particles of earlier batches."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional

__all__ = ["Memory"]


class Memory:
    """The newest particles as the network saw them then: one vector for each.

    A batch holds few classes; with what is remembered, each particle is told apart from those of
    many batches [1]_.

    Parameters
    ----------
    size : int
        At most so many particles; 0 remembers nothing.
    device : str

    References
    ----------
    .. [1] Wang et al., Cross-batch memory for embedding learning, CVPR (2020), arXiv:1912.06798.
    """

    def __init__(self, size: int, *, device: str = "cpu") -> None:
        self.limit, self.device = size, device
        self.vectors = torch.zeros((0, 0), device=device)
        self.label = torch.zeros(0, dtype=torch.int64, device=device)

    @property
    def size(self) -> int:
        """How many particles are remembered."""
        return len(self.label)

    @torch.no_grad()
    def keep(self, embedding: Tensor, label: Tensor, instance: Tensor, particles: int) -> None:
        """Add the mean vector of each particle of a batch, and forget the oldest.

        Parameters
        ----------
        embedding : Tensor, shape (m, channels)
        label, instance : Tensor of int, shape (m,)
        particles : int
            Points of particles have an instance below this.
        """
        if self.limit == 0:
            return
        own = instance < particles
        _, first, row = _unique(instance[own])
        vectors = functional.normalize(embedding[own].float(), dim=1)
        means = torch.zeros((len(first), vectors.shape[1]), device=self.device)
        means = functional.normalize(means.index_add(0, row, vectors), dim=1)
        if self.size:
            means = torch.cat([self.vectors, means])
        self.vectors = means[-self.limit :]
        self.label = torch.cat([self.label, label[own][first]])[-self.limit :]

    def state_dict(self) -> dict[str, Tensor]:
        """Return what is remembered."""
        return {"vectors": self.vectors.clone(), "label": self.label.clone()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take up what was remembered; of an empty mapping, nothing."""
        if state and self.limit:
            self.vectors, self.label = state["vectors"].clone(), state["label"].clone()


def _unique(numbers: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Distinct numbers, a place where each one stands, and which of them stands at each place."""
    values, row = numbers.unique(return_inverse=True)
    first = torch.zeros_like(values)
    first[row] = torch.arange(len(numbers), device=numbers.device)
    return values, first, row
