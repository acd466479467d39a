"""Write docs/gallery.md and its pictures: one sample of each shipped recipe.

python docs/make_gallery.py [RECIPE...] [--seed S]
"""

from __future__ import annotations

import argparse
from pathlib import Path
from time import perf_counter

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from numpy.typing import NDArray
from scipy import ndimage

from tomoloc.simulate.recipe import shipped_recipes
from tomoloc.simulate.scene import Simulator, numbered_recipes
from tomoloc.types import Sample

DOCS = Path(__file__).parent
PAGE = DOCS / "gallery.md"
COLOURS = (
    "#4c9be8", "#f2a541", "#6cc070", "#e0637c", "#b18ae0", "#4fc3c0", "#f0d35b", "#d98cc0",
    "#8fb3d9", "#c9e07a", "#f28e62", "#7d8cf0", "#a3d9c3", "#e6b8a2", "#9fe3ef", "#c7a3ff",
)  # fmt: skip
FIXED = {
    "gold": "#ffd700", "carbon": "#6b6b6b", "contamination": "#dfefff", "microtubule": "#7ad27a",
    "actin": "#f07f6a", "cofilactin": "#f7c04a", "tmv": "#c58af0", "membrane": "#b9c7d8",
    "vesicle": "#b9c7d8", "tube": "#d0c2a8", "sheet": "#a9c4bd", "distractor": "#8d97a3",
    "crowd": "#8d97a3", "cytosolic": "#8d97a3", "small": "#8d97a3", "complex": "#8d97a3",
}  # fmt: skip
INTRODUCTION = """\
# Gallery of recipes

One sample of each recipe that comes with tomoloc: the model seen from above at a slant, the image
without tilt, a slice through the tomogram (protein dark, mean of {thickness}), and the atlas
there. Made by `python docs/make_gallery.py`; every picture can be made again with
`tomoloc simulate NAME --seed {seed} -o DIR`.

"""
THICKNESS = 30.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("recipes", nargs="*", help="all by default")
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    recipes = shipped_recipes()
    (DOCS / "images").mkdir(exist_ok=True)
    for name in arguments.recipes or recipes:
        start = perf_counter()
        simulator = Simulator(recipes[name])
        plan = numbered_recipes(recipes[name], number=1, seed=arguments.seed)[0]
        sample = simulator.render(simulator.draw_resolved(plan))
        seconds = perf_counter() - start
        figure = draw_sample(sample)
        path = DOCS / "images" / f"recipe-{name}.jpg"
        figure.savefig(path, dpi=100, pil_kwargs={"quality": 85})
        print(f"{path} {path.stat().st_size // 1024} KB; {seconds:.1f} s to simulate")
    text = INTRODUCTION.format(thickness=f"{THICKNESS:g} Å", seed=arguments.seed)
    for name, recipe in recipes.items():
        text += f"## {name}\n\n{recipe.description}.\n\n![{name}](images/recipe-{name}.jpg)\n\n"
    PAGE.write_text(text.rstrip() + "\n", "utf-8")


def draw_sample(sample: Sample) -> Figure:
    """Draw model, tilt image, slice and atlas side by side."""
    tomogram, series = sample.tomogram, sample.tomogram.tilt_series
    palette = make_palette(sample.legend)
    middle = best_slice(sample.labels.data)
    half = max(int(THICKNESS / tomogram.voxel_spacing / 2), 0)
    mean = tomogram.data[middle - half : middle + half + 1].mean(axis=0)
    untilted = int(np.argmin(np.abs(series.tilt_angles)))
    image = ndimage.gaussian_filter(np.asarray(series.images[untilted], np.float32), 0.7)
    panels = {
        "model": shade_model(sample.labels.data, palette),
        f"image at {series.tilt_angles[untilted]:.0f}°": stretch(image),
        "tomogram": stretch(mean),
        "atlas": palette[sample.labels.data[middle]],
    }
    ny, nx = tomogram.shape[1:]
    figure = Figure(figsize=(16, 16 / 4 * ny / nx + 0.34), facecolor="white")
    for column, (title, panel) in enumerate(panels.items()):
        height = 4 * ny / nx / (4 * ny / nx + 0.34)
        axes = figure.add_axes((column / 4 + 0.001, 0, 0.248, height))
        axes.imshow(panel, cmap="gray", vmin=0, vmax=1, origin="lower", interpolation="lanczos"
                    if column in (1, 2) else "nearest", aspect="auto")  # fmt: skip
        axes.set_axis_off()
        figure.text(column / 4 + 0.002, height + 0.012, title, fontsize=13, color="#1d2733")
    draw_scale_bar(axes, tomogram.voxel_spacing, nx)
    return figure


def draw_scale_bar(axes: Axes, voxel_spacing: float, n_voxels: int) -> None:
    """Draw a bar of about a fifth of the width: 10, 20, 50 or 100 nm."""
    length = max(nm for nm in (10, 20, 50, 100) if 10 * nm < n_voxels * voxel_spacing / 3.5)
    edge = n_voxels / 30
    end = edge + 10 * length / voxel_spacing
    axes.plot([edge, end], [edge, edge], color="white", linewidth=4, solid_capstyle="butt")
    axes.text(edge, 1.4 * edge, f"{length} nm", color="white", fontsize=13, weight="bold",
              path_effects=[withStroke(linewidth=2.5, foreground="black")])  # fmt: skip


def make_palette(legend: dict[int, str] | object) -> NDArray[np.float64]:
    """One colour for each label, black for background."""
    names = dict(legend)  # type: ignore[call-overload]
    palette = np.zeros((max(names, default=0) + 1, 3))
    free = iter(COLOURS * (len(names) // len(COLOURS) + 1))
    for value, name in names.items():
        palette[value] = to_rgb(FIXED[name] if name in FIXED else next(free))
    return palette


def best_slice(labels: NDArray[np.integer]) -> int:
    """Slice of the middle third with most labelled voxels."""
    n = len(labels)
    filled = (labels > 0).mean(axis=(1, 2))
    return n // 3 + int(np.argmax(filled[n // 3 : n - n // 3]))


def stretch(image: NDArray[np.floating]) -> NDArray[np.floating]:
    """Bring an image to 0..1 between percentiles."""
    low, high = np.percentile(image, [0.5, 99.5])
    return np.clip((image - low) / max(high - low, 1e-9), 0, 1)


def shade_model(labels: NDArray[np.integer], palette: NDArray[np.float64]) -> NDArray[np.float64]:
    """Look at the labels from above at a slant, with light from the upper left."""
    nz, ny, nx = labels.shape
    slant = np.deg2rad(35)
    # Each pixel's ray comes down through the volume while it moves along y.
    steps = np.arange(0, nz, 0.5)
    drift = np.tan(slant) * (steps - nz / 2)
    depth = np.full((ny, nx), np.inf)
    colour = np.zeros((ny, nx, 3))
    rows, columns = np.mgrid[0:ny, 0:nx]
    open_ = np.ones((ny, nx), dtype=bool)
    for step, move in zip(steps, drift, strict=True):
        z = int(nz - 1 - step)
        y = np.rint(rows + move).astype(int)
        inside = open_ & (y >= 0) & (y < ny)
        value = np.zeros((ny, nx), dtype=labels.dtype)
        value[inside] = labels[z, y[inside], columns[inside]]
        hit = value > 0
        depth[hit] = step
        colour[hit] = palette[value[hit]]
        open_ &= ~hit
        if not open_.any():
            break
    return light(depth, colour)


def light(depth: NDArray[np.float64], colour: NDArray[np.float64]) -> NDArray[np.float64]:
    """Shade surfaces by their slope, by how deep they lie and by what stands around them."""
    seen = np.isfinite(depth)
    if not seen.any():
        return np.ones((*depth.shape, 3))
    far = depth[seen].max()
    filled = np.where(seen, depth, far * 1.15)
    smooth = ndimage.gaussian_filter(filled, 0.8)
    gy, gx = np.gradient(smooth)
    normal = np.stack([gx, gy, np.ones_like(gx)], -1)
    normal /= np.linalg.norm(normal, axis=-1, keepdims=True)
    diffuse = np.clip(normal @ np.array([-0.45, 0.45, 0.77]), 0, 1)
    hollow = np.clip(smooth - ndimage.gaussian_filter(filled, 6), 0, None)
    shade = (0.35 + 0.65 * diffuse) * np.exp(-hollow / 12) * (1 - 0.35 * filled / (far * 1.15))
    picture = np.ones((*depth.shape, 3)) * np.array([0.93, 0.95, 0.97])
    picture[seen] = np.clip(colour[seen] * shade[seen, None] * 1.25, 0, 1)
    return picture


if __name__ == "__main__":
    main()
