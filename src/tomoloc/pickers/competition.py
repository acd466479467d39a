"""Which label each candidate is of, if any: all labels compete, and scores are probabilities.

One example of a label is one view of it. The candidates of a tomogram show what kinds there are,
with a name or without (`tomoloc.features.kinds`); the target of a label is the centre of a kind of
its own, which its examples hold. How alike a candidate and its best target are, how alike it and
the nearest rival are, another label or a kind without a name, whether both are of one kind, and
how much the candidate looks like a centre, together give the odds that it is of that label, as
measured on simulated tomograms of other molecules (`Calibration`). Where candidates were aligned
and averaged (`tomoloc.features.classification`), how much better one fits the average of its label
than any other is evidence, too, and may speak for another label than its vector does. How many
particles there are differs between tomograms: that is estimated from the odds themselves.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import expit, logit

from tomoloc.features.kinds import Kinds, find_kinds, name_kinds, own_kinds, unit
from tomoloc.pickers.naming import Fitted, label_best, measure_lead, name_averages

__all__ = ["Averaged", "Calibration", "adapt_share", "best_threshold", "compete"]
__all__ += ["fit_calibration", "mean_direction", "measure_spread"]

logger = logging.getLogger(__name__)

Floats = NDArray[np.float64]

_WEIGHTS = ("unlike", "unlike_rival", "same", "center", "lead")
"""Of what is seen of a candidate, in this order."""
_BANDWIDTHS = (0.4, 0.55, 0.75, 1.0)
"""At which kinds are looked for: no single one suits sparse and crowded tomograms."""
_CENTER = 0.4
"""Probability of a centre from which on a candidate counts fully."""
_PULL = 2.0
"""How many examples the kind that they are of counts as, where its target starts."""
_HOLD = 2.0
"""How many particles an example counts as, when a target settles among those of its kind."""
_FIXED = 1e9
"""The same for a target that shall not move."""
_PRIOR_STRENGTH = 20.0
"""How many candidates the share of particles known from calibration counts as."""
_EXAMPLES = (1, 2, 3, 5)
"""Of each label, with which calibration looks for it in turn."""
_FEWEST = 3
"""Particles of a label that calibration makes use of, beside the examples."""
_TOGETHER = 3
"""Candidates of a label that are right or wrong together, the likeliest first."""
_CLOSEST = 1e-4
"""Vectors that differ by less are one."""


@dataclass(frozen=True, kw_only=True)
class Averaged:
    """The same as `Calibration`, where the best label has an average.

    Parameters
    ----------
    unlike, unlike_rival, same, center : float
        As there.
    lead : float
        Weight of how much better the candidate fits that average than any other, from
        `tomoloc.pickers.naming.measure_lead`.
    intercept, share : float
        As there.
    """

    unlike: float
    unlike_rival: float
    same: float
    center: float
    lead: float
    intercept: float
    share: float


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """From what is seen of a candidate to the odds that it is of its best label.

    Parameters
    ----------
    unlike, unlike_rival, same, center : float
        Weights of the logarithm of 1 - similarity to the best target, of that to its nearest
        rival, and of the logits of the probabilities of one kind and of a centre.
    intercept : float
    share : float
        Of the candidates of the tomograms of the calibration, those that were of their label.
    spread : float
        How far vectors lie from the mean of their kind, as 1 - cosine; 0 where that is not known.
    averaged : Averaged, optional
        The same with averages of candidates.
    """

    unlike: float = -1.06
    unlike_rival: float = 0.54
    same: float = 0.23
    center: float = 0.99
    intercept: float = -3.2
    share: float = 0.16
    spread: float = 0.0
    averaged: Averaged | None = None

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> Calibration:
        """Take the calibration from a model's configuration, or a typical one.

        Raises
        ------
        ValueError
            If there is one, and it is damaged.
        """
        values = dict(config.get("calibration", {}))
        if not values:
            return cls()
        try:
            averaged = values.pop("averaged", None)
            return cls(
                **_numbers(values, like=cls().to_dict()),
                averaged=None
                if averaged is None
                else Averaged(**_numbers(averaged, like=Averaged.__dataclass_fields__)),
            )
        except (TypeError, ValueError, AttributeError) as error:
            raise ValueError(f"the model's calibration is damaged ({error})") from error

    def to_dict(self) -> dict[str, Any]:
        """Return the numbers by name; those with averages in a table of their own, if there are."""
        values = asdict(self)
        if self.averaged is None:
            del values["averaged"]
        return values


def _numbers(values: Mapping[str, Any], *, like: Iterable[str]) -> dict[str, Any]:
    """Numbers by name; none may be missing."""
    if missing := set(like) - set(values):
        raise ValueError(f"it lacks {', '.join(sorted(missing))}: train the model again")
    return {name: float(value) for name, value in values.items()}


def compete(
    vectors: ArrayLike,
    center: ArrayLike,
    *,
    examples: Sequence[ArrayLike],
    calibration: Calibration | None = None,
    refine: bool = True,
    fitted: Fitted | None = None,
) -> Floats:
    """Tell of which label each candidate is.

    Parameters
    ----------
    vectors : array_like, shape (n, channels)
        Unit vectors of the candidates of one tomogram.
    center : array_like, shape (n,)
        Probability that a particle's centre is there.
    examples : sequence of array_like, each of shape (k, channels)
        Unit vectors of the examples of each label.
    calibration : Calibration, optional
        Of the model that made the vectors.
    refine : bool
        Move targets towards the kinds of particles that they are of.
    fitted : Fitted, optional
        Averages of the candidates, from `tomoloc.features.classification`; used with a calibration
        that tells what they mean.

    Returns
    -------
    ndarray, shape (n, label)
        Probability of the label; 0 for all labels but a candidate's best one.

    Raises
    ------
    ValueError
        If there is no label, or one without an example.

    References
    ----------
    The share of particles follows from the odds by expectation and maximisation: Saerens et al.,
    Neural Computation 14, 21 (2002), doi:10.1162/089976602753284446.
    """
    calibration = calibration or Calibration()
    seen = _Candidates.of(vectors, center, spread=calibration.spread)
    compared = seen.compare(examples, refine=refine)
    best, chance = compared.best, compared.judge(calibration)
    averaged = calibration.averaged
    if fitted is not None and averaged is not None:
        fit = _choose(compared.fit(fitted, seen.vectors, calibration), calibration, averaged)
        best, chance = fit.label, _limit(fit.chance(calibration, averaged), seen.center)
    probability = np.zeros((len(best), len(examples)))
    probability[np.arange(len(best)), best] = chance
    return probability


def fit_calibration(
    tomograms: Sequence[tuple[ArrayLike, ArrayLike, ArrayLike]],
    *,
    seed: int,
    targets: int = 7,
    fitted: Sequence[Fitted] = (),
) -> Calibration:
    """Measure how odds follow from what is seen, on tomograms whose particles are known.

    Parameters
    ----------
    tomograms : sequence of (vectors, center, label)
        Candidates of each tomogram: arrays of shapes (n, channels) and (n,), and the label of each
        as text, empty where there is no particle.
    seed : int
        Chooses examples.
    targets : int
        Labels that are looked for in one tomogram, with one example each, then with several.
    fitted : sequence of Fitted
        Averages of the candidates of the first tomograms.

    Returns
    -------
    Calibration

    Raises
    ------
    ValueError
        If there is nothing to learn from.
    """
    spread = measure_spread(tomograms)
    observed, trials = [], []
    for number, (vectors, center, label) in enumerate(tomograms):
        rng = np.random.default_rng([seed, number])
        seen, label = _Candidates.of(vectors, center, spread=spread), np.asarray(label)
        for drawn in _draw_examples(label, targets, rng):
            compared = seen.compare([seen.vectors[own] for own in drawn])
            names = np.array([label[own[0]] for own in drawn])
            others = ~np.isin(np.arange(len(label)), np.concatenate(drawn))
            x, right = compared.observe(compared.best), label == names[compared.best]
            observed.append((x[others], right[others]))
            if number < len(fitted):
                trials.append(
                    _Trial(
                        averages=fitted[number],
                        seen=seen,
                        compared=compared,
                        label=label,
                        names=names,
                        others=others,
                    )
                )
    found = replace(Calibration(spread=spread), **_regress(observed))
    try:
        return replace(found, averaged=_fit_averaged(trials, found)) if trials else found
    except ValueError as error:
        logger.warning("what averages of candidates mean is not known: %s", error)
        return found


def _fit_averaged(trials: Sequence[_Trial], calibration: Calibration) -> Averaged:
    """Odds with averages: first of both labels that a candidate may be of, then of the likelier."""
    pairs = [(trial, trial.fits(calibration)) for trial in trials]
    each = [
        part
        for trial, (first, second) in pairs
        for part in (trial.learn(first), trial.learn(second, second.label != first.label))
    ]
    averaged = Averaged(**_regress(each))
    chosen = [trial.learn(_choose(fits, calibration, averaged)) for trial, fits in pairs]
    return Averaged(**_regress(chosen))


@dataclass(frozen=True, eq=False, kw_only=True)
class _Trial:
    """Some labels that are looked for in a tomogram whose particles are known."""

    averages: Fitted
    seen: _Candidates
    compared: _Compared
    label: NDArray[np.str_]
    names: NDArray[np.str_]
    others: NDArray[np.bool_]

    def fits(self, calibration: Calibration) -> tuple[_Fit, _Fit]:
        return self.compared.fit(self.averages, self.seen.vectors, calibration)

    def learn(
        self, fit: _Fit, some: NDArray[np.bool_] | None = None
    ) -> tuple[Floats, NDArray[np.bool_]]:
        """What is seen of candidates, other than examples, that have an average; who is right."""
        rows = self.others & fit.known & (True if some is None else some)
        return fit.x[rows], (self.label == self.names[fit.label])[rows]


def _regress(observed: Sequence[tuple[Floats, NDArray[np.bool_]]]) -> dict[str, Any]:
    """Weights, intercept and share by logistic regression."""
    from sklearn.linear_model import LogisticRegression

    x, y = (np.concatenate([part[i] for part in observed] or [np.zeros(0)]) for i in (0, 1))
    if len(np.unique(y)) < 2:
        raise ValueError("calibration needs tomograms with several particles of several labels")
    model = LogisticRegression(C=10.0, max_iter=2000).fit(x, y)
    weights = dict(zip(_WEIGHTS, model.coef_[0].tolist(), strict=False))
    return {**weights, "intercept": float(model.intercept_[0]), "share": float(y.mean())}


def best_threshold(probability: ArrayLike, *, least: float) -> float:
    """Return the threshold at which the F1 that is to be expected is highest.

    Taking nothing has an F1 of 1 where nothing is there, and of 0 elsewhere: where that promises
    more than any choice, the threshold is 0.5. What is mistaken for a label comes in groups of
    like candidates, which are wrong together.

    Parameters
    ----------
    probability : array_like, shape (n,)
        Of all candidates of a label, in one tomogram or several, that they are right.
    least : float
        The result is at least that.

    Returns
    -------
    float
        Half of the highest F1, and so at most 0.5 [1]_.

    References
    ----------
    .. [1] Lipton, Elkan & Naryanaswamy, Optimal thresholding of classifiers to maximize F1 measure,
       ECML PKDD (2014), doi:10.1007/978-3-662-44851-9_15.
    """
    p = np.sort(np.asarray(probability, dtype=np.float64))[::-1]
    if not len(p):
        return 0.5
    f1 = 2 * np.cumsum(p) / (np.arange(1, len(p) + 1) + p.sum())
    # That is for many candidates. Among few, one that is right has others beside it, and is there.
    n_taken = int(f1.argmax()) + 1
    groups = np.pad(p, (0, -len(p) % _TOGETHER)).reshape(-1, _TOGETHER)
    least_of = np.minimum(groups[:, None], groups[:, :, None])
    beside = (least_of / np.maximum(groups[:, :, None], _CLOSEST)).sum(axis=2)
    there = beside + p.sum() - groups.sum(axis=1, keepdims=True)
    promised = np.sum(2 * p[:n_taken] / (n_taken + there.ravel()[:n_taken]))
    if np.prod(1 - groups[:, 0]) > promised:
        return 0.5
    return float(max(f1.max() / 2, least))


def mean_direction(vectors: ArrayLike) -> Floats:
    """Direction of a label's examples, with less weight for those that are unlike the others.

    Parameters
    ----------
    vectors : array_like, shape (k, channels)
        Unit vectors.

    Returns
    -------
    ndarray, shape (channels,)
        Of length 1; the first vector where all cancel out.
    """
    v = np.asarray(vectors, dtype=np.float64)
    mean = v.mean(axis=0)
    for _ in range(3 if len(v) > 2 else 0):
        away = np.maximum(1 - v @ (mean / max(np.linalg.norm(mean), _CLOSEST)), _CLOSEST)
        weight = np.minimum(1, 2 * np.median(away) / away)
        mean = weight @ v / weight.sum()
    length = np.linalg.norm(mean)
    return np.asarray(mean / length if length > _CLOSEST else v[0] / np.linalg.norm(v[0]))


def measure_spread(tomograms: Sequence[tuple[ArrayLike, ArrayLike, ArrayLike]]) -> float:
    """Tell how far vectors lie from the mean of their kind, as 1 - cosine.

    Parameters
    ----------
    tomograms
        As for `fit_calibration`.

    Returns
    -------
    float
        Median over kinds of the median over their members; 0 where there are none.
    """
    away = []
    for vectors, _, label in tomograms:
        names, counts = np.unique(np.asarray(label), return_counts=True)
        for name in names[(counts > _FEWEST) & (names != "")]:
            own = np.asarray(vectors, dtype=np.float64)[np.asarray(label) == name]
            away.append(np.median(1 - own @ mean_direction(own)))
    return float(np.median(away)) if away else 0.0


def _draw_examples(
    label: NDArray[np.str_], targets: int, rng: np.random.Generator
) -> list[list[NDArray[np.intp]]]:
    """Draw rows of one example of each of some labels, then of several, so that all take turns."""
    names, counts = np.unique(label, return_counts=True)
    drawn = []
    for each in _EXAMPLES:
        many = rng.permutation(names[(counts >= each + _FEWEST) & (names != "")])
        rows = [rng.choice(np.flatnonzero(label == name), each, replace=False) for name in many]
        drawn += [rows[i : i + targets] for i in range(0, len(rows), targets)]
    return drawn


@dataclass(frozen=True, eq=False, kw_only=True)
class _Candidates:
    """Candidates of one tomogram, and the kinds among them at several bandwidths."""

    vectors: Floats
    center: Floats
    sure: Floats
    kinds: Sequence[Kinds]

    @classmethod
    def of(cls, vectors: ArrayLike, center: ArrayLike, *, spread: float) -> _Candidates:
        v = np.asarray(vectors, dtype=np.float64)
        c = np.clip(np.asarray(center, dtype=np.float64), 1e-3, 1 - 1e-3)
        sure = np.minimum(c / _CENTER, 1)
        kinds = [find_kinds(v, sure, spread=spread, bandwidth=width) for width in _BANDWIDTHS]
        return cls(vectors=v, center=c, sure=sure, kinds=kinds)

    def compare(self, examples: Sequence[ArrayLike], *, refine: bool = True) -> _Compared:
        """Compare candidates with targets, which come of the examples."""
        arrays = _arrays(examples)
        if not arrays or any(len(group) == 0 for group in arrays):
            raise ValueError("each label needs at least one example")
        targets = np.stack([mean_direction(group) for group in arrays])
        start = self._approach(targets) if refine else targets
        hold = np.array([_HOLD * len(group) if refine else _FIXED for group in arrays])
        named = [
            name_kinds(kinds, self.vectors, self.sure, examples=targets, hold=hold, start=start)
            for kinds in self.kinds
        ]
        n = len(targets)
        centers = unit(np.sum([kinds.centers[:n] for kinds in named], axis=0))
        unnamed = [_log_unlike(self.vectors @ kinds.centers[n:].T) for kinds in named]
        return _Compared(
            examples=arrays,
            unlike=_log_unlike(self.vectors @ centers.T),
            unnamed=np.stack([one.min(axis=1, initial=np.inf) for one in unnamed], axis=1),
            same=np.mean([kinds.membership(self.vectors)[:, :n] for kinds in named], axis=0),
            center=self.center,
        )

    def _approach(self, targets: Floats) -> Floats:
        """Move targets towards the kinds that they are of, each of which has one name at most."""
        pull = [own_kinds(kinds, targets) @ kinds.centers for kinds in self.kinds]
        return unit(targets + _PULL * np.mean(pull, axis=0))


@dataclass(frozen=True, eq=False, kw_only=True)
class _Compared:
    """How candidates and targets are alike.

    Parameters
    ----------
    examples : sequence of ndarray, each of shape (k, channels)
    unlike : ndarray, shape (n, label)
        Logarithm of 1 - similarity.
    unnamed : ndarray, shape (n, bandwidths)
        The same to the nearest kind without a name.
    same : ndarray, shape (n, label)
        Probability of one kind.
    center : ndarray, shape (n,)
    """

    examples: Sequence[Floats]
    unlike: Floats
    unnamed: Floats
    same: Floats
    center: Floats

    @property
    def best(self) -> NDArray[np.intp]:
        """The label of the target that each candidate is most like."""
        return self.unlike.argmin(axis=1)

    def observe(self, label: NDArray[np.intp]) -> Floats:
        """What the odds depend on that candidates are of these labels, shape (n, 4)."""
        rows = np.arange(len(label))
        own, others = self.unlike[rows, label], self.unlike.copy()
        others[rows, label] = _log_unlike(np.array(-1.0))
        rival = np.minimum(self.unnamed, others.min(axis=1, keepdims=True)).mean(axis=1)
        same = self.same[rows, label]
        x = [own, rival, np.log((same + 0.01) / (1.01 - same)), logit(self.center)]
        return np.column_stack(x)

    def judge(self, calibration: Calibration) -> Floats:
        """Probability that candidates are of their best labels."""
        odds = _odds(self.observe(self.best), calibration)
        return _limit(adapt_share(odds, calibration.share), self.center)

    def fit(self, fitted: Fitted, vectors: Floats, calibration: Calibration) -> tuple[_Fit, _Fit]:
        """What speaks for the labels that are best by vectors, and for those by averages."""
        best = self.best
        names = name_averages(
            fitted,
            vectors=vectors,
            examples=self.examples,
            best=best,
            chance=self.judge(calibration),
        )
        fits = []
        for label in (best, label_best(fitted, names, best)):
            lead, known = measure_lead(fitted, names, label)
            fits.append(
                _Fit(label=label, x=np.column_stack([self.observe(label), lead]), known=known)
            )
        return fits[0], fits[1]


@dataclass(frozen=True, eq=False, kw_only=True)
class _Fit:
    """What the odds of a label for each candidate depend on.

    Parameters
    ----------
    label : ndarray of int, shape (n,)
    x : ndarray, shape (n, 5)
    known : ndarray of bool, shape (n,)
        Whether the label has an average; otherwise the last column means nothing.
    """

    label: NDArray[np.intp]
    x: Floats
    known: NDArray[np.bool_]

    def odds(self, calibration: Calibration, averaged: Averaged) -> Floats:
        """With the average where there is one."""
        plain = _odds(self.x[:, :-1], calibration)
        return np.where(self.known, _odds(self.x, averaged), plain)

    def chance(self, calibration: Calibration, averaged: Averaged) -> Floats:
        """Probabilities that follow, with the share that this tomogram seems to have."""
        plain = adapt_share(_odds(self.x[:, :-1], calibration), calibration.share)
        return np.where(self.known, adapt_share(_odds(self.x, averaged), averaged.share), plain)


def _choose(fits: tuple[_Fit, _Fit], calibration: Calibration, averaged: Averaged) -> _Fit:
    """The likelier label of each candidate."""
    first, second = fits
    better = second.odds(calibration, averaged) > first.odds(calibration, averaged)
    return _Fit(
        label=np.where(better, second.label, first.label),
        x=np.where(better[:, None], second.x, first.x),
        known=np.where(better, second.known, first.known),
    )


def _odds(x: Floats, calibration: Calibration | Averaged) -> Floats:
    """Logarithm of the odds that a candidate is of its best label."""
    weights = [getattr(calibration, name) for name in _WEIGHTS[: x.shape[1]]]
    return np.asarray(x @ np.array(weights) + calibration.intercept)


def _limit(chance: Floats, center: Floats) -> Floats:
    """What is most likely no particle is no likelier one of a label."""
    return np.where(center < 0.5, np.minimum(chance, center), chance)


def _arrays(examples: Sequence[ArrayLike]) -> list[Floats]:
    return [np.asarray(group, dtype=np.float64) for group in examples]


def _log_unlike(similarity: Floats) -> Floats:
    return np.asarray(np.log(np.maximum(1 - similarity, _CLOSEST)))


def adapt_share(odds: Floats, share: float) -> Floats:
    """Probabilities with the share of particles that this tomogram seems to have."""
    found = share
    for _ in range(50):
        p = expit(odds + logit(found) - logit(share))
        found = (p.sum() + _PRIOR_STRENGTH * share) / (len(p) + _PRIOR_STRENGTH)
        found = float(np.clip(found, 1e-4, 1 - 1e-4))
    return expit(odds + logit(found) - logit(share))
