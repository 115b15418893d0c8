"""A gateway's books, beside what whole gateways show."""

import asyncio
from types import SimpleNamespace

import pytest
from mesh_rpc import SkewedClock, settled
from mesh_trust import receipt_body

from tinkex.errors import APIStatusError, BillingError, RateLimitError, StorageError, status_error
from tinkex.mesh.api.gateway import Countersign, Receipt
from tinkex.mesh.identity import KeyPair
from tinkex.mesh.quota import LeaseGranted, QuotaLedger
from tinkex.mesh.tasks import Tasks, let_others_run
from tinkex.mesh.trust.receipts import countersign, sign_receipt
from tinkex.mesh.usage import (
    Countersigned,
    GatewayUsage,
    LeaseClosed,
    Reserved,
    Settled,
    StillHere,
    decode_usage,
    encode_usage,
)
from tinkex.mesh.workers.serving.ledger import GIVE_BACK_S, LEASE_TIMEOUT_S, OWES_S, TELL_S, Ledger
from tinkex.testing import VirtualClock


class BrokenFeed:
    def __init__(self, error):
        self.error = error

    async def append(self, payload, *, flush=True):
        raise self.error


@pytest.mark.parametrize("error", [StorageError("the disk is full"), KeyError("a mistake")])
async def test_reservation_that_cannot_be_written_is_told_to_whoever_waits(error):
    unforeseen = []
    tasks = Tasks(on_error=lambda found, *_: unforeseen.append(found))
    ledger = Ledger(BrokenFeed(error), None, tasks, clock=VirtualClock())
    ledger._purse.put_in("lease", "account", "key", 100, ledger._clock.now() + 60)
    account = SimpleNamespace(account_id="account", key_id="key")
    reservation = await ledger.reserve("request", account, "model", 50)
    ledger.write_down(reservation)
    with pytest.raises(type(error)):
        await reservation.written
    await tasks.finished()
    assert bool(unforeseen) == isinstance(error, KeyError)


class StuckFeed:
    async def append(self, payload, *, flush=True):
        await asyncio.get_running_loop().create_future()


@pytest.mark.parametrize("turns", [0, 1, 2])
async def test_nobody_waits_for_a_reservation_that_stopping_cut_off(turns):
    tasks = Tasks(on_error=print)
    ledger = Ledger(StuckFeed(), None, tasks, clock=VirtualClock())
    ledger._purse.put_in("lease", "account", "key", 100, ledger._clock.now() + 60)
    account = SimpleNamespace(account_id="account", key_id="key")
    reservation = await ledger.reserve("request", account, "model", 50)
    ledger.write_down(reservation)
    for _ in range(turns):
        await let_others_run()
    await tasks.stop()
    await let_others_run()
    assert reservation.written.cancelled()


class SilentAuth:
    """Auth workers that are gone: who asks waits as long as it can."""

    def __init__(self, clock):
        self.clock = clock
        self.asked = []

    async def ask(self, method, request, *, deadline):
        self.asked.append(getattr(request, "lease_id", None))
        await self.clock.sleep(deadline - self.clock.monotonic())
        raise status_error(503, "No auth worker can be reached.")


async def test_all_requests_of_a_key_wait_once_for_auth_workers_that_do_not_answer():
    clock = VirtualClock()
    auth = SilentAuth(clock)
    ledger = Ledger(WholeFeed(), auth, Tasks(on_error=print), clock=clock)
    account = SimpleNamespace(account_id="account", key_id="key")

    def ask(number):
        return asyncio.ensure_future(ledger.reserve(f"r{number}", account, "model", 50))

    waiting = [ask(number) for number in range(64)]
    for wanted in (1, 2):
        await settled()
        assert len(auth.asked) == wanted
        clock.advance(LEASE_TIMEOUT_S)
        await settled(500)  # one after the other has its turn
        assert all(one.done() for one in waiting)
        for one in waiting:
            error = one.exception()
            assert isinstance(error, APIStatusError)
            assert error.status_code == 503
            assert "No auth worker" in str(error)
        waiting = [ask(64)]  # who comes later has them asked again
    waiting[0].cancel()


async def test_who_waits_behind_one_that_was_called_off_is_asked_for():
    clock, feed = VirtualClock(), WholeFeed()
    auth = SilentAuth(clock)
    ledger = Ledger(feed, auth, Tasks(on_error=print), clock=clock)
    account = SimpleNamespace(account_id="account", key_id="key")
    first, second = (
        asyncio.ensure_future(ledger.reserve(name, account, "model", 50)) for name in "ab"
    )
    await settled()
    first.cancel()
    await settled()
    assert len(auth.asked) == 2
    second.cancel()
    await asyncio.gather(first, second, return_exceptions=True)


class WholeFeed(list):
    async def append(self, payload, *, flush=True):
        super().append(decode_usage(payload))


async def test_end_waits_once_for_auth_workers_that_are_gone_whatever_it_has_to_give_back():
    clock, feed = VirtualClock(), WholeFeed()
    auth = SilentAuth(clock)
    ledger = Ledger(feed, auth, Tasks(on_error=print), clock=clock)
    for number in range(3):
        ledger._purse.put_in(f"lease{number}", "account", f"key{number}", 100, clock.now() + 60)
    closing = asyncio.ensure_future(ledger.close())
    await settled()
    assert [entry.lease_id for entry in feed] == auth.asked == ["lease0", "lease1", "lease2"]
    clock.advance(GIVE_BACK_S)
    await settled()
    assert closing.done()
    await closing


class Disk(WholeFeed):
    """A feed whose disk may be full, or slow."""

    def __init__(self):
        self.is_full, self.has_time = False, asyncio.Event()
        self.has_time.set()

    async def append(self, payload, *, flush=True):
        await self.has_time.wait()
        if self.is_full:
            raise StorageError("the disk is full")
        await super().append(payload, flush=flush)

    def fold(self):
        usage = GatewayUsage()
        for number, entry in enumerate(self):
            usage.apply(entry, epoch=b"e", sequence=number)
        return usage

    @property
    def kinds(self):
        return [type(entry) for entry in self]


class WillingAuth:
    """Auth workers that take leases back."""

    def __init__(self):
        self.settled, self.full = {}, False

    async def ask(self, method, request, *, deadline):
        if self.full:
            raise RateLimitError("others hold what is left", retry_after_ms=1)
        self.settled[request.lease_id] = request.used_tokens


class Books:
    """A ledger with a lease of a thousand tokens for a minute."""

    def __init__(self):
        self.clock, self.disk, self.auth = VirtualClock(), Disk(), WillingAuth()
        self.ledger = self.start()
        end = self.clock.now() + 60
        self.ledger._purse.put_in("lease", "account", "key", 1000, end)

    def start(self):
        tasks = Tasks(on_error=lambda error: None)
        return Ledger(self.disk, self.auth, tasks, clock=self.clock)

    async def begin(self, request_id):
        account = SimpleNamespace(account_id="account", key_id="key")
        reservation = await self.ledger.reserve(request_id, account, "model", 500)
        self.ledger.write_down(reservation)
        await settled()
        return reservation

    async def end(self, reservation, tokens):
        await self.ledger.settle(
            reservation, prompt_tokens=tokens, completion_tokens=0, receipt=None
        )

    async def with_refused(self, *tokens):
        """Requests that have ended, of which the disk refused to note so."""
        reservations = [await self.begin(f"r{count}") for count in tokens]
        self.disk.is_full = True
        for reservation, count in zip(reservations, tokens, strict=True):
            with pytest.raises(StorageError):
                await self.end(reservation, count)


class LateAuth:
    """Auth workers that lend after a while."""

    def __init__(self):
        self.answers, self.granted = asyncio.Event(), 0

    async def ask(self, method, request, *, deadline):
        self.granted += 1
        await self.answers.wait()
        return SimpleNamespace(lease_id="lease", tokens=1000, expires_at=request.now + 60)


async def test_lease_that_comes_after_its_caller_has_gone_is_for_the_keys_next_request():
    auth = LateAuth()
    ledger = Ledger(WholeFeed(), auth, Tasks(on_error=print), clock=VirtualClock())
    account = SimpleNamespace(account_id="account", key_id="key")
    gone = asyncio.ensure_future(ledger.reserve("gone", account, "model", 50))
    await settled()
    gone.cancel()
    auth.answers.set()
    await settled()
    assert ledger.leases == 1
    await ledger.reserve("next", account, "model", 50)
    assert auth.granted == 1


async def test_agreement_that_the_disk_refused_is_written_once_there_is_room():
    client, gateway, books = KeyPair.generate(), KeyPair.generate(), Books()
    reservation = await books.begin("r7")
    receipt = receipt_body(gateway, client, request_id="r7", prompt_tokens=7, completion_tokens=0)
    body, signature = sign_receipt(gateway, receipt)
    await books.ledger.settle(
        reservation,
        prompt_tokens=7,
        completion_tokens=0,
        receipt=Receipt(body=body, signature=signature),
    )
    agreed = Countersign(body=body, signature=countersign(client, body))
    books.disk.is_full = True
    with pytest.raises(StorageError):
        await books.ledger.countersign(agreed, client.peer_id)
    books.clock.advance(20)
    books.disk.is_full = False
    await books.ledger.close_ended()
    await books.ledger.close_ended()
    assert books.disk.kinds == [Reserved, Settled, Countersigned]
    assert [one.countersigned for one in books.disk.fold().requests()] == [True]


async def test_a_settlement_that_the_disk_refused_is_written_once_there_is_room():
    books = Books()
    await books.with_refused(7, 8)
    books.clock.advance(70)
    with pytest.raises(StorageError):
        await books.ledger.close_ended()
    assert books.disk.kinds == [Reserved, Reserved], "its lease is not closed"
    books.disk.is_full = False
    await asyncio.gather(books.ledger.close_ended(), books.ledger.close_ended())
    assert books.disk.kinds == [Reserved, Reserved, Settled, Settled, LeaseClosed]
    use = books.disk.fold().lease("lease")
    assert (use.tokens, use.reserved, use.closed) == (15, {}, True)
    assert [one.settled.prompt_tokens for one in books.disk.fold().requests()] == [7, 8]
    assert [entry.at for entry in books.disk] == sorted(entry.at for entry in books.disk)
    assert books.auth.settled == {"lease": 15}


async def test_a_settlement_that_the_disk_refused_comes_before_whatever_is_reserved_next():
    books = Books()
    await books.with_refused(7)
    again = await books.begin("again")
    assert isinstance(again.written.exception(), StorageError)
    with pytest.raises(StorageError):
        await books.end(again, 0)
    books.disk.is_full = False
    await books.end(await books.begin("r9"), 9)
    await books.ledger.close()
    assert books.disk.kinds == [Reserved, Settled, Reserved, Settled, LeaseClosed]
    assert [one.settled.request_id for one in books.disk.fold().requests()] == ["r7", "r9"]


async def test_who_is_called_off_while_a_refused_settlement_is_written_doubles_nothing():
    books = Books()
    await books.with_refused(7)
    books.disk.is_full = False
    books.disk.has_time.clear()
    sweep = asyncio.ensure_future(books.ledger.close_ended())
    await settled()
    sweep.cancel()
    closing = asyncio.ensure_future(books.ledger.close())
    await settled()
    books.disk.has_time.set()
    await closing
    assert books.disk.kinds == [Reserved, Settled, LeaseClosed]


@pytest.mark.parametrize("room_at_the_end", [False, True])
async def test_a_gateway_that_stops_before_a_settlement_has_room_settles_from_the_reservation(
    room_at_the_end,
):
    books = Books()
    await books.with_refused(7)
    books.disk.is_full = not room_at_the_end
    if room_at_the_end:
        await books.ledger.close()
    else:
        with pytest.raises(StorageError):
            await books.ledger.close()
    books.disk.is_full = False
    assert await books.start().recover(books.disk.fold()) == (0 if room_at_the_end else 1)
    assert books.disk.kinds == [Reserved, Settled, LeaseClosed]
    use = books.disk.fold().lease("lease")
    assert (use.tokens, use.reserved) == (7 if room_at_the_end else 500, {})


async def test_a_lease_is_closed_after_the_settlement_that_is_under_way_when_the_gateway_stops():
    books = Books()
    reservation = await books.begin("r")
    books.disk.has_time.clear()
    ending = asyncio.ensure_future(books.end(reservation, 7))
    await settled()
    closing = asyncio.ensure_future(books.ledger.close())
    await settled()
    books.disk.is_full = True
    books.disk.has_time.set()
    with pytest.raises(StorageError):
        await ending
    with pytest.raises(StorageError):
        await closing
    assert books.disk.kinds == [Reserved], "open: the next start settles from the reservation"


async def test_a_lease_whose_closing_the_disk_refused_is_closed_once_there_is_room():
    books = Books()
    await books.end(await books.begin("r7"), 7)
    books.clock.advance(70)
    books.disk.is_full = True
    for _ in range(2):
        with pytest.raises(StorageError):
            await books.ledger.close_ended()
    assert not books.auth.settled
    books.disk.is_full = False
    books.clock.advance(OWES_S)  # long after any word that nothing happens here
    await books.ledger.close_ended()
    await books.ledger.close_ended()
    assert books.disk.kinds == [Reserved, Settled, LeaseClosed]
    assert books.disk[-1].at == books.clock.now()
    assert books.auth.settled == {"lease": 7}


async def test_a_lease_that_could_not_be_given_back_for_a_larger_one_is_closed_at_the_end():
    books = Books()
    await books.end(await books.begin("r7"), 7)
    books.auth.full = True
    books.disk.is_full = True
    account = SimpleNamespace(account_id="account", key_id="key")
    with pytest.raises(StorageError):
        await books.ledger.reserve("large", account, "model", 2000)
    books.disk.is_full = False
    await books.ledger.close()
    assert books.disk.kinds == [Reserved, Settled, LeaseClosed]


async def test_a_word_that_nothing_happens_is_given_however_long_the_disk_refused_it():
    books = Books()
    books.disk.is_full = True
    for _ in range(int(OWES_S / TELL_S) + 2):
        books.clock.advance(TELL_S)
        with pytest.raises(StorageError):
            await books.ledger.tell()
    books.disk.is_full = False
    books.clock.advance(TELL_S)
    await books.ledger.tell()
    assert books.disk.kinds == [StillHere]


class LendingAuth:
    """An auth worker that reads a gateway's feed, and accounts for leases as soon as it can."""

    def __init__(self, disk, quota):
        self.disk, self.quota, self.granted = disk, quota, 0
        self.book = QuotaLedger(lambda _: disk.fold())

    async def ask(self, method, request, *, deadline):
        if method.__name__ != "rpc_lease":
            return None
        self.granted += 1
        wanted = LeaseGranted(
            f"lease{self.granted}",
            bytes(32),
            request.account_id,
            request.key_id,
            request.tokens,
            request.now,
            request.now + 30,
        )
        self.account()
        lease = self.book.decide(wanted, least=request.tokens, quota=self.quota, cap=None)
        self.book.apply(lease)
        self.account()
        return lease

    def account(self):
        for event in self.book.accountable("account", 0.0):
            self.book.apply(event)


async def spend(ledger, most):
    """Ask until no more is lent, or so much is spent: how much that was."""
    account = SimpleNamespace(account_id="account", key_id="key")
    for spent in range(0, most, 100):
        try:
            reservation = await ledger.reserve(f"r{spent}", account, "model", 100)
        except (BillingError, RateLimitError):
            return spent
        ledger.write_down(reservation)
        await ledger.settle(reservation, prompt_tokens=100, completion_tokens=0, receipt=None)
    return most


@pytest.mark.parametrize("restarts", [False, True])
async def test_a_clock_that_was_set_back_passes_no_quota_and_stops_no_gateway(restarts):
    disk, clock = Disk(), SkewedClock(VirtualClock(), 0)
    auth = LendingAuth(disk, quota=1000)
    ledger = Ledger(disk, auth, Tasks(on_error=print), clock=clock)
    await disk.append(encode_usage(ledger._purse.still_here(clock.now())))
    clock._seconds = -45
    if restarts:
        ledger = Ledger(disk, auth, Tasks(on_error=print), clock=clock)
        await ledger.recover(disk.fold())
    assert await spend(ledger, 2000) == 1000 == auth.book.spending("account").tokens
    assert [entry.at for entry in disk] == sorted(entry.at for entry in disk)


@pytest.mark.parametrize("restarts", [False, True])
async def test_a_clock_that_was_set_back_by_an_hour_is_told_and_costs_auth_workers_nothing(
    restarts,
):
    disk, clock = Disk(), SkewedClock(VirtualClock(), 0)
    auth = LendingAuth(disk, quota=1000)
    ledger = Ledger(disk, auth, Tasks(on_error=print), clock=clock)
    await disk.append(encode_usage(ledger._purse.still_here(clock.now())))
    assert ledger.trouble == ""
    clock._seconds = -3600
    if restarts:
        ledger = Ledger(disk, auth, Tasks(on_error=print), clock=clock)
        await ledger.recover(disk.fold())
    assert "3600 s ahead" in ledger.trouble
    account = SimpleNamespace(account_id="account", key_id="key")
    with pytest.raises(APIStatusError, match=r"3600 s ahead.*another gateway") as refused:
        await ledger.reserve("r", account, "model", 100)
    assert (refused.value.status_code, auth.granted) == (503, 0)
    clock._seconds = 1
    assert ledger.trouble == ""
    await ledger.reserve("r", account, "model", 100)
