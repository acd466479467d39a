"""Matching and scores: closed forms, brute force, and published pick lists."""

from __future__ import annotations

import json
from itertools import combinations, permutations
from pathlib import Path

import numpy as np
import pytest

from tomoloc.evaluate import (
    RULES,
    draw_random_particles,
    evaluate_particles,
    match_particles,
    normalise_name,
)
from tomoloc.types import Particles, Volume

ORIGIN = np.array([-300.0, 45.0, 1200.0])


def line(*x: float, **columns) -> Particles:
    """Particles along x, away from the origin; the first has the best score."""
    position = np.zeros((len(x), 3)) + ORIGIN
    position[:, 0] += x
    columns.setdefault("score", np.arange(len(x), 0, -1.0))
    return Particles(position=position, **columns)


def counts(picks: Particles, truth: Particles, **options) -> tuple[int, int, int]:
    match = match_particles(picks, truth, **options)
    return match.n_tp, match.n_fp, match.n_fn


def brute_force(picks: np.ndarray, truth: np.ndarray, radius: float) -> tuple[int, float]:
    """Largest number of pairs, and the smallest sum of distances among such matchings."""
    gap = np.linalg.norm(picks[:, None] - truth[None], axis=-1)
    for size in range(min(gap.shape), 0, -1):
        sums = [
            gap[rows, columns].sum()
            for rows in map(list, combinations(range(len(picks)), size))
            for columns in map(list, permutations(range(len(truth)), size))
            if (gap[rows, columns] <= radius).all()
        ]
        if sums:
            return size, min(sums)
    return 0, 0.0


class TestRules:
    """Small cases in which the rules disagree."""

    def test_gated_finds_more_than_greedy(self):
        # The best pick is near both truths and nearest to the only one the other pick reaches.
        picks, truth = line(4, -3), line(0, 10)
        assert counts(picks, truth, radius=6) == (2, 0, 0)
        assert counts(picks, truth, radius=6, rule="greedy") == (1, 1, 1)

    def test_gated_pairs_are_the_shortest_of_the_largest_matchings(self):
        match = match_particles(line(1, 9), line(10, 0), radius=20)
        np.testing.assert_array_equal(match.pairs, [[0, 1], [1, 0]])
        np.testing.assert_allclose(match.distances, [1, 1])

    def test_assigning_first_and_cutting_afterwards_loses_a_match(self):
        picks, truth = line(0, 8), line(5, 100)
        assert counts(picks, truth, radius=4) == (1, 1, 1)
        assert counts(picks, truth, radius=4, rule="tomocpt") == (0, 2, 2)

    def test_czii_lets_one_pick_find_two_truths(self):
        picks, truth = line(5, 50), line(0, 10)
        assert counts(picks, truth, radius=6) == (1, 1, 1)
        assert counts(picks, truth, radius=6, rule="czii") == (2, 0, 0)
        assert match_particles(line(5), truth, radius=6, rule="czii").precision == 2

    def test_double_picks(self):
        """Two picks on one particle: false everywhere but in deepict and picket."""
        picks, truth = line(0, 1), line(0, 100)
        for rule in RULES:
            wrong = 0 if rule in {"deepict", "picket"} else 1
            assert counts(picks, truth, radius=6, rule=rule) == (1, wrong, 1), rule

    def test_shrec_gives_a_pick_to_the_nearest_truth_only(self):
        picks, truth = line(3, 4), line(0, 10)
        assert counts(picks, truth, radius=7, rule="greedy") == (2, 0, 0)
        assert counts(picks, truth, radius=7, rule="shrec") == (1, 1, 1)

    def test_shrec_looks_up_instances(self):
        data = np.zeros((4, 6, 9), dtype=np.int16)
        data[1, 2, 3:5], data[2, 5, 8] = 1, 3
        volume = Volume(data=data, voxel_spacing=10, origin=ORIGIN)
        index = [[1, 2, 3], [1, 2, 4.4], [2, 5, 8], [0, 0, 0], [2.2, 9, 30]]
        picks = Particles(position=volume.to_position(index), score=[5, 4, 3, 2, 1])
        truth = line(0, 0, 0)
        match = match_particles(picks, truth, radius=1, rule="shrec", instances=volume)
        # Positions outside are clamped to the volume, as in the challenge.
        assert (match.n_tp, match.n_fp, match.n_fn) == (2, 3, 1)
        np.testing.assert_array_equal(match.pairs, [[0, 0], [2, 2]])

    @pytest.mark.parametrize(("shift", "found"), [(24.9, 1), (25.0, 0), (25.1, 0)])
    def test_tomotwin_needs_an_overlap_above_0_6(self, shift, found):
        # Boxes of side s shifted by d along an axis overlap by (s - d) / (s + d).
        match = match_particles(line(shift), line(0), radius=50, rule="tomotwin")
        assert match.n_tp == found

    def test_tomotwin_counts_picks_that_are_no_best_box_as_false(self):
        for x in ((10, 2), (2, 10)):
            assert counts(line(*x), line(0), radius=50, rule="tomotwin") == (1, 1, 0)
        # One pick may serve two truths.
        assert counts(line(2), line(0, 4), radius=50, rule="tomotwin") == (2, 0, 0)

    def test_picket_accepts_any_match(self):
        match = match_particles(line(5, 6, 7, 90), line(0, 10), radius=8, rule="picket")
        assert (match.n_tp, match.n_fp, match.n_fn, match.n_right) == (2, 1, 0, 3)
        assert match.precision == pytest.approx(3 / 4)

    def test_every_rule_is_documented(self):
        for rule in RULES.values():
            assert len(rule.summary) > 20
            assert rule.source

    def test_radius_is_inclusive_despite_rounding(self):
        # Whole voxels: (3, 4, 0) voxels is exactly 5, in angstrom only up to rounding.
        truth = np.array([[17, 29, 40], [101, 211, 307.0]])
        picks = truth + np.array([3, 4, 0])
        match = match_particles(
            Particles(position=picks * 13.48), Particles(position=truth * 13.48), radius=5 * 13.48
        )
        assert match.n_tp == 2

    def test_unknown_rule_and_bad_radius(self):
        with pytest.raises(ValueError, match="unknown rule 'best'; choose one of gated"):
            match_particles(line(1), line(1), radius=1, rule="best")
        with pytest.raises(ValueError, match="radius must be positive"):
            match_particles(line(1), line(1), radius=0)

    def test_tomocpt_refuses_matrices_that_do_not_fit(self, rng):
        many = Particles(position=rng.uniform(size=(20_000, 3)))
        with pytest.raises(ValueError, match="use rule 'gated'"):
            match_particles(many, many, radius=1, rule="tomocpt")


class TestGated:
    """The default rule is exact, for every number of picks, and fast."""

    @pytest.mark.parametrize("seed", range(40))
    def test_equals_brute_force_at_every_cut(self, seed):
        rng = np.random.default_rng(seed)
        n, m = rng.integers(1, 6, 2)
        radius = rng.uniform(20, 90)
        points, truth = rng.uniform(0, 100, (n, 3)), rng.uniform(0, 100, (m, 3))
        picks = Particles(position=points + ORIGIN, score=rng.permutation(n).astype(float))
        true = Particles(position=truth + ORIGIN)
        match = match_particles(picks, true, radius=radius)
        size, total = brute_force(points, truth, radius)
        assert match.n_tp == len(match.pairs) == size
        assert match.distances.sum() == pytest.approx(total)
        curve = evaluate_particles(picks, true, radius=radius).micro.curve
        order = np.argsort(-picks.score)
        expected = [brute_force(points[order[:k]], truth, radius)[0] for k in range(1, n + 1)]
        np.testing.assert_allclose(curve.recall * m, expected)

    def test_sparse_and_dense_solutions_agree(self, rng):
        """One component of more than a million entries is solved sparsely."""
        truth = rng.uniform(0, 1000, (1200, 3)) * [1, 1, 0.02]
        picks = truth + rng.normal(0, 20, truth.shape)
        gap = np.linalg.norm(picks[:, None] - truth[None], axis=-1)
        from scipy.optimize import linear_sum_assignment

        match = match_particles(Particles(position=picks), Particles(position=truth), radius=60)
        cost = np.where(gap <= 60, gap, 1e6)
        rows, columns = linear_sum_assignment(cost)
        kept = cost[rows, columns] < 1e6
        assert match.n_tp == kept.sum()
        assert match.distances.sum() == pytest.approx(cost[rows, columns][kept].sum())

    def test_a_hundred_thousand_points(self, rng):
        truth = rng.uniform(0, 20_000, (100_000, 3))
        picks = Particles(position=truth[::-1] + 5, score=rng.uniform(size=len(truth)))
        match = match_particles(picks, Particles(position=truth), radius=200)
        assert match.n_tp == len(truth)

    def test_order_of_rows_does_not_matter(self, rng):
        truth = Particles(position=rng.uniform(0, 300, (40, 3)))
        picks = Particles(position=rng.uniform(0, 300, (60, 3)), score=rng.uniform(size=60))
        shuffled = picks[rng.permutation(60)]
        first = evaluate_particles(picks, truth, radius=50).micro
        second = evaluate_particles(shuffled, truth, radius=50).micro
        assert first.chosen.f1 == second.chosen.f1
        assert first.best.threshold == second.best.threshold
        assert first.best.rmse == pytest.approx(second.best.rmse)
        assert first.average_precision == pytest.approx(second.average_precision)


class TestScores:
    """Numbers that follow from the matching."""

    def test_by_hand(self):
        # Right, wrong, right, wrong; one of three truths missed.
        picks, truth = line(1, 500, 103, 600), line(0, 100, 200)
        result = evaluate_particles(picks, truth, radius=10, diameter=50).micro
        chosen, best = result.chosen, result.best
        assert (chosen.n_picks, chosen.n_tp, chosen.n_fp, chosen.n_fn) == (4, 2, 2, 1)
        assert chosen.precision == pytest.approx(1 / 2)
        assert chosen.recall == pytest.approx(2 / 3)
        assert chosen.f1 == pytest.approx(4 / 7)
        assert chosen.threshold == 1
        assert chosen.rmse == pytest.approx(np.sqrt(5))
        assert chosen.rmse_diameters == pytest.approx(np.sqrt(5) / 50)
        assert (best.threshold, best.n_picks) == (2, 3)
        assert best.f1 == pytest.approx(2 / 3)
        assert result.average_precision == pytest.approx(1 / 3 + 2 / 3 / 3)
        np.testing.assert_array_equal(result.curve.threshold, [4, 3, 2, 1])
        np.testing.assert_allclose(result.curve.precision, [1, 1 / 2, 2 / 3, 1 / 2])

    def test_best_error_is_of_the_best_threshold(self):
        picks, truth = line(1, 500, 600, 109), line(0, 100)
        result = evaluate_particles(picks, truth, radius=10).micro
        assert result.best.n_picks == 1
        assert result.best.rmse == pytest.approx(1)
        assert result.chosen.rmse == pytest.approx(np.sqrt((1 + 81) / 2))

    def test_a_threshold_cannot_split_ties(self):
        picks, truth = line(1, 500, 600, score=[2.0, 2.0, 1.0]), line(0)
        curve = evaluate_particles(picks, truth, radius=10).micro.curve
        np.testing.assert_array_equal(curve.n_picks, [2, 3])
        np.testing.assert_allclose(curve.precision, [1 / 2, 1 / 3])

    @pytest.mark.parametrize("rule", RULES)
    def test_nothing_picked(self, rule):
        nothing = Particles(position=[], score=[])
        result = evaluate_particles(nothing, line(0, 100), radius=10, rule=rule).micro
        assert (result.chosen.n_picks, result.chosen.n_tp, result.chosen.n_fn) == (0, 0, 2)
        assert result.chosen.recall == result.chosen.f1 == result.average_precision == 0
        assert np.isnan(result.chosen.precision)
        assert np.isnan(result.chosen.rmse)
        assert result.best == result.chosen

    @pytest.mark.parametrize("rule", RULES)
    def test_nothing_true(self, rule):
        nothing = Particles(position=[])
        evaluation = evaluate_particles(line(0, 100), nothing, radius=10, rule=rule)
        chosen = evaluation.micro.chosen
        assert (chosen.n_tp, chosen.n_fp, chosen.n_fn) == (0, 2, 0)
        assert chosen.precision == chosen.f1 == 0
        assert np.isnan(chosen.recall)
        assert np.isnan(evaluation.macro.chosen.f1)

    @pytest.mark.parametrize("rule", RULES)
    def test_nothing_at_all(self, rule):
        nothing = Particles(position=[])
        assert np.isnan(evaluate_particles(nothing, nothing, radius=1, rule=rule).micro.chosen.f1)

    @pytest.mark.parametrize("rule", RULES)
    def test_perfect_picks(self, rule, rng):
        truth = Particles(position=rng.permutation(400)[:, None] * [90.0, 7, 3] + ORIGIN)
        picks = Particles(position=truth.position + 1, score=rng.uniform(size=400))
        result = evaluate_particles(picks, truth, radius=30, rule=rule).micro
        assert result.chosen.f1 == result.best.f1 == 1
        assert result.chosen.rmse == pytest.approx(np.sqrt(3))

    @pytest.mark.parametrize("rule", RULES)
    def test_best_threshold_is_the_best_of_all_cuts(self, rule, rng):
        """The running count of every rule equals counting afresh at each threshold."""
        truth = Particles(position=rng.uniform(0, 300, (25, 3)) + ORIGIN)
        near = truth.position[:20] + rng.normal(0, 15, (20, 3))
        points = np.concatenate([near, near[:8] + 3, rng.uniform(0, 300, (20, 3)) + ORIGIN])
        picks = Particles(position=points, score=rng.permutation(48).astype(float))
        result = evaluate_particles(picks, truth, radius=45, rule=rule, beta=1).micro
        for index, threshold in enumerate(result.curve.threshold):
            match = match_particles(picks[picks.score >= threshold], truth, radius=45, rule=rule)
            assert result.curve.recall[index] == pytest.approx(match.recall)
            assert result.curve.precision[index] == pytest.approx(match.precision)
        assert result.best.f1 == pytest.approx(result.curve.f_beta.max())

    def test_tomocpt_sweeps_percentiles(self, rng):
        picks = Particles(position=rng.uniform(0, 300, (200, 3)), score=rng.uniform(size=200))
        curve = evaluate_particles(picks, picks[:50], radius=20, rule="tomocpt").micro.curve
        expected = [np.sum(picks.score >= np.percentile(picks.score, p)) for p in range(2, 99, 8)]
        np.testing.assert_array_equal(curve.n_picks, [*expected[::-1], 200])

    def test_picks_without_scores_have_no_curve(self):
        result = evaluate_particles(line(1, 500, score=None), line(0), radius=10).micro
        assert np.isnan(result.average_precision)
        assert np.isnan(result.chosen.threshold)
        assert result.best == result.chosen
        assert result.chosen.f1 == pytest.approx(2 / 3)

    def test_scores_must_be_numbers(self):
        with pytest.raises(ValueError, match="score of pick 2 is not a number"):
            evaluate_particles(line(0, 1, score=[1, np.nan]), line(0), radius=1)

    def test_json(self):
        evaluation = evaluate_particles(line(0, 1), line(0), radius=1)
        plain = json.loads(json.dumps(evaluation.to_dict(), allow_nan=False))
        assert plain["micro"]["chosen"]["n_tp"] == 1
        assert plain["micro"]["chosen"]["rmse_diameters"] is None
        assert plain["rule"] == "gated"

    def test_relative_recall(self, rng):
        """Random points find a truth as often as its sphere is large."""
        grid = Volume(data=np.zeros((40, 50, 60)), voxel_spacing=10, origin=ORIGIN, name="a")
        truth = draw_random_particles(60, grid=grid, rng=rng)
        inside = np.abs(truth.position - grid.center) < grid.extent / 2 - 60
        truth = truth[inside.all(axis=1)]
        picks = draw_random_particles(300, grid=grid, rng=rng)
        picks = Particles.concatenate([picks, truth])
        result = evaluate_particles(picks, truth, radius=60, rule="picket", grids={"a": grid}).micro
        share = 4 / 3 * np.pi * 60**3 / grid.extent.prod()
        missed = (1 - share) ** len(picks)
        assert result.chosen.recall == 1
        assert result.relative_recall == pytest.approx(2 * missed / (1 + missed), abs=0.05)
        assert np.isnan(evaluate_particles(picks, truth, radius=60).micro.relative_recall)

    def test_random_particles_fill_the_grid(self, rng):
        grid = Volume(data=np.zeros((4, 5, 6)), voxel_spacing=10, origin=ORIGIN, name="a")
        points = draw_random_particles(5000, grid=grid, rng=rng, label="random")
        assert grid.contains(points.position).all()
        np.testing.assert_allclose(np.ptp(points.position, axis=0), grid.extent, rtol=0.01)
        assert (points.tomograms, points.labels) == (["a"], ["random"])


class TestLabels:
    """A pick of the wrong label is wrong."""

    picks = line(0, 100, 200, 300, label=["a", "a", "b", "b"])
    truth = line(0, 100, 200, 300, 400, label=["a", "b", "b", "a", "a"])

    def test_micro_and_macro(self):
        evaluation = evaluate_particles(self.picks, self.truth, radius=10)
        a, b = evaluation.labels["a"].chosen, evaluation.labels["b"].chosen
        assert (a.n_tp, a.n_fp, a.n_fn) == (1, 1, 2)
        assert (b.n_tp, b.n_fp, b.n_fn) == (1, 1, 1)
        assert evaluation.micro.chosen.f1 == pytest.approx(4 / 9)
        assert evaluation.macro.chosen.f1 == pytest.approx((2 / 5 + 1 / 2) / 2)
        assert evaluation.macro.chosen.n_tp == 2

    def test_ignored_where_one_side_has_none(self):
        bare = Particles(position=self.picks.position, score=self.picks.score)
        evaluation = evaluate_particles(bare, self.truth, radius=10)
        assert evaluation.micro.chosen.n_tp == 4
        assert evaluation.notes == ("labels ignored: picks have none",)
        named = line(0, 100, label="a")
        assert list(evaluate_particles(bare, named, radius=10).labels) == ["a"]

    def test_a_single_label_is_scored_alone(self):
        evaluation = evaluate_particles(self.picks[:2], self.truth, radius=10)
        assert list(evaluation.labels) == ["a"]
        assert evaluation.micro.chosen.n_truth == 3
        assert "truth of other labels left out: 'b'" in evaluation.notes[0]

    def test_nothing_picked_misses_every_label(self):
        nothing = Particles(position=[], score=[])
        evaluation = evaluate_particles(nothing, self.truth, radius=10)
        assert list(evaluation.labels) == ["a", "b"]
        assert evaluation.micro.chosen.n_fn == 5

    def test_chosen_labels_alone(self):
        evaluation = evaluate_particles(self.picks, self.truth, radius=10, labels=["b"])
        assert list(evaluation.labels) == ["b"]
        assert evaluation.micro.chosen.n_picks == evaluation.micro.chosen.n_truth == 2
        bare = Particles(position=self.picks.position, score=self.picks.score)
        evaluation = evaluate_particles(bare, self.truth, radius=10, labels=["b"])
        assert (evaluation.micro.chosen.n_tp, evaluation.micro.chosen.n_fp) == (2, 2)
        with pytest.raises(ValueError, match="no particle has label 'c': the picks have 'a', 'b'"):
            evaluate_particles(self.picks, self.truth, radius=10, labels=["c"])

    def test_no_label_in_common(self):
        with pytest.raises(ValueError, match="no label is common to both: the picks have 'x'"):
            evaluate_particles(line(0, label="x"), self.truth, radius=10)

    def test_each_label_has_its_radius_and_diameter(self):
        picks = line(0, 108, label=["a", "b"])
        truth = line(0, 100, label=["a", "b"])
        evaluation = evaluate_particles(
            picks, truth, radius={"a": 5, "b": 10}, diameter={"a": 50, "b": 100}
        )
        assert evaluation.micro.chosen.n_tp == 2
        assert evaluation.labels["b"].chosen.rmse_diameters == pytest.approx(0.08)
        with pytest.raises(ValueError, match="no radius for label 'b'"):
            evaluate_particles(picks, truth, radius={"a": 5})

    def test_czii_score(self):
        """F4 of each class, weighted; worked out by hand."""
        evaluation = evaluate_particles(self.picks, self.truth, radius=10, rule="czii")
        a, b = 17 * 1 / (17 * 1 + 16 * 2 + 1), 17 * 1 / (17 * 1 + 16 * 1 + 1)
        assert evaluation.beta == 4
        assert evaluation.average("f_beta", {"a": 1, "b": 2}) == pytest.approx((a + 2 * b) / 3)
        assert evaluation.average("f_beta") == pytest.approx(evaluation.macro.chosen.f_beta)

    def test_a_common_threshold_for_all_labels(self):
        picks = line(0, 500, 100, 600, label=["a", "a", "b", "b"])
        truth = line(0, 100, label=["a", "b"])
        evaluation = evaluate_particles(picks, truth, radius=10)
        assert evaluation.labels["a"].best.f1 == evaluation.labels["b"].best.f1 == 1
        assert evaluation.micro.best.f1 == pytest.approx(4 / 5)
        assert evaluation.micro.best.threshold == 2

    def test_instances_count_the_truth_of_all_labels(self):
        data = np.zeros((2, 3, 50), dtype=np.uint16)
        data[0, 0, :5] = np.arange(1, 6)
        volume = Volume(data=data, voxel_spacing=100, origin=ORIGIN)
        evaluation = evaluate_particles(
            self.picks, self.truth, radius=1, rule="shrec", grids={"": volume}
        )
        expected = evaluate_particles(self.picks, self.truth, radius=10)
        for label in ("a", "b"):
            assert evaluation.labels[label].chosen.n_tp == expected.labels[label].chosen.n_tp


class TestDistractors:
    """Truth has targets a and b at 0 and 100, distractors d at 200 and 300."""

    truth = line(
        *(0, 100, 200, 300),
        label=["a", "b", "d", "d"],
        extra={"tomolocRole": ["target", "target", "distractor", "distractor"]},
    )

    @pytest.mark.parametrize("label", [["a", "b", "a"], ""])
    def test_are_no_misses_but_picks_on_them_are_wrong(self, label):
        picks = line(1, 101, 201, label=label)
        evaluation = evaluate_particles(picks, self.truth, radius=5)
        chosen = evaluation.micro.chosen
        assert (chosen.n_tp, chosen.n_fp, chosen.n_fn) == (2, 1, 0)
        assert "d" not in evaluation.labels
        assert any("2 distractors left out of the truth: 'd'" in x for x in evaluation.notes)
        assert counts(picks, self.truth, radius=5) == (2, 1, 0)

    def test_count_where_they_were_sought(self):
        picks = line(1, 201, label=["a", "d"])
        assert counts(picks, self.truth, radius=5) == (2, 0, 2)
        chosen = evaluate_particles(
            line(1, label="a"), self.truth, radius=5, labels=["a", "d"]
        ).labels["d"]
        assert chosen.chosen.n_fn == 2

    def test_nothing_picked_misses_the_targets(self):
        assert counts(line(), self.truth, radius=5) == (0, 0, 2)

    def test_truth_of_distractors_alone_leaves_nothing_to_find(self):
        assert counts(line(201, label="a"), self.truth[2:], radius=5) == (0, 1, 0)

    def test_instances_count_them_still(self):
        instances = np.zeros((1, 1, 40), dtype=np.uint16)
        instances[0, 0, [10, 20, 30]] = [2, 3, 4]
        grid = Volume(data=instances, voxel_spacing=10, origin=ORIGIN)
        picks = line(100, 200, label=["b", "b"])
        match = match_particles(picks, self.truth, radius=5, rule="shrec", instances=grid)
        assert match.pairs.tolist() == [[0, 1]]
        assert match.n_fp == 1


class TestTomograms:
    """Names that mean the same tomogram, and intervals over tomograms."""

    @pytest.mark.parametrize(
        "name",
        ["TS_01", "TS_01.tomostar", "a/b/TS_01_10.00Apx.mrc", "TS_01_rec.mrc", r"c:\x\TS_01.mrc.gz",
         "TS_01.mrc_10.00Apx.mrc", "TS_01.ome.zarr/", "TS_01_13.48Apx_rec"],
    )  # fmt: skip
    def test_names(self, name):
        assert normalise_name(name) == "TS_01"
        picks = line(0, 500, tomogram=["TS_02", name])
        truth = line(0, 500, tomogram=["TS_02", "TS_01"])
        assert match_particles(picks, truth, radius=1).n_tp == 2

    def test_names_that_are_only_suffix_stay(self):
        assert normalise_name("_rec") == "_rec"
        assert normalise_name("") == ""

    def test_one_tomogram_on_each_side_is_the_same(self):
        assert match_particles(line(0, tomogram="x"), line(0, tomogram="y"), radius=1).n_tp == 1

    def test_particles_match_within_their_tomogram(self):
        picks = line(0, 100, tomogram=["a", "b"])
        truth = line(0, 100, tomogram=["b", "a"])
        assert counts(picks, truth, radius=10) == (0, 2, 2)

    def test_tomograms_without_picks_are_misses(self):
        evaluation = evaluate_particles(
            line(0, tomogram="a"), line(0, 0, 0, tomogram=["a", "b", "b"]), radius=10
        )
        assert evaluation.tomograms == ("a", "b")
        assert evaluation.micro.chosen.recall == pytest.approx(1 / 3)

    def test_picks_without_truth_are_left_out_unless_annotated(self):
        picks = line(0, 5, 9, tomogram=["a", "b", "b"])
        truth = line(0, tomogram="a")
        left = evaluate_particles(picks, truth, radius=1)
        assert left.micro.chosen.n_fp == 0
        assert left.notes == ("picks in 1 tomogram(s) without truth left out: 'b'",)
        empty = Volume(data=np.zeros((3, 4, 5)), voxel_spacing=10)
        kept = evaluate_particles(picks, truth, radius=1, grids={"b.mrc": empty})
        assert kept.micro.chosen.n_fp == 2

    def test_no_tomogram_in_common(self):
        with pytest.raises(ValueError, match="no tomogram is common to both: the picks are from"):
            match_particles(line(0, 1, tomogram=["a", "b"]), line(0, tomogram="c"), radius=1)

    def test_two_names_of_one_tomogram(self):
        picks = line(0, 1, tomogram=["a_rec", "a"])
        with pytest.raises(ValueError, match="both meaning 'a'"):
            match_particles(picks, line(0, 1, tomogram=["a", "b"]), radius=1)

    def test_intervals(self, rng):
        truth = Particles(
            position=rng.uniform(0, 900, (200, 3)), tomogram=np.repeat(list("abcde"), 40)
        )
        picks = Particles(
            position=truth.position + rng.normal(0, 12, (200, 3)),
            tomogram=truth.tomogram,
            score=rng.uniform(size=200),
        )
        first = evaluate_particles(picks, truth, radius=20, diameter=100, seed=4)
        again = evaluate_particles(picks, truth, radius=20, diameter=100, seed=4)
        other = evaluate_particles(picks, truth, radius=20, diameter=100, seed=5)
        assert first.to_dict() == again.to_dict()
        assert first.micro.intervals != other.micro.intervals
        assert first.micro.intervals == first.labels[""].intervals
        for name, (low, high) in first.micro.intervals.items():
            result = first.micro
            value = (
                result.best.f_beta
                if name == "best_f_beta"
                else getattr(result.chosen, name, result.average_precision)
            )
            assert low <= value <= high, name
            assert low < high

    def test_interval_of_recall_is_that_of_the_tomograms(self):
        """Two tomograms of equal size, all found and none: recall 0, 1/2 or 1."""
        truth = line(0, 0, tomogram=["a", "b"])
        evaluation = evaluate_particles(line(0, tomogram="a"), truth, radius=1)
        assert evaluation.micro.intervals["recall"] == (0, 1)

    def test_a_label_of_one_tomogram_has_no_intervals(self):
        both = line(0, 1, 2, tomogram=["x", "y", "y"], label=["a", "a", "b"])
        evaluation = evaluate_particles(both, both, radius=1)
        assert evaluation.labels["a"].intervals
        assert not evaluation.labels["b"].intervals

    def test_one_tomogram_has_no_intervals(self):
        assert not evaluate_particles(line(0, 1), line(0), radius=1).micro.intervals


REFERENCE = {
    # list: best F1 over cuts with greedy (and the cut), F1 of the first 1646 with gated;
    # at 5 and at 10 voxels
    "pytme_ribosome": (0.460, 1713, 0.458, 0.636, 1705, 0.632),
    "pytme_sphere": (0.401, 1543, 0.396, 0.608, 1783, 0.599),
    "pytme_emoji": (0.430, 1564, 0.428, 0.643, 1568, 0.640),
    "pytom_ribosome": (0.433, 1747, 0.429, 0.606, 1547, 0.602),
    "pytom_sphere": (0.339, 1700, 0.336, 0.536, 1700, 0.533),
    "pytom_emoji": (0.355, 1698, 0.354, 0.559, 1827, 0.558),
}


@pytest.mark.parametrize("name", REFERENCE)
def test_published_picks(shared: Path, name: str):
    """Tomogram TS_037 of EMPIAR-10988, doi:10.1107/S2059798324004303."""
    spacing = 13.48
    truth = np.loadtxt(shared / "picks" / "TS_037_truth_ribosomes.csv", delimiter=",")
    table = np.loadtxt(shared / "picks" / f"TS_037_{name}.csv", delimiter=",", skiprows=1)
    true = Particles(position=truth * spacing)
    picks = Particles(position=table[:, :3] * spacing, score=table[:, 3])
    first = picks[np.argsort(-table[:, 3], kind="stable")[: len(truth)]]
    for voxels, (best, cut, gated) in zip(
        (5, 10), np.reshape(REFERENCE[name], (2, 3)), strict=True
    ):
        greedy = evaluate_particles(picks, true, radius=voxels * spacing, rule="greedy").micro.best
        assert greedy.f1 == pytest.approx(best, abs=0.005)
        assert greedy.n_picks == cut
        score = match_particles(first, true, radius=voxels * spacing).f_score()
        assert score == pytest.approx(gated, abs=0.005)
