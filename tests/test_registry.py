"""The history of releases can only be added to, and a receipt replays to the same bytes."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from support_rag.chunk import chunk
from support_rag.embed import HashingEmbedder
from support_rag.generate import ExtractiveGenerator
from support_rag.parse import parse
from support_rag.pipeline import Pipeline
from support_rag.receipt import ReceiptInvalid, answer_with_receipt, load_receipt, verify
from support_rag.registry import (
    Entry,
    Registry,
    RegistryBroken,
    append,
    describe,
    described,
    entry_of,
    standing_of,
)
from support_rag.release import (
    Parameters,
    Writer,
    load_release,
    read_facts,
    release_of,
    resource,
)
from support_rag.retrieve import InMemoryIndex

FACTS = read_facts()
RELEASE = load_release()


def published(folder: Path, n: int = 2) -> Registry:
    registry = Registry(folder)
    for k in range(n):
        tuned = Parameters().with_(retrieve={"k": 5 + k})
        release = release_of(tuned, FACTS, writer=Writer())
        given = {"who": "Ada", "why": f"try {k}", "evidence": {"tune": {"n": 1}}}
        append(registry, entry_of(release, FACTS, "publish", **given), {"report.html": b"<p>"})
    return registry


def test_every_flipped_byte_of_an_entry_is_found(tmp_path: Path) -> None:
    registry = published(tmp_path)
    assert registry.faults() == []
    for path in registry.files():
        content = path.read_bytes()
        for at in range(0, len(content), max(1, len(content) // 150)):
            path.write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
            assert registry.faults(), f"byte {at} of {path.name}"
        path.write_bytes(content)
    assert registry.faults() == []


def test_an_entry_that_was_taken_away_or_put_first_is_found(tmp_path: Path) -> None:
    registry = published(tmp_path, 3)
    middle = registry.files()[1]
    content = middle.read_bytes()
    middle.unlink()
    with pytest.raises(RegistryBroken, match="does not follow"):
        registry.entries()
    middle.write_bytes(content)
    assert len(registry.entries()) == 3
    registry.files()[-1].unlink()
    with pytest.raises(RegistryBroken, match="history was cut"):
        registry.entries()
    assert not standing_of(RELEASE, registry).proven, "a broken registry proves nothing"


def test_a_forged_entry_with_a_fresh_digest_is_found(tmp_path: Path) -> None:
    registry = published(tmp_path)
    first, _ = registry.entries()
    path = registry.files()[0]
    path.write_bytes(replace(first, why="another reason").sealed().as_bytes())
    with pytest.raises(RegistryBroken, match="does not follow"):
        registry.entries()
    other = {**first.description, "index_digest": "0" * 16, "sources": {}}
    path.write_bytes(replace(first, description=other).sealed().as_bytes())
    with pytest.raises(RegistryBroken):
        registry.entries()


def test_publishing_at_once_keeps_the_chain(tmp_path: Path) -> None:
    registry = Registry(tmp_path)

    def publish(k: int) -> Entry:
        given = {"who": "Ada", "why": f"thread {k}"}
        return append(registry, entry_of(RELEASE, FACTS, "publish", **given))

    with ThreadPoolExecutor(4) as pool:
        made = list(pool.map(publish, range(8)))
    assert sorted(entry.seq for entry in made) == list(range(1, 9))
    assert registry.faults() == []


def test_a_forced_release_is_not_proven(tmp_path: Path) -> None:
    registry = Registry(tmp_path)
    given = {"who": "Ada", "why": "now", "evidence": {"tune": {}}, "refusals": ["tune: worse"]}
    append(registry, entry_of(RELEASE, FACTS, "publish", override="a trial", **given))
    standing = standing_of(RELEASE, registry)
    assert not standing.proven and "a trial" in standing.why


async def test_a_receipt_replays_and_every_flipped_byte_is_found(tmp_path: Path) -> None:
    text = "# Offline\n\nThe Kiosk stores punches for up to 72 hours or 5,000 punches."
    document = parse(text.encode(), content_type="text/markdown", document_id="kiosk.md")
    chunks, embedder = chunk(document, RELEASE.parameters.chunk), HashingEmbedder()
    vectors = (await embedder.embed([c.embedded_text for c in chunks])).vectors
    made = Pipeline(RELEASE, embedder, InMemoryIndex(chunks, vectors), ExtractiveGenerator())
    _, receipt = await answer_with_receipt(made, "How long does the Kiosk store punches?")
    assert (await verify(receipt)).same
    path = tmp_path / "reply.json"
    content = receipt.as_bytes()
    for at in range(0, len(content), max(1, len(content) // 150)):
        path.write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
        with pytest.raises(ReceiptInvalid):
            load_receipt(path)
    path.write_bytes(content)
    assert (await verify(load_receipt(path))).same
    edited = replace(receipt, answer={**receipt.answer, "text": "No."}).sealed()
    assert "the text from" in (await verify(edited)).difference
    other = replace(FACTS, sources={**FACTS.sources, "quote": "edited"})
    assert "code of quote is edited here" in (await verify(receipt, facts=other)).difference


def test_a_release_of_other_modules_is_still_the_one_it_was() -> None:
    fewer = FACTS.answer_modules[:-1]
    older = replace(FACTS, answer_modules=fewer, sources={**FACTS.sources, "gone": "5b1e"})
    older = replace(older, answer_modules=[*fewer, "gone"])
    release = release_of(Parameters(), older, writer=Writer())
    assert release.id != release_of(Parameters(), FACTS, writer=Writer()).id
    description = describe(release, older)
    assert described(description).id == release.id
    description["modules"]["answer"].remove("gone")
    assert described(description).id != release.id, "the modules are part of the id"


def test_the_history_in_this_repository_can_be_read() -> None:
    registry = Registry(resource("data/releases"))
    assert registry.faults() == []
    for entry in registry.entries():
        assert described(entry.description).id == entry.release_id
