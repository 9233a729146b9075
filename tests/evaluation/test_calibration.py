"""Bounds are those of scipy; a risk is stated for corpora that fitted nothing, or it is not."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import beta

from support_rag.evaluation.calibration import (
    calibrated,
    calibration_of,
    clopper_pearson,
    error_of,
    fit,
    importance,
    left_out,
    state_risks,
)
from support_rag.gate import read_calibration
from support_rag.grounds import FACTS


@given(st.integers(1, 3000), st.floats(0, 1))
def test_the_bound_is_the_quantile_of_the_beta_distribution(n: int, share: float) -> None:
    wrong = round(share * n)
    expected = 1.0 if wrong == n else float(beta.ppf(0.95, wrong + 1, n - wrong))
    assert clopper_pearson(wrong, n) == pytest.approx(expected, abs=1e-6)


def made(corpus: str, n: int, seed: int, *, unanswerable: float = 0.5) -> pd.DataFrame:
    generator = np.random.default_rng(seed)
    facts = pd.DataFrame(generator.uniform(0, 1, (n, len(FACTS))), columns=list(FACTS))
    odds = -4 + 4 * facts["worth"] + 4 * facts["words"]
    right = generator.uniform(0, 1, n) < 1 / (1 + np.exp(-odds))
    answerable = right | (generator.uniform(0, 1, n) > unanswerable)
    return facts.assign(corpus=corpus, kind="labelled", answerable=answerable, correct=right)


SIZES = {"a": 900, "b": 300, "c": 120}
POOLED = pd.concat([made(corpus, n, n) for corpus, n in SIZES.items()])
POOLED = POOLED.reset_index(drop=True)


def test_corpora_and_classes_weigh_alike() -> None:
    weights = pd.Series(importance(POOLED))
    sums = weights.groupby([POOLED["corpus"], POOLED["answerable"]]).sum()
    assert sums.to_numpy() == pytest.approx(np.full(6, sums.iloc[0]))


def test_a_corpus_does_not_decide_about_itself() -> None:
    "What is said of a corpus does not change with what came on it."
    turned = POOLED.copy()
    is_a = turned["corpus"] == "a"
    turned.loc[is_a, "correct"] = ~turned.loc[is_a, "correct"] & turned.loc[is_a, "answerable"]
    before, after = left_out(POOLED), left_out(turned)
    assert before[is_a] == pytest.approx(after[is_a])
    assert not np.allclose(before[~is_a], after[~is_a])


def test_the_line_calibrates_what_the_ridge_flattened() -> None:
    numbers, raw = calibrated(POOLED), fit(POOLED)
    assert numbers[1] > raw[1] > 0 and (numbers[1:] >= 0).all()
    values, truth = left_out(POOLED), POOLED["correct"].to_numpy(float)
    assert error_of(values, truth, importance(POOLED)) < 0.08


def test_a_fact_that_speaks_against_replies_gets_no_weight() -> None:
    turned = POOLED.assign(known=1 - POOLED["words"])
    assert fit(turned)[1 + FACTS.index("known")] == 0.0


def test_the_file_is_what_the_gate_reads() -> None:
    content = calibration_of(POOLED)
    learned = read_calibration(content)
    assert learned.bias == content["bias"]
    assert [s.threshold for s in learned.risks] == [r["threshold"] for r in content["risks"]]


def test_too_few_replies_state_no_risk() -> None:
    few = state_risks(np.full(19, 0.9), np.ones(19))
    assert all(stated.threshold is None for stated in few)
    twenty = state_risks(np.full(59, 0.9), np.ones(59), risks=(0.04, 0.05))
    assert [stated.threshold for stated in twenty] == [None, 0.0]
