"""Processes that die, hang, refuse and multiply, under a real supervisor."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from support_rag.local.processes import (
    Process,
)
from support_rag.local.supervisor import (
    MAX_QUICK_DEATHS,
    Supervisor,
    Watched,
    keep_running,
    only_one,
    running,
    stop_all,
    stop_running,
)
from support_rag.types import Conflict, Unavailable

SLEEP = ("sleep", "60")
STUBBORN = ("sh", "-c", "trap '' TERM; echo deaf; while true; do sleep 0.05; done")


def until(ask: Callable[[], Any], *, what: str, seconds: float = 240.0) -> Any:
    deadline = time.monotonic() + seconds
    while not (answer := ask()):
        assert time.monotonic() < deadline, f"waited {seconds:.0f} s for {what}"
        time.sleep(0.01)
    return answer


def python(tmp_path: Path, text: str) -> subprocess.Popen[str]:
    "Run a program that imports the package; its standard output is a pipe."
    program = tmp_path / "program.py"
    program.write_text(text)
    return subprocess.Popen(
        [sys.executable, program, tmp_path],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_what_a_dead_process_started_is_killed_before_the_next_life(tmp_path: Path) -> None:
    watched = Watched(Process("family", ("sh", "-c", "sleep 60 & sleep 60")))
    watched.tend(tmp_path)
    assert watched.child is not None
    first = watched.child.popen
    orphans = until(lambda: psutil.Process(first.pid).children(), what="the grandchildren")
    first.kill()
    first.wait()
    until(lambda: (watched.tend(tmp_path), watched.child)[1], what="the next life")
    _, left = psutil.wait_procs(orphans, timeout=120)
    assert not left
    stop_all([watched])


def test_a_process_that_cannot_run_is_given_up_with_its_log(tmp_path: Path) -> None:
    watched = Watched(Process("doomed", ("sh", "-c", "echo no space left; exit 1")))
    starts, before = 0, None
    with pytest.raises(Unavailable, match=r"doomed died 5 times within a minute; .*no space left"):
        while True:
            watched.tend(tmp_path)
            starts += watched.child is not None and watched.child is not before
            before = watched.child
            time.sleep(0.005)
    assert starts == MAX_QUICK_DEATHS


def test_a_hook_that_loses_its_process_is_a_death_and_no_fault(tmp_path: Path) -> None:
    def lose() -> None:
        if not lost:
            lost.append(True)
            assert watched.child is not None
            watched.child.popen.kill()
            watched.child.popen.wait()
            raise Unavailable("the connection broke")

    lost: list[bool] = []
    watched = Watched(Process("one", SLEEP, after=lose))
    until(lambda: (watched.tend(tmp_path), watched.ready)[1], what="the second life")
    assert lost
    stop_all([watched])


def test_a_hook_that_fails_stops_everything(tmp_path: Path) -> None:
    def refuse() -> None:
        raise Unavailable("the schema is newer than this version")

    supervisor = Supervisor(tmp_path, [Process("one", SLEEP, after=refuse)])
    with pytest.raises(Unavailable, match="the schema is newer"):
        supervisor.run()
    assert not any(one.child and one.child.alive() for one in supervisor.watched)
    assert running(tmp_path) is None


def test_order_of_starting_and_stopping(tmp_path: Path) -> None:
    events: list[str] = []

    def process(name: str, *, alongside: bool = False) -> Process:
        def ready() -> bool:
            asked[name] = asked.get(name, 0) + 1
            return asked[name] > 3

        return Process(
            name,
            SLEEP,
            ready=ready,
            before=lambda: events.append(f"start {name}"),
            after=lambda: events.append(f"ready {name}"),
            stopped=lambda: events.append(f"stopped {name}"),
            alongside=alongside,
        )

    asked: dict[str, int] = {}
    watched = [Watched(process(name, alongside=name == "c")) for name in ("a", "b", "c")]
    done = threading.Event()
    keep_running(watched, tmp_path, announce=done.set, stopping=done.is_set)
    stop_all(watched)
    assert events[:3] == ["start a", "ready a", "start b"]
    assert events.index("start c") < events.index("ready b"), "c does not wait for b"
    assert events[-3:] == ["stopped c", "stopped b", "stopped a"]


def test_a_second_supervisor_is_told_where_the_first_one_is(tmp_path: Path) -> None:
    with only_one(tmp_path, {"API": "http://127.0.0.1:8000"}):
        here = rf"already running as process {os.getpid()} \(API http://127.0.0.1:8000\)"
        with pytest.raises(Conflict, match=here), only_one(tmp_path, {}):
            pass
    assert running(tmp_path) is None


SUPERVISING = """
import sys
from pathlib import Path
from support_rag.local.supervisor import Process, Supervisor
home = Path(sys.argv[1])
processes = [Process("one", ("sleep", "60")), Process("two", ("sleep", "60"))]
Supervisor(home, processes).run(lambda: print("up", flush=True))
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGKILL])
def test_no_signal_leaves_a_child(tmp_path: Path, number: signal.Signals) -> None:
    supervisor = python(tmp_path, SUPERVISING)
    assert supervisor.stdout is not None and supervisor.stdout.readline() == "up\n"
    children = psutil.Process(supervisor.pid).children()
    assert len(children) == 2
    supervisor.send_signal(number)
    code = supervisor.wait(timeout=300)
    assert code == (-number if number == signal.SIGKILL else 0)
    _, left = psutil.wait_procs(children, timeout=120)
    assert not left
    with only_one(tmp_path, {}):  # the lock went with its holder
        pass


def test_down_stops_it_and_says_so(tmp_path: Path) -> None:
    supervisor = python(tmp_path, SUPERVISING)
    assert supervisor.stdout is not None and supervisor.stdout.readline() == "up\n"
    assert stop_running(tmp_path) is True
    assert supervisor.wait(timeout=300) == 0
    assert stop_running(tmp_path) is False


def test_down_kills_a_supervisor_that_hangs(tmp_path: Path) -> None:
    supervisor = python(tmp_path, SUPERVISING)
    assert supervisor.stdout is not None and supervisor.stdout.readline() == "up\n"
    children = psutil.Process(supervisor.pid).children()
    supervisor.send_signal(signal.SIGSTOP)
    assert stop_running(tmp_path, seconds=0.2) is True
    assert supervisor.wait(timeout=300) == -signal.SIGKILL
    _, left = psutil.wait_procs(children, timeout=120)
    assert not left
