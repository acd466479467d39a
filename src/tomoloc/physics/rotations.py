"""Point groups, even sampling of orientations, and distances between poses."""

from __future__ import annotations

import re

import numpy as np
from scipy.spatial.transform import Rotation

from tomoloc.types import FloatArray

__all__ = ["angular_distance", "sample_rotations", "symmetry_group", "turn_to"]

# Irrational winding numbers of the super-Fibonacci spiral (Alexa 2022, section 4).
_PHI = np.sqrt(2.0)
_PSI = 1.533751168755204288118041


def symmetry_group(symmetry: str) -> Rotation:
    """Return the rotations of a point group, the identity first.

    Parameters
    ----------
    symmetry : str
        "C1", "C7", "D2", "T", "O" or "I". The main axis is z; D has a twofold axis along x; T and
        I have twofold axes, O fourfold axes, along x, y and z.

    Returns
    -------
    Rotation
        All elements of the group.

    Raises
    ------
    ValueError
        If the name is none of these.
    """
    name = symmetry.strip().upper()
    if not re.fullmatch(r"[CD][1-9]\d*|[TOI]", name):
        raise ValueError(f"symmetry must be C1, C2, ..., D2, D3, ..., T, O or I; got {symmetry!r}")
    group = Rotation.create_group(name, axis="Z")  # type: ignore[arg-type]
    order = np.argsort(group.magnitude(), kind="stable")
    return group[order]


def sample_rotations(angular_step: float, symmetry: str = "C1") -> Rotation:
    """Spread orientations evenly over those that a symmetric reference can be told apart in.

    Super-Fibonacci spirals [1]_ cover the rotation group about as evenly as the best grids known,
    for any number of rotations. That number is the volume of the group over the cube of the step.

    Parameters
    ----------
    angular_step : float
        Typical angle between neighbours; 7 degrees give 43,299 rotations for C1.
    symmetry : str
        Point group of the reference; of each set of equivalent rotations one is kept.

    Returns
    -------
    Rotation
        Reference to tomogram.

    Raises
    ------
    ValueError
        If the step is not from 1 to 180 degrees.

    References
    ----------
    .. [1] Alexa, Super-Fibonacci Spirals: Fast, Low-Discrepancy Sampling of SO(3), CVPR (2022),
       doi:10.1109/CVPR52688.2022.00811.
    """
    if not 1 <= angular_step <= 180:
        raise ValueError(f"angular_step must be from 1 to 180 degrees; got {angular_step}")
    n = int(np.ceil(8 * np.pi**2 / np.deg2rad(angular_step) ** 3))
    s = np.arange(n) + 0.5
    inner, outer = np.sqrt(s / n), np.sqrt(1 - s / n)
    alpha, beta = 2 * np.pi * s / _PHI, 2 * np.pi * s / _PSI
    quaternions = np.stack(
        [
            inner * np.sin(alpha),
            inner * np.cos(alpha),
            outer * np.sin(beta),
            outer * np.cos(beta),
        ],
        axis=1,
    )
    group = symmetry_group(symmetry).as_quat()
    # |w| of R g is the cosine of half its angle: keep R where no equivalent turns less.
    x, y, z, w = quaternions.T[:, :, None]
    gx, gy, gz, gw = group.T[:, None, :]
    closeness = np.abs(w * gw - x * gx - y * gy - z * gz)
    return Rotation.from_quat(quaternions[closeness[:, 0] >= closeness.max(axis=1) - 1e-12])


def angular_distance(first: Rotation, second: Rotation, *, symmetry: str = "C1") -> FloatArray:
    """Return the angle in degrees between orientations, the least over equivalent ones.

    Parameters
    ----------
    first, second : Rotation of length n (or single)
        Reference to tomogram.
    symmetry : str
        Point group of the reference.

    Returns
    -------
    ndarray, shape (n,)
        From 0 to 180.
    """
    between = np.atleast_2d((first.inv() * second).as_quat())
    group = symmetry_group(symmetry).as_quat()
    x, y, z, w = between.T[:, :, None]
    gx, gy, gz, gw = group.T[:, None, :]
    cosine = np.abs(w * gw - x * gx - y * gy - z * gz).max(axis=1)
    return np.rad2deg(2 * np.arccos(np.minimum(cosine, 1)))


def turn_to(normal: FloatArray, *, spin: FloatArray | float = 0.0) -> Rotation:
    """Rotations that take z to unit vectors, shape (n, 3): a spin about z, then the least turn.

    Parameters
    ----------
    normal : ndarray, shape (n, 3)
    spin : float or ndarray, shape (n,)
        In radians.
    """
    x, y, z = np.asarray(normal, dtype=float).reshape(-1, 3).T
    turn = np.stack([-y, x, np.zeros_like(z), 1 + z], axis=1)
    turn[z < 1e-12 - 1] = [1, 0, 0, 0]  # any half turn about an axis across z
    half = np.broadcast_to(np.asarray(spin) / 2, z.shape)
    about = np.stack([np.zeros_like(z), np.zeros_like(z), np.sin(half), np.cos(half)], axis=1)
    return Rotation.from_quat(turn) * Rotation.from_quat(about)
