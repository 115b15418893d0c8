"""Streams: pieces as they come, held back by a slow reader, ended by one that stops.

client.md section 5, row "A stream 'works' only with a fully buffered body": the peer sends one
event at a time, and waits until the reader has seen it.
"""

import asyncio
import base64
import gc
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import orjson
import pytest
from client_support import settle
from scripted_tinker import API, KEY, JumpingClock, ok, scripted_peer, service

import tinkex as tinker
from tinkex.client.runtime import Runtime
from tinkex.errors import InputError, UnsupportedError
from tinkex.testing.server import PeerResponse
from tinkex.wire.proto import encode_sample_response

PROMPT = tinker.ModelInput.from_ints([1, 2])
PARAMS = tinker.SamplingParams(max_tokens=4)
RESPONSE = tinker.SampleResponse(
    sequences=[tinker.SampledSequence(stop_reason="length", tokens_np=None, logprobs_np=None)]
)


def started():
    return {"type": "started", "sequence_ids": ["s:0"]}


def tokens(*values):
    return {"type": "tokens", "index": 0, "tokens": values, "logprobs": [-0.5] * len(values)}


def finished():
    raw = base64.b64encode(encode_sample_response(RESPONSE)).decode()
    return {"type": "finished", "stop_reasons": ["length"], "response": raw}


class Peer:
    """A server whose streams a test writes by hand, an event at a time."""

    def __init__(self):
        self.script = lambda send: None
        self.status = 200
        self.content_type = "text/event-stream"
        self.requests = []
        self.gone = threading.Event()

    def handle(self, handler):
        length = int(handler.headers.get("content-length", 0))
        body = handler.rfile.read(length)
        handler.close_connection = True
        if not handler.path.endswith("/sample_stream"):
            answers = {
                "create_session": {"session_id": "s"},
                "create_sampling_session": {"sampling_session_id": "s:sample:0"},
            }
            name = handler.path.rpartition("/")[2]
            self._reply(handler, 200, "application/json", orjson.dumps(answers.get(name, {})))
            return
        self.requests.append(orjson.loads(body))
        if self.status >= 300:
            self._reply(handler, self.status, "application/json", b'{"detail": "sample_stream"}')
            return
        handler.send_response(200)
        handler.send_header("content-type", self.content_type)
        handler.end_headers()

        def send(event):
            data = event if isinstance(event, bytes) else b"data: " + orjson.dumps(event) + b"\n\n"
            try:
                handler.wfile.write(data)
                handler.wfile.flush()
            except OSError:
                self.gone.set()
                raise

        try:
            self.script(send)
        except OSError:
            self.gone.set()

    @staticmethod
    def _reply(handler, status, content_type, body):
        handler.send_response(status)
        handler.send_header("content-type", content_type)
        handler.send_header("content-length", str(len(body)))
        handler.end_headers()
        handler.wfile.write(body)


@contextmanager
def serving(peer):
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            peer.handle(self)

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.fixture
def peer():
    return Peer()


@pytest.fixture
def sampler(peer):
    with (
        serving(peer) as url,
        tinker.ServiceClient(base_url=url, api_key=KEY, runtime=Runtime(JumpingClock())) as client,
    ):
        yield client.create_sampling_client(base_model="m").result(10)


def test_each_piece_is_seen_before_the_next_is_sent(peer, sampler):
    seen = threading.Semaphore(0)
    sent = []

    def script(send):
        send(started())
        for value in range(5):
            sent.append(value)
            send(tokens(value))
            assert seen.acquire(timeout=10)  # the next goes out when the reader has this one
        send(finished())

    peer.script = script
    stream = sampler.sample_stream(PROMPT, PARAMS)
    for number, piece in enumerate(stream):
        assert piece.tokens == [number]
        assert piece.logprobs == [-0.5]
        assert sent == list(range(number + 1))
        seen.release()
    assert stream.response.sequences[0].sequence_id == "s:0"
    assert list(stream) == []
    assert "seq_id" not in peer.requests[0]


async def test_async_reader_gets_the_same(peer, sampler):
    def script(send):
        for event in (started(), b": still here\n\n", tokens(1, 2), {"type": "new"}, finished()):
            send(event)

    peer.script = script
    stream = sampler.sample_stream(PROMPT, PARAMS)
    assert [piece.tokens async for piece in stream] == [[1, 2]]
    assert stream.response.sequences[0].stop_reason == "length"


def two_pieces(gate):
    def script(send):
        send(started())
        assert gate.wait(10)
        send(tokens(1))
        send(tokens(2))
        send(finished())

    return script


async def test_reader_that_is_cancelled_loses_no_piece_when_it_goes_on(peer, sampler):
    """As with a time-out around each piece."""
    gate = threading.Event()
    peer.script = two_pieces(gate)
    stream = sampler.sample_stream(PROMPT, PARAMS)
    for _ in range(2):
        waiting = asyncio.ensure_future(anext(aiter(stream)))
        await settle()
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
    gate.set()
    assert [list(piece.tokens) async for piece in stream] == [[1], [2]]


def test_reader_that_is_interrupted_loses_no_piece_when_it_goes_on(peer, sampler, monkeypatch):
    gate = threading.Event()
    peer.script = two_pieces(gate)
    stream = sampler.sample_stream(PROMPT, PARAMS)

    def interrupted(future, timeout=None):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("tinkex.client.future.APIFuture.result", interrupted)
        with pytest.raises(KeyboardInterrupt):
            next(iter(stream))
    gate.set()
    assert [list(piece.tokens) for piece in stream] == [[1], [2]]


def endless(send):
    send(started())
    while True:
        send(tokens(7))


def test_slow_reader_holds_the_stream_back(peer, sampler):
    peer.script = endless
    with sampler.sample_stream(PROMPT, PARAMS) as stream:
        assert next(iter(stream)).tokens == [7]
        assert stream._pieces.qsize() <= 64
    assert peer.gone.wait(10)


def test_closed_stream_ends_on_the_server_and_says_so_here(peer, sampler):
    peer.script = endless
    stream = sampler.sample_stream(PROMPT, PARAMS)
    next(iter(stream))
    stream.close()
    stream.close()
    assert peer.gone.wait(10)
    with pytest.raises(InputError, match="closed"):
        list(stream)
    with pytest.raises(InputError, match="over"):
        _ = stream.response


def test_dropped_stream_ends_on_the_server(peer, sampler):
    peer.script = endless
    next(iter(sampler.sample_stream(PROMPT, PARAMS)))
    gc.collect()
    assert peer.gone.wait(10)


def test_reader_in_another_thread_hears_of_the_close(peer, sampler):
    hold = threading.Event()

    def script(send):
        send(started())
        hold.wait(10)

    peer.script = script
    stream = sampler.sample_stream(PROMPT, PARAMS)
    outcome = []

    def read():
        try:
            outcome.extend(stream)
        except tinker.TinkerError as error:
            outcome.append(error)

    thread = threading.Thread(target=read)
    thread.start()
    while not peer.requests:
        pass
    stream.close()
    thread.join(10)
    hold.set()
    assert isinstance(outcome[0], InputError)


@pytest.mark.parametrize("events", [[], [started()], [started(), tokens(1)]])
def test_stream_that_breaks_off_is_an_error_after_what_came(peer, sampler, events):
    def script(send):
        for event in events:
            send(event)

    peer.script = script
    found = []
    with pytest.raises(tinker.APIConnectionError, match="ended without"):
        found.extend(sampler.sample_stream(PROMPT, PARAMS))
    assert len(peer.requests) == 1


@pytest.mark.parametrize(
    "event",
    [
        b"data: {\n\n",
        b"data: 3\n\n",
        {"type": "tokens"},
        {"type": "finished", "response": "%%"},
        {"type": "finished", "response": "AAAA"},
        {"no": "type"},
    ],
)
def test_event_that_cannot_be_understood_is_a_typed_error(peer, sampler, event):
    def script(send):
        send(started())
        send(event)

    peer.script = script
    with pytest.raises(tinker.APIResponseValidationError):
        list(sampler.sample_stream(PROMPT, PARAMS))


def test_failure_of_the_sample_is_its_error(peer, sampler):
    def script(send):
        send(started())
        send({"type": "error", "error": "too long", "category": "user"})

    peer.script = script
    with pytest.raises(tinker.RequestFailedError, match="too long") as caught:
        list(sampler.sample_stream(PROMPT, PARAMS))
    assert caught.value.category == "user"


def test_answer_that_is_no_stream_is_a_typed_error(peer, sampler):
    peer.content_type = "text/html"
    with pytest.raises(tinker.APIResponseValidationError, match="text/html"):
        list(sampler.sample_stream(PROMPT, PARAMS))


def test_server_that_does_not_stream_is_named(peer, sampler):
    peer.status = 404
    with pytest.raises(UnsupportedError, match="does not stream"):
        list(sampler.sample_stream(PROMPT, PARAMS))


def test_refusal_before_the_first_event_is_repeated_as_a_sample_is(peer, sampler):
    statuses = iter([503, 429, 200])
    original = peer.handle

    def handle(handler):
        if handler.path.endswith("/sample_stream"):
            peer.status = next(statuses)  # before the answer: the next request may follow at once
        original(handler)

    peer.handle = handle
    peer.script = lambda send: [send(one) for one in (started(), finished())]
    stream = sampler.sample_stream(PROMPT, PARAMS)
    with pytest.raises(StopIteration):  # the script ends with the third attempt
        next(iter(stream))
    assert len(peer.requests) == 3


def test_key_that_has_ended_is_replaced_as_for_any_other_request(tmp_path, monkeypatch):
    count = tmp_path / "count"
    for name in ("TINKEX_API_KEY", "TINKER_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    command = f"echo x >> {count}; echo tml-key-$(grep -c x {count})"
    monkeypatch.setenv("TINKEX_CREDENTIAL_CMD", command)
    events = [started(), tokens(7), finished()]
    body = b"".join(b"data: " + orjson.dumps(event) + b"\n\n" for event in events)
    with scripted_peer() as running, service(running, api_key=None) as client:
        sampler = client.create_sampling_client(base_model="m").result(10)
        whole = PeerResponse(200, body, content_type="text/event-stream")
        running.expect(f"{API}/sample_stream", ok({"detail": "this key has ended"}, 401), whole)
        assert [piece.tokens for piece in sampler.sample_stream(PROMPT, PARAMS)] == [[7]]
        asked = running.requests_to(f"{API}/sample_stream")
    assert [one.headers["x-api-key"] for one in asked] == ["tml-key-1", "tml-key-2"]


def test_wrong_arguments_are_refused_before_any_request(sampler, peer):
    with pytest.raises(InputError):
        sampler.sample_stream("text", PARAMS)
    with pytest.raises(InputError):
        sampler.sample_stream(PROMPT, PARAMS, num_samples=0)
    assert peer.requests == []


def test_closed_client_ends_its_streams():
    with scripted_peer() as peer, service(peer) as client:
        sampler = client.create_sampling_client(base_model="m").result(10)
        peer.always(f"{API}/sample_stream", ok({"detail": "busy"}, 429, retry_after="50"))
        stream = sampler.sample_stream(PROMPT, PARAMS)
        client.close().result(10)
        with pytest.raises(tinker.TinkerError):
            list(stream)


def test_request_of_a_stream_is_told_as_any_other(peer):
    def script(send):
        for event in (started(), tokens(7), finished()):
            send(event)

    peer.script, seen = script, []
    with (
        serving(peer) as url,
        tinker.ServiceClient(base_url=url, api_key=KEY, runtime=Runtime(JumpingClock())) as client,
    ):
        sampler = client.create_sampling_client(base_model="m").result(10)
        detach = client.on_event(seen.append)
        list(sampler.sample_stream(PROMPT, PARAMS))
        detach()
    of_stream = [
        (event.name, event.attributes.get("status"))
        for event in seen
        if str(event.attributes.get("path")).endswith("/sample_stream")
    ]
    assert of_stream == [("http.request.start", None), ("http.request.stop", 200)]
