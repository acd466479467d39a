"""Locate macromolecules in cryo-electron tomograms.

The names below are the public interface; each is loaded on first use, so that importing
tomoloc stays fast.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

# Module of each public name, in the order of docs/api.md. Type checkers read __init__.pyi instead.
_PUBLIC = {
    "Volume": "tomoloc.types",
    "Tomogram": "tomoloc.types",
    "TiltSeries": "tomoloc.types",
    "CTF": "tomoloc.types",
    "ScoreMap": "tomoloc.types",
    "Particles": "tomoloc.types",
    "Structure": "tomoloc.types",
    "Sample": "tomoloc.types",
    "read_tomogram": "tomoloc.io.tomograms",
    "read_volume": "tomoloc.io.tomograms",
    "write_volume": "tomoloc.io.tomograms",
    "read_structure": "tomoloc.io.structures",
    "read_tilt_series": "tomoloc.io.tilts",
    "read_particles": "tomoloc.io.tables",
    "write_particles": "tomoloc.io.tables",
    "Frame": "tomoloc.io.tables",
    "read_sample": "tomoloc.io.samples",
    "read_recipe": "tomoloc.simulate.recipe",
    "Simulator": "tomoloc.simulate.scene",
    "make_complex": "tomoloc.simulate.structures",
    "pick": "tomoloc.pickers.pick",
    "Picks": "tomoloc.pickers.pick",
    "TemplatePicker": "tomoloc.pickers.template",
    "EmbeddingPicker": "tomoloc.pickers.embedding",
    "embed_examples": "tomoloc.pickers.embedding",
    "UnsupervisedPicker": "tomoloc.pickers.unsupervised",
    "find_peaks": "tomoloc.localize",
    "find_components": "tomoloc.localize",
    "estimate_threshold": "tomoloc.localize",
    "evaluate_particles": "tomoloc.evaluate",
    "match_particles": "tomoloc.evaluate",
}

__all__ = ["__version__", *_PUBLIC]


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'tomoloc' has no attribute {name!r}")
    return getattr(import_module(_PUBLIC[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
