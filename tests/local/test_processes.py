"""Children that cannot outlive their parent say when they are ready, stop, and leave a log."""

import signal
from pathlib import Path

import psutil
import pytest

from support_rag.local.processes import (
    KEPT_LOGS,
    Child,
    Process,
    log_path,
    rotate,
    spawn,
    stop,
    tail,
    wait_ready,
)
from support_rag.types import Unavailable
from tests.local.test_supervisor import python, until

SLEEP = ("sleep", "60")

STUBBORN = ("sh", "-c", "trap '' TERM; echo deaf; while true; do sleep 0.05; done")


SPAWNING = """
import sys, time
from support_rag.local.processes import spawn
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
