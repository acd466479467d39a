"""A picture of what a network takes each voxel for, beside the truth."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from tomoloc.report.figures import INK, SERIES, contrast_range
from tomoloc.types import Volume

__all__ = ["draw_classes"]

_SIDE = 3.4
_OPACITY = 0.55


def draw_classes(
    tomogram: Volume,
    panels: Sequence[tuple[str, NDArray[np.integer[Any]]]],
    *,
    labels: Sequence[str],
    title: str = "",
) -> Figure:
    """Draw a section of a tomogram, alone and under each of some label volumes.

    Parameters
    ----------
    tomogram : Volume, data shape (z, y, x)
        Shown as it is, a little smoothed, for the eye alone.
    panels : sequence of (str, ndarray of shape (z, y, x))
        Heading and classes: 0 for background, 1 for the first label; others are left out.
    labels : sequence of str
    title : str
        Above the picture.

    Returns
    -------
    Figure
        The section is the one in which the label volumes have the most classes and voxels.
    """
    known = [np.where(classes <= len(labels), classes, 0) for _, classes in panels]
    section = _choose_section(known, len(labels), tomogram.shape[0])
    _, height, width = tomogram.shape
    tall = _SIDE * height / width
    figure = Figure(figsize=(_SIDE * (1 + len(panels)), tall + 0.85), facecolor="white")
    low, high = max(section - 1, 0), section + 2
    image = gaussian_filter(np.asarray(tomogram.data[low:high], np.float32).mean(axis=0), 0.7)
    limits = contrast_range(image)
    colours = np.array([to_rgba("black", 0.0)] + [to_rgba(_colour(i)) for i in range(len(labels))])
    colours[1:, 3] = _OPACITY
    headings = [f"section {section}", *(heading for heading, _ in panels)]
    for column, heading in enumerate(headings):
        share = 1 / len(headings)
        place = (column * share + 0.01, 0.35 / (tall + 0.85), share - 0.02, tall / (tall + 0.85))
        axes = figure.add_axes(place)
        axes.imshow(image, cmap="gray", origin="lower", vmin=limits[0], vmax=limits[1])
        if column:
            axes.imshow(colours[known[column - 1][section]], origin="lower", interpolation="none")
        axes.set_title(heading, fontsize=9, color=INK, loc="left", pad=3)
        axes.set_axis_off()
    figure.text(0.01, 0.995, title, ha="left", va="top", fontsize=10, color=INK)
    figure.legend(
        handles=[Patch(color=_colour(i), label=name) for i, name in enumerate(labels)],
        loc="lower left",
        ncols=min(len(labels), 6),
        frameon=False,
        fontsize=8.5,
        labelcolor=INK,
    )
    return figure


def _colour(number: int) -> str:
    return SERIES[number % len(SERIES)]


def _choose_section(known: Sequence[NDArray[np.integer[Any]]], n: int, depth: int) -> int:
    """Choose the section with the most classes, of those the one with the most voxels."""
    best = (0, 0, -abs(depth // 2))
    chosen = depth // 2
    for z in range(depth):
        counts = np.bincount(np.concatenate([one[z].ravel() for one in known]), minlength=n + 1)[1:]
        rank = (int(np.count_nonzero(counts)), int(counts.sum()), -abs(z - depth // 2))
        if rank[0] and rank > best:
            best, chosen = rank, z
    return chosen
