"""Runs over many tomograms, and their records (.run.toml): what made a file, how to repeat it."""

from __future__ import annotations

import logging
import sys
import tomllib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from cyclopts import App, ArgumentCollection, Token
from cyclopts.config import Dict

from tomoloc.cli.main import describe_error
from tomoloc.io.star import check_text
from tomoloc.io.stored import volume_name

__all__ = [
    "is_done",
    "name_outputs",
    "peak_memory_gib",
    "read_record",
    "repeat_run",
    "run_each",
]

logger = logging.getLogger(__name__)

SECTIONS = ("tomoloc", "method", "parameters", "inputs", "results")
RIVALS = {
    "tilt-range": ("tilt-file",),
    "tilt-file": ("tilt-range",),
    "reference": ("targets",),
    "targets": ("reference", "reference-tomogram"),
}
"""Options of a record that one on the command line takes the place of, besides its own."""


def name_outputs(tomograms: Sequence[Path], *, ending: str) -> list[str]:
    """Name outputs after their tomograms, and after the folders where those are all alike.

    Parameters
    ----------
    tomograms : sequence of Path
    ending : str
        Of the outputs, for the message.

    Raises
    ------
    ValueError
        If two would have the same name, or a table could not hold one.
    """
    stems = [volume_name(path) for path in tomograms]
    counts = Counter(stems)
    names = [
        stem if counts[stem] == 1 else path.resolve().parent.name
        for stem, path in zip(stems, tomograms, strict=True)
    ]
    check_text(names)
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise ValueError(
            f"several tomograms would be written as {twice[0]}{ending}; give them separate folders"
        )
    return names


def run_each(tomograms: Sequence[Path], work: Callable[[int], Path]) -> int:
    """Do the same with each tomogram; one that fails does not stop the others.

    Parameters
    ----------
    tomograms : sequence of Path
    work : callable
        Takes the number of a tomogram, returns what is written to stdout: where the result lies.

    Returns
    -------
    int
        Exit code: 1 if any failed.

    Raises
    ------
    ValueError, OSError, MemoryError
        What went wrong, if there is no other tomogram.
    """
    failures = []
    for number, path in enumerate(tomograms):
        try:
            result = work(number)
        except (ValueError, OSError, MemoryError) as error:
            if len(tomograms) == 1:
                raise
            message = describe_error(error)
            logger.error("%s", message if str(path) in message else f"{path}: {message}")
            failures.append(str(path))
        else:
            sys.stdout.write(f"{result}\n")
            sys.stdout.flush()
    if failures:
        listed = ", ".join(failures)
        logger.error("%d of %d tomograms failed: %s", len(failures), len(tomograms), listed)
    return 1 if failures else 0


def read_record(path: str | Path) -> dict[str, Any]:
    """Read the record of a run.

    Raises
    ------
    ValueError
        If the file is something else, or damaged.
    OSError
        If it cannot be read.
    """
    try:
        record = tomllib.loads(Path(path).read_text("utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not the record of a run, or is damaged: {error}") from error
    missing = [name for name in SECTIONS if not isinstance(record.get(name), dict)]
    if missing:
        raise ValueError(f"{path} is not the record of a run (.run.toml): no [{missing[0]}]")
    return record


def is_done(
    table: Path,
    *,
    method: str,
    parameters: Mapping[str, Any],
    inputs: Mapping[str, Any],
    record_path: Path | None = None,
) -> bool:
    """Tell whether a table, or another output, is there and was made like this.

    Parameters
    ----------
    table : Path
    method : str
    parameters, inputs : mapping
        As the record would have them; of the inputs, those that are known before the run.
    record_path : Path, optional
        Of the record; the table's path with .run.toml by default.

    Raises
    ------
    ValueError
        If there is a table that was made otherwise, or nobody knows how, or of something that has
        changed since.
    """
    if not table.exists():
        return False
    what_to_do = "choose another folder or give --overwrite"
    path = record_path or table.with_suffix(".run.toml")
    if not path.is_file():
        raise ValueError(f"{table} exists without a record of how it was made; {what_to_do}")
    record = read_record(path)
    made = {"method": record["method"].get("name"), **record["parameters"]}
    made |= {name: record["inputs"].get(name) for name in inputs}
    wanted = {"method": method, **parameters, **inputs}
    other = [name for name in {**made, **wanted} if made.get(name) != wanted.get(name)]
    if "method" in other:
        other = ["method"]  # whose parameters have other names, too
    if not other:
        _check_older(inputs, path, what=f"{table}; {what_to_do}")
        logger.info("%s is there already and was kept (--overwrite makes it anew)", table)
        return True
    differences = ", ".join(
        f"{name} {_shown(made, name)}, now {_shown(wanted, name)}" for name in other
    )
    raise ValueError(f"{table} exists and was made otherwise ({differences}); {what_to_do}")


def _check_older(inputs: Mapping[str, Any], record: Path, *, what: str) -> None:
    made = record.stat().st_mtime_ns
    for source in map(Path, [inputs.get("tomogram", ""), *inputs.get("embeddings", ())]):
        if source.exists() and source.is_absolute() and source.stat().st_mtime_ns > made:
            raise ValueError(f"{source} is newer than what was made of it, {what}")


def _shown(values: Mapping[str, Any], name: str) -> str:
    return repr(values[name]) if name in values else "not given"


def repeat_run(app: App, commands: tuple[str, ...], arguments: ArgumentCollection) -> None:
    """Take from the record that `--config` names whatever was not given.

    The command line's parser calls this with the words it has found. Relative to the words, the
    record is a second source, as a configuration file would be.

    Raises
    ------
    ValueError
        If the file is not the record of a run, or of another method.
    """
    by_name = {argument.name: argument for argument in arguments}
    tokens = by_name["--config"].tokens if "--config" in by_name else []
    if not tokens:
        return
    path = tokens[0].value
    record = read_record(path)
    method = record["method"].get("name")
    if method != commands[-1]:
        raise ValueError(f"{path} is the record of pick {method}, not of pick {commands[-1]}")
    values = {name.replace("_", "-"): value for name, value in record["parameters"].items()}
    for option, rivals in RIVALS.items():
        if f"--{option}" in by_name and by_name[f"--{option}"].tokens:
            values = {k: v for k, v in values.items() if k not in rivals}
    Dict(data=values, source=path, use_commands_as_keys=False)(app, commands, arguments)
    if not by_name["TOMOGRAMS"].tokens:
        word = str(record["inputs"].get("tomogram"))
        by_name["TOMOGRAMS"].append(Token(value=word, source=path))


def peak_memory_gib() -> float | None:
    """Return the most memory that this process has held; None where the system does not tell."""
    try:
        import resource
    except ModuleNotFoundError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**30 if sys.platform == "darwin" else 2**20)
