"""What each worker's page shows to Prometheus after somebody has used the mesh."""

import asyncio
import re
from pathlib import Path

import httpx
import pytest
from mesh_whole import MODEL, PASSWORD, PATIENCE_S, Network, Role, processor
from prometheus_client.parser import text_string_to_metric_families

from tinkex.mesh.client import MeshClient
from tinkex.openai_api.completer import CompletionRequest, TextPrompt

GUIDE = Path(__file__).parents[4] / "docs/guides/mesh-operating.md"
PROMPT = "somebodys-secret-words"
EMAIL = "ann@example.org"


async def used(network):
    """Complete a prompt with one worker of each role; these, and what must stay unsaid."""
    authority = await network.start(Role.AUTH)
    contact = authority.member.contact
    workers = {Role.AUTH: authority}
    for role in (Role.BOOTSTRAP, Role.PROCESSOR, Role.GATEWAY, Role.CLIENT):
        build = processor() if role is Role.PROCESSOR else None
        workers[role] = await network.start(role, contact, build=build)
    mesh = MeshClient(workers[Role.CLIENT].inner, clock=network.clock)
    account = await mesh.register(EMAIL, PASSWORD)
    await mesh.login(EMAIL, PASSWORD)
    key = (await mesh.create_key("k")).key
    mesh.use_key(key)
    async with asyncio.timeout(PATIENCE_S):  # the gateway looks for processors every few seconds
        while MODEL not in {model.name for model in await mesh.models()}:
            await network.clock.sleep(0.05)
    request = CompletionRequest(model=MODEL, prompt=TextPrompt(PROMPT), max_tokens=8)
    completion = await mesh.complete(request)
    said = "".join([piece.text async for piece in completion.pieces() if piece is not None])
    receipt = await completion.settled()
    secrets = {PROMPT, EMAIL, account, key, key[4:], said, receipt.request_id}
    secrets |= {str(worker.member.key_pair.peer_id) for worker in workers.values()}
    return workers, secrets


async def shown(worker):
    async with httpx.AsyncClient(base_url=worker.member.admin_url) as page:
        reply = await page.get("/metrics")
    assert reply.status_code == 200
    return reply.text


async def settled(network, workers):
    """What the pages show once each worker has heard of the others and has what they write."""
    await network.until(lambda: not workers[Role.GATEWAY].inner.in_progress)
    async with asyncio.timeout(PATIENCE_S):
        while True:
            texts = {role: await shown(worker) for role, worker in workers.items()}
            seen = {role: values(text) for role, text in texts.items()}
            gateway = seen[Role.GATEWAY]
            if (
                all(found["ready",] == 1 and found["dht_nodes",] >= 1 for found in seen.values())
                and all(found["feed_entries", "network"] > 0 for found in seen.values())
                and gateway["feed_chains_behind",] == 0
                and gateway["feed_entries", "usage"] >= 3
                and (gateway["processors",], seen[Role.CLIENT]["gateways",]) == (1, 1)
                and seen[Role.AUTH]["gateways",] == 1  # it has heard of what was used
            ):
                return texts, seen
            await network.clock.sleep(0.05)


def values(text):
    """Every sample's value, by its name and its labels' values."""
    return {
        (sample.name.removeprefix("tinkex_mesh_"), *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def names(text):
    """The names of metrics as the documentation gives them."""
    found = set()
    for family in text_string_to_metric_families(text):
        if family.name.startswith("tinkex_mesh_") and not family.name.endswith("_created"):
            found.add(family.name + ("_total" if family.type == "counter" else ""))
    return found


@pytest.fixture
async def network(tmp_path):
    made = Network(tmp_path / "net")
    async with made.stack:
        yield made


async def test_metrics_say_what_was_done_and_never_for_whom_and_the_guide_names_each(network):
    workers, secrets = await used(network)
    texts, seen = await settled(network, workers)
    for text in texts.values():
        assert not [secret for secret in secrets if secret in text]
        assert len(text.splitlines()) < 2000
    served = set().union(*map(names, texts.values()))
    documented = set(re.findall(r"`(tinkex_mesh_\w+)", GUIDE.read_text()))
    assert served == documented

    for numbers in seen.values():
        assert numbers["feed_entries_pruned", "network"] == 0
    gateway, working = seen[Role.GATEWAY], seen[Role.PROCESSOR]
    tokens = {"prompt": len(PROMPT), "completion": 8}
    for kind, count in tokens.items():
        assert gateway["tokens_total", kind] == working["tokens_total", kind] == count
    assert gateway["calls_total", "incoming", "gateway.complete", "ok"] == 1
    assert gateway["first_token_seconds_count",] == 1
    assert gateway["leases",] == 1
    assert gateway["auth_unheard_seconds",] < 60
    assert (working["slots",], working["slots_free",]) == (8, 8)
    authority = seen[Role.AUTH]
    assert (authority["accounts",], authority["leads",], authority["gateways",]) == (1, 1, 1)
