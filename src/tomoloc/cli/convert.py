"""`tomoloc convert`: particles from one program to another."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from tomoloc.io.tables import DIALECTS, read_table, write_particles

__all__ = ["convert"]

logger = logging.getLogger(__name__)

VOLUMES = (".mrc", ".rec", ".map", ".st", ".ali", ".gz", ".zarr", ".tif", ".tiff", ".npy", ".npz")


def convert(
    picks: Path,
    out: Path,
    /,
    *,
    to: Annotated[str, Parameter(help=f"Format to write: {', '.join(DIALECTS)}.")],
    from_: Annotated[str | None, Parameter(name="--from")] = None,
    voxel_spacing: float | None = None,
    tomogram_size: Annotated[tuple[int, int, int] | None, Parameter(negative="")] = None,
    tomogram: str | None = None,
    output_spacing: float | None = None,
    center: str = "half",
    box_size: int | None = None,
    overwrite: Annotated[bool, Parameter(negative="")] = False,
) -> None:
    """Convert a list of particles to what another program reads.

    What the other format cannot hold, such as labels or scores, is left out, and a line says so.

    Parameters
    ----------
    picks
        File of particles, folder of such files, or RELION optimisation set.
    out
        File to write. A folder, where the format takes a file for each tomogram and there are
        several.
    from_
        Format of PICKS; found from its name and content by default.
    voxel_spacing
        Voxel size (angstrom) of the tomogram that the particles were picked in.
    tomogram_size
        Number of voxels of that tomogram along x, y and z.
    tomogram
        The tomogram itself, for its size, voxel size and name; or just its name.
    output_spacing
        Voxel size (angstrom) that written voxel coordinates refer to, such as that of the unbinned
        tilt series for RELION 4; that of the tomogram by default.
    center
        Where RELION 5 coordinates count from: half (N/2) or picker (N/2 - 1 unbinned voxels).
    box_size
        Edge of boxes in voxels, for formats of boxes.
    overwrite
        Replace OUT if it exists.
    """
    shape = (
        None if tomogram_size is None else (tomogram_size[2], tomogram_size[1], tomogram_size[0])
    )
    if tomogram is not None and _is_file(tomogram):
        from tomoloc.io.tomograms import read_tomogram

        volume = read_tomogram(Path(tomogram), voxel_spacing=voxel_spacing)
        shape, voxel_spacing, tomogram = shape or volume.shape, volume.voxel_spacing, volume.name
    table = read_table(
        picks,
        dialect=from_,
        voxel_spacing=voxel_spacing,
        shape=shape,
        tomogram=tomogram,
        center=center,
    )
    write_particles(
        table.particles,
        out,
        dialect=to,
        frames=table.frames,
        overwrite=overwrite,
        voxel_spacing=output_spacing,
        center=center,
        box_size=box_size,
    )
    logger.info("%s: %d particles, %s to %s", out, len(table.particles), table.dialect, to)


def _is_file(tomogram: str) -> bool:
    """Tell a file from the name of a tomogram; a file that is not there is an error, not a name."""
    path = Path(tomogram)
    return path.exists() or path.suffix.lower() in VOLUMES or len(path.parts) > 1
