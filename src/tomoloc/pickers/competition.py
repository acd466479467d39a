"""Which label each candidate is of, if any: all labels compete, and scores are probabilities.

One example of a label is one view of it. The target of a label therefore moves from its examples
towards the candidates that are surely of it. How alike a candidate and its best target are, how
alike it and the second best are, and how much it looks like a centre, together give the odds that
it is of that label, as measured on simulated tomograms of other molecules (`Calibration`). How many
particles there are differs between tomograms: that is estimated from the odds themselves.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import expit, logit

__all__ = ["Calibration", "adapt_share", "best_threshold", "compete", "fit_calibration"]
__all__ += ["mean_direction"]

Floats = NDArray[np.float64]

_SURE, _WIDTH = 0.97, 0.01
"""Similarity at which a candidate counts half in its target, and how fast that changes."""
_CENTER = 0.4
"""Probability of a centre from which on a candidate counts fully in its target."""
_EXAMPLE = 3.0
"""How many candidates an example counts as."""
_MEMBERS = 10
_ROUNDS = 3
_PRIOR_STRENGTH = 20.0
"""How many candidates the share of particles known from calibration counts as."""
_CLOSEST = 1e-4
"""Vectors that differ by less are one."""


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """From what is seen of a candidate to the odds that it is of its best label.

    Parameters
    ----------
    unlike, unlike_second, center : float
        Weights of the logarithm of 1 - similarity to the best target, of that to the second best,
        and of the logit of the probability of a centre.
    intercept : float
    share : float
        Of the candidates of the tomograms of the calibration, those that were of their label.
    """

    unlike: float = -1.15
    unlike_second: float = 0.4
    center: float = 1.15
    intercept: float = -4.6
    share: float = 0.12

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> Calibration:
        """Take the calibration from a model's configuration, or a typical one.

        Raises
        ------
        ValueError
            If there is one, and it is damaged.
        """
        values = config.get("calibration", {})
        try:
            return cls(**{name: float(value) for name, value in values.items()})
        except (TypeError, ValueError, AttributeError) as error:
            raise ValueError(f"the model's calibration is damaged ({error})") from error

    def to_dict(self) -> dict[str, float]:
        """Return the numbers by name."""
        return asdict(self)


def compete(
    vectors: ArrayLike,
    center: ArrayLike,
    *,
    examples: Sequence[ArrayLike],
    calibration: Calibration | None = None,
    refine: bool = True,
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
        Move targets towards the candidates that are surely of their label.

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
    x, best = _observe(vectors, center, examples=examples, refine=refine)
    weights = [calibration.unlike, calibration.unlike_second, calibration.center]
    odds = x @ np.array(weights) + calibration.intercept
    probability = np.zeros((len(best), len(examples)))
    probability[np.arange(len(best)), best] = adapt_share(odds, calibration.share)
    return probability


def fit_calibration(
    tomograms: Sequence[tuple[ArrayLike, ArrayLike, ArrayLike]], *, seed: int, targets: int = 7
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
        Labels that are looked for in one tomogram, with one example each.

    Returns
    -------
    Calibration

    Raises
    ------
    ValueError
        If there is nothing to learn from.
    """
    from sklearn.linear_model import LogisticRegression

    observed, right = [], []
    for number, (vectors, center, label) in enumerate(tomograms):
        rng = np.random.default_rng([seed, number])
        for rows in _draw_examples(np.asarray(label), targets, rng):
            names = np.asarray(label)[rows]
            examples = [np.asarray(vectors)[[row]] for row in rows]
            x, best = _observe(vectors, center, examples=examples, refine=True)
            others = np.setdiff1d(np.arange(len(best)), rows)
            observed.append(x[others])
            right.append((np.asarray(label) == names[best])[others])
    x, y = np.concatenate(observed or [np.zeros((0, 3))]), np.concatenate(right or [np.zeros(0)])
    if len(np.unique(y)) < 2:
        raise ValueError("calibration needs tomograms with several particles of several labels")
    model = LogisticRegression(C=10.0, max_iter=1000).fit(x, y)
    unlike, second, center_weight = model.coef_[0].tolist()
    return Calibration(
        unlike=unlike,
        unlike_second=second,
        center=center_weight,
        intercept=float(model.intercept_[0]),
        share=float(y.mean()),
    )


def best_threshold(probability: ArrayLike, *, least: float) -> float:
    """Return the threshold at which the F1 that is to be expected is highest.

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


def _draw_examples(
    label: NDArray[np.str_], targets: int, rng: np.random.Generator
) -> list[NDArray[np.intp]]:
    """Draw one row of each of some labels that have at least four, so that all take their turn."""
    names, counts = np.unique(label, return_counts=True)
    names = rng.permutation(names[(counts >= 4) & (names != "")])
    return [
        np.array([rng.choice(np.flatnonzero(label == name)) for name in names[i : i + targets]])
        for i in range(0, len(names), targets)
    ]


def _observe(
    vectors: ArrayLike, center: ArrayLike, *, examples: Sequence[ArrayLike], refine: bool
) -> tuple[Floats, NDArray[np.intp]]:
    """What the odds depend on, shape (n, 3), and the best label of each candidate."""
    arrays = [np.asarray(group, dtype=np.float64) for group in examples]
    if not arrays or any(len(group) == 0 for group in arrays):
        raise ValueError("each label needs at least one example")
    v = np.asarray(vectors, dtype=np.float64)
    c = np.clip(np.asarray(center, dtype=np.float64), 1e-3, 1 - 1e-3)
    targets = np.stack([mean_direction(group) for group in arrays])
    if refine:
        weight = np.array([_EXAMPLE * len(group) for group in arrays])
        targets = _refine(targets, weight, vectors=v, sure=np.minimum(c / _CENTER, 1))
    similarity = v @ targets.T
    best = similarity.argmax(axis=1)
    rows = np.arange(len(v))
    first = similarity[rows, best]
    similarity[rows, best] = -1
    second = similarity.max(axis=1)
    x = [np.log(np.maximum(1 - s, _CLOSEST)) for s in (first, second)]
    return np.column_stack([*x, logit(c)]), best


def _refine(examples: Floats, weight: Floats, *, vectors: Floats, sure: Floats) -> Floats:
    """Move each target to the mean of its examples and of the candidates most surely its own."""
    targets = examples
    for _ in range(_ROUNDS):
        similarity = vectors @ targets.T
        best, value = similarity.argmax(axis=1), similarity.max(axis=1)
        own = sure * expit((value - _SURE) / _WIDTH)
        moved = weight[:, None] * examples
        for label in range(len(examples)):
            rows = np.flatnonzero(best == label)
            rows = rows[np.argsort(-own[rows], kind="stable")[:_MEMBERS]]
            moved[label] += own[rows] @ vectors[rows]
        targets = _unit(moved)
    return targets


def adapt_share(odds: Floats, share: float) -> Floats:
    """Probabilities with the share of particles that this tomogram seems to have."""
    found = share
    for _ in range(50):
        p = expit(odds + logit(found) - logit(share))
        found = (p.sum() + _PRIOR_STRENGTH * share) / (len(p) + _PRIOR_STRENGTH)
        found = float(np.clip(found, 1e-4, 1 - 1e-4))
    return expit(odds + logit(found) - logit(share))


def _unit(vectors: Floats) -> Floats:
    return np.asarray(vectors / np.linalg.norm(vectors, axis=-1, keepdims=True))
