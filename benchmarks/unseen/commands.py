"""Commands of tomoloc, as a user gives them, without leaving the process."""

from __future__ import annotations

import sys
from pathlib import Path

from tomoloc.cli.main import main

__all__ = ["call", "simulate"]


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
