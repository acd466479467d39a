"""The best orientation of a reference at given places, without turning it at each of them.

Turned copies of a reference, filtered as a tomogram is, span few dimensions. In a basis of them a
window of the tomogram is a few hundred numbers, and so is an orientation: the correlations of all
windows with all orientations are a product of two matrices.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numba import njit, prange
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from tomoloc.pickers.correlation import OVERSAMPLING, RotatedReference, turn_density
from tomoloc.progress import progress
from tomoloc.types import FloatArray

if TYPE_CHECKING:
    import torch

__all__ = ["Bank", "Basis", "BestPoses", "best_poses", "make_basis", "refine_poses"]

Array = NDArray[np.float32]

_BATCH = 64
_ORIENTATIONS = 1024
_WINDOWS = 4096
_FEWEST_PARTS = 8
_BANK_BYTES = 800_000_000
_SUPPORT = 0.9995
"""Of a reference's power that is taken into account when it is turned."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Basis:
    """An orthonormal basis of the turned copies of a reference.

    Turned, filtered copies f have mean 0 and deviation 1 under the mask m. The basis is one of the
    vectors sqrt(m) f, whose dot products are then correlation coefficients.

    Parameters
    ----------
    reference : RotatedReference
    components : ndarray, shape (k, v)
        At the voxels where the mask is not zero; the most important first.
    variance : ndarray, shape (k,)
        Mean square coefficient of turned copies: what a component holds of their energy.
    """

    reference: RotatedReference
    components: Array
    variance: FloatArray

    def __len__(self) -> int:
        return len(self.components)

    @property
    def energy(self) -> float:
        """Part of the energy of turned copies that the basis holds."""
        return float(self.variance.sum())

    @property
    def inside(self) -> NDArray[np.intp]:
        """Voxels zyx, shape (v, 3), of the mask, counted from its middle."""
        mask = self.reference.mask
        return np.argwhere(mask > 0) - mask.shape[0] // 2

    @property
    def kernels(self) -> Array:
        """Shape (k, v): the sum of products with a window gives its coefficients."""
        mask = self.reference.mask
        kernels: Array = self.components * np.sqrt(mask[mask > 0])
        return kernels

    def first(self, n: int) -> Basis:
        """Keep the `n` most important components."""
        return Basis(
            reference=self.reference, components=self.components[:n], variance=self.variance[:n]
        )

    def windows(self, data: Array, centers: NDArray[np.intp]) -> Array:
        """Coefficients of windows of a tomogram, over the windows' standard deviation.

        Parameters
        ----------
        data : ndarray, shape (z, y, x)
            Filtered like the reference, of mean zero; outside it is zero.
        centers : ndarray of int, shape (n, 3)
            Voxels zyx in the middle of the windows.

        Returns
        -------
        ndarray, shape (n, k)
        """
        mask = self.reference.mask
        weight = mask[mask > 0]
        kernels, inside = self.kernels.T.copy(), self.inside
        out = np.empty((len(centers), len(self)), np.float32)
        deviation = np.empty(len(centers), np.float32)
        for start in range(0, len(centers), _WINDOWS):
            part = slice(start, start + _WINDOWS)
            values = _gather(data, centers[part], inside)
            out[part] = values @ kernels
            mean = values @ weight
            deviation[part] = np.sqrt(np.maximum((values**2) @ weight - mean**2, 0))
        floor = max(0.1 * float(np.median(deviation)), 1e-20) if len(centers) else 1.0
        out /= np.maximum(deviation, floor)[:, None]
        return out

    def exact(self, data: Array, centers: NDArray[np.intp], rotations: Rotation) -> Array:
        """Correlate windows with some orientations each, without leaving out any component.

        Parameters
        ----------
        data : ndarray, shape (z, y, x)
        centers : ndarray of int, shape (n, 3)
        rotations : Rotation of length n * m
            Those of the first window come first.

        Returns
        -------
        ndarray, shape (n, m)
        """
        import torch

        mask, size = self.reference.mask, self.reference.mask.shape[0]
        weights = torch.as_tensor(self.reference.weights)
        near, probes = self._probes
        flat = np.ravel_multi_index(tuple((near + size // 2).T), mask.shape)
        box = np.argwhere(mask >= 0) - size // 2
        n = len(rotations) // max(len(centers), 1)
        out = np.zeros((len(centers), n), np.float32)
        for start in range(0, len(centers), _BATCH):
            part = slice(start, start + _BATCH)
            values = _gather(data, centers[part], box).reshape(-1, *mask.shape)
            mean = (values * mask).sum(axis=(1, 2, 3), keepdims=True)
            variance = ((values - mean) ** 2 * mask).sum(axis=(1, 2, 3))
            spectrum = torch.fft.rfftn(torch.from_numpy((values - mean) * mask), dim=(1, 2, 3))
            seen = torch.fft.irfftn(spectrum * weights, s=mask.shape, dim=(1, 2, 3)).numpy()
            seen = seen.reshape(len(values), -1)[:, flat]
            turned = turn_density(
                self.reference.density,
                rotations[start * n : (start + _BATCH) * n].as_matrix().astype(np.float32),
                near,
            )
            length = np.sqrt(((turned @ probes) ** 2).sum(axis=1) / self.energy).reshape(-1, n)
            product = np.einsum("nv,nmv->nm", seen, turned.reshape(len(values), n, -1))
            scale = np.sqrt(np.maximum(variance, 1e-30))[:, None] * np.maximum(length, 1e-30)
            out[part] = product / scale
        return out

    def copies(self, rotations: Rotation) -> Array:
        """Coefficients of turned copies, shape (len(rotations), k), of unit length.

        What the basis does not hold of a copy is taken to be the same part of all copies.
        """
        return self._turned(rotations, *self._probes)

    @cached_property
    def _probes(self) -> tuple[NDArray[np.intp], Array]:
        """Places where the turned reference is read, and what their values add to coefficients.

        The filter is symmetric, so it can be applied to the components instead.
        """
        import torch

        reference = self.reference
        mask, size = reference.mask, reference.mask.shape[0]
        box = torch.zeros((len(self), *mask.shape))
        box[:, torch.as_tensor(mask > 0)] = torch.as_tensor(self.kernels)
        weights = torch.as_tensor(reference.weights)
        near = _support(reference)
        flat = np.ravel_multi_index(tuple((near + size // 2).T), mask.shape)
        filtered = [
            torch.fft.irfftn(
                torch.fft.rfftn(part, dim=(1, 2, 3)) * weights, s=mask.shape, dim=(1, 2, 3)
            ).reshape(len(part), -1)[:, flat]
            for part in box.split(_BATCH)
        ]
        return near, torch.cat(filtered).numpy().T.copy()

    def _turned(self, rotations: Rotation, near: NDArray[np.intp], probes: Array) -> Array:
        matrices = rotations.as_matrix().astype(np.float32)
        coefficients = turn_density(self.reference.density, matrices, near) @ probes
        length = np.sqrt((coefficients**2).sum(axis=1, keepdims=True) / self.energy)
        return np.asarray(coefficients / np.maximum(length, 1e-30), dtype=np.float32)


def make_basis(
    reference: RotatedReference, rotations: Rotation, *, n_components: int, device: str = "cpu"
) -> Basis:
    """Find the components that hold most of the energy of turned copies.

    Parameters
    ----------
    reference : RotatedReference
    rotations : Rotation of length r
        Some thousand, spread over the orientations to be tried.
    n_components : int
        At most; there are no more than rotations.
    device : str
        "cpu" or "cuda".

    Returns
    -------
    Basis
    """
    import torch

    inside = torch.as_tensor(reference.mask > 0, device=device)
    root = torch.as_tensor(reference.mask, device=device)[inside].sqrt()
    copies = torch.cat(
        [
            reference.profiles(rotations[i : i + _BATCH], device)[:, inside] * root
            for i in range(0, len(rotations), _BATCH)
        ]
    )
    n = min(n_components, *copies.shape)
    wide = len(copies) <= copies.shape[1]
    variance, vectors = _leading(copies @ copies.T if wide else copies.T @ copies, n)
    components = vectors.T
    if wide:
        components = (vectors / variance.clamp_min(1e-12).sqrt()).T @ copies
    return Basis(
        reference=reference,
        components=components.cpu().numpy().astype(np.float32),
        variance=variance.cpu().numpy().astype(float) / len(copies),
    )


def _leading(matrix: torch.Tensor, n: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Largest eigenvalues and their vectors, by subspace iteration [1]_: much faster than all.

    .. [1] Halko et al., SIAM Review 53, 217 (2011), doi:10.1137/090771806.
    """
    import torch

    size = len(matrix)
    start = np.random.default_rng(0).standard_normal((size, min(size, n + n // 8 + 8)))
    space = torch.as_tensor(start.astype(np.float32), device=matrix.device)
    for _ in range(4):
        space = torch.linalg.qr(matrix @ space)[0]
    values, vectors = torch.linalg.eigh((space.T @ matrix @ space).double())
    chosen = vectors.flip(1)[:, :n].float()
    return values.flip(0)[:n].clamp_min(0).float(), space @ chosen


@dataclass(frozen=True, eq=False)
class Bank:
    """Coefficients of a reference in many orientations, made in parts and kept where they fit.

    Parameters
    ----------
    basis : Basis
    rotations : Rotation of length r
    """

    basis: Basis
    rotations: Rotation

    def __len__(self) -> int:
        """Number of parts."""
        return min(
            max(_FEWEST_PARTS, -(-len(self.rotations) // _ORIENTATIONS)), len(self.rotations)
        )

    def part(self, number: int) -> Array:
        """Every n-th orientation of n parts, shape (about r / n, k)."""
        if number in self._kept:
            return self._kept[number]
        copies = self.basis.copies(self.rotations[number :: len(self)])
        if len(self.rotations) * len(self.basis) * copies.itemsize <= _BANK_BYTES:
            self._kept[number] = copies
        return copies

    @cached_property
    def _kept(self) -> dict[int, Array]:
        return {}


@dataclass(frozen=True, eq=False)
class BestPoses:
    """The best orientations at places: `score`, shape (n, m), best first, and their `index`."""

    score: Array
    index: NDArray[np.intp]


def best_poses(bank: Bank, windows: Array, *, keep: int = 1) -> BestPoses:
    """Correlate windows with a reference in many orientations.

    Parameters
    ----------
    bank : Bank
    windows : ndarray, shape (n, k)
        From `Basis.windows`.
    keep : int
        Orientations to return for each window, each from another part of the bank.

    Returns
    -------
    BestPoses
        Of shape (n, keep).
    """
    import torch

    score = torch.full((len(windows), keep), -torch.inf)
    index = torch.zeros((len(windows), keep), dtype=torch.int64)
    places = torch.as_tensor(windows)
    for number in progress(range(len(bank)), f"scoring {len(bank.rotations)} orientations"):
        copies = torch.as_tensor(bank.part(number)).T.contiguous()
        for start in range(0, len(places), _WINDOWS):
            part = slice(start, start + _WINDOWS)
            best, which = (places[part] @ copies).max(dim=1)
            joined = torch.cat([score[part], best[:, None]], dim=1)
            chosen = torch.cat([index[part], number + len(bank) * which[:, None]], dim=1)
            order = joined.argsort(dim=1, descending=True, stable=True)[:, :keep]
            score[part], index[part] = joined.gather(1, order), chosen.gather(1, order)
    return BestPoses(score.numpy(), index.numpy())


def refine_poses(
    basis: Basis, windows: Array, rotations: Rotation, *, step: float, rounds: int = 4
) -> Rotation:
    """Turn a reference a little at each place until it correlates best there.

    Steps about three axes tell slope and curvature; each round ends at the vertex of the parabolas,
    or where the best of the steps is, and the next one takes half the step.

    Parameters
    ----------
    basis : Basis
    windows : ndarray, shape (n, k)
        From `Basis.windows`.
    rotations : Rotation of length n
        Near the best ones.
    step : float
        Angle of the first steps.
    rounds : int

    Returns
    -------
    Rotation of length n
        None correlates less than the one that it was made from.
    """
    near, probes = basis._probes

    def correlate(poses: Rotation) -> FloatArray:
        return np.concatenate(
            [
                np.einsum("nk,nk->n", windows[i : i + _WINDOWS],
                    basis._turned(poses[i : i + _WINDOWS], near, probes))
                for i in range(0, len(poses), _WINDOWS)
            ]
        )  # fmt: skip

    if not len(windows):
        return rotations
    score = correlate(rotations)
    for number in range(rounds):
        angle = np.deg2rad(step / 2**number)
        steps = [Rotation.from_rotvec(v) for v in angle * np.concatenate([np.eye(3), -np.eye(3)])]
        tried = np.array([correlate(turn * rotations) for turn in steps])
        up, down = tried[:3], tried[3:]
        curvature = 2 * score - up - down
        vertex = np.divide(up - down, 2 * curvature, out=np.sign(up - down), where=curvature > 0)
        joint = Rotation.from_rotvec(angle * np.clip(vertex, -1, 1).T) * rotations
        options = [rotations, *(turn * rotations for turn in steps), joint]
        values = np.concatenate([[score], tried, [correlate(joint)]])
        best = values.argmax(axis=0)
        everyone = np.arange(len(best))
        quaternions = np.stack([option.as_quat() for option in options])
        rotations, score = Rotation.from_quat(quaternions[best, everyone]), values[best, everyone]
    return rotations


def _support(reference: RotatedReference) -> NDArray[np.intp]:
    """Voxels zyx, shape (v, 3), from the middle, within the ball that holds the reference."""
    density, size = reference.density, reference.mask.shape[0]
    radius = np.linalg.norm(np.indices(density.shape) - density.shape[0] // 2, axis=0)
    power = np.bincount(radius.astype(int).ravel(), density.ravel() ** 2)
    edge = 1 + np.searchsorted(np.cumsum(power), _SUPPORT * power.sum())
    places = np.indices((size,) * 3).reshape(3, -1).T - size // 2
    return places[(places**2).sum(axis=1) <= (edge / OVERSAMPLING + 1) ** 2]


@njit(cache=True, nogil=True, parallel=True)
def _gather(data: Array, centers: NDArray[Any], inside: NDArray[Any]) -> Array:
    out = np.zeros((len(centers), len(inside)), np.float32)
    nz, ny, nx = data.shape
    for i in prange(len(centers)):
        for j in range(len(inside)):
            z = centers[i, 0] + inside[j, 0]
            y = centers[i, 1] + inside[j, 1]
            x = centers[i, 2] + inside[j, 2]
            if 0 <= z < nz and 0 <= y < ny and 0 <= x < nx:
                out[i, j] = data[z, y, x]
    return out
