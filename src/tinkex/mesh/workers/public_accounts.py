"""What workers know of accounts and of their network, kept current by the feeds they hold.

Owns two views: of "accounts-public", with which auth workers and gateways verify credentials
offline, and of "network", by which every member hears of new roots and of peers that are shut out.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from tinkex.mesh.accounts.public import Caller
from tinkex.mesh.feeds.entry import Entry
from tinkex.mesh.feeds.policy import ACCOUNTS_PUBLIC, NETWORK
from tinkex.mesh.feeds.store import FeedStore
from tinkex.mesh.feeds.view import View
from tinkex.mesh.identity import PeerId
from tinkex.mesh.trust.network import NetworkInfo
from tinkex.mesh.trust.revocations import Revocations
from tinkex.mesh.workers.authority.books import NetworkBook, PublicBook


class PublicView:
    """Verifies credentials by what "accounts-public" says.

    Args:
        feeds: an open store.
        network: tokens of others are refused.
        on_error: told of entries that make no sense.
    """

    def __init__(
        self, feeds: FeedStore, network: PeerId, *, on_error: Callable[[BaseException], None]
    ) -> None:
        self._feeds = feeds
        self._view: View[PublicBook] = View(
            feeds,
            ACCOUNTS_PUBLIC,
            lambda data: PublicBook(data, network),
            name="public-accounts",
            by_author=False,
            on_error=on_error,
        )

    async def open(self) -> None:
        """Fold what is stored, and follow what comes.

        Raises:
            DamagedDataError: the store is damaged.
        """
        await self._view.open()

    async def close(self) -> None:
        """Stop following. Harmless twice."""
        await self._view.close()

    async def current(self) -> None:
        """Wait until all that is stored is in the view.

        Readers of the store see an entry from the moment on that it is written, which is before
        those who follow are told: a round of replication may find in between that it lacks nothing.
        """
        await self._feeds.database.write(lambda _: None, flush=False)  # behind all others
        await self._view.current()

    @property
    def book(self) -> PublicBook:
        """What is known now; another object after the feed was folded again."""
        return self._view.state()

    def verify(self, credential: str, now: float) -> Caller:
        """Say who a credential speaks for.

        Raises:
            AuthenticationError: it is unknown, has expired, or was revoked.
        """
        return self.book.verify(credential, now)


class NetworkView:
    """Hears of new roots and of peers that are shut out.

    Args:
        feeds: an open store.
        info: the network as it is on this worker's disk.
        encoded: the same, as it was signed.
        revocations: told of peers that are shut out; what the worker's links ask.
        on_change: told of a new description, checked and as it was signed.
        on_error: told of entries that make no sense.
    """

    def __init__(
        self,
        feeds: FeedStore,
        info: NetworkInfo,
        encoded: bytes,
        revocations: Revocations,
        *,
        on_change: Callable[[NetworkInfo, bytes], None] = lambda _info, _encoded: None,
        on_error: Callable[[BaseException], None],
    ) -> None:
        self._view: View[NetworkBook] = View(
            feeds,
            NETWORK,
            lambda data: NetworkBook(data, info, encoded, revocations),
            name="network",
            by_author=False,
            on_error=on_error,
        )
        self._feeds = feeds
        self._known = info.sequence
        self._on_change = on_change
        self._unsubscribe: Callable[[], None] | None = None

    async def open(self) -> None:
        """Fold what is stored, and follow what comes.

        Raises:
            DamagedDataError: the store is damaged.
        """
        await self._view.open()
        self._unsubscribe = self._feeds.subscribe(NETWORK, self._arrived)
        self._arrived(())

    async def close(self) -> None:
        """Stop following. Harmless twice."""
        if self._unsubscribe is not None:
            self._unsubscribe()
            self._unsubscribe = None
        await self._view.close()

    async def current(self) -> None:
        """Wait until nothing is being folded again."""
        await self._view.current()
        self._arrived(())

    @property
    def book(self) -> NetworkBook:
        """What is known now; another object after the feed was folded again."""
        return self._view.state()

    def _arrived(self, _: Sequence[Entry]) -> None:
        """The view was told before: it subscribed first."""
        book = self.book
        if book.info.sequence > self._known:
            self._known = book.info.sequence
            self._on_change(book.info, book.encoded)
