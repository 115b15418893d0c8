"""Attacks on who is at the ends of a TLS link."""

from dataclasses import dataclass

from mesh_attacks.registry import Suite, one_each
from mesh_tls import ALICE, BOB, CHALLENGE, EVE, RawDialler, dial, exchange, hello_of, listen, peer

from tinkex.errors import PeerProtocolError, TrustError
from tinkex.mesh.transport.tls_channel import WELCOME, TlsChannel


@dataclass(frozen=True)
class Classes:
    """What an attack meets."""

    channel: type = TlsChannel


def let_in(bob: TlsChannel, mallory: RawDialler, hello: bytes) -> bool:
    """Whether Bob takes a dialler for Alice."""
    try:
        mallory.say(hello)
    except TrustError:
        assert not bob.open
        return False
    assert bob.remote == peer(ALICE)
    return True


def somebody_else_listens(classes):
    """Alice dials Bob; Eve answers."""
    channel = classes.channel
    alice, eve = dial(ALICE, BOB, channel), listen(EVE, channel=channel)

    def welcome_anybody(_hello):
        eve.write(WELCOME)
        eve._welcome(peer(ALICE))

    eve._check_hello = welcome_anybody
    try:
        exchange(alice, eve)
    except TrustError:
        assert not eve.open
    return alice.remote is None


def stolen_id(classes):
    """Eve dials Bob in Alice's name."""
    channel = classes.channel
    bob = listen(BOB, channel=channel)
    eve = RawDialler(bob)
    eve.go_on()
    return not let_in(bob, eve, hello_of(ALICE, EVE, bob))


def hello_heard_before(classes):
    """Eve has a hello of Alice to Bob from an earlier connection."""
    channel = classes.channel
    bob = listen(BOB, b"d" * 32, channel)
    eve = RawDialler(bob)
    eve.go_on()
    return not let_in(bob, eve, hello_of(ALICE, ALICE, bob, CHALLENGE))


def hello_for_somebody_else(classes):
    """Alice dials Eve, who hands her Bob's challenge, and Alice's answer on to Bob."""
    channel = classes.channel
    bob = listen(BOB, channel=channel)
    eve = RawDialler(bob)
    eve.go_on()
    assert eve.heard == CHALLENGE
    alice, to_alice = dial(ALICE, EVE, channel), listen(EVE, eve.heard, channel)
    heard = []
    to_alice._check_hello = heard.append
    exchange(alice, to_alice)
    return not let_in(bob, eve, heard[0])


def another_protocol(classes):
    """Whoever signs as we do over something else that runs on TLS, does not speak to us."""
    channel = classes.channel
    try:
        RawDialler(listen(BOB, channel=channel), protocol="http/1.1").go_on()
    except PeerProtocolError:
        return True
    return False


SUITE = Suite(
    "tls",
    Classes(),
    one_each(
        {
            somebody_else_listens: ("channel", "_check_listener", lambda self, expected: None),
            stolen_id: (
                "channel",
                "_proven",
                lambda self, dialler, words, signature: any(
                    key.signed("tls-hello", words, signature) for key in (dialler, peer(EVE))
                ),
            ),
            hello_heard_before: (
                "channel",
                "_words",
                lambda self, dialler, listener, certificate, challenge: (
                    self._bound_to(listener, certificate) + dialler.raw
                ),
            ),
            hello_for_somebody_else: (
                "channel",
                "_bound_to",
                lambda self, listener, certificate: b"",
            ),
            another_protocol: ("channel", "_check_protocol", lambda self: None),
        }
    ),
)
