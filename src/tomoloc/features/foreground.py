"""Voxels in two clusters, particle and rest, learned from a few of them and told for all.

Particles are rare, so half of the voxels that clusters are learned from come from the places of
highest contrast. Which cluster is the particle is decided by contrast, not by number.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from tomoloc.arrays import allocate, release
from tomoloc.features.banks import Bank, PatchBank
from tomoloc.progress import progress
from tomoloc.tiling import Tiling, read_mirrored

__all__ = ["CLUSTERINGS", "Clustering", "Foreground", "fit_foreground", "segment"]

Array = NDArray[np.float32]
Clustering = Literal["kmeans", "gmm"]
CLUSTERINGS = ("kmeans", "gmm")

_TILE_VOXELS = 1_000_000
_COMPONENTS = 16
"""Principal components that clusters are looked for in; the rest is noise."""
_ROUNDING = 1e-6


@dataclass(frozen=True, eq=False, kw_only=True)
class Foreground:
    """Tells particle from rest by features.

    Parameters
    ----------
    center, scale : ndarray of float32, shape (features,)
    axes : ndarray of float32, shape (features, k)
        Principal components after centring and scaling.
    model : KMeans or GaussianMixture
        Of two clusters, in the space of the components.
    cluster : int
        Number of the particles' cluster.
    share : float
        Of voxels in that cluster, among those drawn evenly.
    """

    center: Array
    scale: Array
    axes: Array
    model: Any
    cluster: int
    share: float

    def __call__(self, features: NDArray[Any]) -> NDArray[np.bool_]:
        """Tell which rows of features, shape (n, features), are of particles."""
        return np.asarray(self.model.predict(self._project(features)) == self.cluster)

    @property
    def offset(self) -> Array:
        """Where the centre lies in the space of the components."""
        return np.asarray((self.center / self.scale) @ self.axes)

    def _project(self, features: NDArray[Any]) -> Array:
        rows = np.asarray(features, dtype=np.float32) @ (self.axes / self.scale[:, None])
        rows -= self.offset
        return np.asarray(rows)


def fit_foreground(
    even: NDArray[Any],
    rich: NDArray[Any],
    *,
    contrast: tuple[NDArray[Any], NDArray[Any]],
    clustering: Clustering,
    seed: int,
    paper: bool = False,
    invert: bool = False,
) -> Foreground:
    """Learn two clusters and decide which is the particles'.

    Parameters
    ----------
    even, rich : ndarray, shapes (n, features) and (m, features)
        Voxels drawn evenly over the volume, and from places of high contrast.
    contrast : tuple of ndarray, shapes (n,) and (m,)
        Of the same voxels; particles have more of it.
    clustering : {"kmeans", "gmm"}
    seed : int
    paper : bool
        As published: features as they are, evenly drawn voxels only, and the smaller cluster is
        the particles'.
    invert : bool
        Take the other cluster.

    Returns
    -------
    Foreground

    Raises
    ------
    ValueError
        If the clustering is unknown.
    """
    from sklearn.cluster import KMeans
    from sklearn.mixture import GaussianMixture

    if clustering not in CLUSTERINGS:
        raise ValueError(f"clustering must be {' or '.join(CLUSTERINGS)}; got {clustering!r}")
    rows = np.asarray(even if paper else np.concatenate([even, rich]), dtype=np.float32)
    values = contrast[0] if paper else np.concatenate(contrast)
    n = rows.shape[1]
    center, scale, axes = np.zeros(n), np.ones(n), np.eye(n)
    if not paper:
        center = rows.mean(axis=0)
        scale = np.full(n, max(float(rows.std()), 1e-12))
        _, singular, transposed = np.linalg.svd((rows - center) / scale, full_matrices=False)
        k = min(_COMPONENTS, int((singular > _ROUNDING * singular[0]).sum()))
        axes = transposed[:k].T
    made = Foreground(
        center=center.astype(np.float32),
        scale=scale.astype(np.float32),
        axes=axes.astype(np.float32),
        model=None,
        cluster=0,
        share=0.0,
    )
    projected = made._project(rows)
    if clustering == "kmeans":
        model = KMeans(2, n_init=3, random_state=seed)
    else:
        # variances of blurred neighbourhoods span many orders
        projected = projected.astype(np.float64)
        model = GaussianMixture(2, random_state=seed, reg_covar=_ROUNDING, max_iter=200)
    with _calm():
        label = model.fit(projected).predict(projected)
        shares = [float(np.mean(model.predict(made._project(even)) == k)) for k in (0, 1)]
    if paper:
        cluster = int(np.argmin(shares))
    else:
        means = [values[label == k].mean() if (label == k).any() else -np.inf for k in (0, 1)]
        cluster = int(np.argmax(means))
    cluster = 1 - cluster if invert else cluster
    return Foreground(
        center=made.center,
        scale=made.scale,
        axes=made.axes,
        model=model,
        cluster=cluster,
        share=shares[cluster],
    )


@contextmanager
def _calm() -> Iterator[None]:
    """No words about identical voxels, or about a mixture that has not quite converged."""
    from sklearn.exceptions import ConvergenceWarning

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        yield


def segment(
    data: NDArray[np.number],
    bank: Bank,
    models: Sequence[Foreground],
    *,
    description: str = "segmenting",
) -> list[NDArray[np.bool_]]:
    """Tell particle from rest in a whole volume, tile by tile; several models share the features.

    Parameters
    ----------
    data : ndarray, shape (z, y, x)
        May be memory-mapped.
    bank : Bank
    models : sequence of Foreground
        Fitted to features of this bank.
    description : str
        In front of the progress bar.

    Returns
    -------
    list of ndarray of bool, shape (z, y, x)
        One for each model.
    """
    bank, models = _fold(bank, models)
    z, y, x = data.shape
    tiling = Tiling(shape=(z, y, x), halo=bank.halo, mirror=True, max_voxels=_TILE_VOXELS)
    masks = [allocate(data.shape, np.bool_) for _ in models]
    for tile in progress(tiling.tiles(), description):
        features = bank(read_mirrored(data, tile.start, tile.stop))
        shape = tuple(n - 2 * bank.halo for n in tile.shape)
        for mask, model in zip(masks, models, strict=True):
            mask[tile.target] = model(features).reshape(shape)[tile.inner]
            release(mask)
        release(data)
    return masks


def _fold(bank: Bank, models: Sequence[Foreground]) -> tuple[Bank, Sequence[Foreground]]:
    """Let linear filters give the components at once: these are fewer."""
    if not isinstance(bank, PatchBank):
        return bank, models
    first = models[0]
    if any(not np.array_equal(model.axes, first.axes) for model in models):
        return bank, models
    k = first.axes.shape[1]
    filters = bank.filters @ (first.axes / first.scale[:, None])
    one, unit = np.ones(k, dtype=np.float32), np.eye(k, dtype=np.float32)
    folded = [replace(model, center=model.offset, scale=one, axes=unit) for model in models]
    return PatchBank(filters=filters), folded
