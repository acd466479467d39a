"""`tomoloc report`: look at picks, or at simulated samples."""

from __future__ import annotations

import sys
from pathlib import Path

__all__ = ["report"]


def report(
    folder: Path,
    /,
    *,
    truth: Path | None = None,
    radius: float | None = None,
    diameter: float | None = None,
    pictures: int = 20,
) -> None:
    """Make a page of pictures and scores from a folder of picks, or of simulated samples.

    Writes FOLDER/report.html, which needs no other file, and FOLDER/pictures, and prints the
    page's path.

    Parameters
    ----------
    folder
        Folder that tomoloc pick or tomoloc simulate wrote.
    truth
        Particle file or folder to score against; by default particles.star beside the
        tomograms, where there is one.
    radius
        Largest distance of a match in Å; half the diameter by default.
    diameter
        Of the particles in Å; that of the run by default.
    pictures
        How many tomograms are shown; all picks are counted.
    """
    from tomoloc.progress import show_progress
    from tomoloc.report.picks import report_picks
    from tomoloc.report.samples import find_samples, report_samples

    for name, value in (("--radius", radius), ("--diameter", diameter)):
        if value is not None and not value > 0:
            raise ValueError(f"{name} must be positive (angstrom); got {value}")
    with show_progress(sys.stderr.isatty()):
        if find_samples(folder):
            page = report_samples(folder, n_pictures=pictures)
        else:
            page = report_picks(
                folder, truth=truth, radius=radius, diameter=diameter, n_pictures=pictures
            )
    sys.stdout.write(f"{page}\n")
