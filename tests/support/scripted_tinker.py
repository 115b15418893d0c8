"""A scripted peer that plays the first calls of a Tinker server, so a test scripts the rest."""

from __future__ import annotations

import asyncio
import json
from contextlib import contextmanager

import numpy as np

import tinkex as tinker
from tinkex.client.runtime import Runtime
from tinkex.testing import VirtualClock
from tinkex.testing.server import PeerResponse, ScriptedServer
from tinkex.wire import proto

API = "/api/v1"
KEY = "tml-scripted-key"
MODEL = "sess-1:train:0"
HEARTBEAT = 10.0
REFRESH = 300


class JumpingClock(VirtualClock):
    """Jumps over every sleep but those of background work, whose time never comes."""

    def __init__(self) -> None:
        super().__init__(autojump=True)

    async def sleep(self, seconds: float) -> None:
        if seconds in {HEARTBEAT, REFRESH}:
            await asyncio.Event().wait()
        await super().sleep(seconds)


def ok(value, status=200, **headers):
    return PeerResponse.of_json(value, status, **headers)


def future(number, **fields):
    return ok({"request_id": f"req-{number}", **fields})


def protobuf(body):
    return PeerResponse(200, body, content_type="application/x-protobuf")


def output(count=1, loss=1.0, length=2):
    row = {"logprobs": tinker.TensorData(np.full(length, -0.5, np.float32))}
    return protobuf(
        proto.encode_forward_backward_output(
            tinker.ForwardBackwardOutput("ArrayRecord", [row] * count, {"loss:sum": loss})
        )
    )


def sampled(count=1):
    sequence = tinker.SampledSequence(
        "stop", "", np.asarray([7], np.int32), np.asarray([-0.5], np.float32)
    )
    return protobuf(proto.encode_sample_response(tinker.SampleResponse([sequence] * count)))


def datum(tokens=(1, 2)):
    return tinker.Datum(
        tinker.ModelInput.from_ints(list(tokens)),
        {"target_tokens": list(tokens), "weights": [1.0] * len(tokens)},
    )


@contextmanager
def scripted_peer(config=None):
    """A peer that has answered what every client asks first."""
    with ScriptedServer() as peer:
        peer.always(f"{API}/client/config", ok(config or {}))
        peer.always(f"{API}/client/dynamic_config", ok({}))
        peer.always(f"{API}/create_session", ok({"session_id": "sess-1", "type": "create_session"}))
        peer.always(f"{API}/sessions/sess-1/finish", ok({}))
        peer.always(f"{API}/telemetry", ok({"status": "accepted"}))
        peer.always(f"{API}/create_model", future("model"))
        peer.always(
            f"{API}/get_info",
            ok({"model_id": MODEL, "model_data": {"model_name": "tinkex/sprout"}}),
        )
        peer.always(
            f"{API}/create_sampling_session", ok({"sampling_session_id": "sess-1:sample:0"})
        )
        yield peer


@contextmanager
def service(peer, *, runtime=None, **settings):
    """A service client of the peer on a clock that jumps."""
    chosen = runtime or Runtime(clock=JumpingClock())
    with tinker.ServiceClient(
        base_url=peer.url, api_key=settings.pop("api_key", KEY), runtime=chosen, **settings
    ) as client:
        yield client


def training_client(peer, client):
    peer.expect(f"{API}/retrieve_future", ok({"model_id": MODEL, "type": "create_model"}))
    return client.create_lora_training_client("tinkex/sprout").result(10)


def sequence_ids(peer, path):
    found = []
    for request in peer.requests_to(f"{API}/{path}"):
        if "protobuf" in request.headers["content-type"]:
            found.append(proto.decode_forward_backward_request(request.body).seq_id)
        else:
            found.append(json.loads(request.body)["seq_id"])
    return found
