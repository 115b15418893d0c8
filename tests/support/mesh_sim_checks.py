"""What must be true of a simulated mesh, whatever went wrong before."""

from __future__ import annotations

from tinkex.errors import AuthenticationError, TinkerError
from tinkex.mesh.api.gateway import GatewayApi, ListModels
from tinkex.mesh.feeds.policy import MESH_FEEDS
from tinkex.mesh.usage import FROM_RESERVATION

SETTLED_WITHIN_S = 60.0
"""After healing; records last for three quarters of a minute."""
RENEWED_S = 60.0
"""By then every record that was there at healing has ended, or was renewed."""
LENT_S = 150.0
"""Tokens that were lent come back: the lease's half minute on a clock that is a minute off, and the
half minute after which a gateway says that nothing happened."""
REVOKED_WITHIN_S = 5.0


def check_tokens(users):
    """What came is what should have, and nothing else; else there is a typed error."""
    for asked in (one for user in users for one in user.asked):
        assert asked.right(), asked
        assert asked.state != "failed" or isinstance(asked.error, TinkerError), asked
        if asked.receipt is not None:
            told = (asked.receipt.prompt_tokens, asked.receipt.completion_tokens)
            assert told == (len(asked.prompt), asked.received), asked


def check_permits(world):
    """No processor served anything without a permit that was right and not used before."""
    assert world.watch.wrong == []


def check_usage(user, report):
    """The books say what was delivered, or what was reserved, and no more than may be used."""
    entries = {entry.request_id: entry for entry in report.entries}
    assert len(entries) == len(report.entries), "an entry for each request"
    costs = {
        request_id: entry.prompt_tokens + entry.completion_tokens
        for request_id, entry in entries.items()
    }
    assert report.used_tokens == sum(costs.values())
    assert report.quota_tokens is None or report.used_tokens <= report.quota_tokens
    for asked in user.asked:
        entry = entries.get(asked.request_id)
        if entry is None:
            assert not asked.received, f"delivered, and in no book: {asked}"
            continue
        cost = costs[asked.request_id]
        if entry.state == FROM_RESERVATION:
            assert cost == asked.most, (asked, entry)
        elif asked.state == "done":
            assert cost == len(asked.prompt) + asked.received, (asked, entry)
        else:
            assert asked.received <= entry.completion_tokens, (asked, entry)
            assert cost <= asked.most, (asked, entry)


async def wrong_lookups(world):
    """Who does not find exactly those that there are."""
    due = {
        "auth": world.auths,
        "gateway": world.gateways,
        "processor": world.processors,
        "model:sim/script": world.processors,
    }
    wrong = []
    for node in world.nodes:
        for topic, nodes in due.items():
            found = await node.inside(node.member.discovery.lookup(topic))
            got = {record.contact.peer_id for record in found}
            if got != {one.peer_id for one in nodes}:
                wrong.append((node.name, topic, len(got), len(nodes)))
    return wrong


async def different_heads(world):
    """Feeds of which not all who may read them hold the same, and all that their authors hold."""
    held = {node: await node.member.feeds.ends() for node in world.nodes}
    different = []
    for feed, rule in MESH_FEEDS.items():
        readers = [node for node in world.nodes if node.role in rule.readers]
        copies = {node.name: _heads(held[node], feed) for node in readers}
        if len(set(copies.values())) > 1:
            different.append((feed, {name: len(heads) for name, heads in copies.items()}))
        for author in (node for node in world.nodes if readers and node.role in rule.writers):
            own = _heads(held[author], feed, author.peer_id)
            if any(own != _heads(held[node], feed, author.peer_id) for node in readers):
                different.append((feed, f"not all of {author.name}'s entries are everywhere"))
    return different


def _heads(heads, feed, author=None):
    return frozenset(
        (head.chain, head.sequence, head.hash)
        for head in heads
        if head.chain.feed == feed and author in {None, head.chain.author}
    )


async def check_revoked(world, user):
    """A revoked key is refused by every gateway, within seconds."""
    key = user.key
    mesh = user.mesh()
    await user.node.inside(user.change_key(mesh))
    await world.clock.sleep(REVOKED_WITHIN_S)
    for revoked in {key, *(user.keys[key_id] for key_id in user.revoked)}:
        for gateway in world.gateways:
            assert await refused(user, gateway, revoked), gateway.name
    for gateway in world.gateways:
        assert not await refused(user, gateway, user.key), gateway.name


async def refused(user, gateway, key):
    """Whether a gateway refuses a key."""
    peers = user.node.member.peers
    try:
        await user.node.inside(
            peers.call(
                gateway.contact, GatewayApi.rpc_models, ListModels(credential=key), timeout_s=5.0
            )
        )
    except AuthenticationError:
        return True
    return False


def busy(world):
    """What is counted as in progress, though nobody asks for anything."""
    left = []
    for node in world.gateways:
        gateway = node.inner
        left.append((node.name, "requests", gateway.in_progress))
        left += [
            (node.name, f"in flight at {other.name}", gateway._balancer.in_flight(other.peer_id))
            for other in world.processors
        ]
        purse = gateway._ledger._purse
        left.append((node.name, "reservations", len(purse._lease_of)))
    for node in world.processors:
        said = node.inner.service.description
        left.append((node.name, "slots", said.slots - said.free_slots))
        left.append((node.name, "waiting", said.waiting))
        left.append((node.name, "runs", node.backend.running))
    return [one for one in left if one[-1]]


async def check_accounts(users):
    """Every account and key whose making was answered is there, and those revoked are revoked."""
    for user in users:
        if user.acknowledged is None:
            continue
        mesh = user.mesh()
        listed = {key.key_id: key for key in await user.node.inside(_keys(user, mesh))}
        assert set(user.keys) <= set(listed), user.name
        assert all(listed[key_id].revoked_at is not None for key_id in user.revoked), user.name


async def _keys(user, mesh):
    await mesh.login(user.email, "correct horse battery")
    return await mesh.keys()
