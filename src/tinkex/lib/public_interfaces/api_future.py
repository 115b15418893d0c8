"""`APIFuture` under its official module name, and the one that programs make of a plain future."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

from tinkex.client.future import APIFuture

if TYPE_CHECKING:
    from concurrent.futures import Future

__all__ = ["APIFuture", "AwaitableConcurrentFuture"]

T = TypeVar("T")


class AwaitableConcurrentFuture(APIFuture[T]):
    """An `APIFuture` that follows a `concurrent.futures.Future`, for stand-ins of a client.

    Args:
        future: what it follows; cancelling either cancels the other.
    """

    def __init__(self, future: Future[T]) -> None:
        super().__init__()
        self._followed = future
        future.add_done_callback(self._take)
        self.add_done_callback(self._pass_on)

    def future(self) -> Future[T]:
        """Return the future that this one follows."""
        return self._followed

    def _take(self, done: Future[T]) -> None:
        if done.cancelled():
            self.cancel()
        elif (error := done.exception()) is not None:
            self.reject(error)
        else:
            self.resolve(done.result())

    def _pass_on(self, _: Future[T]) -> None:
        if self.cancelled():
            self._followed.cancel()
