"""The hooks of a commit: of the locked environment, and finding what must not be shared."""

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parent.parent
SCRIPT = ROOT / ".ci" / "forbidden.py"
HOOKS = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]


def test_no_hook_is_fetched_and_each_runs_from_the_environment() -> None:
    assert [repo["repo"] for repo in HOOKS] == ["local"]
    for hook in HOOKS[0]["hooks"]:
        assert hook["language"] == "system", hook["id"]
        program = next(word for word in hook["entry"].split() if word.startswith(".venv/bin/"))
        assert (Path(sys.executable).parent / Path(program).name).exists(), hook["id"]
        scripts = [word for word in hook["entry"].split() if word.startswith(".ci/")]
        assert all((ROOT / script).exists() for script in scripts), hook["id"]


def finds(path: Path, text: str) -> list[str]:
    "Write a file and return what is found in it."
    path.write_text(text)
    done = subprocess.run(
        [sys.executable, SCRIPT, path], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == bool(done.stderr)
    return done.stderr.splitlines()


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("-----BEGIN RSA PRIVATE KEY" + "-----\nMII", "a private key"),
        ('KEY = "sk-' + "a1" * 20 + '"', "an API key"),
        ("Bearer ey" + "J" * 30 + ".ey" + "Jzdwi" * 8 + "." + "x" * 30, "an access token"),
        ("postgresql://app:" + "s3cret" * 5 + "@db/x", "a password in an address"),
        ("open('/" + "home/ada1/notes')", "a path of one machine"),
        ("x = 1\n" + "<" * 7 + " HEAD", "the mark of a conflict"),
    ],
    ids=["key", "api key", "token", "address", "path", "conflict"],
)  # fmt: skip
def test_what_must_not_be_committed_is_named_by_file_and_line(
    tmp_path: Path, text: str, kind: str
) -> None:
    path = tmp_path / "some file.py"
    (found,) = finds(path, f"# first\n{text}\n")
    line = 3 if kind.endswith("conflict") else 2
    assert found.startswith(f"{path}:{line}: {kind} (")
    assert len(found) < len(str(path)) + 60, "the secret itself is not repeated"


def test_what_is_common_is_not_found(tmp_path: Path) -> None:
    text = (
        "postgresql://user:password@localhost/x\nskip-this-word-which-is-long-enough-for-a-key\n"
        "see /homepage/root.html and ./home/x\n<<<<<<<<<<\n=======\n"
    )
    assert finds(tmp_path / "a.md", text) == []


def test_nothing_tracked_is_forbidden() -> None:
    done = subprocess.run(
        [sys.executable, SCRIPT], cwd=ROOT, capture_output=True, text=True, timeout=300
    )
    assert (done.returncode, done.stderr) == (0, "")
