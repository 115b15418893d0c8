"""Attacks on what is paid: a gateway that charges for more, a client that signs what it was not."""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass
from random import Random
from types import SimpleNamespace

import msgspec
from mesh_attacks.registry import Suite, nothing, one_each
from mesh_trust import receipt_body

from tinkex._timers import Timers
from tinkex.errors import TinkerError
from tinkex.mesh.api.gateway import Countersign, Receipt
from tinkex.mesh.feeds.entry import EntryId
from tinkex.mesh.identity import KeyPair
from tinkex.mesh.tasks import Tasks
from tinkex.mesh.transport.base import Contact
from tinkex.mesh.trust.receipts import OutputDigest, ReceiptBody, countersign, sign_receipt
from tinkex.mesh.usage import Countersigned, decode_usage
from tinkex.mesh.workers.calling.completer import MeshCompleter
from tinkex.mesh.workers.serving.ledger import Ledger
from tinkex.testing import VirtualClock

GATEWAY, CLIENT, OTHER = (KeyPair(bytes([number]) * 32) for number in (1, 2, 3))
NOW = 1_700_000_000.0


@dataclass(frozen=True)
class Classes:
    """What an attack meets."""

    completer: type = MeshCompleter
    ledger: type = Ledger


def seen():
    digest = OutputDigest(1)
    digest.add(0, [5, 6, 7], "abc")
    return digest


def receipt(signer=GATEWAY, **changes):
    body = receipt_body(GATEWAY, CLIENT, **{"output": seen().digest(), "at": NOW, **changes})
    encoded, signature = sign_receipt(signer, body)
    return Receipt(body=encoded, signature=signature)


# --- a gateway that charges for what did not come -------------------------------------------------


async def agrees(classes, given):
    """Whether a client countersigns a receipt for the three tokens that it got."""
    told = []

    async def call(contact, method, agreed, *, timeout_s):
        told.append(agreed)

    tasks = Tasks(on_error=print)
    clock = VirtualClock()
    completer = classes.completer(
        SimpleNamespace(avoid=lambda _: None),
        SimpleNamespace(call=call),
        CLIENT,
        tasks,
        Timers(clock, on_error=print),
        clock=clock,
    )
    completion = SimpleNamespace(request_id="r", prompt_tokens=4, seen=seen())
    completer._judge(Contact(GATEWAY.peer_id), given, completion)
    await tasks.finished()
    return bool(told)


async def charges_for_more_than_came(classes):
    assert await agrees(classes, receipt())
    wrong = (
        {"completion_tokens": 4},
        {"prompt_tokens": 400},
        {"output": bytes(32)},
        {"request_id": "another"},
        {"client": OTHER.peer_id.raw},
    )
    return not any([await agrees(classes, receipt(**changes)) for changes in wrong])


async def receipt_that_it_can_deny(classes):
    """It is in the gateway's name, and somebody else signed it."""
    return not await agrees(classes, receipt(OTHER))


# --- a client that signs for another --------------------------------------------------------------


class Feed:
    """Keeps what is written."""

    def __init__(self):
        self.written = []

    async def append(self, payload, *, flush=True):
        self.written.append(decode_usage(payload))
        return EntryId(GATEWAY.peer_id, "usage", bytes(16), len(self.written))


def account():
    return SimpleNamespace(account_id="a", key_id="k")


async def ledger_that_gave(classes, given, tasks):
    feed = Feed()
    ledger = classes.ledger(feed, None, tasks, clock=VirtualClock())
    ledger._purse.put_in("l", "a", "k", 100, ledger._clock.now() + 60)
    reserved = await ledger.reserve("r", account(), "m", 50)
    ledger.write_down(reserved)
    await asyncio.shield(reserved.written)
    await ledger.settle(reserved, prompt_tokens=4, completion_tokens=3, receipt=given)
    return ledger, feed


async def counts(classes, signature, *, sender=CLIENT):
    """Whether a countersignature goes into the gateway's books."""
    tasks = Tasks(on_error=print)
    ledger, feed = await ledger_that_gave(classes, receipt(), tasks)
    message = Countersign(body=receipt().body, signature=signature)
    with contextlib.suppress(TinkerError):
        await ledger.countersign(message, sender.peer_id)
    return any(isinstance(event, Countersigned) for event in feed.written)


async def countersigned_by_another(classes):
    """A client that agrees with what somebody else is charged."""
    assert await counts(classes, countersign(CLIENT, receipt().body))
    return not await counts(classes, countersign(OTHER, receipt().body), sender=OTHER)


async def countersignature_that_is_none(classes):
    return not await counts(classes, Random(1).randbytes(64))


def unverified(_self, _contact, given):
    return msgspec.msgpack.decode(given.body, type=ReceiptBody)


SUITE = Suite(
    "receipts",
    Classes(),
    one_each(
        {
            charges_for_more_than_came: ("completer", "_check_fits", nothing),
            receipt_that_it_can_deny: ("completer", "_signed", unverified),
            countersigned_by_another: ("ledger", "_check_given", nothing),
            countersignature_that_is_none: ("ledger", "_check_agreed", nothing),
        }
    ),
)
