"""Every metric against a second way to compute it: by hand, by brute force, or by ragas."""

from __future__ import annotations

import itertools
import math
import os
import random
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pytest

from support_rag.measure import (
    RESAMPLES,
    auroc,
    bootstrap_interval,
    brier_score,
    count_characters,
    count_shared,
    distinct_documents,
    expected_calibration_error,
    hit_at_k,
    merge,
    mrr_at_k,
    ndcg_at_k,
    paired_bootstrap,
    precision_omega,
    recall_at_k,
    risk_coverage_area,
    span_scores,
)
from support_rag.types import Chunk, Hit, InputInvalid, Span, chunk_id

SEEDS = range(25)


def chunk(document_id: str, start: int, end: int) -> Chunk:
    span = Span(start, end)
    return Chunk(chunk_id(document_id, span, ""), document_id, span, text="x" * (end - start))


def characters(spans: Mapping[str, Sequence[Span]]) -> set[tuple[str, int]]:
    "The plainest form of a set of spans: one member for each character."
    return {(doc, i) for doc, found in spans.items() for s in found for i in range(s.start, s.end)}


def random_case(seed: int) -> tuple[list[Chunk], dict[str, list[Span]]]:
    "Overlapping chunks, some of them repeated, and overlapping gold spans in two documents."
    random_ = random.Random(seed)

    def span(longest: int) -> tuple[int, int]:
        start = random_.randrange(80)
        return start, start + random_.randint(1, longest)

    chunks = [chunk(random_.choice("abc"), *span(30)) for _ in range(random_.randint(1, 8))]
    chunks += random_.sample(chunks, k=random_.randint(0, len(chunks)))
    gold = {doc: [Span(*span(20)) for _ in range(random_.randint(1, 3))] for doc in "ab"}
    return chunks, gold


# ---------------------------------------------------------------- spans


@pytest.mark.parametrize("seed", SEEDS)
def test_sets_of_characters(seed: int) -> None:
    chunks, gold = random_case(seed)
    spans = [c.span for c in chunks]
    others = gold["a"] + gold["b"]
    mine, theirs = characters({"": spans}), characters({"": others})
    assert count_characters(spans) == len(mine)
    assert count_shared(spans, others) == count_shared(others, spans) == len(mine & theirs)
    merged = merge(spans)
    assert characters({"": merged}) == mine
    assert all(a.end < b.start for a, b in itertools.pairwise(merged))


@pytest.mark.parametrize("seed", SEEDS)
def test_span_scores_equal_counting_characters(seed: int) -> None:
    chunks, gold = random_case(seed)
    wanted = characters(gold)
    read = characters({d: [c.span for c in chunks if c.document_id == d] for d in "abc"})
    total = sum(len(c.text) for c in chunks)
    found = len(wanted & read)
    scores = span_scores(chunks, gold)
    assert scores.recall == pytest.approx(found / len(wanted))
    assert scores.precision == pytest.approx(found / total)
    assert scores.iou == pytest.approx(found / (total + len(wanted - read)))


@pytest.mark.parametrize("seed", SEEDS)
def test_precision_omega_equals_counting_characters(seed: int) -> None:
    chunks, gold = random_case(seed)
    wanted = characters(gold)
    touching = [c for c in chunks if characters({c.document_id: [c.span]}) & wanted]
    read: set[tuple[str, int]] = set()
    for c in touching:
        read |= characters({c.document_id: [c.span]})
    assert precision_omega(chunks, gold) == pytest.approx(len(wanted & read) / len(read | wanted))


def test_span_scores_follow_the_published_definition() -> None:
    """A table by hand: 100 gold characters, three chunks, one of a wrong document, one twice.

    The found characters count once, the retrieved ones as often as they were retrieved.
    """
    gold = {"sotu": [Span(100, 160), Span(300, 340)]}
    retrieved = [chunk("sotu", 80, 180), chunk("sotu", 80, 180), chunk("finance", 80, 180)]
    scores = span_scores(retrieved, gold)
    assert (scores.recall, scores.precision, scores.iou) == (60 / 100, 60 / 300, 60 / 340)
    corpus = [chunk("sotu", start, start + 50) for start in range(0, 400, 50)]
    # touching: 100-150, 150-200 and 300-350
    assert precision_omega(corpus, gold) == 100 / 150
    # without the last, 40 gold characters lie in no chunk
    assert precision_omega(corpus[:4], gold) == 60 / (100 + 40)


def test_spans_without_evidence_are_refused() -> None:
    for gold in ({}, {"a": []}, {"a": [Span(3, 3)]}):
        with pytest.raises(InputInvalid, match="0 gold characters"):
            span_scores([chunk("a", 0, 5)], gold)
        with pytest.raises(InputInvalid, match="0 gold characters"):
            precision_omega([chunk("a", 0, 5)], gold)


# ---------------------------------------------------------------- rankings


def test_distinct_documents_take_their_best_chunk() -> None:
    order = [("b", 2), ("a", 1), ("b", 4), ("c", 5), ("a", 3)]
    hits = [Hit(chunk(doc, rank, rank + 1), score=1 / rank, rank=rank) for doc, rank in order]
    assert distinct_documents(hits) == ("a", "b", "c")
    assert distinct_documents([]) == ()


RANKING = ["d3", "d1", "d9", "d2", "d7"]
QRELS = {"d1": 1, "d2": 2, "d5": 1, "d7": 0}
# rank:   1     2     3     4     5        relevant: d1, d2, d5 (not found)
BY_HAND = {
    (hit_at_k, 1): 0.0,
    (hit_at_k, 2): 1.0,
    (mrr_at_k, 1): 0.0,
    (mrr_at_k, 5): 1 / 2,
    (recall_at_k, 3): 1 / 3,
    (recall_at_k, 10): 2 / 3,
    # gains 1 at rank 2 and 2 at rank 4, ideal 2, 1, 1
    (ndcg_at_k, 10): (1 / math.log2(3) + 2 / math.log2(5)) / (2 + 1 / math.log2(3) + 1 / 2),
    # the ideal is cut at k as well
    (ndcg_at_k, 2): (1 / math.log2(3)) / (2 + 1 / math.log2(3)),
}


@pytest.mark.parametrize(("metric", "k"), BY_HAND)
def test_rank_metrics_by_hand(metric: Callable[..., float], k: int) -> None:
    assert metric(RANKING, QRELS, k=k) == pytest.approx(BY_HAND[metric, k])


@pytest.mark.parametrize("seed", SEEDS)
def test_ndcg_divides_by_the_best_permutation(seed: int) -> None:
    random_ = random.Random(seed)
    documents = list("abcdef")
    qrels = {d: random_.randrange(4) for d in documents} | {"a": 1}
    k = random_.randint(1, 6)

    def dcg(order: Sequence[str]) -> float:
        return sum(qrels[d] / math.log(i + 2, 2) for i, d in enumerate(order[:k]))

    best = max(dcg(order) for order in itertools.permutations(documents))
    random_.shuffle(documents)
    assert ndcg_at_k(documents, qrels, k=k) == pytest.approx(dcg(documents) / best)


@pytest.mark.parametrize("metric", [hit_at_k, mrr_at_k, recall_at_k, ndcg_at_k])
def test_rank_metrics_refuse_what_is_undefined(metric: Callable[..., float]) -> None:
    with pytest.raises(InputInvalid, match="0 relevant documents"):
        metric(RANKING, {"d1": 0}, k=5)
    with pytest.raises(InputInvalid, match="k is 0"):
        metric(RANKING, QRELS, k=0)
    assert metric([], QRELS, k=5) == 0.0


async def test_ragas_agrees_on_document_recall() -> None:
    "ragas takes seconds to import, so this is the only test that does."
    os.environ["RAGAS_DO_NOT_TRACK"] = "true"  # must stand before the import
    from ragas import SingleTurnSample
    from ragas.metrics import IDBasedContextPrecision, IDBasedContextRecall, NonLLMContextRecall

    for k in (1, 2, 4, 5):
        sample = SingleTurnSample(
            retrieved_context_ids=RANKING[:k], reference_context_ids=["d1", "d2", "d5"]
        )
        recall = await IDBasedContextRecall().single_turn_ascore(sample)
        precision = await IDBasedContextPrecision().single_turn_ascore(sample)
        assert recall_at_k(RANKING, QRELS, k=k) == pytest.approx(recall)
        assert recall_at_k(RANKING, QRELS, k=k) * 3 / k == pytest.approx(precision)

    # Its string form counts the gold passages of which some retrieved text is nearly equal. With
    # gold passages of one length that are chunks themselves, that is recall over characters.
    passages = ["Kiosks keep 72 hours.", "Shifts can be swapped", "Invoices come monthly"]
    assert len({len(p) for p in passages}) == 1
    size = len(passages[0])
    spans = [Span(i * size, (i + 1) * size) for i in range(3)]
    gold = {"doc": spans[:2]}
    for found in ([0], [0, 1], [2], [1, 2], [0, 1, 2]):
        sample = SingleTurnSample(
            retrieved_contexts=[passages[i] for i in found], reference_contexts=passages[:2]
        )
        theirs = await NonLLMContextRecall().single_turn_ascore(sample)
        chunks = [chunk("doc", spans[i].start, spans[i].end) for i in found]
        assert span_scores(chunks, gold).recall == pytest.approx(theirs)


# ---------------------------------------------------------------- confidence


@pytest.mark.parametrize("seed", SEEDS)
def test_auroc_equals_comparing_all_pairs(seed: int) -> None:
    generator = np.random.default_rng(seed)
    scores = generator.integers(0, 6, size=40)  # few values, many ties
    positive = generator.random(40) < 0.4
    positive[:2] = [True, False]
    wins = [
        1.0 if p > n else 0.5 if p == n else 0.0
        for p in scores[positive]
        for n in scores[~positive]
    ]
    assert auroc(scores, positive) == pytest.approx(sum(wins) / len(wins))
    assert auroc(-scores, positive) == pytest.approx(1 - auroc(scores, positive))


@pytest.mark.parametrize("seed", range(20))
def test_risk_coverage_area_is_the_mean_over_orders_of_ties(seed: int) -> None:
    random_ = random.Random(seed)
    confidence = [random_.randrange(3) for _ in range(6)]
    correct = [random_.random() < 0.5 for _ in range(6)]
    areas = []
    for order in itertools.permutations(range(6)):
        if any(confidence[a] < confidence[b] for a, b in itertools.pairwise(order)):
            continue
        risks = [sum(not correct[i] for i in order[:n]) / n for n in range(1, 7)]
        areas.append(sum(risks) / 6)
    assert risk_coverage_area(confidence, correct) == pytest.approx(sum(areas) / len(areas))


@pytest.mark.parametrize("seed", range(20))
def test_calibration_equals_a_loop(seed: int) -> None:
    random_ = random.Random(seed)
    confidence = [random_.random() for _ in range(50)] + [0.0, 1.0]
    correct = [random_.random() < c for c in confidence]
    pairs = list(zip(confidence, correct, strict=True))
    error = 0.0
    for low in range(10):
        inside = [(p, y) for p, y in pairs if min(9, math.floor(p * 10)) == low]
        if inside:
            gap = sum(y for _, y in inside) / len(inside) - sum(p for p, _ in inside) / len(inside)
            error += abs(gap) * len(inside) / len(pairs)
    assert expected_calibration_error(confidence, correct) == pytest.approx(error)
    assert brier_score(confidence, correct) == pytest.approx(
        sum((p - y) ** 2 for p, y in pairs) / len(pairs)
    )


def test_confidence_outside_its_range_is_refused() -> None:
    with pytest.raises(InputInvalid, match=r"0 to 1\.5"):
        brier_score([0.0, 1.5], [False, True])
    with pytest.raises(InputInvalid, match=r"-0\.5 to 1"):
        expected_calibration_error([-0.5, 1.0], [False, True])


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


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: bootstrap_interval([]), r"shape \(0,\)"),
        (lambda: bootstrap_interval([[0.1]]), r"shape \(1, 1\)"),
        (lambda: bootstrap_interval([0.1, math.inf]), "1 of 2 values"),
        (lambda: bootstrap_interval([0.1], level=95), "level is 95"),
        (lambda: paired_bootstrap([0.1, 0.2], [0.1]), "2 values against 1"),
        (lambda: auroc([0.1, 0.2], [True, True]), "2 positive, 0 negative"),
    ],
)
def test_statistics_name_the_value_that_is_wrong(call: Callable[[], object], message: str) -> None:
    with pytest.raises(InputInvalid, match=message):
        call()
