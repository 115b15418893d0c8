"""The mesh as a completer: what OpenAI's API needs of it, over gateways.

Owns the translation of its requests, and that a receipt is countersigned only if it says what came.
A caller is a credential: an API key, or an access token. The latest receipts are kept for whoever
has the credential that they were made for.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from tinkex._clock import Clock
from tinkex._timers import Timers
from tinkex.errors import TinkerError, TrustError
from tinkex.mesh.api.completion import CompletionMessage, completion_message, prompt_message
from tinkex.mesh.api.gateway import (
    Complete,
    Countersign,
    CountPrompt,
    GatewayApi,
    ListModels,
    MeshModel,
    Receipt,
)
from tinkex.mesh.identity import KeyPair, PeerId
from tinkex.mesh.rpc.peers import Peers
from tinkex.mesh.tasks import Tasks
from tinkex.mesh.transport.base import Contact
from tinkex.mesh.trust.receipts import ReceiptBody, check_receipt, countersign, verify_receipt
from tinkex.mesh.workers.calling.completion import MeshCompletion
from tinkex.mesh.workers.calling.gateways import Gateways
from tinkex.mesh.workers.calling.receipt_book import ReceiptBook, SignedReceipt
from tinkex.mesh.workers.too_long import told_as_too_long
from tinkex.openai_api.completer import CompletionRequest, ModelCard, Prompt
from tinkex.openai_api.refusal import model_not_found

_LOG = logging.getLogger("tinkex.mesh.client")
KEPT_RECEIPTS = 1000
COUNTERSIGN_S = 10.0


@dataclass(frozen=True, slots=True)
class KeptReceipt:
    """A receipt that says what came."""

    gateway: PeerId
    body: bytes
    signature: bytes
    read: ReceiptBody


class MeshCompleter:
    """Completes prompts over gateways, for credentials.

    Args:
        gateways: do it.
        peers: calls the gateway whose receipt is countersigned.
        key_pair: the client worker's own.
        tasks: owns what goes on in the background.
        timers: of the event loop.
        clock: tells the time.
        book: keeps receipts on disk; None where nobody asks for them later.
    """

    def __init__(
        self,
        gateways: Gateways,
        peers: Peers,
        key_pair: KeyPair,
        tasks: Tasks,
        timers: Timers,
        *,
        clock: Clock,
        book: ReceiptBook | None = None,
    ) -> None:
        self._book = book
        self._gateways = gateways
        self._peers = peers
        self._key_pair = key_pair
        self._tasks = tasks
        self._timers = timers
        self._clock = clock
        self.receipts: deque[KeptReceipt] = deque(maxlen=KEPT_RECEIPTS)
        """The latest, oldest first."""

    async def models(self, caller: str) -> Sequence[ModelCard]:
        """List the models that a caller may name."""
        found = await self._gateways.ask(GatewayApi.rpc_models, ListModels(credential=caller))
        return [_card(model, model.name) for model in found.models]

    async def model(self, caller: str, name: str) -> ModelCard:
        """Describe a base model, an adapter's name, or `<base>;<name>`.

        Raises:
            APIStatusError: 404, when there is none of this name.
        """
        query = ListModels(credential=caller, name=name)
        for model in (await self._gateways.ask(GatewayApi.rpc_models, query)).models:
            return _card(model, name)
        raise model_not_found(f"There is no model {name!r} for this key.")

    async def complete(self, caller: str, request: CompletionRequest) -> MeshCompletion:
        """Begin a completion; returns when a processor has taken it.

        Raises:
            TinkerError: it is refused, or cannot be done now.
        """
        message = Complete(credential=caller, request=completion_message(request))
        completion = MeshCompletion(
            message, self._gateways, self._judge, self._tasks, self._timers, clock=self._clock
        )
        with told_as_too_long():
            await completion.begin()
        return completion

    async def count_tokens(self, caller: str, model: str, prompt: Prompt) -> int:
        """Say how many tokens a prompt has for a model."""
        request = CompletionMessage(model=model, prompt=prompt_message(prompt))
        query = CountPrompt(credential=caller, request=request)
        with told_as_too_long():
            return (await self._gateways.ask(GatewayApi.rpc_count_tokens, query)).tokens

    def _judge(
        self, contact: Contact, receipt: Receipt, completion: MeshCompletion
    ) -> ReceiptBody | None:
        """Countersign a receipt that says what came; of another, warn, and avoid its gateway."""
        try:
            body = self._signed(contact, receipt)
            self._check_fits(body, completion)
        except TrustError as error:
            _LOG.error("gateway %s gave a wrong receipt: %s", contact.peer_id.short, error)
            self._gateways.avoid(contact.peer_id)
            return None
        self.receipts.append(KeptReceipt(contact.peer_id, receipt.body, receipt.signature, body))
        self._tasks.spawn(self._agree(contact, receipt), name="countersign a receipt")
        return body

    def _signed(self, contact: Contact, receipt: Receipt) -> ReceiptBody:
        return verify_receipt(receipt.body, receipt.signature, gateway=contact.peer_id)

    def _check_fits(self, body: ReceiptBody, completion: MeshCompletion) -> None:
        check_receipt(
            body,
            client=self._key_pair.peer_id,
            request_id=completion.request_id,
            prompt_tokens=completion.prompt_tokens or body.prompt_tokens,
            seen=completion.seen,
        )

    async def _agree(self, contact: Contact, receipt: Receipt) -> None:
        agreed = Countersign(body=receipt.body, signature=countersign(self._key_pair, receipt.body))
        if self._book is not None:
            gateway = contact.peer_id
            self._book.add(
                SignedReceipt(gateway, receipt.body, receipt.signature, agreed.signature)
            )
        try:
            await self._peers.call(
                contact, GatewayApi.rpc_countersign, agreed, timeout_s=COUNTERSIGN_S
            )
        except TinkerError as error:
            _LOG.info("a receipt was not countersigned: %s", type(error).__name__)


def _card(model: MeshModel, name: str) -> ModelCard:
    return ModelCard(
        name=name,
        created=model.created,
        owned_by=model.owned_by,
        base_model=model.base_model,
        max_context_length=model.max_context_length,
    )
