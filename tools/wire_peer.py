"""A peer that answers the official SDK from a recording, and writes down what it asks."""

from __future__ import annotations

import base64
import itertools
import json
import re
import threading
import time
from typing import Any

import zstandard
from google.protobuf import json_format

from tinkex.testing.server import PeerRequest, PeerResponse, ScriptedServer
from tinkex.wire import tinkex_public_pb2 as pb

API = "/api/v1"
LONG_POLL_S = 0.02
"""How long an answer to a poll takes: the peer's futures are there by then, and none spins."""
REFUSAL_S = 0.1


class Peer(ScriptedServer):
    """Plays one recording; what it does not hold gets the answer that sets a client up.

    Each request takes the first recorded answer of the same method, path and identity (the future
    it asks for, or its place among the sequence ids), else the first of the same method and path.
    """

    def __init__(self, recording: dict[str, Any], config: dict[str, Any]) -> None:
        super().__init__()
        self.recording = recording
        self.config = config
        self.dynamic: dict[str, Any] = {}
        self.also: dict[str, dict[str, Any]] = {}
        """Answers to further calls that set the case up, by path."""
        self.futures = {"set-up": {"type": "create_model"}}
        """What the futures of the calls that set the case up hold."""
        self.refused = ""
        """Path whose calls are answered 400, one in three, as the chunks of a call are."""
        self.waited_for = threading.Event()
        """Set once a poll is held back: its future never comes."""
        self.first_seq_id = 1
        """The lowest that the case sends; it pairs the chunks of a call with their answers."""
        self._refusals = itertools.count()
        self.left: list[dict[str, Any]] = list(recording["exchanges"])
        self.exchanges: list[dict[str, Any]] = []
        self.unknown: list[str] = []
        self._guard = threading.Lock()
        self._started = time.monotonic()
        numbered = [body for body in map(_body_of, self.left) if "seq_id" in body]
        self._base_seq = min(map(_seq_id, numbered), default=0)
        self.ids = _ids(recording)
        self.futures["set-up"]["model_id"] = self.ids["model"]

    def answer(self, request: PeerRequest) -> PeerResponse:
        """Answer from the recording, or as any server would."""
        if request.path.endswith(("/retrieve_future", "/retrieve_futures")):
            time.sleep(LONG_POLL_S)
        answer, delay = self._answer(request)
        if answer.drop:  # held back as a server does it, but for as long as this one runs
            self.waited_for.set()
            self._closing.wait()
        time.sleep(delay)
        return answer

    def _answer(self, request: PeerRequest) -> tuple[PeerResponse, float]:
        """The answer, and for how many seconds it is held back."""
        with self._guard:
            recorded = self._take(request)
            seconds = round(time.monotonic() - self._started, 3)
            if recorded is not None:
                response = recorded["response"]
                self.exchanges.append(
                    {"request": written(request), "response": response, "t_rel_s": seconds}
                )
                # a refusal ends a call: what goes on beside it is to be seen first
                delay = REFUSAL_S if response["status"] >= 400 else 0.0
                return replayed(unexpired(response)), delay
            usual = self._usual(request)
            if usual is None:
                self.unknown.append(f"{request.method} {request.path}")
                usual = PeerResponse.of_json({"detail": "not in the recording"}, 404)
            return usual, 0.0

    def wait_until_played(self, timeout: float, but: int = 0) -> None:
        """Block until all but some of the recorded answers are given, or time is up."""
        until = time.monotonic() + timeout
        wanted = len(self.recording["exchanges"]) - but
        while len(self.exchanges) < wanted and time.monotonic() < until:
            time.sleep(0.01)

    def _take(self, request: PeerRequest) -> dict[str, Any] | None:
        same = [
            exchange
            for exchange in self.left
            if (exchange["request"]["method"], exchange["request"]["path"])
            == (request.method, request.path)
        ]
        body = _decoded(request)
        for exchange in same:
            recorded = _body_of(exchange)
            if "request_id" in body:
                found = body["request_id"] == recorded.get("request_id")
            else:
                place = _seq_id(recorded) - self._base_seq
                found = place == _seq_id(body) - self.first_seq_id
            if found:
                break
        else:
            if not same or "request_id" in body:
                return None
            exchange = same[0]
        self.left.remove(exchange)
        return exchange

    def _usual(self, request: PeerRequest) -> PeerResponse | None:
        """What any server answers to the calls that set a client up."""
        path = request.path.removeprefix(API)
        model, sampler, session = self.ids["model"], self.ids["sampler"], self.ids["session"]
        if path == self.refused:
            if next(self._refusals) == 0:
                return PeerResponse.of_json({"detail": "refused"}, 400)
            return PeerResponse.of_json({"request_id": "never"})
        usual: dict[str, Any]
        if path == "/retrieve_future":
            wanted = request.json()["request_id"]
            if wanted not in self.futures:
                return PeerResponse(drop=True)
            usual = self.futures[wanted]
        elif path == "/retrieve_futures":
            usual = {"completions": [], "cursor": request.json()["prev_cursor"]}
        elif re.fullmatch(r"/sessions/[^/]+/finish", path):
            usual = {}
        else:
            named = {
                **self.also,
                "/client/config": self.config,
                "/client/dynamic_config": self.dynamic,
                "/create_session": {"type": "create_session", "session_id": session},
                "/session_heartbeat": {"type": "session_heartbeat"},
                "/telemetry": {"status": "accepted"},
                "/create_model": {"request_id": "set-up"},
                "/get_info": {
                    "type": "get_info",
                    "model_id": model,
                    "model_name": "Qwen/Qwen3-8B",
                    "is_lora": True,
                    "lora_rank": 32,
                    "model_data": {
                        "arch": "qwen3",
                        "model_name": "Qwen/Qwen3-8B",
                        "tokenizer_id": "Qwen/Qwen3-8B",
                    },
                },
                "/create_sampling_session": {
                    "type": "create_sampling_session",
                    "sampling_session_id": sampler,
                },
            }
            if path not in named:
                return None
            usual = named[path]
        return PeerResponse.of_json(usual)


def _ids(recording: dict[str, Any]) -> dict[str, str]:
    """The model, sampling session and session that the recording speaks of."""
    text = json.dumps(recording["exchanges"])
    found = {}
    for name, kind in (("model", "train"), ("sampler", "sample")):
        match = re.search(rf"sess-\d+:{kind}:\d+", text)
        found[name] = match.group() if match else f"sess-1:{kind}:0"
    match = re.search(r"sess-\d+", text)
    found["session"] = match.group() if match else "sess-1"
    return found


def unexpired(response: dict[str, Any]) -> dict[str, Any]:
    """Let a recorded token be one that was issued now, for an hour."""
    body = response.get("body")
    if not (isinstance(body, dict) and "jwt" in body):
        return response
    header, claims, signature = body["jwt"].split(".")
    fields = json.loads(base64.urlsafe_b64decode(claims + "=" * (-len(claims) % 4)))
    now = int(time.time())
    fields |= {"iat": now, "exp": now + 3600}
    claims = base64.urlsafe_b64encode(json.dumps(fields).encode()).decode().rstrip("=")
    return {**response, "body": {"jwt": f"{header}.{claims}.{signature}"}}


def replayed(response: dict[str, Any]) -> PeerResponse:
    """Turn a recorded response back into bytes."""
    headers = {}
    if "retry_after" in response:
        headers["retry-after"] = str(response["retry_after"])
    if "protobuf" in response.get("body_kind", ""):
        body = base64.b64decode(response["body_raw_base64"])
    else:
        body = json.dumps(response.get("body")).encode()
    return PeerResponse(response["status"], body, headers, response["content_type"])


def _plain(request: PeerRequest) -> bytes:
    if request.headers.get("content-encoding") == "zstd":
        return zstandard.ZstdDecompressor().decompressobj().decompress(request.body)
    return request.body


def _decoded(request: PeerRequest) -> dict[str, Any]:
    if "protobuf" in request.headers.get("content-type", ""):
        return protobuf_fields(_plain(request))
    body = json.loads(request.body) if request.body else {}
    return body if isinstance(body, dict) else {}


def _body_of(exchange: dict[str, Any]) -> dict[str, Any]:
    return exchange["request"].get("body_decoded") or exchange["request"].get("body") or {}


def _seq_id(body: dict[str, Any]) -> int:
    return int(body.get("seq_id", 0))


def protobuf_fields(raw: bytes) -> dict[str, Any]:
    """Decode a training request as the recordings show it."""
    message = pb.ForwardBackwardRequest.FromString(raw)
    fields: dict[str, Any] = json_format.MessageToDict(
        message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
    )
    fields["seq_id"] = message.seq_id  # MessageToDict writes an int64 as text
    return fields


def written(request: PeerRequest) -> dict[str, Any]:
    """Write a request down as the recordings hold it."""
    headers = dict(request.headers)
    fields: dict[str, Any] = {
        "method": request.method,
        "path": request.path,
        "query": {name: values[0] for name, values in request.query.items()},
        "headers": {
            name: value
            for name, value in headers.items()
            if name
            not in {"host", "connection", "content-length", "accept-encoding", "transfer-encoding"}
        },
        "accept_encoding": headers.get("accept-encoding"),
        "http_version": "1.1",
    }
    if "protobuf" in headers.get("content-type", ""):
        plain = _plain(request)
        fields["body_kind"] = "protobuf tinker_public.ForwardBackwardRequest"
        fields["body_decoded"] = protobuf_fields(plain)
        fields["body_raw_base64"] = base64.b64encode(request.body).decode()
        fields["body_raw_len"] = len(request.body)
        fields["body_uncompressed_len"] = len(plain)
    else:
        fields["body_kind"] = "json" if request.body else "empty"
        fields["body"] = json.loads(request.body) if request.body else None
    return fields
