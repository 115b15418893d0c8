"""What waits to be sent on one link, and in which order it goes. No I/O.

Owns frames: signs of life first, then what is urgent, then the replies of all calls in turns; items
that are ready within a few milliseconds together; long bodies in parts, so that nothing waits for
the whole of one. Whether something may be sent, `session` knows, and so bounds what waits here.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

import msgspec

from tinkex.mesh.rpc.messages import (
    MAX_BODIES,
    MAX_MESSAGES,
    Credit,
    End,
    Failed,
    Items,
    Message,
    Part,
    Ping,
    Pong,
    Request,
    Response,
    encode_frame,
)

ITEM_OVERHEAD = 32
"""Bytes that an item counts for beside its own, so that empty ones are bounded too."""
PART_BYTES = 48 << 10
"""A longer body goes in parts."""
_FRAME_TARGET = 64 << 10
"""Bytes at which a frame is full."""
_MESSAGE_OVERHEAD = 64


class Reply:
    """What waits to be sent of one of the peer's calls."""

    __slots__ = (
        "company_until",
        "held_until",
        "last_word",
        "paced_until",
        "waiting",
        "waiting_bytes",
    )

    def __init__(self) -> None:
        self.waiting: deque[bytes] = deque()
        self.waiting_bytes = 0
        self.company_until = 0.0
        """Until when unhurried items, which are all that waits, wait for another."""
        self.held_until = 0.0
        self.paced_until = 0.0
        """When all that was sent would have been, at one frame every `coalesce_s`."""
        self.last_word: Response | End | Failed | None = None

    @property
    def next_body(self) -> bytes:
        """What goes next: an item, or the body of the last word; empty if there is none."""
        if self.waiting:
            return self.waiting[0]
        return self.last_word.body if isinstance(self.last_word, Response) else b""

    def cut(self, size: int) -> bytes:
        """Take the beginning of what goes next."""
        body = self.next_body
        if self.waiting:
            self.waiting[0] = body[size:]
            self.waiting_bytes -= size
        else:
            assert isinstance(self.last_word, Response), "nothing else has a body to be cut"
            self.last_word = msgspec.structs.replace(self.last_word, body=body[size:])
        return body[:size]


class Outbox:
    """Everything that waits on one link.

    Args:
        coalesce_s: how long an item may wait for others, after one was sent.
        coalesce_bytes: how many bytes of a stream do not wait.
        unhurried_s: how long an unhurried item may wait for another.
        coalesce_after: frames of a stream that go at once, one after the other; each pause of
            `coalesce_s` gives one back.
        on_last_word: told of a call whose last word was taken to be sent.

    Attributes:
        due: after `take` gave nothing: the moment at which there will be something, if known.
    """

    def __init__(
        self,
        *,
        coalesce_s: float,
        coalesce_bytes: int,
        unhurried_s: float = 0.0,
        coalesce_after: int = 1,
        on_last_word: Callable[[int], None],
    ) -> None:
        self._coalesce_s, self._coalesce_bytes = coalesce_s, coalesce_bytes
        self._unhurried_s = unhurried_s
        self._headstart_s = (coalesce_after - 1) * coalesce_s
        self._on_last_word = on_last_word
        self.due: float | None = None
        self._urgent: deque[Message] = deque()
        self._ready: dict[int, Reply] = {}
        self._grants: dict[int, int] = {}
        self._ping = self._pong = 0
        self._in_parts: int | None = None
        """The call whose reply is in the middle of a body. There is one at a time, so that the
        peer need keep no more than one."""

    # --- what is added ----------------------------------------------------------

    def urgent(self, message: Message) -> None:
        """Add a message of a call's beginning, or of the link itself."""
        self._urgent.append(message)

    def ping(self, nonce: int) -> None:
        """Ask for a sign of life; an earlier question that still waits is forgotten."""
        self._ping = nonce

    def pong(self, nonce: int) -> None:
        """Give one: for the latest ping, so that a flood of them fills nothing."""
        self._pong = max(self._pong, nonce)

    def grant(self, call_id: int, amount: int) -> None:
        """Give credit, with what still waits of it."""
        self._grants[call_id] = self._grants.get(call_id, 0) + amount

    def withdraw(self, call_id: int) -> None:
        """Give no credit that still waits: the call is over."""
        self._grants.pop(call_id, None)

    def item(
        self, call_id: int, reply: Reply, body: bytes, *, unhurried_at: float | None = None
    ) -> None:
        """Add an item of a stream; one that is unhurried waits `unhurried_s` for the next."""
        if unhurried_at is None:
            reply.company_until = 0.0
        elif not reply.waiting:
            reply.company_until = unhurried_at + self._unhurried_s
        reply.waiting.append(body)
        reply.waiting_bytes += len(body) + ITEM_OVERHEAD
        self._ready[call_id] = reply

    def finish(self, call_id: int, reply: Reply, word: Response | End | Failed) -> None:
        """Add a call's last word; only the first counts."""
        if reply.last_word is None:
            reply.last_word = word
            self._ready[call_id] = reply

    def discard(self, call_id: int, reply: Reply) -> None:
        """Forget the items that wait: nobody reads them."""
        reply.waiting.clear()
        reply.waiting_bytes = 0
        if self._in_parts == call_id and reply.last_word is None:
            self._in_parts = None

    # --- what is taken ----------------------------------------------------------

    @property
    def waits(self) -> bool:
        """Whether anything waits, maybe for company."""
        return bool(self._ready or self._urgent or self._grants or self._pong or self._ping)

    def take(self, now: float) -> bytes | None:
        """Take the next frame, or None while there is nothing to send."""
        batch: list[Message] = []
        if self._pong:
            batch.append(Pong(self._pong))
        if self._ping:
            batch.append(Ping(self._ping))
        self._ping = self._pong = 0
        while self._grants and len(batch) < MAX_MESSAGES // 2:
            batch.append(Credit(*self._grants.popitem()))
        size = self._take_urgent(batch) if self._urgent else 0
        self.due = None
        if self._ready:
            self._take_ready(batch, size, now)
        return encode_frame(batch) if batch else None

    def _take_urgent(self, batch: list[Message]) -> int:
        size = 0
        while self._urgent and len(batch) < MAX_MESSAGES:
            message = self._urgent[0]
            body = message.body if isinstance(message, Request) else b""
            own = min(len(body), PART_BYTES) + _MESSAGE_OVERHEAD
            if size and size + own > _FRAME_TARGET:
                break
            size += own
            if isinstance(message, Request) and len(body) > PART_BYTES:
                batch.append(Part(message.id, True, body[:PART_BYTES]))
                self._urgent[0] = msgspec.structs.replace(message, body=body[PART_BYTES:])
            else:
                batch.append(self._urgent.popleft())
        return size

    def _take_ready(self, batch: list[Message], size: int, now: float) -> None:
        for call_id in list(self._ready):
            reply = self._ready[call_id]
            begun = self._in_parts == call_id  # others wait for the rest of what it is in
            may_wait = reply.waiting and reply.last_word is None and not begun
            if may_wait and self._held(reply, now):
                continue
            if len(batch) > MAX_MESSAGES - 2 or size >= _FRAME_TARGET:
                self.due = now
                return
            if len(reply.next_body) > PART_BYTES:
                self.due = now
                if self._in_parts not in {None, call_id}:
                    continue
                if size + PART_BYTES > _FRAME_TARGET:
                    return
                batch.append(Part(call_id, False, reply.cut(PART_BYTES)))
                size += PART_BYTES
                self._in_parts = call_id
                self._to_the_end(call_id)
                continue
            size += self._take_reply(call_id, reply, batch, size, now)

    def _take_reply(
        self, call_id: int, reply: Reply, batch: list[Message], size: int, now: float
    ) -> int:
        """Take what fits of a reply, short items and its last word; returns its bytes."""
        taken = self._take_items(call_id, reply, batch, size, now)
        word = reply.last_word
        if not reply.waiting and word is not None and len(reply.next_body) <= PART_BYTES:
            own = _word_size(word)
            if not batch or size + taken + own <= _FRAME_TARGET:
                batch.append(word)
                del self._ready[call_id]
                self._over(call_id)
                self._on_last_word(call_id)
                return taken + own
        if reply.waiting or word is not None:
            # The frame is full, or a long body comes; the next one begins with another call.
            self.due = now
            if taken:
                self._to_the_end(call_id)
        else:
            del self._ready[call_id]
        return taken

    def _take_items(
        self, call_id: int, reply: Reply, batch: list[Message], size: int, now: float
    ) -> int:
        bodies: list[bytes] = []
        taken = 0
        while reply.waiting and len(bodies) < MAX_BODIES:
            length = len(reply.waiting[0])
            cost = length + ITEM_OVERHEAD
            full = (batch or bodies) and size + taken + cost > _FRAME_TARGET
            if full or length > PART_BYTES:
                break
            taken += cost
            bodies.append(reply.waiting.popleft())
        if bodies:
            reply.waiting_bytes -= taken
            reply.paced_until = max(now, reply.paced_until) + self._coalesce_s
            reply.held_until = reply.paced_until - self._headstart_s
            batch.append(Items(call_id, tuple(bodies)))
            self._over(call_id)
        return taken

    def _held(self, reply: Reply, now: float) -> bool:
        """Whether a stream's items wait for more to go with them."""
        until = max(reply.held_until, reply.company_until)
        if now >= until or reply.waiting_bytes >= self._coalesce_bytes:
            return False
        self.due = until if self.due is None else min(self.due, until)
        return True

    def _over(self, call_id: int) -> None:
        if self._in_parts == call_id:
            self._in_parts = None

    def _to_the_end(self, call_id: int) -> None:
        self._ready[call_id] = self._ready.pop(call_id)


class Joiner:
    """Joins the parts of what comes: one request and one reply at a time, so one body each."""

    def __init__(self) -> None:
        self.parts: dict[bool, tuple[int, bytearray]] = {}
        """Of requests (true) and replies: whose they are, and what has come."""

    def add(self, part: Part) -> int:
        """Keep a part, and forget another call's; returns the bytes of the body so far."""
        call_id, body = self.parts.get(part.request, (0, bytearray()))
        if call_id != part.id:
            body = bytearray()
            self.parts[part.request] = (part.id, body)
        body += part.body
        return len(body)

    def joined(self, call_id: int, rest: bytes, *, request: bool) -> bytes:
        """Return a body with the parts that came before it."""
        if self.parts.get(request, (0, b""))[0] != call_id:
            return rest
        return bytes(self.parts.pop(request)[1]) + rest


def _word_size(word: Response | End | Failed) -> int:
    if isinstance(word, Response):
        return len(word.body) + _MESSAGE_OVERHEAD
    if isinstance(word, Failed):
        return _MESSAGE_OVERHEAD + 4 * sum(len(line) for line in word.error.lines)
    return _MESSAGE_OVERHEAD
