"""What a simulation checks can fail: one defence of the workers is off, and its check says so.

Each case is a life like those of `test_scenarios.py`, with the faults that need the defence.
"""

import traceback
from dataclasses import dataclass, field

import pytest
from mesh_sim_scenario import Scenario

from tinkex.mesh.accounts.public import PublicAccounts
from tinkex.mesh.accounts.state import AccountsState
from tinkex.mesh.balancer import Place
from tinkex.mesh.dht.announcer import Announcer
from tinkex.mesh.dht.node import DhtNode
from tinkex.mesh.feeds.policy import USAGE, FeedPolicy
from tinkex.mesh.feeds.replication import Replicator
from tinkex.mesh.quota import QuotaLedger
from tinkex.mesh.trust.permits import PermitCheck
from tinkex.mesh.workers.serving import ledger
from tinkex.mesh.workers.serving.relay import Relay
from tinkex.testing.simulation import simulate

TINY = {"auths": 1, "gateways": 2, "processors": 2, "clients": 1, "chaos_s": 6.0, "every_s": 0.4}
SEED = 7
LIVES = 10


@dataclass
class Off:
    """A defence that is off, and where that shows."""

    owner: object
    method: str
    instead: object
    shows: str
    """A function that fails, or a word of its error."""
    kinds: dict = field(default_factory=lambda: {"cut": 1})
    """Of faults."""
    auth: dict = field(default_factory=dict)


def nothing(*_, **__):
    pass


async def soon_nothing(*_, **__):
    pass


async def failing(_):
    raise KeyError


def one_token_short(self):
    return tuple(tuple(one.tokens[:-1]) for one in self._sequences) if self.sent else ()


def for_nothing(settle):
    async def settled(self, reservation, **told):
        await settle(self, reservation, **told | {"completion_tokens": 0})

    return settled


def models_never(renew):
    async def renewed(self):
        if any(topic.startswith("model:") for topic in self._announcements):
            return 1e9
        return await renew(self)

    return renewed


def all_but_usage(may_have):
    return lambda self, feed, *who: feed != USAGE and may_have(self, feed, *who)


POOR = {"default_quota_tokens": 150}
OFF = {
    "a stream goes on one token too early": Off(
        Relay, "resume", property(one_token_short), "check_tokens", {"strike": 1}
    ),
    "a permit may be used twice": Off(
        PermitCheck, "check_unused", nothing, "check_permits", {"steal": 1}
    ),
    "leases are given whatever is left": Off(
        QuotaLedger, "_room", nothing, "check_usage", auth=POOR
    ),
    "records are not renewed": Off(
        Announcer, "renew", models_never(Announcer.renew), "stays_settled"
    ),
    "accounts are forgotten": Off(AccountsState, "with_email", nothing, "check_accounts"),
}
BESIDES = {
    "a permit is good everywhere": Off(
        PermitCheck, "check_processor", nothing, "check_permits", {"steal": 1}
    ),
    "what was sampled costs nothing": Off(
        ledger.Ledger, "settle", for_nothing(ledger.Ledger.settle), "check_usage"
    ),
    "a crash leaves reservations open": Off(
        ledger, "closing_entries", lambda *_: [], "lent", {"topple": 1}
    ),
    "revoked keys stay good": Off(PublicAccounts, "_check_not_revoked", nothing, "check_revoked"),
    "places are never given back": Off(Place, "release", nothing, "in progress"),
    "usage stays where it is written": Off(
        FeedPolicy, "may_have", all_but_usage(FeedPolicy.may_have), "feeds"
    ),
    "something fails in the background": Off(DhtNode, "_probe", failing, "KeyError"),
    "tasks outlive their owners": Off(Replicator, "stop", soon_nothing, "end"),
}


def failure_of(off, folder, seed):
    """Where a life failed, and what it said; nothing where all was right."""

    folder.mkdir()

    async def live():
        await Scenario(seed, folder, kinds=off.kinds, auth=off.auth, **TINY).run()

    try:
        simulate(live(), seed=seed)
    except Exception as error:  # noqa: BLE001 - whatever a check raises
        return {frame.name for frame in traceback.extract_tb(error.__traceback__)}, str(error)
    return None


def shows(off, folder, monkeypatch):
    """See one of some lives fail as it must: not in each does what needs the defence happen."""
    monkeypatch.setattr(off.owner, off.method, off.instead)
    failures = []
    for seed in range(SEED, SEED + LIVES):
        if failure := failure_of(off, folder / str(seed), seed):
            where, said = failure
            if off.shows in where or off.shows in said:
                return
            failures.append(failure)
    pytest.fail(f"{off.shows} did not show: {failures}")


@pytest.mark.parametrize("name", OFF)
def test_without_a_defence_its_property_does_not_hold(name, tmp_path, monkeypatch):
    shows(OFF[name], tmp_path, monkeypatch)


@pytest.mark.soak
@pytest.mark.parametrize("name", BESIDES)
def test_without_a_defence_its_check_fails(name, tmp_path, monkeypatch):
    shows(BESIDES[name], tmp_path, monkeypatch)
