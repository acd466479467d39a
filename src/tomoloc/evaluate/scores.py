"""Precision, recall and what follows from them, at the set and at the best threshold."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tomoloc.evaluate.results import Curve, Evaluation, Match, Result, Scores, f_score, ratio
from tomoloc.evaluate.rules import Case, Rule, find_rule
from tomoloc.evaluate.tables import Group, Pairing, normalise_name, pair_tables
from tomoloc.types import Particles, Volume

__all__ = ["draw_random_particles", "evaluate_particles", "match_particles"]

FloatArray = NDArray[np.floating[Any]]
IntArray = NDArray[np.integer[Any]]

N_BOOTSTRAP = 1000
N_RANDOM = 10
_METRICS = ("precision", "recall", "f1", "f_beta", "rmse", "rmse_diameters")


# ------------------------------------------------------------------------------------- matching


def match_particles(
    picks: Particles,
    truth: Particles,
    *,
    radius: float,
    rule: str = "gated",
    instances: Volume | None = None,
) -> Match:
    """Match picks to true particles of the same tomogram and label.

    Parameters
    ----------
    picks, truth : Particles
        Names and labels are laid together as `evaluate_particles` says.
    radius : float
        Largest distance of a match, in angstrom; what rules make of it is in `RULES`.
    rule : str
        One of `RULES`.
    instances : Volume of int, optional
        For rule `shrec` and a single tomogram: row of `truth` plus one at each voxel.

    Returns
    -------
    Match
        Pairs sorted by row of `picks`.

    Raises
    ------
    ValueError
        If the rule is unknown, the radius not positive, or the tables do not belong together.
    """
    how = find_rule(rule)
    _check_radius(radius)
    pairing = pair_tables(picks, truth)
    if instances is not None and len(pairing.tomograms) > 1:
        raise ValueError("instances are of one tomogram; pass grids to evaluate_particles instead")
    right = wrong = found = n_truth = 0
    pairs = [np.zeros((0, 2), dtype=int)]
    for group in pairing.groups():
        tally = how.count(pairing.case(group, radius=radius, instances=instances))
        right, wrong = right + tally.right.sum(), wrong + tally.wrong.sum()
        found, n_truth = found + tally.found.sum(), n_truth + len(group.truth)
        pairs.append(
            np.column_stack([group.picks[tally.pairs[:, 0]], group.truth[tally.pairs[:, 1]]])
        )
    joined = np.concatenate(pairs)
    joined = joined[np.lexsort((joined[:, 1], joined[:, 0]))]
    gap = picks.position[joined[:, 0]] - truth.position[joined[:, 1]]
    return Match(
        pairs=joined,
        distances=np.linalg.norm(gap, axis=1),
        n_tp=int(found),
        n_fp=int(wrong),
        n_fn=int(n_truth - found),
        n_right=int(right),
    )


def draw_random_particles(
    n: int, *, grid: Volume, rng: np.random.Generator, label: str = ""
) -> Particles:
    """Draw points uniformly in a tomogram: the control that every picker must beat.

    Parameters
    ----------
    n : int
        Number of points.
    grid : Volume
        Where they fall; its name becomes theirs.
    rng : numpy.random.Generator
        Draws positions and scores.
    label : str
        Of all of them.
    """
    low, high = _corners(grid)
    return Particles(
        position=rng.uniform(low, high, (n, 3)),
        label=label,
        tomogram=grid.name,
        score=rng.uniform(size=n),
    )


# ----------------------------------------------------------------------------------- evaluation


def evaluate_particles(
    picks: Particles,
    truth: Particles,
    *,
    radius: float | Mapping[str, float],
    rule: str = "gated",
    beta: float | None = None,
    diameter: float | Mapping[str, float] | None = None,
    labels: Collection[str] | None = None,
    grids: Mapping[str, Volume] | None = None,
    seed: int = 0,
) -> Evaluation:
    """Score picks against truth, by label and overall.

    Tomogram names are compared without folder, file ending, `_10.00Apx` and `_rec`; one
    tomogram on each side is the same one. A true particle in a tomogram without picks is a
    miss; picks in tomograms without truth are left out, and a note says so. Particles match
    only within their label: a pick of the wrong label is wrong. Where one side has no labels,
    labels are ignored; where the picks have a single label, only that one is scored; otherwise
    every label counts, also one that was never picked. True particles that are distractors
    (column tomolocRole) count only where picks or `labels` name their label.

    Parameters
    ----------
    picks, truth : Particles
        Picks without scores have no curve, no best threshold and no average precision.
    radius : float or mapping of label to float
        Largest distance of a match, in angstrom.
    rule : str
        One of `RULES`.
    beta : float, optional
        Weight of recall in F-beta, which picks the best threshold; 4 for rule `czii`, else 1.
    diameter : float or mapping of label to float, optional
        Of the particles, in angstrom, for errors in diameters.
    labels : collection of str, optional
        The only labels that count.
    grids : mapping of str to Volume, optional
        The tomograms that have truth, also where it is empty. Random points of rule `picket`
        fall in them (in the box around all points if not given), and integer data are the
        instances of rule `shrec`: row of the tomogram's truth plus one.
    seed : int
        Of bootstrap and random points.

    Returns
    -------
    Evaluation
        Scores by label, over all counts together (`micro`) and averaged over labels (`macro`).

    Raises
    ------
    ValueError
        If the rule is unknown, a radius missing or not positive, no tomogram or no label
        common to both, or a score is not a number.
    """
    how = find_rule(rule)
    beta = how.beta if beta is None else float(beta)
    volumes = {normalise_name(name): volume for name, volume in (grids or {}).items()}
    pairing = pair_tables(picks, truth, annotated=volumes, labels=labels)
    counting = _Counting(
        pairing=pairing,
        rule=how,
        radius=_by_label(radius, pairing.labels, "radius"),
        diameter=_by_label(np.nan if diameter is None else diameter, pairing.labels, "diameter"),
        grids=volumes,
    )
    for value in counting.radius:
        _check_radius(value)
    ledgers = counting.ledgers()
    results = [
        counting.result(name, ledgers[index], beta, [index])
        for index, name in enumerate(pairing.labels)
    ]
    micro = counting.result("micro", _join(ledgers), beta, range(len(ledgers)))
    results = [micro, _average(results), *results]
    if rule == "picket":
        results = _with_relative_recall(results, counting, np.random.default_rng(seed))
    if len(pairing.tomograms) > 1:
        results = _with_intervals(results, ledgers, beta, seed)
    own = dict(zip(pairing.labels, counting.radius, strict=True))
    return Evaluation(
        rule=rule,
        radius=own if isinstance(radius, Mapping) else radius,
        beta=beta,
        tomograms=pairing.tomograms,
        micro=results[0],
        macro=results[1],
        labels={result.label: result for result in results[2:]},
        notes=pairing.notes,
    )


class _Ledger(NamedTuple):
    """What each pick of one label adds to the counts, best first, and sums for each tomogram."""

    right: IntArray
    wrong: IntArray
    found: IntArray
    score: FloatArray
    tomogram: IntArray
    thresholds: FloatArray
    ranked: bool
    n_truth: IntArray
    errors: _Errors

    def cuts(self) -> IntArray:
        """Numbers of best picks that a threshold can keep."""
        if len(self.thresholds) == 0:
            return np.append(np.flatnonzero(np.diff(self.score)) + 1, len(self.score))
        cuts = np.unique(np.searchsorted(-self.score, -self.thresholds, side="right"))
        return cuts[cuts > 0]


class _Errors(NamedTuple):
    """Number of pairs and sums of their squared distances for each tomogram."""

    pairs: FloatArray
    squares: FloatArray
    squares_diameters: FloatArray


@dataclass(frozen=True, eq=False, kw_only=True)
class _Counting:
    """One rule at work on two paired tables."""

    pairing: Pairing
    rule: Rule
    radius: Sequence[float]
    diameter: Sequence[float]
    grids: Mapping[str, Volume]

    def thresholds(self) -> FloatArray:
        """Where the rule's curve is sampled; empty means at every score."""
        score = self.pairing.score()
        if not self.rule.percentiles or len(score) == 0:
            return np.zeros(0)
        return np.percentile(score, [0, *self.rule.percentiles])

    def ledgers(self) -> list[_Ledger]:
        """Count picks and truth of each label over all tomograms."""
        score, thresholds = self.pairing.score(), self.thresholds()
        n_labels, n_tomograms = len(self.pairing.labels), len(self.pairing.tomograms)
        errors = [self._no_errors() for _ in range(n_labels)]
        n_truth = np.zeros((n_labels, n_tomograms), dtype=int)
        columns: list[list[Sequence[NDArray[Any]]]] = [[] for _ in range(n_labels)]
        for group in self.pairing.groups():
            own = score[group.picks]
            cuts = tuple(np.searchsorted(-own, -thresholds, side="right").tolist())
            tally = self.rule.count(replace(self.case(group), cuts=cuts))
            self._add_errors(errors[group.label], group, tally.pairs)
            n_truth[group.label, group.tomogram] = len(group.truth)
            where = np.full(len(own), group.tomogram)
            columns[group.label].append([tally.right, tally.wrong, tally.found, own, where])
        return [
            _sorted(
                [np.concatenate(column) for column in zip(*columns[label], strict=True)],
                thresholds=thresholds,
                ranked=self.pairing.picks.score is not None,
                n_truth=n_truth[label],
                errors=errors[label],
            )
            for label in range(n_labels)
        ]

    def result(self, name: str, ledger: _Ledger, beta: float, labels: Sequence[int]) -> Result:
        """Score one label, or several with a common threshold."""
        n_picks, curve = len(ledger.score), _curve(ledger, beta)
        lowest = float(ledger.score[-1]) if n_picks and ledger.ranked else float("nan")
        chosen = best = _scores(ledger, n_picks, lowest, ledger.errors, beta)
        if ledger.ranked and np.isfinite(curve.f_beta).any():
            top = int(np.nanargmax(curve.f_beta))
            threshold = float(curve.threshold[top])
            errors = self._errors_above(threshold, labels)
            best = _scores(ledger, int(curve.n_picks[top]), threshold, errors, beta)
        precision = _average_precision(curve) if ledger.ranked else float("nan")
        return Result(name, chosen, best, precision, curve)

    def case(self, group: Group) -> Case:
        """Hand a group to the rule, with the instances of its tomogram if there are any."""
        volume = self.grids.get(self.pairing.tomograms[group.tomogram])
        if volume is not None and not np.issubdtype(volume.data.dtype, np.integer):
            volume = None
        return self.pairing.case(group, radius=self.radius[group.label], instances=volume)

    def box(self, tomogram: int) -> tuple[FloatArray, FloatArray]:
        """Corners of a tomogram, or of the box around all its particles."""
        volume = self.grids.get(self.pairing.tomograms[tomogram])
        if volume is not None:
            return _corners(volume)
        points = np.concatenate(
            [
                self.pairing.picks.position[self.pairing.pick_tomogram == tomogram],
                self.pairing.truth.position[self.pairing.truth_tomogram == tomogram],
            ]
        )
        return points.min(axis=0), points.max(axis=0)

    def _errors_above(self, threshold: float, labels: Sequence[int]) -> _Errors:
        """Match only picks at or above a threshold and sum up their errors."""
        score, errors = self.pairing.score(), self._no_errors()
        for group in self.pairing.groups():
            if group.label in labels:
                kept = group._replace(picks=group.picks[score[group.picks] >= threshold])
                self._add_errors(errors, kept, self.rule.count(self.case(kept)).pairs)
        return errors

    def _no_errors(self) -> _Errors:
        n = len(self.pairing.tomograms)
        return _Errors(np.zeros(n), np.zeros(n), np.zeros(n))

    def _add_errors(self, errors: _Errors, group: Group, pairs: IntArray) -> None:
        if len(pairs):
            ours = self.pairing.picks.position[group.picks[pairs[:, 0]]]
            theirs = self.pairing.truth.position[group.truth[pairs[:, 1]]]
            squares = ((ours - theirs) ** 2).sum()
            errors.pairs[group.tomogram] += len(pairs)
            errors.squares[group.tomogram] += squares
            errors.squares_diameters[group.tomogram] += squares / self.diameter[group.label] ** 2


def _sorted(
    columns: Sequence[NDArray[Any]],
    *,
    thresholds: FloatArray,
    ranked: bool,
    n_truth: IntArray,
    errors: _Errors,
) -> _Ledger:
    """Bring picks of all tomograms into the order of their scores."""
    order = np.argsort(-columns[3], kind="stable")
    right, wrong, found, score, tomogram = (column[order] for column in columns)
    return _Ledger(right, wrong, found, score, tomogram, thresholds, ranked, n_truth, errors)


def _join(ledgers: Sequence[_Ledger]) -> _Ledger:
    """Pool labels under a common threshold."""
    sums = zip(*(ledger.errors for ledger in ledgers), strict=True)
    return _sorted(
        [np.concatenate([ledger[column] for ledger in ledgers]) for column in range(5)],
        thresholds=ledgers[0].thresholds,
        ranked=ledgers[0].ranked,
        n_truth=np.sum([ledger.n_truth for ledger in ledgers], axis=0),
        errors=_Errors(*(np.sum(sum_, axis=0) for sum_ in sums)),
    )


_NO_CURVE = Curve(np.zeros(0), np.zeros(0, dtype=int), np.zeros(0), np.zeros(0), np.zeros(0))


def _curve(ledger: _Ledger, beta: float) -> Curve:
    if len(ledger.score) == 0:
        return _NO_CURVE
    cuts = ledger.cuts()
    right, wrong, found = (np.cumsum(column)[cuts - 1] for column in ledger[:3])
    precision = ratio(right, right + wrong)
    recall = ratio(found, ledger.n_truth.sum())
    f_beta = f_score(precision, recall, beta)
    return Curve(ledger.score[cuts - 1], cuts, precision, recall, f_beta)


def _average_precision(curve: Curve) -> float:
    """Sum up precision times the step in recall; 0 without picks, undefined without truth."""
    return float((np.diff(curve.recall, prepend=0.0) * np.nan_to_num(curve.precision)).sum())


def _scores(ledger: _Ledger, cut: int, threshold: float, errors: _Errors, beta: float) -> Scores:
    right, wrong, found = (int(column[:cut].sum()) for column in ledger[:3])
    n_truth = int(ledger.n_truth.sum())
    precision, recall = ratio(right, right + wrong), ratio(found, n_truth)
    rmse, rmse_diameters = _rmse(_Errors(*(sums.sum(keepdims=True) for sums in errors)))
    return Scores(
        threshold=threshold,
        n_picks=cut,
        n_truth=n_truth,
        n_tp=found,
        n_fp=wrong,
        n_fn=n_truth - found,
        precision=float(precision),
        recall=float(recall),
        f1=float(f_score(precision, recall, 1.0)),
        f_beta=float(f_score(precision, recall, beta)),
        rmse=rmse.item(),
        rmse_diameters=rmse_diameters.item(),
    )


def _average(results: Sequence[Result]) -> Result:
    """Mean over labels that have truth; counts are summed."""
    known = [result for result in results if result.chosen.n_truth]

    def mean(every: Sequence[Scores]) -> Scores:
        rows = [asdict(scores) for scores in every]
        values = {m: float(_mean(np.array([row[m] for row in rows]))) for m in _METRICS}
        counts = {key: sum(row[key] for row in rows) for key in asdict(results[0].chosen)}
        return Scores(**{**counts, **values, "threshold": float("nan")})

    return Result(
        label="macro",
        chosen=mean([result.chosen for result in known]),
        best=mean([result.best for result in known]),
        average_precision=float(_mean(np.array([result.average_precision for result in known]))),
        curve=_NO_CURVE,
    )


# ------------------------------------------------------------------- random points and bootstrap


def _with_relative_recall(
    results: Sequence[Result], counting: _Counting, rng: np.random.Generator
) -> list[Result]:
    """Hold the recalls of micro, macro and labels against those of as many random points."""
    pairing = counting.pairing
    found, n_truth = np.zeros((2, len(pairing.labels)))
    for group in pairing.groups():
        n_truth[group.label] += len(group.truth)
        if len(group.picks) and len(group.truth):
            low, high = counting.box(group.tomogram)
            case = counting.case(group)
            for _ in range(N_RANDOM):
                points = rng.uniform(low, high, case.picks.shape)
                tally = counting.rule.count(replace(case, picks=points))
                found[group.label] += tally.found.sum() / N_RANDOM
    random = [ratio(found.sum(), n_truth.sum()), np.nan, *ratio(found, n_truth)]
    relative = [
        _relative_recall(result.chosen.recall, recall)
        for result, recall in zip(results, random, strict=True)
    ]
    relative[1] = float(_mean(np.array(relative[2:])))
    return [replace(r, relative_recall=x) for r, x in zip(results, relative, strict=True)]


def _relative_recall(recall: float, random_recall: float) -> float:
    """Harmonic mean of recall and 1 - recall of random points (PickET, PMC12633485)."""
    missing = np.isnan(recall) or np.isnan(random_recall)
    return float("nan") if missing else float(f_score(recall, 1 - random_recall, 1.0))


def _with_intervals(
    results: Sequence[Result], ledgers: Sequence[_Ledger], beta: float, seed: int
) -> list[Result]:
    """Add bootstrap intervals over tomograms to micro, macro and labels."""
    n_tomograms = len(ledgers[0].n_truth)
    equal = np.full(n_tomograms, 1 / n_tomograms)
    draws = np.random.default_rng(seed).multinomial(n_tomograms, equal, size=N_BOOTSTRAP)
    tables = [_replicates(ledger, draws, beta) for ledger in ledgers]
    known = [table for table, r in zip(tables, results[2:], strict=True) if r.chosen.n_truth]
    micro = _replicates(_join(ledgers), draws, beta) if len(tables) > 1 else tables[0]
    macro = {key: _mean(np.array([table[key] for table in known])) for key in tables[0]}
    # A label that only one tomogram knows has no spread over tomograms.
    spread = [True, True, *(_n_tomograms(ledger) > 1 for ledger in ledgers)]
    return [
        replace(result, intervals=_intervals(table) if wide else {})
        for result, table, wide in zip(results, [micro, macro, *tables], spread, strict=True)
    ]


def _n_tomograms(ledger: _Ledger) -> int:
    """Count the tomograms in which there are picks or truth."""
    return len({*ledger.tomogram.tolist(), *np.flatnonzero(ledger.n_truth).tolist()})


def _replicates(ledger: _Ledger, draws: IntArray, beta: float) -> dict[str, FloatArray]:
    """Score bootstrap samples, draws (sample, tomogram) (Efron 1979, doi:10.1214/aos/1176344552).

    A tomogram that is drawn twice counts twice; the matching itself stays as it is.
    """
    n_tomograms = draws.shape[1]
    right, wrong, found = (
        draws @ np.bincount(ledger.tomogram, column, minlength=n_tomograms) for column in ledger[:3]
    )
    precision, recall = ratio(right, right + wrong), ratio(found, draws @ ledger.n_truth)
    rmse, rmse_diameters = _rmse(_Errors(*(draws @ sums for sums in ledger.errors)))
    table = {
        "precision": precision,
        "recall": recall,
        "f1": f_score(precision, recall, 1.0),
        "f_beta": f_score(precision, recall, beta),
        "rmse": rmse,
        "rmse_diameters": rmse_diameters,
    }
    if not ledger.ranked:
        return table
    best, average = np.full((2, len(draws)), np.nan)
    for sample, drawn in enumerate(draws):
        right, wrong, found = (column * drawn[ledger.tomogram] for column in ledger[:3])
        curve = _curve(
            ledger._replace(right=right, wrong=wrong, found=found, n_truth=ledger.n_truth * drawn),
            beta,
        )
        best[sample] = np.nan_to_num(curve.f_beta).max(initial=0.0)
        average[sample] = _average_precision(curve)
    return table | {"best_f_beta": best, "average_precision": average}


def _intervals(table: Mapping[str, FloatArray]) -> dict[str, tuple[float, float]]:
    intervals = {}
    for name, values in table.items():
        known = values[np.isfinite(values)]
        if len(known):
            low, high = np.percentile(known, [2.5, 97.5])
            intervals[name] = (float(low), float(high))
    return intervals


# --------------------------------------------------------------------------------------- numbers


def _corners(grid: Volume) -> tuple[FloatArray, FloatArray]:
    low = grid.origin - grid.voxel_spacing / 2
    return low, low + grid.extent


def _rmse(errors: _Errors) -> tuple[Any, Any]:
    n = errors.pairs
    return np.sqrt(ratio(errors.squares, n)), np.sqrt(ratio(errors.squares_diameters, n))


def _mean(values: FloatArray) -> Any:
    """Mean over the first axis without what is not a number."""
    known = np.isfinite(values)
    return ratio(np.where(known, values, 0.0).sum(axis=0), known.sum(axis=0))


def _by_label(value: float | Mapping[str, float], labels: Sequence[str], name: str) -> list[float]:
    if not isinstance(value, Mapping):
        return [float(value)] * len(labels)
    missing = [label for label in labels if label not in value]
    if missing:
        raise ValueError(f"no {name} for label {missing[0]!r}; give one for each label")
    return [float(value[label]) for label in labels]


def _check_radius(radius: float) -> None:
    if not (np.isfinite(radius) and radius > 0):
        raise ValueError(f"radius must be positive (angstrom); got {radius}")
