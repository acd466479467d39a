"""Values of a recipe that may be drawn for each sample, and checks of them."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import numpy as np

__all__ = ["COUNTED", "DRAWN", "WORD", "Choice", "Number", "Range", "Word", "bounds"]
__all__ += ["check_kinds", "check_label", "check_not_negative", "check_positive"]
__all__ += ["check_within", "check_word", "in_words"]


@dataclass(frozen=True)
class Range:
    """Numbers to draw from, evenly: ``[low, high]`` in TOML."""

    low: float
    high: float

    def __post_init__(self) -> None:
        if not (np.isfinite([self.low, self.high]).all() and self.low <= self.high):
            raise ValueError(f"a range needs [low, high]; got [{self.low}, {self.high}]")


@dataclass(frozen=True)
class Choice:
    """Values to draw from, each with the same chance: ``{ one_of = [...] }`` in TOML."""

    one_of: tuple[Any, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "one_of", tuple(self.one_of))
        if not self.one_of:
            raise ValueError("one_of needs at least one value")


Number = float | Range | Choice
Word = str | Choice

# Marks the fields that are drawn: numbers, numbers that count something, and words.
DRAWN = {"drawn": "number"}
COUNTED = {"drawn": "count"}
WORD = {"drawn": "word"}

# What fields that are not drawn must hold, by their annotations.
_KINDS: dict[str, tuple[type | tuple[type, ...], str]] = {
    "bool": (bool, "true or false"),
    "str": (str, "a word"),
    "int": (int, "a whole number"),
    "int | None": (int, "a whole number"),
    "float": ((int, float), "a number"),
    "float | None": ((int, float), "a number"),
}


def bounds(value: Number) -> tuple[float, float]:
    """Least and greatest value that a number may be drawn as."""
    if isinstance(value, Range):
        return value.low, value.high
    if isinstance(value, Choice):
        lows, highs = zip(*(bounds(one) for one in value.one_of), strict=True)
        return min(lows), max(highs)
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        raise ValueError(f"expected a number; got {value!r}")
    return value, value


def check_kinds(instance: Any, *unbounded: str) -> None:
    """Check that the fields of settings hold what they are declared to hold.

    Parameters
    ----------
    instance : dataclass
        Settings or a recipe.
    *unbounded : str
        Names of numbers that may be infinite.

    Raises
    ------
    ValueError
        If a number is no number or infinite, a count no whole number, or a kind wrong.
    """
    for entry in fields(instance):
        value, drawn = getattr(instance, entry.name), entry.metadata.get("drawn")
        if value is None or drawn == "word":
            continue
        if drawn is not None:
            numbers = bounds(value)
        elif str(entry.type) in _KINDS:
            kind, words = _KINDS[str(entry.type)]
            if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
                raise ValueError(f"{entry.name} must be {words}; got {value!r}")
            numbers = (value, value) if isinstance(value, float) else (0, 0)
        else:
            continue
        infinite = entry.name in unbounded and not np.isnan(numbers).any()
        if not (np.isfinite(numbers).all() or infinite):
            raise ValueError(f"{entry.name} must be finite; got {in_words(value)}")
        if drawn == "count" and any(number % 1 for number in numbers):
            raise ValueError(f"{entry.name} must be a whole number; got {in_words(value)}")


def check_label(instance: Any) -> None:
    """Refuse an empty label."""
    if not instance.label:
        raise ValueError("label must not be empty")


def check_positive(instance: object, *names: str) -> None:
    """Refuse numbers that may be drawn as zero or less."""
    for name in names:
        value = getattr(instance, name)
        if value is not None and not bounds(value)[0] > 0:
            raise ValueError(f"{name} must be positive; got {in_words(value)}")


def check_not_negative(instance: object, *names: str) -> None:
    """Refuse numbers that may be drawn below zero."""
    for name in names:
        value = getattr(instance, name)
        if value is not None and not bounds(value)[0] >= 0:
            raise ValueError(f"{name} must not be negative; got {in_words(value)}")


def check_within(instance: object, name: str, low: float, high: float) -> None:
    """Refuse a number that may be drawn outside of an interval."""
    value = getattr(instance, name)
    if value is not None and not low <= bounds(value)[0] <= bounds(value)[1] <= high:
        raise ValueError(f"{name} must be from {low:g} to {high:g}; got {in_words(value)}")


def check_word(instance: object, name: str, known: tuple[str, ...]) -> None:
    """Refuse a word, or any of a choice, that is not known."""
    value = getattr(instance, name)
    for word in value.one_of if isinstance(value, Choice) else (value,):
        if word not in known:
            raise ValueError(f"{name} must be one of {', '.join(known)}; got {word!r}")


def in_words(value: Number) -> str:
    """Write a number, or the interval it is drawn from."""
    low, high = bounds(value)
    return f"{low:g} to {high:g}" if low < high else f"{low:g}"
