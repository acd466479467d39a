"""Score picks against truth: matching rules, precision and recall, best thresholds, intervals.

The same pick list gives F1 from 0.33 to 0.67 by the choice of rule and radius alone, so every
result names both.
"""

from tomoloc.evaluate.results import Curve, Evaluation, Match, Result, Scores
from tomoloc.evaluate.rules import RULES
from tomoloc.evaluate.scores import (
    draw_random_particles,
    evaluate_particles,
    match_particles,
)
from tomoloc.evaluate.tables import normalise_name

__all__ = [
    "RULES",
    "Curve",
    "Evaluation",
    "Match",
    "Result",
    "Scores",
    "draw_random_particles",
    "evaluate_particles",
    "match_particles",
    "normalise_name",
]
