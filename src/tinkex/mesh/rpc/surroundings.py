"""What all links of a peer share. Owns nothing but telling the observer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from tinkex._clock import Clock
from tinkex._timers import Timers
from tinkex.mesh.rpc.config import RpcConfig
from tinkex.mesh.rpc.credentials import Credentials
from tinkex.mesh.rpc.dispatch import Dispatcher
from tinkex.mesh.rpc.observer import CallReport, Observer
from tinkex.mesh.tasks import Tasks


@dataclass(slots=True)
class Surroundings:
    """What all links of a peer share."""

    credentials: Credentials
    config: RpcConfig
    clock: Clock
    timers: Timers
    tasks: Tasks
    dispatcher: Dispatcher
    observer: Observer | None
    on_error: Callable[[BaseException], None]
    stopping: bool = False
    """Whether new calls are refused."""

    def report(self, report: CallReport) -> None:
        """Tell the observer of a call that ended."""
        if self.observer is not None:
            try:
                self.observer.call_ended(report)
            except Exception as error:  # noqa: BLE001 - whatever it is, calls go on
                self.on_error(error)

    def watch(self, tell: Callable[[Observer], None]) -> None:
        """Tell the observer something, if there is one; what it raises harms nobody."""
        if self.observer is not None:
            try:
                tell(self.observer)
            except Exception as error:  # noqa: BLE001 - whatever it is, calls go on
                self.on_error(error)
