"""`tinkex mesh status|peers|top`: who is in the network, and how they are.

Asks the page for operators of a worker on this machine; its address is in the ready file.
"""

from __future__ import annotations

from typing import Annotated, Any

import typer

from tinkex.cli import output
from tinkex.cli.connect import invocation
from tinkex.cli.mesh.endpoint import Endpoint
from tinkex.cli.mesh.places import DAY_S, DataDir, find_ready, mesh_dir
from tinkex.errors import ConfigurationError, InputError, TinkerError

WORKERS = ("client", "gateway", "auth", "processor", "bootstrap")
"""Whose page is asked, if several run here."""
COLUMNS = (
    "Role",
    "Peer",
    "State",
    "Models",
    "Load",
    "Latency",
    "Memory",
    "Links",
    "Up",
    "Certified",
)
MOST_WANTED = 6
"""So many of them fit into 80 columns."""
ALL_COLUMNS_WIDTH = 110
SHORTEST_PAUSE_S = 0.1
"""A look asks every worker: oftener, nobody sees more."""
AdminUrl = Annotated[
    str | None,
    typer.Option(
        "--admin-url",
        envvar="TINKEX_MESH_ADMIN_URL",
        help="A worker's page for operators; default: of the one in the data folder.",
    ),
]


def status(context: typer.Context, admin_url: AdminUrl = None, data_dir: DataDir = None) -> None:
    """Show every worker: role, models, load, latency, health."""
    found = _survey(admin_url, data_dir)
    output.show(invocation(context).form, found, _table(found, _width()))


def peers(context: typer.Context, admin_url: AdminUrl = None, data_dir: DataDir = None) -> None:
    """Show every worker's public key, addresses and certificate."""
    found = _survey(admin_url, data_dir)
    rows = [
        [
            one["role"],
            one["peer_id"],
            "\n".join(one["addresses"]),
            output.moment(one["certified_until"]),
        ]
        for one in found
    ]
    columns = ("Role", "Peer id", "Addresses", "Certificate ends")
    table = output.Table(columns, rows, _title(found), {"Role"})
    output.show(invocation(context).form, found, table)


def top(
    every: Annotated[float, typer.Option(metavar="SECONDS", help="Between two looks.")] = 2.0,
    admin_url: AdminUrl = None,
    data_dir: DataDir = None,
) -> None:
    """Show the network live, until Ctrl-C."""
    from rich.console import Console, Group
    from rich.live import Live
    from rich.text import Text

    from tinkex._clock import SystemClock

    if not SHORTEST_PAUSE_S <= every <= DAY_S:  # nan is neither
        raise InputError(f"--every is {SHORTEST_PAUSE_S} to {DAY_S:.0f} seconds, not {every:g}")
    clock = SystemClock()
    seen: list[dict[str, Any]] | None = None
    with Live(console=Console(), screen=False, auto_refresh=False) as live:
        while True:
            trouble = ""
            try:
                seen = _survey(admin_url, data_dir)
            except TinkerError as error:  # as while the worker that is asked starts anew
                if seen is None:
                    raise
                trouble = f"This is the last that was seen: {error}"
            table = output.drawn(_table(seen, _width()))
            live.update(Group(table, Text(trouble)) if trouble else table, refresh=True)
            clock.sleep_sync(every)


def logs(context: typer.Context, admin_url: AdminUrl = None, data_dir: DataDir = None) -> None:
    """Show the signed logs that a worker here holds, checked from end to end."""
    found = _page(admin_url, data_dir, "/logs")
    rows = [
        [
            one["feed"],
            one["author"][:10],
            one["epoch"][:8],
            f"{one['entries']:,}",
            output.moment(one["last_at"]),
            one["hash"][:16],
        ]
        for one in found
    ]
    columns = ("Log", "Author", "Epoch", "Entries", "Last", "Hash")
    title = "Every signature and hash holds" if rows else "No signed log is held here"
    output.show(invocation(context).form, found, output.Table(columns, rows, title))


def _survey(admin_url: str | None, data_dir: Any) -> list[dict[str, Any]]:
    return _page(admin_url, data_dir, "/network")


def _page(admin_url: str | None, data_dir: Any, path: str) -> list[dict[str, Any]]:
    folder = mesh_dir(data_dir)
    if admin_url is None:
        ready = find_ready(folder, WORKERS)
        if ready is None:
            raise ConfigurationError(f"no worker runs in {folder}: start one, or give --admin-url")
        admin_url = str(ready["admin_url"])
    found: list[dict[str, Any]] = Endpoint(admin_url, None, folder).ask("GET", path)
    return found


def _width() -> int:
    from rich.console import Console

    return Console().width


def _table(found: list[dict[str, Any]], width: int) -> output.Table:
    columns = COLUMNS if width >= ALL_COLUMNS_WIDTH else COLUMNS[:MOST_WANTED]
    rows = [_row(one)[: len(columns)] for one in found]
    title = _title(found)
    if found and columns != COLUMNS:
        title += "; a wider terminal shows " + ", ".join(COLUMNS[MOST_WANTED:]).lower()
    return output.Table(columns, rows, title, {*columns} - {"State", "Models"})


def _title(found: list[dict[str, Any]]) -> str:
    if not found:
        return "Nobody is announced: workers appear within a minute of their start"
    return f"{len(found)} worker{'' if len(found) == 1 else 's'}"


def _row(one: dict[str, Any]) -> list[str]:
    now = one["status"]
    if now is None:  # the columns after it are about what it would have said
        return [one["role"], one["peer_id"][:10], f"no answer: {one['error']}", *[""] * 7]
    latency = one["rtt_ms"]
    return [
        one["role"],
        one["peer_id"][:10],
        "ready" if now["ready"] else now["detail"] or "not ready",
        "\n".join(now["models"]),
        f"{now['load']:.0%}",
        output.MISSING if latency is None else f"{latency:.1f} ms",
        output.size(now["memory_bytes"]),
        str(now["links"]),
        _duration(now["uptime_s"]),
        _left(now["certified_until"]),
    ]


def _left(until: float) -> str:
    """How long a certificate lasts yet."""
    from tinkex._clock import SystemClock

    return _duration(max(0.0, until - SystemClock().now()))


def _duration(seconds: float) -> str:
    for limit, unit in ((86_400, "d"), (3600, "h"), (60, "min")):
        if seconds >= limit:
            return f"{seconds / limit:.1f} {unit}"
    return f"{seconds:.0f} s"
