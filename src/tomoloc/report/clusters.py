"""Pictures of clusters: the plane they were found on, their members, their averages."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.patheffects import withStroke
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter, map_coordinates

from tomoloc.features.averages import align
from tomoloc.features.boxes import Boxes
from tomoloc.physics.contrast import robust_scale
from tomoloc.report.figures import FAINT, INK, NEUTRAL, OUTLINE, contrast_range, scale_bar_length
from tomoloc.types import FloatArray, Tomogram

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = [
    "ClusterPictures",
    "average_turned",
    "cut_boxes",
    "draw_cluster",
    "draw_map",
    "draw_overview",
]

# Okabe and Ito's colours, told apart by all kinds of colour vision; beyond seven, marks differ too.
COLOURS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#d55e00", "#56b4e9", "#8c6d1f")
MARKS = ("o", "^", "s", "D", "v", "P", "X")
SMOOTHING = 8.0
"""Sigma in Å, for the eye; much finer grids than the pictures' would else show noise alone."""
THICKNESS = 60.0
"""Of the slice through a member, in Å."""
_SIDE, _GAP, _HEAD = 1.0, 0.06, 0.5  # inches
_SECTIONS = {"xy": 0, "xz": 1, "yz": 2}  # and the axis zyx that is looked along
_PAGE = 20


@dataclass(frozen=True, eq=False, kw_only=True)
class ClusterPictures:
    """What is shown of a cluster.

    Parameters
    ----------
    name : str
    number : int
        From 0; it sets the colour.
    n_members, n_tomograms : int
    typical, borderline : sequence of ndarray, each of shape (y, x)
        Central slices of the members most and least like the target; NaN outside the tomogram.
    average : ndarray, shape (z, y, x)
        Of members.
    n_averaged : int
    turned : str
        Name of the tomogram whose members the average is of, turned onto each other; empty where
        they are averaged as they lie.
    spacing : float
        Of all these, in angstrom.
    """

    name: str
    number: int
    n_members: int
    n_tomograms: int
    typical: Sequence[FloatArray]
    borderline: Sequence[FloatArray]
    average: FloatArray
    n_averaged: int
    turned: str
    spacing: float

    @property
    def colour(self) -> str:
        """Of the cluster in all pictures."""
        return COLOURS[self.number % len(COLOURS)]

    @property
    def summary(self) -> str:
        """Size in words."""
        text = f"{self.n_members} particle{'' if self.n_members == 1 else 's'}"
        return f"{text} in {self.n_tomograms} tomograms" if self.n_tomograms > 1 else text


def cut_boxes(
    tomogram: Tomogram, position: FloatArray, *, width: float, spacing: float
) -> NDArray[np.float32]:
    """Cut cubes around positions, on a grid of their own, smoothed for the eye.

    Parameters
    ----------
    tomogram : Tomogram
        May be memory-mapped.
    position : ndarray, shape (n, 3)
        xyz in angstrom.
    width, spacing : float
        Side and grid step of the cubes in angstrom.

    Returns
    -------
    ndarray, shape (n, z, y, x)
        In units of the tomogram's robust deviation, from its median; NaN outside it.
    """
    median, deviation = robust_scale(tomogram.data)
    half = int(width / spacing / 2)
    steps = np.arange(-half, half + 1) * spacing / tomogram.voxel_spacing
    sigma = SMOOTHING / tomogram.voxel_spacing
    margin = int(np.ceil(steps[-1] + 4 * sigma)) + 1
    boxes = np.full((len(position), *[len(steps)] * 3), np.nan, dtype=np.float32)
    shape = np.array(tomogram.shape)
    for box, place in zip(boxes, tomogram.to_index(position), strict=True):
        low = np.clip(np.floor(place).astype(int) - margin, 0, shape - 1)
        high = np.clip(np.ceil(place).astype(int) + margin + 1, low + 1, shape)
        z, y, x = (slice(a, b) for a, b in zip(low, high, strict=True))
        block = gaussian_filter(np.asarray(tomogram.data[z, y, x], dtype=np.float32), sigma)
        axes = [step_place - a for step_place, a in zip(place[:, None] + steps, low, strict=True)]
        grid = np.stack(np.meshgrid(*axes, indexing="ij"))
        box[:] = map_coordinates(block, grid, order=1, mode="nearest")
        for axis, (along, n) in enumerate(zip(axes, high - low, strict=True)):
            outside = (along < -0.5) | (along > n - 0.5)
            np.moveaxis(box, axis, 0)[outside] = np.nan
    boxes -= median
    boxes /= deviation
    return boxes


def average_turned(
    tomogram: Tomogram,
    position: Sequence[FloatArray],
    *,
    dark: bool,
    width: float,
    spacing: float,
) -> list[FloatArray]:
    """Turn the particles of each group onto each other, and average them.

    Parameters
    ----------
    tomogram : Tomogram
        May be memory-mapped.
    position : sequence of ndarray, each of shape (n, 3)
        xyz in angstrom; the surest of each group first.
    dark : bool
        Whether protein is dark in the tomogram; in the averages it is.
    width, spacing : float
        Side and grid step of the averages in angstrom.

    Returns
    -------
    list of ndarray, each of shape (z, y, x)
        0 around the particle; an axis of symmetry, if there is one, lies along z.
    """
    if not position:
        return []
    finest = max(30.0, 3 * tomogram.voxel_spacing)
    boxes = Boxes.of(tomogram, np.concatenate(position), resolution=finest)
    if dark:
        boxes = replace(boxes, values=-boxes.values)
    half = int(width / spacing / 2)
    steps = np.arange(-half, half + 1) * spacing / boxes.voxel_spacing
    grid = np.stack(np.meshgrid(steps, steps, steps, indexing="ij"))
    rows = np.split(np.arange(len(boxes)), np.cumsum([len(group) for group in position])[:-1])
    densities = (align(boxes, own).density(boxes) for own in rows)
    return [
        -map_coordinates(
            density, np.tensordot(_find_axes(density), grid, axes=1) + boxes.size // 2, order=1
        )
        for density in densities
    ]


def _find_axes(density: FloatArray) -> NDArray[np.float64]:
    """Principal axes as columns, zyx, the one that is most unlike the others first.

    That is the axis of rings, barrels and discs. The frame of an average is that of some particle,
    and lies anyhow.
    """
    weight = np.where(density > density.max() / 4, density, 0).ravel()
    place = np.indices(density.shape).reshape(3, -1).astype(np.float64)
    if not weight.any():
        return np.eye(3)
    spread, axes = np.linalg.eigh(np.cov(place, aweights=weight))
    if spread[1] - spread[0] < spread[2] - spread[1]:
        axes = axes[:, ::-1]
    axes[:, 2] *= np.sign(np.linalg.det(axes))  # no mirror image
    return np.asarray(axes)


def cut_slices(boxes: FloatArray, spacing: float) -> list[FloatArray]:
    """Average the middle of cubes along z."""
    middle, half = boxes.shape[1] // 2, int(THICKNESS / spacing / 2)
    return list(boxes[:, max(middle - half, 0) : middle + half + 1].mean(axis=1))


def draw_map(
    coordinates: FloatArray, label: NDArray[np.integer[Any]], *, title: str = ""
) -> Figure:
    """Draw the plane of candidates, coloured by cluster, with the clusters' sizes.

    Parameters
    ----------
    coordinates : ndarray, shape (n, 2)
        As from `tomoloc.features.clusters.lay_out`: rows of NaN are not shown.
    label : ndarray of int, shape (n,)
        As `Clusters.label`.
    title : str
        Above the picture.
    """
    shown = np.isfinite(coordinates).all(axis=1)
    sizes = np.bincount(label[label >= 0])
    columns = 1 + (len(sizes) > 24)
    figure = Figure(figsize=(7.4 + 1.5 * columns, 6.6), layout="constrained", facecolor="white")
    axes = figure.add_subplot()
    marker = float(np.clip(8000 / max(shown.sum(), 1), 1.5, 26))
    none = shown & (label < 0)
    axes.scatter(
        coordinates[none, 0],
        coordinates[none, 1],
        s=0.7 * marker,
        color=FAINT,
        linewidths=0,
        rasterized=True,
    )
    entries = []
    for i, size in enumerate(sizes):
        rows = shown & (label == i)
        style: dict[str, Any] = {
            "color": COLOURS[i % len(COLOURS)],
            "marker": MARKS[i // len(COLOURS) % len(MARKS)],
        }
        axes.scatter(
            coordinates[rows, 0],
            coordinates[rows, 1],
            s=marker,
            linewidths=0,
            rasterized=True,
            **style,
        )
        entries.append(Line2D([], [], ls="none", ms=7, label=f"{i + 1}:  {size:,}", **style))
    for i in range(len(sizes)):
        rows = shown & (label == i)
        if rows.any():
            _write_number(axes, coordinates[rows], i + 1)
    faint = int((~shown & (label < 0)).sum())
    entries.append(
        Line2D([], [], ls="none", marker="o", ms=7, color=FAINT, label=f"none:  {none.sum():,}")
    )
    if faint:  # or too many to be laid out
        entries.append(Line2D([], [], ls="none", label=f"not shown:  {faint:,}"))
    figure.legend(
        handles=entries, loc="outside right upper", frameon=False, fontsize=9.5, labelcolor=INK,
        title="cluster: candidates", title_fontsize=9.5, alignment="left", ncols=columns,
        handletextpad=0.2,
    )  # fmt: skip
    axes.set(xticks=[], yticks=[])
    axes.margins(0.04, 0.06)
    axes.set_xlabel("UMAP 1 (like candidates lie together; no unit)", fontsize=9, color=INK)
    axes.set_ylabel("UMAP 2", fontsize=9, color=INK)
    for spine in axes.spines.values():
        spine.set_color(FAINT)
    axes.set_title(title, fontsize=10.5, color=INK, loc="left")
    return figure


def draw_overview(
    clusters: Sequence[ClusterPictures], *, title: str = "", members: int = 7
) -> Figure:
    """Draw a line for each cluster: its average and its most typical members.

    Parameters
    ----------
    clusters : sequence of ClusterPictures
        The first twenty are shown.
    title : str
        Above the picture.
    members : int
        How many are shown of each.
    """
    shown = clusters[:_PAGE]
    left, gap = 1.75, 0.18
    n = len(_SECTIONS) + members
    width = left + n * _SIDE + gap + _GAP
    height = _HEAD + 0.28 + max(len(shown), 1) * _SIDE + _GAP
    figure = Figure(figsize=(width, height), facecolor="white")
    figure.text(0.1 / width, 1 - 0.1 / height, title, va="top", fontsize=10.5, color=INK)
    head = height - _HEAD - 0.2
    for column, name in enumerate(_SECTIONS):
        x = left + (column + 0.5) * _SIDE
        figure.text(
            x / width, head / height, f"average, {name}", fontsize=9, color=INK, ha="center"
        )
    figure.text(
        (left + 3 * _SIDE + gap) / width, head / height, "members most like the target, xy",
        fontsize=9, color=INK,
    )  # fmt: skip
    for row, cluster in enumerate(shown):
        bottom = height - _HEAD - 0.28 - (row + 1) * _SIDE
        figure.add_artist(
            Rectangle(
                (0.1 / width, (bottom + _GAP / 2) / height), 0.1 / width, (_SIDE - _GAP) / height,
                color=cluster.colour, transform=figure.transFigure,
            )
        )  # fmt: skip
        words = cluster.summary.replace(" in ", "\nin ")
        figure.text(
            0.32 / width, (bottom + _SIDE / 2) / height, f"{cluster.name}\n{words}",
            va="center", fontsize=9, color=INK, linespacing=1.4,
        )  # fmt: skip
        cells = [(left + i * _SIDE, bottom) for i in range(n)]
        cells = [(x + gap * (i >= len(_SECTIONS)), y) for i, (x, y) in enumerate(cells)]
        _show_row(figure, cells[:3], _sections(cluster.average), bar=cluster.spacing * (row == 0))
        _show_row(figure, cells[3:], cluster.typical[:members])
    return figure


def draw_cluster(cluster: ClusterPictures, *, columns: int = 8) -> Figure:
    """Draw a cluster: sections of its average, its most typical members and the least typical ones.

    Parameters
    ----------
    cluster : ClusterPictures
    columns : int
        Members in a line.
    """
    lines = [
        (name if first == 0 else "", group[first : first + columns])
        for name, group in (("most typical", cluster.typical), ("borderline", cluster.borderline))
        for first in range(0, len(group), columns)
    ]
    large, mark = 2.0, 0.3
    width = mark + columns * _SIDE
    height = _HEAD + large + 0.3 + len(lines) * _SIDE + _GAP
    figure = Figure(figsize=(width, height), facecolor="white")
    figure.add_artist(
        Rectangle(
            (0.08 / width, (height - 0.3) / height), 0.16 / width, 0.16 / height,
            color=cluster.colour, transform=figure.transFigure,
        )
    )  # fmt: skip
    side = cluster.average.shape[-1] * cluster.spacing / 10
    text = f"{cluster.name} · {cluster.summary} · each picture is {side:.3g} nm wide"
    figure.text(mark / width, 1 - 0.12 / height, text, va="top", fontsize=10.5, color=INK)
    top = height - _HEAD - large
    cells = [(mark + i * large, top) for i in range(3)]
    _show_row(
        figure, cells, _sections(cluster.average), side=large, names=list(_SECTIONS),
        bar=cluster.spacing,
    )  # fmt: skip
    note = f"Average of {cluster.n_averaged}\nmembers as they lie,\nnot turned: round,\n"
    note += "and drawn out along z\nby the missing wedge."
    if cluster.turned:
        note = f"Average of {cluster.n_averaged}\nmembers in\n{cluster.turned},"
        note += "\nturned onto each other."
    figure.text(
        (mark + 3 * large + 0.1) / width, (top + large / 2) / height, note, va="center",
        fontsize=9, color=NEUTRAL, linespacing=1.4,
    )  # fmt: skip
    for line, (name, members) in enumerate(lines):
        bottom = top - 0.3 - (line + 1) * _SIDE
        if name:
            n_lines = 1 + sum(1 for other, _ in lines[line + 1 : line + 2] if not other)
            middle = bottom + _SIDE * (1 - n_lines / 2)
            figure.text(
                0.08 / width, middle / height, name, rotation=90, va="center", fontsize=9, color=INK
            )
        _show_row(figure, [(mark + i * _SIDE, bottom) for i in range(len(members))], members)
    return figure


def _write_number(axes: Axes, places: FloatArray, number: int) -> None:
    """Write a cluster's number above most of its places, so that it hides few of them."""
    x, y = np.median(places[:, 0]), np.percentile(places[:, 1], 95)
    axes.annotate(
        str(number), (float(x), float(y)), xytext=(0, 5), textcoords="offset points", ha="center",
        va="bottom", fontsize=12, weight="bold", color=INK, zorder=5,
        path_effects=[withStroke(linewidth=3, foreground="white")],
    )  # fmt: skip


def _sections(average: FloatArray) -> list[FloatArray]:
    return [np.take(average, n // 2, axis=i) for i, n in enumerate(average.shape)]


def _show_row(
    figure: Figure,
    cells: Sequence[tuple[float, float]],
    images: Sequence[FloatArray],
    *,
    side: float = _SIDE,
    names: Sequence[str] = (),
    bar: float = 0.0,
) -> None:
    """Show images of one grey scale in cells, places in inches; a scale bar in the first."""
    if not images:
        return
    low, high = contrast_range(np.concatenate([np.ravel(image) for image in images]))
    width, height = figure.get_size_inches()
    for number, ((x, y), image) in enumerate(zip(cells, images, strict=False)):
        inner = side - _GAP
        axes = figure.add_axes((x / width, (y + _GAP / 2) / height, inner / width, inner / height))
        axes.imshow(
            image, cmap="gray", vmin=low, vmax=high, origin="lower", interpolation="bicubic"
        )
        axes.set(xticks=[], yticks=[], facecolor="#e6eaee")
        for spine in axes.spines.values():
            spine.set(color=FAINT, linewidth=0.8)
        if names:
            axes.text(
                0.03, 0.97, names[number], transform=axes.transAxes, va="top", fontsize=9,
                color="white", path_effects=OUTLINE,
            )  # fmt: skip
        if bar and number == 0:
            _draw_bar(axes, image.shape[1], bar)


def _draw_bar(axes: Axes, n: int, spacing: float) -> None:
    length = scale_bar_length(1.6 * n * spacing)
    x, y, thick = n * 0.95 - length / spacing - 0.5, n * 0.06, n * 0.025
    axes.add_patch(
        Rectangle((x, y), length / spacing, thick, facecolor="white", edgecolor="black", lw=0.6)
    )
    axes.text(
        x + length / spacing / 2, y + 1.6 * thick, f"{length / 10:g} nm", ha="center", va="bottom",
        fontsize=8, color="white", path_effects=OUTLINE,
    )  # fmt: skip
