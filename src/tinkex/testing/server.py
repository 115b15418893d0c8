"""A scripted HTTP peer on a real loopback socket.

Owns the socket and the record of what was asked; what it answers is the test's script. A request
that no step of the script expects gets a 404 and is remembered: leaving the context fails on it,
so a client that calls the wrong path cannot pass.
"""

from __future__ import annotations

import json
import threading
from collections import deque
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any, Self
from urllib.parse import parse_qs, urlsplit

if TYPE_CHECKING:
    from collections.abc import Mapping
    from types import TracebackType


@dataclass(frozen=True, slots=True)
class PeerRequest:
    """One request as it arrived."""

    method: str
    path: str
    query: Mapping[str, list[str]]
    headers: Mapping[str, str]
    """Names in lower case."""
    body: bytes
    connection: int
    """Number of the TCP connection it came over, from 0."""

    def json(self) -> Any:
        """Decode the body."""
        return json.loads(self.body)


@dataclass(frozen=True, slots=True)
class PeerResponse:
    """One answer; `drop` closes the connection instead of answering."""

    status: int = 200
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)
    content_type: str = "application/json"
    drop: bool = False
    gate: threading.Event | None = None
    """Held back until it is set."""

    @classmethod
    def of_json(cls, value: Any, status: int = 200, **headers: str) -> PeerResponse:
        """Answer with JSON; `retry_after="1"` becomes the header `retry-after`."""
        named = {name.replace("_", "-"): text for name, text in headers.items()}
        return cls(status, json.dumps(value).encode(), named)


Answer = "PeerResponse | Callable[[PeerRequest], PeerResponse]"


@dataclass(slots=True)
class _Step:
    method: str
    path: str
    answer: Any
    times: int | None


class ScriptedServer:
    """An HTTP/1.1 server that plays a script, in threads of its own.

    Use `expect` for answers that are used up in order, `always` for the rest. Entering starts it,
    leaving stops it and raises `AssertionError` for requests nobody expected and, unless the test
    failed anyway, for answers nobody fetched.
    """

    def __init__(self) -> None:
        self.requests: list[PeerRequest] = []
        self.unexpected: list[PeerRequest] = []
        self._steps: deque[_Step] = deque()
        self._lock = threading.Lock()
        self._arrived = threading.Condition(self._lock)
        self._connections = 0
        self._closing = threading.Event()
        self._server = _Server(("127.0.0.1", 0), _handler(self))
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(0.01,), name="scripted-server", daemon=True
        )

    @property
    def url(self) -> str:
        """Base URL of the peer."""
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def expect(self, path: str, *answers: Any, method: str = "POST") -> None:
        """Answer the next requests to `path` with `answers`, one each, in order."""
        with self._lock:
            self._steps.extend(_Step(method, path, answer, 1) for answer in answers)

    def always(self, path: str, answer: Any, method: str = "POST") -> None:
        """Answer every request to `path` that no `expect` covers."""
        with self._lock:
            self._steps.append(_Step(method, path, answer, None))

    def requests_to(self, path: str) -> list[PeerRequest]:
        """Return the requests to one path, in order of arrival."""
        with self._lock:
            return [request for request in self.requests if request.path == path]

    def wait_for(self, path: str, count: int = 1, timeout: float = 10.0) -> list[PeerRequest]:
        """Block until `count` requests to `path` have arrived.

        Raises:
            AssertionError: they have not after `timeout` seconds.
        """

        def arrived() -> bool:
            return sum(request.path == path for request in self.requests) >= count

        with self._arrived:
            if not self._arrived.wait_for(arrived, timeout):
                raise AssertionError(f"fewer than {count} requests to {path} in {timeout:g} s")
        return self.requests_to(path)

    def __enter__(self) -> Self:
        """Start to serve."""
        self.start()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Stop, and check that script and requests agree."""
        self.stop()
        if exc is None:
            unexpected = [f"{request.method} {request.path}" for request in self.unexpected]
            assert not unexpected, f"requests nobody expected: {unexpected}"
            unused = [step.path for step in self._steps if step.times is not None]
            assert not unused, f"answers nobody fetched: {unused}"

    def start(self) -> None:
        """Serve, until `stop`."""
        self._thread.start()

    def stop(self) -> None:
        """Stop to serve, whatever the script still holds."""
        self._closing.set()
        self._server.shutdown()
        self._server.close_connections()
        self._server.server_close()
        self._thread.join()

    def answer(self, request: PeerRequest) -> PeerResponse:
        """Record a request and choose its answer."""
        with self._arrived:
            self.requests.append(request)
            step = self._take_step(request)
            if step is None:
                self.unexpected.append(request)
            self._arrived.notify_all()
        if step is None:
            return PeerResponse.of_json({"detail": "not in the script"}, 404)
        response: PeerResponse = step.answer(request) if callable(step.answer) else step.answer
        while response.gate is not None and not response.gate.wait(0.01):
            if self._closing.is_set():
                return PeerResponse(drop=True)
        return response

    def next_connection(self) -> int:
        """Number a new TCP connection."""
        with self._lock:
            self._connections += 1
            return self._connections - 1

    def _take_step(self, request: PeerRequest) -> _Step | None:
        fallback = None
        for step in self._steps:
            if (step.method, step.path) == (request.method, request.path):
                if step.times is not None:
                    self._steps.remove(step)
                    return step
                fallback = fallback or step
        return fallback


class _Server(ThreadingHTTPServer):
    """Knows its open connections, so that closing does not wait for idle ones."""

    daemon_threads = True
    request_queue_size = 256

    def __init__(self, address: tuple[str, int], handler: type[BaseHTTPRequestHandler]) -> None:
        super().__init__(address, handler)
        self._sockets: set[Any] = set()

    def process_request(self, request: Any, client_address: Any) -> None:
        self._sockets.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        self._sockets.discard(request)
        super().shutdown_request(request)

    def close_connections(self) -> None:
        """Shut the sockets that are still open; their threads end by themselves."""
        for connection in list(self._sockets):
            super().shutdown_request(connection)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing: a client that goes away is part of many scripts."""


def _handler(peer: ScriptedServer) -> type[BaseHTTPRequestHandler]:
    """Make the handler class of one peer."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def setup(self) -> None:
            super().setup()
            self.number = peer.next_connection()

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - inherited name
            pass

        def _serve(self) -> None:
            parts = urlsplit(self.path)
            length = int(self.headers.get("content-length", 0))
            request = PeerRequest(
                method=self.command,
                path=parts.path,
                query=parse_qs(parts.query),
                headers={name.lower(): value for name, value in self.headers.items()},
                body=self.rfile.read(length),
                connection=self.number,
            )
            response = peer.answer(request)
            if response.drop:
                self.close_connection = True
                return
            head = f"HTTP/1.1 {response.status} Scripted\r\n"
            fields = {
                "content-type": response.content_type,
                "content-length": str(len(response.body)),
                **response.headers,
            }
            head += "".join(f"{name}: {value}\r\n" for name, value in fields.items())
            self.wfile.write(head.encode("latin-1") + b"\r\n" + response.body)

        do_GET = do_POST = do_PUT = do_DELETE = _serve  # noqa: N815 - names the base class asks for

    return Handler
