"""An event loop on which time passes only when nothing else can happen.

Owns virtual time for whole programs: every `asyncio` wait, every timer and every `SimulatedClock`
follow it, an hour takes as long as what happens in it, and the same program with the same seed does
the same again. What is left to the machine (sockets, threads) has no place in a simulation: work
for a thread is done at once, in no time.

Owns processes, too: what runs in a `SimulatedProcess` can be stopped in the middle of anything, as
SIGKILL does, so that not even its `finally` blocks run.

`VirtualClock` is for tests that move the time by hand; this is for those that let it run.
"""

from __future__ import annotations

import asyncio
import selectors
from contextvars import Context, ContextVar, copy_context
from typing import TYPE_CHECKING, Any, TypeVar
from weakref import WeakSet

from typing_extensions import TypeVarTuple, Unpack

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Generator
    from concurrent.futures import Executor

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

_EPOCH = 1_700_000_000.0


class SimulationStuckError(RuntimeError):
    """Every task waits for something that can never happen."""


class SimulatedLoop(asyncio.SelectorEventLoop):
    """Jumps to the next timer whenever no task can go on."""

    def __init__(self) -> None:
        self._elapsed = 0.0
        super().__init__(_JumpingSelector(self.jump))

    def time(self) -> float:
        """Virtual seconds since the loop was made."""
        return self._elapsed

    def call_soon(
        self,
        callback: Callable[[Unpack[Ts]], object],
        *args: *Ts,
        context: Context | None = None,
    ) -> asyncio.Handle:
        """Call a function in the next turn, or once its process goes on."""
        process = process_of(context)
        if process is None:
            return super().call_soon(callback, *args, context=context)
        step = _Step(process, callback, args, context or copy_context())
        step.handle = super().call_soon(step, context=step.context)
        return step.handle

    def call_at(
        self,
        when: float,
        callback: Callable[[Unpack[Ts]], object],
        *args: *Ts,
        context: Context | None = None,
    ) -> asyncio.TimerHandle:
        """Call a function at a time, or once its process goes on."""
        process = process_of(context)
        if process is None:
            return super().call_at(when, callback, *args, context=context)
        step = _Step(process, callback, args, context or copy_context())
        step.handle = handle = super().call_at(when, step, context=step.context)
        return handle

    def create_task(
        self, coro: Generator[Any, None, T] | Coroutine[Any, Any, T], **options: Any
    ) -> asyncio.Task[T]:
        """Start a task; it belongs to the process that starts it."""
        task = super().create_task(coro, **options)
        process = process_of(options.get("context"))
        if process is not None:
            process.started(task)
        return task

    def jump(self, seconds: float | None) -> None:
        """Let time pass; None: there is no timer to wait for."""
        if seconds is None:
            raise SimulationStuckError(
                "every task waits, and no timer runs: something is awaited that nothing will do"
            )
        self._elapsed += seconds

    def run_in_executor(
        self, executor: Executor | None, func: Callable[[Unpack[Ts]], T], *args: *Ts
    ) -> asyncio.Future[T]:
        """Do a thread's work at once: when a real thread ends, no seed could tell."""
        del executor
        future: asyncio.Future[T] = self.create_future()
        try:
            future.set_result(func(*args))
        except Exception as error:  # noqa: BLE001 - it is the awaiting task's
            future.set_exception(error)
        return future


class SimulatedProcess:
    """Tasks that stop all at once. What they start belongs to the same process.

    Args:
        name: what it is called.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self._context = copy_context()
        self._context.run(_PROCESS.set, self)
        self._tasks: WeakSet[asyncio.Task[Any]] = WeakSet()
        self._waiting: list[_Step] = []
        self._frozen: list[asyncio.Task[Any]] = []
        self.stopped = False
        """Whether nothing of it goes on."""

    def run(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """Start something in the process. What waits for it from outside waits for its going on."""
        return asyncio.get_running_loop().create_task(work, context=self._context.copy())

    def stop(self) -> None:
        """Let nothing of it go on, as SIGSTOP does, or SIGKILL if it is never continued."""
        self.stopped = True
        self._frozen = list(self._tasks)  # nobody else may hold them any more

    def go_on(self) -> None:
        """Continue where it stopped, as SIGCONT does."""
        self.stopped = False
        waiting, self._waiting, self._frozen = self._waiting, [], []
        loop = asyncio.get_running_loop()
        for step in waiting:
            if step.handle is not None and not step.handle.cancelled():
                step.handle = loop.call_soon(step.callback, *step.args, context=step.context)

    @property
    def tasks(self) -> list[str]:
        """The names of the tasks that have not ended."""
        return sorted(task.get_name() for task in self._tasks if not task.done())

    def started(self, task: asyncio.Task[Any]) -> None:
        """Take note of a task; the loop says so."""
        self._tasks.add(task)

    def later(self, step: _Step) -> None:
        """Keep for later what is due while nothing goes on."""
        self._waiting.append(step)


_PROCESS: ContextVar[SimulatedProcess | None] = ContextVar("simulated process", default=None)


def process_of(context: Context | None) -> SimulatedProcess | None:
    """Say in which process something runs; None: the current context."""
    return _PROCESS.get() if context is None else context.get(_PROCESS)


class _Step:
    """Something that a process does next."""

    __slots__ = ("args", "callback", "context", "handle", "process")

    def __init__(
        self,
        process: SimulatedProcess,
        callback: Callable[..., object],
        args: tuple[Any, ...],
        context: Context,
    ) -> None:
        self.process = process
        self.callback = callback
        self.args = args
        self.context = context
        self.handle: asyncio.Handle | None = None

    def __call__(self) -> None:
        if self.process.stopped:
            self.process.later(self)
        else:
            self.callback(*self.args)


class _JumpingSelector(selectors.DefaultSelector):
    """Looks whether a socket is ready, and lets virtual time pass instead of waiting."""

    def __init__(self, jump: Callable[[float | None], None]) -> None:
        super().__init__()
        self._jump = jump

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        ready = super().select(0)
        if not ready and (timeout is None or timeout > 0):
            self._jump(timeout)
        return ready


class SimulatedClock:
    """A `Clock` on the loop's virtual time, as one peer sees it.

    Args:
        skew_s: how far its date is ahead of the others'; behind where negative.
        drift: how much faster its seconds pass: 0.001 gains a second in a thousand.
    """

    def __init__(self, *, skew_s: float = 0.0, drift: float = 0.0) -> None:
        self.skew_s = skew_s
        self._rate = 1.0 + drift

    def now(self) -> float:
        """Return this peer's wall-clock time in seconds since the epoch."""
        return _EPOCH + self.skew_s + self.monotonic()

    def monotonic(self) -> float:
        """Return this peer's seconds since the simulation began."""
        return asyncio.get_running_loop().time() * self._rate

    async def sleep(self, seconds: float) -> None:
        """Wait until `seconds` of this peer's have passed."""
        await asyncio.sleep(seconds / self._rate)  # noqa: TID251 - it is the simulated time

    def sleep_sync(self, seconds: float) -> None:
        """Let `seconds` pass in which no other task does anything."""
        loop = asyncio.get_running_loop()
        assert isinstance(loop, SimulatedLoop)
        loop.jump(seconds / self._rate)


def simulate(program: Coroutine[Any, Any, T], *, seed: object = None) -> T:
    """Run a program to its end in virtual time.

    Args:
        program: what happens.
        seed: what it was made from; an error that ends it names it.

    Raises:
        SimulationStuckError: nothing can happen any more, and the program has not ended.
    """
    with asyncio.Runner(loop_factory=SimulatedLoop) as runner:
        try:
            return runner.run(program)
        except BaseException as error:
            error.add_note(f"in a simulation with seed {seed!r}, which does the same again")
            raise
