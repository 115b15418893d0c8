"""Every setting of the mesh's workers: one schema for all roles, checked at once.

Owns the settings that all workers share, and their bounds; each part has its own in a section.
Reads no environment and no file: the command line fills it in.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass, field
from pathlib import Path

from tinkex.errors import ConfigurationError, InputError
from tinkex.mesh.accounts.config import AuthConfig
from tinkex.mesh.dht.config import DhtConfig
from tinkex.mesh.feeds.config import ReplicationConfig
from tinkex.mesh.identity import PeerId
from tinkex.mesh.rpc.config import RpcConfig
from tinkex.mesh.transport.base import Contact
from tinkex.mesh.workers.client import ClientConfig
from tinkex.mesh.workers.gateway import GatewayConfig
from tinkex.mesh.workers.model_config import ProcessorSettings

TRANSPORTS = ("iroh", "tls")
LOG_LEVELS = ("debug", "info", "warning", "error")
LOG_FORMATS = ("text", "json")


@dataclass(frozen=True, slots=True, kw_only=True)
class MeshConfig:
    """Settings of one worker process.

    Raises:
        ConfigurationError: naming every setting that is wrong, not only the first.
    """

    data_dir: Path
    """Folder of the mesh's files; made when missing. A command's worker keeps its secret key,
    certificate and logs in a folder of its role, or `--name`, in it."""

    transport: str = "iroh"
    """`iroh` (QUIC, relays and hole punching when configured) or `tls` (TCP; faster between
    machines that reach one another). All workers of a network use the same."""

    bind: tuple[str, ...] = ("127.0.0.1:0", "[::1]:0")
    """Addresses to listen on for other workers, each with a port; 0 is a free one. The default is
    reachable from this machine only."""

    advertise: tuple[str, ...] = ()
    """Addresses that others should dial instead of those in `bind`, as behind a router."""

    relay_url: str | None = None
    """An iroh relay for peers that cannot reach one another; None uses none."""

    bootstrap: tuple[str, ...] = ()
    """Peers to find the network by, each `PEER_ID@ADDRESS`; those of the invitation are used
    besides."""

    admin_host: str | None = "127.0.0.1"
    """Address of the worker's own page for operators: /metrics, /healthz, /readyz, /status; None:
    it has none."""

    admin_port: int = 0
    """Its port; 0 is a free one."""

    log_level: str = "info"
    """`debug`, `info`, `warning` or `error`."""

    log_format: str = "text"
    """`text` (`key=value` pairs) or `json`: one line each, on standard error."""

    shutdown_grace_s: float = 30.0
    """Seconds that requests in progress may go on after SIGTERM."""

    dht: DhtConfig = field(default_factory=DhtConfig)
    """Finding one another."""

    rpc: RpcConfig = field(default_factory=RpcConfig)
    """Links and calls."""

    replication: ReplicationConfig = field(default_factory=ReplicationConfig)
    """Copies of signed logs."""

    auth: AuthConfig = field(default_factory=AuthConfig)
    """An auth worker's."""

    gateway: GatewayConfig = field(default_factory=GatewayConfig)
    """A gateway's."""

    processor: ProcessorSettings = field(default_factory=ProcessorSettings)
    """A processor's."""

    client: ClientConfig = field(default_factory=ClientConfig)
    """A client worker's."""

    def __post_init__(self) -> None:
        problems = [
            *_one_of("transport", self.transport, TRANSPORTS),
            *_one_of("log_level", self.log_level, LOG_LEVELS),
            *_one_of("log_format", self.log_format, LOG_FORMATS),
            *_addresses("bind", self.bind),
            *_addresses("advertise", self.advertise),
        ]
        if not self.bind:
            problems.append("bind names no address: give one, such as 127.0.0.1:0")
        if self.shutdown_grace_s < 0:
            problems.append(f"shutdown_grace_s is {self.shutdown_grace_s:g}: it cannot be negative")
        if not 0 <= self.admin_port < 2**16:
            problems.append(f"admin_port is {self.admin_port}: a port is 0 to 65535")
        if self.admin_host is not None and not is_loopback(self.admin_host):
            problems.append(
                f"admin_host is {self.admin_host}: the operators' page has no users, so it is for "
                "this machine; give 127.0.0.1 or ::1"
            )
        if self.relay_url is not None and self.transport != "iroh":
            problems.append("relay_url is for the transport iroh: leave it out, or choose that one")
        for text in self.bootstrap:
            try:
                parse_contact(text)
            except InputError as error:
                problems.append(f"bootstrap: {error}")
        if problems:
            raise ConfigurationError(problems)

    @property
    def contacts(self) -> tuple[Contact, ...]:
        """The peers of `bootstrap`."""
        return tuple(parse_contact(text) for text in self.bootstrap)


def parse_contact(text: str) -> Contact:
    """Read `PEER_ID@ADDRESS[,ADDRESS...]`.

    Raises:
        InputError: it is not of that form.
    """
    peer, sign, addresses = text.partition("@")
    found = tuple(address.strip() for address in addresses.split(",") if address.strip())
    if not sign or not found:
        raise InputError(f"{text!r} is not of the form PEER_ID@ADDRESS, as `tinkex mesh` prints it")
    return Contact(PeerId.parse(peer), found)


def format_contact(contact: Contact) -> str:
    """Write a contact as `parse_contact` reads it."""
    return f"{contact.peer_id}@{','.join(contact.addresses)}"


def is_loopback(host: str) -> bool:
    """Whether an address can be reached from this machine only."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _one_of(name: str, value: str, allowed: tuple[str, ...]) -> list[str]:
    if value in allowed:
        return []
    return [f"{name} is {value!r}: it is one of {', '.join(allowed)}"]


def _addresses(name: str, values: tuple[str, ...]) -> list[str]:
    problems = []
    for value in values:
        host, sign, port = value.rpartition(":")
        in_brackets = host.startswith("[") and host.endswith("]")
        try:
            version = ipaddress.ip_address(host[1:-1] if in_brackets else host).version
            fits = sign == ":" and (version == 6) == in_brackets and 0 <= int(port) < 2**16
        except ValueError:
            fits = False
        if not fits:
            problems.append(
                f"{name}: {value!r} is no address with a port, such as 192.0.2.7:4433 or [::1]:0"
            )
    return problems
