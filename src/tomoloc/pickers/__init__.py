"""Pickers: each turns a tomogram into a score map.

A new picker is a module with a frozen dataclass that fulfils `tomoloc.pickers.pick.Picker`, and
one line in `PICKERS`; its contract test, command-line options and documentation follow.
"""

from __future__ import annotations

from importlib import import_module

__all__ = ["PICKERS", "load_picker"]

PICKERS = {
    "template": "tomoloc.pickers.template:TemplatePicker",
    "embedding": "tomoloc.pickers.embedding:EmbeddingPicker",
    "centroid": "tomoloc.pickers.centroid:CentroidPicker",
    "segmentation": "tomoloc.pickers.segmentation:SegmentationPicker",
    "unsupervised": "tomoloc.pickers.unsupervised:UnsupervisedPicker",
}
"""Where each method's class is, loaded on first use."""


def load_picker(method: str) -> type:
    """Import the class of a picker.

    Raises
    ------
    ValueError
        If there is no such method.
    """
    if method not in PICKERS:
        raise ValueError(f"unknown method {method!r}; there is {', '.join(sorted(PICKERS))}")
    module, name = PICKERS[method].split(":")
    found: type = getattr(import_module(module), name)
    return found
