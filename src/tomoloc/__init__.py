"""Locate macromolecules in cryo-electron tomograms.

The names below are the public interface; each is loaded on first use, so that importing
tomoloc stays fast.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_PUBLIC = {
    "CTF": "tomoloc.types",
    "Particles": "tomoloc.types",
    "Sample": "tomoloc.types",
    "ScoreMap": "tomoloc.types",
    "Structure": "tomoloc.types",
    "TiltSeries": "tomoloc.types",
    "Tomogram": "tomoloc.types",
    "Volume": "tomoloc.types",
}

__all__ = ["__version__", *_PUBLIC]


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'tomoloc' has no attribute {name!r}")
    return getattr(import_module(_PUBLIC[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
