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

from support_rag.local.supervisor import (
    KEPT_LOGS,
    MAX_QUICK_DEATHS,
    Child,
    Process,
    Supervisor,
    Watched,
    keep_running,
    log_path,
    only_one,
    rotate,
    running,
    spawn,
    stop,
    stop_all,
    stop_running,
    tail,
    wait_ready,
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


SPAWNING = """
import sys, time
from support_rag.local.supervisor import spawn
print(spawn(("sleep", "60"), guarded={guarded}).pid, flush=True)
time.sleep(60)
"""


@pytest.mark.parametrize("guarded", [False, True])
def test_a_child_ends_when_its_parent_is_killed(tmp_path: Path, guarded: bool) -> None:
    parent = python(tmp_path, SPAWNING.format(guarded=guarded))
    assert parent.stdout is not None
    child = psutil.Process(int(parent.stdout.readline()))
    everything = [child, *child.children(recursive=True)]
    parent.kill()
    parent.wait()
    _, left = psutil.wait_procs(everything, timeout=120)
    assert not left


def test_a_guarded_child_ends_with_its_own_code() -> None:
    assert spawn(("sh", "-c", "exit 7"), guarded=True).wait() == 7
    child = spawn(SLEEP, guarded=True)
    until(lambda: psutil.Process(child.pid).children(), what="the guard's child")
    child.send_signal(signal.SIGTERM)
    assert child.wait() == 128 + signal.SIGTERM


def test_a_stop_ends_the_whole_session(tmp_path: Path) -> None:
    child = Child(Process("family", ("sh", "-c", "sleep 60 & sleep 60")), home=tmp_path)
    family = until(lambda: psutil.Process(child.popen.pid).children(), what="the grandchild")
    stop(child)
    _, left = psutil.wait_procs(family, timeout=120)
    assert not left


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


def test_a_deaf_process_is_killed_in_time(tmp_path: Path) -> None:
    child = Child(Process("deaf", STUBBORN, stop_seconds=0.3), home=tmp_path)
    until(lambda: tail(child.log) == "deaf", what="the trap to be set")
    stop(child)
    assert child.popen.returncode == -signal.SIGKILL


def test_a_second_signal_hurries(tmp_path: Path) -> None:
    child = Child(Process("deaf", STUBBORN, stop_seconds=600.0), home=tmp_path)
    until(lambda: tail(child.log) == "deaf", what="the trap to be set")
    stop(child, hurry=lambda: True)
    assert child.popen.returncode == -signal.SIGKILL


def test_an_early_end_and_a_mute_start_are_explained_with_the_log(tmp_path: Path) -> None:
    broken = ("sh", "-c", "echo bad option >&2; exit 3")
    with pytest.raises(Unavailable, match=r"broken ended with 3 before it was ready; .*bad option"):
        wait_ready(Child(Process("broken", broken, lambda: False), home=tmp_path))
    mute = Child(Process("mute", SLEEP, lambda: False, ready_seconds=0.1), home=tmp_path)
    with pytest.raises(Unavailable, match="mute was not ready after 0 s"):
        wait_ready(mute)
    stop(mute)


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


def test_logs_are_moved_aside_and_old_ones_dropped(tmp_path: Path) -> None:
    path = log_path(tmp_path, "one")
    path.parent.mkdir()
    for run in range(KEPT_LOGS + 2):
        rotate(path)
        path.write_text(f"run {run}\n")
    kept = sorted(p.name for p in path.parent.iterdir())
    assert kept == ["one.log", *(f"one.log.{n}" for n in range(1, KEPT_LOGS + 1))]
    assert path.with_name("one.log.1").read_text() == f"run {KEPT_LOGS}\n"


def test_a_log_is_read_by_its_owner_only(tmp_path: Path) -> None:
    child = Child(Process("one", ("true",)), home=tmp_path)
    child.popen.wait()
    assert child.log.parent.stat().st_mode & 0o077 == 0
