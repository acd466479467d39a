from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from tomoloc.pickers.competition import (
    Calibration,
    best_threshold,
    compete,
    fit_calibration,
    mean_direction,
)

CHANNELS = 16


def make_tomogram(rng, *, labels=10, particles=25, background=300, spread=0.06):
    """Candidates around planted directions, centres that tell a little, and background."""
    directions = rng.normal(size=(labels, CHANNELS))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    members = np.repeat(directions, particles, axis=0)
    noise = rng.gamma(2.0, 0.5, len(members))[:, None] * rng.normal(size=members.shape)
    vectors = np.concatenate([members + spread * noise, rng.normal(size=(background, CHANNELS))])
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    label = np.concatenate(
        [np.repeat([f"p{i}" for i in range(labels)], particles), [""] * background]
    )
    center = np.clip(rng.normal(np.where(label == "", 0.5, 0.7), 0.1), 0.1, 0.95)
    return vectors, center, label


@pytest.fixture(scope="module")
def calibration():
    rng = np.random.default_rng(5)
    return fit_calibration([make_tomogram(rng) for _ in range(4)], seed=1)


def pick_examples(vectors, label, wanted, rng, *, shots=1):
    return [vectors[rng.choice(np.flatnonzero(label == n), shots, replace=False)] for n in wanted]


def test_finds_members_and_leaves_rivals_and_background(calibration):
    rng = np.random.default_rng(2)
    vectors, center, label = make_tomogram(rng)
    wanted = ["p3", "p7", "p1"]
    examples = pick_examples(vectors, label, wanted, rng)
    p = compete(vectors, center, examples=examples, calibration=calibration)
    assert p.shape == (len(vectors), 3)
    assert ((p > 0).sum(axis=1) <= 1).all()
    for column, name in enumerate(wanted):
        found = p[:, column] > 0.5
        assert (found & (label == name)).sum() > 20
        assert (found & (label != name)).sum() <= 2


@pytest.mark.parametrize("shots", [1, 5])
@pytest.mark.parametrize("background", [100, 2000])
def test_probabilities_are_frequencies_however_many_there_are(calibration, background, shots):
    rng = np.random.default_rng(8)
    expected = right = count = 0.0
    for _ in range(12):
        vectors, center, label = make_tomogram(rng, background=background, spread=0.12)
        examples = pick_examples(vectors, label, ["p0", "p1"], rng, shots=shots)
        p = compete(vectors, center, examples=examples, calibration=calibration)
        named = np.array(["p0", "p1"])[p.argmax(axis=1)] == label
        some = p.max(axis=1) > 0.3
        expected, right = expected + p.max(axis=1)[some].sum(), right + named[some].sum()
        count += some.sum()
    assert abs(expected - right) < 0.15 * count


def test_several_examples_are_averaged_robustly():
    rng = np.random.default_rng(3)
    vectors, center, label = make_tomogram(rng)
    own = np.flatnonzero(label == "p2")[:6]
    wrong = np.flatnonzero(label == "p5")[:1]
    examples = vectors[np.concatenate([own, wrong])]
    p = compete(vectors, center, examples=[examples], refine=False)[:, 0]
    assert np.median(p[label == "p2"]) > 10 * np.median(p[label == "p5"])


def test_examples_that_cancel_out_are_the_first():
    np.testing.assert_array_equal(mean_direction([[0.0, 1.0], [0.0, -1.0]]), [0, 1])


def test_refined_targets_find_more_than_a_poor_example(calibration):
    rng = np.random.default_rng(4)
    gains = []
    for _ in range(5):
        vectors, center, label = make_tomogram(rng, labels=4, spread=0.03)
        own = np.flatnonzero(label == "p1")
        center_of_all = vectors[own].mean(axis=0)
        poor = own[(vectors[own] @ center_of_all).argmin()]
        found = [
            compete(
                vectors, center, examples=[vectors[[poor]]], calibration=calibration, refine=refine
            )[own, 0].sum()
            for refine in (False, True)
        ]
        gains.append(found[1] - found[0])
    assert np.mean(gains) > 0


def test_a_kind_without_a_label_keeps_its_own(calibration):
    """The fewer of a like kind there are, the more of them pass for the label."""
    rng = np.random.default_rng(9)
    typical = replace(Calibration(), spread=calibration.spread)
    found, taken = 0, {1: 0.0, 25: 0.0}
    for _ in range(5):
        vectors, center, label = make_tomogram(rng, labels=2, spread=0.04)
        own, other = (np.flatnonzero(label == name) for name in ("p0", "p1"))
        between = vectors[own].mean(axis=0) + 0.5 * vectors[other].mean(axis=0)
        vectors[other] += 2.0 * between - vectors[other].mean(axis=0)
        vectors[other] /= np.linalg.norm(vectors[other], axis=1, keepdims=True)
        for n in taken:
            rows = np.concatenate([own, other[:n], np.flatnonzero(label == "")])
            p = compete(
                vectors[rows], center[rows], examples=[vectors[own[:1]]], calibration=typical
            )[:, 0]
            found += int((p[: len(own)] > 0.5).sum())
            taken[n] += p[len(own) : len(own) + n].mean()
    assert found > 0.75 * 2 * 5 * 25
    assert taken[25] < 0.1 * taken[1]


def test_noise_alone_is_nothing(calibration):
    rng = np.random.default_rng(6)
    vectors, center, label = make_tomogram(rng)
    noise, weak = vectors[label == ""], center[label == ""]
    examples = pick_examples(vectors, label, ["p0", "p4"], rng)
    found = compete(noise, weak, examples=examples, calibration=calibration)
    for p in found.T:
        assert (p > best_threshold(p, least=0.2)).sum() <= 1


def test_the_threshold_is_where_most_is_right(rng):
    """No threshold gives a better F1, on average over what is true by these probabilities."""
    for a, b in ((0.3, 3), (0.5, 0.5), (2, 5)):
        p = rng.beta(a, b, 4000)
        right = rng.random(len(p)) < p

        def score(threshold, p=p, right=right):
            chosen = p > threshold
            return 2 * (chosen & right).sum() / (chosen.sum() + right.sum())

        best = max(score(t) for t in np.linspace(0.01, 0.99, 99))
        assert score(best_threshold(p, least=0.0)) > best - 0.01
    assert best_threshold([1.0, 1.0, 0.0], least=0.2) == 0.5
    assert best_threshold([0.05] * 200, least=0.2) == 0.2
    assert best_threshold([], least=0.2) == 0.5


def test_nothing_is_taken_where_most_likely_nothing_is_there(rng):
    """Over all that may be there, the choice has a better F1 than any other; 1 if rightly none.

    Each three are right or wrong together.
    """
    for p in ([0.4], [0.3, 0.2], [0.47, 0.44], [0.48, 0.1], [0.7, 0.4, 0.05], [0.3] * 20):
        group = np.arange(len(p)) // 3
        there = rng.random((20_000, 1 + group[-1]))[:, group] < p
        score = [there.sum(axis=1) == 0]
        score += [
            2 * there[:, :k].sum(axis=1) / (k + there.sum(axis=1)) for k in range(1, 1 + len(p))
        ]
        expected = np.mean(score, axis=1)
        taken = (np.array(p) > best_threshold(p, least=0.2)).sum()
        assert expected[taken] > expected.max() - 0.06
        assert (taken == 0) == (expected.argmax() == 0)
    assert best_threshold([0.05, 0.02], least=0.2) == 0.5


def test_no_candidate_no_answer(calibration):
    example = np.eye(CHANNELS)[:1]
    assert compete(np.zeros((0, CHANNELS)), [], examples=[example]).shape == (0, 1)


def test_errors():
    with pytest.raises(ValueError, match="at least one example"):
        compete(np.eye(4), np.ones(4) / 2, examples=[np.zeros((0, 4))])
    with pytest.raises(ValueError, match="several labels"):
        fit_calibration([(np.eye(4), np.ones(4) / 2, np.array([""] * 4))], seed=0)
    with pytest.raises(ValueError, match="calibration is damaged"):
        Calibration.of({"calibration": {"unlike": "much"}})
    with pytest.raises(ValueError, match="calibration is damaged"):
        Calibration.of({"calibration": {"colour": 1}})
    with pytest.raises(ValueError, match=r"lacks center, .*, unlike_rival: train the model again"):
        Calibration.of({"calibration": {"unlike": -1.0}})


def test_configuration_round_trip(calibration):
    assert Calibration.of({"calibration": calibration.to_dict()}) == calibration
    assert Calibration.of({}) == Calibration()


def test_what_is_hardly_a_particle_is_hardly_one_of_a_label(calibration, rng):
    """Two alike in ice, and like the example: but neither looks like a particle's centre."""
    vectors = rng.normal(size=(40, CHANNELS))
    vectors[:2] = np.eye(CHANNELS)[0] + 0.01 * rng.normal(size=(2, CHANNELS))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    center = np.full(40, 0.1)
    example = [np.eye(CHANNELS)[:1]]
    center[:2] = (0.45, 0.47)
    doubtful = compete(vectors, center, examples=example, calibration=calibration)[:2, 0]
    np.testing.assert_allclose(doubtful, center[:2])
    center[:2] = 0.9
    assert (compete(vectors, center, examples=example, calibration=calibration)[:2, 0] > 0.5).all()
    assert best_threshold(doubtful, least=0.2) == 0.5


def make_fitted(rng, label, *, noise=10.0):
    """Averages of some labels, one of a kind that is none, and how candidates fit them."""
    kinds = ["p0", "p1", "p2", "p3", "none"]
    own = label[:, None] == np.array(kinds)
    gain = np.where(own, 100.0, 30.0) + noise * rng.normal(size=own.shape)
    gain[label == ""] -= 30.0
    return SimpleNamespace(gain=gain, size=np.full(5, 25), usual=np.full(5, 100.0))


def make_twins(rng):
    """A tomogram in which p1 looks like p0 to the network, and averages of its candidates."""
    vectors, center, label = make_tomogram(rng, labels=4)
    own, other = (np.flatnonzero(label == name) for name in ("p0", "p1"))
    vectors[other] = vectors[own] + 0.02 * rng.normal(size=(len(own), CHANNELS))
    vectors[other] /= np.linalg.norm(vectors[other], axis=1, keepdims=True)
    return vectors, center, label


@pytest.fixture(scope="module")
def averaged():
    rng = np.random.default_rng(15)
    tomograms = [make_twins(rng) for _ in range(3)]
    fitted = [make_fitted(rng, label) for _, _, label in tomograms]
    return fit_calibration(tomograms, seed=1, fitted=fitted)


def test_averages_tell_apart_what_vectors_do_not(averaged, rng):
    wanted, right = ["p0", "p1", "p2"], []
    for _ in range(5):
        vectors, center, label = make_twins(rng)
        examples = pick_examples(vectors, label, wanted, rng)
        twins = np.isin(label, wanted[:2])
        for fitted in (None, make_fitted(rng, label)):
            p = compete(vectors, center, examples=examples, calibration=averaged, fitted=fitted)
            named = np.where(p.max(axis=1) > 0.5, np.array(wanted)[p.argmax(axis=1)], "")
            right.append(np.mean(named[twins] == label[twins]))
            assert ((p > 0).sum(axis=1) <= 1).all()
    assert np.median(right[1::2]) > 0.85
    assert np.max(right[::2]) < 0.75


def test_a_label_without_an_average_is_judged_by_its_vectors(averaged, rng):
    vectors, center, label = make_tomogram(rng)
    examples = pick_examples(vectors, label, ["p8", "p9"], rng)
    plain = compete(vectors, center, examples=examples, calibration=averaged)
    none = SimpleNamespace(gain=np.zeros((len(label), 0)), size=np.zeros(0), usual=np.zeros(0))
    p = compete(vectors, center, examples=examples, calibration=averaged, fitted=none)
    np.testing.assert_array_equal(p, plain)


def test_averages_need_a_calibration_that_knows_them(calibration, rng):
    vectors, center, label = make_twins(rng)
    examples = pick_examples(vectors, label, ["p0", "p1"], rng)
    plain = compete(vectors, center, examples=examples, calibration=calibration)
    fitted = make_fitted(rng, label)
    p = compete(vectors, center, examples=examples, calibration=calibration, fitted=fitted)
    np.testing.assert_array_equal(p, plain)


def test_configuration_with_averages(averaged, calibration):
    stored = averaged.to_dict()
    assert stored["averaged"]["lead"] > 0
    assert Calibration.of({"calibration": stored}) == averaged
    assert "averaged" not in calibration.to_dict()
    damaged = {k: v for k, v in stored["averaged"].items() if k != "lead"}
    with pytest.raises(ValueError, match=r"calibration is damaged .*lead"):
        Calibration.of({"calibration": {**stored, "averaged": damaged}})
    with pytest.raises(ValueError, match="calibration is damaged"):
        Calibration.of({"calibration": {**stored, "averaged": "much"}})


def test_averages_of_which_nothing_is_known_are_left_out(calibration, caplog):
    rng = np.random.default_rng(5)
    tomograms = [make_tomogram(rng) for _ in range(4)]
    n = len(tomograms[0][2])
    none = [SimpleNamespace(gain=np.zeros((n, 0)), size=np.zeros(0), usual=np.zeros(0))] * 2
    assert fit_calibration(tomograms, seed=1, fitted=none) == calibration
    assert "what averages of candidates mean is not known" in caplog.text
