"""A collector gets the spans of a request and of its reply, and no word of either."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from support_rag.local.processes import spawn
from support_rag.local.servers import Running
from support_rag.local.wheels import free_port
from tests.local.test_up import until
from tests.openai_stub import OpenAIStub, Reply
from tests.serving import signed_in

CLI = ("-m", "support_rag.cli.main")
CANARY = "Zanzibar"
TRACE = "0af7651916cd43dd8448eb211c80319c"


class Collector:
    "A collector that keeps what it is sent."

    def __init__(self) -> None:
        self.spans: list[Any] = []
        self.received: list[bytes] = []
        keep = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                keep.received.append(body)
                for one in ExportTraceServiceRequest.FromString(body).resource_spans:
                    for scope in one.scope_spans:
                        keep.spans += scope.spans
                self.send_response(200)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_: object) -> None:
                "Say nothing."

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    @contextmanager
    def listening(self) -> Iterator[Collector]:
        thread = threading.Thread(target=self.server.serve_forever, daemon=True)
        thread.start()
        try:
            yield self
        finally:
            self.server.shutdown()

    def of_trace(self, trace_id: str) -> dict[str, Any]:
        "Return the spans of a trace by name."
        return {s.name: s for s in self.spans if s.trace_id.hex() == trace_id}


@contextmanager
def api(servers: Running, log: Path, **settings: str) -> Iterator[str]:
    "Run the API as a process of its own; yield the address."
    port = free_port()
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("SUPPORT_RAG_", "OPENAI_"))}
    told = {"database_url": servers.app_url, "redis_url": servers.redis_url, "port": str(port)}
    told |= {"home": str(log.parent / "home"), **settings}
    environ = kept | {f"SUPPORT_RAG_{name.upper()}": value for name, value in told.items()}
    with log.open("wb") as output:
        child = spawn((sys.executable, *CLI, "serve"), output=output.fileno(), environ=environ)
        try:
            until(lambda: '"listening"' in log.read_text() or child.poll() is not None, what="API")
            yield f"http://127.0.0.1:{port}"
        finally:
            child.terminate()
            child.wait(300)


def attributes(span: Any) -> dict[str, Any]:
    "Return the attributes of a span."
    return {a.key: getattr(a.value, a.value.WhichOneof("value")) for a in span.attributes}


def test_a_reply_is_a_part_of_its_caller_s_trace(servers: Running, tmp_path: Path) -> None:
    question = f"How do I get to {CANARY}?"
    with OpenAIStub() as stub, Collector().listening() as collector:
        stub.default = Reply(tokens=[f"By boat to {CANARY} [1]."])
        log = tmp_path / "api.log"
        given = {"otlp_url": collector.url, "llm_base_url": stub.base_url}
        with api(servers, log, **given) as url, signed_in(url) as account:
            account.client.headers["traceparent"] = f"00-{TRACE}-b7ad6b7169203331-01"
            asked = account.ask(account.open(), question)
            assert asked.status_code == 200, asked.text
        spans = collector.of_trace(TRACE)  # the process has ended, so it sent what waited
    request = spans["POST /api/v1/conversations/{conversation_id}/messages"]
    told = attributes(request)
    assert told["http.response.status_code"] == 200 and told["http.request.method"] == "POST"
    reply = spans["invoke_workflow reply"]
    assert attributes(reply)["support_rag.message.id"] == asked.json()["id"]
    assert attributes(reply)["support_rag.decision"] == asked.json()["decision"]
    steps = [span for span in spans.values() if span.parent_span_id == reply.span_id]
    assert {"embeddings", "retrieval"} <= {span.name for span in steps}
    total = sum(span.end_time_unix_nano - span.start_time_unix_nano for span in steps)
    assert total == reply.end_time_unix_nano - reply.start_time_unix_nano
    assert CANARY.encode() not in b"".join(collector.received)


def test_a_collector_that_is_away_costs_no_reply(servers: Running, tmp_path: Path) -> None:
    away = f"http://127.0.0.1:{free_port()}"
    with api(servers, tmp_path / "api.log", otlp_url=away) as url, signed_in(url) as account:
        assert account.ask(account.open(), "Is anybody there?").status_code == 200


def test_a_trace_that_is_none_is_no_fault(servers: Running, tmp_path: Path) -> None:
    none = ("", "00-xyz", f"99-{'0' * 32}-{'0' * 16}-00")
    with Collector().listening() as collector:
        log = tmp_path / "api.log"
        with api(servers, log, otlp_url=collector.url) as url, signed_in(url) as account:
            for header in none:
                account.client.headers["traceparent"] = header
                assert account.client.get("/api/v1/me").status_code == 200, header
        asked = [span for span in collector.spans if span.name == "GET /api/v1/me"]
        traces = {span.trace_id for span in asked}
        assert len(traces) == len(asked) >= len(none), "each begins a trace"
