"""The `*_async` twins that programs for older SDKs call. Deprecated: every call can be awaited.

Each twin is one line in its class, made from the call itself, so its arguments are the call's.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from tinkex.client.future import APIFuture

C = TypeVar("C")
P = ParamSpec("P")
T = TypeVar("T")


def twin(
    call: Callable[Concatenate[C, P], T],
) -> Callable[Concatenate[C, P], Coroutine[Any, Any, T]]:
    """Make an async function that gives what `call` gives: for most training calls, the future."""

    @functools.wraps(call)
    async def run(self: C, /, *args: P.args, **kwargs: P.kwargs) -> T:
        return call(self, *args, **kwargs)

    return run


def awaited_twin(
    call: Callable[Concatenate[C, P], APIFuture[T]],
) -> Callable[Concatenate[C, P], Coroutine[Any, Any, T]]:
    """Make an async function that gives the result of the future that `call` gives."""

    @functools.wraps(call)
    async def run(self: C, /, *args: P.args, **kwargs: P.kwargs) -> T:
        return await call(self, *args, **kwargs)

    return run
