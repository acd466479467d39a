"""Tomograms as networks see them: rescaled, standardised, and large enough for a patch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tomoloc.physics.contrast import standardise
from tomoloc.physics.filters import rescale
from tomoloc.types import FloatArray, Sample, Tomogram, Volume

__all__ = [
    "HALF_TURNS",
    "STRIDE",
    "Framed",
    "Views",
    "ball_window",
    "choose_turns",
    "draw_half_turn",
    "frame",
    "is_usable",
    "learned_part",
    "nearest_values",
]

IntArray = NDArray[np.integer]

HALF_TURNS = ((), (0, 1), (0, 2), (1, 2))
"""Axes zyx to flip: no turn, or half of one about x, y or z, which leaves the wedge alone."""

Views = Literal[1, 2, 4]
"""How many of them a network looks at: the first ones."""

STRIDE = 2
"""Voxels from one point of the network's grid to the next; point i stands at 2 i + 0.5."""

_LEAST_VISIBLE = 0.5


class Framed(NamedTuple):
    """A tomogram as a network sees it.

    Parameters
    ----------
    tomogram : Tomogram
        At the model's voxel spacing.
    data : ndarray of float16, shape (z, y, x)
        Standardised, protein bright, reflected at its borders.
    pads : list of (int, int)
        Voxels that were added before and after the tomogram along z, y and x.
    """

    tomogram: Tomogram
    data: NDArray[np.float16]
    pads: list[tuple[int, int]]

    @property
    def before(self) -> list[int]:
        """Voxels added before the tomogram along z, y and x."""
        return [low for low, _ in self.pads]

    @property
    def inside(self) -> tuple[tuple[int, int], ...]:
        """First voxel, and last one plus one, that belong to the tomogram along z, y and x."""
        sides = zip(self.before, self.tomogram.shape, strict=True)
        return tuple((low, low + n) for low, n in sides)


def frame(whole: Tomogram, *, voxel_spacing: float, least: Sequence[int]) -> Framed:
    """Bring a tomogram to a voxel spacing and a least size.

    Parameters
    ----------
    whole : Tomogram
        Protein dark.
    voxel_spacing : float
        Of the model, in angstrom.
    least : sequence of int
        Voxels along z, y and x that the result has at least; its sides are even.

    Raises
    ------
    ValueError
        If the tomogram is empty.
    """
    tomogram = rescale(whole, voxel_spacing)
    data = standardise(tomogram.data, contrast="dark").astype(np.float16)
    # Sides must be even, and a patch must fit in.
    missing = [max(n % STRIDE, low - n) for n, low in zip(data.shape, least, strict=True)]
    before = [n // (2 * STRIDE) * STRIDE for n in missing]
    pads = [(low, n - low) for low, n in zip(before, missing, strict=True)]
    return Framed(tomogram, np.pad(data, pads, mode="symmetric"), pads)


def is_usable(sample: Sample) -> NDArray[np.bool_]:
    """Tell of which particles enough lies in the volume to learn from them, shape (n,)."""
    particles = sample.particles
    visible = particles.extra.get("tomolocVisibleFraction", np.ones(len(particles)))
    return np.asarray(np.asarray(visible, dtype=float) >= _LEAST_VISIBLE)


def nearest_values(
    volume: Volume, grid: Volume, *, stride: int = 1, offset: float = 0.0
) -> NDArray[Any]:
    """Look up a volume's nearest value at each place of another grid.

    Parameters
    ----------
    volume : Volume, data shape (z, y, x)
    grid : Volume
    stride : int
        Voxels of the grid from one place to the next.
    offset : float
        Voxel of the grid at which the first place stands.

    Returns
    -------
    ndarray, shape (z / stride, y / stride, x / stride)
    """
    places = []
    for axis, limit in enumerate(volume.shape):
        n = grid.shape[axis] // stride
        corners = np.zeros((n, 3))
        corners[:, axis] = stride * np.arange(n) + offset
        index = volume.to_index(grid.to_position(corners))[:, axis]
        places.append(np.clip(np.rint(index).astype(int), 0, limit - 1))
    return volume.data[np.ix_(*places)]


def learned_part(
    inside: Sequence[tuple[int, int]],
    first: Sequence[int] | IntArray,
    grid: Sequence[int],
    *,
    margin: int,
) -> tuple[slice, ...]:
    """Points of a patch that belong to the tomogram and see enough.

    Parameters
    ----------
    inside : sequence of (int, int)
        First point and last one plus one of the tomogram along z, y and x.
    first : sequence of int
        The patch's first point.
    grid : sequence of int
        Its points along z, y and x.
    margin : int
        Points at its borders that see too little.
    """
    sides = zip(first, grid, inside, strict=True)
    return tuple(
        slice(int(max(margin, low - a)), int(max(0, min(n - margin, high - a))))
        for a, n, (low, high) in sides
    )


def ball_window(
    place: FloatArray, radius: float, grid: Sequence[int]
) -> tuple[tuple[slice, ...], FloatArray] | None:
    """Find the part of a grid within a radius of a place, and the distances there.

    Parameters
    ----------
    place : ndarray, shape (3,)
        zyx in grid points.
    radius : float
        In grid points.
    grid : sequence of int
        Points along z, y and x.

    Returns
    -------
    (tuple of slice, ndarray) or None
        None where nothing of the ball lies in the grid.
    """
    low = np.maximum(np.ceil(place - radius).astype(int), 0)
    high = np.minimum(np.floor(place + radius).astype(int) + 1, grid)
    if (low >= high).any():
        return None
    axes = [np.arange(a, b) - c for a, b, c in zip(low, high, place, strict=True)]
    z, y, x = np.ix_(*axes)
    part = tuple(slice(a, b) for a, b in zip(low.tolist(), high.tolist(), strict=True))
    return part, np.sqrt(z**2 + y**2 + x**2)


def choose_turns(views: int) -> tuple[tuple[int, ...], ...]:
    """Return the first of `HALF_TURNS`.

    Raises
    ------
    ValueError
        If `views` is not 1, 2 or 4.
    """
    if views not in {1, 2, 4}:
        raise ValueError(f"views must be 1, 2 or 4; got {views}")
    return HALF_TURNS[:views]


def draw_half_turn(rng: np.random.Generator) -> tuple[int, ...]:
    """Draw axes to flip: half a turn about an axis or none, as mirrored molecules are others."""
    return HALF_TURNS[int(rng.integers(4))]
