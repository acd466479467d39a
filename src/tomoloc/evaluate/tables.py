"""Lay two particle tables side by side: which tomogram and label of one is which of the other."""

from __future__ import annotations

import logging
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tomoloc.evaluate.rules import Case
from tomoloc.types import Particles, Volume

__all__ = ["Group", "Pairing", "normalise_name", "pair_tables"]

logger = logging.getLogger(__name__)

IntArray = NDArray[np.integer[Any]]

ROLE = "tomolocRole"
_SUFFIX = re.compile(
    r"(\.(tomostar|mrcs?|rec|map|st|ali|gz|zarr|ome|star|npy|npz|tiff?|em|hdf|h5|xml|mod|tbl|json)"
    r"|_\d+(\.\d+)?Apx|_rec)$",
    re.IGNORECASE,
)


def normalise_name(name: str) -> str:
    """Return a tomogram's name without folder, file endings, `_10.00Apx` and `_rec`.

    Examples
    --------
    >>> normalise_name("warp/TS_01.mrc_10.00Apx.mrc"), normalise_name("TS_01_rec.tomostar")
    ('TS_01', 'TS_01')
    """
    short = re.split(r"[\\/]", str(name).rstrip("\\/"))[-1]
    while (cut := _SUFFIX.sub("", short)) not in {"", short}:
        short = cut
    return short


class Group(NamedTuple):
    """Rows of one tomogram and label: picks best first, truth in the order of its table."""

    label: int
    tomogram: int
    picks: IntArray
    truth: IntArray


@dataclass(frozen=True, eq=False, kw_only=True)
class Pairing:
    """Two tables and, for each row, the index of its tomogram and label (-1: takes no part)."""

    picks: Particles
    truth: Particles
    tomograms: tuple[str, ...]
    labels: tuple[str, ...]
    pick_tomogram: IntArray
    pick_label: IntArray
    truth_tomogram: IntArray
    truth_label: IntArray
    notes: tuple[str, ...]

    def score(self) -> NDArray[np.floating[Any]]:
        """One score for each pick; equal ones where the table has none."""
        score = self.picks.score
        return np.zeros(len(self.picks)) if score is None else np.asarray(score)

    def groups(self) -> Iterator[Group]:
        """Iterate over tomograms within labels, those without picks or truth included."""
        order = np.argsort(-self.score(), kind="stable")
        for label in range(len(self.labels)):
            ours = order[self.pick_label[order] == label]
            theirs = np.flatnonzero(self.truth_label == label)
            for tomogram in range(len(self.tomograms)):
                yield Group(
                    label,
                    tomogram,
                    ours[self.pick_tomogram[ours] == tomogram],
                    theirs[self.truth_tomogram[theirs] == tomogram],
                )

    def case(self, group: Group, *, radius: float, instances: Volume | None = None) -> Case:
        """Hand a group to a rule; an instance volume tells which truth each pick hits."""
        positions = self.picks.position[group.picks]
        return Case(
            picks=positions,
            truth=self.truth.position[group.truth],
            radius=radius,
            hit=None if instances is None else self._hit(group, positions, instances),
        )

    def _hit(self, group: Group, positions: NDArray[Any], instances: Volume) -> IntArray:
        place = np.rint(instances.to_index(positions)).astype(int)
        place = np.clip(place, 0, np.array(instances.shape) - 1)
        value = instances.data[tuple(place.T)].astype(int)
        # Instances count the truth of the whole tomogram, whatever its label.
        rows = np.flatnonzero(self.truth_tomogram == group.tomogram)
        local = np.full(max(len(rows), int(value.max(initial=0))) + 1, -1)
        own = np.isin(rows, group.truth)
        local[1 : len(rows) + 1][own] = np.arange(len(group.truth))
        return local[value]


def pair_tables(
    picks: Particles,
    truth: Particles,
    *,
    annotated: Iterable[str] = (),
    labels: Collection[str] | None = None,
) -> Pairing:
    """Lay picks beside truth by normalised tomogram name and by label.

    One tomogram on each side is the same one. Picks in tomograms that nobody annotated are left
    out. Where one side has no labels at all, labels are ignored; where the picks have a single
    label, truth of other labels is left out; otherwise every label counts. True particles that
    are distractors (column tomolocRole) count only where picks, or `labels`, name their label:
    nobody was to find them, but a pick of another label on one of them is wrong.

    Parameters
    ----------
    picks, truth : Particles
        The two tables.
    annotated : iterable of str
        Names of tomograms that have truth, also where it is empty.
    labels : collection of str, optional
        The only labels that count; picks and truth of others are left out.

    Raises
    ------
    ValueError
        If no tomogram or no label is common to both, two names of one side mean the same
        tomogram, or a score is not a number.
    """
    if picks.score is not None and not np.isfinite(picks.score).all():
        bad = int(np.flatnonzero(~np.isfinite(picks.score))[0])
        raise ValueError(f"score of pick {bad + 1} is not a number; remove such picks first")
    tomograms, pick_tomogram, truth_tomogram, notes = _pair_tomograms(picks, truth, annotated)
    sought, distractors = _sought(picks, truth, labels)
    names, pick_label, sought_label, more = _pair_labels(picks, truth[sought], labels)
    truth_label = np.full(len(truth), -1)
    truth_label[sought] = sought_label
    notes += [*distractors, *more]
    for note in notes:
        logger.warning("%s", note)

    return Pairing(
        picks=picks,
        truth=truth,
        tomograms=tomograms,
        labels=names,
        pick_tomogram=pick_tomogram,
        pick_label=pick_label,
        truth_tomogram=truth_tomogram,
        truth_label=truth_label,
        notes=tuple(notes),
    )


def _codes(values: Any, code_of: Mapping[str, int]) -> IntArray:
    """Number each value by `code_of`, -1 where it is missing."""
    names, inverse = np.unique(np.asarray(values, dtype=np.str_), return_inverse=True)
    code = np.array([code_of.get(str(name), -1) for name in names], dtype=int)
    return code[inverse.ravel()] if len(names) else np.zeros(0, dtype=int)


def _short_names(names: Iterable[str], side: str) -> dict[str, str]:
    short: dict[str, str] = {}
    for name in names:
        key = normalise_name(name)
        if short.setdefault(key, name) != name:
            raise ValueError(
                f"the {side} have tomograms {short[key]!r} and {name!r}, both meaning {key!r};"
                " evaluate them separately"
            )
    return short


def _pair_tomograms(
    picks: Particles, truth: Particles, annotated: Iterable[str]
) -> tuple[tuple[str, ...], IntArray, IntArray, list[str]]:
    ours = _short_names(picks.tomograms, "picks")
    theirs = _short_names(truth.tomograms, "true particles")
    known = list(dict.fromkeys([*theirs, *map(normalise_name, annotated)]))
    if len(known) <= 1 and len(ours) <= 1:
        name = next((n for n in [*known, *ours] if n), "")
        zeros = [np.zeros(len(table), dtype=int) for table in (picks, truth)]
        return (name,), zeros[0], zeros[1], []
    known = known or list(ours)
    code = {name: index for index, name in enumerate(known)}
    strangers = [name for name in ours if name not in code]
    if ours and len(strangers) == len(ours):
        raise ValueError(
            f"no tomogram is common to both: the picks are from {_few(ours)},"
            f" the truth is of {_few(known)}; give the truth of that tomogram alone, or rename"
        )
    notes = []
    if strangers:
        notes = [f"picks in {len(strangers)} tomogram(s) without truth left out: {_few(strangers)}"]
    return (
        tuple(known),
        _codes(picks.tomogram, {ours[name]: code.get(name, -1) for name in ours}),
        _codes(truth.tomogram, {theirs[name]: code[name] for name in theirs}),
        notes,
    )


def _sought(
    picks: Particles, truth: Particles, wanted: Collection[str] | None
) -> tuple[NDArray[np.bool_], list[str]]:
    """Tell which true particles were to be found, and note which were not."""
    role = np.asarray(truth.extra.get(ROLE, np.full(len(truth), "")), dtype=np.str_)
    named = [name for name in {*picks.labels, *(wanted or ())} if name]
    sought = (role != "distractor") | np.isin(np.asarray(truth.label), named)
    left_out = truth[~sought]
    few = _few(name for name in left_out.labels if name)
    notes = [f"{len(left_out)} distractors left out of the truth{few and ': '}{few}"]
    return sought, notes if len(left_out) else []


def _pair_labels(
    picks: Particles, truth: Particles, wanted: Collection[str] | None
) -> tuple[tuple[str, ...], IntArray, IntArray, list[str]]:
    ours, theirs = (_wanted_labels(table.labels, wanted) for table in (picks, truth))
    if wanted is not None and not ours and not theirs:
        raise ValueError(
            f"no particle has label {_few(wanted)}: the picks have {_few(picks.labels)}, the truth"
            f" has {_few(truth.labels)}"
        )
    if ours == [""] or theirs == [""]:
        named = [name for name in {*ours, *theirs} if name]
        alone = named[0] if len(named) == 1 else ""
        codes = [_codes(t.label, dict.fromkeys({*ours, *theirs}, 0)) for t in (picks, truth)]
        side = "picks" if ours == [""] else "truth"
        notes = [f"labels ignored: {side} have none"] if len(named) > 1 else []
        return (alone,), codes[0], codes[1], notes
    if ours and theirs and not set(ours) & set(theirs):
        raise ValueError(
            f"no label is common to both: the picks have {_few(ours)}, the truth has"
            f" {_few(theirs)}; rename labels of the picks or ignore labels"
        )
    labels, notes = sorted({*ours, *theirs}), []
    if wanted is None and len(ours) == 1 and len(theirs) > 1:
        others = [name for name in theirs if name != ours[0]]
        notes = [f"all picks are {ours[0]!r}: truth of other labels left out: {_few(others)}"]
        labels = ours
    code = {name: index for index, name in enumerate(labels)}
    return tuple(labels) or ("",), _codes(picks.label, code), _codes(truth.label, code), notes


def _wanted_labels(labels: list[str], wanted: Collection[str] | None) -> list[str]:
    """Choose among a table's labels; one without labels keeps all its rows."""
    return labels if wanted is None or labels == [""] else [x for x in labels if x in wanted]


def _few(names: Iterable[str]) -> str:
    listed = [repr(str(name)) for name in names]
    return ", ".join(listed[:4]) + (f" and {len(listed) - 4} more" if len(listed) > 4 else "")
