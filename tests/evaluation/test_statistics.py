"""Intervals and p-values against scipy, against all resamples, and by how often they are wrong."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import numpy as np
import pytest
from scipy import stats

from support_rag.evaluation.metrics import (
    BLOCK,
    RESAMPLES,
    bootstrap_interval,
    flip_signs,
    holm,
    paired_bootstrap,
    questions_needed,
    randomization_test,
    smallest_loss,
)
from support_rag.types import InputInvalid

# ---------------------------------------------------------------- intervals


def test_bootstrap_of_a_tiny_sample_equals_all_resamples() -> None:
    "With three values, all 27 resamples can be written down."
    values = [0.0, 0.2, 1.0]
    means = sorted(sum(draw) / 3 for draw in itertools.product(values, repeat=3))
    interval = bootstrap_interval(values, level=0.8)
    assert interval.mean == pytest.approx(0.4)
    low, high = np.quantile(means, [0.1, 0.9])
    assert interval.low == pytest.approx(low, abs=0.07)
    assert interval.high == pytest.approx(high, abs=0.07)


def test_bootstrap_interval_is_near_the_normal_one_for_many_values() -> None:
    values = np.random.default_rng(3).normal(0.5, 0.2, size=400)
    interval = bootstrap_interval(values)
    half = 1.96 * values.std() / math.sqrt(400)
    assert interval.low == pytest.approx(values.mean() - half, abs=0.1 * half)
    assert interval.high == pytest.approx(values.mean() + half, abs=0.1 * half)


def test_bootstrap_interval_covers_the_truth_as_often_as_it_says() -> None:
    generator = np.random.default_rng(11)
    intervals = [bootstrap_interval(generator.random(60), level=0.9) for _ in range(200)]
    covered = sum(interval.low <= 0.5 <= interval.high for interval in intervals)
    assert 165 <= covered <= 195  # 180 expected; five standard deviations are 21


def test_bootstrap_is_repeatable_and_block_free() -> None:
    values = np.random.default_rng(5).random(3000)  # needs several blocks
    assert 3000 * RESAMPLES > 2_000_000
    assert bootstrap_interval(values) == bootstrap_interval(list(values))
    assert bootstrap_interval(values, seed=1) != bootstrap_interval(values, seed=2)


def test_paired_bootstrap_is_the_interval_of_the_differences() -> None:
    generator = np.random.default_rng(9)
    a, b = generator.random(50), generator.random(50)
    assert paired_bootstrap(a, b) == bootstrap_interval(a - b)
    assert paired_bootstrap(a, b).mean == pytest.approx(-paired_bootstrap(b, a).mean)
    assert paired_bootstrap(a, a).low == paired_bootstrap(a, a).high == 0.0


def test_bootstrap_interval_is_scipys() -> None:
    values = np.random.default_rng(6).beta(0.5, 0.5, size=80)
    ours = bootstrap_interval(values)
    theirs = stats.bootstrap(
        (values,), np.mean, n_resamples=RESAMPLES, method="percentile", rng=1
    ).confidence_interval
    width = ours.high - ours.low
    assert (ours.low, ours.high) == pytest.approx(tuple(theirs), abs=0.06 * width)


# ---------------------------------------------------------------- p-values


@pytest.mark.parametrize("seed", range(8))
def test_randomization_test_is_scipys_exact_one(seed: int) -> None:
    generator = np.random.default_rng(seed)
    first = generator.random(11)
    second = np.clip(first - generator.normal(0.08, 0.15, 11), 0, 1)
    exact = stats.permutation_test(
        (first, second),
        lambda a, b, axis: np.mean(a - b, axis=axis),
        permutation_type="samples",
        vectorized=True,
        n_resamples=np.inf,
    ).pvalue
    assert randomization_test(first, second) == pytest.approx(exact, abs=0.015)


def test_randomization_test_is_right_as_often_as_it_says() -> None:
    generator = np.random.default_rng(12)
    differences = generator.normal(0, 1, (300, 40))
    p = flip_signs(differences.T, flips=400)
    assert 3 <= sum(value < 0.05 for value in p) <= 29  # 15 expected
    assert 120 <= sum(value < 0.5 for value in p) <= 180  # 150 expected


def test_randomization_test_does_not_depend_on_its_blocks() -> None:
    generator = np.random.default_rng(13)
    first, second = generator.random(900), generator.random(900)
    assert BLOCK < 900 * 20_000
    p = randomization_test(first, second)
    assert p == randomization_test(first, second) == randomization_test(second, first)
    assert p == pytest.approx(stats.ttest_rel(first, second).pvalue, abs=0.02)


@pytest.mark.parametrize("seed", range(10))
def test_holm_is_the_closure_of_bonferroni(seed: int) -> None:
    """A hypothesis may be rejected when every set that holds it is rejected by Bonferroni.

    That is another definition of Holm's procedure: Marcus, Peritz and Gabriel 1976.
    """
    p = (np.random.default_rng(seed).random(6) ** 3).round(3).tolist()
    sets = [s for n in range(1, 7) for s in itertools.combinations(range(6), n)]
    by_set = {s: min(1.0, len(s) * min(p[i] for i in s)) for s in sets}
    expected = [max(value for s, value in by_set.items() if i in s) for i in range(6)]
    assert holm(p) == pytest.approx(expected)


@pytest.mark.parametrize("sd", [0.15, 0.4])
@pytest.mark.parametrize("n", [60, 400])
def test_a_loss_of_the_smallest_size_is_seen_as_often_as_promised(sd: float, n: int) -> None:
    loss = smallest_loss(sd, n)
    assert questions_needed(sd, loss) in (n, n + 1)
    seen = np.random.default_rng(n).normal(-loss, sd, (20_000, n)).mean(axis=1)
    assert np.mean(seen < -1.645 * sd / math.sqrt(n)) == pytest.approx(0.8, abs=0.01)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: bootstrap_interval([]), r"shape \(0,\)"),
        (lambda: bootstrap_interval([[0.1]]), r"shape \(1, 1\)"),
        (lambda: bootstrap_interval([0.1, math.inf]), "1 of 2 values"),
        (lambda: bootstrap_interval([0.1], level=95), "level is 95"),
        (lambda: paired_bootstrap([0.1, 0.2], [0.1]), "2 values against 1"),
        (lambda: randomization_test([0.1, 0.2], [0.1]), "2 values against 1"),
        (lambda: holm([0.2, -0.1]), r"p-value is -0\.1"),
        (lambda: smallest_loss(0.2, 0), "n is 0"),
        (lambda: smallest_loss(math.nan, 9), "sd is nan"),
        (lambda: smallest_loss(0.2, 9, power=1.0), r"1\.0 is no power"),
        (lambda: questions_needed(0.2, -0.1), r"loss is -0\.1"),
    ],
)
def test_statistics_name_the_value_that_is_wrong(call: Callable[[], object], message: str) -> None:
    with pytest.raises(InputInvalid, match=message):
        call()
