"""Evaluation notebooks end with a table, a picture and a sentence; a judge is asked rightly."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from support_rag.embed import HashingEmbedder
from support_rag.evaluation.cache import Endpoint
from support_rag.evaluation.judge import judge_answers, judge_metrics, load_ragas
from support_rag.evaluation.labels import Tables, build_labels
from support_rag.evaluation.runs import list_runs
from support_rag.evaluation.validation import Row
from support_rag.types import Answer, Chunk, Decision, GenerationFailed, Hit, Outcome, Span
from tests.openai_stub import OpenAIStub, Reply

ROOT = Path(__file__).parents[2]
OWN = ("00_dataset", "03_generation", "04_gate", "05_latency", "06_release", "07_replay")


def outputs(name: str) -> list[dict[str, Any]]:
    notebook = json.loads((ROOT / "evals" / f"{name}.ipynb").read_text(encoding="utf-8"))
    return [output for cell in notebook["cells"] for output in cell.get("outputs", [])]


@pytest.mark.parametrize("name", OWN)
def test_a_notebook_ends_with_a_table_a_picture_and_a_sentence(name: str) -> None:
    *_, table, picture, sentence = outputs(name)
    assert "text/html" in table["data"]
    assert "image/png" in picture["data"]
    assert "".join(sentence["text"]).strip().endswith(".")


def test_committed_results_can_be_read() -> None:
    found = list_runs([ROOT / "evals" / "results"])
    assert not found.unreadable
    assert {run.id for run in found.runs} == {"reference"}, "experiments go to the local runs"


TEXT = "A kiosk keeps 72 hours of punches."
QUESTION = {"id": "q1", "text": "How long?", "answer": "72 hours."}
LABELS = build_labels(
    Tables(
        [Row("corpus", 1, {"id": "kiosk", "text": TEXT})],
        [Row("queries", 1, QUESTION)],
        [Row("qrels", 1, {"query_id": "q1", "doc_id": "kiosk", "score": 1})],
    )
)
HIT = Hit(Chunk("c1", "kiosk", Span(0, len(TEXT)), TEXT), 1.0, 1)
ANSWER = Answer("72 hours. [1]", (), Decision(Outcome.ANSWER, "confident", 0.9), "", (HIT,))


def reply_of(body: Any) -> Reply:
    "Answer as a judge who agrees with everything."
    schema = body["messages"][0]["content"]
    if "NLIStatementOutput" in schema:
        said: Any = {"statements": [{"statement": "s", "reason": "r", "verdict": 1}]}
    elif "StatementGeneratorOutput" in schema:
        said = {"statements": ["s"]}
    elif "AnswerRelevanceOutput" in schema:
        said = {"question": "How long?", "noncommittal": 0}
    elif "ContextRecallOutput" in schema:
        said = {"classifications": [{"statement": "s", "reason": "r", "attributed": 1}]}
    else:
        said = {"reason": "r", "verdict": 1}
    return Reply(tokens=[json.dumps(said)])


async def test_a_judge_gives_every_figure() -> None:
    with OpenAIStub() as stub:
        stub.answer = reply_of
        metrics = judge_metrics(Endpoint(stub.base_url), model="j", embedder=HashingEmbedder())
        judged = await judge_answers([(LABELS.questions[0], ANSWER)], metrics)
        assert all(seen.path.endswith("/chat/completions") for seen in stub.requests)
    assert judged.failures == ()
    assert set(judged.rows["q1"]) == set(metrics)
    assert all(value == pytest.approx(1.0) for value in judged.rows["q1"].values())


async def test_a_figure_that_a_judge_fails_to_give_is_counted() -> None:
    with OpenAIStub() as stub:
        stub.answer = lambda body: (
            Reply(status=400)
            if "AnswerRelevanceOutput" in body["messages"][0]["content"]
            else reply_of(body)
        )
        metrics = judge_metrics(Endpoint(stub.base_url), model="j", embedder=HashingEmbedder())
        judged = await judge_answers([(LABELS.questions[0], ANSWER)], metrics)
        stub.answer, stub.default = None, Reply(status=400)
        with pytest.raises(GenerationFailed, match="no figure at all"):
            await judge_answers([(LABELS.questions[0], ANSWER)], metrics)
    assert "answer_relevancy" not in judged.rows["q1"] and len(judged.failures) == 1


def test_ragas_reports_to_nobody() -> None:
    assert load_ragas().analytics.do_not_track()
