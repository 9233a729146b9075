"""`support-rag up`, for real: it answers, what is killed returns, nothing is lost or left."""

import json
import os
import pwd
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from support_rag.local.demo import (
    LOADED_FILE,
    Api,
    Form,
    fingerprint,
    list_documents,
    sample_documents,
    sign_in,
)
from support_rag.local.supervisor import running
from support_rag.local.wheels import secret
from support_rag.state.settings import load_settings
from support_rag.types import Unavailable

CLI = (sys.executable, "-m", "support_rag.cli.main")
PATIENCE_SECONDS = 240.0  # for a busy machine; every wait ends when what it waits for happens


def until(ask: Callable[[], Any], *, what: str, seconds: float = PATIENCE_SECONDS) -> Any:
    "Ask until the answer is true, and return it."
    deadline = time.monotonic() + seconds
    while not (answer := ask()):
        assert time.monotonic() < deadline, f"waited {seconds:.0f} s for {what}"
        time.sleep(0.05)
    return answer


def environ(home: Path, **settings: str) -> dict[str, str]:
    "Return an environment without the settings of the caller."
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("SUPPORT_RAG_", "OPENAI_"))}
    values = {"home": str(home), "port": "0", **settings}
    return kept | {f"SUPPORT_RAG_{name.upper()}": value for name, value in values.items()}


def run(home: Path, *command: str, prefix: tuple[str, ...] = (), **settings: str) -> Any:
    "Run one command to its end."
    return subprocess.run(
        (*prefix, *CLI, *command),
        env=environ(home, **settings),
        capture_output=True,
        text=True,
        timeout=PATIENCE_SECONDS,
    )


class Up:
    "A running `support-rag up` with what it printed."

    def __init__(self, home: Path, *prefix: str) -> None:
        self.home, self.lines = home, list[str]()
        self.popen = subprocess.Popen(
            (*prefix, *CLI, "up"),
            env=environ(home),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        self.process = psutil.Process(self.popen.pid)
        self.reader = threading.Thread(target=self.read, daemon=True)
        self.reader.start()

    def read(self) -> None:
        assert self.popen.stdout is not None
        self.lines.extend(line.rstrip("\n") for line in self.popen.stdout)

    @property
    def text(self) -> str:
        return "\n".join(self.lines)

    def wait_ready(self) -> None:
        until(lambda: "Ready after" in self.text or self.popen.poll() is not None, what="an answer")
        assert self.popen.poll() is None, self.text

    def api(self) -> Api:
        "Return the API, signed in as the demo tenant."
        facts = running(self.home)
        assert facts is not None
        return sign_in(Api(facts["addresses"]["API"]), password=secret(self.home, "demo"))

    def everything(self) -> list[psutil.Process]:
        "Return this process and all it has started, directly or not."
        return [self.process, *self.process.children(recursive=True)]

    def child(self, *words: str) -> psutil.Process | None:
        "Return the direct child whose command holds all the words; None when it is not there."
        for child in self.process.children():
            try:
                line = " ".join((child.name(), *child.cmdline()))
            except psutil.NoSuchProcess:
                continue
            if all(word in line for word in words):
                return child
        return None

    def end(self, number: int) -> int:
        "Send a signal and return the exit code."
        self.popen.send_signal(number)
        code = self.popen.wait(timeout=300)
        self.reader.join(timeout=10)
        return code


CHILDREN = {
    "postgres": ("postgres", "-D"),
    "valkey": ("valkey-server",),
    "api": ("support_rag.cli.main", "serve"),
    "worker": ("support_rag.cli.main", "worker"),
    "jupyter": ("jupyterlab",),
}


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Path]:
    home = tmp_path / "home"
    yield home
    run(home, "reset", "--yes")


def document(api: Api, document_id: str) -> dict[str, Any]:
    return dict(api.call("GET", f"/api/v1/documents/{document_id}"))


def lab(up: Up, path: str, body: bytes | None = None) -> bytes:
    "Call JupyterLab with its token."
    facts = running(up.home)
    assert facts is not None
    base = facts["addresses"]["JupyterLab"].partition("/lab")[0]
    headers = {"authorization": f"token {secret(up.home, 'jupyter')}"}
    request = urllib.request.Request(f"{base}/api/{path}", body, headers)
    with urllib.request.urlopen(request, timeout=300) as answer:
        return bytes(answer.read())


def lab_answers(up: Up) -> bool:
    try:
        return bool(lab(up, "status"))
    except OSError:
        return False


def large_document() -> bytes:
    "Return a text that takes seconds to embed, with one sentence that no article has."
    paragraphs = [
        f"## Terminal {n}\n\nTerminal {n} reports its punches every {n % 50 + 1} minutes, keeps "
        f"them for {n % 9 + 3} days without a network, and shows code QX-{n} when it cannot. "
        f"Restart it, wait {n % 7 + 2} minutes, and ask the site manager for the reset card.\n"
        for n in range(500)
    ]
    paragraphs.insert(250, "## Zanzibar\n\nThe Zanzibar terminal is painted ultramarine.\n")
    return b"# Terminals\n\n" + "\n".join(paragraphs).encode()


def check_output(up: Up) -> None:
    "Check what a person reads, and paste what they are told to paste."
    printed = up.text
    assert re.search(r"^Answer      .*72 hours.*\[\d\]", printed, re.M | re.S), printed
    assert "time-clock/kiosk-offline.md" in printed
    assert re.search(r"^Decision    answer \(\w+\), confidence 0\.\d\d, release [0-9a-f]{16}$",
                     printed, re.M)  # fmt: skip
    command = printed.partition("Try it:\n")[2].partition("\n\n")[0]
    pasted = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=300)
    assert '"hits":[{"chunk_id"' in pasted.stdout, pasted.stdout + pasted.stderr
    link = re.search(r"^JupyterLab  (http\S+)", printed, re.M)
    assert link is not None
    with urllib.request.urlopen(link[1], timeout=300) as page:
        assert page.status == 200 and b"JupyterLab" in page.read()


def check_restarts(up: Up) -> None:
    "Kill every child in turn and see it back at work."
    for name, words in CHILDREN.items():
        before = up.child(*words)
        assert before is not None, name
        before.kill()
        back = until(
            lambda words=words, before=before: (c := up.child(*words)) and c != before and c,
            what=f"{name} to come back",
        )
        assert back.pid != before.pid
    api = up.api()
    until(lambda: api.call("GET", "/health")["status"] == "ok", what="health")
    until(lambda: lab_answers(up), what="JupyterLab")
    made = api.call("POST", "/api/v1/documents/ingest", Form("after.md", b"# After the kill", {}))
    until(lambda: document(api, made["id"])["status"] == "ready", what="the worker")


@pytest.mark.timeout(1200)  # 90 s of work for the processors, on a busy machine
def test_up_answers_and_nothing_that_is_killed_is_lost(home: Path) -> None:
    up = Up(home)
    up.wait_ready()
    check_output(up)
    check_restarts(up)
    found = run(home, "search", "kiosk offline", "--json")
    assert found.returncode == 0 and json.loads(found.stdout)["hits"], found.stderr
    api = up.api()
    n_documents = len(list_documents(api))
    assert n_documents == len(sample_documents()) + 1
    assert {item["status"] for item in list_documents(api)} == {"ready"}

    token = load_settings(home=home).metrics_token.get_secret_value()
    asked = urllib.request.Request(
        f"{api.url}/metrics", headers={"Authorization": f"Bearer {token}"}
    )
    with urllib.request.urlopen(asked, timeout=300) as metrics:
        counted = re.search(rb'ingest_outcomes_total\{outcome="ready"\} (\d+)', metrics.read())
    assert counted is not None and int(counted[1]) > n_documents - 5, "workers count, too"
    checked = run(home, "doctor")
    assert checked.returncode == 0, checked.stdout

    refused = run(home, "up")
    assert refused.returncode == 1
    assert refused.stderr.startswith(f"support-rag: already running as process {up.popen.pid} (API")

    lab(up, "kernels", b'{"name": "python3"}')
    sent = api.call("POST", "/api/v1/documents/ingest", Form("terminals.md", large_document(), {}))
    until(lambda: document(api, sent["id"])["status"] == "embedding", what="the embedder")
    everything = up.everything()
    assert up.end(signal.SIGKILL) == -signal.SIGKILL
    _, left = psutil.wait_procs(everything, timeout=120)
    assert not left, f"orphans: {[p.cmdline() for p in left]}"

    again = Up(home)
    again.wait_ready()
    assert "Sending" not in again.text, "the sample is there already"
    api = again.api()
    until(lambda: document(api, sent["id"])["status"] == "ready", what="the document in flight")
    assert len(list_documents(api)) == n_documents + 1
    found = api.call("POST", "/api/v1/search", {"query": "Zanzibar ultramarine", "k": 1})
    assert "ultramarine" in found["hits"][0]["text"]

    everything = again.everything()
    assert run(home, "down").stdout == "stopped\n"
    assert again.popen.wait(timeout=300) == 0
    _, left = psutil.wait_procs(everything, timeout=120)
    assert not left, f"orphans: {[p.cmdline() for p in left]}"
    assert again.lines[-1] == "Stopped; everything is kept."
    assert run(home, "down").stdout == "nothing is running\n"
    checked = run(home, "doctor")
    assert checked.returncode == 1 and checked.stdout.count("✗") == 2, checked.stdout
    run(home, "reset", "--yes")
    kept = {path.name for path in home.iterdir()}
    assert kept <= {"logs", "served", "up.lock"}, kept  # which releases served, too


def ordinary_user() -> tuple[str, ...]:
    """Return what makes a command run as an ordinary user.

    Root's interpreter is often closed to every other account, so root becomes ordinary in a user
    namespace: the id is another one and the rights of root are gone, but the files stay readable.
    """
    if os.geteuid() != 0:
        return ()
    uid = next(entry.pw_uid for entry in pwd.getpwall() if 0 < entry.pw_uid < 65534)
    prefix = ("unshare", "--user", f"--map-user={uid}", f"--map-group={uid}")
    done = subprocess.run((*prefix, "id", "-u"), capture_output=True, text=True)
    return prefix if done.stdout == f"{uid}\n" else ()


def test_up_as_an_ordinary_user(home: Path) -> None:
    home.mkdir()
    (home / LOADED_FILE).write_text(fingerprint(sample_documents()))  # the other test loads it
    prefix = ordinary_user()
    up = Up(home, *prefix)
    up.wait_ready()
    everything = up.everything()
    assert {child.username() for child in everything} == {up.process.username()}
    for words in CHILDREN.values():
        assert up.child(*words) is not None, words
    assert up.end(signal.SIGINT) == 0
    _, left = psutil.wait_procs(everything, timeout=120)
    assert not left, f"orphans: {[p.cmdline() for p in left]}"
    assert run(home, "reset", "--yes", prefix=prefix).returncode == 0


def one_line(done: Any, pattern: str) -> None:
    assert done.returncode == 1
    assert re.fullmatch(rf"support-rag: {pattern}\n", done.stderr), done.stderr
    assert "Traceback" not in done.stdout


def test_a_port_in_use_is_one_line(home: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as busy:
        port = str(busy.getsockname()[1])
        one_line(
            run(home, "up", port=port),
            rf"port {port} is in use by another program: stop that, or set SUPPORT_RAG_PORT .*",
        )


def test_a_read_only_folder_is_one_line() -> None:
    folder = Path("/sys/support-rag")  # nobody may write there, not even root
    one_line(run(folder, "up"), rf"{folder} cannot be written to: set SUPPORT_RAG_HOME .*")


def test_a_full_disk_is_one_line(tmp_path: Path) -> None:
    line = rf"the disk that holds {tmp_path} is full: \d+ MB are free and \d+ MB are needed; .*"
    mount = f'mount -t tmpfs -o size=20m tmpfs {tmp_path} && exec "$@"'
    own_disk = ("unshare", "--user", "--map-root-user", "--mount", "sh", "-c", mount, "sh")
    if subprocess.run((*own_disk, "true"), capture_output=True).returncode == 0:
        one_line(run(tmp_path, "up", prefix=own_disk), line)
    else:  # no namespaces here: the check itself, on a disk that never has so much
        from support_rag.local.workbench import check_disk

        with pytest.raises(Unavailable, match=r"is full: \d+ MB are free and \d+ MB are needed"):
            check_disk(tmp_path, needed_mb=10**12)
