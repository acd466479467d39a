"""Fourier filters, spectra and resampling of volumes."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, TypeVar, cast

import numpy as np
import scipy.fft
from numba import njit, prange
from numpy.typing import ArrayLike, NDArray

from tomoloc.arrays import allocate, release
from tomoloc.types import Volume

__all__ = [
    "band_pass",
    "band_pass_weights",
    "fourier_shell_correlation",
    "gaussian",
    "radial_frequency",
    "radial_spectrum",
    "rescale",
    "whiten",
]

Array = NDArray[np.float32]
Floats = NDArray[np.floating[Any]]
Shape = tuple[int, int, int]
SomeVolume = TypeVar("SomeVolume", bound=Volume)

PART_BYTES = 512 << 20
"""Memory for what `rescale` works on at one time."""


def radial_frequency(shape: Shape, voxel_spacing: float) -> Array:
    """Length of the spatial frequency at each place of a real transform.

    Parameters
    ----------
    shape : tuple of int (z, y, x)
        Of the volume in real space.
    voxel_spacing : float

    Returns
    -------
    ndarray of float32, shape (z, y, x // 2 + 1)
        In 1/angstrom, laid out as by `scipy.fft.rfftn`.
    """
    z, y, x = _axes(shape, voxel_spacing)
    return np.sqrt(z[:, None, None] ** 2 + y[:, None] ** 2 + x**2)


def _axes(shape: Shape, voxel_spacing: float) -> tuple[Array, Array, Array]:
    """Frequencies along z, y and x of a real transform, in 1/angstrom."""
    nz, ny, nx = shape
    z, y = (scipy.fft.fftfreq(n, voxel_spacing).astype(np.float32) for n in (nz, ny))
    return z, y, scipy.fft.rfftfreq(nx, voxel_spacing).astype(np.float32)


def _filtered(data: NDArray[Any], weights: Array) -> Array:
    """Multiply the transform of (..., z, y, x) data by real weights."""
    axes = (-3, -2, -1)
    spectrum = scipy.fft.rfftn(np.asarray(data, np.float32), axes=axes, workers=os.cpu_count())
    spectrum *= weights
    out = scipy.fft.irfftn(spectrum, s=data.shape[-3:], axes=axes, workers=os.cpu_count())
    return np.asarray(out, dtype=np.float32)


def band_pass_weights(
    frequency: ArrayLike,
    *,
    low_pass: float | None = None,
    high_pass: float | None = None,
    edge: float = 0.2,
) -> Array:
    """Weights from 0 to 1 that keep the resolutions between `high_pass` and `low_pass`.

    Both edges are raised cosines that pass 1/2 at the given resolution.

    Parameters
    ----------
    frequency : array_like
        In 1/angstrom.
    low_pass, high_pass : float, optional
        Finest and coarsest resolution to keep, in angstrom; None keeps all.
    edge : float
        Width of each edge as a fraction of its frequency.

    Raises
    ------
    ValueError
        If a resolution or the edge is not positive, or no band is left between the two.
    """
    if edge <= 0:
        raise ValueError(f"edge must be positive; got {edge}")
    for name, value in (("low_pass", low_pass), ("high_pass", high_pass)):
        if value is not None and not value > 0:
            raise ValueError(f"{name} must be a resolution above 0 (angstrom); got {value}")
    if low_pass is not None and high_pass is not None and low_pass >= high_pass:
        raise ValueError(
            f"low_pass ({low_pass} angstrom) must be finer than high_pass ({high_pass} angstrom)"
        )
    k = np.asarray(frequency, dtype=np.float32)

    def step(resolution: float) -> Array:
        place = np.clip((k * resolution - 1) / edge, -0.5, 0.5)
        return ((1 + np.sin(np.pi * place)) / 2).astype(np.float32)

    weights = np.ones_like(k)
    if low_pass is not None:
        weights *= 1 - step(low_pass)
    if high_pass is not None:
        weights *= step(high_pass)
    return weights


def band_pass(
    data: NDArray[Any],
    *,
    voxel_spacing: float,
    low_pass: float | None = None,
    high_pass: float | None = None,
    edge: float = 0.2,
) -> Array:
    """Keep the resolutions between `high_pass` and `low_pass` (angstrom), with soft edges.

    Parameters
    ----------
    data : ndarray, shape (..., z, y, x)
        Its borders are taken as periodic.
    voxel_spacing : float
    low_pass, high_pass, edge
        See `band_pass_weights`. A high pass takes the mean away.

    Returns
    -------
    ndarray of float32, shape (..., z, y, x)
    """
    frequency = radial_frequency(_shape(data), voxel_spacing)
    return _filtered(
        data,
        band_pass_weights(frequency, low_pass=low_pass, high_pass=high_pass, edge=edge),
    )


def gaussian(data: NDArray[Any], *, voxel_spacing: float, sigma: float) -> Array:
    """Blur with a Gaussian of standard deviation `sigma` (angstrom); borders are periodic."""
    frequency = radial_frequency(_shape(data), voxel_spacing)
    return _filtered(data, np.exp(-2 * (np.pi * sigma * frequency) ** 2))


def radial_spectrum(data: NDArray[Any], *, voxel_spacing: float) -> tuple[Floats, Floats]:
    """Mean power in shells of spatial frequency.

    Parameters
    ----------
    data : ndarray, shape (z, y, x)
        Its mean is left out.
    voxel_spacing : float

    Returns
    -------
    frequency : ndarray, shape (n,)
        Centres of the shells from 0 to Nyquist, in 1/angstrom. They are as far apart as the
        coefficients along the longest side.
    power : ndarray, shape (n,)
        White noise has its variance in each shell.
    """
    spectrum = _spectrum(data)
    frequency, _, power, _, count = _shells(spectrum, spectrum, _shape(data), voxel_spacing)
    return frequency, power / count / data.size


def fourier_shell_correlation(
    a: NDArray[Any], b: NDArray[Any], *, voxel_spacing: float, mask: NDArray[Any] | None = None
) -> tuple[Floats, Floats]:
    """Correlation of two volumes in shells of spatial frequency [1]_.

    Parameters
    ----------
    a, b : ndarray, shape (z, y, x)
        Their means are left out.
    voxel_spacing : float
    mask : ndarray, shape (z, y, x // 2 + 1), optional
        Weights of the coefficients (a missing wedge, say), laid out as by `scipy.fft.rfftn`.

    Returns
    -------
    frequency, correlation : ndarray, shape (n,)
        Shells as in `radial_spectrum`; 0 where a shell is empty.

    Raises
    ------
    ValueError
        If the shapes differ.

    References
    ----------
    .. [1] Harauz & van Heel, Optik 73 (1986).
    """
    if a.shape != b.shape:
        raise ValueError(f"volumes must have one shape to be compared; got {a.shape}, {b.shape}")
    first, second = _spectrum(a), _spectrum(b)
    if mask is not None:
        if mask.shape != first.shape:
            raise ValueError(f"expected a mask of shape {first.shape}; got {mask.shape}")
        root = np.sqrt(np.asarray(mask, dtype=np.float32))
        first *= root
        second *= root
    frequency, cross, power_a, power_b, _ = _shells(first, second, _shape(a), voxel_spacing)
    scale = np.sqrt(power_a * power_b)
    return frequency, np.divide(cross, scale, out=np.zeros_like(cross), where=scale > 0)


def whiten(data: NDArray[Any], *, voxel_spacing: float) -> Array:
    """Divide the transform by the root of the `radial_spectrum`, and so make noise white.

    Parameters
    ----------
    data : ndarray, shape (z, y, x)
    voxel_spacing : float

    Returns
    -------
    ndarray of float32, shape (z, y, x)
        Mean 0; every shell has mean power 1.
    """
    shells, power = radial_spectrum(data, voxel_spacing=voxel_spacing)
    power[0] = power[1] if len(power) > 1 else 1.0
    floor = max(float(power.max()) * 1e-10, float(np.finfo(np.float32).tiny))
    gain = 1 / np.sqrt(np.maximum(power, floor))
    frequency = radial_frequency(_shape(data), voxel_spacing)
    weights = np.interp(frequency, shells, gain).astype(np.float32)
    weights[0, 0, 0] = 0
    return _filtered(data, weights)


def rescale(volume: SomeVolume, voxel_spacing: float) -> SomeVolume:
    """Resample a volume to another voxel spacing in Fourier space.

    Along each axis the values are written as cosines (a transform of the volume mirrored at its
    borders, so that opposite borders do not mix), frequencies beyond either grid's Nyquist are
    left out, and the cosines are summed at the new voxel centres. Any ratio is exact: the spacing
    is the one asked for, and values (not sums) are kept.

    Parameters
    ----------
    volume : Volume, data shape (..., z, y, x)
        May be memory-mapped: a part at a time is read.
    voxel_spacing : float
        Of the result, in angstrom.

    Returns
    -------
    Volume, data of float32
        With the same middle, and as many voxels as fit the old extent best; in a temporary file
        where it is large. `origin` is exact, so positions mean the same on both grids.

    Raises
    ------
    ValueError
        If the spacing is not positive.
    """
    if not (np.isfinite(voxel_spacing) and voxel_spacing > 0):
        raise ValueError(f"voxel_spacing must be positive (angstrom); got {voxel_spacing}")
    ratio = voxel_spacing / volume.voxel_spacing
    if ratio == 1:
        return volume
    shape = tuple(max(1, round(n / ratio)) for n in volume.shape)
    along = [_resampling_matrix(n, m, ratio) for n, m in zip(volume.shape, shape, strict=True)]
    channels = volume.data.reshape(-1, *volume.shape)
    data = allocate((len(channels), *shape), np.float32)
    for channel, out in zip(channels, data, strict=True):
        _resample(channel, along, out)
    data = data.reshape(*volume.data.shape[:-3], *shape)
    middle = (np.array(shape[::-1]) - 1) / 2
    return replace(
        volume,
        data=data,
        voxel_spacing=voxel_spacing,
        origin=volume.center - middle * voxel_spacing,
    )


def _resample(data: NDArray[Any], along: Sequence[Array], out: Array) -> None:
    """Fill `out` with data times a matrix along each axis, in parts that fit into memory.

    Each part is a large matrix product; many small ones would leave threads waiting for each other.
    """
    along_z, along_y, along_x = along
    (mz, nz), (my, ny), (mx, nx) = (matrix.shape for matrix in along)
    half = allocate((mz, ny, mx), np.float32)
    for rows in _parts(ny, n_values=nz * nx + mz * nx + mz * mx):
        values = along_z @ np.asarray(data[:, rows], dtype=np.float32).reshape(nz, -1)
        values = values.reshape(-1, nx) @ along_x.T
        half[:, rows] = values.reshape(mz, -1, mx)
        release(data)
        release(half)
    for sections in _parts(mz, n_values=2 * (ny + my) * mx):
        values = along_y @ half[sections].transpose(1, 0, 2).reshape(ny, -1)
        out[sections] = values.reshape(my, -1, mx).transpose(1, 0, 2)
        release(half)
        release(out)


def _parts(n: int, *, n_values: int) -> Iterator[slice]:
    """Cut `n` lines, each of which needs so many float32 values, into parts for memory."""
    step = max(1, PART_BYTES // (4 * n_values))
    return (slice(start, start + step) for start in range(0, n, step))


def _resampling_matrix(n_in: int, n_out: int, ratio: float) -> Array:
    """Values at `n_out` centred places `ratio` apart from `n_in` values 1 apart: (n_out, n_in)."""
    n_waves = min(n_in, max(1, int(np.ceil(n_in / ratio - 1e-9))))
    wave = np.arange(n_waves)
    place = (np.arange(n_out) - (n_out - 1) / 2) * ratio + n_in / 2
    analysis = np.cos(np.pi / n_in * wave[:, None] * (np.arange(n_in) + 0.5)) * (2 / n_in)
    analysis[0] /= 2
    synthesis = np.cos(np.pi / n_in * place[:, None] * wave)
    return (synthesis @ analysis).astype(np.float32)


def _shape(data: NDArray[Any]) -> Shape:
    z, y, x = data.shape[-3:]
    return z, y, x


def _spectrum(data: NDArray[Any]) -> NDArray[np.complex64]:
    """Transform of a volume less its mean."""
    if data.ndim != 3:
        raise ValueError(f"expected a volume of shape (z, y, x); got {data.shape}")
    values = np.asarray(data, dtype=np.float32)
    spectrum = scipy.fft.rfftn(values - values.mean(dtype=float), workers=os.cpu_count())
    spectrum[0, 0, 0] = 0
    return cast("NDArray[np.complex64]", spectrum)


def _shells(
    a: NDArray[np.complex64], b: NDArray[np.complex64], shape: Shape, voxel_spacing: float
) -> tuple[Floats, Floats, Floats, Floats, Floats]:
    """Frequencies, cross power, both powers and numbers of coefficients of all shells."""
    longest = max(shape)
    n_shells = longest // 2 + 1
    # in units of the shells' distance
    z, y, x = (axis * longest for axis in _axes(shape, 1.0))
    sums = _sum_shells(a, b, z, y, x, shape[2] % 2 == 0, n_shells).sum(axis=0)
    frequency = np.arange(n_shells) / (longest * voxel_spacing)
    cross, power_a, power_b, count = sums.T
    return frequency, cross, power_a, power_b, np.maximum(count, 1)


@njit(cache=True, nogil=True, parallel=True)
def _sum_shells(
    a: NDArray[np.complex64],
    b: NDArray[np.complex64],
    z: Array,
    y: Array,
    x: Array,
    even: bool,  # noqa: FBT001
    n_shells: int,
) -> Floats:
    """Sum a b*, |a|^2, |b|^2 and 1 in the nearest shell, apart for each slice z."""
    sums = np.zeros((len(z), n_shells, 4))
    last = len(x) - 1
    for i in prange(len(z)):
        for j in range(len(y)):
            for k in range(len(x)):
                shell = int(np.sqrt(z[i] ** 2 + y[j] ** 2 + x[k] ** 2) + 0.5)
                if shell >= n_shells:
                    continue
                # a real transform leaves out the mates of all but the first and last columns
                mates = 1.0 if k == 0 or (even and k == last) else 2.0
                p, q = a[i, j, k], b[i, j, k]
                sums[i, shell, 0] += mates * (p.real * q.real + p.imag * q.imag)
                sums[i, shell, 1] += mates * (p.real**2 + p.imag**2)
                sums[i, shell, 2] += mates * (q.real**2 + q.imag**2)
                sums[i, shell, 3] += mates
    return sums
