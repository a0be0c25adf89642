"""Tests, equivalence and power of a few paired differences, beside scipy, tables and simulation."""

import doctest
import math

import numpy as np
import pytest
from scipy import stats

from gradvac.geometry.statistics import correlation
from tools.evidence import statistics as own
from tools.evidence.figures import MEASURES, Absent, Figure, Flaw, seeds
from tools.evidence.page import one_by_one
from tools.evidence.together import summary
from tools.evidence.verdicts import ABSENT, FAILS, HOLDS, SAME, UNKNOWN, verdicts

RANDOM = np.random.default_rng(5)


def test_examples():
    assert doctest.testmod(own).failed == 0


@pytest.mark.parametrize("n", [3, 6, 10])
def test_the_p_value_and_interval_are_scipys(n):
    values = RANDOM.normal(0.3, 1, n)
    figure, found = seeds(values.tolist(), "nll"), stats.ttest_1samp(values, 0)
    assert figure.chance == pytest.approx(found.pvalue)
    interval = found.confidence_interval(0.95)
    assert (figure.low, figure.high) == pytest.approx((interval.low, interval.high))


@pytest.mark.parametrize("n", [3, 6])
def test_equivalence_is_two_one_sided_tests_of_scipy(n):
    values, bound = RANDOM.normal(0.002, 0.005, n), MEASURES["nll"].bound
    below = stats.ttest_1samp(values, bound, alternative="less").pvalue
    above = stats.ttest_1samp(values, -bound, alternative="greater").pvalue
    figure = seeds(values.tolist(), "nll")
    assert figure.no_more == pytest.approx(max(below, above))
    # The largest difference left is the further end of the 90 % interval (Schuirmann 1987).
    interval = stats.ttest_1samp(values, 0).confidence_interval(0.9)
    assert figure.at_most == pytest.approx(max(abs(interval.low), abs(interval.high)))


@pytest.mark.parametrize(("effect", "pairs"), [(0.2, 199), (0.5, 34), (0.8, 15), (1.0, 10)])
def test_pairs_for_an_effect_are_those_of_the_tables(effect, pairs):
    """Faul et al. 2007 (G*Power): paired t, two-sided 5 %, power 80 %."""
    assert own.seeds_for(1, effect) == pairs


def share_of(tests):
    """The share of true, and a width that 4 standard deviations of it do not leave."""
    return np.mean(tests), 4 * math.sqrt(0.25 / len(tests))


@pytest.mark.parametrize("n", [3, 6, 10])
def test_the_difference_that_is_seen_is_seen_four_times_in_five(n):
    values = RANDOM.normal(own.detectable(2.0, n), 2.0, (4000, n))
    share, width = share_of(stats.ttest_1samp(values, 0, axis=1).pvalue <= 0.05)
    assert share == pytest.approx(0.8, abs=width)


def test_so_many_seeds_exclude_the_bound_four_times_in_five():
    n = own.seeds_to_exclude(1.0, 0.5)
    values = RANDOM.normal(0, 1, (4000, n))
    inside = [
        own.within(v.mean(), v.std(ddof=1) / math.sqrt(n), n - 1, 0.5) <= 0.05 for v in values
    ]
    share, width = share_of(inside)
    assert share == pytest.approx(0.8, abs=width)


def test_the_permutation_of_partners_keeps_its_level():
    """Unlike a percentile bootstrap over ten points; 400 studies without any correlation."""
    found = [correlation(*RANDOM.normal(size=(2, 10)), resamples=199).p for _ in range(400)]
    share, width = share_of(np.array(found) <= 0.05)
    assert share <= 0.05 + width * math.sqrt(0.05 * 0.95 / 0.25)


def test_a_correlation_that_is_seen_is_that_of_a_table():
    """Hulley et al. 2013, appendix 6C: 85 points for r = 0.3, 194 for 0.2."""
    assert own.points_for(0.3) == 85 and own.points_for(0.2) == pytest.approx(194, abs=1)
    assert own.detectable_correlation(own.points_for(0.3)) == pytest.approx(0.3, abs=0.002)


def figure(value, error=0.001, flaws=(), n=3):
    return Figure(value, n, "nll", error, flaws=flaws)


LARGER, SMALLER = Flaw(True, "worse than it is"), Flaw(False, "better than it is")


@pytest.mark.parametrize(
    ("found", "kind"),
    [
        (figure(0.1), HOLDS),
        (figure(-0.1), FAILS),
        (figure(0.001), SAME),
        (figure(0.001, error=0.01), UNKNOWN),
        (figure(0.1, flaws=(LARGER,)), HOLDS),  # could only be more
        (figure(0.1, flaws=(SMALLER,)), UNKNOWN),
        (figure(-0.1, flaws=(LARGER,)), UNKNOWN),
        (figure(-0.1, flaws=(SMALLER,)), FAILS),
        (figure(0.001, flaws=(LARGER,)), UNKNOWN),
        (Figure(0.2, 3, "mantel", p=0.01, test="Mantel"), HOLDS),
        (Figure(0.2, 3, "mantel", p=0.06, test="Mantel", takes="more"), UNKNOWN),
        (Figure(-0.2, 3, "mantel", p=0.01, test="Mantel"), UNKNOWN),  # one-sided
        (Figure(-0.2, 9, "r", p=0.01, test="permutation"), FAILS),
        (Absent("x"), ABSENT),
    ],
)
def test_verdicts(found, kind):
    (verdict,) = verdicts([found], ["study"])
    assert verdict.kind == kind and f"**{kind}" in verdict.words(found, "")


def test_p_values_are_corrected_within_a_study_and_not_across():
    one = Figure(0.2, 3, "mantel", p=0.03, test="Mantel")
    found = verdicts([one, one, one, Absent("x")], ["a", "a", "b", "b"])
    assert [v.p for v in found[:3]] == pytest.approx([0.06, 0.06, 0.03])
    assert [v.kind for v in found] == [UNKNOWN, UNKNOWN, HOLDS, ABSENT]


def test_equivalence_is_corrected_too():
    near = figure(0.001, error=0.005)
    assert near.no_more == pytest.approx(stats.t.sf(3.8, 2)) and 0.025 < near.no_more < 0.05
    assert verdicts([near], ["a"])[0].kind == SAME
    assert [v.kind for v in verdicts([near, near], ["a", "a"])] == [UNKNOWN] * 2


def test_a_verdict_says_what_it_is_about_and_what_it_would_take():
    found = [figure(-0.1), figure(0.001, error=0.02), figure(0.01, error=0.0001)]
    kinds = [verdicts([f], ["a"])[0] for f in found]
    said = [v.words(f, "this copy") for v, f in zip(kinds, found, strict=True)]
    seeds_ = max(
        own.seeds_for(0.02 * math.sqrt(3), 0.02), own.seeds_to_exclude(0.02 * 3**0.5, 0.02)
    )
    assert said[0] == "**does not hold** of this copy"
    assert said[1] == f"**cannot tell**: {seeds_} seeds for 0.02"
    assert said[2] == "**holds** of this copy, by less than 0.02"


def test_what_fails_after_the_correction_alone_says_so():
    alone = figure(0.1, error=0.02)  # p = 0.038
    found = verdicts([alone, alone], ["a", "a"])
    assert all(v.kind == UNKNOWN and "p = 0.038 alone" in v.reason for v in found)


def test_summaries_count_each_claim_once():
    from tools.evidence.claims import Claim

    found = [figure(0.1), figure(0.1), figure(-0.1), figure(0.001, error=0.01)]
    asked = [Claim("a", f"{n}", "y", lambda: found[0], again=n == 1) for n in range(4)]
    judged = list(zip(asked, found, verdicts(found, ["a"] * 4), strict=True))
    assert summary(judged).startswith("Of 3 claims looked at, 1 hold, 1 do not hold, 0 show")
    assert "Of all 4 rows, 1 of which" in one_by_one(judged)


@pytest.mark.parametrize("level", [0.05, 0.05 / 36, 1e-5])
@pytest.mark.parametrize("n", [3, 6])
def test_few_seeds_and_many_claims_have_a_smallest_difference_too(n, level):
    """By simulation: that difference is found in four of five samples."""
    rng = np.random.default_rng(0)
    draws = rng.standard_normal((40_000, n)) + own.detectable(1, n, level)
    t = draws.mean(1) / draws.std(1, ddof=1) * n**0.5
    found = (2 * stats.t.sf(abs(t), n - 1) <= level).mean()
    assert found == pytest.approx(0.8, abs=0.01)
