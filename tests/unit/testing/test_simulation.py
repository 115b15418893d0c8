import asyncio
import time

import pytest

from tinkex.testing.simulation import (
    SimulatedClock,
    SimulatedProcess,
    SimulationStuckError,
    simulate,
)


def test_a_day_takes_no_time():
    async def day() -> float:
        await SimulatedClock().sleep(86_400.0)
        return asyncio.get_running_loop().time()

    began = time.perf_counter()
    assert simulate(day()) == pytest.approx(86_400.0)
    assert time.perf_counter() - began < 5.0


def test_sleepers_wake_in_the_order_of_their_times():
    async def program() -> list[tuple[float, int]]:
        woken = []

        async def sleeper(number: int) -> None:
            clock = SimulatedClock()
            await clock.sleep(number * 7 % 10)
            woken.append((clock.monotonic(), number))

        await asyncio.gather(*(sleeper(number) for number in range(10)))
        return woken

    woken = simulate(program())
    assert [at for at, _ in woken] == sorted(at for at, _ in woken)
    assert [(round(at), number) for at, number in woken] == sorted(
        (number * 7 % 10, number) for number in range(10)
    )


def test_time_stands_still_while_anything_can_happen():
    async def program() -> float:
        clock = SimulatedClock()
        for _ in range(1000):
            await clock.sleep(0)
        return clock.monotonic()

    assert simulate(program()) == 0.0


def test_asyncios_own_time_limits_are_in_virtual_time():
    async def program() -> float:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(3600):
                await asyncio.Event().wait()
        return SimulatedClock().monotonic()

    assert simulate(program()) == pytest.approx(3600.0)


def test_clocks_may_differ_in_their_date_and_their_speed():
    async def program() -> None:
        true, ahead, fast = SimulatedClock(), SimulatedClock(skew_s=60.0), SimulatedClock(drift=0.1)
        await fast.sleep(110.0)
        assert true.monotonic() == pytest.approx(100.0)
        assert fast.monotonic() == pytest.approx(110.0)
        assert ahead.now() - true.now() == pytest.approx(60.0)
        true.sleep_sync(5.0)
        assert true.monotonic() == pytest.approx(105.0)

    simulate(program())


def test_what_can_never_go_on_is_an_error_with_its_seed():
    async def program() -> None:
        await asyncio.Event().wait()

    with pytest.raises(SimulationStuckError, match="every task waits") as caught:
        simulate(program(), seed=42)
    assert any("seed 42" in note for note in caught.value.__notes__)


def test_threads_work_is_done_in_no_time_and_in_order():
    async def program() -> list[int]:
        done: list[int] = []
        await asyncio.gather(*(asyncio.to_thread(done.append, number) for number in range(5)))
        with pytest.raises(ZeroDivisionError):
            await asyncio.to_thread(lambda: 1 // 0)
        assert SimulatedClock().monotonic() == 0.0
        return done

    assert simulate(program()) == [0, 1, 2, 3, 4]


def test_a_stopped_process_does_nothing_more_and_not_even_tidies_up():
    async def program() -> None:
        clock, done = SimulatedClock(), []

        async def child() -> None:
            try:
                await clock.sleep(1.0)
                done.append("child")
            finally:
                done.append("tidied up")

        async def parent() -> None:
            asyncio.get_running_loop().call_later(1.0, done.append, "timer")
            await asyncio.create_task(child(), name="child")

        process = SimulatedProcess("one")
        running = process.run(parent())
        await clock.sleep(0.5)
        assert "child" in process.tasks
        process.stop()
        await clock.sleep(10.0)
        assert done == []
        process.go_on()
        await running
        assert sorted(done) == ["child", "tidied up", "timer"]
        assert clock.monotonic() == pytest.approx(10.5)
        assert process.tasks == []

    simulate(program())


def test_what_was_cancelled_meanwhile_does_not_happen_when_a_process_goes_on():
    async def program() -> None:
        clock, done = SimulatedClock(), []
        timers = []

        async def work() -> None:
            loop = asyncio.get_running_loop()
            timers.append(loop.call_later(1.0, done.append, "cancelled"))
            loop.call_later(1.0, done.append, "kept")
            await asyncio.Event().wait()

        process = SimulatedProcess("one")
        running = process.run(work())
        await clock.sleep(0.5)
        process.stop()
        await clock.sleep(1.0)
        timers[0].cancel()
        process.go_on()
        await clock.sleep(0.1)
        assert done == ["kept"]
        running.cancel()

    simulate(program())
