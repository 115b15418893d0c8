"""Thousands of damaged forward_backward messages: each is refused by name, and that is all."""

import asyncio
import random
from collections import Counter

import psutil
import pytest
from proto_mutations import mutated, valid_request
from server_support import VOCAB

from tinkex.server.config import Limits
from tinkex.types import ForwardBackwardOutput
from tinkex.wire import tinkex_public_pb2 as pb
from tinkex.wire.proto import decode_forward_backward_output

PROTOBUF = {"Content-Type": "application/x-protobuf"}
EACH_RUN = 25
"""Cases of one training run: some use up its sequence ids."""
WARM_UP = 100
MOST_WORDS = 2000
"""Characters of a refusal: what was sent is not sent back."""
MOST_GROWTH = 200 * 2**20
"""Bytes that the process may have grown after the warm-up: kept failures, not memory per case."""


class Victims:
    """Training runs that the cases are sent to, each for a while."""

    def __init__(self, api):
        self.api = api
        self.session = None
        self.model = None
        self.seq_id = 1
        self.cases = 0

    async def next_case(self):
        """Return (run, its next sequence id), on a fresh run every so often."""
        if self.cases % EACH_RUN == 0:
            if self.session is not None:
                finish = {"reason": {"type": "success"}, "detail": None}
                await self.api.ok(f"/sessions/{self.session}/finish", finish)
            self.session = await self.api.session()
            self.model = await self.api.model(self.session)
        self.cases += 1
        run = self.api.services.runs.find(self.api.owner, self.model)
        return self.model, run.next_seq_id


async def outcome_of(api, body):
    """Send a message and wait for what comes of it: a status, or the category of a failure."""
    response = await api.post("/forward_backward", content=body, headers=PROTOBUF)
    if response.status_code != 200:
        assert response.status_code in {400, 413, 429}, response.text
        assert len(response.json()["detail"]) > 10
        return str(response.status_code), response.json()["detail"]
    answer = await asyncio.wait_for(api.result(response.json()), 30)
    if "error" in answer:
        return answer["category"], answer["error"]
    assert answer["loss_fn_output_type"]
    return "done", ""


async def reference(api, model, number):
    """What a message that never changes gives, as bytes."""
    message = valid_request(random.Random(0), model, number, vocab=VOCAB)
    message.forward_only = True
    future = await api.ok(
        "/forward_backward", content=message.SerializeToString(), headers=PROTOBUF
    )
    body = {"request_id": future["request_id"]}
    headers = {"Accept": "application/x-protobuf"}
    response = await api.post("/retrieve_future", body, headers=headers)
    output = decode_forward_backward_output(response.content)
    assert isinstance(output, ForwardBackwardOutput)
    return (
        pb.ForwardBackwardOutput.FromString(response.content)
        .loss_fn_outputs[0]
        .SerializeToString(deterministic=True)
    )


async def fuzz(api, seed, count):
    """Send `count` cases; return how often each outcome came, and what was the server's fault."""
    choices = random.Random(seed)
    healthy = await api.model()
    before = await reference(api, healthy, 1)
    victims, seen, faults = Victims(api), Counter(), []
    memory = 0
    for case in range(count):
        model, seq_id = await victims.next_case()
        message = valid_request(choices, model, seq_id, vocab=VOCAB)
        name, body = mutated(choices, message)
        outcome, text = await outcome_of(api, body)
        seen[outcome] += 1
        assert len(text) < MOST_WORDS, (case, name, text[:200])
        if outcome in {"server", "unknown"} and "did not arrive within" not in text:
            faults.append((case, name, text))
        if case == WARM_UP:
            memory = psutil.Process().memory_info().rss
    assert await reference(api, healthy, 2) == before
    if memory:
        assert psutil.Process().memory_info().rss - memory < MOST_GROWTH
    return seen, faults


@pytest.fixture
def quick_config(make_config):
    return make_config(limits=Limits(max_rank=64), sequence_gap_timeout_s=0.05, session_ttl_s=3600)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("seed", "count"),
    [(1, 500), pytest.param(2, 10_000, marks=[pytest.mark.soak])],
)
async def test_damaged_messages_are_refused_by_name(quick_config, serve, seed, count):
    async with serve(quick_config) as api:
        seen, faults = await fuzz(api, seed, count)
    assert faults == []
    assert sum(seen.values()) == count
    assert min(seen["user"], seen["400"], seen["done"]) > count / 50, seen
