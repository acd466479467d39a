"""Augmentation: what else a patch could look like, had it been taken or reconstructed otherwise.

What is random is drawn first (`draw_augmentations`), then applied on the network's device. Turns
and mirror images, which change the truth, too, are made by `tomoloc.train.patches`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

__all__ = ["Augmentation", "Augmenting", "augment", "draw_augmentations"]

Bounds = tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class Augmenting:
    """How much patches are changed; a pair of numbers is an even range to draw from.

    Parameters
    ----------
    gain : float
        Standard deviation of the logarithm of the contrast.
    offset : float
        Standard deviation of a constant that is added.
    white_noise, coloured_noise : float
        Greatest standard deviation of noise: white, and with the patch's own spectrum, as less
        dose gives.
    noisy : float
        Fraction of patches to which each kind of noise is added.
    tilt : tuple of float
        Range of the tilt angle beyond which the missing wedge is widened, in degrees.
    tilted : float
        Fraction of patches whose wedge is widened.
    coarseness : tuple of float
        Voxel spacing relative to the model's, from which patches seem to have been resampled:
        nothing is left beyond its Nyquist frequency.
    coarse : float
        Fraction of patches that seem to be resampled.
    tone : float
        Standard deviation of the logarithm of the smooth gain of each octave of spatial
        frequency: blur, sharpening, other filters.
    """

    gain: float = 0.15
    offset: float = 0.1
    white_noise: float = 0.4
    coloured_noise: float = 0.5
    noisy: float = 0.35
    tilt: Bounds = (38.0, 58.0)
    tilted: float = 0.25
    coarseness: Bounds = (1.05, 1.35)
    coarse: float = 0.25
    tone: float = 0.15


class Augmentation(NamedTuple):
    """What is done to one patch."""

    gain: float
    offset: float
    white_noise: float
    coloured_noise: float
    tilt: float  # 90: the wedge stays
    coarseness: float  # 1: nothing is cut
    tone: tuple[float, ...]  # logarithm of the gain at Nyquist / 1, 2, 4, 8 and below
    seed: int  # of the noise


_OCTAVES = 5
_SOFT = math.radians(1.5)  # half width of the edges of masks: 1.5 degrees, or as much of Nyquist


def draw_augmentations(
    number: int, *, augmenting: Augmenting, rng: np.random.Generator
) -> list[Augmentation]:
    """Draw what is done to each patch of a batch."""
    drawn = []
    for _ in range(number):
        noises = [
            rng.uniform(0, most) if rng.random() < augmenting.noisy else 0.0
            for most in (augmenting.white_noise, augmenting.coloured_noise)
        ]
        tilt, coarseness = rng.uniform(*augmenting.tilt), rng.uniform(*augmenting.coarseness)
        drawn.append(
            Augmentation(
                gain=float(np.exp(rng.normal(0, augmenting.gain))),
                offset=rng.normal(0, augmenting.offset),
                white_noise=noises[0],
                coloured_noise=noises[1],
                tilt=tilt if rng.random() < augmenting.tilted else 90.0,
                coarseness=coarseness if rng.random() < augmenting.coarse else 1.0,
                tone=tuple(rng.normal(0, augmenting.tone, _OCTAVES).tolist()),
                seed=int(rng.integers(2**62)),
            )
        )
    return drawn


def augment(patches: Tensor, augmentations: Sequence[Augmentation]) -> Tensor:
    """Change patches.

    Parameters
    ----------
    patches : Tensor, shape (b, z, y, x)
        Standardised; y is the tilt axis.
    augmentations : sequence of Augmentation, length b

    Returns
    -------
    Tensor, shape (b, z, y, x)
        The same patches and augmentations give the same values.
    """
    # Many short operations: threads would wait for each other longer than they work.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        changed = [_augment(patch, one) for patch, one in zip(patches, augmentations, strict=True)]
    finally:
        torch.set_num_threads(threads)
    return torch.stack(changed)


def _augment(patch: Tensor, one: Augmentation) -> Tensor:
    generator = torch.Generator(patch.device).manual_seed(one.seed)
    spectrum = torch.fft.rfftn(patch)
    mean = spectrum[0, 0, 0].clone()
    if one.coloured_noise:
        spectrum = spectrum + one.coloured_noise * _noise_like(patch, spectrum, generator)
    if one.white_noise:
        white = torch.randn(patch.shape, generator=generator, device=patch.device)
        spectrum = spectrum + one.white_noise * torch.fft.rfftn(white)
    spectrum = spectrum * _transfer(patch, one)
    spectrum[0, 0, 0] = mean
    changed = torch.fft.irfftn(spectrum, s=patch.shape)
    # Noisier tomograms have as much contrast in all, once they are standardised.
    contrast = one.gain * patch.std() / changed.std().clamp(min=1e-6)
    return contrast * changed + one.offset


def _noise_like(patch: Tensor, spectrum: Tensor, generator: torch.Generator) -> Tensor:
    """Transform of Gaussian noise that has the patch's own power at each frequency."""
    white = torch.randn(patch.shape, generator=generator, device=patch.device)
    noise = torch.fft.rfftn(white) * (spectrum.abs() / math.sqrt(patch.numel()))
    noise[0, 0, 0] = 0
    return noise


def _transfer(patch: Tensor, one: Augmentation) -> Tensor:
    """Gain at each frequency: tone, resampling and missing wedge."""
    device = patch.device
    z, y, x = (torch.fft.fftfreq(n, d=0.5, device=device) for n in patch.shape)  # Nyquist is 1
    x = x[: patch.shape[2] // 2 + 1].abs()
    z, y = z[:, None, None].abs(), y[None, :, None].abs()
    frequency = torch.sqrt(z**2 + y**2 + x**2)
    # Gains are given at Nyquist and octaves below it, and change evenly in between.
    octave = -torch.log2(frequency.clamp(2.0 ** (1 - _OCTAVES), 0.999))
    below = octave.long()
    tone = torch.tensor([*one.tone, one.tone[-1]], dtype=torch.float32, device=device)
    gain = torch.exp(torch.lerp(tone[below], tone[below + 1], octave - below))
    if one.coarseness > 1:
        for axis in (z, y, x):
            gain = gain * _edge(1 / one.coarseness - axis)
    if one.tilt < 90:
        # Planes of the tilt series lie at angles up to the tilt from the x axis in (x, z).
        gain = gain * _edge(math.radians(one.tilt) - torch.atan2(z, x.clamp(min=1e-6)))
    return gain


def _edge(inside: Tensor) -> Tensor:
    """Fall from 1 to 0 smoothly where `inside` turns negative."""
    return 0.5 - 0.5 * torch.cos(torch.pi * ((inside / _SOFT + 1) / 2).clamp(0, 1))
