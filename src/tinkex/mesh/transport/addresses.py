"""Where peers listen, as text: `127.0.0.1:4433`, `[::1]:4433`, `example.org:4433`.

Owns reading and writing them, with and without a transport's name before them.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Sequence

from tinkex.errors import ConfigurationError, InputError
from tinkex.mesh.transport.base import Contact

LOOPBACK = ("127.0.0.1:0", "[::1]:0")
"""Both of this machine's own, at ports that the system chooses."""
MAX_ADDRESSES = 8
"""How many of a contact's addresses are tried."""


def split_address(text: str) -> tuple[str, int]:
    """Read `host:port`; an IP address as everybody writes it, who may compare them.

    Raises:
        InputError: it is none.
    """
    host, colon, port = text.rpartition(":")
    bracketed = host.startswith("[") and host.endswith("]")
    if not (colon and host and port.isascii() and port.isdigit() and int(port) < 1 << 16):
        raise InputError(f"{text!r} is no address: write host:port, as 127.0.0.1:4433 or [::1]:0")
    if bracketed != (":" in host):
        raise InputError(f"{text!r} is no address: IPv6 goes in brackets, as [::1]:4433")
    host = _canonical(host.strip("[]"))
    if not _is_name(host):
        raise InputError(f"{text!r} is no address: there can be no host of that name")
    return host, int(port)


def _canonical(host: str) -> str:
    try:
        return str(ipaddress.ip_address(host))
    except ValueError:
        return host


def _is_name(host: str) -> bool:
    """Whether a resolver can be asked for it; where not, asyncio raises what is no OSError."""
    try:
        return b"\0" not in host.encode("idna")
    except UnicodeError:
        return False


def join_address(host: str, port: int) -> str:
    """Write `host:port`, an IPv6 address in brackets."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def dialable(contact: Contact, scheme: str) -> list[tuple[str, int]]:
    """The addresses of a contact that a transport may try, likeliest first.

    Those of other transports, and what is no address, are passed over: a contact comes from others.
    """
    found = []
    for address in contact.addresses:
        if not address.startswith(scheme):
            continue
        try:
            host, port = split_address(address.removeprefix(scheme))
        except InputError:
            continue
        if port:
            found.append((host, port))
    return found[:MAX_ADDRESSES]


def advertised(
    scheme: str,
    bound: Iterable[tuple[str, int]],
    instead: Sequence[str],
    *,
    elsewhere: bool = False,
) -> list[str]:
    """What a contact says.

    Args:
        scheme: goes before each.
        bound: where the peer listens.
        instead: where others see it, if not there: behind a router, say.
        elsewhere: it can also be reached in another way.

    Raises:
        ConfigurationError: it would say nothing that can be dialled.
    """
    places = [split_address(text) for text in instead]
    if any(port == 0 for _, port in places):
        raise ConfigurationError("an address to advertise has port 0: name the port others dial")
    places = places or [(host, port) for host, port in bound if not _is_wildcard(host)]
    if not places and not elsewhere:
        raise ConfigurationError(
            "this peer listens on every address of the machine and so does not know which one "
            "others can reach: say it (advertise)"
        )
    return [scheme + join_address(host, port) for host, port in dict.fromkeys(places)]


def _is_wildcard(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_unspecified
    except ValueError:
        return False
