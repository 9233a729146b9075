"""Every metric against a second way to compute it: another library, or brute force."""

from __future__ import annotations

import itertools
import math
import os
import random
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path

import ir_measures
import numpy as np
import pytest
from ir_measures import AP, RR, R, Success, nDCG
from langchain_text_splitters import RecursiveCharacterTextSplitter
from sklearn.calibration import calibration_curve
from sklearn.metrics import brier_score_loss, precision_recall_curve, roc_auc_score

from support_rag.chunk import chunk as chunks_of
from support_rag.evaluation.labels import Labels, load_labels
from support_rag.evaluation.metrics import (
    CitationScores,
    auroc,
    average_precision_at_k,
    brier_score,
    citation_scores,
    count_characters,
    count_shared,
    distinct_documents,
    expected_calibration_error,
    hit_at_k,
    merge,
    mrr_at_k,
    ndcg_at_k,
    precision_omega,
    recall_at_k,
    risk_coverage_area,
    risk_coverage_curve,
    span_scores,
)
from support_rag.language.segmentation import count_tokens
from support_rag.release import ChunkParameters, resource
from support_rag.types import Chunk, Citation, Hit, InputInvalid, Span, chunk_id
from tests.recursive_splitter import SEPARATORS, recursive_chunks

ROOT = Path(__file__).parents[2]
LABELLED = ROOT / os.environ.get("SUPPORT_RAG_LABELLED", "../shared/labelled")
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


def meets(span: Span, other: Span) -> bool:
    return not (span.end < other.start or other.end < span.start)


@pytest.mark.parametrize("seed", SEEDS)
def test_precision_omega_equals_counting_characters(seed: int) -> None:
    chunks, gold = random_case(seed)
    wanted = characters(gold)
    # a chunk that only meets the evidence end to end touches it too
    touching = [c for c in chunks if any(meets(c.span, g) for g in gold.get(c.document_id, ()))]
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
    # touching: 50-100 and 250-300 end to end, 100-150, 150-200 and 300-350
    assert precision_omega(corpus, gold) == 100 / 250
    # without the second half, 40 gold characters lie in no chunk
    assert precision_omega(corpus[:4], gold) == 60 / (150 + 40)


def test_spans_without_evidence_are_refused() -> None:
    for gold in ({}, {"a": []}, {"a": [Span(3, 3)]}):
        with pytest.raises(InputInvalid, match="0 gold characters"):
            span_scores([chunk("a", 0, 5)], gold)
        with pytest.raises(InputInvalid, match="0 gold characters"):
            precision_omega([chunk("a", 0, 5)], gold)


# ---------------------------------------------------------------- published figures


def as_published(
    retrieved: Sequence[Chunk], gold: Mapping[str, Sequence[Span]]
) -> tuple[float, ...]:
    """Recall, precision and IoU over lists of flags, one for each character of each document.

    Written from the definitions in the description of `chroma_chunking`, without spans.
    """
    ends = [s.end for spans in gold.values() for s in spans] + [c.span.end for c in retrieved]
    evidence = {name: np.zeros(max(ends), dtype=bool) for name in gold}
    seen = {name: np.zeros(max(ends), dtype=bool) for name in gold}
    for name, spans in gold.items():
        for span in spans:
            evidence[name][span.start : span.end] = True
    for c in retrieved:
        if c.document_id in seen:
            seen[c.document_id][c.span.start : c.span.end] = True
    found = sum(int((evidence[name] & seen[name]).sum()) for name in gold)
    wanted = sum(int(flags.sum()) for flags in evidence.values())
    read = sum(len(c.text) for c in retrieved)  # repeats and wrong documents included
    missed = sum(int((evidence[name] & ~seen[name]).sum()) for name in gold)
    return found / wanted, found / read, found / (read + missed)


@cache
def chroma() -> tuple[Labels, bool]:
    "The labels of the published evaluation, or the help centre's, and which of the two it is."
    folder = LABELLED / "chroma_chunking"
    if folder.is_dir():
        return load_labels(folder), True
    warnings.warn(f"{folder} is not there: the published figures are not compared", stacklevel=1)
    return load_labels(resource("data/help_centre")), False


PUBLISHED = {(800, 400): 6.7, (400, 200): 13.9, (400, 0): 17.7, (200, 0): 29.9}  # percent


def mean_omega(labels: Labels, chunks: Sequence[Chunk]) -> float:
    judged = [precision_omega(chunks, gold) for gold in labels.spans.values()]
    return 100 * sum(judged) / len(judged)


def test_precision_omega_of_a_recursive_splitter_is_the_published_one() -> None:
    labels, is_published = chroma()
    found = {}
    for size, overlap in PUBLISHED:
        cut = [
            piece
            for document in labels.corpus
            for piece in recursive_chunks(document, size=size, overlap=overlap)
        ]
        found[size, overlap] = round(mean_omega(labels, cut), 1)
    if is_published:
        assert found == PUBLISHED
    else:
        figures = list(found.values())
        assert figures == sorted(figures), "smaller chunks with less overlap are purer"


def test_cuts_at_sentences_are_purer_than_cuts_anywhere() -> None:
    labels, _ = chroma()
    for size in (200, 400):
        purity = {}
        for mode in ("structure", "sentence", "fixed"):
            parameters = ChunkParameters(mode=mode, size_tokens=size)
            cut = [piece for document in labels.corpus for piece in chunks_of(document, parameters)]
            purity[mode] = mean_omega(labels, cut)
        assert min(purity["structure"], purity["sentence"]) > purity["fixed"]


def test_the_splitter_of_these_tests_is_langchains() -> None:
    labels, _ = chroma()
    for document in labels.corpus[:2]:
        theirs = RecursiveCharacterTextSplitter(
            separators=list(SEPARATORS),
            chunk_size=120,
            chunk_overlap=40,
            length_function=count_tokens,
            keep_separator=True,
        ).split_text(document.text[:60_000])
        ours = recursive_chunks(
            replace(document, text=document.text[:60_000]), size=120, overlap=40
        )
        assert [piece.text for piece in ours] == theirs


def test_span_scores_equal_the_published_definitions() -> None:
    labels, _ = chroma()
    parameters = ChunkParameters(mode="fixed", size_tokens=100, overlap_tokens=50)
    cut = [piece for document in labels.corpus for piece in chunks_of(document, parameters)]
    random_ = random.Random(3)
    for gold in random_.sample(list(labels.spans.values()), k=60):
        near = [c for c in cut if any(c.span.overlap(g) for g in gold.get(c.document_id, ()))]
        retrieved = random_.sample(near, k=min(3, len(near))) + random_.sample(cut, k=2)
        scores = span_scores(retrieved, gold)
        expected = as_published(retrieved, gold)
        assert (scores.recall, scores.precision, scores.iou) == pytest.approx(expected)


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


IR_MEASURES = {
    hit_at_k: Success,
    recall_at_k: R,
    mrr_at_k: RR,
    average_precision_at_k: AP,
    ndcg_at_k: nDCG,
}


@pytest.mark.parametrize("k", [1, 3, 10, 100])
@pytest.mark.parametrize("metric", IR_MEASURES)
def test_rank_metrics_equal_ir_measures(metric: Callable[..., float], k: int) -> None:
    random_ = random.Random(k)
    documents = [f"d{n}" for n in range(120)]
    qrels, run, expected = {}, {}, {}
    for question in (f"q{n}" for n in range(40)):
        judged = random_.sample(documents, k=random_.randint(1, 12))
        qrels[question] = {name: random_.randrange(4) for name in judged} | {judged[0]: 1}
        ranking = random_.sample(documents, k=random_.randint(1, 110))
        run[question] = {name: 1 / rank for rank, name in enumerate(ranking, 1)}
        expected[question] = metric(ranking, qrels[question], k=k)
    measure = IR_MEASURES[metric] @ k
    theirs = {m.query_id: m.value for m in ir_measures.iter_calc([measure], qrels, run)}
    assert theirs == pytest.approx(expected)


@pytest.mark.parametrize(
    "metric", [hit_at_k, mrr_at_k, recall_at_k, average_precision_at_k, ndcg_at_k]
)
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


# ---------------------------------------------------------------- citations


@pytest.mark.parametrize("seed", SEEDS)
def test_citation_scores_equal_counting_characters(seed: int) -> None:
    chunks, gold = random_case(seed)
    citations = [Citation(1, c.id, c.document_id, "", "", c.span, c.text) for c in chunks]
    wanted = characters(gold)
    held = [characters({c.document_id: [c.span]}) & wanted for c in citations]
    scores = citation_scores(citations, gold)
    assert scores.precision == pytest.approx(sum(map(bool, held)) / len(citations))
    assert scores.recall == pytest.approx(len(set().union(*held)) / len(wanted))
    assert scores.recall == span_scores(chunks, gold).recall
    assert citation_scores([], gold) == CitationScores(0.0, 0.0)
    with pytest.raises(InputInvalid, match="0 gold characters"):
        citation_scores(citations, {})


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


@pytest.mark.parametrize("seed", SEEDS)
def test_confidence_metrics_equal_scikit_learn(seed: int) -> None:
    generator = np.random.default_rng(seed)
    confidence = generator.integers(0, 101, size=300) / 100  # ties, and values on bin edges
    correct = generator.random(300) < confidence
    assert auroc(confidence, correct) == pytest.approx(roc_auc_score(correct, confidence))
    assert brier_score(confidence, correct) == pytest.approx(brier_score_loss(correct, confidence))

    # their bins hold their upper edge, ours the lower one: move the values off the edges
    inside = np.clip(confidence, 0.004, 0.996) + 0.003
    share_right, mean = calibration_curve(correct, inside, n_bins=10, strategy="uniform")
    sizes = np.histogram(inside, bins=np.linspace(0, 1, 11))[0]
    gap = np.abs(share_right - mean) @ (sizes[sizes > 0] / 300)
    assert expected_calibration_error(inside, correct) == pytest.approx(gap)

    # where no tie is cut, the error rate is 1 - their precision at that threshold
    coverage, risk = risk_coverage_curve(confidence, correct)
    precision, _, thresholds = precision_recall_curve(correct, confidence)
    for threshold, right in zip(thresholds, precision, strict=False):
        n = int((confidence >= threshold).sum())
        assert risk[n - 1] == pytest.approx(1 - right)
        assert coverage[n - 1] == pytest.approx(n / 300)
    assert risk_coverage_area(confidence, correct) == pytest.approx(risk.mean())


def test_confidence_outside_its_range_is_refused() -> None:
    with pytest.raises(InputInvalid, match=r"0 to 1\.5"):
        brier_score([0.0, 1.5], [False, True])
    with pytest.raises(InputInvalid, match=r"-0\.5 to 1"):
        expected_calibration_error([-0.5, 1.0], [False, True])


def test_one_class_alone_has_no_auroc() -> None:
    with pytest.raises(InputInvalid, match="2 positive, 0 negative"):
        auroc([0.1, 0.2], [True, True])
