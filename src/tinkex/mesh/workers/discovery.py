"""Finding one another: what workers need of a DHT, and no more.

`dht.node.DhtNode` is the one that runs; `tinkex.testing.discovery` has the double for unit tests.
"""

from __future__ import annotations

from typing import Protocol

from tinkex.mesh.dht.records import Offer, Record

MAX_ADAPTERS_ANNOUNCED = 48
"""By one worker, latest used first: nodes of the DHT hold 64 topics of a peer."""
MORE_ADAPTERS = "adapter:more"
"""The topic of whoever gives away more adapters than it announces: asked where no other is left."""


def model_topic(name: str) -> str:
    """Return the topic of processors that run a base model."""
    return f"model:{name}"


def adapter_topic(content: str) -> str:
    """Return the topic of whoever gives an adapter's files away."""
    return f"adapter:{content}"


class Discovery(Protocol):
    """Announces topics and looks them up.

    Topics are the names of the roles that serve (all but `client`), `model:<name>`,
    `adapter:<hash>` and `adapter:more`.
    """

    async def announce(self, topic: str, offer: Offer) -> None:
        """Make it known that this worker serves `topic`, until `withdraw`.

        Called again, it replaces the offer: at once where models or adapters changed, with the
        next renewal (at most 15 s) where load and free slots alone did, so call it as often as you
        like.

        Raises:
            TrustError: this worker's role may not announce the topic.
            InputError: the topic or the offer is too long.
        """

    async def withdraw(self, topic: str) -> None:
        """Take an announcement back, so that lookups no longer find it. Harmless if there is none.

        A lookup's answer that another worker remembers may show it for 2 s more.
        """

    async def lookup(self, topic: str) -> tuple[Record, ...]:
        """Who announces `topic` now, each once; nobody, if nobody does or nobody was reached.

        Remembered for 2 s, so that it may be called for every request.
        """
