"""What the encoder of `pick embedding` is taught: to tell particles apart, and to find centres."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn

from tomoloc.train.losses import center_loss, contrastive_loss, neighbour_accuracy
from tomoloc.train.patches import Batch, Patching, Prepared, draw_batch, prepare
from tomoloc.train.validate import Validation, validate
from tomoloc.types import Sample

__all__ = ["SimilarityTask"]


@dataclass(frozen=True, kw_only=True)
class SimilarityTask:
    """Like vectors for particles of one label, unlike ones for all else; a map of centres.

    Parameters
    ----------
    voxel_spacing : float
        Of the model: samples are brought to it.
    patching : Patching
    temperature : float
        Of the contrastive loss.
    center_weight : float
        Of the centre map's loss.
    seed : int
        Chooses the examples of validation.
    """

    voxel_spacing: float = 10.0
    patching: Patching = field(default_factory=Patching)
    temperature: float = 0.06
    center_weight: float = 1.0
    seed: int = 0

    measures = ("contrastive", "center", "accuracy")
    scores = Validation._fields

    def prepare(self, sample: Sample) -> Prepared:
        """Bring a sample to what the network sees."""
        return prepare(sample, voxel_spacing=self.voxel_spacing, least=self.patching.shape)

    def draw(self, ring: Sequence[Prepared], rng: np.random.Generator) -> Batch:
        """Cut a batch."""
        return draw_batch(ring, patching=self.patching, rng=rng)

    def run(self, model: nn.Module, data: Tensor) -> tuple[Tensor, Tensor]:
        """Vectors of any length, and logits of centres."""
        # Only the vectors that are compared need length 1, which the loss sees to.
        output: tuple[Tensor, Tensor] = getattr(model, "encode", model)(data)
        return output

    def losses(
        self, output: tuple[Tensor, Tensor], batch: Batch
    ) -> tuple[Tensor, dict[str, float]]:
        """Compare what the network says of a batch with what is true."""
        embedding, logit = output
        device = embedding.device
        patch, z, y, x = torch.from_numpy(batch.point).to(device).unbind(1)
        chosen = embedding.permute(0, 2, 3, 4, 1)[patch, z, y, x].float()
        label = torch.from_numpy(batch.label).to(device)
        instance = torch.from_numpy(batch.instance).to(device)
        contrastive = self.compare(chosen, label, instance)
        center = center_loss(
            logit[:, 0],
            torch.from_numpy(batch.heat).to(device),
            torch.from_numpy(batch.counts).to(device),
        )
        particle = instance < batch.particles
        return contrastive + self.center_weight * center, {
            "contrastive": contrastive.item(),
            "center": center.item(),
            "accuracy": neighbour_accuracy(chosen, label, instance, particle),
        }

    def compare(self, embedding: Tensor, label: Tensor, instance: Tensor) -> Tensor:
        """Loss of some vectors: see `tomoloc.train.losses.contrastive_loss`."""
        return contrastive_loss(embedding, label, instance, temperature=self.temperature)

    def validate(self, model: nn.Module, samples: Sequence[Prepared], *, device: str) -> Validation:
        """Look for particles in held-out samples."""
        return validate(
            model, samples, voxel_spacing=self.voxel_spacing, device=device, seed=self.seed
        )
