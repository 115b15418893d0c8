"""The client worker: the mesh for programs on its own machine.

Owns putting its parts together and their life. What it offers is `url` (OpenAI's API over HTTP, on
loopback), `completer` (the same for Python) and `ask` (accounts, keys, usage, adapters). It holds
no account of its own: every request brings its credential.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Awaitable, Callable, Iterable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import Any, TypeVar

import msgspec

from tinkex._timers import Timers
from tinkex.errors import ConfigurationError
from tinkex.mesh.positive import not_positive
from tinkex.mesh.rpc.service import Call
from tinkex.mesh.tasks import Tasks
from tinkex.mesh.workers.base import Linked, Worker
from tinkex.mesh.workers.calling.completer import MeshCompleter
from tinkex.mesh.workers.calling.gateways import Gateways, GatewaysConfig
from tinkex.mesh.workers.calling.http_app import http_app
from tinkex.mesh.workers.calling.receipt_book import ReceiptBook
from tinkex.mesh.workers.http import LOOPBACK_NAMES, HttpServer
from tinkex.mesh.workers.reading import Reading
from tinkex.mesh.workers.shelf import Shelf

_LOG = logging.getLogger("tinkex.mesh.client")

Q = TypeVar("Q", bound=msgspec.Struct)
A = TypeVar("A")


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientConfig:
    """Settings of a client worker.

    Raises:
        ConfigurationError: naming every value that cannot be, such as an address that others could
            reach.
    """

    host: str | None = "127.0.0.1"
    """Address of its HTTP, on this machine; None: it has none."""
    port: int = 8100
    """Its port, the same after a restart, as programs name it; 0 is a free one."""
    adapter_mib: int = 4096
    """MiB of adapters' files that are kept for processors to fetch."""
    gateways: GatewaysConfig = field(default_factory=GatewaysConfig)

    def __post_init__(self) -> None:
        problems = not_positive(self, but=("port",))
        if self.host is not None and self.host not in LOOPBACK_NAMES:
            problems.append(
                f"host is {self.host}: a client worker serves programs on its own machine; give "
                "127.0.0.1 or ::1"
            )
        if not 0 <= self.port < 2**16:
            problems.append(f"port is {self.port}: a port is 0 to 65535")
        if problems:
            raise ConfigurationError(problems)


class ClientWorker(Worker):
    """Serves programs.

    Args:
        member: the worker that it is.
        config: its settings.
        shelf: adapters that its users publish; None where they cannot.
        book: keeps its receipts on disk; None where nobody asks for them later.
        rng: orders gateways of which nothing is known.
    """

    def __init__(
        self,
        member: Linked,
        config: ClientConfig | None = None,
        *,
        shelf: Shelf | None = None,
        book: ReceiptBook | None = None,
        rng: random.Random | None = None,
    ) -> None:
        super().__init__("client")
        self._shelf = shelf
        self._book = book
        self._config = config or ClientConfig()
        self._clock = member.clock
        self._tasks = Tasks(on_error=_report)
        self._timers = Timers(member.clock, on_error=_report)
        self._gateways = Gateways(
            member.peers,
            member.discovery,
            clock=member.clock,
            rng=rng or random.SystemRandom(),
            config=self._config.gateways,
        )
        self.completer = MeshCompleter(
            self._gateways,
            member.peers,
            member.key_pair,
            self._tasks,
            self._timers,
            clock=member.clock,
            book=book,
        )
        """Completes prompts; its callers are credentials."""
        self.url = ""
        """Base URL of its HTTP, without `/v1`; empty where it has none."""
        self._server: HttpServer | None = None

    async def ask(
        self, method: Callable[[Any, Q, Call], Awaitable[A]], request: Q, *, timeout_s: float = 0
    ) -> A:
        """Ask a gateway: a method of `GatewayApi`, and its message.

        Raises:
            TinkerError: what it answered; APIStatusError 503 where none can be reached.
        """
        return await self._gateways.ask(method, request, timeout_s=timeout_s)

    def readings(self) -> Iterable[Reading]:
        """What its metrics are to show of it."""
        yield Reading("gateways", "Gateways that it knows.", self._gateways.known)

    async def open(self, stack: AsyncExitStack) -> None:
        """Look for gateways, and serve."""
        self._timers.start()
        stack.push_async_callback(self._timers.stop)
        stack.push_async_callback(self._tasks.stop)
        self._tasks.keep(self._gateways.run, name="keep links to gateways", clock=self._clock)
        if self._shelf is not None:
            await self._shelf.open(stack)
        if self._config.host is None:
            return
        app = http_app(
            self.completer, self.ask, clock=self._clock, shelf=self._shelf, book=self._book
        )
        server = HttpServer(app, host=self._config.host, port=self._config.port, clock=self._clock)
        self._server = await stack.enter_async_context(server)
        self.url = server.url

    async def drain(self, grace_s: float) -> None:
        """Take no more requests of programs, and let those in progress end."""
        if self._server is not None:
            await self._server.stop(grace_s)


def _report(error: BaseException) -> None:
    # The text of an exception may quote what a program sent.
    _LOG.error("background work of the client failed: %s", type(error).__name__)
