from __future__ import annotations

import asyncio
import concurrent.futures
import contextvars
import gc
import os
import threading
import weakref

import pytest
from client_support import run_program

from tinkex.client.loop import BackgroundLoop
from tinkex.errors import ClientClosedError, ForkedClientError


@pytest.fixture
def loop():
    loop = BackgroundLoop("test-loop")
    yield loop
    loop.close()


async def give(value):
    return value


async def forever():
    await asyncio.Event().wait()


def threads_named(name: str) -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == name]


def test_result_comes_back_to_blocking_code(loop):
    assert loop.submit(give, 3).result(5) == 3


async def test_result_comes_back_to_another_event_loop(loop):
    assert await loop.submit(give, 3) == 3


def test_no_thread_before_the_first_operation():
    loop = BackgroundLoop("lazy-loop")
    assert threads_named("lazy-loop") == []
    loop.close()


def test_thread_that_the_system_does_not_start_is_an_error_and_tried_again(loop, monkeypatch):
    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    async def work():
        return 1

    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", refuse)
        for _ in range(2):
            with pytest.raises(RuntimeError, match="can't start new thread"):
                loop.submit(work)
    assert loop.submit(work).result(5) == 1


def test_error_of_the_operation_is_the_error_of_the_future(loop):
    """Bug row: a background task's crash leaves the caller waiting for ever (raise)."""

    async def fail():
        raise LookupError("mine")

    with pytest.raises(LookupError, match="mine"):
        loop.submit(fail).result(5)


def test_operation_that_cannot_even_start_fails_its_future(loop):
    """Bug row: a background task's crash leaves the caller waiting for ever (no coroutine)."""

    def broken():
        raise LookupError("no coroutine")

    with pytest.raises(LookupError, match="no coroutine"):
        loop.submit(broken).result(5)


def test_operation_that_raises_system_exit_resolves_every_future():
    """Bug row: a background task's crash leaves the caller waiting for ever (crash)."""
    script = """
        import logging
        from tinkex.client.loop import BackgroundLoop
        import asyncio, threading
        threading.excepthook = lambda _: None
        logging.disable()
        loop = BackgroundLoop()
        async def forever(): await asyncio.Event().wait()
        async def crash(): raise SystemExit(3)
        waiting, crashing = loop.submit(forever), loop.submit(crash)
        for future in (waiting, crashing):
            try:
                future.result(10)
            except BaseException as error:
                print(type(error).__name__)
    """
    done = run_program(script)
    assert done.stdout.split() == ["ClientClosedError", "SystemExit"], done.stderr


def test_cancelling_the_future_cancels_the_operation(loop):
    started, ended = threading.Event(), threading.Event()

    async def watch():
        started.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    future = loop.submit(watch)
    assert started.wait(5)
    assert future.cancel()
    assert ended.wait(5)
    with pytest.raises(concurrent.futures.CancelledError):
        future.result(5)


def test_close_fails_open_operations_and_leaves_no_thread():
    """Bug row: a background task's crash leaves the caller waiting for ever (shutdown)."""
    loop = BackgroundLoop("closing-loop")
    futures = [loop.submit(forever) for _ in range(20)]

    loop.close()

    assert threads_named("closing-loop") == []
    for future in futures:
        with pytest.raises(ClientClosedError):
            future.result(5)


def test_close_is_final_and_idempotent(loop):
    """Bug row: a stopped child is restarted."""
    loop.submit(give, 1).result(5)
    loop.close()
    loop.close()
    with pytest.raises(ClientClosedError):
        loop.submit(give, 1)


def test_close_awaits_the_cleanups_newest_first():
    loop = BackgroundLoop()
    order: list[str] = []

    async def note(name: str) -> None:
        order.append(name)

    loop.on_close(lambda: note("first registered"))
    loop.on_close(lambda: note("last registered"))
    loop.submit(give, 1).result(5)
    loop.close()
    assert order == ["last registered", "first registered"]


def test_close_from_the_loop_itself_does_not_deadlock():
    loop = BackgroundLoop("self-closing-loop")

    async def close():
        loop.close()

    future = loop.submit(close)
    concurrent.futures.wait([future], 5)
    loop._state.join(5)
    assert threads_named("self-closing-loop") == []


def test_dropping_the_loop_ends_its_thread():
    loop = BackgroundLoop("dropped-loop")
    loop.submit(give, 1).result(5)
    thread = threads_named("dropped-loop")[0]
    gone = weakref.ref(loop)
    del loop
    gc.collect()
    thread.join(5)
    assert gone() is None
    assert not thread.is_alive()


def test_interpreter_exit_is_not_held_up_by_open_operations():
    script = """
        import asyncio
        from tinkex.client.loop import BackgroundLoop
        loop = BackgroundLoop()
        async def forever(): await asyncio.Event().wait()
        kept = [loop.submit(forever) for _ in range(10)]
        print("end")
    """
    done = run_program(script, "-W", "error")
    assert (done.returncode, done.stdout.strip(), done.stderr) == (0, "end", "")


def test_context_variables_of_the_caller_reach_the_operation(loop):
    trace = contextvars.ContextVar("trace", default="none")

    async def read():
        return trace.get()

    trace.set("caller")
    assert loop.submit(read).result(5) == "caller"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_fork_gets_a_typed_error_and_the_parent_goes_on():
    script = """
        import os
        from tinkex.client.loop import BackgroundLoop
        from tinkex.errors import ForkedClientError
        loop = BackgroundLoop()
        async def one(): return 1
        loop.submit(one).result(10)
        child = os.fork()
        if child == 0:
            try:
                loop.submit(one)
            except ForkedClientError:
                os._exit(7)
            os._exit(1)
        _, status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(status), loop.submit(one).result(10))
    """
    done = run_program(script)
    assert done.stdout.split() == ["7", "1"], done.stderr
    assert issubclass(ForkedClientError, Exception)
