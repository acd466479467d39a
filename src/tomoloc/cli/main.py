"""The `tomoloc` command: one verb a module, loaded when it is used."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Sequence

from cyclopts import App, CycloptsError

from tomoloc import __version__

__all__ = ["app", "main"]

app = App(
    name="tomoloc",
    help="Locate macromolecules in cryo-electron tomograms.",
    version=__version__,
    version_flags=["--version"],
)
for _verb in ("demo", "simulate", "pick", "evaluate", "report", "convert", "info"):
    app.command(f"tomoloc.cli.{_verb}:{_verb}", name=_verb)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; log and errors go to stderr, data to stdout.

    Parameters
    ----------
    arguments : sequence of str, optional
        Words after `tomoloc`; those of the process by default.

    Returns
    -------
    int
        0 for success, 1 where some of the work failed, 2 for wrong use or input. The console
        script exits with it.
    """
    _set_up_log()
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        result = app(words, exit_on_error=False, print_error=False, result_action="return_value")
    except CycloptsError as error:
        return _complain(" ".join(str(error).split()), hint=True)
    except KeyboardInterrupt:
        return _complain("interrupted; what is finished is kept", code=130)
    except (ValueError, OSError) as error:
        if os.environ.get("TOMOLOC_DEBUG"):
            raise
        return _complain(" ".join(str(error).split()))
    return result if isinstance(result, int) else 0


def _complain(message: str, *, hint: bool = False, code: int = 2) -> int:
    tail = " (see tomoloc --help)" if hint else ""
    sys.stderr.write(f"tomoloc: {message}{tail}\n")
    return code


def _set_up_log() -> None:
    """Send the package's log to stderr, one short line for each event."""
    logger = logging.getLogger("tomoloc")
    if not logger.handlers:
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("%(message)s"))
        logger.addHandler(handler)
    logger.setLevel(logging.INFO)
