"""`tinkex mesh init|invite|id|renew|shut-out|rotate-root`: make a network, let workers into it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tinkex.cli import output
from tinkex.cli.connect import invocation
from tinkex.cli.extras import require_mesh_extra
from tinkex.cli.mesh.places import (
    DAY_S,
    READY_NAME,
    DataDir,
    mesh_dir,
    read_ready,
    with_place,
    worker_dir,
)
from tinkex.cli.mesh.secrets import NEW_PASSPHRASE_VARIABLE, PASSPHRASE_VARIABLE, ask_secret
from tinkex.errors import ConfigurationError, InputError

if TYPE_CHECKING:
    from tinkex.mesh.transport.base import Contact

ROOT_NAME = "root.key"
ROLES = ("auth", "gateway", "processor", "client", "bootstrap")


def init(
    context: typer.Context,
    name: Annotated[str, typer.Option(help="What people call the network.")] = "tinkex",
    data_dir: DataDir = None,
) -> None:
    """Make a network: its root key, and the first auth worker.

    The root key signs invitations and nothing else. It lies encrypted in `root.key`: keep a copy of
    it, and its passphrase, where no worker runs.
    """
    require_mesh_extra("tinkex mesh init")
    from tinkex._clock import SystemClock
    from tinkex.mesh.workers.founding import found

    folder = mesh_dir(data_dir)
    passphrase = ask_secret("Passphrase of the root key", PASSPHRASE_VARIABLE, twice=True)
    made = found(folder, name, passphrase, clock=SystemClock())
    pairs = [
        ("Name", name),
        ("Network id", str(made.network_id)),
        ("Root key", str(folder / ROOT_NAME)),
        ("First auth worker", str(made.auth_peer)),
        ("Next", with_place(context, "tinkex mesh auth --bind ADDRESS:PORT")),
        ("", "ADDRESS is one that the other machines reach; without, it is for this one alone"),
        ("Then", with_place(context, "tinkex mesh invite gateway")),
    ]
    value = {
        "name": name,
        "network_id": str(made.network_id),
        "auth_peer_id": str(made.auth_peer),
        "data_dir": str(folder),
    }
    output.show_properties(invocation(context).form, value, "A new network", pairs)


def invite(
    context: typer.Context,
    role: Annotated[str, typer.Argument(help=f"One of {', '.join(ROLES)}.")],
    contact: Annotated[
        list[str] | None,
        typer.Option(
            metavar="PEER_ID@ADDRESS",
            help="An auth worker to join through; default: the one of this data folder.",
        ),
    ] = None,
    peer: Annotated[
        str | None, typer.Option(metavar="PEER_ID", help="Who is invited: for an auth worker.")
    ] = None,
    days: Annotated[float, typer.Option(help="Days in which it may be used, once.")] = 7.0,
    certificate_days: Annotated[
        float, typer.Option(help="Days that the worker's certificate will last.")
    ] = 365.0,
    data_dir: DataDir = None,
) -> None:
    """Print an invitation: it lets one worker in, once. Hand it over like a password."""
    require_mesh_extra("tinkex mesh invite")
    from tinkex._clock import SystemClock
    from tinkex.mesh.config import parse_contact
    from tinkex.mesh.roles import Role
    from tinkex.mesh.workers.founding import Founder

    if role not in ROLES:
        raise InputError(f"{role!r} is no role: give one of {', '.join(ROLES)}")
    folder = mesh_dir(data_dir)
    contacts = [parse_contact(text) for text in contact or _own_contact(folder, role)]
    passphrase = ask_secret("Passphrase of the root key", PASSPHRASE_VARIABLE)
    text = Founder(folder, passphrase).invite(
        Role(role),
        contacts=contacts,
        now=SystemClock().now(),
        peer=peer,
        join_s=days * DAY_S,
        certificate_s=certificate_days * DAY_S,
    )
    here = _are_here(contacts)
    if invocation(context).form == "json":
        output.show_json({"invitation": text, "role": role})
    else:
        print(text)
        bind = "" if here else f" --bind ADDRESS:{0 if role == 'client' else 'PORT'}"
        output.remark(
            f"for one {role}, within {days:g} days: tinkex mesh {role}{bind} --join - (and paste "
            "it)"
        )
    if here:
        output.remark(
            "The auth worker that it names listens on loopback: only workers of this machine can "
            "join. For other machines start it with --bind ADDRESS:PORT, and invite them then."
        )


def rotate_root(
    context: typer.Context,
    data_dir: DataDir = None,
    *,
    stolen: Annotated[
        bool,
        typer.Option(
            "--stolen",
            help="What the old key signed holds no more: every other worker joins anew.",
        ),
    ] = False,
) -> None:
    """Replace the network's root key by a new one; the auth worker of this folder tells the others.

    The old key's file stays beside the new one. Read docs/guides/mesh-root-key.md first.
    """
    require_mesh_extra("tinkex mesh rotate-root")
    from tinkex._clock import SystemClock
    from tinkex.mesh.workers.founding import Founder

    folder = mesh_dir(data_dir)
    passphrase = ask_secret("Passphrase of the root key", PASSPHRASE_VARIABLE)
    fresh = ask_secret("Passphrase of the new root key", NEW_PASSPHRASE_VARIABLE, twice=True)
    founder = Founder(folder, passphrase)
    old = founder.rotate(fresh, now=SystemClock().now(), keep_old=not stolen)
    pairs = [
        ("New root key", str(folder / ROOT_NAME)),
        ("Old root key", str(old)),
        _next(heard=founder.heard),
    ]
    value = {"root_key": str(folder / ROOT_NAME), "old_root_key": str(old), "stolen": stolen}
    output.show_properties(invocation(context).form, value, "A new root key", pairs)


def shut_out(
    context: typer.Context,
    peer: Annotated[
        str, typer.Argument(metavar="PEER_ID", help="As `tinkex mesh peers` shows it.")
    ],
    data_dir: DataDir = None,
    *,
    lost: Annotated[
        bool,
        typer.Option(
            "--lost",
            help="An auth worker's key is lost with its disk, not stolen: what it certified stays.",
        ),
    ] = False,
) -> None:
    """Shut a worker out for good; the auth worker of this folder tells all others.

    For one whose key was stolen, or whose machine is gone. The machine may join under a new key.
    """
    require_mesh_extra("tinkex mesh shut-out")
    from tinkex._clock import SystemClock
    from tinkex.mesh.identity import PeerId
    from tinkex.mesh.workers.founding import Founder

    peer_id = PeerId.parse(peer)
    passphrase = ask_secret("Passphrase of the root key", PASSPHRASE_VARIABLE)
    founder = Founder(mesh_dir(data_dir), passphrase)
    (founder.let_go if lost else founder.shut_out)(peer_id, now=SystemClock().now())
    done = "No auth worker any more" if lost else "Shut out"
    pairs = [(done, str(peer_id)), _next(heard=founder.heard)]
    output.show_properties(invocation(context).form, {"peer_id": str(peer_id)}, done, pairs)


def renew(
    context: typer.Context,
    days: Annotated[float, typer.Option(help="Days that the certificates will last.")] = 365.0,
    data_dir: DataDir = None,
) -> None:
    """Certify the network's auth workers anew, which the root key alone can.

    All other workers renew their certificates by themselves. `tinkex mesh peers` shows when each
    ends.
    """
    require_mesh_extra("tinkex mesh renew")
    from tinkex._clock import SystemClock
    from tinkex.mesh.workers.founding import Founder

    passphrase = ask_secret("Passphrase of the root key", PASSPHRASE_VARIABLE)
    founder = Founder(mesh_dir(data_dir), passphrase)
    until = founder.renew(now=SystemClock().now(), certificate_s=days * DAY_S)
    ends = output.moment(until)
    pairs = [("Auth workers are certified until", ends), _next(heard=founder.heard)]
    value = {"certified_until": until}
    output.show_properties(invocation(context).form, value, "Certified", pairs)


def _next(*, heard: bool) -> tuple[str, str]:
    if heard:
        return ("Next", "nothing: the auth worker that runs here tells the others now")
    return ("Next", "start tinkex mesh auth: it tells the others")


def identify(
    role: Annotated[str, typer.Argument(help=f"One of {', '.join(ROLES)}.")],
    name: Annotated[
        str | None,
        typer.Option(envvar="TINKEX_MESH_NAME", help="Its --name, if it is started with one."),
    ] = None,
    data_dir: DataDir = None,
) -> None:
    """Print the public key of a worker of this machine; made if it has none yet."""
    require_mesh_extra("tinkex mesh id")
    from tinkex.mesh.workers.folder import WorkerFolder

    if role not in ROLES:
        raise InputError(f"{role!r} is no role: give one of {', '.join(ROLES)}")
    print(WorkerFolder(worker_dir(mesh_dir(data_dir), role, name)).key_pair.peer_id)


def _are_here(contacts: Sequence[Contact]) -> bool:
    """Whether there are contacts, and none that another machine could reach."""
    from tinkex.mesh.config import TRANSPORTS, is_loopback
    from tinkex.mesh.transport.addresses import split_address

    places = [address.partition(":") for one in contacts for address in one.addresses]
    return bool(places) and all(
        scheme in TRANSPORTS and is_loopback(split_address(place)[0])  # else it is a relay
        for scheme, _, place in places
    )


def _own_contact(folder: Path, role: str) -> list[str]:
    """Read where the auth worker of this folder listens."""
    ready = read_ready(folder / "auth" / READY_NAME)
    if ready is None and role == "auth":
        return []
    if ready is None:
        raise ConfigurationError(
            f"no auth worker of {folder} runs, so the invitation could not say where to join: "
            "start `tinkex mesh auth`, or give --contact"
        )
    return [str(ready["contact"])]
