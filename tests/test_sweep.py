"""A sweep gives what the pipeline's own steps give, and its verdict follows the evidence."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from support_rag.chunk import chunk
from support_rag.embed import Embeddings, HashingEmbedder
from support_rag.labels import Labels, load_labels
from support_rag.measure import distinct_documents, ndcg_at_k, span_scores
from support_rag.prompt import condense
from support_rag.release import Parameters
from support_rag.retrieve import InMemoryIndex, retrieve
from support_rag.sweep import (
    RememberingEmbedder,
    compare,
    equal_room,
    mean_tokens,
    recommend,
    summarise,
    sweep_chunking,
)
from support_rag.types import InputInvalid

TOPICS = ("kiosk", "invoice", "webhook", "shift", "holiday", "export")


@pytest.fixture
def labels(tmp_path: Path) -> Labels:
    "Six articles of six paragraphs. The third paragraph of each answers its question."
    corpus, queries, qrels, spans = [], [], ["query-id\tcorpus-id\tscore"], []
    for topic in TOPICS:
        paragraphs = [
            f"Paragraph {n} about the {topic} says that setting number {n} is {n * 7}. " * 3
            for n in range(6)
        ]
        text, quote = "\n\n".join(paragraphs), paragraphs[3].strip()
        start = text.index(quote)
        corpus.append({"id": topic, "title": topic, "text": text})
        queries.append({"id": f"q-{topic}", "text": f"What is setting number 3 of the {topic}?"})
        qrels.append(f"q-{topic}\t{topic}\t1")
        span = {"query_id": f"q-{topic}", "doc_id": topic, "start": start, "text": quote}
        spans.append({**span, "end": start + len(quote)})
    history = [{"role": "user", "content": "How do I set up the kiosk?"}]
    queries.append({"id": "q-more", "text": "And setting 3 of it?", "history": history})
    qrels.append("q-more\tkiosk\t1")
    queries.append({"id": "q-none", "text": "Who won?", "answerable": False})
    files = {"corpus.jsonl": corpus, "queries.jsonl": queries, "spans.jsonl": spans}
    for name, rows in files.items():
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "qrels.tsv").write_text("\n".join(qrels))
    return load_labels(tmp_path)


class CountingEmbedder(HashingEmbedder):
    "The hashing embedder, which also remembers what it was asked for."

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[str] = []

    async def embed(self, texts: Sequence[str]) -> Embeddings:
        self.asked += texts
        return await super().embed(texts)


def settings() -> list[Parameters]:
    base = Parameters()
    small = base.with_(chunk={"size_tokens": 64}, retrieve={"k": 3})
    fixed = base.with_(chunk={"mode": "fixed", "size_tokens": 100}, retrieve={"k": 2})
    return [base, small, fixed]


async def test_a_row_is_what_the_steps_give(labels: Labels) -> None:
    results = await sweep_chunking(labels, settings(), embedder=HashingEmbedder())
    assert len(results) == 3 * 7, "the unanswerable question is left out"
    parameters, embedder = settings()[1], HashingEmbedder()
    chunks = [piece for doc in labels.corpus for piece in chunk(doc, parameters.chunk)]
    vectors = (await embedder.embed([piece.embedded_text for piece in chunks])).vectors
    index = InMemoryIndex(chunks, vectors)
    rows = results[results["setting"] == "structure 64"].set_index("question")
    for question in labels.questions:
        if not question.answerable:
            assert question.id not in rows.index
            continue
        query = condense(question.text, question.history)
        hits = await retrieve(query, embedder=embedder, index=index, parameters=parameters.retrieve)
        assert len(hits) == 3
        row = rows.loc[question.id]
        assert row["tokens"] == sum(hit.chunk.n_tokens for hit in hits)
        if question.id == "q-more":
            assert np.isnan(row["recall"]), "no gold spans: missing, not 0"
        else:
            gold = labels.spans[question.id]
            scores = span_scores([hit.chunk for hit in hits], gold)
            assert (row["recall"], row["iou"]) == (scores.recall, scores.iou)
        deep = parameters.with_(retrieve={"k": 50}).retrieve
        hits = await retrieve(query, embedder=embedder, index=index, parameters=deep)
        ranking = distinct_documents(hits)
        assert row["ndcg_at_10"] == ndcg_at_k(ranking, labels.qrels[question.id], k=10)


async def test_a_text_is_embedded_once_under_one_progress_bar(labels: Labels) -> None:
    embedder, steps = CountingEmbedder(), list[int]()

    def progress(batches: Sequence[int]) -> Iterator[int]:
        steps.append(len(batches))
        yield from batches

    await sweep_chunking(labels, settings(), embedder=embedder, progress=progress)
    assert len(embedder.asked) == len(set(embedder.asked))
    assert steps == [-(-len(embedder.asked) // 64)]


async def test_remembered_vectors_equal_fresh_ones() -> None:
    texts = ["a b", "c", "a b", "d"]
    remembering = RememberingEmbedder(HashingEmbedder())
    await remembering.embed(texts[:2])
    expected = (await HashingEmbedder().embed(texts)).vectors
    assert (await remembering.embed(texts)).vectors == pytest.approx(expected)
    assert (await remembering.embed([])).vectors.shape == (0, remembering.dim)


def test_equal_room_scales_k(labels: Labels) -> None:
    base = Parameters()
    found = equal_room(labels, base, sizes=[64, 128, 200], modes=["structure", "fixed"])
    assert found[0] == base, "the present settings are first and unchanged"
    names = [(p.chunk.mode, p.chunk.size_tokens) for p in found]
    assert len(names) == len(set(names)) == 6

    def tokens(parameters: Parameters) -> float:
        chunks = [piece for doc in labels.corpus for piece in chunk(doc, parameters.chunk)]
        return mean_tokens(chunks)

    room = base.retrieve.k * tokens(base)
    for parameters in found:
        assert abs(parameters.retrieve.k * tokens(parameters) - room) <= tokens(parameters) / 2


def test_equal_room_keeps_settings_valid(labels: Labels) -> None:
    base = Parameters().with_(chunk={"overlap_tokens": 100}, retrieve={"k": 8, "candidates": 10})
    for parameters in equal_room(labels, base, sizes=[16, 64], modes=["fixed"]):
        assert parameters.retrieve.k <= 10
        assert parameters.chunk.overlap_tokens * 2 <= parameters.chunk.size_tokens


async def test_without_spans_only_documents_are_measured(labels: Labels, tmp_path: Path) -> None:
    (tmp_path / "spans.jsonl").unlink()
    plain = load_labels(tmp_path)
    results = await sweep_chunking(plain, settings(), embedder=HashingEmbedder())
    table = summarise(results)
    assert not {"recall", "precision", "iou"} & set(table.columns)
    assert {"ndcg_at_10", "mrr_at_10", "tokens"} < set(table.columns)
    assert "ndcg_at_10" in recommend(results)


async def test_a_sweep_that_compares_nothing_is_refused(labels: Labels) -> None:
    with pytest.raises(InputInvalid, match="2 settings with 1 chunkings"):
        await sweep_chunking(labels, [Parameters()] * 2, embedder=HashingEmbedder())


# ---------------------------------------------------------------- the verdict


def rows(setting: str, recall: Sequence[float], *, k: int = 8) -> pd.DataFrame:
    mode, size = setting.split()
    facts = {"setting": setting, "mode": mode, "size_tokens": int(size), "k": k}
    return pd.DataFrame({"question": range(len(recall)), "recall": recall, **facts})


BASE = np.linspace(0.1, 0.7, 60)


def test_a_clear_winner_is_named_with_what_to_change() -> None:
    frame = pd.concat(
        [rows("structure 200", BASE), rows("fixed 64", BASE + 0.1, k=25), rows("fixed 400", BASE)]
    )
    sentence = recommend(frame)
    assert "[chunk] mode to fixed and size_tokens to 64, and [retrieve] k to 25" in sentence
    assert "recall +0.100 [+0.100, +0.100], n = 60" in sentence


def test_a_worse_rival_never_wins() -> None:
    frame = pd.concat([rows("structure 200", BASE), rows("fixed 64", BASE - 0.1)])
    assert recommend(frame).startswith("No clear winner over structure 200")
    assert recommend(rows("structure 200", BASE)).startswith("No clear winner")


def test_equal_settings_rarely_give_a_winner() -> None:
    "Fourteen rivals that differ by chance alone: 95 % of sweeps must name none of them."
    generator = np.random.default_rng(2)
    wins = 0
    for _ in range(60):
        rivals = [
            rows(f"fixed {100 + n}", np.clip(BASE + generator.normal(0, 0.2, 60), 0, 1))
            for n in range(14)
        ]
        present = rows("structure 200", np.clip(BASE + generator.normal(0, 0.2, 60), 0, 1))
        wins += recommend(pd.concat([present, *rivals])).startswith("Change")
    assert wins <= 8  # 3 expected at most, and the bootstrap is a little narrow at n = 60


def test_intervals_widen_with_the_number_of_rivals() -> None:
    noise = np.random.default_rng(4).normal(0, 0.2, 60)
    one = [rows("structure 200", BASE), rows("fixed 64", BASE + noise)]
    many = one + [rows(f"fixed {n}", BASE) for n in range(100, 109)]
    narrow = compare(pd.concat(one), metric="recall")["fixed 64"]
    wide = compare(pd.concat(many), metric="recall")["fixed 64"]
    assert narrow.mean == wide.mean
    assert wide.low < narrow.low < narrow.high < wide.high
