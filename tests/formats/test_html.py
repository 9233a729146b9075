"""A web page gives the text that a person sees on it, and says where in the file it stands."""

from __future__ import annotations

import contextlib
from functools import partial

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from support_rag.formats.elements import check_depth
from support_rag.parse import parse
from support_rag.types import Document, DocumentUnreadable, SupportRagError, to_source
from tests.formats.checks import check_blocks, check_places, shape
from tests.timing import grows_linearly

HTML = "text/html"


def read(content: bytes | str, **names: str) -> Document:
    content = content.encode() if isinstance(content, str) else content
    return parse(content, content_type=HTML, document_id="d", **names)


def line(html: str) -> str:
    "Return the text of a paragraph."
    return read(f"<main><p>{html}</p></main>").text


# What stands around the text


def test_content_is_kept_and_chrome_is_dropped() -> None:
    document = read(
        """<!doctype html><html><head><title> Kiosk &amp; co </title><style>p{}</style></head><body>
        <header>Logo</header><nav><a>Home</a></nav><aside>Ads</aside>
        <article><header><h1>Kiosk</h1></header><p>A<b>b</b>c &lt;i&gt;<br>next</p>
        <aside>Tip</aside><script>var x = "<p>no</p>"</script><!-- no -->
        <dl><dt>Term<dd>Meaning</dl><form><button>Send</button><p>Kept</p></form></article>
        <footer>Imprint</footer></body></html>"""
    )
    assert document.title == "Kiosk"
    assert document.text == (
        "# Kiosk\n\nAbc <i>\nnext\n\nTip\n\n## Term\n\nMeaning\n\nSend\n\nKept"
    )
    check_blocks(document)


def test_main_wins_and_an_empty_main_does_not() -> None:
    page = "<title>T</title><p>Around</p><main>{}</main>"
    assert read(page.format("<h2>Real</h2>Text")).text == "## Real\n\nText"
    assert read(page.format("<script>1</script>")).text == "Around"
    assert read(page.format("")).title == "T"


def test_an_aside_that_is_no_side_bar_is_text_where_the_page_has_no_part() -> None:
    assert "Stop" in read("<div><p>Go.</p><aside class=note>Stop.</aside></div>").text
    for side in ("<aside class='sidebar left'>Stop.</aside>", "<aside id=related>Stop.</aside>"):
        assert "Stop" not in read(f"<div><p>Go.</p>{side}</div>").text
    assert "Stop" not in read("<article><p>Go.</p></article><aside>Stop.</aside>").text


@pytest.mark.parametrize(
    "page",
    [
        "<header><h1>Quay</h1><p>Rules</p></header><p>Text.</p>",
        "<header><nav><a href=/>Home</a></nav><h1>Quay</h1></header><p>Text.</p>",
        "<header><h1>Quay</h1></header><main><p>Text.</p></main>",
        "<div role=banner><h1>Quay</h1></div><p>Text.</p>",
    ],
)
def test_the_title_in_a_header_is_the_page_s_title(page: str) -> None:
    document = read(page)
    assert document.title == "Quay"
    assert document.text.startswith("# Quay") and document.text.endswith("Text.")
    assert "Home" not in document.text


def test_a_site_s_name_is_no_title_beside_the_page_s_own() -> None:
    page = read("<header><h1>Tempolane</h1></header><div><h1>Reset</h1><p>Hold.</p></div>")
    assert page.text == "# Reset\n\nHold."


def test_a_cookie_banner_is_chrome_and_a_page_about_cookies_is_not() -> None:
    banner = "<div class='cookie-banner'><p>We use cookies</p><button>Accept</button></div>"
    assert read(f"{banner}<p>Text.</p>").text == "Text."
    assert read("<div class='cookies'><p>Bake cookies.</p></div>").text == "Bake cookies."


# What a person sees


@pytest.mark.parametrize(
    "hidden",
    [
        "<p hidden>{}</p>", "<p hidden=''>{}</p>", "<p style='display:none'>{}</p>",
        "<p style='color:red; Display: NONE !important'>{}</p>",
        "<div style='visibility:hidden'><p>{}</p></div>", "<span aria-hidden='true'>{}</span>",
        "<template><p>{}</p></template>", "<noscript>{}</noscript>", "<dialog>{}</dialog>",
        "<span style='font-size:0'>{}</span>", "<div style='opacity:0'>{}</div>",
        "<input type=hidden value='{}'>", "<script>{}</script>", "<!-- {} -->",
        "<del>{}</del>", "<s>{}</s>", "<strike>{}</strike>",
        "<span style='text-decoration: line-through'>{}</span>",
        "<span style='text-decoration-line:underline line-through'>{}</span>",
        "<span role=deletion>{}</span>",
    ],
)  # fmt: skip
def test_what_nobody_sees_is_no_text(hidden: str) -> None:
    text = read(f"<main><p>Seen.</p>{hidden.format('secret')}<p>Also.</p></main>").text
    assert "secret" not in text
    assert "Seen." in text and "Also." in text


@pytest.mark.parametrize(
    "shown",
    [
        "<button aria-controls=a1>More</button><div id=a1 hidden>{}</div>",
        "<details><summary>More</summary>{}</details>", "<div hidden=until-found>{}</div>",
        "<div role=tabpanel hidden>{}</div>", "<ins>{}</ins>", "<p aria-hidden=false>{}</p>",
        "<dialog open>{}</dialog>", "<p style='opacity:.9;font-size:0.9em'>{}</p>",
    ],
)  # fmt: skip
def test_what_a_click_shows_is_text(shown: str) -> None:
    assert "answer" in read(f"<main>{shown.format('answer')}</main>").text


@pytest.mark.parametrize(
    ("html", "text"),
    [
        ("10<sup>3</sup> litres", "10^3 litres"),
        ("10<sup>-6</sup>", "10^-6"),
        ("2<sup>n+1</sup>", "2^(n+1)"),
        ("40 m<sup>2</sup> and 3 cm<sup>3</sup>", "40 m² and 3 cm³"),
        ("the 1<sup>st</sup> floor, Acme<sup>TM</sup>", "the 1st floor, Acme™"),
        ("H<sub>2</sub>O, CO<sub>2</sub>", "H2O, CO2"),
        ("10<sub>2</sub> and x<sub>max</sub>", "10_2 and x_max"),
        ("10<span style='vertical-align: super'>4</span>", "10^4"),
        ("<b>5</b><sup>7</sup>", "5^7"),
    ],
)
def test_raised_and_lowered_numbers_stay_apart(html: str, text: str) -> None:
    assert line(html) == text


@pytest.mark.parametrize(
    ("html", "text"),
    [
        ("Press <button>Park</button> now", "Press Park now"),
        ("Press<button>Park</button>now", "Press Park now"),
        ("Press <button aria-label='Mute'><svg></svg></button>.", "Press Mute."),
        ("<input type=submit value='Save it'>", "Save it"),
        ("Fill in <input placeholder='Order number'>.", "Fill in Order number."),
        ("<label for=n>Name</label><input id=n aria-label=Name>", "Name"),
        ("Pick <select><option>Red<option>Blue</select>", "Pick Red / Blue"),
        ("Tap <img src=b.svg alt='the bell'> twice", "Tap the bell twice"),
        ("Tap<img alt='the bell'>twice", "Tap the bell twice"),
        ("Tap <img alt=''>twice<img src=x.png>", "Tap twice"),
        ("Tap <img alt='IMG_01.png'>twice", "Tap twice"),
        ("Tap <i role=img aria-label='the gear'></i>.", "Tap the gear."),
        ("Tap <svg><title>Gear</title><path/></svg>", "Tap Gear"),
        ("He said <q>go</q>", "He said “go”"),
        ("<abbr title='Works council'>WC</abbr> and <abbr title='Works council'>WC</abbr>",
         "WC (Works council) and WC"),
        ("<ruby>東<rp>(</rp><rt>とう</rt>京<rt>きょう</rt></ruby>", "東京(とうきょう)"),
        ("r = <math><msup><mi>h</mi><mn>2</mn></msup></math>", "r = h^2"),
        ("Inter&shy;national net&#8203;work long<wbr>word", "International network longword"),
        ("$<div style='display:inline'>5.22</div> each", "$5.22 each"),
        ("5<span>.22</span>", "5.22"),
    ],
)  # fmt: skip
def test_words_on_things_stand_in_their_sentence(html: str, text: str) -> None:
    document = read(f"<main><div>{html}</div></main>")
    assert document.text == text


@pytest.mark.parametrize(
    ("html", "text"),
    [
        ("<a href='https://x.example/a?b=1'>here</a>.", "here (https://x.example/a?b=1)."),
        ("<a href='/help/a.html#b'>here</a>", "here (/help/a.html#b)"),
        ("<a href='#b'>here</a>", "here"),
        ("<a href='javascript:go()'>here</a>", "here"),
        ("<a name=b>here</a>", "here"),
        ("<a href='https://x.example/'>x.example</a>", "x.example"),
        ("<a href='https://www.x.example'>https://www.x.example</a>", "https://www.x.example"),
        ("<a href='mailto:a@x.example?subject=Hi'>Write</a>", "Write (a@x.example)"),
        ("<a href='mailto:a@x.example'>a@x.example</a>", "a@x.example"),
        ("<a href='tel:+4930123456'>030 / 12 34 56</a>", "030 / 12 34 56"),
        ("<a href='tel:+4930123456'>Call</a>", "Call (+4930123456)"),
        ("<a href='/park'><img alt='Park'></a>", "Park (/park)"),
        ("<a href='/park' aria-label='Park'></a>", "Park (/park)"),
    ],
)
def test_a_link_keeps_its_address(html: str, text: str) -> None:
    assert line(html) == text


def test_a_link_in_a_heading_leads_somewhere_below_it() -> None:
    page = read("<h1>The <a href=/kiosk>kiosk</a></h1><h2><a href='#x'>Reset</a></h2><p>Hold.")
    assert page.title == "The kiosk"
    assert page.text == "# The kiosk\n\nkiosk (/kiosk)\n\n## Reset\n\nHold."


# Structure


@pytest.mark.parametrize(
    ("html", "text"),
    [
        ("<ol start=3><li>c<li>d</ol>", "3. c\n4. d"),
        ("<ol><li>a<li value=7>g<li>h</ol>", "1. a\n7. g\n8. h"),
        ("<ol type=a><li>x<li>y</ol>", "a. x\nb. y"),
        ("<ol type=I start=4><li>x<li>y</ol>", "IV. x\nV. y"),
        ("<ol reversed><li>x<li>y<li>z</ol>", "3. x\n2. y\n1. z"),
        ("<ol style='list-style-type: lower-roman'><li>x<li>y</ol>", "i. x\nii. y"),
        ("<ol><li>a<ol><li>b</ol><li>c</ol>", "1. a\n  1. b\n2. c"),
        ("<ul><li>a<ul><li>b</ul></ul>", "- a\n  - b"),
    ],
)
def test_lists_count_as_the_page_does(html: str, text: str) -> None:
    assert read(html).text == text


def test_a_step_that_is_a_heading_keeps_its_number() -> None:
    page = read("<ol><li><h3>Open</h3><p>Lift the lid.</p><li><h3>Shut</h3></ol>")
    assert page.text == "### 1. Open\n\nLift the lid.\n\n### 2. Shut"


def test_lists_tables_and_code() -> None:
    document = read(
        """<ol><li>One<p>more</p></li><li>Two<ul><li>deep</ul></ol>
        <table><caption>Cap</caption><thead><tr><th>App<th>Delay</thead>
        <tr><td><p>Apple</p><ul><li>a<li>b</ul><td>15 <b>min</b><tr><td><td></table>
        <pre class=language-py><code>if x:
    y  # ```</code></pre><table><tr><td>one column</table>"""
    )
    assert shape(document) == [
        ("list_item", "1. One"),
        ("list_item", "more"),
        ("list_item", "2. Two"),
        ("list_item", "- deep"),
        ("paragraph", "Cap"),
        ("table_row", "App | Delay\n--- | ---"),
        ("table_row", "Apple; a; b | 15 min"),
        ("code", "~~~py\nif x:\n    y  # ```\n~~~"),
        ("table_row", "one column"),
    ]


def rows(html: str) -> list[str]:
    return [text for kind, text in shape(read(html)) if kind == "table_row"]


def test_merged_cells_are_filled() -> None:
    assert rows(
        "<table><tr><th>Line<th>Class<th>Fare<tr><td rowspan=2>North<td>Deck<td>12"
        "<tr><td>Cabin<td>40<tr><td colspan=2>Bike<td>3</table>"
    )[1:] == ["North | Deck | 12", "North | Cabin | 40", "Bike | Bike | 3"]
    assert rows(
        "<table><tr><th rowspan=2>Pass<th colspan=2>Price<tr><th>EU<th>US"
        "<tr><td>Day<td>5<td>6</table>"
    ) == ["Pass | Price EU | Price US\n--- | --- | ---", "Day | 5 | 6"]
    assert rows("<table><tr><td rowspan=0>a<td>1<tr><td>2<tr><td>3</table>")[2] == "a | 3"
    assert rows("<table><tr><td>a<td><tr><td><td>b</table>") == ["a |", "| b"]
    assert rows("<table><tr><th>A<th>B<tr><th colspan=2>Winter<tr><td>1<td>2</table>")[1:] == [
        "Winter", "1 | 2",
    ]  # fmt: skip


def test_what_a_cell_holds_stays_on_its_row() -> None:
    nested = "<table><tr><td>piano<td>7<tr><td>drums<td>9</table>"
    assert rows(f"<table><tr><td>Blue<td>{nested}<td>60<tr><td>Red<td>-<td>45</table>") == [
        "Blue | piano 7; drums 9 | 60", "Red | - | 45",
    ]  # fmt: skip
    cell = "<ol><li>Open<li>Look</ol><p>Then</p><dl><dt>T<dd>M</dl>"
    assert rows(f"<table><tr><td>A<td>{cell}</table>") == ["A | 1. Open; 2. Look Then T M"]


def test_a_table_for_layout_is_read_cell_by_cell() -> None:
    old = "<table><tr><td><h1>Old</h1><p>Page</p><td><table><tr><td>a<td>b</table></table>"
    assert read(old).text == "# Old\n\nPage\n\na | b"
    frame = "<table><tr><td><p>One.</p><p>Two.</p></table>"
    assert [kind for kind, _ in shape(read(frame))] == ["paragraph", "paragraph"]


def test_rows_may_be_named_by_their_roles() -> None:
    grid = "<div role=table><div role=row><div role=columnheader>A</div>{}</div>{}</div>"
    two = "<div role=row><div role=cell>1</div><div role=cell>2</div></div>"
    assert rows(grid.format("<div role=columnheader>B</div>", two))[-1] == "1 | 2"


def test_questions_are_headings_above_their_answers() -> None:
    page = read(
        "<h1>Pool</h1><details><summary>Is it warm?</summary><p>In May.</p></details>"
        "<dl><dt>How deep?</dt><dd>Two metres.</dd></dl><p><b>Is it far?</b><br>No.</p>"
        "<ul><li><details><summary>Is it free?</summary>Yes.</details></ul>"
        "<p><strong>May I dive?</strong></p><p>Never.</p><p>See <b>this?</b></p>"
    )
    assert page.text == (
        "# Pool\n\n## Is it warm?\n\nIn May.\n\n## How deep?\n\nTwo metres.\n\n## Is it far?\n\nNo."
        "\n\n## Is it free?\n\nYes.\n\n## May I dive?\n\nNever.\n\nSee this?"
    )


def test_a_footnote_is_read_where_it_is_cited() -> None:
    page = read(
        "<p>Kept ten days<sup><a href='#n1'>1</a></sup>.</p><ol><li id=n1>In May twenty. "
        "<a href='#r1'>↩</a></ol>"
    )
    assert page.text == "Kept ten days (In May twenty.)."


def test_a_copy_button_is_no_code() -> None:
    assert read("<pre><button>Copy</button>ls -l</pre>").text == "```\nls -l\n```"


def test_a_page_names_its_encoding() -> None:
    page = "<meta charset='iso-8859-2'><p>Zażółć gęślą</p>".encode("iso-8859-2")
    assert read(page).text == "Zażółć gęślą"
    assert read("<meta charset='iso-8859-2'><p>Größe</p>").text == "Größe", "UTF-8 is seen"


def test_entities_that_cannot_be_stored() -> None:
    assert read("<p>a&#0;b&#xd800;c&#xdfff;</p>").text == "a\ufffdb\ufffdc\ufffd"


# Places in the file


PAGE = """<!DOCTYPE html>
<html lang="en"><head><title>Ferry</title><script>var words = "Deck";</script></head>
<body><main>
<h1>Ferry &amp; fares</h1>
<p>A cabin costs <b>forty</b> crowns, see
   <a href="/fares/cabins">the list</a>.</p>
<ul><li>Deck chairs
    are free</li><li hidden>Secret</li><li><img alt="Bicycles"> cost three</li></ul>
<table><tr><th>Route</th><th>Fare</th></tr><tr><td>Northport</td><td>12</td></tr></table>
<pre>sail --now
  --all</pre><p><a href="mailto:quay@ferry.example">Write</a></p></main></body></html>"""


def test_every_block_knows_its_place() -> None:
    for newline in ("\n", "\r\n"):
        file = PAGE.replace("\n", newline)
        document = read(file)
        check_blocks(document)
        check_places(document, file)
    spans = [to_source(document.source_map, block.span) for block in document.blocks]
    assert spans[3] is not None and "Secret" not in spans[3].of(file)
    assert list(document.source_map) == sorted(document.source_map)


# Hostile markup


@settings(deadline=None)
@given(st.text(st.sampled_from("<>/=\"'!- abpdivhtrl1\n&#;\x01\x02"), max_size=200))
def test_any_markup_is_read(markup: str) -> None:
    try:
        document = read(markup)
    except DocumentUnreadable:
        return
    check_blocks(document)


def test_depth_cannot_be_hidden() -> None:
    for one in (
        "<i></x>", "<i title='</i>'>", '<i a="b></i>">', '<i a" ="></i>" b>', "<i><!--</i>-->",
        "<!--><i><!---->", "<i x=</i ><i></i>", "<I><script></i></script>", "<i/>", "<x-y>",
    ):  # fmt: skip
        with pytest.raises(DocumentUnreadable, match="elements deep"):
            check_depth(one * 300)
    check_depth("<p><li><td><a><br>text" * 3000)
    check_depth("<div><DIV></div></Div ></b>" * 3000)


HOSTILE = [
    "<sup>", "<s>", "<ruby><rt>", "<a href=x>y", "<q>", "<abbr title=a>b", "<select>", "<option>",
    "<math><mi>", "<svg>", "<button>", "<label for=a>", "<h1>", "<header><h1>", "<aside>", "<dt>",
    "<summary>", "<details>", "<td rowspan=9>x", "<tr><td colspan=1000 rowspan=60000>x", "<ol><li>",
    "<table><tr><td>x", "<b>a?</b><br>", "<p style='display:inline'>", "a<br>", "\u00ad",
    "<sup><a href='#a'>1</a></sup><p id=a>note", "&#1;1&#2;", "<p aria-controls='a b'>", "<p><p>",
]  # fmt: skip


def test_hostile_markup_takes_linear_time() -> None:
    def work(n: int, unit: str) -> None:
        with contextlib.suppress(SupportRagError):
            read(unit.encode() * (n // len(unit)))

    for unit in HOSTILE:
        grows_linearly(partial(work, unit=unit), 10_000)
