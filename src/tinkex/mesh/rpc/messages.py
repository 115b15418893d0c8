"""What goes over a link: the greeting, and then frames of messages. No I/O.

Owns the form of the bytes and every bound on a single message; which message may come when,
`session` knows. All is msgpack arrays, strict: a field too many, a wrong type or a number out of
its range is a `PeerProtocolError`.

    dialler   Hello                                 [Request | Cancel | Credit | ...]*
    acceptor         Hello, or Refused and the end  [Response | Items | End | Failed | ...]*

Both sides call each other over one link; each numbers its own calls from 1. A frame holds one or
more messages. Every request gets exactly one last word: Response, End or Failed, a cancelled one
too.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, Literal, TypeAlias

import msgspec
from msgspec import Meta

from tinkex.errors import PeerProtocolError
from tinkex.mesh.transport.base import MAX_FRAME_BYTES

VERSION = 1
MAX_BODY_BYTES = MAX_FRAME_BYTES - 4096
"""A request, reply or item that is longer is refused before it is sent."""
MAX_MESSAGES = 256
"""In one frame."""
MAX_BODIES = 4096
"""In one message of items."""
MAX_TIMEOUT_MS = 86_400_000
MAX_WINDOW = 16 << 20
MAX_ERROR_CHARS = 4096
MAX_TRACE_CHARS = 64

CallId = Annotated[int, Meta(ge=1, le=2**53)]
Nonce = Annotated[int, Meta(ge=1, le=2**53)]
Body = Annotated[bytes, Meta(max_length=MAX_BODY_BYTES)]
Line = Annotated[str, Meta(max_length=MAX_ERROR_CHARS)]


class WireError(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """An error of `tinkex.errors`; `rpc.errors` makes it and reads it."""

    name: Annotated[str, Meta(max_length=64)]
    lines: Annotated[tuple[Line, ...], Meta(min_length=1, max_length=32)]
    """The message; of a ConfigurationError, its problems."""
    category: Literal["user", "server", "unknown"]
    retry_after_ms: Annotated[float, Meta(ge=0, le=MAX_TIMEOUT_MS)] | None
    request_id: Annotated[str, Meta(max_length=256)] | None
    status_code: Annotated[int, Meta(ge=100, le=599)] | None
    param: Annotated[str, Meta(max_length=256)] | None = None
    """The field at fault, as OpenAI's errors name it: in the error's `body`."""
    code: Annotated[str, Meta(max_length=256)] | None = None


class Hello(
    msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag="tinkex-hello"
):
    """The first frame of either side."""

    version: int
    network: Annotated[bytes, Meta(min_length=32, max_length=32)]
    certificate: Annotated[bytes, Meta(max_length=8192)] | None
    """A role certificate's chain; None from a guest."""
    instance: Annotated[bytes, Meta(min_length=8, max_length=8)]
    """Random, new with each start of the peer: links of an earlier start are dead."""
    max_calls: Annotated[int, Meta(ge=1, le=1 << 20)]
    """How many calls its receiver may have open here at once."""
    max_request_bytes: Annotated[int, Meta(ge=1, le=1 << 40)]
    """How many bytes the requests of those may have together; a single one may have more."""


class Refused(
    msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag="tinkex-refused"
):
    """The acceptor's answer to a greeting that it does not take; it closes the link then."""

    version: int
    error: WireError


class _Head(msgspec.Struct, frozen=True, array_like=True):
    """What a greeting of every version, also of later ones, begins with."""

    tag: str
    version: int


class _Message(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """Base of what a frame holds."""


class Request(_Message, frozen=True, tag=1):
    """Caller to callee: a call begins. Ids grow by one."""

    id: CallId
    method: Annotated[str, Meta(max_length=128)]
    """`service.method`."""
    timeout_ms: Annotated[int, Meta(ge=0, le=MAX_TIMEOUT_MS)]
    """What is left of the caller's time: two peers' clocks are never compared."""
    window: Annotated[int, Meta(ge=0, le=MAX_WINDOW)]
    """Of a stream: the credit to begin with. 0: a single reply is expected."""
    trace: Annotated[str, Meta(max_length=MAX_TRACE_CHARS)]
    body: Body


class Response(_Message, frozen=True, tag=2):
    """Callee to caller: the reply of a call without a stream, and its end."""

    id: CallId
    body: Body


class Items(_Message, frozen=True, tag=3):
    """Callee to caller: the next items of a stream, those that were ready together."""

    id: CallId
    bodies: Annotated[tuple[Body, ...], Meta(min_length=1, max_length=MAX_BODIES)]


class Part(_Message, frozen=True, tag=12):
    """Either way: the beginning of a long body, whose rest follows in the message proper.

    So that signs of life, and other calls, go between its parts on a slow line.
    """

    id: CallId
    request: bool
    """Whether the body is a request's, of the sender's own next call, or one of its replies'."""
    body: Body


class End(_Message, frozen=True, tag=4):
    """Callee to caller: a stream came to its end."""

    id: CallId


class Failed(_Message, frozen=True, tag=5):
    """Callee to caller: a call failed, or was cancelled, and has ended."""

    id: CallId
    error: WireError


class Cancel(_Message, frozen=True, tag=6):
    """Caller to callee: nobody waits for this call any more."""

    id: CallId


class Credit(_Message, frozen=True, tag=7):
    """Caller to callee: so many bytes of a stream were read, and may be sent anew."""

    id: CallId
    amount: Annotated[int, Meta(ge=1, le=MAX_WINDOW)]


class Ping(_Message, frozen=True, tag=8):
    """Answer me with my number; numbers grow."""

    nonce: Nonce


class Pong(_Message, frozen=True, tag=9):
    """The answer to every ping up to this one."""

    nonce: Nonce


class Leave(_Message, frozen=True, tag=10):
    """Begin no call with me over this link any more; those that run go on."""

    stopping: bool
    """Whether any other link would be refused too."""


class Bye(_Message, frozen=True, tag=11):
    """I wait for no answer here and begin no call. After one each way the link is closed."""


Message: TypeAlias = (
    Request | Response | Items | Part | End | Failed | Cancel | Credit | Ping | Pong | Leave | Bye
)

_UNREADABLE = (ValueError, RecursionError)
"""msgspec's own errors are ValueErrors; text that is no UTF-8 and endless nesting are not."""
_ENCODER = msgspec.msgpack.Encoder()
_HEAD = msgspec.msgpack.Decoder(_Head)
_GREETING: msgspec.msgpack.Decoder[Hello | Refused] = msgspec.msgpack.Decoder(Hello | Refused)
_FRAME: msgspec.msgpack.Decoder[list[Message]] = msgspec.msgpack.Decoder(
    Annotated[list[Message], Meta(min_length=1, max_length=MAX_MESSAGES)]
)


def encode_greeting(greeting: Hello | Refused) -> bytes:
    """Return a greeting's frame."""
    return _ENCODER.encode(greeting)


def decode_greeting(frame: bytes) -> Hello | Refused:
    """Read the first frame of a link.

    Raises:
        PeerProtocolError: it is none, or of another version of the protocol.
    """
    head = _decode(_HEAD, frame, "a greeting")
    if head.tag not in {"tinkex-hello", "tinkex-refused"}:
        raise PeerProtocolError("the peer's first frame is no greeting: it is no peer of a mesh")
    if head.version != VERSION:
        raise PeerProtocolError(
            f"the peer speaks version {head.version} of the mesh's protocol, this one version "
            f"{VERSION}: update the older one"
        )
    greeting: Hello | Refused = _decode(_GREETING, frame, "a greeting")
    return greeting


encode_frame: Callable[[list[Message]], bytes] = _ENCODER.encode
"""Returns the frame of some messages."""


def decode_frame(frame: bytes) -> list[Message]:
    """Read a frame after the greeting.

    Raises:
        PeerProtocolError: it is none.
    """
    try:
        return _FRAME.decode(frame)
    except _UNREADABLE as error:
        raise _refusal("a frame", error) from error


def _decode(decoder: msgspec.msgpack.Decoder[Any], data: bytes, what: str) -> Any:
    try:
        return decoder.decode(data)
    except _UNREADABLE as error:
        raise _refusal(what, error) from error


def _refusal(what: str, error: Exception) -> PeerProtocolError:
    return PeerProtocolError(f"the peer sent what is not {what} ({error!s:.200})")
