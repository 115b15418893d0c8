"""A gateway's books, beside what whole gateways show."""

import asyncio
from types import SimpleNamespace

import pytest
from mesh_rpc import settled

from tinkex.errors import StorageError, status_error
from tinkex.mesh.tasks import Tasks, let_others_run
from tinkex.mesh.usage import decode_usage
from tinkex.mesh.workers.serving.ledger import GIVE_BACK_S, Ledger
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
        self.asked.append(request.lease_id)
        await self.clock.sleep(deadline - self.clock.monotonic())
        raise status_error(503, "No auth worker can be reached.")


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
