"""`.ci/environment` on machines that lack something: one line each, and no work done twice."""

import contextlib
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
GOOD_PYTHON = """#!/bin/sh
echo "$*" >> {calls}
case "$*" in
  *version_info\\[:2\\]*) echo 3.12 ;;
  --version) echo "Python 3.12.1" ;;
  "-m venv .venv") mkdir -p .venv/bin; cp "$0" .venv/bin/python; cp "$0" .venv/bin/uv
    echo "executable = $0" >.venv/pyvenv.cfg ;;
  "- "*) exec {real} "$@" ;;
  "-m pip config get"*) exit 1 ;;
esac
"""
LINUX = '#!/bin/sh\n[ "$1" = -m ] && echo x86_64 || echo Linux\n'
OTHER = "install Python 3.11, 3.12 or 3.13, or set PYTHON=/path/to/python3"


def script(path: Path, text: str) -> Path:
    path.write_text(text)
    path.chmod(0o755)
    return path


class Machine:
    "A checkout on a machine whose commands can be exchanged."

    def __init__(self, folder: Path) -> None:
        self.bin, self.calls, self.top = folder / "bin", folder / "calls", folder / "top"
        self.bin.mkdir()
        (self.top / ".ci").mkdir(parents=True)
        for name in ("environment", "build.txt"):
            shutil.copy(ROOT / ".ci" / name, self.top / ".ci")
        for name in ("requirements.txt", "pyproject.toml"):
            (self.top / name).write_text(name)
        self.python = script(
            self.bin / "python3", GOOD_PYTHON.format(calls=self.calls, real=sys.executable)
        )
        script(self.bin / "uname", LINUX)

    def make(self, *words: str, **environ: str) -> subprocess.CompletedProcess[str]:
        "Run the script."
        path = f"{self.bin}:/usr/bin:/bin"
        return subprocess.run(
            [self.top / ".ci" / "environment", *words],
            env={"PATH": path, "HOME": str(self.top), **environ},
            capture_output=True,
            text=True,
            timeout=300,
        )

    def refuses(self, *words: str, **environ: str) -> str:
        "Run the script and return the one line that it refuses with."
        done = self.make(*words, **environ)
        assert done.returncode == 1, done
        line, *more = done.stderr.splitlines()
        assert not more and line.startswith("make: "), done.stderr
        return line.removeprefix("make: ")

    def replace_in_python(self, old: str, new: str) -> None:
        text = self.python.read_text()
        assert old in text
        self.python.write_text(text.replace(old, new))


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def test_a_good_machine_makes_it_once(machine: Machine) -> None:
    first = machine.make()
    assert first.returncode == 0, first.stderr
    assert first.stdout.startswith("Making .venv from requirements.txt (once")
    calls = machine.calls.read_text()
    assert "-m pip install -q --require-hashes -r .ci/build.txt" in calls
    assert "pip sync -q --python .venv/bin/python --require-hashes requirements.txt" in calls
    again = machine.make()
    assert (again.returncode, again.stdout, again.stderr) == (0, "", "")


def test_a_changed_lock_is_installed_into_the_same_environment(machine: Machine) -> None:
    machine.make()
    (machine.top / ".venv" / "kept").touch()
    (machine.top / "requirements.txt").write_text("another lock")
    assert machine.make().stdout.startswith("Making .venv")
    assert machine.calls.read_text().count("-m venv .venv") == 1
    assert machine.make().stdout == ""


def test_another_interpreter_or_folder_makes_a_new_one(machine: Machine, tmp_path: Path) -> None:
    machine.make()
    machine.replace_in_python("echo 3.12 ", "echo 3.13 ")
    machine.make()
    assert machine.calls.read_text().count("-m venv .venv") == 2
    machine.top = machine.top.rename(tmp_path / "moved")
    machine.make()
    assert machine.calls.read_text().count("-m venv .venv") == 3


def test_the_chosen_interpreter_is_kept_until_another_is_named(machine: Machine) -> None:
    text = machine.python.read_text().replace("echo 3.12 ", "echo 3.13 ")
    chosen = script(machine.bin / "python3.13", text)
    machine.make(PYTHON="python3.13")
    assert machine.make().stdout == "", "the default Python took its place"
    assert machine.make(PYTHON=str(machine.python)).stdout.startswith("Making .venv")
    assert machine.make().stdout == ""
    machine.make(PYTHON="python3.13")
    chosen.unlink()
    done = machine.make()
    assert done.stderr == f"make: {chosen}, the Python of .venv, is gone: taking python3\n"
    assert done.stdout.startswith("Making .venv")


@contextlib.contextmanager
def running_from(top: Path, command: str) -> Iterator[int]:
    "A process that runs from the environment of a checkout."
    sleeping = top / ".venv" / "bin" / "sleeping"
    sleeping.symlink_to(shutil.which("sleep") or "")
    with subprocess.Popen([command, "60"], cwd=top) as process:
        yield process.pid
        process.kill()
    sleeping.unlink()


@pytest.mark.parametrize("started_as", ["{top}/.venv/bin/sleeping", ".venv/bin/sleeping"])
def test_an_environment_in_use_is_not_replaced_and_not_changed_in_silence(
    machine: Machine, started_as: str
) -> None:
    machine.make()
    script(machine.bin / "python3.13", machine.python.read_text().replace("3.12 ", "3.13 "))
    (machine.top / ".venv" / "kept").touch()
    with running_from(machine.top, started_as.format(top=machine.top)) as pid:
        used = f"process {pid} (sleeping 60 ) runs from .venv"
        assert machine.refuses(PYTHON="python3.13") == (
            f"{used}, and python3.13 would replace it: stop it first (make down)"
        )
        assert (machine.top / ".venv" / "kept").exists()
        (machine.top / "requirements.txt").write_text("another lock")
        assert machine.make().stderr == f"make: {used}: start it again afterwards\n"
        assert machine.make().stderr == ""
    assert machine.make(PYTHON="python3.13").stdout.startswith("Making .venv")
    assert not (machine.top / ".venv" / "kept").exists()


def test_stopping_needs_no_new_environment(machine: Machine) -> None:
    machine.make()
    (machine.top / ".venv" / "bin" / "support-rag").touch(0o755)
    (machine.top / "requirements.txt").write_text("another lock")
    assert machine.make("kept").stdout == ""
    assert machine.make().stdout.startswith("Making .venv")


def test_a_link_to_another_checkout_is_left_alone(machine: Machine, tmp_path: Path) -> None:
    machine.make()
    other = (machine.top / ".venv").rename(tmp_path / "other")
    (machine.top / ".venv").symlink_to(other)
    for words in ((), ("up",), ("kept",)):
        assert machine.refuses(*words) == (
            f".venv is a link to {other}, which is left alone: remove the link (rm .venv), then "
            "run this again"
        )
    assert (other / "bin" / "uv").exists()
    (machine.top / ".venv").unlink()
    assert machine.make().returncode == 0


def test_what_somebody_else_made_is_left_alone(machine: Machine) -> None:
    venv = machine.top / ".venv"
    (venv / "bin").mkdir(parents=True)
    assert machine.refuses() == (
        ".venv was not made by make and is left alone: move it away or delete it, then run this "
        "again"
    )
    assert (venv / "bin").exists()
    (venv / "bin").rmdir()
    assert machine.make().returncode == 0, "an empty folder is nobody's"
    shutil.rmtree(venv)
    venv.write_text("a note")
    assert machine.refuses().startswith(".venv is not a folder and is left alone")


def test_a_taken_port_is_found_before_anything_is_installed(machine: Machine) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        assert machine.refuses("up", SUPPORT_RAG_PORT=port) == (
            f"port {port} cannot be had (Address already in use): stop what listens there (make "
            "down, where that is an earlier run), or set SUPPORT_RAG_PORT to another port (0 takes "
            "a free one)"
        )
        assert not (machine.top / ".venv").exists()
        assert machine.make(SUPPORT_RAG_PORT=port).returncode == 0, "only `up` needs the port"
    (machine.top / "requirements.txt").write_text("another lock")
    assert machine.make("up", SUPPORT_RAG_PORT=port).returncode == 0
    for wrong in ("65536000", "http"):
        (machine.top / "requirements.txt").write_text(wrong)
        assert machine.refuses("up", SUPPORT_RAG_PORT=wrong).startswith(f"port {wrong} cannot be")


def test_an_interrupted_installation_is_continued(machine: Machine) -> None:
    machine.replace_in_python(
        "esac", '"pip sync"*) echo "error: connection reset by peer" >&2; exit 2 ;;\nesac'
    )
    assert machine.refuses() == (
        "installing the locked packages failed: error: connection reset by peer"
    )
    for path in (machine.python, machine.top / ".venv" / "bin" / "uv"):
        script(path, GOOD_PYTHON.format(calls=machine.calls, real=sys.executable))
    assert machine.make().returncode == 0
    assert machine.calls.read_text().count("-m venv .venv") == 1


def test_no_python(machine: Machine) -> None:
    assert machine.refuses(PYTHON="python9") == f"python9 is not installed: {OTHER}"


def test_an_unsupported_python(machine: Machine) -> None:
    machine.replace_in_python(
        "case", 'case "$*" in *"3, 11"*) exit 1 ;; --version) echo Python 3.9.2; exit ;; esac\ncase'
    )
    assert machine.refuses() == f"Python 3.9.2 is not supported: {OTHER}"


def test_an_unsupported_platform(machine: Machine) -> None:
    script(machine.bin / "uname", '#!/bin/sh\n[ "$1" = -m ] && echo arm64 || echo Darwin\n')
    assert machine.refuses() == (
        "the embedded servers have no binaries for Darwin arm64: use Linux x86_64, or docker "
        "compose with servers"
    )


def test_no_venv_module(machine: Machine) -> None:
    machine.replace_in_python("case", 'case "$*" in *ensurepip*) exit 1 ;; esac\ncase')
    assert machine.refuses() == (
        "Python's venv module is missing: install it (on Debian: apt install python3-venv)"
    )


def test_a_full_disk(machine: Machine) -> None:
    script(machine.bin / "df", "#!/bin/sh\necho head; echo /dev/x 9 9 20480 99% /\n")
    assert machine.refuses() == (
        f"the disk that holds {machine.top} is full: 20 MB are free and 3,000 MB are needed; "
        "free some space there"
    )


def test_a_disk_that_becomes_full(machine: Machine) -> None:
    machine.replace_in_python(
        "esac",
        '"-m pip install"*) echo Collecting uv; echo "ERROR: [Errno 28] No space left on device";'
        " exit 1 ;;\nesac",
    )
    assert machine.refuses() == f"the disk that holds {machine.top} is full: free some space there"


def test_a_read_only_folder(machine: Machine) -> None:
    line = f"make: {machine.top} is read-only: clone into a folder that you may write to\n"
    machine.top.chmod(0o555)
    if not os.access(machine.top, os.W_OK):
        assert machine.make().stderr == line
        return
    # Root may write into any folder, except on a disk that is mounted read-only.
    mount = 'mount --bind "$1" "$1" && mount -o remount,bind,ro "$1" && exec "$1/.ci/environment"'
    done = subprocess.run(
        ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", mount, "sh", machine.top],
        env={"PATH": f"{machine.bin}:/usr/bin:/bin", "HOME": "/"},
        capture_output=True,
        text=True,
    )
    assert done.stderr == line
