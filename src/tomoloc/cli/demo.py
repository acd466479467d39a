"""`tomoloc demo`: simulate, pick, evaluate and look, without any data."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

__all__ = ["demo"]

logger = logging.getLogger(__name__)


def demo(
    *,
    output: Annotated[Path, Parameter(name=["--output", "-o"])] = Path("demo"),
) -> int:
    """Simulate a tomogram, find its particles, score them and make a page to look at.

    Works offline and needs no data. The same steps as commands are printed on the way.

    Parameters
    ----------
    output
        Folder for everything; what is there from an earlier demo is replaced.
    """
    from tomoloc.cli.main import main

    sample = output / "simulated" / "demo_000"
    picks = output / "picks"
    steps = [
        ["simulate", "demo", "-o", str(output / "simulated"), "--overwrite"],
        [
            *("pick", "template", str(sample / "tomogram.mrc"), "-o", str(picks)),
            *(
                "--template",
                "builtin:4",
                "--label",
                "disc",
                "--symmetry",
                "C4",
                "--angular-step",
                "18",
                "--overwrite",
            ),
        ],
        [
            *("evaluate", str(picks / "tomogram.star"), str(sample / "particles.star")),
            *("--radius", "50", "--json", str(output / "scores.json")),
        ],
        ["report", str(picks)],
    ]
    for step in steps:
        logger.info("\ntomoloc %s", " ".join(step))
        code = main(step)
        if code:
            return code
    return 0
