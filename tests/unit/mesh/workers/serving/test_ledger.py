"""A gateway's books, beside what whole gateways show."""

import asyncio
from types import SimpleNamespace

import pytest

from tinkex.errors import StorageError
from tinkex.mesh.tasks import Tasks, let_others_run
from tinkex.mesh.workers.serving.ledger import Ledger
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
    for _ in range(turns):
        await let_others_run()
    await tasks.stop()
    await let_others_run()
    assert reservation.written.cancelled()
