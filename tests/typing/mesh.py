"""Programs as parts of the mesh write them: `mypy --strict` must know the type of every reply."""

from typing import assert_type

from tinkex.mesh.api.auth import AuthApi, Login, Session
from tinkex.mesh.api.completion import PieceMessage
from tinkex.mesh.api.processor import Begun, Ended, ProcessorApi, Work
from tinkex.mesh.rpc.peers import Peers
from tinkex.mesh.transport.base import Contact


async def log_in(peers: Peers, auth: Contact) -> str:
    """A method names the call, and with it the reply."""
    request = Login(email="a@b", password="secret")
    session = await peers.call(auth, AuthApi.rpc_login, request, timeout_s=5.0)
    assert_type(session, Session)
    return session.access_token


async def complete(peers: Peers, processor: Contact, work: Work) -> list[PieceMessage]:
    """A stream's items have the type that the method is annotated with."""
    pieces = []
    async for event in peers.stream(
        processor, ProcessorApi.rpc_complete, work, timeout_s=60.0, idle_timeout_s=5.0
    ):
        assert_type(event, Begun | PieceMessage | Ended)
        if isinstance(event, PieceMessage):
            pieces.append(event)
    return pieces


async def mistakes(peers: Peers, auth: Contact, work: Work) -> None:
    """What is wrong is an error before it runs."""
    await peers.call(auth, AuthApi.rpc_login, work, timeout_s=5.0)  # type: ignore[arg-type]
    await peers.call(auth, ProcessorApi.rpc_complete, work, timeout_s=5.0)  # type: ignore[arg-type]
    peers.stream(auth, AuthApi.rpc_login, work, timeout_s=5.0)  # type: ignore[arg-type]
