"""Pictures of simulated samples: model, image, slice and atlas side by side."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from numpy.typing import NDArray
from scipy import ndimage

from tomoloc.types import Sample, Tomogram

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["draw_scene", "label_colours", "shade_model"]

FloatArray = NDArray[np.floating[Any]]

THICKNESS = 30.0
"""Of the slice that is shown, in Å."""

_TITLE = 0.34  # inches above the panels
_SLANT = 35.0  # degrees from above
_BACKGROUND = (0.93, 0.95, 0.97)
_COLOURS = (
    "#4c9be8", "#f2a541", "#6cc070", "#e0637c", "#b18ae0", "#4fc3c0", "#f0d35b", "#d98cc0",
    "#8fb3d9", "#c9e07a", "#f28e62", "#7d8cf0", "#a3d9c3", "#e6b8a2", "#9fe3ef", "#c7a3ff",
)  # fmt: skip
# Of labels that mean the same in most recipes.
_USUAL = {
    "gold": "#ffd700", "carbon": "#6b6b6b", "contamination": "#dfefff", "microtubule": "#7ad27a",
    "actin": "#f07f6a", "cofilactin": "#f7c04a", "tmv": "#c58af0", "membrane": "#b9c7d8",
    "vesicle": "#b9c7d8", "tube": "#d0c2a8", "sheet": "#a9c4bd",
}  # fmt: skip
_COMPANY = "#8d97a3"  # of distractors


def draw_scene(sample: Sample, *, width: float = 16.0) -> Figure:
    """Draw a sample from above: its model, the image of least tilt, a slice and the atlas there.

    Parameters
    ----------
    sample : Sample
        With labels. Without images, their panel is left out.
    width : float
        Of the figure in inches.

    Raises
    ------
    ValueError
        If the sample has no labels.
    """
    if sample.labels is None:
        raise ValueError(f"sample {sample.tomogram.name} has no labels to draw")
    tomogram, labels = sample.tomogram, np.asarray(sample.labels.data)
    palette = label_colours(sample)
    middle = _fullest_slice(labels)
    panels = {"model": shade_model(labels, palette)}
    series = tomogram.tilt_series
    if series is not None and series.images is not None:
        least = int(np.argmin(np.abs(series.tilt_angles)))
        image = ndimage.gaussian_filter(np.asarray(series.images[least], np.float32), 0.7)
        panels[f"image at {round(float(series.tilt_angles[least]))}°"] = _stretch(image)
    panels["tomogram"] = _stretch(_mean_slice(tomogram, middle))
    panels["atlas"] = palette[labels[middle]]
    ny, nx = tomogram.shape[1:]
    share = 1 / len(panels)
    tall = width * share * ny / nx
    figure = Figure(figsize=(width, tall + _TITLE), facecolor="white")
    for column, (title, panel) in enumerate(panels.items()):
        axes = figure.add_axes((column * share + 0.001, 0, share - 0.002, tall / (tall + _TITLE)))
        smooth = "lanczos" if panel.ndim == 2 else "nearest"
        axes.imshow(
            panel, cmap="gray", vmin=0, vmax=1, origin="lower", interpolation=smooth, aspect="auto"
        )
        axes.set_axis_off()
        at = (column * share + 0.002, (tall + 0.06) / (tall + _TITLE))
        figure.text(*at, title, fontsize=13, color="#1d2733")
    _draw_scale_bar(axes, tomogram.voxel_spacing, nx)
    return figure


def label_colours(sample: Sample) -> FloatArray:
    """Colour of each label, shape (n labels + 1, 3); black is background, grey are distractors."""
    legend: Mapping[int, str] = sample.legend
    extra = sample.particles.extra
    roles = np.asarray(extra.get("tomolocRole", np.full(len(sample.particles), "target")))
    targets = set(np.asarray(sample.particles.label)[roles != "distractor"].tolist())
    company = set(np.asarray(sample.particles.label).tolist()) - targets
    # Where there is nothing else, distractors are told apart.
    grey = company if targets else set()
    palette = np.zeros((max(legend, default=0) + 1, 3))
    number = 0
    for value, name in sorted(legend.items()):
        if name in _USUAL or name in grey:
            palette[value] = to_rgb(_USUAL.get(name, _COMPANY))
        else:
            palette[value] = to_rgb(_COLOURS[number % len(_COLOURS)])
            number += 1
    return palette


def shade_model(labels: NDArray[np.integer[Any]], palette: FloatArray) -> FloatArray:
    """Look at labels from above at a slant, with light from the upper left.

    Parameters
    ----------
    labels : ndarray of int, shape (z, y, x)
    palette : ndarray, shape (n labels + 1, 3)
        Colour of each label.

    Returns
    -------
    ndarray, shape (y, x, 3)
        Red, green and blue from 0 to 1; row 0 is y = 0.
    """
    nz, ny, nx = labels.shape
    # The ray of each pixel comes down through the volume while it moves along y.
    steps = np.arange(0, nz, 0.5)
    moves = np.tan(np.deg2rad(_SLANT)) * (steps - nz / 2)
    depth, colour = np.full((ny, nx), np.inf), np.zeros((ny, nx, 3))
    rows, columns = np.mgrid[0:ny, 0:nx]
    open_ = np.ones((ny, nx), dtype=bool)
    for step, move in zip(steps, moves, strict=True):
        y = np.rint(rows + move).astype(int)
        inside = open_ & (y >= 0) & (y < ny)
        value = np.zeros((ny, nx), dtype=labels.dtype)
        value[inside] = labels[int(nz - 1 - step), y[inside], columns[inside]]
        hit = value > 0
        depth[hit] = step
        colour[hit] = palette[value[hit]]
        open_ &= ~hit
        if not open_.any():
            break
    return _light(depth, colour)


def _light(depth: FloatArray, colour: FloatArray) -> FloatArray:
    """Shade surfaces by their slope, by how deep they lie and by what stands around them."""
    picture = np.ones((*depth.shape, 3)) * np.array(_BACKGROUND)
    seen = np.isfinite(depth)
    if not seen.any():
        return picture
    far = max(float(depth[seen].max()), 1.0) * 1.15
    filled = np.where(seen, depth, far)
    smooth = ndimage.gaussian_filter(filled, 0.8)
    along_y, along_x = np.gradient(smooth)
    normal = np.stack([along_x, along_y, np.ones_like(along_x)], -1)
    normal /= np.linalg.norm(normal, axis=-1, keepdims=True)
    diffuse = np.clip(normal @ np.array([-0.45, 0.45, 0.77]), 0, 1)
    hollow = np.clip(smooth - ndimage.gaussian_filter(filled, 6), 0, None)
    shade = (0.35 + 0.65 * diffuse) * np.exp(-hollow / 12) * (1 - 0.35 * filled / far)
    picture[seen] = np.clip(colour[seen] * shade[seen, None] * 1.25, 0, 1)
    return picture


def _fullest_slice(labels: NDArray[np.integer[Any]]) -> int:
    """Slice of the middle third with most labelled voxels."""
    third = len(labels) // 3
    filled = (labels[third : len(labels) - third] > 0).mean(axis=(1, 2))
    return third + int(np.argmax(filled))


def _mean_slice(tomogram: Tomogram, middle: int) -> FloatArray:
    half = int(THICKNESS / tomogram.voxel_spacing / 2)
    slices = tomogram.data[max(middle - half, 0) : middle + half + 1]
    return np.asarray(slices, dtype=np.float32).mean(axis=0)


def _stretch(image: FloatArray) -> FloatArray:
    """Bring an image to 0..1 between percentiles."""
    low, high = np.percentile(image, [0.5, 99.5])
    return np.clip((image - low) / max(high - low, 1e-9), 0, 1)


def _draw_scale_bar(axes: Axes, voxel_spacing: float, n_voxels: int) -> None:
    """Draw a bar of a round number of nanometres, about a fifth of the width."""
    whole = n_voxels * voxel_spacing / 10
    length = max([nm for nm in (1, 2, 5, 10, 20, 50, 100, 200) if nm < whole / 3.5], default=1)
    edge = n_voxels / 30
    end = edge + 10 * length / voxel_spacing
    axes.plot([edge, end], [edge, edge], color="white", linewidth=4, solid_capstyle="butt")
    axes.text(
        edge, 1.4 * edge, f"{length} nm", color="white", fontsize=13, weight="bold",
        path_effects=[withStroke(linewidth=2.5, foreground="black")],
    )  # fmt: skip
