"""One TLS connection as bytes in and bytes out, with proof of who is at each end.

Owns the handshake and the records; knows no socket and no time.

Python's `ssl` can ask a client for a certificate, but then accepts those of known authorities only,
and gives no access to the keys of the session. So the two sides prove themselves differently:

    dialler                                     listener
       |------ TLS 1.3, protocol tinkex-mesh/1 ----->|
       |<----- certificate, signature of it all -----|   its key must be the id that was dialled
       |<----- challenge: 32 random bytes -----------|   inside TLS from here on
       |------ id, signature ----------------------->|   of challenge, listener's certificate, ids
       |<----- one byte: welcome --------------------|
       |<===== frames ==============================>|

The dialler signs only after TLS has shown it that the challenge comes from the holder of the
listener's key, and names that key in what it signs. So whoever is dialled on purpose (and would
relay the signature to a third peer) holds one for its own key, useless elsewhere; whoever stands
between sees a session that ends at the key that was dialled, or none; and a signature heard once
is for a challenge that never comes again. Frames before the welcome are refused with the hello.
"""

from __future__ import annotations

import contextlib
import hashlib
import ssl
from enum import Enum, auto

from tinkex.errors import PeerProtocolError, TrustError
from tinkex.mesh.identity import PEER_ID_BYTES, SIGNATURE_BYTES, PeerId
from tinkex.mesh.transport.frames import Deframer
from tinkex.mesh.transport.tls_keys import PROTOCOL, TlsKeys, peer_of_certificate

CHALLENGE_BYTES = 32
HELLO_BYTES = PEER_ID_BYTES + SIGNATURE_BYTES
WELCOME = b"\x01"
_PURPOSE = "tls-hello"
_READ_BYTES = 1 << 16
"""More than a record has, so that each reading takes all that is left of one."""


class _State(Enum):
    TLS = auto()
    GREETING = auto()
    OPEN = auto()
    ENDED = auto()


class TlsChannel:
    """One side of a connection.

    Args:
        keys: this side's.
        expected: whom this side dials; None where it was dialled.
        challenge: 32 random bytes never used before, of the side that was dialled.
    """

    def __init__(
        self, keys: TlsKeys, *, expected: PeerId | None = None, challenge: bytes = b""
    ) -> None:
        self._keys = keys
        self._expected = expected
        self._challenge = challenge
        self._incoming = ssl.MemoryBIO()
        self.outbound = ssl.MemoryBIO()
        """What is to be sent through the socket."""
        context = keys.listening if expected is None else keys.dialling
        self._tls = context.wrap_bio(self._incoming, self.outbound, server_side=expected is None)
        self._state = _State.TLS
        self.open = False
        """Whether frames go both ways."""
        self.ended = False
        """Whether the peer has said in TLS's own way that nothing follows."""
        self._greeting = bytearray()
        self._greeting_bytes = 0
        self._deframer = Deframer()
        self.remote: PeerId | None = None
        """Who is at the other end; None until it is proven and welcome."""

    @property
    def dialler(self) -> bool:
        """Whether this side dials, and so has the first word."""
        return self._expected is not None

    def begin(self) -> None:
        """Say the first word, as the dialler."""
        self._shake_hands()

    def feed(self, data: bytes) -> list[bytes]:
        """Take what came from the socket; return the frames that are whole now.

        What is to be sent is in `outbound` afterwards, also after an error: the alert.

        Raises:
            TrustError: the peer is not who it should be, or does not prove who it is.
            PeerProtocolError: it does not speak as it should.
        """
        self._incoming.write(data)
        try:
            if self._state is _State.TLS and not self._shake_hands():
                return []
            plain = self._decrypt()
        except ssl.SSLError as error:
            raise PeerProtocolError(f"TLS with the peer failed: {error.reason}") from error
        if self._greeting_bytes:
            plain = self._greet(plain)
        return self._deframer.feed(plain) if plain else []

    def write(self, data: bytes) -> None:
        """Encrypt what `enframe` made of frames, however many."""
        view = memoryview(data)
        while view:
            view = view[self._tls.write(view) :]

    def end(self) -> None:
        """Say in TLS's own way that nothing follows."""
        if self._state is not _State.TLS:
            # It would like to read the peer's own farewell, which nobody waits for.
            with contextlib.suppress(ssl.SSLError):
                self._tls.unwrap()

    def _shake_hands(self) -> bool:
        try:
            self._tls.do_handshake()
        except ssl.SSLWantReadError:
            return False
        self._check_protocol()
        self._state = _State.GREETING
        if self._expected is None:
            self._greeting_bytes = HELLO_BYTES
            self.write(self._challenge)
            return True
        self._check_listener(self._expected)
        self._greeting_bytes = CHALLENGE_BYTES
        return True

    def _decrypt(self) -> bytes:
        parts = []
        try:
            while part := self._tls.read(_READ_BYTES):
                parts.append(part)
                if not self._incoming.pending:  # nor a part of a record, which is shorter
                    break  # to be told so would take an exception
            else:
                self._end_reading()
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLZeroReturnError:
            self._end_reading()
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def _end_reading(self) -> None:
        self._state = _State.ENDED
        self.open, self.ended = False, True

    def _greet(self, plain: bytes) -> bytes:
        """Go on with the greeting; return what follows it."""
        while self._greeting_bytes and plain:
            missing = self._greeting_bytes - len(self._greeting)
            self._greeting += plain[:missing]
            plain = plain[missing:]
            if len(self._greeting) == self._greeting_bytes:
                message = bytes(self._greeting)
                self._greeting.clear()
                self._greeted(message)
        return plain

    def _greeted(self, message: bytes) -> None:
        if self._expected is None:
            self._check_hello(message)
        elif self._greeting_bytes == CHALLENGE_BYTES:
            self._answer(message, self._expected)
        elif message != WELCOME:
            raise PeerProtocolError("the peer does not greet as it should")
        else:
            self._welcome(self._expected)

    def _check_protocol(self) -> None:
        if self._tls.selected_alpn_protocol() != PROTOCOL:
            raise PeerProtocolError(f"the peer does not speak {PROTOCOL}")

    def _check_listener(self, expected: PeerId) -> None:
        shown = peer_of_certificate(self._tls.getpeercert(binary_form=True))
        if shown != expected:
            raise TrustError(f"{shown.short} answers, not {expected.short}")

    def _answer(self, challenge: bytes, expected: PeerId) -> None:
        pair = self._keys.key_pair
        shown = self._tls.getpeercert(binary_form=True) or b""
        words = self._words(pair.peer_id, expected, shown, challenge)
        self.write(pair.peer_id.raw + pair.sign(_PURPOSE, words))
        self._greeting_bytes = len(WELCOME)

    def _check_hello(self, message: bytes) -> None:
        dialler, signature = PeerId(message[:PEER_ID_BYTES]), message[PEER_ID_BYTES:]
        keys = self._keys
        words = self._words(dialler, keys.key_pair.peer_id, keys.certificate, self._challenge)
        if not self._proven(dialler, words, signature):
            raise TrustError(f"who dialled does not prove to be {dialler.short}")
        self.write(WELCOME)
        self._welcome(dialler)

    def _words(
        self, dialler: PeerId, listener: PeerId, certificate: bytes, challenge: bytes
    ) -> bytes:
        """What a hello signs."""
        return challenge + self._bound_to(listener, certificate) + dialler.raw

    def _bound_to(self, listener: PeerId, certificate: bytes) -> bytes:
        """What makes a hello useless to any other listener."""
        return hashlib.sha256(certificate).digest() + listener.raw

    def _proven(self, dialler: PeerId, words: bytes, signature: bytes) -> bool:
        return dialler.signed(_PURPOSE, words, signature)

    def _welcome(self, remote: PeerId) -> None:
        self._greeting_bytes = 0
        self.remote = remote
        if self._state is _State.GREETING:
            self._state = _State.OPEN
            self.open = True
