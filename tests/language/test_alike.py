"""Words of a like meaning are found without a pass through the model."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from support_rag.language.alike import likeness
from support_rag.language.models import MiniLMModel

NAMES = ["pay", "fee", "bill", "lamp", "boat", "zebra", "the", "of", "7", "é"]
WORDS = st.lists(st.sampled_from(NAMES), max_size=6)
TEXTS = st.lists(WORDS.map(" ".join), max_size=4)


def test_a_word_of_like_meaning_counts_more_than_a_stranger() -> None:
    texts = ["The price is printed on the door.", "The lamp is on the door."]
    found = likeness("what does it cost", texts, ["", ""])
    assert found.own[0] > found.own[1] and found.closest[0] > found.closest[1]


def test_headings_add_and_never_take_away() -> None:
    found = likeness("boat insurance", ["It ends in May."] * 2, ["Boat insurance", "Lamps"])
    assert found.placed[0] > 0.9 > found.placed[1] and found.own[0] == found.own[1]


@settings(deadline=None, max_examples=40)
@given(WORDS.map(" ".join), TEXTS)
def test_shares_stay_in_range_whatever_comes(question: str, texts: list[str]) -> None:
    found = likeness(question, texts, texts)
    for share in (found.own, found.placed, found.clear, found.closest):
        assert share.shape == (len(texts),) and np.all(share <= 1 + 1e-5)
    assert np.all(found.placed >= found.own - 1e-6)


def test_the_table_is_the_first_layer_of_the_model() -> None:
    model, text = MiniLMModel(), "price"
    [window] = model.windows(text, "passage")
    assert len(window) == 3, "start, the word, end"
    same = likeness(text, ["price"], [""]).own[0]
    assert np.isclose(same, 1.0, atol=1e-5)
