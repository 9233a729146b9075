"""Markdown is parsed: its signs are gone, its words stay, and each block knows its place."""

from __future__ import annotations

import contextlib
import re
from functools import partial

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from support_rag.formats.markdown import read_markdown
from support_rag.parse import parse
from support_rag.types import Document, Span, SupportRagError, TooLarge, to_source
from tests.formats.checks import check_blocks, check_places, shape
from tests.timing import grows_linearly

MD = "text/markdown"


def read(content: bytes | str, **names: str) -> Document:
    content = content.encode() if isinstance(content, str) else content
    return parse(content, content_type=MD, document_id="d", **names)


def line(markdown: str) -> str:
    return read_markdown(markdown.encode()).text


@settings(deadline=None)
@given(
    st.text(
        st.sampled_from("ab #-*>|`~=1.\\\t \n\r[]()<!é打\u2028\x85\ufeff\x0b^{}&;:"), max_size=120
    )
)
def test_any_text_is_read(text: str) -> None:
    if not text.strip() or text.startswith("\ufeff"):
        return
    with contextlib.suppress(SupportRagError):
        document = read(text)
        check_blocks(document)
        for block in document.blocks:
            place = to_source(document.source_map, block.span)
            assert place is not None and place.end <= len(text)


@settings(deadline=None)
@given(st.lists(st.text(st.sampled_from("abc dé."), min_size=1, max_size=40), max_size=8))
def test_plain_words_keep_every_character(lines: list[str]) -> None:
    text = "\n".join(" ".join(line.split()) for line in lines)
    if text.strip():
        assert read(text).text == re.sub(r"\n{2,}", "\n\n", text.strip())


STRUCTURE = """---
title: "Kiosk manual"
---

Setext
title
===

Intro *text*
over two lines.

- one
- two
  continued

  second paragraph

  1. nested
     - deeper

     ```sh
     sync --now

     exit
     ```
  2. last

| a | b |
|:--|--:|
| 1 | `x|y` |
| 3 |

> quoted [link](http://a.example)
> - item in a quote

    indented code

<div>
html
</div>

~~~
unclosed
"""


def test_structure() -> None:
    document = read(STRUCTURE)
    check_blocks(document)
    assert document.title == "Setext title", "a heading of level 1 comes before front matter"
    assert shape(document) == [
        ("heading", "# Setext title"),
        ("paragraph", "Intro text\nover two lines."),
        ("list_item", "- one"),
        ("list_item", "- two\n  continued"),
        ("list_item", "second paragraph"),
        ("list_item", "1. nested"),
        ("list_item", "- deeper"),
        ("code", "```sh\nsync --now\n\nexit\n```"),
        ("list_item", "2. last"),
        ("table_row", "| a | b |\n| --- | --- |"),
        ("table_row", "| 1 | `x | y` |"),
        ("table_row", "| 3 |"),
        ("paragraph", "> quoted link (http://a.example)"),
        ("list_item", "> - item in a quote"),
        ("code", "```\nindented code\n```"),
        ("paragraph", "html"),
        ("code", "```\nunclosed\n```"),
    ]
    check_places(document, STRUCTURE)


def test_structure_survives_carriage_returns() -> None:
    unix = read(STRUCTURE)
    for newline in ("\r\n", "\r"):
        file = STRUCTURE.replace("\n", newline)
        other = read(file)
        assert other.text == unix.text
        check_places(other, file)


@pytest.mark.parametrize(
    ("text", "is_table"),
    [
        ("| a | b |\n| - | - |", True),
        ("a | b\n-|-\n1 | 2", True),
        ("| a |\n|---|", True),
        ("before\n| a | b |\n|---|---|\n| 1 | 2 |", True),
        ("a | b\n--- | --- | ---", False),
        ("a \\| b\n--- | ---", False),
        ("a | b\n\n--- | ---", False),
        ("| a | b |\n| x | - |", False),
    ],
)
def test_what_is_a_table(text: str, is_table: bool) -> None:
    assert ("table_row" in dict(shape(read(text)))) == is_table
    github = MarkdownIt("commonmark").enable("table").parse(text)
    assert any(token.type == "table_open" for token in github) == is_table


def test_slabs_give_what_one_pass_gives() -> None:
    closed = STRUCTURE.partition("---\n\n")[2].removesuffix("~~~\nunclosed\n")
    parts = [closed, "# H\n\n```\n# no heading\n\n```\n\n", "a\n" * 30]
    text = "\n".join(parts[n % 3] for n in range(60)) + "\n- item\n\n\n\n  rest\n"
    whole = read_markdown(text.encode(), slab_lines=10**6)
    assert len(whole.blocks) > 300
    for size in (200, 97, 64):
        parts_of_it = read_markdown(text.encode(), slab_lines=size)
        assert (parts_of_it.text, parts_of_it.blocks) == (whole.text, whole.blocks)


# What no reader sees


@pytest.mark.parametrize(
    "markdown",
    [
        "<!-- secret -->\n\nSeen.", "Seen. <!-- secret -->", "Seen.<!--secret\nsecret--> And.",
        "Seen. <!-- secret\n\nsecret --> And.", "- Seen\n  <!-- secret -->\n- And",
        "| Seen <!-- secret --> | b |\n|---|---|", "# Seen <!-- secret -->",
        "[//]: # (secret)\n\nSeen.", "[comment]: <> (secret)\nSeen.", "Seen {/* secret */}.",
        "Seen. {% comment %}secret{% endcomment %}", "%% secret %%\n\nSeen.",
        "> Seen <!-- secret -->", "Seen ~~secret~~.", "Seen <del>secret</del>.",
        "<p hidden>secret</p>\n\nSeen.", "<div style='display:none'>\n\nsecret\n\n</div>\n\nSeen.",
        "<script>secret()</script>\n\nSeen.", "<style>\nsecret\n\nsecret\n</style>\n\nSeen.",
        "![Seen](data:image/png;base64,secretsecret=)", "Seen.\n\n[x]: data:a/b;base64,secret",
        "Seen.\n\n{: .secret}", "# Seen {#secret .secret}", "## Seen {: #secret }",
        "[Seen](#a){:target=\"secret\"}", "**Seen**{.secret}", "::: secret\nSeen.\n:::",
        "{% secret %}\n\nSeen.", "{{< secret >}}\n\nSeen.",
    ],
)  # fmt: skip
def test_what_no_reader_sees_is_no_text(markdown: str) -> None:
    text = line(markdown)
    assert "secret" not in text and "Seen" in text
    assert "<" not in text and "{" not in text.replace("{%", "")


@pytest.mark.parametrize(
    ("matter", "title"),
    [
        ("---\ntitle: Night bus\n---\n", "Night bus"),
        ("---\ntitle: 'Night bus'\n\ntags:\n  - secret\n\nauthor: secret\n---\n", "Night bus"),
        ("---\n\ntitle: Night bus # secret\nsecret: [a,\n  b]\n\n---\n", "Night bus"),
        ("---\ndescription: >-\n  secret\n  secret\ntitle: |\n  Night\n  bus\n...\n", "Night bus"),
        ("---\r\ntitle: \"Night bus\"\r\n\r\nsecret: 1\r\n---\r\n", "Night bus"),
        ("+++\ntitle = \"Night bus\"\nsecret = true\n\n[secret]\na = 1\n+++\n", "Night bus"),
        ("---\nsecret: x\n---\n", "file"),
    ],
)  # fmt: skip
def test_front_matter_names_the_title_and_is_no_text(matter: str, title: str) -> None:
    document = read(matter + "\nIt runs.", source="a/file.md")
    assert document.title == title
    assert document.text == "It runs."
    assert to_source(document.source_map, Span(0, 8)) == Span(len(matter) + 1, len(matter) + 9)


def test_a_rule_is_no_front_matter() -> None:
    rules = read("---\n\n# Real\n\n---\n")
    assert rules.title == "Real"
    assert shape(rules) == [("heading", "# Real")]
    assert line("---\nSome words\n---\n") == "## Some words"
    assert "never closed" in line("---\ntitle: never closed\n")


# What a reader sees


@pytest.mark.parametrize(
    ("markdown", "text"),
    [
        ("R&amp;D &ndash; 5&nbsp;km &copy;", "R&D – 5 km ©"),
        ("*a* **b** __c__ _d_ ***e*** snake_case_name", "a b c d e snake_case_name"),
        ("`a*b*c` and ``x`y``", "a*b*c and x`y"),
        (r"Press \[1\] or [2], \*not\* 3\. or \# 4", "Press [1] or [2], *not* 3. or # 4"),
        ("[here](https://x.example/a_b_c)", "here (https://x.example/a_b_c)"),
        ("[here](<a b.md> 'T')", "here (ab.md)"),
        ("[here](#part) [js](javascript:x)", "here js"),
        ("<https://x.example/a>", "https://x.example/a"),
        ("<a@x.example>", "a@x.example"),
        ("[here][Ref], [ref][], [REF]\n\n[ref]: /a 'T'", "here (/a), ref (/a), REF (/a)"),
        ("[here][r]\n\n[r]:\n  <https://x.example/ä>\n  \"T\"", "here (https://x.example/ä)"),
        ("[not][known] and [x]", "[not][known] and [x]"),
        ("![the bell](b.png) rings", "the bell rings"),
        ("[![Park](p.png)](/park)", "Park (/park)"),
        ("Tap ![the bell][b]\n\n[b]: data:image/png;base64,AAAA", "Tap the bell"),
        ("10<sup>3</sup> H<sub>2</sub>O 5^3^ H~2~O", "10^3 H2O 5^3 H2O"),
        ("Ctrl+<kbd>C</kbd><br>next", "Ctrl+C\nnext"),
        ("Ask <order-number> by <name>", "Ask <order-number> by <name>"),
        ("The <title> tag and <script> too", "The <title> tag and <script> too"),
        ("<Tab label='x'>inside</Tab>", "inside"),
        ("a <nav> b\n\nc <s> d", "a b\n\nc d"),
        ("Kept ten[^a] days.\n\n[^a]: In *May* twenty.", "Kept ten (In May twenty.) days."),
        ("Ten[^1].\n\n[^1]: One\n    two\n\n    three\n\nRest.", "Ten (One two three).\n\nRest."),
        ("No ~~yes~~.", "No."),
        ("Ten^[or so] days", "Ten (or so) days"),
        ("Ten[^x] days", "Ten[^x] days"),
        ("hard  \nbreak\\\nhere", "hard\nbreak\nhere"),
        ("Inter&shy;net net\u200bwork", "Internet network"),
        ("1. a\n1. b\n1. c", "1. a\n2. b\n3. c"),
        ("4. a\n4. b", "4. a\n5. b"),
        ("1) a\n2) b", "1. a\n2. b"),
        ("- [ ] open\n- [x] done", "- [ ] open\n- [x] done"),
        ("Title\n-----\ntext", "## Title\n\ntext"),
        ("## Shut ##", "## Shut"),
        ("> [!WARNING]\n> Never mix.", "Warning: Never mix."),
        ("> [!tip]- Try\n> This.", "Tip: Try\nThis."),
        (":::note\nHold it.\n:::", "Note: Hold it."),
        (":::danger Hot\nHold it.\n:::", "Danger: Hot\nHold it."),
        ("::: {.callout-note}\nHold it.\n:::", "Hold it."),
        ("!!! warning\n    Hold it.\n\n    Still.\n\nOut.", "Warning: Hold it.\n\nStill.\n\nOut."),
        ("??? question \"Why?\"\n    Because.", "## Why?\n\nBecause."),
        ("# A\n\n**Why?**\nBecause.", "# A\n\n## Why?\n\nBecause."),
        ("Term\n: Meaning", "## Term\n\nMeaning"),
        ("a | b\n-|-\nx \\| y | <b>z</b>", "| a | b |\n| --- | --- |\n| x | y | z |"),
        ("<table><tr><td rowspan=2>A<td>1<tr><td>2</table>", "| A | 1 |\n| A | 2 |"),
        ("```py title=x\nif a:\n\tb\n```", "```py\nif a:\n\tb\n```"),
    ],
)  # fmt: skip
def test_signs_are_read(markdown: str, text: str) -> None:
    assert line(markdown) == text


def test_details_hold_markdown() -> None:
    page = read(
        "# Pool\n\n<details>\n<summary>Warm?</summary>\n\nIn **May**.\n\n- a\n</details>\n\nEnd."
    )
    assert page.text == "# Pool\n\n## Warm?\n\nIn May.\n\n- a\n\nEnd."


def test_a_heading_that_is_a_link() -> None:
    document = read("# Use *both* [hands](hands.md) {#h}\n\nText.")
    assert document.title == "Use both hands"
    assert document.text == "# Use both hands\n\nhands (hands.md)\n\nText."
    check_places(document, "# Use *both* [hands](hands.md) {#h}\n\nText.")


def test_code_is_left_alone() -> None:
    for code in ("<!-- kept -->", "[a]: b", "&amp; *x* {.y}", "[^1]: c", ":::note", "---"):
        assert code in line(f"text\n\n~~~\n{code}\n~~~\n")
        assert code in line(f"text\n\n- item\n\n  ```\n  {code}\n  ```\n")
    assert line("`<!-- kept -->`") == "<!-- kept -->"


# Places in the file


PLACES = """---
title: Ferry
---
<!-- board: raise to 60 -->

# Ferry &amp; *fares* {#fares}

A cabin costs **forty** crowns, see [the list][l].
It sails at _nine_ <!-- or ten --> sharp.

![chart](data:image/png;base64,CabinCabinCabinCabin)

1. Book a cabin.
1. Pay at the desk.

   Cash only.

> Bring *both* passports.

| Route | Fare |
|-------|-----:|
| North | 12   |

<table><tr><td>South</td><td>15</td></tr></table>

[l]: https://ferry.example/list
"""


@pytest.mark.parametrize("newline", ["\n", "\r\n", "\r"])
def test_every_block_knows_its_place(newline: str) -> None:
    file = PLACES.replace("\n", newline)
    document = read(file)
    check_blocks(document)
    places = [to_source(document.source_map, block.span) for block in document.blocks]
    shown = [place.of(file).replace(newline, "\n") for place in places if place is not None]
    assert shown[0] == "# Ferry &amp; *fares* {#fares}"
    assert shown[1].startswith("A cabin") and shown[1].endswith("sharp.")
    assert shown[2].startswith("![chart](data:")
    assert shown[3:6] == ["1. Book a cabin.", "1. Pay at the desk.", "Cash only."]
    assert shown[6:9] == [
        "> Bring *both* passports.", "| Route | Fare |\n|-------|-----:|", "| North | 12   |",
    ]  # fmt: skip
    assert "raise" not in "".join(shown)


def test_a_sentence_inside_a_block_has_a_place_of_its_own() -> None:
    document = read(PLACES)
    at = document.text.index("It sails")
    place = to_source(document.source_map, Span(at, at + len("It sails at")))
    assert place is not None and place.of(PLACES).startswith("It sails at")
    assert "crowns" not in place.of(PLACES)


# Time and size


HOSTILE = [
    "*a* ", "**a", "_a_ ", "~~a", "[a](", "![", "[^1]", "^[", "{.a", "{/*", "{%", "::: a\n",
    "!!! a\n    ", "??? \n", '=== "a\n', "a\n: b\n", "[^1]: a\n\n    b\n", "<!-- a -->", "`<!--",
    "data:a/b;base64,AAAA", "---\na: b\n", "+++\n", "x^2^", "[a][b]", "[b]: <", "|a|b|\n", "<x ",
    "<X>", "* a\n* ", "1. a\n   1. ", "<a@b.c>", "&amp;", "<s>", "<details>", "> [!a]\n",
]  # fmt: skip


def test_hostile_markdown_takes_linear_time() -> None:
    def work(n: int, unit: str) -> None:
        with contextlib.suppress(SupportRagError):
            read(unit.encode() * (n // len(unit)))

    for unit in HOSTILE:
        grows_linearly(partial(work, unit=unit), 10_000)


def test_a_long_note_is_written_once() -> None:
    note = "n" * 5_000
    text = line(f"a[^1] b[^1] c[^1]\n\n[^1]: {note}")
    assert text.count(note) == 1


def test_limits_on_lines() -> None:
    with pytest.raises(TooLarge, match="300,001 lines"):
        read_markdown(b"\n" * 300_001)
