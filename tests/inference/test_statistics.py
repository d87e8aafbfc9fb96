"""Intervals: known values, coverage on simulated data, and repeatability."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from luthier.inference import intervals
from tests.helpers.properties import examples


@pytest.mark.parametrize(
    ("successes", "n", "low", "high"),
    [
        (0, 10, 0.0, 0.2775),
        (10, 10, 0.7225, 1.0),
        (5, 10, 0.2366, 0.7634),
        (81, 263, 0.2553, 0.3662),
        (1, 1, 0.2065, 1.0),
    ],
)  # 81 of 263 is the example of Newcombe (1998), Table I, method 3
def test_wilson_gives_the_published_values(successes: int, n: int, low: float, high: float) -> None:
    assert intervals.wilson(successes, n) == pytest.approx((low, high), abs=5e-5)


@given(st.integers(1, 500).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_holds_the_share_and_mirrors(case: tuple[int, int]) -> None:
    successes, n = case
    low, high = intervals.wilson(successes, n)
    assert 0 <= low <= successes / n <= high <= 1
    mirrored = intervals.wilson(n - successes, n)
    assert (1 - mirrored[1], 1 - mirrored[0]) == pytest.approx((low, high))


def test_wilson_of_nothing_says_nothing_and_wrong_counts_are_refused() -> None:
    assert intervals.wilson(0, 0) == (0.0, 1.0)
    with pytest.raises(ValueError, match="3 successes of 2"):
        intervals.wilson(3, 2)


def test_bootstrap_mean_agrees_with_the_normal_interval_and_covers() -> None:
    draws = np.random.default_rng(0)
    inside = 0
    for seed in range(120):
        values = draws.normal(3.0, 2.0, 60)
        low, high = intervals.bootstrap_mean(values, seed)
        inside += low <= 3.0 <= high
        half = intervals.Z_95 * values.std() / np.sqrt(len(values))
        assert (low, high) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.12)
    assert 105 <= inside <= 120  # 95 % of 120 is 114


def test_bootstrap_draws_are_a_function_of_the_seed_and_of_nothing_else() -> None:
    values = np.random.default_rng(4).normal(size=40)
    np.random.seed(1)
    state = np.random.get_state()[1].copy()
    first = intervals.bootstrap_mean(values, 7)
    assert (np.random.get_state()[1] == state).all()
    np.random.seed(2)
    assert intervals.bootstrap_mean(values, 7) == first
    assert intervals.bootstrap_mean(values, 8) != first


def test_long_files_take_bounded_memory_and_the_blocks_do_not_show() -> None:
    values = np.random.default_rng(1).normal(size=30_000)
    low, high = intervals.bootstrap_mean(values, 0)
    assert high - low == pytest.approx(2 * intervals.Z_95 / np.sqrt(len(values)), rel=0.15)


@examples(25)
@given(st.lists(st.floats(-100, 100), min_size=1, max_size=20), st.integers(0, 5))
def test_paired_bootstrap_is_the_interval_of_the_differences(a: list[float], seed: int) -> None:
    b = [value / 2 + 1 for value in a]
    difference, low, high = intervals.paired_bootstrap(a, b, seed)
    assert difference == pytest.approx(np.mean(a) - np.mean(b), abs=1e-9)
    assert low - 1e-9 <= difference + 1e-9
    assert (low, high) == intervals.bootstrap_mean(np.array(a) - np.array(b), seed)
    same = intervals.paired_bootstrap(a, a, seed)
    assert same == (0.0, 0.0, 0.0)


def test_ratio_weighs_rows_by_their_tokens() -> None:
    nll, tokens = [10.0, 1.0], [100.0, 1.0]
    low, high = intervals.bootstrap_ratio(nll, tokens, 0)
    assert (low, high) == (0.1, 1.0)
    with pytest.raises(ValueError, match="positive denominator"):
        intervals.bootstrap_ratio([1.0], [0.0])


def test_no_values_are_refused_and_pairs_must_match() -> None:
    with pytest.raises(ValueError, match="at least one"):
        intervals.bootstrap_mean([])
    with pytest.raises(ValueError, match="pairs are needed"):
        intervals.paired_bootstrap([1.0, 2.0], [1.0])
