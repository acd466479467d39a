"""Write docs/api.md from the docstrings of the public names: python docs/make_api.py."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import tomoloc

PAGE = Path(__file__).with_name("api.md")
CHAPTERS = {
    "types": "Types",
    "io": "Reading and writing",
    "simulate": "Simulating",
    "pickers": "Picking",
    "localize": "From scores to particles",
    "evaluate": "Evaluating",
}
INTRODUCTION = """\
# Python interface

Made from the docstrings by `python docs/make_api.py`; edit those, not this page.

Arrays are ordered `(z, y, x)`, positions are `x, y, z` in ångström from the centre of the
tomogram's first voxel, and angles are degrees; every other unit is in the name. Wrong input raises
`ValueError`, what cannot be read or written `OSError`. See [conventions](conventions.md).
"""


def make_api() -> str:
    """Return the page."""
    names = [name for name in tomoloc.__all__ if not name.startswith("_")]
    chapters: dict[str, list[str]] = {title: [] for title in CHAPTERS.values()}
    for name in names:
        chapters[CHAPTERS[getattr(tomoloc, name).__module__.split(".")[1]]].append(name)
    lines = [INTRODUCTION]
    for title, members in chapters.items():
        summaries = [_summary(getattr(tomoloc, name)) for name in members]
        rows = zip(members, summaries, strict=True)
        lines += [f"**{title}**\n"]
        lines += [f"* [`{name}`](#{name.lower()}): {summary}" for name, summary in rows]
        lines += [""]
    for title, members in chapters.items():
        lines += [f"## {title}\n"]
        for name in members:
            lines += _describe(getattr(tomoloc, name), name, level=3)
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).rstrip() + "\n"


def _describe(item: Any, name: str, *, level: int) -> Iterator[str]:
    """Yield heading, signature and docstring, then the methods of a class."""
    yield f"{'#' * level} `{name}`\n"
    yield f"```python\n{_signature(item, name)}\n```\n"
    (_, summary), *sections = split_docstring(item)
    yield f"{_markdown(summary)}\n"
    yield from (part for section in sections for part in _section(*section))
    if inspect.isclass(item):
        yield from _members(item, name, level=level)


def _members(item: type, name: str, *, level: int) -> Iterator[str]:
    """Yield what a class adds to what it inherits: properties as a list, then methods."""
    bases = [base.__name__ for base in item.__bases__ if base.__name__ in tomoloc.__all__]
    if bases:
        yield f"Also has all that [`{bases[0]}`](#{bases[0].lower()}) has.\n"
    public = {key: value for key, value in vars(item).items() if not key.startswith("_")}
    properties = {
        key: value
        for key, value in public.items()
        if isinstance(value, (property, cached_property)) and value.__doc__
    }
    if properties:
        yield "**Properties**\n"
        yield from (f"* `{key}`<br>{_summary(value)}" for key, value in properties.items())
        yield ""
    for key, value in public.items():
        method = value.__func__ if isinstance(value, staticmethod) else value
        if inspect.isfunction(method) and method.__doc__:
            yield from _describe(method, f"{name}.{key}", level=level + 1)


def _summary(item: Any) -> str:
    return (inspect.getdoc(item) or "").split("\n\n")[0].replace("\n", " ")


def split_docstring(item: Any) -> list[tuple[str, str]]:
    """Split a numpydoc docstring into (heading, text); the first heading is empty."""
    parts = re.split(r"^(\w[\w ]*)\n-+\n", inspect.getdoc(item) or "", flags=re.MULTILINE)
    return list(zip(["", *parts[1::2]], (text.strip() for text in parts[::2]), strict=True))


def split_entries(text: str) -> list[tuple[str, str]]:
    """Split a section into (head, indented description)."""
    entries: list[tuple[str, str]] = []
    for line in text.splitlines():
        if line and not line.startswith(" "):
            entries.append((line, ""))
        elif entries:
            head, body = entries[-1]
            entries[-1] = head, f"{body} {line.strip()}".strip()
    return entries


def _section(heading: str, text: str) -> Iterator[str]:
    yield f"**{heading}**\n"
    if heading == "Examples":
        code = re.sub(r" *# doctest:.*", "", text)
        yield f"```python\n{code}\n```\n"
    elif heading == "References":
        references = re.sub(r"^\.\. ", "* ", text, flags=re.MULTILINE)
        yield f"{_markdown(references)}\n"
    else:
        for head, body in split_entries(text):
            names, colon, kind = head.partition(" : ")
            listed = ", ".join(f"`{name}`" for name in names.split(", "))
            shown = listed if colon or heading == "Raises" else head
            if heading == "Parameters":
                shown = listed
            stated = f": {kind}" if colon else ""
            yield _markdown(f"* {shown}{stated}" + (f"<br>{body}" if body else ""))
        yield ""


def _markdown(text: str) -> str:
    text = re.sub(r"(\[\d+\])_", r"\1", text)
    return re.sub(r"doi:(10\.\S+?)(?=[,;.)]*(\s|$))", r"[doi:\1](<https://doi.org/\1>)", text)


def _signature(item: Callable[..., Any], name: str) -> str:
    """Return the call without types, which the list of parameters has."""
    parameters = [
        parameter.replace(annotation=parameter.empty, default=_default(parameter))
        for key, parameter in inspect.signature(item).parameters.items()
        if key != "self"
    ]
    call = str(inspect.Signature(parameters))
    line = f"{name}{call}"
    if len(line) <= 88:
        return line
    inner = ",\n".join(f"    {part}" for part in re.split(r", (?![^()]*\))", call[1:-1]))
    return f"{name}(\n{inner},\n)"


class _Made:
    """Stands for a default that is made anew for each call."""

    def __repr__(self) -> str:
        return "..."


def _default(parameter: inspect.Parameter) -> Any:
    return _Made() if repr(parameter.default) == "<factory>" else parameter.default


if __name__ == "__main__":
    PAGE.write_text(make_api(), "utf-8")
