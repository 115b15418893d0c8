"""The client's own event loop, in a thread of its own.

Owns the thread and the promise that every submitted operation resolves its future: when it
returns, raises, is cancelled, when the loop is closed under it, when the interpreter exits, and
when the loop itself crashes. Knows nothing of HTTP.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import logging
import os
import threading
import weakref
from types import NoneType
from typing import TYPE_CHECKING, Any, TypeVar

from tinkex.client.future import APIFuture
from tinkex.errors import ClientClosedError, ForkedClientError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine

T = TypeVar("T")
F = TypeVar("F", bound=APIFuture[Any])

_LOG = logging.getLogger("tinkex.client")
_CLOSE_SECONDS = 5.0


class BackgroundLoop:
    """An event loop in a daemon thread, started on the first `submit` and stopped by `close`.

    Dropping the last reference stops it too, and so does the end of the interpreter.

    Args:
        name: name of the thread, for debuggers.
    """

    def __init__(self, name: str = "tinkex-client") -> None:
        self._state = _State(name)
        self._finalizer = weakref.finalize(self, self._state.stop)

    @property
    def closed(self) -> bool:
        """Whether `close` was called; no operation is accepted any more."""
        return self._state.closed

    def submit(
        self, operation: Callable[..., Coroutine[Any, Any, T]], *arguments: Any
    ) -> APIFuture[T]:
        """Run `operation(*arguments)` on the loop, in the caller's context variables.

        Returns:
            A future that resolves in every case; cancelling it cancels the operation.

        Raises:
            ClientClosedError: the loop was closed.
            ForkedClientError: this process is a fork of the one that started the loop.
        """
        return self.submit_into(APIFuture[T](), operation, *arguments)

    def submit_into(
        self,
        future: F,
        operation: Callable[..., Coroutine[Any, Any, Any]],
        *arguments: Any,
    ) -> F:
        """As `submit`, resolving a future of the caller's, which may be of a class of its own."""
        context = contextvars.copy_context()
        self._state.call_soon(_start, self._state, operation, arguments, future, context)
        return future

    def spawn(self, operation: Callable[..., Coroutine[Any, Any, None]], *arguments: Any) -> None:
        """Run a piece of background work nobody waits for; its errors are logged."""
        self.submit(operation, *arguments).add_done_callback(_log_failure)

    def on_close(self, cleanup: Callable[[], Awaitable[None]]) -> None:
        """Await `cleanup()` on the loop after its operations have ended, newest first."""
        self._state.cleanups.append(cleanup)

    def close(self, timeout: float = _CLOSE_SECONDS) -> None:
        """Refuse new operations, cancel those under way, and end the thread. Idempotent.

        Futures still open fail with `ClientClosedError`. Waits at most `timeout` seconds for the
        thread, and not at all when called on it.
        """
        self._finalizer.detach()
        self._state.stop()
        self._state.join(timeout)


class _State:
    """What the thread needs; it holds no reference to the `BackgroundLoop` that owns it."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.closed = False
        self.cleanups: list[Callable[[], Awaitable[None]]] = []
        self._lock = threading.Lock()
        self._open: set[APIFuture[Any]] = set()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._pid: int | None = None

    def call_soon(self, callback: Callable[..., None], *arguments: Any) -> None:
        """Schedule the start of an operation whose future is `arguments[3]`."""
        future: APIFuture[Any] = arguments[3]
        with self._lock:
            if self.closed:
                raise ClientClosedError("This client is closed. Make a new ServiceClient to go on.")
            loop = self._started_loop()
            self._open.add(future)
            assert self._thread is not None
            future.resolved_by(self._thread)
            # a fork has no thread: the check above must come before anything waits on it
            loop.call_soon_threadsafe(callback, *arguments)
        future.add_done_callback(self._open.discard)

    def _started_loop(self) -> asyncio.AbstractEventLoop:
        if self._loop is None:
            loop = asyncio.new_event_loop()
            thread = threading.Thread(target=self._run, args=(loop,), name=self.name, daemon=True)
            try:
                thread.start()
            except BaseException:  # there are too many: a loop that nobody runs would be waited for
                loop.close()
                raise
            self._loop, self._thread, self._pid = loop, thread, os.getpid()
        elif self._pid != os.getpid():
            raise ForkedClientError(
                "This client was used before the process forked, and its connections belong to the "
                'parent. Start processes with multiprocessing.get_context("spawn") or "forkserver" '
                "and make a new ServiceClient there, or pass a SamplingClient, which can be "
                "pickled."
            )
        return self._loop

    def stop(self) -> None:
        """Begin to end the thread; safe from any thread, the loop's own included."""
        with self._lock:
            if self.closed:
                return
            self.closed = True
            loop = self._loop
        if loop is not None and self._pid == os.getpid():
            with contextlib.suppress(RuntimeError):  # it crashed and is closed already
                loop.call_soon_threadsafe(loop.stop)

    def join(self, timeout: float) -> None:
        thread = self._thread
        if (
            thread is not None
            and thread is not threading.current_thread()
            and self._pid == os.getpid()
        ):
            thread.join(timeout)

    def _run(self, loop: asyncio.AbstractEventLoop) -> None:
        asyncio.set_event_loop(loop)
        try:
            loop.run_forever()
        except BaseException:
            _LOG.exception("The client's event loop crashed")
            raise
        finally:
            with self._lock:
                self.closed = True
            self._shut(loop)

    def _shut(self, loop: asyncio.AbstractEventLoop) -> None:
        try:
            loop.run_until_complete(self._wind_down())
        except Exception:  # noqa: BLE001 - a clean-up that fails must not keep the futures open
            _LOG.exception("Closing the client's connections failed")
        finally:
            with contextlib.suppress(Exception):
                loop.run_until_complete(loop.shutdown_asyncgens())
                loop.run_until_complete(
                    asyncio.wait_for(loop.shutdown_default_executor(), _CLOSE_SECONDS)
                )
            loop.close()
            for future in list(self._open):
                future.reject(ClientClosedError("The client was closed before the call ended."))

    async def _wind_down(self) -> None:
        async with asyncio.timeout(_CLOSE_SECONDS):
            tasks = asyncio.all_tasks() - {asyncio.current_task()}
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            while self.cleanups:
                await self.cleanups.pop()()


async def in_thread(function: Callable[..., T], *arguments: Any) -> T:
    """Await `function(*arguments)` in a daemon thread of its own.

    For code of the caller's that may take long: it holds up neither the loop nor, when the program
    ends or the operation is cancelled, anything else.

    Raises:
        RuntimeError: it raised what is no error (SystemExit, a cancellation of its own): here that
            would end the loop, or pass for a cancellation of the operation.
    """
    outcome: APIFuture[T] = APIFuture()
    context = contextvars.copy_context()

    def run() -> None:
        try:
            outcome.resolve(context.run(function, *arguments))
        except Exception as error:  # noqa: BLE001 - it is the outcome
            outcome.reject(error)
        except BaseException as error:  # noqa: BLE001 - so is this
            carried = RuntimeError(f"{type(error).__name__} was raised: {error}")
            carried.__cause__ = error
            outcome.reject(carried)

    threading.Thread(target=run, name="tinkex-callback", daemon=True).start()
    return await outcome


def _start(
    state: _State,
    operation: Callable[..., Coroutine[Any, Any, T]],
    arguments: tuple[Any, ...],
    future: APIFuture[T],
    context: contextvars.Context,
) -> None:
    """Begin an operation (on the loop) and tie its task and its future together."""
    if future.cancelled():
        return
    loop = asyncio.get_running_loop()
    try:
        task = loop.create_task(operation(*arguments), context=context)
    except Exception as error:  # noqa: BLE001 - it is the operation's outcome
        future.reject(error)
        return

    def task_done(done: asyncio.Task[T]) -> None:
        if done.cancelled():
            if state.closed:
                future.reject(ClientClosedError("The client was closed before the call ended."))
            future.cancel()
        elif (error := done.exception()) is not None:
            future.reject(error)
        else:
            future.resolve(done.result())

    def future_done(done: APIFuture[T]) -> None:
        if done.cancelled():
            with contextlib.suppress(RuntimeError):  # the loop has ended, and the task with it
                loop.call_soon_threadsafe(task.cancel)

    task.add_done_callback(task_done)
    future.add_done_callback(future_done)  # type: ignore[arg-type]  # it is called with itself


def _log_failure(future: Any) -> None:
    if future.cancelled() or isinstance(future.exception(), ClientClosedError | NoneType):
        return
    _LOG.warning("Background work of the client failed: %s", future.exception())
