"""The processor worker: runs one base model, and adapters on it, for gateways that hold permits.

Owns putting the parts together, in which order they start and stop, and the announcements. What
answers gateways is `workers.processing`, what runs the model a back end of `processing`.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Iterable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

from tinkex._clock import Clock
from tinkex.errors import ConfigurationError, TinkerError
from tinkex.mesh.blobs.fetching import AdapterFetcher
from tinkex.mesh.blobs.store import BlobStore
from tinkex.mesh.deadline import within
from tinkex.mesh.dht.records import Offer
from tinkex.mesh.positive import not_positive
from tinkex.mesh.processing.backend import Backend
from tinkex.mesh.processing.slots import Slots
from tinkex.mesh.roles import Role
from tinkex.mesh.tasks import Tasks
from tinkex.mesh.transport.base import Contact
from tinkex.mesh.trust.nonces import NonceStore, boot_id
from tinkex.mesh.trust.permits import REMEMBERED_S, PermitCheck
from tinkex.mesh.workers.base import Linked, Worker
from tinkex.mesh.workers.discovery import (
    MAX_ADAPTERS_ANNOUNCED,
    MORE_ADAPTERS,
    adapter_topic,
    model_topic,
)
from tinkex.mesh.workers.processing import AdapterFiles, Processor
from tinkex.mesh.workers.reading import Reading
from tinkex.mesh.workers.shelf import give_files

_LOG = logging.getLogger("tinkex.mesh.processor")
NONCES = "used-permits"
"""Folder of the permits that were used; see `trust.nonces`."""
ADAPTERS = "adapters"


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessorConfig:
    """Settings of a processor. Times are in seconds.

    Raises:
        ConfigurationError: naming every value that cannot be.
    """

    slots: int | None = None
    """Completions at once; None: as many as the back end runs."""
    most_waiting: int = 128
    """Requests that may wait for a slot; above it callers are told to come back."""
    longest_wait_s: float = 45.0
    """A request that waited so long for a slot, or for the files of its adapter, is told to come
    back: gateways take a processor of which they hear nothing for a minute for lost."""
    adapter_mib: int = 10_240
    """Mebibytes of adapters' files that are kept; the one not used for longest goes."""
    announce_s: float = 1.0
    """Between two announcements of how busy it is."""

    def __post_init__(self) -> None:
        problems = not_positive(self, but=("most_waiting",))
        if self.most_waiting < 0:
            problems.append(f"most_waiting is {self.most_waiting}: it cannot be negative")
        if problems:
            raise ConfigurationError(problems)


class ProcessorWorker(Worker):
    """Serves gateways.

    Args:
        member: the worker that it is.
        backend: runs the model; started and stopped with this.
        data_dir: folder for what it keeps: the permits that were used, adapters' files.
        config: its settings.
    """

    def __init__(
        self,
        member: Linked,
        backend: Backend,
        *,
        data_dir: Path,
        config: ProcessorConfig | None = None,
    ) -> None:
        super().__init__("processor")
        self._member = member
        self._backend = backend
        self._data_dir = data_dir
        self._config = config or ProcessorConfig()
        self._slots = Slots(
            self._config.slots or backend.slots,
            self._config.most_waiting,
            longest_wait_s=self._config.longest_wait_s,
            clock=member.clock,
        )
        self._tasks = Tasks(on_error=_report)
        self._announced: set[str] = set()
        self._service: Processor | None = None
        self._store: BlobStore | None = None

    @property
    def service(self) -> Processor:
        """What answers gateways; there once the worker has started."""
        assert self._service is not None, "the worker has started"
        return self._service

    async def open(self, stack: AsyncExitStack) -> None:
        """Make the back end ready, remember the permits that were used, and serve."""
        member = self._member
        self._data_dir.mkdir(parents=True, exist_ok=True)
        nonces = NonceStore(
            self._data_dir / NONCES, clock=member.clock, longest_s=REMEMBERED_S, boot=boot_id()
        )
        stack.callback(nonces.close)
        stack.push_async_callback(self._backend.stop)
        await self._backend.start()
        permits = PermitCheck(member.key_pair.peer_id, nonces, clock=member.clock)
        files = self._adapters() if self._backend.model.adapters else None
        self._service = self.made_service(self._backend, permits, self._slots, files, member.clock)
        member.peers.serve(self._service)
        stack.push_async_callback(self._tasks.stop)
        stack.push_async_callback(self._withdraw)
        await self._announce()
        self._tasks.keep(self._keep_announcing, name="announce", clock=member.clock)

    def made_service(
        self,
        backend: Backend,
        permits: PermitCheck,
        slots: Slots,
        files: AdapterFiles | None,
        clock: Clock,
    ) -> Processor:
        """Make what answers gateways. A simulation watches it here."""
        return Processor(backend, permits, slots, files, clock)

    def _adapters(self) -> AdapterFetcher:
        """Open the store of adapters, and give them away to who may have them."""
        member = self._member
        self._store = BlobStore(
            self._data_dir / ADAPTERS, max_bytes=self._config.adapter_mib * 2**20
        )
        give_files(self._store, member.peers, clock=member.clock)
        return AdapterFetcher(
            self._store,
            member.peers,
            self._sources,
            in_use=lambda: self._backend.adapters_in_use,
            tasks=self._tasks,
        )

    async def _sources(self, content: str) -> list[Contact]:
        """Give who announces an adapter, those with the least to do first; then who may have it."""
        found, more = await asyncio.gather(
            *map(self._member.discovery.lookup, (adapter_topic(content), MORE_ADAPTERS))
        )
        contacts = [record.contact for record in sorted(found, key=lambda record: record.load)]
        return list(dict.fromkeys([*contacts, *(record.contact for record in more)]))

    def readings(self) -> Iterable[Reading]:
        """What its metrics are to show of it."""
        now = self.service.description
        yield Reading("slots", "Completions that run at once, at most.", now.slots)
        yield Reading("slots_free", "Of these, how many a request could have now.", now.free_slots)
        yield Reading("requests_waiting", "Completions that wait for a slot.", now.waiting)
        yield Reading("adapters", "Adapters that are loaded.", len(now.adapters))
        kinds = "Tokens of completions that began here, by kind: prompt, cached or completion."
        yield Reading("tokens", kinds, self.service.tokens, "kind", grows=True)

    async def drain(self, grace_s: float) -> None:
        """Refuse new requests, be found no more, and let those in progress end."""
        self.service.leaving = True
        await self._withdraw()
        with contextlib.suppress(TimeoutError):
            await within(self._member.clock, grace_s, self._slots.wait_idle())

    # --- announcements --------------------------------------------------------

    async def _keep_announcing(self) -> None:
        while True:
            await self._member.clock.sleep(self._config.announce_s)
            try:
                await self._announce()
            except TinkerError as error:
                _report(error)  # the next time may be better

    async def _announce(self) -> None:
        if self.service.leaving or self._backend.failure:
            await self._withdraw()
            return
        found = self.service.description
        names = tuple(model.name for model in found.models)
        offer = Offer(
            models=names,
            adapters=found.adapters,
            load=(found.slots - found.free_slots + found.waiting) / found.slots,
            free_slots=found.free_slots,
        )
        stored = () if self._store is None else self._store.contents
        topics = {
            Role.PROCESSOR.value,
            *(model_topic(name) for name in names),
            *(adapter_topic(content) for content in stored[:MAX_ADAPTERS_ANNOUNCED]),
        }
        if len(stored) > MAX_ADAPTERS_ANNOUNCED:
            topics.add(MORE_ADAPTERS)
        await self._drop(self._announced - topics)
        for topic in sorted(topics):
            self._announced.add(topic)
            await self._member.discovery.announce(topic, offer)

    async def _withdraw(self) -> None:
        await self._drop(set(self._announced))

    async def _drop(self, topics: set[str]) -> None:
        self._announced -= topics
        await asyncio.gather(*(self._member.discovery.withdraw(topic) for topic in sorted(topics)))


def _report(error: BaseException) -> None:
    # The text of an exception may quote what a client sent.
    _LOG.error("background work of the processor failed: %s", type(error).__name__)
