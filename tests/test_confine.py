"""A document can harm the process that parses it, and no other."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from support_rag.confine import MB, Limits, child_environment, parse_confined, unreadable
from support_rag.parse import CONTENT_TYPES, parse
from support_rag.types import DocumentUnreadable, TooLarge, UnsupportedType

ARTICLE = (
    "# Kiosk\r\n\r\nThe kiosk keeps punches — 72 hours 🕒 — while it is offline.\r\n\r\n- a\r\n"
)
ABOUT = {"content_type": "text/markdown", "document_id": "d", "source": "kiosk.md"}


async def test_a_confined_parser_gives_what_the_parser_gives() -> None:
    content = ARTICLE.encode()
    assert await parse_confined(content, **ABOUT) == parse(content, **ABOUT)
    titled = await parse_confined(content, **ABOUT, title="Given")
    assert titled.title == "Given"


@pytest.mark.parametrize("content_type", sorted({*CONTENT_TYPES.values()}))
async def test_a_broken_file_of_each_type_is_unreadable(content_type: str) -> None:
    with pytest.raises(DocumentUnreadable):
        await parse_confined(b"\x00\x01\x02\xff" * 50, **ABOUT | {"content_type": content_type})


async def test_an_unknown_type_keeps_its_own_error() -> None:
    with pytest.raises(UnsupportedType):
        await parse_confined(b"x", **ABOUT | {"content_type": "application/zip"})


async def test_memory_is_limited() -> None:
    content = b"## Part\n\nThe kiosk keeps punches for 72 hours.\n\n" * 20_000
    assert len((await parse_confined(content, **ABOUT)).text) == len(content), "the control"
    with pytest.raises(DocumentUnreadable, match="memory"):
        await parse_confined(content, **ABOUT, limits=Limits(memory_bytes=5 * MB))


async def test_the_answer_is_limited() -> None:
    with pytest.raises(TooLarge):
        await parse_confined(b"x" * 5000, **ABOUT, limits=Limits(output_bytes=1000))


def in_limited_process(code: str, limits: str = "Limits()") -> subprocess.Popen[bytes]:
    "Run code in a process that limited itself as the parser's child does."
    lines = (
        "import os, time",
        "from support_rag.confine import Limits, limit_this_process",
        f"limit_this_process({limits}, parent=os.getppid())",
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
    assert process.wait(timeout=30) == -number
    assert "took too long" in unreadable(Limits(), process.returncode).message


def test_memory_beyond_the_limit_is_an_error_in_the_child() -> None:
    code = "try:\n  bytearray(600_000_000)\nexcept MemoryError:\n  print('refused')"
    assert b"refused" in in_limited_process(code).communicate(timeout=30)[0]
    assert b"refused" not in in_limited_process("bytearray(300_000_000)").communicate(timeout=30)[0]


def test_the_child_can_write_no_file(tmp_path: Path) -> None:
    code = f"with open({str(tmp_path / 'f')!r}, 'w') as file: file.write('x')"
    process = in_limited_process(code)
    process.communicate(timeout=30)
    assert process.returncode != 0 and (tmp_path / "f").read_bytes() == b""


def test_the_child_knows_no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SUPPORT_RAG_DATABASE_URL", "SUPPORT_RAG_JWT_SECRET", "OPENAI_API_KEY"):
        monkeypatch.setenv(name, "hunter2")
    process = in_limited_process("print(dict(os.environ))")
    assert b"hunter2" not in process.communicate(timeout=30)[0]


def test_the_child_dies_with_its_parent() -> None:
    child = (
        "import os, time; from support_rag.confine import Limits, limit_this_process; "
        "limit_this_process(Limits(), parent=os.getppid()); "
        "print(os.getpid(), flush=True); time.sleep(60)"
    )
    parent = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
    process = subprocess.Popen([sys.executable, "-c", parent], stdout=subprocess.PIPE)
    assert process.stdout is not None
    orphan = psutil.Process(int(process.stdout.readline()))
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    deadline = time.monotonic() + 10
    while orphan.is_running() and orphan.status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < deadline, "the child outlived its parent"
        time.sleep(0.02)
