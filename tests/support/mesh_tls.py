"""Peers of the TLS transport's handshake without sockets, and one that says whatever it wants."""

import ssl

from tinkex.mesh.identity import KeyPair
from tinkex.mesh.transport.tls_channel import TlsChannel
from tinkex.mesh.transport.tls_keys import PROTOCOL, TlsKeys

ALICE, BOB, EVE = (TlsKeys(KeyPair(letter * 32)) for letter in (b"a", b"b", b"e"))
CHALLENGE = b"c" * 32


def peer(keys):
    return keys.key_pair.peer_id


def dial(keys, expected, channel=TlsChannel) -> TlsChannel:
    made = channel(keys, expected=peer(expected))
    made.begin()
    return made


def listen(keys, challenge=CHALLENGE, channel=TlsChannel) -> TlsChannel:
    return channel(keys, challenge=challenge)


def hello_of(claimed, signer, listener: TlsChannel, challenge=CHALLENGE) -> bytes:
    """A hello in the name of `claimed`, as `signer` would sign it for this listener."""
    keys = listener._keys
    words = listener._words(peer(claimed), peer(keys), keys.certificate, challenge)
    return peer(claimed).raw + signer.key_pair.sign("tls-hello", words)


def exchange(one: TlsChannel, other: TlsChannel) -> tuple[list[bytes], list[bytes]]:
    """Carry bytes between the two until none are left; what each received."""
    got_one, got_other = [], []
    while True:
        there = one.outbound.read()
        if there:
            got_other += other.feed(there)
        back = other.outbound.read()
        if back:
            got_one += one.feed(back)
        if not there and not back:
            return got_one, got_other


class RawDialler:
    """A client of plain `ssl` that says in the greeting whatever a test wants."""

    def __init__(self, channel: TlsChannel, *, protocol: str = PROTOCOL) -> None:
        self.channel = channel
        self.incoming, self.outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        context.set_alpn_protocols([protocol])
        self.tls = context.wrap_bio(self.incoming, self.outgoing)
        self.heard = b""
        self.received: list[bytes] = []

    def go_on(self) -> None:
        for _ in range(6):
            try:
                self.tls.do_handshake()
                self.heard += self.tls.read(1 << 16)
            except ssl.SSLWantReadError:
                pass
            if data := self.outgoing.read():
                self.received += self.channel.feed(data)
            if data := self.channel.outbound.read():
                self.incoming.write(data)

    def say(self, data: bytes) -> None:
        self.tls.write(data)
        self.go_on()
