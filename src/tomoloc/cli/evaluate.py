"""`tomoloc evaluate`: score picks against truth."""

from __future__ import annotations

import json as json_module
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
from cyclopts import Parameter

if TYPE_CHECKING:
    from tomoloc.evaluate import Evaluation, Result
    from tomoloc.io.tables import ParticleTable
    from tomoloc.types import Particles

__all__ = ["evaluate", "format_evaluation"]

Flag = Annotated[bool, Parameter(negative="")]
Words = Annotated[list[str] | None, Parameter(negative="", consume_multiple=False)]
Size = Annotated[tuple[int, int, int] | None, Parameter(negative="")]


def evaluate(
    picks: Path,
    truth: Path,
    /,
    *,
    radius: float,
    rule: str = "gated",
    json: Path | None = None,
    diameter: float | None = None,
    beta: float | None = None,
    ignore_labels: Flag = False,
    rename: Words = None,
    label: Words = None,
    label_radius: Words = None,
    voxel_spacing: float | None = None,
    tomogram_size: Size = None,
    seed: int = 0,
) -> None:
    """Score picks against truth: precision, recall, F1, best threshold, position errors.

    Rules: gated (default, one-to-one, as many pairs as exist), greedy (best score first), and
    those of published scores: czii, shrec, deepict, tomotwin, tomocpt, picket.

    Parameters
    ----------
    picks
        Particle file of any program, or a folder that tomoloc pick wrote.
    truth
        Particle file of any program, a sample of tomoloc simulate, or a folder of samples. A
        sample's distractors count only where picks have their label.
    radius
        Largest distance of a match in Å (tomotwin: half the side of the boxes).
    rule
        How picks are matched to truth.
    json
        Also write all scores, curves and intervals to this file.
    diameter
        Of the particles in Å, to state errors in diameters.
    beta
        Weight of recall in F-beta; 1 unless the rule has its own (czii: 4).
    ignore_labels
        Match whatever the labels are.
    rename
        Give picks of one label the name it has in the truth, PICKED=TRUE; may be repeated.
    label
        Score this label alone; may be repeated. Otherwise, if the picks have several labels, every
        label of the truth counts, also one that was never picked.
    label_radius
        Radius in Å for one label, LABEL=Å; may be repeated.
    voxel_spacing
        Voxel size in Å, for files that do not state it.
    tomogram_size
        Number of voxels along x, y and z, for files that do not state it.
    seed
        Of bootstrap samples and random points.
    """
    from tomoloc.evaluate import evaluate_particles
    from tomoloc.report.gather import gather_grids

    shape = None if tomogram_size is None else tomogram_size[::-1]
    picked = _read(picks, voxel_spacing, shape).particles
    true = _read(truth, voxel_spacing, shape)
    answer = true.particles
    if ignore_labels:
        picked, answer = replace(picked, label=""), replace(answer, label="")
    elif rename:
        picked = _rename(picked, _assignments(rename, "--rename"))
    radii: float | dict[str, float] = radius
    if label_radius:
        own = _numbers(_assignments(label_radius, "--label-radius"), "--label-radius")
        radii = dict.fromkeys({*picked.labels, *answer.labels}, radius) | own
    evaluation = evaluate_particles(
        picked,
        answer,
        radius=radii,
        rule=rule,
        beta=beta,
        diameter=diameter,
        labels=label or None,
        grids=gather_grids(true, truth, instances=rule == "shrec"),
        seed=seed,
    )
    if json is not None:
        _write_json(evaluation, json)
    sys.stdout.write(format_evaluation(evaluation))


def _read(
    path: Path, voxel_spacing: float | None, shape: tuple[int, int, int] | None
) -> ParticleTable:
    """Read a table by what it states; options fill in only what it does not."""
    from tomoloc.report.gather import gather_table

    try:
        return gather_table(path)
    except ValueError:
        if voxel_spacing is None and shape is None:
            raise
    return gather_table(path, voxel_spacing=voxel_spacing, shape=shape)


def _assignments(words: Sequence[str], option: str) -> dict[str, str]:
    pairs = [word.rpartition("=") for word in words]
    for (name, _, value), word in zip(pairs, words, strict=True):
        if not name or not value:
            raise ValueError(f"{option} needs NAME=VALUE; got {word!r}")
    return {name: value for name, _, value in pairs}


def _numbers(pairs: Mapping[str, str], option: str) -> dict[str, float]:
    try:
        return {name: float(value) for name, value in pairs.items()}
    except ValueError as error:
        raise ValueError(f"{option} needs LABEL=NUMBER: {error}") from error


def _rename(particles: Particles, names: Mapping[str, str]) -> Particles:
    missing = [name for name in names if name not in particles.labels]
    if missing:
        raise ValueError(
            f"--rename {missing[0]}=...: no pick has that label; there are {particles.labels}"
        )
    labels = [names.get(str(name), str(name)) for name in particles.label]
    return replace(particles, label=np.array(labels, dtype=np.str_))


def _write_json(evaluation: Evaluation, path: Path) -> None:
    from tomoloc.atomic import writing

    with writing(path) as draft:
        text = json_module.dumps(evaluation.to_dict(), ensure_ascii=False)
        draft.write_text(text + "\n", "utf-8")


def format_evaluation(evaluation: Evaluation) -> str:
    """Lay out an evaluation as lines and an aligned table that a person reads.

    Parameters
    ----------
    evaluation : Evaluation
        As `tomoloc.evaluate.evaluate_particles` gives it.
    """
    radius = evaluation.radius
    reach = (
        ", ".join(f"{label} {value:g} Å" for label, value in sorted(radius.items()))
        if isinstance(radius, Mapping)
        else f"{radius:g} Å"
    )
    n = len(evaluation.tomograms)
    lines = [f"rule {evaluation.rule}, radius {reach}, {n} tomogram{'s' * (n != 1)}", ""]
    rows = [_row(name or "(all)", result, evaluation) for name, result in _named(evaluation)]
    lines += _align([list(rows[0]), *(list(row.values()) for row in rows)])
    intervals = [(name, r.intervals) for name, r in _named(evaluation) if r.intervals]
    if intervals:
        lines += ["", f"95 % intervals over {n} tomograms (bootstrap)"]
        header = [title for title in rows[0] if title in _INTERVALS]
        keys = [_INTERVALS[title] for title in header]
        lines += _align(
            [
                ["label", *header],
                *(
                    [name or "(all)", *(_range(found.get(key)) for key in keys)]
                    for name, found in intervals
                ),
            ]
        )
    else:
        lines += ["", "one tomogram: no intervals over tomograms"]
    return "\n".join(lines) + "\n"


_INTERVALS = {
    "precision": "precision",
    "recall": "recall",
    "F1": "f1",
    "AP": "average_precision",
    "RMSE Å": "rmse",
}


def _named(evaluation: Evaluation) -> list[tuple[str, Result]]:
    rows = list(evaluation.labels.items())
    if len(rows) > 1:
        rows += [("overall (micro)", evaluation.micro), ("mean (macro)", evaluation.macro)]
    return rows


def _row(name: str, result: Result, evaluation: Evaluation) -> dict[str, str]:
    chosen, best = result.chosen, result.best
    row = {
        "label": name,
        "truth": str(chosen.n_truth),
        "picks": str(chosen.n_picks),
        "TP": str(chosen.n_tp),
        "FP": str(chosen.n_fp),
        "FN": str(chosen.n_fn),
        "precision": _number(chosen.precision),
        "recall": _number(chosen.recall),
        "F1": _number(chosen.f1),
    }
    name = "F1"
    if evaluation.beta != 1:
        name = f"F{evaluation.beta:g}"
        row[name] = _number(chosen.f_beta)
    if evaluation.rule == "picket":
        row["rel. recall"] = _number(result.relative_recall)
    row |= {
        "AP": _number(result.average_precision),
        f"best {name}": _number(best.f_beta),
        "at score": _number(best.threshold, ".4g"),
        "RMSE Å": _number(chosen.rmse, ".1f"),
        "RMSE/d": _number(chosen.rmse_diameters),
    }
    return row


def _number(value: float, form: str = ".3f") -> str:
    return "-" if value != value else format(value, form)


def _range(interval: Sequence[float] | None) -> str:
    return "-" if interval is None else f"{interval[0]:.3g} .. {interval[1]:.3g}"


def _align(rows: Sequence[Sequence[Any]]) -> list[str]:
    """Set the first column left, numbers right."""
    widths = [max(len(str(cell)) for cell in column) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            str(cell).ljust(width) if index == 0 else str(cell).rjust(width)
            for index, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
