"""The wheel carries all it needs: built, installed and used outside the checkout."""

import json
import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python of an environment that has the wheel and, by a path file, the locked packages."""
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder, ROOT]
    subprocess.run(build, check=True, capture_output=True, timeout=300)
    (wheel,) = folder.glob("*.whl")
    subprocess.run([sys.executable, "-m", "venv", folder / "env"], check=True, timeout=300)
    python = folder / "env/bin/python"
    install = [python, "-m", "pip", "install", "-q", "--no-deps", "--no-index", wheel]
    subprocess.run(install, check=True, timeout=300)
    tag = f"python{sys.version_info.major}.{sys.version_info.minor}"
    (folder / f"env/lib/{tag}/site-packages/locked.pth").write_text(sysconfig.get_path("purelib"))
    return python


def run(python: Path, code: str) -> str:
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("SUPPORT_RAG_", "PYTHON"))}
    done = subprocess.run(
        [python, "-c", code], cwd="/", env=clean, check=False, capture_output=True, text=True,
        timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def test_the_wheel_is_what_runs(installed: Path) -> None:
    where = run(installed, "import support_rag; print(support_rag.__file__)").strip()
    assert Path(where).is_relative_to(installed.parent.parent), where


def test_settings_sample_data_and_migrations_are_inside(installed: Path) -> None:
    code = (
        "import json; from support_rag.release import load_release, resource;"
        "from support_rag.evaluation.labels import load_labels; import support_rag, pathlib;"
        "labels = load_labels(resource('data/help_centre'));"
        "package = pathlib.Path(support_rag.__file__).parent;"
        "print(json.dumps([load_release().id, len(labels.questions),"
        " len(list((package / 'migrations/versions').glob('*.py'))),"
        " len(list((package / 'static').rglob('*.js')))]))"
    )
    release_id, questions, migrations, scripts = json.loads(run(installed, code))
    here = subprocess.run(
        [sys.executable, "-c", "from support_rag.release import load_release as r; print(r().id)"],
        check=True, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert release_id == here.stdout.strip(), "the wheel is another release than the checkout"
    assert questions >= 300 and migrations >= 1 and scripts >= 1


ANSWER = """
import asyncio
from support_rag.chunk import chunk
from support_rag.embed import load_embedder
from support_rag.generate import load_generator
from support_rag.parse import parse
from support_rag.pipeline import Pipeline
from support_rag.release import load_release
from support_rag.retrieve import InMemoryIndex

async def main():
    release = load_release()
    embedder = load_embedder(release.parameters.embed)
    text = b"# Kiosk\\n\\nThe kiosk keeps punches for 72 hours while it is offline."
    document = parse(text, content_type="text/markdown", title="Kiosk", document_id="kiosk")
    chunks = chunk(document, release.parameters.chunk)
    vectors = (await embedder.embed([c.embedded_text for c in chunks])).vectors
    generator = load_generator(release.parameters.generate)
    pipeline = Pipeline(release, embedder, InMemoryIndex(chunks, vectors), generator)
    print((await pipeline.answer("How long does the kiosk keep punches offline?")).text)

asyncio.run(main())
"""


def test_a_question_is_answered_from_the_wheel(installed: Path) -> None:
    assert "72 hours" in run(installed, ANSWER)
