"""Rows of scores as tables in Markdown and as a picture."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

__all__ = ["SIZES", "Row", "by_protein", "draw_picture", "print_table", "summarize", "where"]

Row = dict[str, Any]
SIZES = ((40.0, 150.0), (150.0, 300.0), (300.0, 900.0))
"""Classes of mass in kDa."""
_TICKS = (50, 100, 200, 400, 800)


def where(rows: Iterable[Row], **values: Any) -> list[Row]:
    """Rows that have the given values."""
    return [row for row in rows if all(row.get(key) == value for key, value in values.items())]


def by_protein(rows: Sequence[Row]) -> list[Row]:
    """Mean of each protein over its tomograms and draws of examples."""
    ordered = sorted(rows, key=lambda row: str(row["label"]))
    return [_mean(list(group)) for _, group in groupby(ordered, key=lambda row: row["label"])]


def _mean(rows: Sequence[Row]) -> Row:
    numbers = {
        key: [row[key] for row in rows] for key, value in rows[0].items() if _is_number(value)
    }
    return {**rows[0], **{key: mean(values) for key, values in numbers.items()}}


def mean(values: Iterable[float]) -> float:
    """Mean of what is a number; not a number if nothing is."""
    known = [value for value in values if np.isfinite(value)]
    return float(np.mean(known)) if known else float("nan")


def summarize(rows: Sequence[Row]) -> dict[str, float]:
    """Scores over proteins: means, and medians of F1."""
    proteins = by_protein(rows)
    return {
        "proteins": len(proteins),
        "f1": mean(row["f1"] for row in proteins),
        "median": float(np.median([row["f1"] for row in proteins])),
        "best_f1": mean(row["best_f1"] for row in proteins),
        "best_median": float(np.median([row["best_f1"] for row in proteins])),
        "precision": mean(row["precision"] for row in proteins),
        "recall": mean(row["recall"] for row in proteins),
        "n_fp": mean(row["n_fp"] for row in proteins),
        "error": mean(row["error"] for row in proteins),
        "error_percent": mean(100 * row["error"] / row["diameter"] for row in proteins),
    }


def print_table(head: Sequence[str], lines: Iterable[Sequence[Any]]) -> None:
    """Print a table in Markdown whose columns line up."""
    texts = [[_word(cell) for cell in line] for line in (head, *lines)]
    widths = [max(len(line[i]) for line in texts) for i in range(len(head))]
    aligns: list[Callable[[str, int], str]] = [str.ljust] + [str.rjust] * (len(head) - 1)
    for number, line in enumerate(texts):
        cells = (how(text, n) for how, text, n in zip(aligns, line, widths, strict=True))
        print(f"| {' | '.join(cells)} |")
        if number == 0:
            print(f"|{'|'.join('-' * (n + 2) for n in widths)}|")
    print(flush=True)


def _word(cell: Any) -> str:
    if isinstance(cell, float):
        return "-" if np.isnan(cell) else f"{cell:.3f}" if abs(cell) < 2 else f"{cell:.1f}"
    return str(cell)


def draw_picture(rows: Sequence[Row], path: Path) -> None:
    """F1 of each protein against its mass, a panel for each condition."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    conditions = list(dict.fromkeys(row["condition"] for row in rows))
    columns = min(3, len(conditions))
    lines = -(-len(conditions) // columns)
    figure, axes = plt.subplots(
        lines, columns, figsize=(4.2 * columns, 3.2 * lines), sharex=True, sharey=True,
        squeeze=False, layout="constrained",
    )  # fmt: skip
    methods = list(dict.fromkeys(row["method"] for row in rows))
    for panel in axes.flat[len(conditions) :]:
        panel.set_axis_off()
    for panel, condition in zip(axes.flat, conditions, strict=False):
        means = []
        for number, method in enumerate(methods):
            proteins = by_protein(where(rows, condition=condition, method=method))
            if not proteins:
                continue
            means.append(f"{mean(row['f1'] for row in proteins):.2f}")
            panel.scatter(
                [row["mass_kda"] for row in proteins],
                [row["f1"] for row in proteins],
                s=14,
                marker="osd^v"[number % 5],
                color=f"C{number}",
                label=method,
            )
        panel.set_title(condition, loc="left")
        panel.set(xscale="log", xlim=(38, 900), ylim=(-0.03, 1.03))
        panel.set_xticks(_TICKS, [f"{tick}" for tick in _TICKS])
        panel.minorticks_off()
        panel.grid(alpha=0.3)
        panel.set_title(f"mean {' / '.join(means)}", loc="right", fontsize=8)
    for panel in axes[-1]:
        panel.set_xlabel("mass (kDa)")
    for panel in axes[:, 0]:
        panel.set_ylabel("F1 at the default threshold")
    handles, names = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside upper center", ncols=len(names))
    figure.savefig(path, dpi=150)
    plt.close(figure)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
