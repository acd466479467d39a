"""Which label each candidate is of, if any: all labels compete."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = ["compete"]


def compete(
    vectors: ArrayLike, center: ArrayLike, *, examples: Sequence[ArrayLike]
) -> NDArray[np.float64]:
    """Tell of which label each candidate is.

    Parameters
    ----------
    vectors : array_like, shape (n, channels)
        Unit vectors of the candidates of one tomogram.
    center : array_like, shape (n,)
        Probability that a particle's centre is there.
    examples : sequence of array_like, each of shape (k, channels)
        Unit vectors of the examples of each label.

    Returns
    -------
    ndarray, shape (n, label)
        Probability of the label; 0 for all labels but a candidate's best one.
    """
    vectors = np.asarray(vectors, dtype=np.float64)
    targets = np.stack([np.mean(np.asarray(e, dtype=np.float64), axis=0) for e in examples])
    targets /= np.linalg.norm(targets, axis=1, keepdims=True)
    similarity = vectors @ targets.T
    best = similarity.argmax(axis=1)
    rows = np.arange(len(vectors))
    probability = np.zeros_like(similarity)
    odds = 20 * (similarity[rows, best] - 0.6)
    probability[rows, best] = np.asarray(center) / (1 + np.exp(-odds))
    return probability
