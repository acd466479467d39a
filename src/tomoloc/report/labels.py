"""Figure of the picks of several labels, or of several methods, side by side."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from tomoloc.report.figures import (
    draw_circles,
    draw_scale_bar,
    draw_slice,
    label_panel,
)
from tomoloc.types import Particles, Tomogram

__all__ = ["MOST_LABELS", "draw_labels"]

MOST_LABELS = 24
"""Labels with the most picks, which are drawn."""
_COLUMNS = 4


def draw_labels(
    tomogram: Tomogram, particles: Particles, *, diameters: Mapping[str, float], title: str = ""
) -> Figure:
    """Draw the central slice once for each label, with a circle around each of its particles.

    Parameters
    ----------
    tomogram : Tomogram
        Shown as it is.
    particles : Particles
        Picks of this tomogram. Of many labels, the 24 with the most picks are drawn.
    diameters : mapping of str to float
        Of the particles of each label, in angstrom.
    title : str
        Above the picture.

    Returns
    -------
    Figure
        Panels in the alphabetical order of labels.
    """
    label = np.asarray(particles.label)
    counts = {name: int(np.count_nonzero(label == name)) for name in particles.labels}
    shown = sorted(counts, key=lambda name: -counts[name])[:MOST_LABELS]
    shown = [name for name in counts if name in shown]
    columns = min(_COLUMNS, max(len(shown), 1))
    rows = -(-max(len(shown), 1) // columns)
    _, height, width = tomogram.shape
    side = 14.0 / columns
    figure = Figure(
        figsize=(14.0, rows * (side * height / width + 0.3) + 0.4),
        facecolor="white",
        layout="constrained",
    )
    figure.suptitle(title, fontsize=11)
    score = np.ones(len(particles)) if particles.score is None else np.asarray(particles.score)
    norm = Normalize(*((score.min(), score.max() + 1e-6) if len(score) else (0, 1)))
    diameter = float(np.median([diameters[name] for name in shown])) if shown else 0.0
    thickness = float(
        np.clip(diameter / 4, 3 * tomogram.voxel_spacing, 15 * tomogram.voxel_spacing)
    )
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes, name in zip(panels, shown, strict=False):
        own = particles[label == name]
        draw_slice(axes, tomogram, (0, 1), thickness=thickness, smoothing=diameter / 24)
        draw_circles(axes, tomogram, own, (0, 1), diameters[name] / 2, norm, None)
        label_panel(axes, f"{name or 'particle'}: {len(own)}")
    for axes in panels[len(shown) :]:
        axes.set_axis_off()
    if shown:
        draw_scale_bar(panels[0], tomogram)
    return figure
