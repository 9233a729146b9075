"""`.ci/environment` on machines that lack something: one line each, and no work done twice."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
GOOD_PYTHON = """#!/bin/sh
echo "$*" >> {calls}
case "$*" in
  *version_info\\[:2\\]*) echo 3.12 ;;
  --version) echo "Python 3.12.1" ;;
  "-m venv --clear .venv") mkdir -p .venv/bin; cp "$0" .venv/bin/python; cp "$0" .venv/bin/uv ;;
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
        self.python = script(self.bin / "python3", GOOD_PYTHON.format(calls=self.calls))
        script(self.bin / "uname", LINUX)

    def make(self, **environ: str) -> subprocess.CompletedProcess[str]:
        "Run the script."
        path = f"{self.bin}:/usr/bin:/bin"
        return subprocess.run(
            [self.top / ".ci" / "environment"],
            env={"PATH": path, "HOME": str(self.top), **environ},
            capture_output=True,
            text=True,
            timeout=60,
        )

    def refuses(self, **environ: str) -> str:
        "Run the script and return the one line that it refuses with."
        done = self.make(**environ)
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
    assert machine.calls.read_text().count("venv --clear") == 1
    assert machine.make().stdout == ""


def test_another_interpreter_or_folder_makes_a_new_one(machine: Machine, tmp_path: Path) -> None:
    machine.make()
    machine.replace_in_python("echo 3.12 ", "echo 3.13 ")
    machine.make()
    assert machine.calls.read_text().count("venv --clear") == 2
    machine.top = machine.top.rename(tmp_path / "moved")
    machine.make()
    assert machine.calls.read_text().count("venv --clear") == 3


def test_an_interrupted_installation_is_continued(machine: Machine) -> None:
    machine.replace_in_python(
        "esac", '"pip sync"*) echo "error: connection reset by peer" >&2; exit 2 ;;\nesac'
    )
    assert machine.refuses() == (
        "installing the locked packages failed: error: connection reset by peer"
    )
    for path in (machine.python, machine.top / ".venv" / "bin" / "uv"):
        script(path, GOOD_PYTHON.format(calls=machine.calls))
    assert machine.make().returncode == 0
    assert machine.calls.read_text().count("venv --clear") == 1


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
