"""Attacks on feeds: entries, the file, snapshots, what peers may have, sources that lie."""

import contextlib
from dataclasses import dataclass

import msgspec
from mesh_attacks.registry import Defence, Suite, nothing, one_each
from mesh_feeds import START, key, member, payloads

from tinkex.errors import TinkerError
from tinkex.mesh.api.feeds import (
    Entries,
    EntriesRequest,
    Heads,
    HeldChain,
    KeysRequest,
    Push,
)
from tinkex.mesh.feeds import store as store_module
from tinkex.mesh.feeds.admission import PushAdmission
from tinkex.mesh.feeds.chain import ChainRules, ForkProof
from tinkex.mesh.feeds.config import ReplicationConfig
from tinkex.mesh.feeds.entry import (
    MAX_ENTRY_BYTES,
    EntryId,
    Raw,
    read_entry,
    read_header,
    sign_entry,
)
from tinkex.mesh.feeds.epoch import EpochRules, open_epoch
from tinkex.mesh.feeds.policy import ACCOUNTS_PRIVATE, ACCOUNTS_PUBLIC, USAGE
from tinkex.mesh.feeds.pulling import Puller
from tinkex.mesh.feeds.service import FeedService, digest_of
from tinkex.mesh.feeds.snapshot import CoveredHead, SnapshotRules, sign_snapshot
from tinkex.mesh.feeds.store import FeedStore
from tinkex.mesh.feeds.vault import Vault
from tinkex.mesh.identity import PeerId
from tinkex.mesh.roles import Role
from tinkex.mesh.rpc.service import Call
from tinkex.mesh.transport.base import Contact
from tinkex.mesh.trust.certificates import (
    CertificateBody,
    Chain,
    Grant,
    RoleCertificate,
    check_certificate,
)
from tinkex.testing import VirtualClock

FEED = ACCOUNTS_PUBLIC
AUTHOR, VICTIM = member(1), member(2)
NOW = int(START * 1e6)


@dataclass(frozen=True)
class Classes:
    """What an attack meets."""

    chain: type = ChainRules
    epoch: type = EpochRules
    snapshot: type = SnapshotRules
    store: type = FeedStore
    proof: type = ForkProof
    service: type = FeedService
    admission: type = PushAdmission
    puller: type = Puller


@contextlib.asynccontextmanager
async def victim(folder, classes, who=VICTIM, **options):
    """A store with the classes' rules, open."""
    held = classes.store(folder / "feeds.db", who, clock=VirtualClock(), inline=True, **options)
    held.chain_rules = classes.chain()
    held.epoch_rules = classes.epoch(held._member, held.policy)
    held.snapshot_rules = classes.snapshot(held._member, held.policy)
    async with held:
        yield held


async def refused(awaitable):
    """Whether something was refused by a typed error."""
    try:
        await awaitable
    except TinkerError:
        return True
    return False


def opening(who=AUTHOR, *, feed=FEED, epoch=bytes(16), time=NOW):
    return open_epoch(who, feed=feed, epoch=epoch, time=time, builds_on=[])


def following(entry, *, who=AUTHOR, sequence=None, time=None, payload=b"x"):
    header = entry.header
    return sign_entry(
        who.key_pair,
        feed=header.feed,
        epoch=header.epoch,
        sequence=header.sequence + 1 if sequence is None else sequence,
        previous=entry.hash,
        time=header.time + 1 if time is None else time,
        payload=payload,
    )


async def ingests_nothing(folder, classes, *entries):
    """Whether the last of these entries is refused."""
    async with victim(folder, classes) as held:
        for entry in entries[:-1]:
            await held.ingest([entry.encoded()])
        chain = entries[-1].chain
        before = await held.head(chain)
        await refused(held.ingest([entries[-1].encoded()]))
        return await held.head(chain) == before


# --- entries ----------------------------------------------------------------------------------


async def forged_signature(folder, classes):
    first = opening()
    entry = following(first)
    forged = Raw(entry.raw.header, key(3).sign("feed-entry", entry.raw.header), entry.payload)
    return await ingests_nothing(folder, classes, first, read_entry(forged))


async def gap_in_the_chain(folder, classes):
    first = opening()
    return await ingests_nothing(folder, classes, first, following(first, sequence=5))


async def entry_of_the_future(folder, classes):
    first = opening()
    return await ingests_nothing(folder, classes, first, following(first, time=NOW + 3600 * 10**6))


async def giant_payload(folder, classes):
    first = opening()
    giant = following(first, payload=bytes(MAX_ENTRY_BYTES))
    return await ingests_nothing(folder, classes, first, giant)


async def uncertified_author(folder, classes):
    stranger = member(4, root=key(77))
    return await ingests_nothing(folder, classes, opening(stranger))


async def role_that_may_not_write(folder, classes):
    return await ingests_nothing(folder, classes, opening(member(4, Role.GATEWAY)))


async def epoch_beyond_its_certificate(folder, classes):
    short = member(4, start=START - 200, lasts=100)
    first = opening(short, time=NOW - 150 * 10**6)
    return await ingests_nothing(folder, classes, first, following(first, who=short, time=NOW))


async def entry_of_a_revoked_author(folder, classes):
    first = opening()
    async with victim(folder, classes) as held:
        held.revoked_at = {AUTHOR.key_pair.peer_id: START - 1}.get
        return await refused(held.ingest([first.encoded()]))


async def epochs_without_end(folder, classes):
    before, store_module.MAX_EPOCHS = store_module.MAX_EPOCHS, 3
    try:
        async with victim(folder, classes) as held:
            for number in range(5):
                done = held.ingest([opening(epoch=bytes([number]) * 16).encoded()])
                if await refused(done):
                    return number == 3
        return False
    finally:
        store_module.MAX_EPOCHS = before


async def log_fork(folder, classes):
    first = opening()
    async with victim(folder, classes) as held:
        await held.ingest([first.encoded(), following(first, payload=b"pay 1").encoded()])
        await refused(held.ingest([following(first, payload=b"pay 9").encoded()]))
        return held.forked(AUTHOR.key_pair.peer_id)


async def stolen_key_continues_the_epoch(folder, classes):
    async with victim(folder, classes, new_epoch=lambda: bytes(16)) as held:
        written = await held.own(FEED).append(b"mine")
        entry = await held.entry(written)
        return await refused(held.ingest([following(entry, who=VICTIM).encoded()]))


async def forged_proof_of_a_fork(folder, classes):
    first = opening()
    one, other = following(first, payload=b"1"), following(first, payload=b"2")
    stranger = key(3).sign("feed-entry", other.raw.header)
    proof = classes.proof(one.raw.header, one.raw.signature, other.raw.header, stranger)
    async with victim(folder, classes) as held:
        await refused(held.shut_out(proof))
        return not held.forked(AUTHOR.key_pair.peer_id)


# --- the file ---------------------------------------------------------------------------------


async def tampered_file(folder, classes):
    async with victim(folder, Classes()) as held:
        await held.ingest([opening().encoded()])
        await held.database.write(
            lambda t: t.connection.execute("UPDATE chains SET expires = expires + 1e9")
        )
    with contextlib.suppress(TinkerError):
        async with victim(folder, classes):
            return False
    return True


# --- snapshots --------------------------------------------------------------------------------


def snapshot(who=AUTHOR):
    covered = CoveredHead(bytes(16), 3, b"h" * 32, NOW, START + 1000)
    return sign_snapshot(
        who.key_pair,
        feed=FEED,
        certificate=who.certificate,
        signed_at=START,
        covered=(covered,),
        states={"view@1": b"honest"},
    )


async def adopts_nothing(folder, classes, forged):
    async with victim(folder, classes) as held:
        await refused(held.adopt(forged))
        return await held.snapshots(FEED) == []


async def forged_snapshot(folder, classes):
    made = snapshot()
    signature = key(3).sign("feed-snapshot", made.body)
    forged = msgspec.structs.replace(made, signature=signature)
    async with victim(folder, classes) as held:
        return await refused(held.adopt(forged))


async def snapshot_with_another_state(folder, classes):
    forged = msgspec.structs.replace(snapshot(), states={"view@1": b"forged"})
    async with victim(folder, classes) as held:
        return await refused(held.adopt(forged))


async def strangers_snapshot(folder, classes):
    return await adopts_nothing(folder, classes, snapshot(member(4, root=key(77))))


# --- what peers may have ----------------------------------------------------------------------


def call(who, role):
    certificate = check_certificate(
        who.certificate, network=who.network, roots=who.roots, now=START
    )
    assert certificate.role is role
    return Call(who.key_pair.peer_id, certificate, 1e9)


GATEWAY = member(5, Role.GATEWAY)
FROM_GATEWAY = call(GATEWAY, Role.GATEWAY)
FROM_AUTH = call(AUTHOR, Role.AUTH)


@contextlib.asynccontextmanager
async def offered(folder, classes, who=VICTIM, role=Role.AUTH):
    """A worker's service over its store."""
    async with victim(folder, classes, who) as held:
        vault = Vault(held, on_error=print)
        await vault.open()
        config = ReplicationConfig(push_entries_per_s=5, push_burst_s=2, max_strikes=3)
        service = classes.service(
            held,
            role,
            clock=VirtualClock(),
            config=config,
            asked=lambda *_: None,
            behind=lambda _: None,
            ingest=lambda _, chain, run: held.ingest(run),
            vault=vault,
        )
        service.admission = classes.admission(config)
        yield held, service, vault
        await vault.close()


async def gateway_asks_for_password_hashes(folder, classes):
    async with offered(folder, classes) as (held, service, _):
        written = await held.own(ACCOUNTS_PRIVATE).append(b"hash")
        request = EntriesRequest(written.author.raw, ACCOUNTS_PRIVATE, written.epoch, -1)
        return await refused(anext(service.rpc_entries(request, FROM_GATEWAY)))


async def gateway_asks_for_persons_keys(folder, classes):
    async with offered(folder, classes) as (_, service, vault):
        await vault.seal("u1", b"ada", field="name")
        return await refused(service.rpc_keys(KeysRequest(b"", 0), FROM_GATEWAY))


async def push_of_what_is_not_the_pushers(folder, classes):
    async with offered(folder, classes) as (held, service, _):
        push = Push((opening(feed=ACCOUNTS_PRIVATE).encoded(),))
        await refused(service.rpc_push(push, FROM_GATEWAY))
        return await held.heads() == []


async def flooded_push(folder, classes):
    async with offered(folder, classes) as (held, service, _):
        first = opening()
        run = [first]
        for _ in range(30):
            run.append(following(run[-1]))
        for entry in run:
            await refused(service.rpc_push(Push((entry.encoded(),)), FROM_AUTH))
        return len(await payloads(held, FEED)) < 15


async def pushes_that_never_check(folder, classes):
    async with offered(folder, classes) as (_held, service, _):
        junk = Push((following(opening(feed=USAGE)).encoded(),))
        for _ in range(3):
            await refused(service.rpc_push(junk, FROM_GATEWAY))
        return await refused(service.rpc_push(Push(()), FROM_GATEWAY))


# --- a source that lies -----------------------------------------------------------------------


class LyingPeers:
    """A source that answers what the attacker wants."""

    def __init__(self, offered_chains, entries):
        self.offered = offered_chains
        self.entries = entries

    async def call(self, contact, method, request, *, timeout_s):
        assert method.__name__ == "rpc_heads"
        return Heads(b"liar", 1, False, tuple(self.offered), (), digest_of([]))

    async def stream(self, contact, method, request, *, timeout_s, idle_timeout_s=None):
        yield Entries(tuple(entry.encoded() for entry in self.entries))


def head(entry):
    return HeldChain(entry.raw.header, entry.raw.signature, -1)


async def pulls_nothing(folder, classes, offered_chains, entries, who, role):
    async with victim(folder, classes, who) as held:
        puller = classes.puller(
            Contact(AUTHOR.key_pair.peer_id),
            LyingPeers(offered_chains, entries),
            held,
            role,
            clock=VirtualClock(),
            config=ReplicationConfig(),
            ingest=lambda _, chain, run: held.ingest(run),
            vault=None,
        )
        with contextlib.suppress(TinkerError):
            await puller.round()
        return await held.heads() == []


async def source_gives_what_this_worker_may_not_hold(folder, classes):
    private = opening(feed=ACCOUNTS_PRIVATE)
    return await pulls_nothing(folder, classes, [head(private)], [private], GATEWAY, Role.GATEWAY)


async def source_gives_another_chain_than_was_asked_for(folder, classes):
    asked, given = opening(), opening(feed=ACCOUNTS_PRIVATE)
    return await pulls_nothing(folder, classes, [head(asked)], [given], GATEWAY, Role.GATEWAY)


# --- each defence, and how it is turned off ---------------------------------------------------


def unchecked_certificate(_self, shown, entry):
    chain = msgspec.msgpack.decode(shown.certificate, type=Chain)
    grant = msgspec.msgpack.decode(chain.grant.body, type=Grant)
    body = msgspec.msgpack.decode(chain.certificate.body, type=CertificateBody)
    return RoleCertificate(
        PeerId(grant.network), entry.author, grant.role, b"", entry.author, 0, body.expires_at, b""
    )


def unchecked_proof(self):
    at = read_header(self.header)
    return EntryId(PeerId(at.author), at.feed, at.epoch, at.sequence)


def yes(*_):
    return True


class WeakProof(ForkProof, frozen=True, array_like=True):
    check = unchecked_proof


SUITE = Suite(
    "feeds",
    Classes(),
    one_each(
        {
            forged_signature: ("chain", "check_signature", nothing),
            gap_in_the_chain: ("chain", "check_follows", nothing),
            entry_of_the_future: ("chain", "check_time", nothing),
            giant_payload: ("chain", "check_size", nothing),
            uncertified_author: ("epoch", "check_certificate", unchecked_certificate),
            role_that_may_not_write: ("epoch", "check_writer", nothing),
            epoch_beyond_its_certificate: ("epoch", "check_within", nothing),
            entry_of_a_revoked_author: ("store", "check_not_revoked", nothing),
            epochs_without_end: ("store", "check_room", nothing),
            log_fork: ("store", "find_fork", nothing),
            stolen_key_continues_the_epoch: ("store", "check_not_mine", nothing),
            tampered_file: ("store", "check_file", nothing),
            forged_proof_of_a_fork: ("proof", "", WeakProof),
            forged_snapshot: ("snapshot", "check_signature", nothing),
            snapshot_with_another_state: ("snapshot", "check_states", nothing),
            strangers_snapshot: ("snapshot", "check_author", nothing),
            gateway_asks_for_password_hashes: ("service", "may_have", yes),
            gateway_asks_for_persons_keys: ("service", "check_may_have_keys", nothing),
            flooded_push: ("admission", "check_rate", nothing),
            pushes_that_never_check: ("admission", "check_strikes", nothing),
            source_gives_what_this_worker_may_not_hold: ("puller", "may_hold", yes),
            source_gives_another_chain_than_was_asked_for: ("puller", "check_asked_for", nothing),
        },
        Defence(
            "service",
            "check_pushed",
            nothing,
            (push_of_what_is_not_the_pushers, pushes_that_never_check),
        ),
    ),
)
