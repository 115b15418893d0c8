"""One completion at a gateway, from the request to the receipt.

Owns the order: bounds, limits, reservation, processors, settlement, receipt. Each of them is
another module's; here is what happens when they are crossed by an error or a client that leaves.

What a request costs: the prompt and every token that was passed on. One that fails before anything
was passed on costs nothing; one whose client leaves costs what it has by then. A foreign back end
counts a prompt at the end: where that does not come, it costs what its bytes let expect.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from random import Random

import msgspec

from tinkex._clock import Clock
from tinkex.errors import TinkerError, status_error
from tinkex.mesh.accounts.public import Caller
from tinkex.mesh.accounts.scopes import INFER
from tinkex.mesh.api.completion import CompletionMessage, PieceMessage, is_sign_of_life
from tinkex.mesh.api.gateway import Complete, CompletionEvent, Finished, Receipt
from tinkex.mesh.api.processor import Work
from tinkex.mesh.balancer import Offer, Wanted
from tinkex.mesh.catalog import AdapterCatalog, NamedModel
from tinkex.mesh.feeds.entry import EntryId
from tinkex.mesh.identity import KeyPair, PeerId
from tinkex.mesh.rpc.service import Call
from tinkex.mesh.tasks import Tasks, let_others_run
from tinkex.mesh.trust.permits import NONCE_BYTES, PERMIT_S, make_blob_permit, make_permit
from tinkex.mesh.trust.receipts import ReceiptBody, sign_receipt
from tinkex.mesh.workers.request_log import REQUEST_ID_CHARS, log_ended
from tinkex.mesh.workers.serving.admission import Admission, TokensTaken
from tinkex.mesh.workers.serving.bounds import Cost, check_request, cost_of, estimated_prompt
from tinkex.mesh.workers.serving.directory import Directory
from tinkex.mesh.workers.serving.dispatch import Dispatch, Job
from tinkex.mesh.workers.serving.ledger import Ledger, Reservation
from tinkex.mesh.workers.serving.relay import Relay
from tinkex.openai_api.refusal import model_not_found

_LOG = logging.getLogger("tinkex.mesh.gateway")
AWAY_MS = 2000.0
"""What callers are told whose model was there a while ago."""
SEED_BITS = 62
REQUEST_ID_BYTES = REQUEST_ID_CHARS // 2


class _Served(msgspec.Struct, eq=False, kw_only=True):
    """A request that is served."""

    caller: Caller
    client: PeerId
    message: CompletionMessage
    """As it goes to processors."""
    named: NamedModel
    asked_for: str
    cost: Cost
    taken: TokensTaken
    reservation: Reservation
    job: Job
    began: float
    """Monotonic seconds."""
    first_s: float | None = None
    """How long its first piece took, in seconds."""
    error: str = ""
    """The class of what it failed with."""
    settled: bool = False

    async def reserved(self) -> EntryId:
        """Wait until the reservation is written; where it is.

        Raises:
            StorageError: it cannot be.
        """
        written = self.reservation.written
        return written.result() if written.done() else await asyncio.shield(written)

    @property
    def prompt_tokens(self) -> int:
        """Those that are charged."""
        relay = self.job.relay
        charged = self.job.accepted and (relay.sent or relay.complete or not self.error)
        if not charged:
            return 0
        return relay.prompt_tokens or estimated_prompt(self.message, self.cost)


class CompletionService:
    """Serves completions.

    Args:
        key_pair: the gateway's.
        catalog: says what a model's name stands for.
        directory: knows the base models.
        admission: lets requests in.
        ledger: reserves and settles.
        dispatch: has processors do it.
        tasks: owns the settlement of what a client left.
        clock: tells the time.
        rng: draws seeds.
        random: so many random bytes.
        first_token: told how long each completion's first piece took, in seconds.
    """

    def __init__(
        self,
        key_pair: KeyPair,
        catalog: AdapterCatalog,
        directory: Directory,
        admission: Admission,
        ledger: Ledger,
        dispatch: Dispatch,
        tasks: Tasks,
        *,
        clock: Clock,
        rng: Random,
        random: Callable[[int], bytes],
        first_token: Callable[[float], None] = lambda _: None,
    ) -> None:
        self._first_token = first_token
        self._key_pair = key_pair
        self._catalog = catalog
        self._directory = directory
        self._admission = admission
        self._ledger = ledger
        self._dispatch = dispatch
        self._tasks = tasks
        self._clock = clock
        self._rng = rng
        self._random = random

    async def serve(self, request: Complete, call: Call) -> AsyncGenerator[CompletionEvent, None]:
        """Give what the client gets: `Accepted`, pieces, `Finished`, `Receipt`.

        Raises:
            TinkerError: it is refused, or cannot be done.
        """
        caller = await self._admission.caller(request.credential, INFER)
        message = request.request
        check_request(message)
        ticket = self._admission.enter(caller)
        try:
            served = await self._let_in(caller, message, call)
            try:
                entry: EntryId | None = None
                async with aclosing(self._dispatch.events(served.job)) as events:
                    async for event in events:
                        entry = entry or await served.reserved()
                        if served.first_s is None and _tells_something(event):
                            served.first_s = self._clock.monotonic() - served.began
                        yield event
                yield self._finished(served)
                await let_others_run()  # all that the client waits for leaves before the signing
                receipt = self._receipt(served, await served.reserved())
                await asyncio.shield(self._settle(served, receipt))
                yield receipt
            except TinkerError as error:
                served.error = type(error).__name__
                raise
            finally:
                if not served.settled:
                    self._settle(served, None)
        finally:
            ticket.leave()

    async def resolve(self, caller: Caller, model: str) -> tuple[NamedModel, int]:
        """Say what a model's name stands for, and the context of its base model.

        A base model comes before an adapter of its name: that may be anybody's, from before it.

        Raises:
            APIStatusError: 404, there is no such model for this caller, or nobody runs it; 503, it
                was there a while ago.
        """
        context = self._directory.context(model)
        if context is not None:
            return NamedModel(model), context
        named = self._catalog.resolve(caller.account_id, model)
        context = self._directory.context(named.base_model)
        if context is None:
            context = await self.look_for(named.base_model)
        if context is None:
            raise model_not_found(
                f"No processor of this mesh runs {model!r}, or it is not yours: the list of models "
                "has those that you may name."
            )
        return named, context

    async def look_for(self, base_model: str) -> int | None:
        """Look for processors of a base model of which none is known.

        Returns:
            Its longest context, in tokens; None: nobody runs it.

        Raises:
            APIStatusError: 503, somebody did a while ago.
        """
        await self._directory.look_for(base_model)
        context = self._directory.context(base_model)
        if context is None and self._directory.lately(base_model):
            raise status_error(
                503,
                f"No processor of this mesh runs {base_model!r} just now: try again later.",
                retry_after_ms=AWAY_MS,
            )
        return context

    async def _let_in(self, caller: Caller, message: CompletionMessage, call: Call) -> _Served:
        began = self._clock.monotonic()
        named, context = await self.resolve(caller, message.model)
        cost = cost_of(message, context)
        taken = self._admission.take_tokens(caller, cost.tokens)
        request_id = self._random(REQUEST_ID_BYTES).hex()
        tried: set[PeerId] = set()
        drawn = message.seed is None
        seed = self._rng.getrandbits(SEED_BITS) if drawn else message.seed
        try:
            reservation = await self._ledger.reserve(request_id, caller, message.model, cost.tokens)
        except BaseException:
            taken.settle(0)
            raise
        given = msgspec.structs.replace(
            message, model=named.base_model, seed=seed, seed_drawn=drawn
        )
        relay = Relay(given, cost, context)
        job = Job(
            request_id=request_id,
            wanted=Wanted(model=named.base_model, adapter=named.content, excluded=tried),
            tried=tried,
            relay=relay,
            asked=lambda: self._ledger.write_down(reservation),
            sequences=message.n,
            work=lambda offer: self._work(served, encoded, offer),
            deadline=call.deadline,
        )
        served = _Served(
            caller=caller,
            client=call.peer,
            message=given,
            named=named,
            asked_for=message.model,
            cost=cost,
            taken=taken,
            reservation=reservation,
            job=job,
            began=began,
        )
        encoded = msgspec.msgpack.encode(given)
        return served

    def _work(self, served: _Served, encoded: bytes, offer: Offer) -> Work:
        """Make the message for one processor, with a permit that only it can use, and once."""
        asked = served.message.max_tokens
        each = served.cost.each if asked is None else asked
        account, content = served.caller.account_id, served.named.content
        expires_at = self._clock.now() + PERMIT_S
        permit = make_permit(
            self._key_pair,
            processor=offer.peer,
            account=account,
            model=served.named.base_model,
            adapter=content or "",
            request=encoded,
            max_tokens=each * served.message.n,
            expires_at=expires_at,
            nonce=self._random(NONCE_BYTES),
        )
        fetch = b""
        if content is not None:
            fetch = make_blob_permit(
                self._key_pair,
                fetcher=offer.peer,
                account=account,
                content=content,
                expires_at=expires_at,
            )
        relay = served.job.relay
        return Work(
            permit=permit,
            request=encoded,
            resume=relay.resume,
            finished=relay.finished,
            fetch=fetch,
        )

    def _finished(self, served: _Served) -> Finished:
        return Finished(
            prompt_tokens=served.prompt_tokens, cached_tokens=served.job.relay.cached_tokens
        )

    def _receipt(self, served: _Served, entry: EntryId) -> Receipt:
        relay, job = served.job.relay, served.job
        assert served.message.seed is not None, "drawn when none is given"
        body = ReceiptBody(
            request_id=job.request_id,
            gateway=self._key_pair.peer_id.raw,
            client=served.client.raw,
            account_id=served.caller.account_id,
            key_id=served.caller.key_id,
            model=served.asked_for,
            prompt_tokens=served.prompt_tokens,
            completion_tokens=relay.tokens,
            cached_tokens=relay.cached_tokens,
            output=relay.digest.digest(),
            reproducible=job.reproducible,
            seed=served.message.seed,
            at=self._clock.now(),
            epoch=entry.epoch,
            sequence=entry.sequence,
        )
        encoded, signature = sign_receipt(self._key_pair, body)
        return Receipt(body=encoded, signature=signature)

    def _settle(self, served: _Served, receipt: Receipt | None) -> asyncio.Task[None]:
        """Write what it cost, whether or not somebody waits for it."""
        served.settled = True
        self._ledger.write_down(served.reservation)  # if it could not even be asked for
        relay = served.job.relay
        served.taken.settle(served.prompt_tokens + relay.tokens)
        if served.first_s is not None:
            self._first_token(served.first_s)
        log_ended(
            _LOG,
            served.job.request_id,
            "ok" if receipt is not None else served.error or "left",
            base_model=served.named.base_model,
            prompt_tokens=served.prompt_tokens,
            completion_tokens=relay.tokens,
            first_token_s=None if served.first_s is None else round(served.first_s, 4),
            seconds=round(self._clock.monotonic() - served.began, 4),
        )
        writing = self._ledger.settle(
            served.reservation,
            prompt_tokens=served.prompt_tokens,
            completion_tokens=relay.tokens,
            receipt=receipt,
        )
        return self._tasks.spawn(writing, name="settle a request")


def _tells_something(event: CompletionEvent) -> bool:
    """Whether an event has something of a completion in it."""
    return isinstance(event, PieceMessage) and not is_sign_of_life(event)
