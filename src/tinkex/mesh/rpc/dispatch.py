"""What this peer offers: from a request to a handler's reply, or to a typed error.

Owns the check of who may call what, which comes before the request is decoded, and what becomes of
a handler's exceptions. Moves no bytes.
"""

from __future__ import annotations

import logging
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import msgspec

from tinkex.errors import (
    EngineError,
    PeerProtocolError,
    PeerUnreachableError,
    PermissionDeniedError,
    TinkerError,
)
from tinkex.mesh.rpc.messages import MAX_BODY_BYTES, Request
from tinkex.mesh.rpc.service import Method, Service, method_of, methods_of
from tinkex.mesh.trust.certificates import RoleCertificate

_LOG = logging.getLogger("tinkex.mesh.rpc")


@dataclass(frozen=True, slots=True)
class Offered:
    """A method that can be called here."""

    method: Method
    handler: Callable[..., Any]
    decoder: msgspec.msgpack.Decoder[msgspec.Struct]


class Dispatcher:
    """The services of one peer."""

    def __init__(self) -> None:
        self._offered: dict[str, Offered] = {}
        self.encoded: Callable[[object], bytes] = msgspec.msgpack.Encoder().encode
        """Makes a reply's bytes, however many: `encode` refuses too many."""

    def serve(self, service: Service) -> None:
        """Offer a service's methods.

        Raises:
            ValueError: one of that name is offered already.
        """
        found = {
            path: Offered(method, handler, msgspec.msgpack.Decoder(method.request))
            for path, declared in methods_of(type(service)).items()
            for method in (method_of(declared),)
            for handler in (getattr(service, declared.__name__),)
        }
        if taken := sorted(found.keys() & self._offered.keys()):
            raise ValueError(f"already served: {', '.join(taken)}")
        self._offered.update(found)

    def admit(self, request: Request, certificate: RoleCertificate | None) -> Offered:
        """Find the method that a request names, if its caller may call it.

        Raises:
            PeerUnreachableError: there is none: as long as a worker starts, it offers less.
            PeerProtocolError: it is called as a stream and is none, or reversed.
            PermissionDeniedError: the caller's role may not.
        """
        offered = self._offered.get(request.method)
        if offered is None:
            raise PeerUnreachableError(
                f"this peer offers no `{request.method}`: it is still starting, or not of the role "
                "that does, or one of the two has to be updated"
            )
        self._check_role(offered.method, certificate)
        if offered.method.streamed is not (request.window > 0):
            kind = "a stream" if offered.method.streamed else "a single reply"
            raise PeerProtocolError(f"`{request.method}` gives {kind}: update the older peer")
        return offered

    def _check_role(self, method: Method, certificate: RoleCertificate | None) -> None:
        if certificate is None:
            if not method.guests:
                raise PermissionDeniedError(
                    f"`{method.path}` may be called by members only: join the network with an "
                    "invitation first"
                )
        elif certificate.role not in method.roles:
            allowed = ", ".join(sorted(method.roles)) or "guests that want to join"
            raise PermissionDeniedError(
                f"`{method.path}` may be called by {allowed}; this peer is one with the role "
                f"{certificate.role}"
            )

    @staticmethod
    def decode(offered: Offered, body: bytes) -> msgspec.Struct:
        """Read the request.

        Raises:
            PeerProtocolError: it is not what the method takes.
        """
        try:
            return offered.decoder.decode(body)
        except (ValueError, RecursionError) as error:
            raise PeerProtocolError(
                f"`{offered.method.path}` does not take this request ({error!s:.200}): update the "
                "older peer"
            ) from None

    def encode(self, offered: Offered, reply: object) -> bytes:
        """Make a reply's bytes.

        Raises:
            EngineError: they are too many.
        """
        body = self.encoded(reply)
        if len(body) > MAX_BODY_BYTES:
            raise too_long(offered, body)
        return body


def too_long(offered: Offered, body: bytes) -> EngineError:
    """Say that a reply is longer than `MAX_BODY_BYTES`."""
    return EngineError(
        f"a reply of `{offered.method.path}` has {len(body)} bytes, of which "
        f"{MAX_BODY_BYTES} are allowed: ask for less"
    )


def handler_error(path: str, error: Exception) -> TinkerError:
    """Say what a caller is told of a handler's exception: a TinkerError is told as it is.

    Others are logged by type and place. Their text may quote the request, so nobody is told it.
    """
    if isinstance(error, TinkerError):
        return error
    frames = traceback.extract_tb(error.__traceback__)[-8:]
    places = " < ".join(f"{frame.name} ({frame.filename}:{frame.lineno})" for frame in frames[::-1])
    _LOG.error("`%s` failed: %s in %s", path, type(error).__name__, places)
    return EngineError(f"`{path}` failed inside its worker, whose log says where")
