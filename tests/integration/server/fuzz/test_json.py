"""Thousands of damaged JSON bodies, on every endpoint that takes one: each refused by name."""

import asyncio
import random
from collections import Counter

import psutil
import pytest
from json_mutations import mutated
from server_support import BASE_MODEL, batch_json, sample_json

from tinkex.server.config import Limits

MOST_SECONDS = 20
MOST_WORDS = 2000
WARM_UP = 100
MOST_GROWTH = 200 * 2**20
SEARCH = {"owner": {"type": "own"}, "statuses": [{"type": "active"}], "limit": 5}


class Stage:
    """A session with a run and a sampler, made anew every so often: some cases end it."""

    def __init__(self, api):
        self.api = api

    async def set(self):
        self.session = await self.api.session()
        self.model = await self.api.model(self.session)
        self.sampler = await self.api.sampler(self.session)
        body = {"model_id": self.model, "seq_id": 1, "path": "saved"}
        self.path = (await self.api.result(await self.api.ok("/save_weights", body)))["path"]
        self.number = 1
        self.future = await self.api.ok("/unload_model", {"model_id": "none"})

    def bodies(self):
        """A body that works for each endpoint."""
        self.number += 1
        run = self.api.services.runs.find(self.api.owner, self.model)
        at = {"model_id": self.model, "seq_id": 1 if run is None else run.next_seq_id}
        session = {"session_id": self.session}
        metadata = {"user_metadata": {"a": "b"}, "ttl_seconds": 7200}
        forward = batch_json(self.model, at["seq_id"])
        forward["forward_input"] = forward.pop("forward_backward_input")
        lora = {"rank": 4, "seed": 1, "train_mlp": True}
        target = {"type": "sampling_session", "sampling_session_id": self.sampler}
        dense = {"data": [6, 9, 7, 1], "dtype": "int64", "shape": [2, 2]}
        sample = sample_json(self.sampler, self.number) | {
            "topk_prompt_logprobs": 2,
            "prompt_logprobs": True,
            "target_prompt_logprobs": dense,
        }
        stop = [1, 2]
        sample["sampling_params"] |= {"stop": stop, "top_k": 5, "top_p": 0.9, "temperature": 0.5}
        name = f"n{self.number}"
        return {
            "/client/config": {"sdk_version": "0.38.0"},
            "/telemetry": {"events": [], "platform": "x"},
            "/create_session": {"tags": ["a"], "sdk_version": "1", "user_metadata": {"a": {}}},
            "/session_heartbeat": session,
            "/create_model": {
                **session,
                "model_seq_id": self.number,
                "base_model": BASE_MODEL,
                "lora_config": lora,
                "optimizer_config": {"type": "adamw"},
            },
            "/get_info": {"model_id": self.model},
            "/forward_backward": batch_json(self.model, at["seq_id"]),
            "/forward": forward,
            "/optim_step": {**at, "adam_params": {"learning_rate": 0.1, "beta1": 0.9}},
            "/save_weights": {**at, "path": name, **metadata, "overwrite": False},
            "/save_weights_for_sampler": {**at, "path": name, **metadata, "kind": "snapshot"},
            "/save_weights_external": {**at, "path": name, "ttl_seconds": 7200},
            "/load_weights": {**at, "path": self.path, "optimizer": True},
            "/weights_info": {"tinker_path": self.path},
            "/create_sampling_session": {
                **session,
                "sampling_session_seq_id": self.number,
                "base_model": BASE_MODEL,
            },
            "/join_sampling_session": {"sampling_session_id": self.sampler},
            "/asample": sample,
            "/retrieve_future": {**self.future, "allow_metadata_only": True},
            "/retrieve_futures": {
                "target": target,
                "prev_cursor": 0,
                "timeout": 0.0,
                "retrieved_request_ids": ["a"],
            },
            "/cancel_future": self.future,
            "/copy_weights": {"source_path": self.path, "ttl_seconds": 7200},
            "/sessions/search": SEARCH,
            "/create_custom_loss": {
                **session,
                "custom_loss_seq_id": self.number,
                "name": "x",
                "inputs": [{"name": "logprobs", "rank": 1}],
                "graph": {"format": 1, "nodes": [NODE, TOTAL, OUTPUT]},
            },
        }


NODE = {"op": "placeholder", "name": "logprobs", "target": "logprobs", "args": [], "kwargs": {}}
TOTAL = {"op": "call_method", "name": "x", "target": "sum", "args": [{"ref": "logprobs"}]}
OUTPUT = {
    "op": "output",
    "name": "output",
    "target": "output",
    "args": [{"tuple": [{"ref": "x"}, {"dict": {}}]}],
}


async def outcome_of(api, path, body):
    """Send a body and wait for what comes of it: (a status or a category, the text)."""
    response = await api.post(path, content=body, headers={"Content-Type": "application/json"})
    if response.status_code != 200:
        assert 400 <= response.status_code < 500, (path, response.text)
        assert response.status_code != 409
        return str(response.status_code), response.json()["detail"]
    answer = response.json()
    if "request_id" in answer and path != "/retrieve_future":
        answer = await api.result(answer)
    return answer.get("category", "done"), answer.get("error", "")


async def fuzz(api, seed, count):
    choices = random.Random(seed)
    healthy = await api.model()
    before = (await api.result(await api.ok("/forward_backward", batch_json(healthy, 1))))[
        "metrics"
    ]
    stage, seen, faults, memory = Stage(api), Counter(), [], 0
    for case in range(count):
        if case % 50 == 0:
            if case:
                path = f"/sessions/{stage.session}/finish"
                await api.post(path, {"reason": {"type": "success"}, "detail": None})
            await stage.set()
        path, body = choices.choice(sorted(stage.bodies().items()))
        name, data = mutated(choices, body)
        outcome, text = await asyncio.wait_for(outcome_of(api, path, data), MOST_SECONDS)
        seen[outcome] += 1
        assert len(text) < MOST_WORDS, (case, name, path)
        if outcome in {"server", "unknown"} and "did not arrive within" not in text:
            faults.append((case, path, name, text))
        if case == WARM_UP:
            memory = psutil.Process().memory_info().rss
    after = (await api.result(await api.ok("/forward_backward", batch_json(healthy, 2))))["metrics"]
    assert after["loss:sum"] == before["loss:sum"]
    if memory:
        assert psutil.Process().memory_info().rss - memory < MOST_GROWTH
    return seen, faults


@pytest.mark.slow
@pytest.mark.parametrize(
    ("seed", "count"), [(1, 500), pytest.param(2, 10_000, marks=[pytest.mark.soak])]
)
async def test_damaged_bodies_are_refused_by_name(make_config, serve, seed, count):
    limits = Limits(max_rank=64)
    config = make_config(
        limits=limits, sequence_gap_timeout_s=0.05, long_poll_s=0.2, session_ttl_s=3600
    )
    async with serve(config) as api:
        seen, faults = await fuzz(api, seed, count)
    assert faults == []
    assert sum(seen.values()) == count
    assert min(seen["422"], seen["400"], seen["done"]) > count / 50, seen
