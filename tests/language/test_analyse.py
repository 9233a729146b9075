"""Spellings of one word meet, and words that differ by a sign do not."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from support_rag.language.analyse import TERM_CHARACTERS, analyse
from tests.timing import grows_linearly


@pytest.mark.parametrize(
    ("text", "terms"),
    [
        ("How do I reset it?", ["reset"]),
        ("Kiosks kiosk KIOSK's", ["kiosk", "kiosk", "kiosk"]),
        ("TL-3301", ["tl3301", "tl", "3301"]),
        ("tl3301", ["tl3301", "tl", "3301"]),
        ("sign-in", ["signin", "sign"]),
        ("v2.3.1", ["v2.3.1", "v2"]),
        ("5.22", ["5.22", "22"]),
        ("Größe", ["gross", "groess"]),
        ("ﬁle ＡＢ１２", ["file", "ab12", "ab", "12"]),
        ("打卡机", ["打卡", "卡机"]),
        ("비밀번호를", ["비밀", "밀번", "번호", "호를"]),
        ("打", ["打"]),
        (".NET", [".net", "net"]),
        ("C++ and C#", ["c++", "c#"]),
        ("AT&T", ["at&t"]),
        ("the and of", []),
        ("!?… 🙂", []),
    ],
)
def test_terms(text: str, terms: list[str]) -> None:
    assert analyse(text) == terms


MEET = """
    Router | ROUTER | routers | router's | router’s | ｒｏｕｔｅｒ
    Wi-Fi | wifi | wi fi | WI‑FI | WiFi
    e-mail | email | E-Mails | e mail
    T-shirt | tshirt
    set-up | set up
    Re-set | reset
    F-7040 | F7040 | f7040 | F_7040
    AB-12-34 | ab1234
    10,000 | 10000
    3rd | 3 | 3er | 3ème
    naïve | naive
    Müllgebühr | Mullgebuhr
    Müllgebühr | Muellgebuehr
    Straße | Strasse | STRASSE
    Øresund | Oresund
    cœur | coeur
    contraseña | contrasena | contraseñas
    São | Sao
    l'assurance | assurance | l’assurance
    d'état | etat
    qu'elle | elle
    all'estero | estero
    inter\u00adnational | international | inter\u200bnational
    пароль | пароля | паролем
    ёмкость | емкость
    أحمد | احمد
    パスワード | ﾊﾟｽﾜｰﾄﾞ
    .NET | .Net
    AT&T | at&t
"""
APART = """
    .NET | net worth of
    C++ | C# | C
    R&D | R&B
    2.3.1 | 231
    5.22 | 522
    F-7040 | F-7041
    guest | gust
    poet | pot
    blue | blu
    может | моет
    café | cafard
"""


@pytest.mark.parametrize("line", MEET.strip().splitlines())
def test_spellings_of_a_word_meet(line: str) -> None:
    line = line.replace("\\u00ad", "\u00ad").replace("\\u200b", "\u200b")
    first, *others = [set(analyse(word)) for word in line.split(" | ")]
    assert all(first & other for other in others), (first, others)


@pytest.mark.parametrize("line", APART.strip().splitlines())
def test_words_that_differ_stay_apart(line: str) -> None:
    whole = [analyse(word)[:1] for word in line.split(" | ")]
    assert len({tuple(terms) for terms in whole}) == len(whole), whole


@settings(deadline=None)
@given(st.text(max_size=80))
def test_terms_ignore_case_width_and_what_stands_around(text: str) -> None:
    terms = analyse(text)
    assert analyse(f" ({text}) ") == terms
    assert all(0 < len(term) <= TERM_CHARACTERS for term in terms)
    assert analyse(f"{text}\n\n{text}") == terms * 2


@settings(deadline=None)
@given(st.text(st.characters(categories=["Ll", "Nd"], max_codepoint=0x24F), max_size=20))
def test_terms_are_the_same_in_capitals(text: str) -> None:
    if text.upper().lower() == text:
        assert analyse(text.upper()) == analyse(text)


@pytest.mark.parametrize(
    "unit",
    [
        "a",
        "a-",
        "-",
        "a.b/",
        "1",
        "打",
        "'",
        "a'",
        "é",
        "\u0301",
        "a1",
        "a&",
        ".a",
        "+",
        "a#",
        "1,",
        "ab ",
    ],
)
def test_hostile_text_is_analysed_in_linear_time(unit: str) -> None:
    grows_linearly(lambda n: analyse(unit * (n // len(unit))), 20_000)
