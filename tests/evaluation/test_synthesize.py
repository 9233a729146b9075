"""Drafted questions are valid labels with true evidence; a model's proposals are checked."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from openai import AsyncOpenAI

from support_rag.evaluation.labels import load_labels
from support_rag.evaluation.review import (
    draft_by_model,
    load_drafts,
    review_frame,
    review_page,
    save_drafts,
    save_verdicts,
)
from support_rag.evaluation.synthesize import TEMPLATES, draft_by_template, load_corpus
from support_rag.generate import OpenAIGenerator
from support_rag.release import resource
from support_rag.types import Document, GenerationFailed, InputInvalid
from tests.openai_stub import OpenAIStub, Reply

HELP_CENTRE = resource("data/help_centre")


@pytest.fixture(scope="module")
def documents() -> tuple[Document, ...]:
    return load_corpus(HELP_CENTRE)


def generator(stub: OpenAIStub) -> OpenAIGenerator:
    client = AsyncOpenAI(base_url=stub.base_url, api_key="test", max_retries=0)
    return OpenAIGenerator(client, model="writer", max_tokens=800)


def test_every_kind_is_drafted_and_loads_as_labels(
    documents: tuple[Document, ...], tmp_path: Path
) -> None:
    drafts = draft_by_template(documents, n_each=10)
    assert {draft.question.type for draft in drafts} == set(TEMPLATES)
    labels = save_drafts(drafts, tmp_path, corpus=HELP_CENTRE)
    assert len(labels.questions) == len(drafts) and load_drafts(tmp_path) == drafts
    texts = {document.id: document.text for document in labels.corpus}
    for draft in drafts:
        assert draft.question.id.startswith("synthetic-")
        if draft.span is not None:
            assert draft.question.answer.strip("*` ") in texts[draft.document_id]
            assert labels.spans[draft.question.id] == {draft.document_id: (draft.span,)}


def test_questions_of_people_stay_untouched(
    documents: tuple[Document, ...], tmp_path: Path
) -> None:
    save_drafts(draft_by_template(documents, n_each=2), tmp_path, corpus=HELP_CENTRE)
    queries = tmp_path / "queries.jsonl"
    asked = '{"id": "mine", "text": "Is it raining?", "answerable": false, "note": "kept"}\n'
    queries.write_text(asked + queries.read_text(encoding="utf-8"), encoding="utf-8")
    frame = review_frame(tmp_path)
    save_verdicts(tmp_path, frame.assign(verdict="reject"))
    assert queries.read_text(encoding="utf-8") == asked
    assert [question.id for question in load_labels(tmp_path).questions] == ["mine"]
    save_verdicts(tmp_path, review_frame(tmp_path).assign(verdict="approve"))
    assert len(load_labels(tmp_path).questions) == 1 + len(frame)


def test_a_wrong_verdict_changes_nothing(documents: tuple[Document, ...], tmp_path: Path) -> None:
    save_drafts(draft_by_template(documents, n_each=1), tmp_path, corpus=HELP_CENTRE)
    before = (tmp_path / "queries.jsonl").read_bytes()
    frame = review_frame(tmp_path)
    with pytest.raises(InputInvalid, match="a verdict is 'maybe'"):
        save_verdicts(tmp_path, frame.assign(verdict=["maybe", *frame["verdict"][1:]]))
    assert (tmp_path / "queries.jsonl").read_bytes() == before


async def test_a_model_proposes_and_its_quotations_are_checked(
    documents: tuple[Document, ...], tmp_path: Path
) -> None:
    def answer(body: Any) -> Reply:
        passage = body["messages"][-1]["content"].removeprefix("<sources>\n")
        quote = passage.partition("\n\n")[2].removesuffix("\n</sources>")[:40]
        items = [
            {"question": f"What about {quote[:12]}?", "answer": "That.", "quote": quote},
            {"question": "Invented?", "answer": "Yes.", "quote": "this stands nowhere at all"},
            {"question": f"Who paid for {quote[:12]}?", "kind": "near_miss"},
        ]
        return Reply(tokens=["```json\n", json.dumps(items), "\n```"])

    with OpenAIStub() as stub:
        stub.answer = answer
        proposals = await draft_by_model(documents, generator(stub), n_sections=4, n_each=2)
    assert len(proposals.refused) == 4
    assert set(proposals.refused) == {"the quotation does not stand in the passage"}
    labels = save_drafts(proposals.drafts, tmp_path, corpus=HELP_CENTRE)
    assert 0 < len(labels.questions) <= 8
    assert {draft.made_by for draft in proposals.drafts} == {"writer"}


async def test_a_model_that_fails_always_raises(documents: tuple[Document, ...]) -> None:
    with OpenAIStub() as stub:
        stub.default = Reply(status=400)
        with pytest.raises(GenerationFailed):
            await draft_by_model(documents, generator(stub), n_sections=2)


def test_the_page_escapes_what_documents_say(tmp_path: Path) -> None:
    hostile = "# Kiosk\n\nA kiosk <script>alert(1)</script> keeps 72 hours of punches in all.\n"
    (tmp_path / "corpus").mkdir()
    (tmp_path / "corpus" / "kiosk.md").write_text(hostile)
    save_drafts(draft_by_template(load_corpus(tmp_path), kinds=["title"]), tmp_path)
    page = review_page(tmp_path)._repr_html_()
    assert "<mark>" in page and "<script" not in page and "&lt;script&gt;" in page
