"""The report of a pick folder: what was found where, how well, and how it was made."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tomoloc.evaluate import Evaluation, Result, evaluate_particles, match_particles
from tomoloc.evaluate.tables import normalise_name, pair_tables
from tomoloc.progress import progress
from tomoloc.report.figures import (
    draw_montage,
    draw_precision_recall,
    draw_score_histogram,
    draw_slices,
)
from tomoloc.report.gather import Run, find_truth, gather_grids, read_runs
from tomoloc.report.labels import draw_labels
from tomoloc.report.neighbours import make_section
from tomoloc.report.page import Block, Facts, Note, Page, Picture, Section, Table, write_page
from tomoloc.types import Particles

__all__ = ["report_picks"]

logger = logging.getLogger(__name__)

# Without a stated diameter circles are drawn this many voxels wide.
SHOWN_VOXELS = 16


@dataclass(frozen=True, eq=False)
class _Verdict:
    """What truth says about one run: which picks are right, which particles were missed."""

    right: NDArray[np.bool_]
    missed: NDArray[np.floating[Any]]
    n_truth: int


@dataclass(frozen=True, eq=False)
class _Judgement:
    """All scores, and the verdict on each run that has truth."""

    evaluation: Evaluation
    verdicts: Mapping[int, _Verdict]
    notes: Sequence[str]


def report_picks(
    folder: str | Path,
    *,
    truth: str | Path | None = None,
    radius: float | None = None,
    diameter: float | None = None,
    n_pictures: int = 20,
) -> Path:
    """Write report.html and pictures/ for a folder of picks.

    Parameters
    ----------
    folder : path
        With `<tomogram>.star` and `<tomogram>.run.toml`, as `tomoloc pick` writes them.
    truth : path, optional
        File or folder; by default particles.star beside each tomogram, where there is one.
    radius : float, optional
        Largest distance of a match in angstrom; half the diameter by default.
    diameter : float, optional
        Of the particles in angstrom; that of the runs by default.
    n_pictures : int
        How many tomograms are shown; all are counted.

    Returns
    -------
    Path
        Of the page.

    Raises
    ------
    ValueError, OSError
        If there are no picks, the truth cannot be read, or nothing can be written. A tomogram
        that is missing or damaged does not stop the page, which says so.
    """
    runs = read_runs(folder)
    diameters = [diameter or _diameter(run) for run in runs]
    known = [value for value in diameters if value]
    reach = radius or (known[0] / 2 if known else None)
    judgement, notes = _judge(runs, truth, reach, known[0] if known else None)
    sections = [_scores_section(runs, judgement, notes), _counts_section(runs, judgement)]
    neighbours = make_section(runs)
    sections += [] if neighbours is None else [neighbours]
    shown = runs[: max(n_pictures, 0)]
    for index, run in enumerate(progress(shown, "drawing tomograms")):
        verdict = judgement.verdicts.get(index) if judgement else None
        sections.append(_run_section(run, diameters[index], verdict, alone=len(runs) == 1))
    if len(shown) < len(runs):
        rest = Note(f"{len(runs) - len(shown)} more tomograms are counted above but not shown.")
        sections.append(Section("More tomograms", [rest]))
    sections.append(_parameters_section(runs))
    n = sum(len(run.particles) for run in runs)
    page = Page(
        title=f"{n} particles in {_count(len(runs), 'tomogram')}",
        subtitle=_subtitle(runs),
        tiles=_tiles(runs, judgement),
        sections=sections,
    )
    return write_page(page, folder)


def _diameter(run: Run) -> float | None:
    found = run.number("parameters", "diameter") or run.number("results", "diameter")
    return found if found and found > 0 else None


def _label_diameters(run: Run, usual: float) -> dict[str, float]:
    """Diameter of each label's particles, where the run states one for each of them."""
    stated, labels = run.value("results", "diameter"), run.value("results", "threshold")
    each = {}
    if isinstance(stated, list) and isinstance(labels, dict) and len(stated) == len(labels):
        each = dict(zip(labels, map(float, stated), strict=True))
    return {name: each.get(name) or usual for name in run.particles.labels}


# ---------------------------------------------------------------------------------------- truth


def _judge(
    runs: Sequence[Run], path: str | Path | None, radius: float | None, diameter: float | None
) -> tuple[_Judgement | None, list[str]]:
    """Hold all runs against truth; without it, or where they do not fit, say why not."""
    table = find_truth(list(runs), path=path)
    if table is None:
        return None, []
    if radius is None:
        return None, ["Truth is known, but not the particles' diameter: give a radius to score."]
    picks = Particles.concatenate([run.particles for run in runs])
    truth, notes = table.particles, []
    labels = picks.labels if set(picks.labels) & set(truth.labels) else None
    left = sorted(set(truth.labels) - set(labels or truth.labels))
    if left:
        notes.append(f"Truth of labels that were not picked is left out: {', '.join(left[:8])}.")
    try:
        evaluation = evaluate_particles(
            picks,
            truth,
            radius=radius,
            diameter=diameter,
            labels=labels,
            grids=gather_grids(table, path or runs[0].folder),
        )
    except ValueError as error:
        logger.warning("no scores: %s", error)
        return None, [f"No scores: {error}."]
    if labels:
        truth = truth[np.isin(truth.label, labels)]
    verdicts = dict(_verdicts(runs, picks, truth, radius))
    return _Judgement(evaluation, verdicts, [*notes, *evaluation.notes]), []


def _verdicts(
    runs: Sequence[Run], picks: Particles, truth: Particles, radius: float
) -> Iterator[tuple[int, _Verdict]]:
    pairing = pair_tables(picks, truth)
    pairs = match_particles(picks, truth, radius=radius).pairs
    right, found = np.zeros(len(picks), dtype=bool), np.zeros(len(truth), dtype=bool)
    right[pairs[:, 0]], found[pairs[:, 1]] = True, True
    stops = np.cumsum([len(run.particles) for run in runs])
    for index, (run, own) in enumerate(zip(runs, np.split(right, stops[:-1]), strict=True)):
        name = normalise_name(run.name)
        if len(pairing.tomograms) == 1 == len(runs):
            code = 0
        elif name in pairing.tomograms:
            code = pairing.tomograms.index(name)
        else:
            continue
        theirs = (pairing.truth_tomogram == code) & (pairing.truth_label >= 0)
        missed = truth.position[theirs & ~found]
        yield index, _Verdict(own, missed, int(theirs.sum()))


# ------------------------------------------------------------------------------------- sections


def _tiles(runs: Sequence[Run], judgement: _Judgement | None) -> list[tuple[str, str]]:
    tiles = [
        ("tomograms", str(len(runs))),
        ("particles", str(sum(len(run.particles) for run in runs))),
    ]
    if judgement is not None:
        chosen = judgement.evaluation.micro.chosen
        tiles += [
            ("F1 at the set threshold", _number(chosen.f1, ".2f")),
            ("best F1", _number(judgement.evaluation.micro.best.f1, ".2f")),
            ("precision", _number(chosen.precision, ".2f")),
            ("recall", _number(chosen.recall, ".2f")),
        ]
    seconds = [run.number("results", "seconds") for run in runs]
    if any(seconds):
        total = sum(value or 0 for value in seconds)
        tiles.append(("computing", f"{total:.0f} s" if total < 600 else f"{total / 60:.0f} min"))
    return tiles


def _subtitle(runs: Sequence[Run]) -> str:
    methods = {str(m) for run in runs if (m := run.value("method", "name"))}
    versions = {str(v) for run in runs if (v := run.value("tomoloc", "version"))}
    parts = [f"picked by {', '.join(sorted(methods))}"] if methods else []
    parts += [f"tomoloc {', '.join(sorted(versions))}"] if versions else ["tomoloc"]
    return " · ".join(parts)


def _scores_section(
    runs: Sequence[Run], judgement: _Judgement | None, notes: Sequence[str]
) -> Section:
    blocks: list[Block] = [Note(note, warning=True) for note in notes]
    right = None
    if judgement is not None:
        evaluation = judgement.evaluation
        blocks.append(_scores_table(evaluation))
        blocks += [Note(_sentence(note)) for note in judgement.notes]
        if all(index in judgement.verdicts for index in range(len(runs))):
            right = np.concatenate([judgement.verdicts[i].right for i in range(len(runs))])
        results = dict(evaluation.labels)
        blocks.append(
            Picture.of(
                draw_precision_recall(results),
                name="precision_recall",
                caption="Precision over recall as the threshold falls. Grey lines: equal F1.",
            )
        )
    blocks.append(_histogram(runs, right, name="scores"))
    return Section("Scores", blocks)


def _histogram(runs: Sequence[Run], right: NDArray[np.bool_] | None, *, name: str) -> Block:
    scores = [run.particles.score for run in runs if len(run.particles)]
    if not scores:
        return Note("Nothing was picked.")
    if any(score is None for score in scores):
        return Note("The picks have no scores.")
    thresholds = {run.number("results", "threshold") for run in runs}
    threshold = thresholds.pop() if len(thresholds) == 1 else None
    figure = draw_score_histogram(
        np.concatenate([score for score in scores if score is not None]),
        threshold=threshold,
        right=right,
    )
    return Picture.of(figure, name=name, caption="Scores of all picks above the threshold.")


def _scores_table(evaluation: Evaluation) -> Table:
    header = ["label", "truth", "picks", "found", "false", "missed", "precision", "recall", "F1"]
    header += ["average precision", "best F1", "at score", "error (Å)", "error (diameters)"]
    rows = [[name or "all", *_scores_row(r)] for name, r in evaluation.labels.items()]
    if len(rows) > 1:
        rows.append(["all together", *_scores_row(evaluation.micro)])
        rows.append(["mean of labels", *_scores_row(evaluation.macro)])
    n = len(evaluation.tomograms)
    caption = f"Rule {evaluation.rule}, matches within {evaluation.radius:g} Å. "
    interval = evaluation.micro.intervals.get("f1")
    if interval is not None:
        low, high = interval
        caption += f"F1 of all: 95 % interval {low:.2f} to {high:.2f} (bootstrap, {n} tomograms)."
    else:
        caption += "One tomogram, so no interval over tomograms."
    return Table(header, rows, caption)


def _scores_row(result: Result) -> list[str]:
    chosen, best = result.chosen, result.best
    counts = (chosen.n_truth, chosen.n_picks, chosen.n_tp, chosen.n_fp, chosen.n_fn)
    shares = (chosen.precision, chosen.recall, chosen.f1, result.average_precision, best.f1)
    return [
        *map(str, counts),
        *(_number(share, ".3f") for share in shares),
        _number(best.threshold, ".3g"),
        _number(chosen.rmse, ".1f"),
        _number(chosen.rmse_diameters, ".3f"),
    ]


def _counts_section(runs: Sequence[Run], judgement: _Judgement | None) -> Section:
    header = ["tomogram", "size (voxels)", "voxel (Å)", "picks", "at the edge", "threshold"]
    if judgement is not None:
        header += ["truth", "found", "false", "F1"]
    header += ["seconds", "memory (GiB)", "device"]
    rows = []
    for index, run in enumerate(runs):
        edge = run.particles.extra.get("tomolocEdge")
        shape = run.frame.shape
        row = [
            run.name,
            "-" if shape is None else " × ".join(str(n) for n in shape[::-1]),
            _number(run.frame.voxel_spacing, ".2f"),
            str(len(run.particles)),
            "-" if edge is None else str(int(np.count_nonzero(np.asarray(edge, dtype=float)))),
            _number(run.number("results", "threshold"), ".3g"),
        ]
        if judgement is not None:
            row += _verdict_row(judgement.verdicts.get(index))
        row += [
            _number(run.number("results", "seconds"), ".1f"),
            _number(run.number("results", "peak_memory_gib"), ".2f"),
            str(run.value("results", "device") or "-"),
        ]
        rows.append(row)
    blocks: list[Block] = [Table(header, rows)]
    picks = Particles.concatenate([run.particles for run in runs])
    if judgement is None and len(picks.labels) > 1:
        counts = [[name, str(np.count_nonzero(picks.label == name))] for name in picks.labels]
        blocks.append(Table(["label", "picks"], counts))
    return Section("Tomograms", blocks)


def _verdict_row(verdict: _Verdict | None) -> list[str]:
    if verdict is None:
        return ["-"] * 4
    found, n_picks = int(verdict.right.sum()), len(verdict.right)
    total = n_picks + verdict.n_truth
    f1 = 2 * found / total if total else float("nan")
    return [str(verdict.n_truth), str(found), str(n_picks - found), _number(f1, ".3f")]


def _run_section(
    run: Run, diameter: float | None, verdict: _Verdict | None, *, alone: bool
) -> Section:
    blocks: list[Block] = []
    right, missed = (verdict.right, verdict.missed) if verdict else (None, None)
    try:
        tomogram = run.read_tomogram()
    except (OSError, ValueError) as error:
        logger.warning("%s: no pictures: %s", run.name, error)
        blocks.append(Note(f"No pictures of this tomogram: {error}.", warning=True))
    else:
        wide = diameter or SHOWN_VOXELS * tomogram.voxel_spacing
        size = f"{wide / 10:.3g} nm" + ("" if diameter else ", a guess, as none was stated")
        count = _count(len(run.particles), "pick")
        if missed is not None:
            count += f", {len(missed)} missed"
        blocks.append(
            Picture.of(
                draw_slices(
                    tomogram,
                    run.particles,
                    diameter=wide,
                    right=right,
                    missed=missed,
                    title=f"{run.name} · {count}",
                ),
                name=f"{run.name}_slices",
                caption="Central slices, averaged and smoothed for the eye. Circles: picks whose"
                f" sphere ({size}) the slice cuts, in the colour of their score.",
                wide=True,
            )
        )
        if len(run.particles.labels) > 1:
            blocks.append(
                Picture.of(
                    draw_labels(
                        tomogram,
                        run.particles,
                        diameters=_label_diameters(run, wide),
                        title=run.name,
                    ),
                    name=f"{run.name}_labels",
                    caption="The central slice once for each label, with the number of its picks.",
                    wide=True,
                )
            )
        if len(run.particles):
            told = " Frames: blue right, orange wrong." if right is not None else ""
            blocks.append(
                Picture.of(
                    draw_montage(tomogram, run.particles, diameter=wide, right=right),
                    name=f"{run.name}_montage",
                    caption="The best picks and those nearest to the threshold, with their scores;"
                    f" each patch is {1.6 * wide / 10:.3g} nm wide.{told}",
                    wide=True,
                )
            )
    if not alone:
        blocks.append(_histogram([run], right, name=f"{run.name}_scores"))
    return Section(run.name, blocks)


def _parameters_section(runs: Sequence[Run]) -> Section:
    """Show parameters once where all runs share them, and what differs by tomogram."""
    flat = [dict(_flatten(run.record)) for run in runs]
    keys = list(dict.fromkeys(key for record in flat for key in record))
    per_tomogram = {"results", "inputs"}
    shared = [
        (key.partition(" ")[2], flat[0].get(key, "-"))
        for key in keys
        if len({record.get(key) for record in flat}) == 1
        and (len(runs) == 1 or key.partition(" ")[0] not in per_tomogram)
    ]
    differing = [
        key
        for key in keys
        if len({record.get(key) for record in flat}) > 1 and not key.startswith("results ")
    ]
    if not keys:
        return Section("Parameters", [Note("No run files (*.run.toml) lie beside the picks.")])
    blocks: list[Block] = [Facts(shared)] if shared else []
    if differing:
        header = ["tomogram", *(key.partition(" ")[2] for key in differing)]
        rows = [
            [run.name, *(record.get(key, "-") for key in differing)]
            for run, record in zip(runs, flat, strict=True)
        ]
        blocks.append(Table(header, rows, "What differs between tomograms"))
    return Section("Parameters", blocks)


def _flatten(record: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for section, entries in record.items():
        if not isinstance(entries, Mapping):
            yield f"run {section}", _text(entries)
            continue
        for key, value in entries.items():
            yield f"{section} {section if key == 'name' else key}", _text(value)


def _text(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, list):
        return " × ".join(_text(item) for item in value)
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_text(item)}" for key, item in value.items())
    return str(value) if value != "" else "-"


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:].rstrip(".") + "."


def _count(n: int, noun: str) -> str:
    return f"{n} {noun}{'' if n == 1 else 's'}"


def _number(value: float | None, form: str) -> str:
    return "-" if value is None or not np.isfinite(value) else format(value, form)
