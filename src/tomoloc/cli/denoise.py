"""The verb `denoise`."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

__all__ = ["denoise"]


def denoise(
    *tomograms: Path,
    output: Annotated[Path, Parameter(name=["--output", "-o"])],
    method: Literal["diffusion", "gaussian", "median"] = "diffusion",
    sigma: float | None = None,
    iterations: int = 10,
    voxel_spacing: float | None = None,
    overwrite: Annotated[bool, Parameter(negative="")] = False,
) -> int:
    """Denoise tomograms, for looking at them, or for methods that want it.

    Diffusion smooths along edges and not across them, as TomoEED does. The networks of tomoloc
    have learned from plain tomograms: pick in those. The path of each result is printed.

    Parameters
    ----------
    tomograms
        MRC (.mrc .rec .map .st .ali .mrc.gz), OME-Zarr, NumPy or TIFF files.
    output
        Folder for the results, NAME.mrc.
    method
        diffusion, gaussian or median (of 3 x 3 x 3 voxels).
    sigma
        In Å: of the Gaussian, or of the blur under which diffusion looks for edges; a voxel by
        default.
    iterations
        Steps of the diffusion: more smooth more.
    voxel_spacing
        Voxel size in Å, where a file does not state it or states it wrong.
    overwrite
        Replace results that are there.
    """
    from tomoloc.atomic import check_writable, writing
    from tomoloc.cli.runs import name_outputs, run_each
    from tomoloc.features.denoise import denoise as denoise_volume
    from tomoloc.io.checks import check_tomogram
    from tomoloc.io.tomograms import read_tomogram, write_volume
    from tomoloc.progress import show_progress

    if not tomograms:
        raise ValueError("denoise needs at least one tomogram")
    names = name_outputs(tomograms, ending=".mrc")
    check_writable(output)

    def work(number: int) -> Path:
        path, result = tomograms[number], output / f"{names[number]}.mrc"
        if result.resolve() == path.resolve():
            raise ValueError(f"{path} is read and may not be written to; give another -o")
        if result.exists() and not overwrite:
            raise ValueError(f"{result} is there already; give another -o, or --overwrite")
        tomogram = read_tomogram(path, voxel_spacing=voxel_spacing)
        check_tomogram(replace(tomogram, name=str(path)))
        with writing(result) as draft:
            write_volume(
                denoise_volume(tomogram, method, sigma=sigma, iterations=iterations), draft
            )
        return result

    with show_progress(sys.stderr.isatty()):
        return run_each(tomograms, work)
