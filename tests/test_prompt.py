"""A prompt keeps its budgets and its delimiters; a citation names a hit of this very prompt."""

from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from support_rag.language.segmentation import count_tokens
from support_rag.prompt import (
    build_condense_prompt,
    build_prompt,
    build_summary_prompt,
    cited_numbers,
    defuse,
    fit,
    keep_known,
    pack_history,
    pack_hits,
    parse_citations,
    strip_citations,
    summarise,
    wording,
)
from support_rag.release import PromptParameters
from support_rag.types import Chunk, Hit, SettingsInvalid, Span, Turn
from tests.timing import grows_linearly

PIECES = st.sampled_from(
    ["</source>", "< / SOURCES >", "<source id=\"9\">", "<\n question", "<question>", "<b>", "<",
     "|im_start|>", "<|", "Kiosk ", "72 hours. ", "打卡机", "🙂", "\n", " ", "[1]", "[2, 9]", "`",
     "```", "conversation>", "summary", "</", "‹"]
)  # fmt: skip
TEXT = st.lists(PIECES, max_size=20).map("".join)
TURNS = st.lists(st.builds(Turn, st.sampled_from(["user", "assistant"]), TEXT), max_size=6)


def hit_of(text: str, rank: int = 1, path: tuple[str, ...] = ("Kiosk",)) -> Hit:
    chunk = Chunk(f"chunk-{rank}", f"document-{rank}", Span(0, len(text)), text, path, title="T")
    return Hit(chunk, 1 / rank, rank)


HITS = st.lists(TEXT, max_size=5).map(
    lambda texts: [hit_of(text, n, (text[:20] or "T",)) for n, text in enumerate(texts, 1)]
)
OWN = re.compile(r"<\s*/?\s*(sources?|summary|conversation|question)(?![a-z0-9_-])|<\|", re.I)


# ---------------------------------------------------------------- delimiters


@settings(deadline=None)
@given(TEXT)
def test_no_text_opens_or_closes_a_tag_of_the_prompt(text: str) -> None:
    found = defuse(text)
    assert not OWN.search(found)
    assert found.replace("‹", "<") == text.replace("‹", "<"), "nothing else is changed"
    assert defuse(found) == found


@settings(deadline=None)
@given(HITS, TURNS, TEXT, TEXT)
def test_every_prompt_has_exactly_its_own_tags(
    hits: list[Hit], history: list[Turn], summary: str, question: str
) -> None:
    prompt = build_prompt(
        question, hits=hits, history=history, summary=summary, parameters=PromptParameters()
    )
    user = prompt.messages[1].content
    tags = [
        tag.group(0)
        for tag in re.finditer(r"</?(sources?|summary|conversation|question)(?![\w-])", user)
    ]
    inside = ["<source", "</source"] * len(prompt.hits)
    expected = ["<sources", *inside, "</sources"]
    expected += ["<summary", "</summary"] if "<summary>" in user else []
    expected += ["<conversation", "</conversation"] if "<conversation>" in user else []
    assert tags == [*expected, "<question", "</question"]
    ids = re.findall(r'^<source id="(\d+)" title="[^"<>\n]*">$', user, re.MULTILINE)
    assert ids == [str(n) for n in range(1, len(prompt.hits) + 1)]


def test_hostile_white_space_is_defused_in_linear_time() -> None:
    def work(n: int) -> None:
        defuse("<" + " " * n)
        defuse("< " * (n // 2))
        keep_known("[1" + " " * n, [])

    grows_linearly(work, 100_000)


# ---------------------------------------------------------------- budgets


@settings(deadline=None)
@given(TEXT, st.integers(0, 30))
def test_fit_returns_a_head_within_the_budget(text: str, budget: int) -> None:
    found = fit(text, budget=budget)
    assert text.startswith(found)
    assert count_tokens(found) <= budget
    if count_tokens(text) <= budget:
        assert found == text


@settings(deadline=None)
@given(HITS, st.integers(100, 300))
def test_sources_keep_their_budget(hits: list[Hit], budget: int) -> None:
    context, packed = pack_hits(hits, budget=budget)
    assert count_tokens(context) <= budget
    assert bool(packed) == bool(hits), "the best hit is always shown, if only its head"
    order = [hits.index(hit) for hit in packed]
    assert order == sorted(order)


@settings(deadline=None)
@given(TURNS, TEXT, st.integers(0, 120))
def test_the_conversation_keeps_its_budget_and_has_no_gap(
    history: list[Turn], summary: str, budget: int
) -> None:
    packed = pack_history(history, summary=summary, budget=budget)
    assert count_tokens(packed) <= budget
    shown = packed.partition("<conversation>")[2].count("Customer: ") + packed.count("Support: ")
    assert shown <= len(history)
    if budget >= 120 and history and count_tokens(history[-1].content) < 30 and not summary:
        assert "<conversation>" in packed, "the newest turn is shown first"


@settings(deadline=None)
@given(TURNS, st.integers(0, 60))
def test_summaries_keep_their_budget_and_invent_nothing(turns: list[Turn], budget: int) -> None:
    summary = summarise(turns, "", budget)
    assert count_tokens(summary) <= budget
    for line in summary.splitlines():
        speaker, _, sentence = line.partition(": ")
        assert speaker in ("Customer", "Support")
        said = [" ".join(strip_citations(turn.content).split()) for turn in turns]
        assert any(content.startswith(sentence) for content in said)


def test_a_long_conversation_is_folded_again_and_again() -> None:
    summary = ""
    for n in range(50):
        turns = [Turn("user", f"Question {n}? More."), Turn("assistant", f"Answer {n}. [1] More.")]
        summary = summarise(turns, summary, 100)
        assert count_tokens(summary) <= 100
    assert summary.splitlines()[-2:] == ["Customer: Question 49?", "Support: Answer 49."]
    assert "Question 0?" not in summary, "the oldest lines go first"


@settings(deadline=None)
@given(HITS, TURNS, TEXT, TEXT, st.integers(100, 400), st.integers(0, 200))
def test_equal_inputs_give_equal_prompts_within_both_budgets(
    hits: list[Hit], history: list[Turn], summary: str, question: str, context: int, past: int
) -> None:
    parameters = PromptParameters(context_tokens=context, history_tokens=past)

    def build() -> object:
        return build_prompt(
            question, hits=hits, history=history, summary=summary, parameters=parameters
        )

    prompt = build()
    assert prompt == build()
    fixed = count_tokens(wording(parameters).system) + count_tokens(defuse(question)) + 60
    assert prompt.n_tokens <= fixed + context + past
    assert prompt.n_tokens == sum(count_tokens(m.content) for m in prompt.messages)


def test_prompts_for_a_model_hold_the_conversation_and_no_sources() -> None:
    history = [
        Turn("user", "How long does it wait? </conversation>"),
        Turn("assistant", "72 h [1]."),
    ]
    parameters = PromptParameters()
    asked = build_condense_prompt("And then?", history=history, summary="S", parameters=parameters)
    folded = build_summary_prompt(history, previous="S", parameters=parameters)
    for prompt in (asked, folded):
        user = prompt.messages[1].content
        assert "Support: 72 h" in user and "[1]" not in user and "<sources>" not in user
        assert user.count("</conversation>") == 1 and not prompt.hits
    assert asked.messages[1].content.endswith("<question>\nAnd then?\n</question>")


def test_an_unknown_wording_is_refused() -> None:
    with pytest.raises(SettingsInvalid, match="'v0'; choose one of: support-v1"):
        wording(PromptParameters(version="v0"))


# ---------------------------------------------------------------- citations


@settings(deadline=None)
@given(st.lists(PIECES | st.from_regex(r"\[[0-9 ,]{1,8}\]", fullmatch=True)).map("".join))
def test_citations_are_hits_of_the_prompt(reply: str) -> None:
    hits = [hit_of("a", 1), hit_of("b", 2)]
    citations = parse_citations(reply, hits)
    numbers = [citation.number for citation in citations]
    assert set(numbers) <= {1, 2} and len(set(numbers)) == len(numbers)
    for citation in citations:
        assert citation.chunk_id == hits[citation.number - 1].chunk.id
    kept = keep_known(reply, hits)
    assert set(cited_numbers(kept)) <= {1, 2}
    assert [c.number for c in parse_citations(kept, hits)] == numbers
    assert keep_known(kept, hits) == kept


@pytest.mark.parametrize(
    ("reply", "shown", "numbers"),
    [
        ("72 hours [1].", "72 hours [1].", [1]),
        ("72 hours [1][3] or so [2, 9].", "72 hours [1] or so [2].", [1, 2]),
        ("72 hours【2】.", "72 hours[2].", [2]),
        ("Nothing [0] [3] [99].", "Nothing.", []),
        ("`a[1]` and ```\nb[2]\n```", "`a[1]` and ```\nb[2]\n```", []),
        ("A [link](http://x) and [1](http://y)", "A [link](http://x) and [1](http://y)", []),
        ("[2025] was warm [1]", "[2025] was warm [1]", [1]),
    ],
)
def test_what_counts_as_a_citation(reply: str, shown: str, numbers: list[int]) -> None:
    hits = [hit_of("a", 1), hit_of("b", 2)]
    assert keep_known(reply, hits) == shown
    assert [citation.number for citation in parse_citations(reply, hits)] == numbers
