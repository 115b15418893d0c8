"""Attacks on remote calls: who calls, what they may, and how much of it."""

import contextlib
from dataclasses import dataclass
from itertools import count

from mesh_attacks.registry import Defence, Suite
from mesh_rpc import Echo, World
from mesh_trust import TestNetwork

from tinkex.errors import PeerProtocolError, PermissionDeniedError, TrustError
from tinkex.mesh.api import auth
from tinkex.mesh.api.gateway import GatewayApi
from tinkex.mesh.identity import KeyPair
from tinkex.mesh.roles import Role
from tinkex.mesh.rpc.credentials import Credentials
from tinkex.mesh.rpc.dispatch import Dispatcher
from tinkex.mesh.rpc.messages import (
    Credit,
    Items,
    Ping,
    Request,
    decode_frame,
    encode_frame,
    encode_greeting,
)
from tinkex.mesh.rpc.peers import Peers
from tinkex.mesh.rpc.session import Limits, Session
from tinkex.mesh.trust.certificates import CLOCK_SKEW_S

DATE = 1_700_000_000.0
TRUST = TestNetwork(DATE)
OTHER = TestNetwork(DATE)
OWN = TRUST.peer(Role.AUTH)
GATEWAY = TRUST.peer(Role.GATEWAY)
SHUT_OUT = TRUST.peer(Role.GATEWAY)
TRUST.revoked.add(SHUT_OUT.peer_id)
THIEF = KeyPair.generate().peer_id
FLOOD = 1000


@dataclass(frozen=True)
class Classes:
    """What an attack meets."""

    credentials: type = Credentials
    session: type = Session
    dispatcher: type = Dispatcher
    peers: type = Peers


def own(classes):
    return classes.credentials(
        OWN.key_pair, TRUST.network, TRUST.roots, OWN.encoded, TRUST.is_revoked
    )


def session(classes):
    return classes.session(
        Limits(4, 1000), Limits(4, 1000), window=1000, coalesce_s=0.005, coalesce_bytes=500
    )


def repelled(error, attack, *arguments, **options):
    try:
        attack(*arguments, **options)
    except error:
        return True
    return False


def greets(classes, peer, remote, *, network=TRUST.network, certificate):
    shown = Credentials(peer.key_pair, network, frozenset(), certificate)
    hello = encode_greeting(shown.hello(bytes(8), Limits(1, 1)))
    check = own(classes).check_hello
    return repelled(TrustError, check, hello, remote, dialled=False, now=DATE)


def begin(one, *requests):
    return one.receive(encode_frame(list(requests)))


def request(number, body=b"", window=0, method="echo.say"):
    return Request(number, method, 1000, window, "", body)


# --- the attacks ------------------------------------------------------------------


def shows_the_certificate_of_another(classes):
    return greets(classes, GATEWAY, THIEF, certificate=GATEWAY.encoded)


def comes_as_a_guest_of_another_network(classes):
    return greets(classes, GATEWAY, GATEWAY.peer_id, network=OTHER.network, certificate=None)


def comes_back_after_being_thrown_out(classes):
    return greets(classes, SHUT_OUT, SHUT_OUT.peer_id, certificate=SHUT_OUT.encoded)


def stays_on_its_link_when_its_time_is_over(classes):
    mine = own(classes)
    hello = encode_greeting(mine.hello(bytes(8), Limits(1, 1)))
    peer = mine.check_hello(hello, OWN.peer_id, dialled=True, now=DATE)
    over = peer.certificate.expires_at + CLOCK_SKEW_S
    return repelled(TrustError, mine.check_still, peer, over)


def calls_what_its_role_may_not(classes):
    dispatcher = classes.dispatcher()
    dispatcher.serve(Echo())
    call = request(1, method="echo.gateways")
    processor = TRUST.peer(Role.PROCESSOR).certificate
    return repelled(PermissionDeniedError, dispatcher.admit, call, processor)


def opens_more_calls_than_it_may(classes):
    one = session(classes)
    return repelled(PeerProtocolError, begin, one, *(request(n) for n in range(1, 10)))


def sends_more_request_bytes_than_it_may(classes):
    one = session(classes)
    return repelled(PeerProtocolError, begin, one, request(1, bytes(900)), request(2, bytes(900)))


def answers_with_more_than_is_read(classes):
    one = session(classes)
    one.request("a.b", b"", timeout_ms=1, streamed=True)

    def flood():
        for _ in range(FLOOD):
            one.receive(encode_frame([Items(1, (bytes(100),))]))

    return repelled(PeerProtocolError, flood)


def asks_for_a_stream_and_never_reads_it(classes):
    one = session(classes)
    begin(one, request(1, window=1000))
    sent = 0
    for moment in count():
        if not one.may_send(1) or sent == FLOOD:
            break
        one.item(1, bytes(100))
        one.take(float(moment))
        sent += 1
    return sent < FLOOD


def asks_for_a_stream_and_lets_the_link_fill(classes):
    one = session(classes)
    begin(one, request(1, window=1 << 20))
    sent = 0
    while one.may_send(1) and sent < FLOOD:
        one.item(1, bytes(100))
        sent += 1
    return sent < FLOOD


def gives_credit_without_end(classes):
    one = session(classes)
    begin(one, request(1, window=1000))

    def flood():
        for _ in range(FLOOD):
            one.receive(encode_frame([Credit(1, 1 << 20)]))

    return repelled(PeerProtocolError, flood)


def pings_without_end(classes):
    one = session(classes)
    for number in range(1, FLOOD):
        one.receive(encode_frame([Ping(number)]))
    answered = 0
    while (frame := one.take(0.0)) is not None:
        answered += len(decode_frame(frame))
    return answered < FLOOD / 2


def sends_a_call_twice(classes):
    one = session(classes)
    begin(one, request(1))
    return repelled(PeerProtocolError, begin, one, request(1))


async def collects_passwords_without_being_a_gateway(classes):
    """A processor answers to a gateway's name, and to its calls; somebody believes it is one."""
    heard = []

    async def collect(self, request, call):
        heard.append(request)
        return auth.Session(
            access_token="a", access_expires_at=1.0, refresh_token="r", refresh_expires_at=1.0
        )

    methods = {name: collect for name in vars(GatewayApi) if name.startswith("rpc_")}
    collector = type("Collector", (GatewayApi,), methods)()
    async with World() as world:
        thief = await world.peer(Role.PROCESSOR, collector)
        credentials = world.credentials(Role.CLIENT)
        transport = world.memory.transport(credentials.key_pair)
        client = classes.peers(transport, credentials, clock=world.clock)
        await client.start()
        world.peers.append(client)
        with contextlib.suppress(PeerProtocolError):
            login = auth.Login("a@example.org", "secret")
            await client.call(thief.contact, GatewayApi.rpc_login, login, timeout_s=5)
    return heard == []


# --- each defence, turned off -------------------------------------------------------


class AsksAnybodyAnything(Peers):
    def _check_offers(self, method, peer):
        pass


class TakesAnybodysCertificate(Credentials):
    def _check_owner(self, certificate, remote):
        pass


class TakesAnyNetwork(Credentials):
    def _check_network(self, network, remote):
        pass


class ForgetsWhoWasThrownOut(Credentials):
    def _check_not_revoked(self, remote):
        pass


class ChecksCertificatesOnce(Credentials):
    def check_still(self, peer, now):
        pass


class AsksForNoRole(Dispatcher):
    def _check_role(self, method, certificate):
        pass


class CountsNoCalls(Session):
    def _check_calls(self):
        pass


class CountsNoBytes(Session):
    def _check_bytes(self, size):
        pass


class AsksForNoCredit(Session):
    def _check_credit(self, call):
        pass


class SendsWithoutCredit(Session):
    def may_send(self, call_id):
        call = self._incoming[call_id]
        return call.reply.waiting_bytes < self._coalesce_bytes


class QueuesWithoutBound(Session):
    def may_send(self, call_id):
        return self._incoming[call_id].credit > 0


class TakesAnyCredit(Session):
    def _check_given(self, call):
        pass


class AnswersEveryPing(Session):
    def _take_in(self, message):
        if isinstance(message, Ping):
            self._outbox.urgent(message)
            return False
        return super()._take_in(message)


class TakesAnyNumber(Session):
    def _check_number(self, number):
        pass


SUITE = Suite(
    "calls",
    Classes(),
    (
        Defence("peers", "", AsksAnybodyAnything, (collects_passwords_without_being_a_gateway,)),
        Defence("credentials", "", TakesAnybodysCertificate, (shows_the_certificate_of_another,)),
        Defence("credentials", "", TakesAnyNetwork, (comes_as_a_guest_of_another_network,)),
        Defence("credentials", "", ForgetsWhoWasThrownOut, (comes_back_after_being_thrown_out,)),
        Defence(
            "credentials", "", ChecksCertificatesOnce, (stays_on_its_link_when_its_time_is_over,)
        ),
        Defence("dispatcher", "", AsksForNoRole, (calls_what_its_role_may_not,)),
        Defence("session", "", CountsNoCalls, (opens_more_calls_than_it_may,)),
        Defence("session", "", CountsNoBytes, (sends_more_request_bytes_than_it_may,)),
        Defence("session", "", AsksForNoCredit, (answers_with_more_than_is_read,)),
        Defence("session", "", SendsWithoutCredit, (asks_for_a_stream_and_never_reads_it,)),
        Defence("session", "", QueuesWithoutBound, (asks_for_a_stream_and_lets_the_link_fill,)),
        Defence("session", "", TakesAnyCredit, (gives_credit_without_end,)),
        Defence("session", "", AnswersEveryPing, (pings_without_end,)),
        Defence("session", "", TakesAnyNumber, (sends_a_call_twice,)),
    ),
)
