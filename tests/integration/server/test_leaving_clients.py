"""Clients that go away in the middle: of a body, of a long poll, of a download."""

import asyncio
import contextlib
import json
import socket
from urllib.parse import urlsplit

import httpx
import pytest
from server_support import KEY, batch_json

HEADERS = {"X-API-Key": KEY}


class Caller:
    """Speaks to a server on loopback."""

    def __init__(self, server):
        self.server = server
        self.http = httpx.Client(base_url=f"{server.url}/api/v1", headers=HEADERS, timeout=30)

    def ok(self, path, body):
        response = self.http.post(path, json=body)
        assert response.status_code == 200, response.text
        return response.json()

    def result(self, future):
        while True:
            body = self.ok("/retrieve_future", {"request_id": future["request_id"]})
            if body.get("type") != "try_again":
                return body

    def model(self):
        session = {"tags": [], "user_metadata": {}, "sdk_version": "t"}
        body = {
            "session_id": self.ok("/create_session", session)["session_id"],
            "model_seq_id": 0,
            "base_model": "tiny/qwen3",
            "lora_config": {"rank": 32},
        }
        return self.result(self.ok("/create_model", body))["model_id"]

    def begin(self, path, body, *, send=None):
        """Send a request, or only its first bytes: the open socket."""
        data = json.dumps(body).encode()
        place = urlsplit(self.server.url)
        head = (
            f"POST /api/v1{path} HTTP/1.1\r\nHost: {place.netloc}\r\nX-API-Key: {KEY}\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(data)}\r\n\r\n"
        )
        connection = socket.create_connection((place.hostname, place.port))
        connection.sendall(head.encode() + data[:send])
        return connection

    def on_loop(self, function):
        """Call a function on the server's event loop, when everything before it has run."""

        async def call():
            for _ in range(50):
                await asyncio.sleep(0)  # noqa: TID251 - lets other tasks run
            return function()

        return asyncio.run_coroutine_threadsafe(call(), self.server.loop).result(10)

    def until(self, condition):
        for _ in range(2000):
            if self.on_loop(condition):
                return
        raise AssertionError("it never came so far")


@pytest.fixture
def caller(server):
    caller = Caller(server)
    yield caller
    caller.http.close()


def reset(connection):
    """Hang up at once, without a farewell."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    connection.close()


@pytest.mark.parametrize("end", [reset, socket.socket.close])
def test_body_that_breaks_off_is_no_request_and_its_number_is_free(caller, end):
    model = caller.model()
    futures = caller.server.services.futures
    count = caller.on_loop(lambda: len(futures))
    body = batch_json(model, 1)
    end(caller.begin("/forward_backward", body, send=100))
    assert caller.on_loop(lambda: len(futures)) == count
    assert "loss_fn_outputs" in caller.result(caller.ok("/forward_backward", body))


def test_long_poll_that_is_left_holds_nothing_and_the_result_stays(caller):
    model = caller.model()
    futures = caller.server.services.futures
    held = caller.ok("/optim_step", {"model_id": model, "seq_id": 2})
    future = futures.known(held["request_id"])
    poll = caller.begin("/retrieve_future", {"request_id": held["request_id"]})
    caller.until(lambda: len(future._waiters) == 1)
    reset(poll)
    caller.until(lambda: not future._waiters)
    caller.ok("/forward_backward", batch_json(model, 1))
    assert "error" not in caller.result(held)


def test_download_that_is_left_lets_go_of_its_files_and_goes_on_later(caller, monkeypatch):
    model = caller.model()
    body = {"model_id": model, "seq_id": 1, "path": "one"}
    caller.result(caller.ok("/save_weights", body))
    address = f"/training_runs/{model}/checkpoints/weights/one/archive"
    url = caller.http.get(address).json()["url"]
    whole = httpx.get(url)
    opened = OpenFiles(monkeypatch)
    place = urlsplit(url)
    connection = socket.create_connection((place.hostname, place.port))
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    request = f"GET {place.path}?{place.query} HTTP/1.1\r\nHost: {place.netloc}\r\n\r\n"
    connection.sendall(request.encode())
    first = connection.recv(1000)
    assert b"200 OK" in first
    reset(connection)
    caller.until(lambda: opened.opened and not opened.held)
    with contextlib.closing(httpx.Client()) as client:
        headers = {"Range": "bytes=1000-", "If-Range": whole.headers["etag"]}
        rest = client.get(url, headers=headers)
    assert rest.content == whole.content[1000:]
    caller.until(lambda: not opened.held)


def test_checkpoint_that_ends_while_it_is_downloaded_comes_to_its_end(caller):
    model = caller.model()
    caller.result(caller.ok("/save_weights", {"model_id": model, "seq_id": 1, "path": "one"}))
    address = f"/training_runs/{model}/checkpoints/weights/one"
    url = caller.http.get(f"{address}/archive").json()["url"]
    whole = httpx.get(url).content
    with httpx.stream("GET", url) as response:
        parts = response.iter_raw(1024)
        got = next(parts)
        assert caller.http.delete(address).status_code == 200
        got += b"".join(parts)
    assert got == whole
    assert httpx.get(url).status_code == 404


class OpenFiles:
    """The files that downloads opened since this was made, and hold open."""

    def __init__(self, monkeypatch):
        from tinkex.server.files.content import FileContent

        self.opened, self.held = 0, set()
        opening, closing = FileContent.__init__, FileContent.close

        def opens(content, path):
            opening(content, path)
            self.opened += 1
            self.held.add(content)

        def closes(content):
            closing(content)
            self.held.discard(content)

        monkeypatch.setattr(FileContent, "__init__", opens)
        monkeypatch.setattr(FileContent, "close", closes)
