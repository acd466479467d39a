"""Write the reference of recipes into docs/recipes.md: python docs/make_recipes.py.

Keys, defaults and what may be drawn come from the dataclasses, meanings from their docstrings.
"""

from __future__ import annotations

import re
from dataclasses import MISSING, Field, fields
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import tomli_w
from make_api import split_docstring, split_entries

from tomoloc.simulate import settings
from tomoloc.simulate.recipe import Recipe
from tomoloc.simulate.structures import make_complex

PAGE = Path(__file__).with_name("recipes.md")
MARK = "<!-- Made by `python docs/make_recipes.py` from here on; edit the docstrings instead. -->\n"
TABLES: dict[str, type] = {
    "At the top": Recipe,
    "`[specimen]`": settings.Specimen,
    "`[microscope]`": settings.Microscope,
    "`[reconstruction]`": settings.Reconstruction,
    "`[[species]]`": settings.Species,
    "`structure = { ... }`": settings.BuiltIn,
    "`[[species.parts]]`, `[[filaments.parts]]`": settings.Part,
    "`[[membranes]]`": settings.Membranes,
    "`[[filaments]]`": settings.Filaments,
    "`[gold]`": settings.Gold,
    "`[carbon]`": settings.Carbon,
    "`[contamination]`": settings.Contamination,
}
PLAIN = {
    "float": "number",
    "int": "whole number",
    "str": "text",
    "bool": "`true`, `false`",
    "tuple of int": "list of whole numbers",
    "tuple of str": "list of texts",
    "str, BuiltIn, or tuple of str": "text, table, list of texts",
}


def make_page(page: str) -> str:
    """Return the page with the reference made anew."""
    written, mark, _ = page.partition(MARK)
    if not mark:
        raise ValueError(f"{PAGE.name} has lost the line {MARK!r}")
    return written + mark + "".join(f"\n### {key}\n\n{_describe(TABLES[key])}" for key in TABLES)


def _describe(table: type) -> str:
    """Return what a table is, and its keys."""
    sections = dict(split_docstring(table))
    if table is settings.BuiltIn:  # whose docstring refers to that function
        sections["Parameters"] = dict(split_docstring(make_complex))["Parameters"]
    hints, known = get_type_hints(table), {item.name: item for item in fields(table)}
    text = f"{sections['']}\n\n| key | takes | default | meaning |\n|---|---|---|---|\n"
    for head, meaning in split_entries(sections["Parameters"]):
        names, _, kind = head.partition(" : ")
        items = [known.pop(name) for name in names.split(", ")]
        if re.match(r"(tuple of )?[A-Z]", kind):
            continue  # a table of its own
        # Keys that are described together stay together.
        keys = "<br>".join(f"`{item.name}`" for item in items)
        takes = _takes(items[0], kind, hints[items[0].name])
        defaults = "<br>".join(filter(None, map(_default, items)))
        text += f"| {keys} | {takes} | {defaults} | {meaning} |\n"
    if known:
        raise ValueError(f"the docstring of {table.__name__} lacks {', '.join(known)}")
    return text


def _default(item: Field[Any]) -> str:
    """Return a default as TOML has it."""
    if item.default is MISSING:
        return "required"
    if item.default in (None, "", ()):
        return ""
    return f"`{tomli_w.dumps({'x': item.default}).removeprefix('x = ').strip()}`"


def _takes(item: Field[Any], kind: str, hint: Any) -> str:
    """Say what a key takes, and how it may be drawn."""
    kind = kind.removesuffix(", optional")
    if get_origin(hint) is Literal:
        what = ", ".join(f'`"{word}"`' for word in get_args(hint))
    elif kind.startswith("{"):
        what = ", ".join(f"`{word}`" for word in kind[1:-1].split(", "))
    else:
        what = PLAIN[kind]
    match item.metadata.get("drawn"):
        case "number":
            return "number, range, choice"
        case "count":
            return "whole number, range, choice"
        case "word":
            return f"{what}; choice"
    return what


if __name__ == "__main__":
    PAGE.write_text(make_page(PAGE.read_text("utf-8")), "utf-8")
