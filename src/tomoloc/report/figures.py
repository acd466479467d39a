"""Figures of tomograms, picks and scores: arrays in, matplotlib figures out, no files.

Figures are made without pyplot, so that nothing global changes and nothing is left open.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.cm import ScalarMappable
from matplotlib.collections import PatchCollection
from matplotlib.colors import LinearSegmentedColormap, Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Circle, Rectangle
from matplotlib.patheffects import withStroke
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from tomoloc.types import Particles, Tomogram

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from tomoloc.evaluate import Result

__all__ = [
    "contrast_range",
    "cut_patch",
    "draw_circles",
    "draw_montage",
    "draw_precision_recall",
    "draw_scale_bar",
    "draw_score_histogram",
    "draw_slice",
    "draw_slices",
    "label_panel",
    "scale_bar_length",
]

FloatArray = NDArray[np.floating[Any]]

# Okabe and Ito's colours, told apart by all kinds of colour vision.
RIGHT, WRONG, MISSED, NEUTRAL = "#0072b2", "#d55e00", "#56b4e9", "#5b6770"
SERIES = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#5b6770")
INK, FAINT = "#1d2733", "#c9d1d9"
# Violet to yellow as plasma, without its dark end, which would drown in a grey slice.
SCORE_COLOURS = LinearSegmentedColormap.from_list(
    "score", ["#a855f7", "#f0468c", "#ff9838", "#ffee3d"]
)
OUTLINE = [withStroke(linewidth=2.2, foreground="black")]
PANEL = 7.2


def draw_slices(
    tomogram: Tomogram,
    particles: Particles,
    *,
    diameter: float,
    title: str = "",
    right: NDArray[np.bool_] | None = None,
    missed: FloatArray | None = None,
    thickness: float | None = None,
) -> Figure:
    """Draw the three central slices with a circle around each particle in them.

    A particle is in a slice if the slice cuts its sphere. Circles have the particle's diameter
    and the colour of its score. Slices are averaged over `thickness` and smoothed a little
    (Gaussian, sigma 1/24 of the diameter), for the eye alone.

    Parameters
    ----------
    tomogram : Tomogram
        Shown as it is, protein dark or light, between its percentiles.
    particles : Particles
        Picks of this tomogram.
    diameter : float
        Of the particles, in angstrom.
    title : str
        Above the picture.
    right : ndarray of bool, shape (n,), optional
        Where truth is known: wrong picks are drawn dotted.
    missed : ndarray, shape (k, 3), optional
        True particles that no pick found, xyz in angstrom: crosses.
    thickness : float, optional
        How much is averaged for contrast, in angstrom; a quarter of the diameter by default,
        from 3 to 15 voxels.
    """
    depth, height, width = tomogram.shape
    spacing = tomogram.voxel_spacing
    if thickness is None:
        thickness = float(np.clip(diameter / 4, 3 * spacing, 15 * spacing))
    scale = PANEL / max(width + depth, height + depth)
    gap, left, top, bottom, bar = 0.1, 0.1, 0.42, 0.34, 0.95
    total = (
        left + (width + depth) * scale + gap + bar,
        bottom + (height + depth) * scale + gap + top,
    )
    figure = Figure(figsize=total, facecolor="white")
    norm = _score_range(particles)
    # Plane, size on paper, place on paper: yz stands right of xy, xz lies below it.
    planes = (
        ((0, 1), (width, height), (left, bottom + depth * scale + gap)),
        ((0, 2), (width, depth), (left, bottom)),
        ((2, 1), (depth, height), (left + width * scale + gap, bottom + depth * scale + gap)),
    )
    for plane, (across, along), (x, y) in planes:
        place = (x / total[0], y / total[1], across * scale / total[0], along * scale / total[1])
        axes = figure.add_axes(place)
        draw_slice(axes, tomogram, plane, thickness=thickness, smoothing=diameter / 24)
        draw_circles(axes, tomogram, particles, plane, diameter / 2, norm, right)
        if missed is not None:
            _draw_missed(axes, tomogram, missed, plane, diameter / 2)
        label_panel(axes, "".join("xyz"[axis] for axis in sorted(plane)))
        if plane == (0, 1):
            draw_scale_bar(axes, tomogram)
    _title(figure, title, left / total[0], 1 - 0.1 / total[1])
    colour_bar_height = height * scale * 0.7
    if particles.score is not None and len(particles):
        axes = figure.add_axes(
            (
                (total[0] - bar + 0.2) / total[0],
                (bottom + depth * scale + gap + height * scale * 0.15) / total[1],
                0.14 / total[0],
                colour_bar_height / total[1],
            )
        )
        _draw_colour_bar(figure, axes, norm)
    _draw_legend(figure, right, missed, left / total[0], 0.06 / total[1])
    return figure


def _score_range(particles: Particles) -> Normalize:
    score = particles.score
    if score is None or len(score) == 0:
        return Normalize(0, 1)
    low, high = float(np.min(score)), float(np.max(score))
    return Normalize(low, high if high > low else low + 1e-6)


def draw_slice(
    axes: Axes, tomogram: Tomogram, plane: tuple[int, int], *, thickness: float, smoothing: float
) -> None:
    """Show the middle of the volume; rows are the second axis of the plane."""
    axis, spacing = 2 - _normal(plane), tomogram.voxel_spacing
    n = tomogram.shape[axis]
    middle, half = (n - 1) // 2, round(thickness / spacing / 2 - 0.5)
    block = [slice(None)] * 3
    block[axis] = slice(max(0, middle - half), min(n, middle + half + 1))
    image = np.asarray(tomogram.data[tuple(block)], dtype=np.float32).mean(axis=axis)
    image = gaussian_filter(image.T if plane == (2, 1) else image, smoothing / spacing)
    low, high = contrast_range(image)
    axes.imshow(image, cmap="gray", vmin=low, vmax=high, origin="lower", interpolation="bicubic")
    axes.set(xticks=[], yticks=[], xlim=(-0.5, image.shape[1] - 0.5))
    axes.set_ylim(-0.5, image.shape[0] - 0.5)
    for spine in axes.spines.values():
        spine.set_visible(False)


def contrast_range(image: FloatArray) -> tuple[float, float]:
    """Grey values to show as black and white: percentiles, so that gold does not decide."""
    known = image[np.isfinite(image)]
    if known.size == 0:
        return 0.0, 1.0
    low, high = np.percentile(known, [0.5, 99.5])
    return float(low), float(high if high > low else low + 1)


def _normal(plane: tuple[int, int]) -> int:
    return 3 - plane[0] - plane[1]


def _in_plane(
    tomogram: Tomogram, position: FloatArray, plane: tuple[int, int], reach: float
) -> tuple[FloatArray, NDArray[np.bool_]]:
    """Places on the picture (voxels) and which of them lie within `reach` of the slice."""
    normal = _normal(plane)
    middle = tomogram.origin[normal] + (tomogram.shape[2 - normal] - 1) // 2 * (
        tomogram.voxel_spacing
    )
    index = tomogram.to_index(position)[:, ::-1]
    return index[:, list(plane)], np.abs(position[:, normal] - middle) <= reach


def draw_circles(
    axes: Axes,
    tomogram: Tomogram,
    particles: Particles,
    plane: tuple[int, int],
    radius: float,
    norm: Normalize,
    right: NDArray[np.bool_] | None,
) -> None:
    """Draw the particles that the slice cuts, in the colours of their scores; wrong ones dotted."""
    places, near = _in_plane(tomogram, particles.position, plane, radius)
    score = np.ones(len(particles)) if particles.score is None else np.asarray(particles.score)
    solid = near if right is None else near & right
    for chosen, style in ((solid, "-"), (near & ~solid, (0, (1.2, 1.2)))):
        rows = np.flatnonzero(chosen)
        rows = rows[np.argsort(score[rows])]
        circles = [Circle(places[row], radius / tomogram.voxel_spacing) for row in rows]
        colours = SCORE_COLOURS(norm(score[rows])) if len(rows) else "none"
        axes.add_collection(
            PatchCollection(
                circles,
                facecolor="none",
                edgecolor=colours,
                linewidth=1.7,
                linestyle=style,
                path_effects=[withStroke(linewidth=2.9, foreground=(0, 0, 0, 0.55))],
            )
        )


def _draw_missed(
    axes: Axes, tomogram: Tomogram, missed: FloatArray, plane: tuple[int, int], reach: float
) -> None:
    places, near = _in_plane(tomogram, np.reshape(missed, (-1, 3)), plane, reach)
    for colour, width in (("black", 3.0), (MISSED, 1.8)):
        axes.plot(*places[near].T, "x", color=colour, markersize=6.5, markeredgewidth=width)


def label_panel(axes: Axes, text: str) -> None:
    """Write a few words into the upper left corner of a picture."""
    axes.text(
        0.012,
        0.985,
        text,
        transform=axes.transAxes,
        ha="left",
        va="top",
        fontsize=9,
        color="white",
        path_effects=OUTLINE,
    )


def scale_bar_length(extent: float) -> float:
    """Choose a round length near a fifth of `extent` (angstrom): 1, 2 or 5 times 10^k nm."""
    target = extent / 5
    power = 10.0 ** np.floor(np.log10(target))
    steps = np.array([1, 2, 5, 10]) * power
    return float(steps[steps <= target * (1 + 1e-9)][-1])


def draw_scale_bar(axes: Axes, tomogram: Tomogram) -> None:
    """Draw a bar of a round length into the lower right corner of a slice across z."""
    _, height, width = tomogram.shape
    length = scale_bar_length(width * tomogram.voxel_spacing)
    voxels = length / tomogram.voxel_spacing
    x, y = width * 0.96 - voxels, height * 0.045
    thick = max(height * 0.012, 0.5)
    axes.add_patch(Rectangle((x, y), voxels, thick, facecolor="white", edgecolor="black", lw=0.6))
    axes.text(
        x + voxels / 2,
        y + 1.6 * thick,
        f"{length / 10:g} nm",
        ha="center",
        va="bottom",
        fontsize=9,
        color="white",
        path_effects=OUTLINE,
    )


def _draw_colour_bar(figure: Figure, axes: Axes, norm: Normalize) -> None:
    bar = figure.colorbar(ScalarMappable(norm, SCORE_COLOURS), cax=axes)
    bar.outline.set_visible(False)
    axes.tick_params(labelsize=8, colors=INK, length=2)
    axes.set_title("score", fontsize=9, color=INK, loc="left", pad=6)


def _title(figure: Figure, title: str, x: float, y: float) -> None:
    if title:
        figure.text(x, y, title, ha="left", va="top", fontsize=10.5, color=INK)


def _draw_legend(
    figure: Figure,
    right: NDArray[np.bool_] | None,
    missed: FloatArray | None,
    x: float,
    y: float,
) -> None:
    if right is None:
        return
    entries = [
        Line2D([], [], color=NEUTRAL, lw=1.6, label="pick, right"),
        Line2D([], [], color=NEUTRAL, lw=1.6, ls=(0, (1.2, 1.2)), label="pick, wrong"),
    ]
    if missed is not None:
        entries.append(
            Line2D([], [], color=MISSED, marker="x", mew=1.6, ls="none", label="particle, missed")
        )
    figure.legend(
        handles=entries,
        loc="lower left",
        bbox_to_anchor=(x, y),
        borderaxespad=0,
        ncols=3,
        frameon=False,
        fontsize=8.5,
        labelcolor=INK,
        handlelength=1.6,
        columnspacing=1.6,
    )


def _plot(width: float = 4.6, height: float = 3.4) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, height), layout="constrained", facecolor="white")
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(NEUTRAL)
    axes.tick_params(labelsize=8.5, colors=INK)
    return figure, axes


def draw_score_histogram(
    scores: FloatArray,
    *,
    threshold: float | None = None,
    right: NDArray[np.bool_] | None = None,
    title: str = "",
) -> Figure:
    """Draw how many picks have which score, with the threshold that was set.

    Parameters
    ----------
    scores : ndarray, shape (n,)
        Of all picks.
    threshold : float, optional
        That was set.
    right : ndarray of bool, shape (n,), optional
        Which picks are right, where truth is known.
    title : str
        Above the plot.
    """
    figure, axes = _plot()
    scores = np.asarray(scores, dtype=float)
    if len(scores):
        n_bins = int(np.clip(np.sqrt(len(scores)) * 2, 8, 60))
        bins = np.histogram_bin_edges(scores, bins=n_bins).tolist()
        if right is None:
            axes.hist(scores, bins=bins, color=RIGHT, alpha=0.85)
        else:
            axes.hist(
                [scores[right], scores[~right]],
                bins=bins,
                stacked=True,
                color=[RIGHT, WRONG],
                label=[f"right ({right.sum()})", f"wrong ({(~right).sum()})"],
            )
    if threshold is not None and np.isfinite(threshold):
        axes.axvline(threshold, color=INK, lw=1.3, ls="--", label=f"threshold {threshold:.3g}")
    if axes.get_legend_handles_labels()[0]:
        figure.legend(
            loc="outside upper left", ncols=3, frameon=False, fontsize=8.5, labelcolor=INK
        )
    axes.set_xlabel("score", fontsize=9, color=INK)
    axes.set_ylabel("picks", fontsize=9, color=INK)
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_title(title, fontsize=10.5, color=INK, loc="left")
    return figure


def draw_precision_recall(results: Mapping[str, Result], *, title: str = "") -> Figure:
    """Draw precision over recall for each label, with the set and the best threshold.

    Parameters
    ----------
    results : mapping of str to Result
        By label, as `tomoloc.evaluate.Evaluation.labels`.
    title : str
        Above the plot.
    """
    figure, axes = _plot(4.6, 4.0)
    recall = np.linspace(0.001, 1, 300)
    for f1 in (0.2, 0.4, 0.6, 0.8):
        with np.errstate(divide="ignore"):
            precision = f1 * recall / (2 * recall - f1)
        shown = (precision > 0) & (precision <= 1)
        axes.plot(recall[shown], precision[shown], color=FAINT, lw=0.8, zorder=0)
        axes.text(1.01, f1 / (2 - f1), f"{f1:g}", fontsize=7, color=NEUTRAL, va="center")
    axes.text(1.01, 1.0, "F1", fontsize=7, color=NEUTRAL, va="center")
    shown_labels = [(name, r) for name, r in results.items() if r.chosen.n_truth]
    for index, (name, result) in enumerate(shown_labels):
        colour, curve = SERIES[index % len(SERIES)], result.curve
        axes.plot(
            curve.recall, curve.precision, color=colour, lw=1.8, label=name or "picks", zorder=2
        )
        for scores, marker in ((result.chosen, "o"), (result.best, "*")):
            axes.plot(
                scores.recall,
                scores.precision,
                marker,
                color=colour,
                markersize=7 if marker == "o" else 12,
                markeredgecolor="white",
                markeredgewidth=0.9,
                zorder=3,
                clip_on=False,
            )
    entries = axes.get_legend_handles_labels()[0] if len(shown_labels) > 1 else []
    alone = shown_labels[0][1] if len(shown_labels) == 1 else None
    for marker, size, name in (("o", 7, "chosen"), ("*", 11, "best")):
        value = f": F1 {getattr(alone, name).f1:.2f}" if alone else ""
        entries.append(
            Line2D(
                [],
                [],
                marker=marker,
                markersize=size,
                linestyle="none",
                color=SERIES[0] if alone else NEUTRAL,
                label=("set" if name == "chosen" else name) + " threshold" + value,
            )
        )
    axes.legend(
        handles=entries, frameon=False, fontsize=8.5, labelcolor=INK, loc="best", numpoints=1
    )
    axes.set(xlim=(0, 1), ylim=(0, 1.02))
    axes.set_xlabel("recall", fontsize=9, color=INK)
    axes.set_ylabel("precision", fontsize=9, color=INK)
    axes.set_title(title, fontsize=10.5, color=INK, loc="left")
    return figure


def draw_montage(
    tomogram: Tomogram,
    particles: Particles,
    *,
    diameter: float,
    right: NDArray[np.bool_] | None = None,
    columns: int = 8,
    rows: int = 2,
    title: str = "",
) -> Figure:
    """Draw the best picks and, below them, those nearest to the threshold, with their scores.

    Parameters
    ----------
    tomogram : Tomogram
        Patches are cut from it, averaged over a third of the diameter along z and smoothed.
    particles : Particles
        Picks of this tomogram.
    diameter : float
        Of the particles, in angstrom; patches are 1.6 times as wide.
    right : ndarray of bool, shape (n,), optional
        Which picks are right, where truth is known: the frame tells.
    columns, rows : int
        Patches in a row, and rows for each of the two groups.
    title : str
        Above the picture.
    """
    score = np.zeros(len(particles)) if particles.score is None else np.asarray(particles.score)
    order = np.argsort(-score, kind="stable")
    each = columns * rows
    split = min(each, -(-len(order) // 2))
    groups = {"best": order[:split], "borderline": order[split:][-each:]}
    lines = [
        (name if first == 0 else "", group[first : first + columns])
        for name, group in groups.items()
        for first in range(0, len(group), columns)
    ]
    side, label, top, mark = 1.0, 0.2, 0.4, 0.28
    width, height = mark + columns * side, top + max(len(lines), 1) * (side + label)
    figure = Figure(figsize=(width, height), facecolor="white")
    patches = {
        int(row): cut_patch(tomogram, particles.position[row], diameter)
        for _, members in lines
        for row in members
    }
    values = [patch[np.isfinite(patch)] for patch in patches.values()]
    low, high = contrast_range(np.concatenate(values)) if values else (0.0, 1.0)
    form = ".2f" if np.abs(score).max(initial=0) < 100 else ".3g"
    for line, (name, members) in enumerate(lines):
        bottom = height - top - (line + 1) * (side + label)
        if name:
            figure.text(
                0.06 / width,
                (bottom + label + side / 2) / height,
                name,
                rotation=90,
                va="center",
                fontsize=9,
                color=INK,
            )
        for column, row in enumerate(members):
            axes = figure.add_axes(
                (
                    (mark + column * side + 0.03) / width,
                    (bottom + label) / height,
                    (side - 0.06) / width,
                    (side - 0.06) / height,
                )
            )
            axes.imshow(
                patches[int(row)],
                cmap="gray",
                vmin=low,
                vmax=high,
                origin="lower",
                interpolation="bicubic",
            )
            axes.set(xticks=[], yticks=[], facecolor="#e6eaee")
            edge = FAINT if right is None else (RIGHT if right[row] else WRONG)
            for spine in axes.spines.values():
                spine.set(color=edge, linewidth=0.8 if right is None else 2.0)
            if particles.score is not None:
                axes.set_xlabel(format(score[row], form), fontsize=7.5, color=INK, labelpad=1.5)
    _title(figure, title, 0.06 / width, 1 - 0.08 / height)
    return figure


def cut_patch(tomogram: Tomogram, position: FloatArray, diameter: float) -> FloatArray:
    """Cut a square xy patch around a position as slices are drawn; NaN outside the tomogram."""
    spacing = tomogram.voxel_spacing
    half = max(3, round(0.8 * diameter / spacing))
    deep = max(0, round(diameter / spacing / 6))
    center = np.rint(tomogram.to_index(position)).astype(int)
    reach = np.array([deep, half, half])
    patch = np.full((2 * half + 1, 2 * half + 1), np.nan, dtype=np.float32)
    low = np.maximum(center - reach, 0)
    high = np.minimum(center + reach + 1, tomogram.shape)
    if (high <= low).any():
        return patch
    z, y, x = (slice(a, b) for a, b in zip(low, high, strict=True))
    block = np.asarray(tomogram.data[z, y, x], dtype=np.float32).mean(axis=0)
    block = gaussian_filter(block, diameter / 24 / spacing)
    start = low[1:] - (center - reach)[1:]
    patch[start[0] : start[0] + block.shape[0], start[1] : start[1] + block.shape[1]] = block
    return patch
