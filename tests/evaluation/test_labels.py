"""A good folder loads; each kind of fault is found, with its file, line, value and remedy."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from support_rag.evaluation.labels import (
    SHOWN_FAULTS,
    SPLIT_ENDS,
    Labels,
    LabelsInvalid,
    corpus_digest,
    count_labels,
    labels_from_frame,
    load_labels,
    questions_digest,
    sample,
    split_of,
    take_split,
)
from support_rag.release import resource
from support_rag.types import InputInvalid, Span, SupportRagError, Turn

KIOSK = "# Kiosk\r\n\r\nKiosks keep 72 hours of punches. \u2028Then they stop.\n"
QUOTE = "72 hours of punches"
AT = KIOSK.index(QUOTE)
Rows = list[dict[str, object]]


class Folder:
    "A label folder whose parts a test may spoil before they are written."

    def __init__(self, path: Path) -> None:
        self.path = path
        self.corpus: Rows = [
            {"id": "kiosk", "title": "Kiosk", "text": KIOSK},
            {"id": "https://help.example/plans#team", "title": "", "text": "Team costs 4.50 EUR."},
        ]
        self.queries: Rows = [
            {"id": "q1", "text": "How long can a kiosk be offline?"},
            {"id": "q2", "text": "Who won?", "answerable": False, "type": "off_topic"},
            {"id": "q3", "text": "And Team?", "history_user_turns": ["Is there a plan?"]},
        ]
        self.qrels: list[tuple[object, ...]] = [
            ("q1", "kiosk", 1),
            ("q2", "kiosk", 0),
            ("q3", "https://help.example/plans#team", 2),
        ]
        self.spans: Rows | None = [
            {"query_id": "q1", "doc_id": "kiosk", "start": AT, "end": AT + 19, "text": QUOTE}
        ]

    def load(self) -> Labels:
        self.write()
        return load_labels(self.path)

    def write(self) -> None:
        self._jsonl("corpus.jsonl", self.corpus)
        self._jsonl("queries.jsonl", self.queries)
        lines = [("query-id", "corpus-id", "score"), *self.qrels]
        text = "".join("\t".join(map(str, line)) + "\n" for line in lines)
        (self.path / "qrels.tsv").write_text(text, encoding="utf-8")
        if self.spans is not None:
            self._jsonl("spans.jsonl", self.spans)

    def _jsonl(self, name: str, rows: Rows) -> None:
        # as published sets are written: characters such as U+2028 unescaped inside strings
        lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        (self.path / name).write_text("".join(lines), encoding="utf-8")


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(tmp_path)


# ---------------------------------------------------------------- what loads


def test_a_good_folder(folder: Folder) -> None:
    labels = folder.load()
    assert count_labels(labels) == {
        "documents": 2,
        "questions": 3,
        "unanswerable": 1,
        "spans": 1,
    }
    assert labels.corpus[0].text == KIOSK, "carriage returns stay, so offsets stay"
    assert labels.spans == {"q1": {"kiosk": (Span(AT, AT + 19),)}}
    assert labels.spans["q1"]["kiosk"][0].of(labels.corpus[0].text) == QUOTE
    assert labels.qrels["q3"] == {"https://help.example/plans#team": 2}
    first, second, third = labels.questions
    assert (first.answerable, second.answerable) == (True, False)
    assert third.history == (Turn("user", "Is there a plan?"),)


def test_spans_are_optional(folder: Folder) -> None:
    folder.spans = None
    assert folder.load().spans == {}


def test_history_with_roles(folder: Folder) -> None:
    turns = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
    folder.queries[2] = {"id": "q3", "text": "Team?", "history": turns, "rewrite": "Price of Team?"}
    question = folder.load().questions[2]
    assert question.history == (Turn("user", "Hi"), Turn("assistant", "Hello"))
    assert question.rewrite == "Price of Team?"


def test_what_is_said_twice_is_read_once(folder: Folder) -> None:
    assert folder.spans is not None
    folder.spans += folder.spans
    folder.qrels += folder.qrels
    labels = folder.load()
    assert labels.spans["q1"]["kiosk"] == (Span(AT, AT + 19),)
    assert labels.qrels["q1"] == {"kiosk": 1}


def test_a_question_is_english_unless_it_says_otherwise(folder: Folder) -> None:
    folder.queries[0]["language"] = "ja"
    assert [question.language for question in folder.load().questions[:2]] == ["ja", "en"]
    folder.queries[0]["language"] = 7
    with pytest.raises(LabelsInvalid, match="language"):
        folder.load()


def test_a_corpus_of_files_is_parsed_as_uploads_are(folder: Folder) -> None:
    folder.load()
    (folder.path / "corpus.jsonl").unlink()
    corpus = folder.path / "corpus"
    (corpus / "a").mkdir(parents=True)
    (corpus / ".DS_Store").write_bytes(b"\x00")
    (corpus / "a" / "kiosk.md").write_bytes(KIOSK.encode())
    (corpus / "plans.html").write_text("<html><body><p>Team &amp; more</p></body></html>")
    (folder.path / "qrels.tsv").write_text("q1\ta/kiosk.md\t1\nq3\tplans.html\t1\n")  # no header
    span = {"query_id": "q1", "doc_id": "a/kiosk.md", "start": AT, "end": AT + 19, "text": QUOTE}
    (folder.path / "spans.jsonl").write_text(json.dumps(span))
    labels = load_labels(folder.path)
    assert [document.id for document in labels.corpus] == ["a/kiosk.md", "plans.html"]
    assert "Team & more" in labels.corpus[1].text
    assert "<p>" not in labels.corpus[1].text


def test_a_folder_as_beir_publishes_it(folder: Folder) -> None:
    for row in (*folder.corpus, *folder.queries):
        row["_id"] = row.pop("id")
        row["metadata"] = {}
    folder.queries.append({"_id": "q8", "text": "Of another split"})
    folder.write()
    (folder.path / "qrels").mkdir()
    (folder.path / "qrels.tsv").rename(folder.path / "qrels" / "test.tsv")
    labels = load_labels(folder.path)
    assert [question.id for question in labels.questions] == ["q1", "q2", "q3"]
    assert labels.qrels["q3"] == {"https://help.example/plans#team": 2}
    with (folder.path / "qrels" / "test.tsv").open("a") as file:
        file.write("q1\tgone\t1\n")
    with pytest.raises(LabelsInvalid, match=r"qrels/test\.tsv:5: there is no document 'gone'"):
        load_labels(folder.path)


def test_a_span_without_offsets_stands_where_its_text_stands(folder: Folder) -> None:
    folder.spans = [{"query_id": "q1", "doc_id": "kiosk", "text": QUOTE}]
    assert folder.load().spans == {"q1": {"kiosk": (Span(AT, AT + 19),)}}
    folder.spans = [{"query_id": "q1", "doc_id": "kiosk", "text": "K"}]
    with pytest.raises(LabelsInvalid, match=r"spans\.jsonl:1: 'K' stands 2 times in 'kiosk'"):
        folder.load()


def test_a_corpus_twice_is_a_fault(folder: Folder) -> None:
    folder.load()
    (folder.path / "corpus").mkdir()
    with pytest.raises(LabelsInvalid, match="there is a corpus folder too: keep one"):
        load_labels(folder.path)


# ---------------------------------------------------------------- tables


ARTICLES = pd.DataFrame(
    {"id": ["kiosk", "7"], "text": [KIOSK, "Team costs 4.50 EUR. Solo is free."]}
)
SHEET = pd.DataFrame(
    [
        ("How long can a kiosk be offline?", "kiosk", QUOTE, None),
        ("What do the plans cost?", 7, "Team costs 4.50 EUR.", 2),
        ("What do the plans cost?", 7, "Solo is free.", 2),
        ("Who won?", None, None, None),
    ],
    columns=["text", "document_id", "evidence", "grade"],
)


def test_a_frame_and_its_csv_give_the_same_labels(tmp_path: Path) -> None:
    framed = labels_from_frame(SHEET, corpus=ARTICLES)
    SHEET.to_csv(tmp_path / "sheet.csv", index=False)
    ARTICLES.to_csv(tmp_path / "articles.csv", index=False)
    assert labels_from_frame(tmp_path / "sheet.csv", corpus=tmp_path / "articles.csv") == framed
    assert count_labels(framed) == {
        "documents": 2,
        "questions": 3,
        "unanswerable": 1,
        "spans": 3,
    }
    kiosk, plans, _ = (question.id for question in framed.questions)
    assert framed.spans[kiosk] == {"kiosk": (Span(AT, AT + 19),)}
    assert framed.qrels == {kiosk: {"kiosk": 1}, plans: {"7": 2}}


def test_an_id_of_a_frame_does_not_depend_on_the_order() -> None:
    straight = labels_from_frame(SHEET, corpus=ARTICLES)
    turned = labels_from_frame(SHEET.iloc[::-1], corpus=ARTICLES)
    assert {q.id for q in straight.questions} == {q.id for q in turned.questions}
    assert straight.spans == turned.spans


def test_a_frame_names_the_line_of_its_fault(tmp_path: Path) -> None:
    wrong = SHEET.copy()
    wrong.loc[2, "document_id"] = "8"
    wrong.to_csv(tmp_path / "sheet.csv", index=False)
    with pytest.raises(LabelsInvalid, match=r"sheet\.csv:4: there is no document '8'"):
        labels_from_frame(tmp_path / "sheet.csv", corpus=ARTICLES)


# ---------------------------------------------------------------- what does not


def spoil(name: str, index: int, **changes: object) -> Callable[[Folder], None]:
    def change(folder: Folder) -> None:
        row = getattr(folder, name)[index]
        row.update(changes)
        for key in [key for key, value in row.items() if value is ...]:
            del row[key]

    return change


def add(name: str, row: object) -> Callable[[Folder], None]:
    return lambda folder: getattr(folder, name).append(row)


SPAN = {"query_id": "q1", "doc_id": "kiosk", "start": AT, "end": AT + 19, "text": QUOTE}
FAULTS: dict[str, tuple[Callable[[Folder], None], str, int, str, str]] = {
    # what: (how, file, line, what the problem shows, what the remedy says)
    "question id twice": (
        add("queries", {"id": "q1", "text": "Again?"}),
        "queries.jsonl", 4, "'q1' is also in line 1", "its own",
    ),
    "document id twice": (
        add("corpus", {"id": "kiosk", "text": "Other"}),
        "corpus.jsonl", 3, "'kiosk' is also in line 1", "its own",
    ),
    "missing field": (spoil("queries", 0, text=...), "queries.jsonl", 1, "text is missing", "str"),
    "wrong type of id": (spoil("queries", 0, id=17), "queries.jsonl", 1, "id is 17", "str"),
    "empty question": (spoil("queries", 0, text="  "), "queries.jsonl", 1, "'q1' is empty", "wri"),
    "answerable is no boolean": (
        spoil("queries", 1, answerable="no"), "queries.jsonl", 2, "answerable is 'no'", "bool",
    ),
    "history is no turns": (
        spoil("queries", 0, history=[{"role": "robot", "content": "x"}]),
        "queries.jsonl", 1, "robot", '"role": "user"',
    ),
    "grade of an unknown question": (
        add("qrels", ("q9", "kiosk", 1)), "qrels.tsv", 5, "'q9'", "add the question",
    ),
    "grade of an unknown document": (
        add("qrels", ("q1", "kisok", 1)), "qrels.tsv", 5, "'kisok'", "add the document",
    ),
    "two grades": (add("qrels", ("q1", "kiosk", 2)), "qrels.tsv", 5, "1 and 2", "keep one"),
    "grade is no number": (add("qrels", ("q1", "kiosk", "yes")), "qrels.tsv", 5, "yes", "tabs"),
    "grade is negative": (add("qrels", ("q1", "kiosk", -1)), "qrels.tsv", 5, "-1", "tabs"),
    "answerable without a document": (
        add("queries", {"id": "q4", "text": "And?"}),
        "queries.jsonl", 4, "'q4' is answerable", '"answerable": false',
    ),
    "unanswerable with a document": (
        add("qrels", ("q2", "https://help.example/plans#team", 1)),
        "queries.jsonl", 2, "'q2' is unanswerable", "remove it from qrels.tsv",
    ),
    "span of an unknown question": (
        add("spans", {**SPAN, "query_id": "q9"}), "spans.jsonl", 2, "'q9'", "add the question",
    ),
    "span of an unknown document": (
        add("spans", {**SPAN, "doc_id": "x"}), "spans.jsonl", 2, "'x'", "add the document",
    ),
    "span beyond the end": (
        add("spans", {**SPAN, "end": 9999}), "spans.jsonl", 2, f"{AT}..9999", "end exclusive",
    ),
    "span of nothing": (
        add("spans", {**SPAN, "end": AT, "text": ""}), "spans.jsonl", 2, f"{AT}..{AT}", "exclusive",
    ),
    "span backwards": (
        add("spans", {**SPAN, "start": -3}), "spans.jsonl", 2, "-3..", "end exclusive",
    ),
    "span moved": (
        add("spans", {**SPAN, "start": AT - 2, "end": AT + 17}),
        "spans.jsonl", 2, QUOTE, f"stands at {AT}..{AT + 19}",
    ),
    "span gone": (
        add("spans", {**SPAN, "text": "48 hours of punches"}),
        "spans.jsonl", 2, "48 hours", "label the document again",
    ),
    "span outside the relevant documents": (
        lambda folder: folder.qrels.__setitem__(0, ("q1", "https://help.example/plans#team", 1)),
        "spans.jsonl", 1, "'kiosk', which is not relevant", "qrels.tsv",
    ),
    "span of an unanswerable question": (
        add("spans", {**SPAN, "query_id": "q2"}), "spans.jsonl", 2, "'q2'", "remove the span",
    ),
    "span start is no number": (
        add("spans", {**SPAN, "start": "3"}), "spans.jsonl", 2, "start is '3'", "int",
    ),
    "not an object": (add("queries", ["q4"]), "queries.jsonl", 4, "not an object", '{"id"'),
    "unreadable document": (
        add("corpus", {"id": "nul", "text": "a\x00b"}), "corpus.jsonl", 3, "'nul'", "correct",
    ),
    "document of unknown type": (
        add("corpus", {"id": "x", "text": "a", "content_type": "image/png"}),
        "corpus.jsonl", 3, "image/png", "remove the document",
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", FAULTS)
def test_each_fault_is_named(folder: Folder, what: str) -> None:
    change, file, line, value, remedy = FAULTS[what]
    change(folder)
    with pytest.raises(LabelsInvalid) as caught:
        folder.load()
    matching = [
        fault
        for fault in caught.value.faults
        if (fault.file, fault.line) == (file, line)
        and value in fault.problem
        and remedy in fault.remedy
    ]
    assert len(matching) == 1, str(caught.value)
    assert str(matching[0]) in str(caught.value)
    assert f"{file}:{line}: " in str(caught.value)


def test_a_line_that_is_not_json_and_a_file_that_is_missing(folder: Folder) -> None:
    folder.load()
    with (folder.path / "queries.jsonl").open("a") as file:
        file.write('{"id": "q4"\n')
    (folder.path / "qrels.tsv").unlink()
    with pytest.raises(LabelsInvalid) as caught:
        load_labels(folder.path)
    message = str(caught.value)
    assert "queries.jsonl:4: not JSON" in message
    assert "qrels.tsv: the file is missing: add it" in message


def test_a_file_that_is_not_utf8(folder: Folder) -> None:
    folder.load()
    (folder.path / "qrels.tsv").write_bytes(b"q1\tkiosk\xff\t1\n")
    with pytest.raises(LabelsInvalid, match=r"qrels\.tsv: cannot be read"):
        load_labels(folder.path)


def test_a_folder_that_does_not_exist(tmp_path: Path) -> None:
    with pytest.raises(LabelsInvalid, match=r"corpus\.jsonl: the file is missing"):
        load_labels(tmp_path / "nowhere")


def test_faults_beyond_the_twentieth_are_counted(folder: Folder) -> None:
    folder.qrels += [("q1", f"gone{n}", 1) for n in range(30)]
    with pytest.raises(LabelsInvalid) as caught:
        folder.load()
    assert len(caught.value.faults) == 30
    assert str(caught.value).count("\n- ") == SHOWN_FAULTS + 1
    assert str(caught.value).endswith("and 10 more")


def test_the_error_has_a_code_of_its_own() -> None:
    assert issubclass(LabelsInvalid, InputInvalid)
    assert LabelsInvalid.code == "labels_invalid" != InputInvalid.code != SupportRagError.code


# ---------------------------------------------------------------- splits and samples


def test_splits_are_fixed_and_have_their_sizes() -> None:
    # pinned: a changed hash would move questions from the evidence into tuning
    pinned = {"A001": "evidence", "A004": "calibrate", "B001": "tune", "q0007": "calibrate"}
    assert {name: split_of(name) for name in pinned} == pinned
    counts = Counter(split_of(f"q{n}") for n in range(4000))
    assert set(counts) == set(SPLIT_ENDS)
    assert counts["tune"] == pytest.approx(2000, abs=130)
    assert counts["calibrate"] == pytest.approx(1000, abs=110)


# ---------------------------------------------------------------- the shipped help centre


@pytest.fixture(scope="module")
def help_centre() -> Labels:
    return load_labels(resource("data/help_centre"))


LANGUAGES = ("de", "fr", "es", "pt", "ja")
UNANSWERABLE = {
    "near_miss", "false_premise", "underspecified", "off_topic", "absent_topic", "other_product",
    "personal_data", "small_talk", "hand_off",
}  # fmt: skip


def test_the_help_centre_has_what_it_promises(help_centre: Labels) -> None:
    counts = count_labels(help_centre)
    assert counts["documents"] >= 250
    assert counts["questions"] >= 1500
    assert 0.18 <= counts["unanswerable"] / counts["questions"] <= 0.25
    kinds = Counter(q.type for q in help_centre.questions if not q.answerable)
    assert set(kinds) == UNANSWERABLE and min(kinds.values()) >= 15
    assert not UNANSWERABLE & {q.type for q in help_centre.questions if q.answerable}
    spoken = Counter(q.language for q in help_centre.questions)
    assert all(spoken[language] >= 30 for language in LANGUAGES) and spoken["en"] >= 1200
    assert (
        len({(q.text.casefold(), q.history) for q in help_centre.questions}) == counts["questions"]
    )


def test_every_answerable_question_has_evidence_and_every_document_a_use(
    help_centre: Labels,
) -> None:
    texts = {document.id: document.text for document in help_centre.corpus}
    for question in help_centre.questions:
        found = help_centre.spans.get(question.id, {})
        assert bool(found) == question.answerable
        assert set(found) == set(help_centre.qrels.get(question.id, {}))
        for name, spans in found.items():
            for span in spans:
                assert texts[name].count(span.of(texts[name])) == 1, (question.id, name, span)
        if question.answerable:
            assert question.answer
        if question.type in ("multi_span", "double"):
            assert sum(map(len, found.values())) >= 2
        if question.type == "follow_up":
            assert question.history
            assert question.rewrite
    used = {name for found in help_centre.spans.values() for name in found}
    assert len(used) >= 0.85 * len(texts)


def test_splits_divide_the_help_centre(help_centre: Labels) -> None:
    parts = [take_split(help_centre, split) for split in SPLIT_ENDS]
    names = [question.id for part in parts for question in part.questions]
    assert sorted(names) == sorted(question.id for question in help_centre.questions)
    for part in parts:
        assert part.corpus == help_centre.corpus
        assert set(part.spans) <= {question.id for question in part.questions}
        unanswerable = sum(not question.answerable for question in part.questions)
        assert 15 <= unanswerable <= len(part.questions) - 50


def test_a_sample_is_deterministic_and_nested(help_centre: Labels) -> None:
    small, large = sample(help_centre, 20), sample(help_centre, 60)
    assert small == sample(help_centre, 20)
    assert len(small.questions) == 20
    assert set(small.questions) < set(large.questions)
    assert set(small.qrels) == {q.id for q in small.questions if q.answerable}
    with pytest.raises(InputInvalid, match="n is 0"):
        sample(help_centre, 0)
    with pytest.raises(InputInvalid, match="distractors -1"):
        sample(help_centre, 1, distractors=-1)


def test_a_small_corpus_keeps_what_is_relevant(help_centre: Labels) -> None:
    small = sample(help_centre, 20, distractors=10)
    kept = {document.id for document in small.corpus}
    relevant = {name for graded in small.qrels.values() for name in graded}
    assert relevant < kept
    assert len(kept - relevant) == 10
    assert [d for d in help_centre.corpus if d.id in kept] == list(small.corpus)


def test_digests_change_with_what_they_name_and_nothing_else(folder: Folder) -> None:
    labels = folder.load()
    names = corpus_digest(labels.corpus), questions_digest(labels)
    again = load_labels(folder.path)
    assert (corpus_digest(again.corpus), questions_digest(again)) == names
    moved = replace(labels, spans={"q1": {"kiosk": (Span(AT, AT + 8),)}})
    asked = replace(labels, questions=labels.questions[:2])
    graded = replace(labels, qrels={**labels.qrels, "q1": {"kiosk": 2}})
    assert len({names[1], *(questions_digest(x) for x in (moved, asked, graded))}) == 4
    document = replace(labels.corpus[0], title="Other")
    assert corpus_digest((document, *labels.corpus[1:])) != names[0]
