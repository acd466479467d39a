"""The page about simulated samples."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np

from tomoloc.io.samples import read_sample
from tomoloc.progress import progress
from tomoloc.report.page import Block, Note, Page, Picture, Section, Table, write_page
from tomoloc.report.scenes import THICKNESS, draw_scene
from tomoloc.types import Sample

__all__ = ["find_samples", "report_samples"]

logger = logging.getLogger(__name__)


def find_samples(folder: str | Path) -> list[Path]:
    """List the folders of samples in a folder, which may be one itself."""
    here = Path(folder)
    if _is_sample(here):
        return [here]
    if not here.is_dir():
        return []
    return sorted(path for path in here.iterdir() if _is_sample(path))


def report_samples(folder: str | Path, *, n_pictures: int = 20) -> Path:
    """Write report.html and pictures/ for a folder of samples, as `tomoloc simulate` writes them.

    Parameters
    ----------
    folder : path
        Of samples; of a single sample, the page is written beside it.
    n_pictures : int
        How many samples are shown.

    Returns
    -------
    Path
        Of the page.

    Raises
    ------
    ValueError, OSError
        If there are no samples, or nothing can be written. A damaged sample does not stop the
        page, which says so.
    """
    found = find_samples(folder)
    if not found:
        raise ValueError(f"{folder} holds no samples; give what tomoloc simulate wrote")
    shown = found[: max(n_pictures, 0)]
    sections = [_section(path) for path in progress(shown, "drawing samples")]
    if len(shown) < len(found):
        rest = Note(f"{len(found) - len(shown)} more samples are not shown.")
        sections.append(Section("More samples", [rest]))
    noun = "sample" if len(found) == 1 else "samples"
    page = Page(title=f"{len(found)} simulated {noun}", sections=sections)
    return write_page(page, found[0].parent if _is_sample(Path(folder)) else folder)


def _is_sample(folder: Path) -> bool:
    return all((folder / name).is_file() for name in ("tomogram.mrc", "labels.mrc", "labels.json"))


def _section(folder: Path) -> Section:
    try:
        sample = read_sample(folder)
    except (OSError, ValueError) as error:
        logger.warning("%s: not shown: %s", folder.name, error)
        return Section(folder.name, [Note(f"This sample cannot be read: {error}.", warning=True)])
    nz, ny, nx = sample.tomogram.shape
    spacing = sample.tomogram.voxel_spacing
    picture = Picture.of(
        draw_scene(sample),
        name=f"{folder.name}_scene",
        caption=f"Model from above at a slant, a slice of {max(THICKNESS, spacing):g} Å (protein"
        f" dark), and the atlas there; {nx} x {ny} x {nz} voxels of {spacing:g} Å (x y z).",
        wide=True,
    )
    blocks: list[Block] = [picture, _classes(sample)]
    fraction = sample.summary.get("volume_fraction")
    if isinstance(fraction, float):
        blocks.append(Note(f"Particles take {100 * fraction:.1f} % of the ice."))
    return Section(folder.name, blocks)


def _classes(sample: Sample) -> Table:
    """Count particles and voxels of each label."""
    labels = sample.labels
    voxels = np.bincount(
        [] if labels is None else np.asarray(labels.data).ravel(),
        minlength=max(sample.legend, default=0) + 1,
    )
    particles = np.asarray(sample.particles.label)
    rows = [
        [name, str(int((particles == name).sum()) or "-"), f"{voxels[value]:,}"]
        for value, name in sorted(sample.legend.items())
    ]
    return Table(["label", "particles", "voxels"], rows)
