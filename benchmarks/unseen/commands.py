"""Commands of tomoloc, as a user gives them, without leaving the process."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from tomoloc.cli.main import main

__all__ = ["call", "make_parser", "simulate"]


def call(*words: str) -> None:
    """Give a command; leave with its exit code if it fails."""
    if code := main(words):
        sys.exit(code)


def simulate(folder: Path, name: str, text: str, number: int) -> list[Path]:
    """Simulate samples of a recipe's text, with seed 1, in a folder of that name."""
    recipe = folder / f"{name}.toml"
    recipe.write_text(text, "utf-8")
    call("simulate", str(recipe), "-n", str(number), "--seed", "1", "-o", str(folder / name))
    return sorted((folder / name).iterdir())


def make_parser(doc: str) -> argparse.ArgumentParser:
    """Options of all that measures a model on proteins that it has not seen."""
    shared = os.environ.get("TOMOLOC_SHARED")
    folder = Path(shared) / "structures" / "validation" if shared else None
    parser = argparse.ArgumentParser(description=doc.splitlines()[0])
    parser.add_argument("--structures", type=Path, default=folder)
    parser.add_argument("--model", default="general", help="name or folder")
    parser.add_argument("--cache", type=Path, default=Path("build/unseen"), help="of scenes")
    parser.add_argument("--threads", type=int, help="on a processor")
    return parser
