"""Records of runs (.run.toml): what made a table, whether it still holds, how to repeat it."""

from __future__ import annotations

import logging
import sys
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cyclopts import App, ArgumentCollection, Token
from cyclopts.config import Dict

__all__ = ["is_done", "peak_memory_gib", "read_record", "repeat_run"]

logger = logging.getLogger(__name__)

SECTIONS = ("tomoloc", "method", "parameters", "inputs", "results")


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
    table: Path, *, method: str, parameters: Mapping[str, Any], inputs: Mapping[str, Any]
) -> bool:
    """Tell whether a table is there and was made like this.

    Parameters
    ----------
    table : Path
    method : str
    parameters, inputs : mapping
        As the record would have them; of the inputs, those that are known before the run.

    Raises
    ------
    ValueError
        If there is a table that was made otherwise, or nobody knows how.
    """
    if not table.exists():
        return False
    what_to_do = "choose another folder or give --overwrite"
    path = table.with_suffix(".run.toml")
    if not path.is_file():
        raise ValueError(f"{table} exists without a record of how it was made; {what_to_do}")
    record = read_record(path)
    made = {"method": record["method"].get("name"), **record["parameters"]}
    made |= {name: record["inputs"].get(name) for name in inputs}
    wanted = {"method": method, **parameters, **inputs}
    other = [name for name in {**made, **wanted} if made.get(name) != wanted.get(name)]
    if not other:
        logger.info("%s is there already and was kept (--overwrite makes it anew)", table)
        return True
    differences = ", ".join(
        f"{name} {_shown(made, name)}, now {_shown(wanted, name)}" for name in other
    )
    raise ValueError(f"{table} exists and was made otherwise ({differences}); {what_to_do}")


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
    if by_name["--tilt-range"].tokens or by_name["--tilt-file"].tokens:
        values = {k: v for k, v in values.items() if k not in {"tilt-range", "tilt-file"}}
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
