"""A peer that plays one recording of the official SDK back, and says what was asked of it."""

from __future__ import annotations

import itertools
import json
import threading
from contextlib import contextmanager

import zstandard
from google.protobuf import json_format
from recordings import Exchange, load
from scripted_tinker import API, KEY, JumpingClock

from tinkex.client.config import ClientConfig
from tinkex.client.connection import Connection
from tinkex.client.runtime import Runtime
from tinkex.client.sample_submission import RetryConfig
from tinkex.client.sampling import SamplingClient
from tinkex.client.service import ServiceClient
from tinkex.client.session import Session
from tinkex.client.training import TrainingClient
from tinkex.testing.server import PeerResponse, ScriptedServer
from tinkex.types import ClientConfigResponse, ClientDynamicConfigResponse, GetInfoResponse
from tinkex.wire import proto
from tinkex.wire import tinkex_public_pb2 as pb

POLL = f"{API}/retrieve_future"

# Headers a server reads; the rest names the program that sends.
COMPARED = (
    "accept",
    "content-type",
    "content-encoding",
    "x-api-key",
    "x-sdk-method",
    "x-tinker-request-iteration",
    "x-tinker-request-type",
    "x-tinker-sampling-backpressure",
)


def exchanges_of(case):
    return [
        Exchange(case, number, exchange["request"], exchange["response"])
        for number, exchange in enumerate(load(case)["exchanges"])
    ]


def recorded_ids(case):
    """(model id, first sequence id) of a training case; (sampling session, first) of a sample."""
    for exchange in exchanges_of(case):
        if exchange.protobuf_request is not None:
            message = pb.ForwardBackwardRequest.FromString(exchange.protobuf_request)
            return message.model_id, min(
                pb.ForwardBackwardRequest.FromString(other.protobuf_request).seq_id
                for other in exchanges_of(case)
                if other.protobuf_request is not None
            )
        body = exchange.request["body"]
        if "seq_id" in body:
            return body.get("model_id") or body["sampling_session_id"], body["seq_id"]
    raise AssertionError(f"{case} has no sequence id")


def recorded_data(case, *, forward_only=False):
    """The data of the recorded requests, in the order of their sequence ids."""
    requests = sorted(
        (
            proto.decode_forward_backward_request(exchange.protobuf_request)
            for exchange in exchanges_of(case)
            if exchange.protobuf_request is not None
        ),
        key=lambda request: request.seq_id,
    )
    return [
        datum
        for request in requests
        if request.forward_only or not forward_only
        for datum in request.forward_backward_input.data
    ]


class Playback:
    """Answers each request with the recorded answer to the request of the same identity."""

    def __init__(self, case, config=None):
        self.case = case
        self.left = exchanges_of(case)
        self.config = config or {}
        self.server = ScriptedServer()
        self.otherwise = {}
        """By path, the answer to what comes after the recording's end."""
        self.clock = JumpingClock()
        self._lock = threading.Lock()
        for method, path in {(e.request["method"], e.request["path"]) for e in self.left}:
            self.server.always(path, self.answer, method=method)
        known = {exchange.request["path"] for exchange in self.left}
        if f"{API}/client/config" not in known:
            self.server.always(f"{API}/client/config", PeerResponse.of_json(self.config))

    def answer(self, request):
        wanted = identity_of(request.path, request.headers, request.body)
        with self._lock:
            for exchange in self.left:
                if recorded_identity(exchange) == wanted:
                    self.left.remove(exchange)
                    return response_of(exchange)
        if request.path in self.otherwise:
            return self.otherwise[request.path]
        self.server.unexpected.append(request)
        return PeerResponse.of_json({"detail": f"nothing recorded for {wanted}"}, 404)

    def connection(self):
        config = ClientConfig.resolve(
            base_url=self.server.url,
            api_key=KEY,
            environment={"TINKER_TAGS": "tag-a"},
            clock=self.clock,
        )
        return Connection(config, Runtime(clock=self.clock))

    @contextmanager
    def session(self, session_id="sess-1", *, models=0, samplers=0, known_config=None):
        connection = self.connection()
        if known_config is not None:
            connection.assume(ClientConfigResponse(**self.config), ClientDynamicConfigResponse())
        session = Session(connection)
        session._id = session_id
        session._models = itertools.count(models)
        session._samplers = itertools.count(samplers)
        try:
            yield session
        finally:
            connection.close()

    @contextmanager
    def service(self, session_id="sess-1", *, models=0, samplers=0):
        with self.session(session_id, models=models, samplers=samplers) as session:
            client = ServiceClient.__new__(ServiceClient)
            client._connection, client._session = session.connection, session
            yield client

    @contextmanager
    def training(self):
        model_id, first = recorded_ids(self.case)
        with self.session(model_id.partition(":")[0], samplers=5) as session:
            info = {"model_id": model_id, "model_data": {"model_name": "Qwen/Qwen3-8B"}}
            client = TrainingClient(session, model_id, info=GetInfoResponse.model_validate(info))
            client._sequencer._next_number = first
            yield client

    @contextmanager
    def sampling(self, *, retry_config=None, record_stability_info=False):
        sampler_id, first = recorded_ids(self.case)
        with self.session() as session:
            client = SamplingClient(
                session,
                sampling_session_id=sampler_id,
                base_model="Qwen/Qwen3-8B",
                retry_config=retry_config or RetryConfig(),
                record_stability_info=record_stability_info,
            )
            client._numbers = itertools.count(first)
            yield client

    @contextmanager
    def clone(self, number, config=None):
        """A clone of the sampling client, with the number that chance gave the recorded one."""
        sampler_id, first = recorded_ids(self.case)
        with self.session(known_config=config or {}) as session:
            client = SamplingClient(
                session, sampling_session_id=sampler_id, base_model="Qwen/Qwen3-8B", clone=True
            )
            client._clone = number
            client._numbers = itertools.count(first % 10**9)
            yield client

    def asked(self):
        """What the client asked, as comparable values, without the client's first question."""
        own = [r for r in self.server.requests if r.path != f"{API}/client/config" or self.starts]
        return sorted(
            (
                (request.method, request.path, headers_of(request.headers), _text(decoded(request)))
                for request in own
            ),
            key=str,
        )

    def recorded(self):
        """The same of the recording."""
        found = []
        for exchange in exchanges_of(self.case):
            headers = {name.lower(): value for name, value in exchange.request["headers"].items()}
            body = exchange.request.get("body")
            if exchange.protobuf_request is not None:
                body = _readable(exchange.protobuf_request)
            shown = (exchange.request["method"], exchange.request["path"])
            found.append((*shown, headers_of(headers), _text(body)))
        return sorted(found, key=str)

    @property
    def starts(self):
        """Whether the recording begins with the first question of a client."""
        return any(e.request["path"].endswith("client/config") for e in exchanges_of(self.case))


def _readable(raw):
    message = pb.ForwardBackwardRequest.FromString(raw)
    return json_format.MessageToDict(message, preserving_proto_field_name=True)


def _text(body):
    return json.dumps(body, sort_keys=True)


def headers_of(headers):
    chosen = {name: headers[name] for name in COMPARED if name in headers}
    if "x-api-key" in chosen:
        chosen["x-api-key"] = "KEY"
    return tuple(sorted(chosen.items()))


def _plain(headers, body):
    return zstandard.decompress(body) if headers.get("content-encoding") == "zstd" else body


def decoded(request):
    if "protobuf" in request.headers.get("content-type", ""):
        raw = _plain(request.headers, request.body)
        return _readable(raw)
    return json.loads(request.body) if request.body else None


def identity_of(path, headers, body):
    """What tells one request of a path from another: the future, or the sequence id."""
    if "protobuf" in headers.get("content-type", ""):
        return path, pb.ForwardBackwardRequest.FromString(_plain(headers, body)).seq_id
    return _json_identity(path, json.loads(body) if body else {})


def _json_identity(path, fields):
    retrieved = tuple(fields.get("retrieved_request_ids", ()))
    number = fields.get("seq_id")
    return path, fields.get("request_id") or number, fields.get("timeout"), retrieved


def recorded_identity(exchange):
    path = exchange.request["path"]
    if exchange.protobuf_request is not None:
        return path, pb.ForwardBackwardRequest.FromString(exchange.protobuf_request).seq_id
    return _json_identity(path, exchange.request.get("body") or {})


def response_of(exchange):
    response = exchange.response
    headers = {}
    if "retry_after" in response:
        headers["retry-after"] = str(response["retry_after"])
    body = exchange.protobuf_response
    if body is None:
        body = json.dumps(response.get("body")).encode()
    return PeerResponse(response["status"], body, headers, response["content_type"])
