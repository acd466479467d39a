"""The `tomoloc` command: one verb a module, loaded when it is used."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from cyclopts import App, CoercionError, CycloptsError, MissingArgumentError, UnusedCliTokensError

from tomoloc import __version__

__all__ = ["app", "main"]

VERBS = {  # in the order of work
    "demo": "Simulate, pick, evaluate and look, without any data.",
    "simulate": "Make tomograms with a perfect truth.",
    "train": "Teach a network from samples.",
    "denoise": "Denoise tomograms.",
    "pick": "Find particles in tomograms.",
    "embed": "Compute what a network makes of each place of a tomogram.",
    "cluster": "Sort embedded particles into kinds, without any example.",
    "search": "Find more of a kind in all embedded tomograms.",
    "evaluate": "Score picks against truth.",
    "report": "Make a page of pictures and scores from a folder of picks.",
    "convert": "Convert a list of particles to what another program reads.",
    "info": "Say what a file is and what it lacks.",
}
INTERRUPTED, BROKEN_PIPE = 130, 141  # 128 and the signal's number, as shells have it

app = App(
    name="tomoloc",
    help="Locate macromolecules in cryo-electron tomograms.",
    version=__version__,
    version_flags=["--version"],
    suppress_keyboard_interrupt=False,
)
for _order, (_verb, _summary) in enumerate(VERBS.items()):
    app.command(f"tomoloc.cli.{_verb}:{_verb}", name=_verb, help=_summary, sort_key=_order)


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
    # Threads that spin while they wait slow each other down where cores are shared. OpenMP reads
    # this when torch or numba load it, which is later.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    _set_up_log()
    words = _name_method(list(sys.argv[1:] if arguments is None else arguments))
    try:
        with _help_of(words[0] if words else ""):
            result = app(
                words, exit_on_error=False, print_error=False, result_action="return_value"
            )
        sys.stdout.flush()
    except CycloptsError as error:
        return _complain(_wrong_use(error))
    except KeyboardInterrupt:
        return _complain("interrupted; what is finished is kept", code=INTERRUPTED)
    except BrokenPipeError:
        _silence_stdout()
        return BROKEN_PIPE
    except (ValueError, OSError, MemoryError) as error:
        if os.environ.get("TOMOLOC_DEBUG"):
            raise
        return _complain(describe_error(error))
    return result if isinstance(result, int) else 0


def _name_method(words: list[str]) -> list[str]:
    """Let a model's folder stand for the method that uses it: `tomoloc pick FOLDER ...`."""
    if words[:1] != ["pick"] or len(words) < 2:
        return words
    config = Path(words[1]) / "config.toml"
    if not config.is_file():
        return words
    # Whatever is wrong with the file, the reader of models will say so.
    text = config.read_text("utf-8", errors="replace")
    methods = {"HeatNetwork": "centroid", "SegmentationNetwork": "segmentation"}
    method = next((name for kind, name in methods.items() if kind in text), "embedding")
    return ["pick", method, *words[2:], "--model", words[1]]


@contextmanager
def _help_of(verb: str) -> Iterator[None]:
    """Let a verb's own help be its docstring; the line in `VERBS` is for the list of verbs."""
    command = app[verb] if verb in VERBS else None
    if command is None or command.default_command is None:
        yield
        return
    command.help = None
    try:
        yield
    finally:
        command.help = VERBS[verb]


def describe_error(error: Exception) -> str:
    """Say in one line what went wrong."""
    if isinstance(error, OSError) and error.strerror:
        text = f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    elif isinstance(error, MemoryError):
        text = f"not enough memory: {error}" if str(error) else "not enough memory"
    else:
        text = str(error) or type(error).__name__
    return " ".join(text.split())


def _wrong_use(error: CycloptsError) -> str:
    """Say in one line which words were wrong, and where to read on."""
    command = " ".join(["tomoloc", *(error.command_chain or ())])
    argument = error.argument.name if error.argument else ""
    text = " ".join(str(error).split())
    if isinstance(error, UnusedCliTokensError):
        text = f"unexpected words: {' '.join(error.unused_tokens or ())}"
    elif isinstance(error, CoercionError) and error.token and error.target_type in {int, float}:
        kind = "a number" if error.target_type is float else "a whole number"
        name = error.token.keyword or argument
        text = f"{name} needs {kind}; got {error.token.value!r}"
    elif isinstance(error, MissingArgumentError) and error.argument:
        n = error.argument.token_count()[0]
        values = "a value" if n == 1 else f"{n} values"
        given = error.keyword or error.argument.tokens
        text = f"{error.keyword or argument} needs {values}" if given else f"{argument} is missing"
    return f"{text.rstrip('.')} (see {command} --help)"


def _complain(message: str, *, code: int = 2) -> int:
    sys.stderr.write(f"tomoloc: {message}\n")
    return code


def _silence_stdout() -> None:
    """Let Python's last flush go nowhere when the reader of a pipe has left."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


class _StderrHandler(logging.Handler):
    """Write each event as a line to what is stderr at that time; a progress bar replaces it."""

    def emit(self, record: logging.LogRecord) -> None:
        sys.stderr.write(f"{self.format(record)}\n")


def _set_up_log() -> None:
    """Send the package's log to stderr, one short line for each event."""
    logger = logging.getLogger("tomoloc")
    if not logger.handlers:
        logger.addHandler(_StderrHandler())
    logger.setLevel(logging.INFO)
