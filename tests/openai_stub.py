"""A scriptable OpenAI-compatible server on a loopback socket, for tests of the real client.

It answers `POST /v1/embeddings` and `POST /v1/chat/completions` (plain and streaming) from a
thread on 127.0.0.1 and a free port. Nothing is patched: the real `openai` client talks to it.

Start it and point a client at it:

    with OpenAIStub() as stub:
        client = AsyncOpenAI(base_url=stub.base_url, api_key="test", max_retries=0)

Without a script every request succeeds: chat answers `stub.default.tokens`, embeddings answer a
unit vector that depends only on the text, `stub.dim` wide (or `dimensions` of the request);
`OpenAIStub(vector=...)` gives texts that mean the same vectors that are alike.

Script what comes next. Each request takes one `Reply` from the front; when the queue is empty,
`stub.default` answers. Replace `stub.default` to make a fault last:

    stub.script(Reply(status=429, headers={"Retry-After": "1"}), Reply(tokens=["Hello ", "[1]"]))
    stub.default = Reply(status=503)

Faults, each a field of `Reply` and free to combine:

    Reply(status=500)                          an error status with an OpenAI error body
    Reply(delay_seconds=3)                     slow to the first byte
    Reply(tokens=[...], token_delay_seconds=1) slow between streamed pieces
    Reply(hang=True)                           accepts the request and never answers
    Reply(drop=True)                           closes the connection without an answer
    Reply(tokens=[...], cut_after=2)           breaks the stream after 2 pieces, no final chunk
    Reply(tokens=[...], done=False)            ends the stream cleanly without finish or [DONE]
    Reply(tokens=[...], error_after=2)         sends an error event inside the stream
    Reply(body=b"{not json")                   a malformed body (a raw stream when streaming)
    Reply(finish_reason="length")              any finish reason
    Reply(dim=7)                               embeddings of the wrong dimension
    Reply(value=float("nan"))                  embeddings filled with this number (nan, inf, 0.0)
    Reply(count=-1)                            one embedding too few (+1: one too many)
    Reply(reverse=True)                        embeddings in reverse order, each with its index

A reply may depend on the request. Give a function of the parsed JSON body:

    stub.answer = lambda body: Reply(tokens=[body["messages"][-1]["content"]])

Look afterwards at what arrived: `stub.requests` holds a `Seen(path, headers, body, at)` for each
request in order (`at` is `time.monotonic()`), `stub.n_calls` counts them.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import socket
import struct
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self


@dataclass(frozen=True, slots=True)
class Reply:
    "What one request is answered with."

    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    delay_seconds: float = 0.0  # before the status line
    hang: bool = False  # no answer until the stub closes
    drop: bool = False  # connection closed without an answer
    body: bytes | None = None  # sent as it is, in place of a well-formed one
    # chat
    tokens: Sequence[str] = ("The stub ", "says hello ", "[1].")
    token_delay_seconds: float = 0.0
    cut_after: int | None = None  # pieces sent before the connection breaks
    error_after: int | None = None  # pieces sent before an error event
    done: bool = True  # a streamed answer ends with a finish reason and [DONE]
    finish_reason: str = "stop"
    # embeddings
    dim: int | None = None  # None: `dimensions` of the request, else the stub's
    value: float | None = None  # every coordinate; None: depends on the text
    count: int = 0  # embeddings more (or fewer) than texts
    reverse: bool = False


@dataclass(frozen=True, slots=True)
class Seen:
    "A request that arrived."

    path: str
    headers: dict[str, str]  # names in lower case
    body: Any  # parsed JSON
    at: float  # time.monotonic() of arrival


def vector_of(text: str, dim: int) -> list[float]:
    "Return a unit vector that depends only on `text`."
    values: list[float] = []
    for block in range(-(-dim // 8)):
        digest = hashlib.sha256(f"{block}\n{text}".encode()).digest()
        values += [n / 2**32 - 0.5 for n in struct.unpack("<8I", digest)]
    norm = sum(v * v for v in values[:dim]) ** 0.5
    return [v / norm for v in values[:dim]]


class OpenAIStub:
    "The server. Use it as a context manager, or call `start` and `close`."

    def __init__(
        self,
        *,
        dim: int = 1536,
        vector: Callable[[str, int], list[float]] = vector_of,  # a text and `dim` → its embedding
    ) -> None:
        self.dim, self.vector = dim, vector
        self.default = Reply()
        self.answer: Callable[[Any], Reply] | None = None
        self.requests: list[Seen] = []
        self._queue: deque[Reply] = deque()
        self._closing = threading.Event()
        self._lock = threading.Lock()
        self._server = _Server(("127.0.0.1", 0), _Handler)
        self._server.stub = self
        self._thread = threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True
        )

    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}/v1"

    @property
    def n_calls(self) -> int:
        return len(self.requests)

    def script(self, *replies: Reply) -> None:
        "Queue replies for the next requests, one each."
        with self._lock:
            self._queue.extend(replies)

    def reset(self) -> None:
        "Forget the script, the faults and what arrived."
        with self._lock:
            self._queue.clear()
            self.requests.clear()
        self.default, self.answer = Reply(), None

    def start(self) -> Self:
        self._thread.start()
        return self

    def close(self) -> None:
        self._closing.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(timeout=5)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.close()

    def _next(self, seen: Seen) -> Reply:
        with self._lock:
            self.requests.append(seen)
            if self._queue:
                return self._queue.popleft()
        return self.answer(seen.body) if self.answer is not None else self.default


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128
    stub: OpenAIStub

    def handle_error(self, request: Any, client_address: Any) -> None:
        "Stay silent: clients that hang up are part of the tests."


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def log_message(self, format: str, *args: Any) -> None: ...

    def do_GET(self) -> None:
        self._send(200, json.dumps({"object": "list", "data": []}).encode(), {})

    def do_POST(self) -> None:
        raw = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        body = json.loads(raw or b"{}")
        headers = {k.lower(): v for k, v in self.headers.items()}
        stub = self.server.stub
        reply = stub._next(Seen(self.path, headers, body, time.monotonic()))
        if self._stalled(reply):
            return
        if reply.status >= 400:
            error = {"message": f"scripted {reply.status}", "type": "stub", "code": None}
            default = json.dumps({"error": error}).encode()
            self._send(
                reply.status, reply.body if reply.body is not None else default, reply.headers
            )
        elif self.path.endswith("/chat/completions") and body.get("stream"):
            self._stream(reply, body)
        elif self.path.endswith("/chat/completions"):
            self._send(200, reply.body or _chat(reply, body), reply.headers)
        elif self.path.endswith("/embeddings"):
            self._send(200, reply.body or _embeddings(reply, body, stub), reply.headers)
        else:
            self._send(404, b'{"error": {"message": "no such path"}}', {})

    def _stalled(self, reply: Reply) -> bool:
        closing = self.server.stub._closing
        if reply.hang:
            closing.wait()
        elif reply.delay_seconds:
            closing.wait(reply.delay_seconds)
        if reply.hang or reply.drop:
            self._break()
            return True
        return False

    def _break(self) -> None:
        self.close_connection = True
        with contextlib.suppress(OSError):
            self.connection.shutdown(socket.SHUT_RDWR)

    def _send(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", **headers}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _write(self, data: bytes) -> None:
        self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))
        self.wfile.flush()

    def _stream(self, reply: Reply, body: Any) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        for name, value in reply.headers.items():
            self.send_header(name, value)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        if reply.body is not None:
            self._write(reply.body)
            self.wfile.write(b"0\r\n\r\n")
            return
        self._write(_event(body, {"role": "assistant", "content": ""}))
        for n, token in enumerate(reply.tokens):
            if reply.cut_after == n:
                return self._break()
            if reply.error_after == n:
                error = {"error": {"message": "scripted error in the stream", "type": "stub"}}
                self._write(b"data: " + json.dumps(error).encode() + b"\n\n")
                self.wfile.write(b"0\r\n\r\n")
                return
            if self.server.stub._closing.wait(reply.token_delay_seconds):
                return self._break()
            self._write(_event(body, {"content": token}))
        if reply.cut_after is not None:
            return self._break()
        if reply.done:
            self._write(_event(body, {}, finish=reply.finish_reason))
            if (body.get("stream_options") or {}).get("include_usage"):
                self._write(_event(body, None, usage=_usage(reply)))
            self._write(b"data: [DONE]\n\n")
        self.wfile.write(b"0\r\n\r\n")


def _usage(reply: Reply) -> dict[str, int]:
    n = len(reply.tokens)
    return {"prompt_tokens": 10, "completion_tokens": n, "total_tokens": 10 + n}


def _event(
    body: Any,
    delta: dict[str, str] | None,
    *,
    finish: str | None = None,
    usage: dict[str, int] | None = None,
) -> bytes:
    choices = [] if delta is None else [{"index": 0, "delta": delta, "finish_reason": finish}]
    data = {
        "id": "chatcmpl-stub",
        "object": "chat.completion.chunk",
        "created": 0,
        "model": body.get("model"),
        "choices": choices,
        "usage": usage,
    }
    return b"data: " + json.dumps(data).encode() + b"\n\n"


def _chat(reply: Reply, body: Any) -> bytes:
    message = {"role": "assistant", "content": "".join(reply.tokens)}
    choice = {"index": 0, "message": message, "finish_reason": reply.finish_reason}
    data = {
        "id": "chatcmpl-stub",
        "object": "chat.completion",
        "created": 0,
        "model": body.get("model"),
        "choices": [choice],
        "usage": _usage(reply),
    }
    return json.dumps(data).encode()


def _embeddings(reply: Reply, body: Any, stub: OpenAIStub) -> bytes:
    texts = [body["input"]] if isinstance(body["input"], str) else list(body["input"])
    dim = reply.dim or body.get("dimensions") or stub.dim
    texts += ["extra"] * max(0, reply.count)
    texts = texts[: len(texts) + min(0, reply.count)]
    data = []
    for index, text in enumerate(texts):
        vector = stub.vector(str(text), dim) if reply.value is None else [reply.value] * dim
        packed: Any = vector
        if body.get("encoding_format") == "base64":
            packed = base64.b64encode(struct.pack(f"<{dim}f", *vector)).decode()
        data.append({"object": "embedding", "index": index, "embedding": packed})
    if reply.reverse:
        data.reverse()
    usage = {"prompt_tokens": len(texts), "total_tokens": len(texts)}
    answer = {"object": "list", "model": body.get("model"), "data": data, "usage": usage}
    return json.dumps(answer).encode()
