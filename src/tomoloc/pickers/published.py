"""PickET's workflows as its paper has them, for comparison.

Gaussian blur of two voxels, intensities from 0 to 1, features of 5 x 5 x 5 voxels, two clusters of
evenly drawn voxels, the smaller one is the particles', connected components or watershed of the
distance transform, centroids. Where the paper leaves something open: the Gaussian of the Gabor
filters has a deviation of one voxel, and two maxima of the distance are half a diameter apart.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from tomoloc.features.banks import make_bank
from tomoloc.features.blobs import read_block, spread_blocks
from tomoloc.features.denoise import Method, denoise
from tomoloc.features.foreground import fit_foreground, segment
from tomoloc.features.instances import find_regions, label_mask
from tomoloc.features.scales import ScaleSpace
from tomoloc.pickers.workflows import Instances, Workflow
from tomoloc.types import Tomogram, Volume

__all__ = ["run_published"]

_BLUR = 2.0
_BLOCKS, _SIDE, _ROWS = 36, 32, 30_000
_DISTANCE = 5
"""Voxels between two maxima of the distance transform, where no diameter is given."""


def run_published(
    tomogram: Tomogram,
    workflow: Workflow,
    *,
    denoising: Method,
    seed: int,
    invert: bool,
    diameter: float | None,
) -> Instances:
    """Find particles as published.

    Parameters
    ----------
    tomogram : Tomogram
    workflow : Workflow
        With features gabor, fft or intensity.
    denoising : str
        The paper's is diffusion.
    seed : int
        Draws the voxels that clusters are learned from.
    invert : bool
        Take the larger cluster.
    diameter : float, optional
        In angstrom; half of it parts two maxima of the distance transform.

    Returns
    -------
    Instances
        Of score 1 each: the paper has none.
    """
    source = denoise(tomogram, denoising)
    data = ndimage.gaussian_filter(
        np.asarray(source.data, dtype=np.float32), _BLUR, mode="nearest", truncate=4.0
    )
    low, high = float(data.min()), float(data.max())
    data -= np.float32(low)
    data /= np.float32(max(high - low, 1e-12))
    rng = np.random.default_rng([seed, 3])
    places = spread_blocks(tomogram.shape, side=_SIDE, number=_BLOCKS, rng=rng)
    bank = make_bank(
        workflow.features,
        space=ScaleSpace(voxel_spacing=tomogram.voxel_spacing),
        sample=read_block(data, places[len(places) // 2], halo=0),
        paper=True,
    )
    each = -(-_ROWS // len(places))
    rows = []
    for place in places:
        block = read_block(data, place, halo=bank.halo)
        n = int(np.prod([s.stop - s.start for s in place]))
        rows.append(bank(block, rng.permutation(n)[:each]))
    features = np.concatenate(rows)
    model = fit_foreground(
        features,
        features[:0],
        contrast=(np.zeros(len(features)), np.zeros(0)),
        clustering=workflow.clustering,
        seed=seed,
        paper=True,
        invert=invert,
    )
    (mask,) = segment(data, bank, [model], description=workflow.features)
    distance = _DISTANCE if diameter is None else diameter / 2 / tomogram.voxel_spacing
    labels = label_mask(mask)
    if workflow.instances == "watershed":
        labels = _part(mask, max(1, round(distance)))
    ones = Volume(
        data=np.broadcast_to(np.float32(1), mask.shape),
        voxel_spacing=tomogram.voxel_spacing,
        origin=tomogram.origin,
        name=tomogram.name,
    )
    regions = find_regions(labels, field=ones)
    kept = regions.volume > 0
    return Instances(
        labels=regions.labels,
        position=regions.position[kept],
        score=np.ones(int(kept.sum())),
        diameter=np.cbrt(6 * regions.volume[kept] / np.pi),
    )


def _part(mask: NDArray[np.bool_], distance: int) -> NDArray[np.int32]:
    """Watershed of the distance transform, from its maxima."""
    from skimage.feature import peak_local_max
    from skimage.segmentation import watershed

    depth = ndimage.distance_transform_edt(mask).astype(np.float32)
    peaks = peak_local_max(depth, min_distance=distance, labels=mask.astype(np.int32))
    markers = np.zeros(mask.shape, dtype=np.int32)
    markers[tuple(peaks.T)] = np.arange(1, len(peaks) + 1)
    return np.asarray(watershed(-depth, markers, mask=mask), dtype=np.int32)
