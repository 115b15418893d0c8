"""Computations that may fail by themselves: no memory, a kernel that refuses.

Owns telling such a failure from a bug, and letting go of what the failed computation held. An
exception keeps every tensor of every frame that it came through, for as long as anybody keeps the
exception; whoever tries again, or serves the next user, needs that memory.
"""

from __future__ import annotations

from functools import wraps
from typing import TYPE_CHECKING, ParamSpec, TypeVar

from tinkex.errors import EngineError

if TYPE_CHECKING:
    from collections.abc import Callable

P = ParamSpec("P")
R = TypeVar("R")

_NO_MEMORY = ("memory", "bad_alloc")


def attempt(what: str, work: Callable[[], R]) -> R | EngineError:
    """Run `work`; gives its result, or the error that says that `what` failed.

    What is wrong with a request (`TinkerError`) and bugs pass through.
    """
    try:
        return work()
    except (RuntimeError, MemoryError) as error:
        reason = (str(error).strip() or type(error).__name__).split("\n", 1)[0]
        short = isinstance(error, MemoryError) or any(word in reason for word in _NO_MEMORY)
    # Made out here, so that it is no child of an exception that holds the memory.
    advice = "; send less at once, or try again when the server has less to do" if short else ""
    return EngineError(f"{what} failed: {reason}{advice}")


def must(what: str, work: Callable[[], R]) -> R:
    """Run `work`.

    Raises:
        EngineError: `what` failed by itself.
    """
    found = attempt(what, work)
    if isinstance(found, EngineError):
        raise found
    return found


def computing(what: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Have a function raise an `EngineError` where `what` it computes fails by itself."""

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        @wraps(function)
        def guarded(*args: P.args, **kwargs: P.kwargs) -> R:
            return must(what, lambda: function(*args, **kwargs))

        return guarded

    return decorate
