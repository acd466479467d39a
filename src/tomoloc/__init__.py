"""Locate macromolecules in cryo-electron tomograms.

The names below are the public interface; each is loaded on first use, so that importing
tomoloc stays fast.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

# For type checkers and editors alone; a test keeps it in step with _PUBLIC.
if TYPE_CHECKING:
    from tomoloc.evaluate import evaluate_particles as evaluate_particles
    from tomoloc.evaluate import match_particles as match_particles
    from tomoloc.io.samples import read_sample as read_sample
    from tomoloc.io.structures import read_structure as read_structure
    from tomoloc.io.tables import Frame as Frame
    from tomoloc.io.tables import read_particles as read_particles
    from tomoloc.io.tables import write_particles as write_particles
    from tomoloc.io.tilts import read_tilt_series as read_tilt_series
    from tomoloc.io.tomograms import read_tomogram as read_tomogram
    from tomoloc.io.tomograms import read_volume as read_volume
    from tomoloc.io.tomograms import write_volume as write_volume
    from tomoloc.localize import estimate_threshold as estimate_threshold
    from tomoloc.localize import find_components as find_components
    from tomoloc.localize import find_peaks as find_peaks
    from tomoloc.pickers.pick import Picks as Picks
    from tomoloc.pickers.pick import pick as pick
    from tomoloc.pickers.template import TemplatePicker as TemplatePicker
    from tomoloc.simulate.recipe import read_recipe as read_recipe
    from tomoloc.simulate.scene import Simulator as Simulator
    from tomoloc.simulate.structures import make_complex as make_complex
    from tomoloc.types import CTF as CTF
    from tomoloc.types import Particles as Particles
    from tomoloc.types import Sample as Sample
    from tomoloc.types import ScoreMap as ScoreMap
    from tomoloc.types import Structure as Structure
    from tomoloc.types import TiltSeries as TiltSeries
    from tomoloc.types import Tomogram as Tomogram
    from tomoloc.types import Volume as Volume

__version__ = "0.1.0"

# Module of each public name, in the order of docs/api.md.
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
