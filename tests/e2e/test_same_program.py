"""The same program with the unmodified official SDK and with ours, against a real server."""

import re

import numpy as np
import pytest
from flows import train_and_sample
from recording_proxy import recording_proxy

pytestmark = [
    pytest.mark.interop,
    # The official package warns of its own deprecated calls, and leaves sockets to the collector.
    pytest.mark.filterwarnings("ignore"),
]

SDKS = ["tinker", "tinkex"]

# How often these are sent depends on the clock, and telemetry's content on the SDK.
UNTIMED = {"/api/v1/session_heartbeat", "/api/v1/telemetry", "/api/v1/retrieve_future"}


@pytest.mark.parametrize("name", SDKS)
def test_loss_halves_in_twenty_steps_when_training(name, load_sdk, login):
    run = train_and_sample(load_sdk(name), login, learning_rate=1e-2)
    assert run.losses[-1] < run.losses[0] / 2


@pytest.mark.parametrize("name", SDKS)
def test_loss_stays_when_learning_rate_is_zero(name, load_sdk, login):
    run = train_and_sample(load_sdk(name), login, learning_rate=0.0)
    assert run.losses == pytest.approx([run.losses[0]] * 20, rel=1e-6)


def normalised(value):
    """Replace what differs from run to run: session ids, request ids and versions."""
    if isinstance(value, dict):
        hidden = {"sdk_version", "request_id"}
        return {k: "…" if k in hidden else normalised(v) for k, v in value.items()}
    if isinstance(value, list):
        return [normalised(item) for item in value]
    if isinstance(value, str):
        return re.sub(r"[0-9a-f]{8}-?[0-9a-f-]{20,}", "ID", value)
    return value


def by_path(exchanges):
    paths = {}
    for exchange in exchanges:
        key = f"{exchange.method} {normalised(exchange.path)}"
        if exchange.path not in UNTIMED:
            paths.setdefault(key, []).append(normalised(exchange.body))
    return paths


def test_both_sdks_send_equal_requests_and_get_equal_results(server, load_sdk):
    runs, requests, headers = {}, {}, {}
    for name in SDKS:
        with recording_proxy(server.address.url) as (url, exchanges):
            login = {"base_url": url, "api_key": server.address.api_key}
            runs[name] = train_and_sample(load_sdk(name), login, learning_rate=3e-3, steps=5)
        requests[name] = by_path(exchanges)
        headers[name] = {
            (normalised(e.path), e.headers.get("content-type"), e.headers.get("accept"))
            for e in exchanges
            if not e.path.endswith(("telemetry", "heartbeat")) and "/sessions/" not in e.path
        }
        assert all("x-api-key" in e.headers for e in exchanges)
    for name in SDKS:  # both ask in batches; how often depends on what is done when they ask
        assert requests[name].pop("POST /api/v1/retrieve_futures")
    assert requests["tinkex"] == requests["tinker"]
    assert headers["tinkex"] == headers["tinker"]
    ours, official = runs["tinkex"], runs["tinker"]
    assert ours.losses == official.losses
    assert ours.tokens == official.tokens
    assert ours.sample_logprobs == official.sample_logprobs
    assert ours.stop_reasons == official.stop_reasons
    for a, b in zip(ours.logprobs, official.logprobs, strict=True):
        assert np.array_equal(a, b)
