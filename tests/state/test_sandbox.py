"""A document can harm the process that parses it, and no other."""

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from support_rag.parse import CONTENT_TYPES, parse
from support_rag.state.sandbox import (
    MB,
    Limits,
    Parsers,
    child_environment,
    parse_confined,
    unreadable,
)
from support_rag.types import DocumentUnreadable, TooLarge, UnsupportedType

ARTICLE = (
    "# Kiosk\r\n\r\nThe kiosk keeps punches — 72 hours 🕒 — while it is offline.\r\n\r\n- a\r\n"
)
ABOUT = {"content_type": "text/markdown", "document_id": "d", "source": "kiosk.md"}


@pytest.fixture
def parsers() -> Iterator[Parsers]:
    parsers = Parsers()
    yield parsers
    parsers.close()


async def test_a_confined_parser_gives_what_the_parser_gives(parsers: Parsers) -> None:
    content = ARTICLE.encode()
    assert await parse_confined(parsers, content, **ABOUT) == parse(content, **ABOUT)
    titled = await parse_confined(parsers, content, **ABOUT, title="Given")
    assert titled.title == "Given"


@pytest.mark.parametrize("content_type", sorted({*CONTENT_TYPES.values()}))
async def test_a_broken_file_of_each_type_is_unreadable(
    parsers: Parsers, content_type: str
) -> None:
    with pytest.raises(DocumentUnreadable):
        await parse_confined(
            parsers, b"\x00\x01\x02\xff" * 50, **ABOUT | {"content_type": content_type}
        )


async def test_an_unknown_type_keeps_its_own_error(parsers: Parsers) -> None:
    with pytest.raises(UnsupportedType):
        await parse_confined(parsers, b"x", **ABOUT | {"content_type": "application/zip"})


async def test_memory_is_limited(parsers: Parsers) -> None:
    content = b"## Part\n\nThe kiosk keeps punches for 72 hours.\n\n" * 20_000
    assert len((await parse_confined(parsers, content, **ABOUT)).text) == len(content.strip()), (
        "the control"
    )
    with pytest.raises(DocumentUnreadable, match="memory"):
        await parse_confined(parsers, content, **ABOUT, limits=Limits(memory_bytes=5 * MB))


async def test_the_answer_is_limited(parsers: Parsers) -> None:
    with pytest.raises(TooLarge):
        await parse_confined(parsers, b"x" * 5000, **ABOUT, limits=Limits(output_bytes=1000))


def in_limited_process(code: str, limits: str = "Limits()") -> subprocess.Popen[bytes]:
    "Run code in a process that limited itself as a parser's does."
    lines = (
        "import os, time",
        "from support_rag.state.sandbox import Limits, limit_this_process",
        f"limit_this_process({limits})",
        code,
    )
    return subprocess.Popen(
        [sys.executable, "-c", "\n".join(lines)], env=child_environment(), stdout=subprocess.PIPE
    )


@pytest.mark.parametrize(
    ("code", "limits", "number"),
    [
        ("while True: pass", "Limits(cpu_seconds=1)", signal.SIGXCPU),
        ("time.sleep(60)", "Limits(wall_seconds=1)", signal.SIGALRM),
    ],
)
def test_the_kernel_ends_what_takes_too_long(code: str, limits: str, number: int) -> None:
    process = in_limited_process(code, limits)
    assert process.wait(timeout=300) == -number
    assert "took too long" in unreadable(Limits(), process.returncode).message


def test_memory_beyond_the_limit_is_an_error_in_the_child() -> None:
    code = "try:\n  bytearray(600_000_000)\nexcept MemoryError:\n  print('refused')"
    assert b"refused" in in_limited_process(code).communicate(timeout=300)[0]
    assert (
        b"refused" not in in_limited_process("bytearray(300_000_000)").communicate(timeout=300)[0]
    )


def test_the_child_can_write_no_file(tmp_path: Path) -> None:
    code = f"with open({str(tmp_path / 'f')!r}, 'w') as file: file.write('x')"
    process = in_limited_process(code)
    process.communicate(timeout=300)
    assert process.returncode != 0 and (tmp_path / "f").read_bytes() == b""


def test_the_child_knows_no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SUPPORT_RAG_DATABASE_URL", "SUPPORT_RAG_JWT_SECRET", "OPENAI_API_KEY"):
        monkeypatch.setenv(name, "hunter2")
    process = in_limited_process("print(dict(os.environ))")
    assert b"hunter2" not in process.communicate(timeout=300)[0]


def gone(processes: list[psutil.Process]) -> bool:
    "Wait until none of the processes runs any more."
    deadline = time.monotonic() + 240
    while any(p.is_running() and p.status() != psutil.STATUS_ZOMBIE for p in processes):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def descendants(pid: int, n: int) -> list[psutil.Process]:
    "Wait until a process has `n` descendants and return them."
    deadline = time.monotonic() + 240
    while len(found := psutil.Process(pid).children(recursive=True)) != n:
        assert time.monotonic() < deadline, found
        time.sleep(0.02)
    return found


def nursery_of_this_process() -> psutil.Process:
    "Return the one nursery that this process has."
    living = [p for p in psutil.Process().children() if p.status() != psutil.STATUS_ZOMBIE]
    [nursery] = [p for p in living if "nursery" in " ".join(p.cmdline())]
    return nursery


def test_no_parser_outlives_its_worker() -> None:
    worker = "import time; from support_rag.state.sandbox import Parsers; "
    worker += "parsers = Parsers(); lines = [parsers.connect() for _ in range(3)]; time.sleep(60)"
    process = subprocess.Popen([sys.executable, "-c", worker])
    family = descendants(process.pid, 7)  # a nursery; a guardian and a parser for each connection
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert gone(family)


def test_a_closed_connection_ends_its_parser_and_no_other() -> None:
    parsers = Parsers()
    first, second = parsers.connect(), parsers.connect()
    nursery = nursery_of_this_process()
    assert len(descendants(nursery.pid, 4)) == 4
    first.close()
    assert len(descendants(nursery.pid, 2)) == 2
    second.close()
    assert descendants(nursery.pid, 0) == []
    parsers.close()
    assert gone([nursery])


async def test_a_nursery_that_died_is_replaced(parsers: Parsers) -> None:
    document = await parse_confined(parsers, ARTICLE.encode(), **ABOUT)
    nursery = nursery_of_this_process()
    nursery.kill()
    assert gone([nursery])
    assert await parse_confined(parsers, ARTICLE.encode(), **ABOUT) == document


async def test_a_parser_that_is_killed_fails_its_document_alone(parsers: Parsers) -> None:
    slow = b"## Part\n\nThe kiosk keeps punches for 72 hours.\n\n" * 60_000
    parsing = asyncio.create_task(parse_confined(parsers, slow, **ABOUT))
    other = asyncio.create_task(parse_confined(parsers, ARTICLE.encode(), **ABOUT))
    assert (await other).title == "Kiosk"
    nursery = nursery_of_this_process()
    [parser] = [p for p in descendants(nursery.pid, 2) if p.ppid() != nursery.pid]
    parser.kill()
    with pytest.raises(DocumentUnreadable):
        await parsing
    assert await parse_confined(parsers, ARTICLE.encode(), **ABOUT) == await other
