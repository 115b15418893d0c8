"""One link's protocol: which message may come when, and what may be sent. No I/O.

Owns the call ids of both sides, credits, the peer's limits and this side's. What waits to be sent
(`outbox`) is bounded by them, whatever the peer does: a peer that passes them has broken the
protocol, and the link is closed. Who may call what, and how long anything takes, others know
(`dispatch`, `heartbeat`, `channel`).
"""

from __future__ import annotations

from dataclasses import dataclass

import msgspec

from tinkex.errors import PeerProtocolError
from tinkex.mesh.rpc.messages import (
    MAX_BODY_BYTES,
    MAX_WINDOW,
    Bye,
    Cancel,
    Credit,
    End,
    Failed,
    Items,
    Leave,
    Message,
    Part,
    Ping,
    Pong,
    Request,
    Response,
    WireError,
    decode_frame,
)
from tinkex.mesh.rpc.outbox import ITEM_OVERHEAD, Joiner, Outbox, Reply


@dataclass(frozen=True, slots=True)
class Limits:
    """What one side may have open at the other."""

    calls: int
    request_bytes: int


class _Outgoing(msgspec.Struct, eq=False):
    """A call of this side, until its last word."""

    size: int
    window: int
    """Credit that the peer has left; 0 throughout for a single reply."""
    streamed: bool
    read: int = 0
    """Credit to be given back."""
    cancelled: bool = False


class _Incoming(msgspec.Struct, eq=False):
    """A call of the peer's, until its last word was taken to be sent."""

    size: int
    credit: int
    streamed: bool
    reply: Reply = msgspec.field(default_factory=Reply)
    cancelled: bool = False


class Session:
    """The state of one link, both directions.

    Args:
        given: what the peer may have open here.
        granted: what this side may have open there.
        window: credit of a stream, in bytes.
        coalesce_s: how long an item may wait for others.
        coalesce_bytes: how many bytes do not wait.
        unhurried_s: how long an unhurried item may wait for the next.
        coalesce_after: frames of a stream that go at once; see `Outbox`.
    """

    def __init__(
        self,
        given: Limits,
        granted: Limits,
        *,
        window: int,
        coalesce_s: float,
        coalesce_bytes: int,
        unhurried_s: float = 0.0,
        coalesce_after: int = 1,
    ) -> None:
        self._given, self._granted = given, granted
        self._window = window
        self._coalesce_bytes = coalesce_bytes
        self._outbox = Outbox(
            coalesce_s=coalesce_s,
            coalesce_bytes=coalesce_bytes,
            unhurried_s=unhurried_s,
            coalesce_after=coalesce_after,
            on_last_word=self._answered,
        )
        self._joiner = Joiner()
        self._outgoing: dict[int, _Outgoing] = {}
        self._outgoing_bytes = 0
        self._last_out = 0
        self._incoming: dict[int, _Incoming] = {}
        self._incoming_bytes = 0
        self._last_in = 0
        self._last_ping = 0
        self._bye_sent = self._bye_received = False
        self.closing = False
        """Whether this side may begin no call any more."""
        self.finished = False
        """Whether neither side needs the link any more."""

    # --- what is open ---------------------------------------------------------

    @property
    def outgoing(self) -> int:
        """How many calls of this side wait for their last word."""
        return len(self._outgoing)

    @property
    def incoming(self) -> int:
        """How many calls of the peer have not had theirs."""
        return len(self._incoming)

    @property
    def open_calls(self) -> tuple[int, int]:
        """`outgoing` and `incoming`."""
        return len(self._outgoing), len(self._incoming)

    # --- calls of this side ---------------------------------------------------

    def may_request(self, size: int) -> bool:
        """Whether the peer's limits allow one more call now."""
        room = not self._outgoing or self._outgoing_bytes + size <= self._granted.request_bytes
        return room and len(self._outgoing) < self._granted.calls

    def request(
        self, method: str, body: bytes, *, timeout_ms: int, streamed: bool, trace: str = ""
    ) -> int:
        """Begin a call that `may_request` allowed; returns its id."""
        self._last_out += 1
        window = self._window if streamed else 0
        self._outgoing[self._last_out] = _Outgoing(len(body), window, streamed)
        self._outgoing_bytes += len(body)
        self._outbox.urgent(Request(self._last_out, method, timeout_ms, window, trace, body))
        return self._last_out

    def cancel(self, call_id: int) -> None:
        """Wait for a call's answer no more. It counts until its last word comes."""
        call = self._outgoing.get(call_id)
        if call is not None and not call.cancelled:
            call.cancelled = True
            self._outbox.withdraw(call_id)
            self._outbox.urgent(Cancel(call_id))

    def consumed(self, call_id: int, body: bytes) -> bool:
        """Give credit for an item that was read, once half the window is; whether it is due."""
        call = self._outgoing.get(call_id)
        if call is None or not call.streamed or call.cancelled:
            return False
        call.read += len(body) + ITEM_OVERHEAD
        if call.read * 2 < self._window:
            return False
        self._outbox.grant(call_id, call.read)
        call.window += call.read
        call.read = 0
        return True

    # --- calls of the peer ----------------------------------------------------

    def may_send(self, call_id: int) -> bool:
        """Whether an item may be added to a stream; where not, `Credit` or `take` changes it."""
        call = self._incoming.get(call_id)
        if call is None or call.cancelled:
            return True
        return call.credit > 0 and call.reply.waiting_bytes < self._coalesce_bytes

    def item(self, call_id: int, body: bytes, *, unhurried_at: float | None = None) -> bool:
        """Add an item to a stream, if that `may_send`. If the peer cancelled it nobody gets it.

        Args:
            call_id: of the stream.
            body: the item.
            unhurried_at: the time now, of an item that may wait for the next; None: of others.

        Returns:
            Whether it is taken care of.
        """
        call = self._incoming[call_id]
        if call.cancelled:
            return True
        if call.credit <= 0 or call.reply.waiting_bytes >= self._coalesce_bytes:
            return False
        call.credit -= len(body) + ITEM_OVERHEAD
        self._outbox.item(call_id, call.reply, body, unhurried_at=unhurried_at)
        return True

    def respond(self, call_id: int, body: bytes) -> None:
        """Give the reply of a call."""
        self._last_word(call_id, Response(call_id, body))

    def end(self, call_id: int) -> None:
        """End a stream."""
        self._last_word(call_id, End(call_id))

    def fail(self, call_id: int, error: WireError) -> None:
        """End a call with an error."""
        self._last_word(call_id, Failed(call_id, error))

    def _last_word(self, call_id: int, message: Response | End | Failed) -> None:
        self._outbox.finish(call_id, self._incoming[call_id].reply, message)

    def _answered(self, call_id: int) -> None:
        self._incoming_bytes -= self._incoming.pop(call_id).size

    # --- the link itself ------------------------------------------------------

    def ping(self) -> int:
        """Ask for a sign of life; returns its number."""
        self._last_ping += 1
        self._outbox.ping(self._last_ping)
        return self._last_ping

    def leave(self, *, stopping: bool) -> None:
        """Ask the peer to begin no call here; those that run go on."""
        self._outbox.urgent(Leave(stopping))

    def bye(self) -> None:
        """Promise to begin no call here. To be said when none is open."""
        if not self._bye_sent:
            self._bye_sent = self.closing = True
            self.finished = self._bye_received
            self._outbox.urgent(Bye())

    # --- what came ------------------------------------------------------------

    def receive(self, frame: bytes) -> list[Message]:
        """Take a frame; returns those of its messages that somebody has to act on.

        Those are: requests to answer; answers and items of calls that were not cancelled; cancels
        and credits of calls that have not ended; pongs; leave and bye.

        Raises:
            PeerProtocolError: the peer broke the protocol. The session is of no more use.
        """
        found = []
        for message in self._read(frame):
            whole = self._whole(message) if self._joiner.parts else message
            if self._take_in(whole):
                found.append(whole)
        return found

    def _read(self, frame: bytes) -> list[Message]:
        return decode_frame(frame)

    def _whole(self, message: Message) -> Message:
        """Return a message with the parts of its body that came before it."""
        if isinstance(message, Request | Response):
            request = isinstance(message, Request)
            body = self._joiner.joined(message.id, message.body, request=request)
            self._check_length(len(body))
            return message if body is message.body else msgspec.structs.replace(message, body=body)
        if isinstance(message, Items):
            first = self._joiner.joined(message.id, message.bodies[0], request=False)
            self._check_length(len(first))
            if first is not message.bodies[0]:
                return msgspec.structs.replace(message, bodies=(first, *message.bodies[1:]))
        return message

    def _part_came(self, part: Part) -> None:
        if part.request:
            self._check_number(part.id)
        else:
            self._open(part.id)
        self._check_length(self._joiner.add(part))

    def _check_length(self, size: int) -> None:
        if size > MAX_BODY_BYTES:
            raise PeerProtocolError("the peer sent a body in parts that is longer than allowed")

    def _take_in(self, message: Message) -> bool:
        match message:
            case Items():
                return self._items_came(message)
            case Request():
                return self._request_came(message)
            case Response() | End() | Failed():
                return self._last_word_came(message)
            case Cancel() | Credit():
                return self._steered(message)
            case Ping(nonce):
                self._outbox.pong(nonce)
                return False
            case Part():
                self._part_came(message)
                return False
            case Pong(nonce):
                if nonce > self._last_ping:
                    raise PeerProtocolError("the peer answered a ping that was never sent")
            case Leave():
                self.closing = True
            case Bye():
                self._bye_received = True
                self.finished = self._bye_sent
        return True

    def _request_came(self, request: Request) -> bool:
        if self._bye_received:
            raise PeerProtocolError("the peer began a call after it said it would not")
        self._check_number(request.id)
        size = len(request.body)
        self._check_calls()
        self._check_bytes(size)
        self._last_in = request.id
        self._incoming_bytes += size
        self._incoming[request.id] = _Incoming(size, request.window, request.window > 0)
        return True

    def _check_number(self, number: int) -> None:
        if number != self._last_in + 1:
            raise PeerProtocolError(
                f"the peer numbered a call {number} after {self._last_in}: they grow by one"
            )

    def _check_calls(self) -> None:
        if len(self._incoming) >= self._given.calls:
            raise PeerProtocolError(f"the peer has more than {self._given.calls} calls open")

    def _check_bytes(self, size: int) -> None:
        if self._incoming and self._incoming_bytes + size > self._given.request_bytes:
            raise PeerProtocolError(
                f"the peer's open requests are more than {self._given.request_bytes} bytes"
            )

    def _steered(self, message: Cancel | Credit) -> bool:
        if message.id > self._last_in:
            raise PeerProtocolError("the peer steers a call that it never began")
        call = self._incoming.get(message.id)
        if call is None or call.cancelled:
            return False  # it crossed the call's end
        if isinstance(message, Cancel):
            call.cancelled = True
            self._outbox.discard(message.id, call.reply)
        else:
            call.credit += message.amount
            self._check_given(call)
        return True

    def _check_given(self, call: _Incoming) -> None:
        if not call.streamed or call.credit > MAX_WINDOW:
            raise PeerProtocolError("the peer gives more credit than a call can have")

    def _last_word_came(self, message: Response | End | Failed) -> bool:
        call = self._open(message.id)
        if isinstance(message, Response | End) and call.streamed is isinstance(message, Response):
            raise PeerProtocolError("the peer ended a call in a way that its kind has not")
        del self._outgoing[message.id]
        self._outbox.withdraw(message.id)
        self._outgoing_bytes -= call.size
        return not call.cancelled

    def _items_came(self, message: Items) -> bool:
        call = self._open(message.id)
        for body in message.bodies:
            self._check_credit(call)
            call.window -= len(body) + ITEM_OVERHEAD
        return not call.cancelled

    def _check_credit(self, call: _Outgoing) -> None:
        if call.window <= 0:
            raise PeerProtocolError("the peer sent items without credit")

    def _open(self, call_id: int) -> _Outgoing:
        call = self._outgoing.get(call_id)
        if call is None:
            raise PeerProtocolError("the peer answered a call that is not open")
        return call

    # --- what goes ------------------------------------------------------------

    def take(self, now: float) -> bytes | None:
        """Take the next frame to be sent, or None while there is nothing.

        Calls whose last word it holds are over.
        """
        return self._outbox.take(now)

    @property
    def to_send(self) -> bool:
        """Whether anything waits to be taken, now or soon."""
        return self._outbox.waits

    @property
    def due(self) -> float | None:
        """After `take` gave nothing: the moment at which there will be something, if known."""
        return self._outbox.due
