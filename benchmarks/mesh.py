"""Everything that the mesh must reach, measured in one run over both transports, as one table.

    python benchmarks/mesh.py [--only ROW ...] [--transport tls|iroh] [--json FILE]

Rows: `latency`, `first-token`, `streams`, `dht`, `dht-dead`, `kill`, `gateway`, `auth`, `model`,
`memory`. Each is measured by a benchmark of its own, which says how, and which may be run alone:
`mesh_gateway`, `mesh_dht`, `mesh_failures`, `mesh_dht_model`. All of them use the workers' own code
in processes of their own over real links (asserted there), but for the model, which has no
transport: its nodes' tables, lookups and storage are the mesh's own, in virtual time.

Takes about ten minutes. Wants a machine that does nothing else: the load average before the run
stands beside the figures. Exits with 1 where a goal is missed.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import multiprocessing
import os
import platform
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import mesh_dht
import mesh_dht_model
import mesh_failures
import mesh_gateway

from tinkex.mesh.dht.config import DhtConfig

TRANSPORTS = ("tls", "iroh")
BOTH = "both"
"""Where there is no transport."""
SEED = 12
NODES = 10_000
MINUTES = 5.0
"""Of the model's time."""
CHURN = 0.3


@dataclass(frozen=True)
class Figure:
    """One cell of the table."""

    text: str
    reached: bool


@dataclass
class Row:
    """One line of the table."""

    name: str
    measure: str
    goal: str
    found: dict[str, Figure] = field(default_factory=dict)

    @property
    def reached(self) -> str:
        """Whether it was, everywhere where it was measured."""
        return "yes" if all(figure.reached for figure in self.found.values()) else "NO"


ROWS = {
    row.name: row
    for row in (
        Row("latency", "added latency over the engine directly, p50", "< 2 ms TLS, < 5 ms iroh"),
        Row("first-token", "time to first token added, p50", "< 10 ms"),
        Row("streams", "100 streams of 20 tokens/s: tokens late by > 200 ms", "0"),
        Row("dht", "DHT, 30 nodes: lookup p50 / p99; missed", "< 60 / 300 ms; 0"),
        Row(
            "dht-dead",
            "the same, a third killed, and a third fallen silent",
            "< 250 / 1,000 ms; 0",
        ),
        Row(
            "kill",
            f"processor killed after {mesh_failures.CUTS[0]} to {mesh_failures.CUTS[-1]:,} tokens: "
            "longest pause; wrong, lost, doubled",
            "< 2 s; 0, 0, 0",
        ),
        Row("gateway", "gateway killed: seconds to the next answer; what was lost", "< 3 s; none"),
        Row("auth", "auth killed: the same", "< 3 s; none"),
        Row(
            "model",
            f"{NODES:,} modelled nodes, 30% churn an hour: lookups found; hops mean / most",
            "> 99.9%; about log2 n / b",
        ),
        Row("memory", "memory of a worker without a model, the largest", "< 120 MB"),
    )
}

Cells = dict[str, Figure]


# --- the parts ------------------------------------------------------------------------------------


def through_gateway(transport: str, wanted: set[str], options: argparse.Namespace) -> Cells:
    """Measure `latency`, `first-token` and `streams`."""
    given = ["--transport", transport]
    given += ["--requests", str(options.requests if wanted - {"streams"} else 0)]
    given += ["--streams", str(100 if "streams" in wanted else 0)]
    figures = mesh_gateway.measured(mesh_gateway.arguments_of(given))
    cells = {}
    if "latency" in figures:
        added = mesh_gateway.added(figures["latency"])
        token, first = added["a single token"], added["the first piece of a stream"]
        goal = mesh_gateway.GOALS_MS[transport]
        cells["latency"] = Figure(f"{token:.2f} ms", token < goal)
        cells["first-token"] = Figure(f"{first:.2f} ms", first < mesh_gateway.FIRST_TOKEN_GOAL_MS)
    if "streams" in figures:
        paced = figures["streams"]
        text = f"{paced['late']} of {paced['tokens']:,}; latest {paced['max']:.0f} ms"
        cells["streams"] = Figure(text, paced["late"] == 0)
    return cells


def lookups(transport: str, wanted: set[str], options: argparse.Namespace) -> Cells:
    """Measure `dht` and `dht-dead`."""
    healthy, hurt = [], []
    ways = (signal.SIGKILL, signal.SIGSTOP) if "dht-dead" in wanted else (signal.SIGKILL,)
    for how in ways:
        *_, before, after = asyncio.run(mesh_dht.measure(transport, options.lookups, how))
        healthy.append(before)
        hurt.append(after)
    return {
        "dht": _looked_up(healthy, 60.0, 300.0),
        "dht-dead": _looked_up(hurt, 250.0, 1000.0),
    }


def _looked_up(taken: list[mesh_dht.Taken], p50_ms: float, p99_ms: float) -> Figure:
    """Show some lots of lookups, each of which must reach the goal."""
    each = [f"{one.p50_ms:.1f} / {one.p99_ms:.0f} ms" for one in taken]
    missed = sum(one.missed for one in taken)
    quick = all(one.p50_ms < p50_ms and one.p99_ms < p99_ms for one in taken)
    return Figure(f"{', '.join(each)}; {missed}", quick and not missed)


def failures(transport: str, wanted: set[str], options: argparse.Namespace) -> Cells:  # noqa: ARG001 - as the others
    """Measure `kill`, `gateway`, `auth` and `memory`."""
    figures = mesh_failures.measured(transport, wanted)
    cells = {}
    if "kill" in figures:
        cells["kill"] = _killed(figures["kill"])
    for name in ("gateway", "auth"):
        if name in figures:
            lost, back_s = figures[name]["lost"], figures[name]["back_s"]
            text = f"{back_s:.2f} s; {', '.join(lost) or 'none'}"
            cells[name] = Figure(text, back_s < 3.0 and not lost)
    if "memory" in figures:
        each = figures["memory"]
        text = ", ".join(f"{name} {mb:.0f}" for name, mb in each.items()) + " MB"
        cells["memory"] = Figure(text, max(each.values()) < 120.0)
    return cells


def _killed(kills: list[dict[str, Any]]) -> Figure:
    worst = max(kills, key=lambda kill: kill["pause_s"])
    bad = [sum(kill[name] for kill in kills) for name in ("wrong", "lost", "doubled")]
    each = ", ".join(f"{kill['pause_s']:.2f}" for kill in kills)
    text = f"{worst['pause_s']:.2f} s after {worst['cut']} tokens (all: {each}); "
    return Figure(text + ", ".join(map(str, bad)), worst["pause_s"] < 2.0 and not any(bad))


def model(options: argparse.Namespace) -> Cells:
    """Measure `model`, by two seeds at once, each in a process of its own."""
    seeds = (options.seed, options.seed + 1)
    with multiprocessing.get_context("spawn").Pool(len(seeds)) as pool:
        played = pool.starmap(_played, [(options.minutes, seed) for seed in seeds])
    asked, found = (sum(one[name] for one in played) for name in ("asked", "found"))
    mean = sum(one["hops"] * one["asked"] for one in played) / asked
    most = max(one["most"] for one in played)
    # The nearest of the k nodes of a bucket is about log2 k bits nearer: that is b.
    expected = math.log2(NODES) / math.log2(DhtConfig().k)
    text = (
        f"{found:,} of {asked:,}; {mean:.2f} / {most} (log2 n / b = {expected:.1f}; "
        f"{options.minutes:g} min each of seeds {seeds[0]}, {seeds[1]})"
    )
    return {"model": Figure(text, found / asked > 0.999 and mean < expected + 1)}


def _played(minutes: float, seed: int) -> dict[str, Any]:
    figures = mesh_dht_model.scenario_of(NODES, minutes=minutes, churn=CHURN, seed=seed).play()
    return {
        "asked": figures.lookups,
        "found": figures.found,
        "hops": figures.mean_hops,
        "most": max(figures.hops),
    }


PARTS: tuple[tuple[frozenset[str], Callable[[str, set[str], argparse.Namespace], Cells]], ...] = (
    (frozenset({"latency", "first-token", "streams"}), through_gateway),
    (frozenset({"dht", "dht-dead"}), lookups),
    (frozenset({"kill", "gateway", "auth", "memory"}), failures),
)


# --- the table ------------------------------------------------------------------------------------


def measure(options: argparse.Namespace) -> list[Row]:
    """Measure the rows that are wanted, one part after the other."""
    wanted = set(options.only or ROWS)
    for names, part in PARTS:
        for transport in options.transport or TRANSPORTS:
            if mine := wanted & names:
                cells = part(transport, mine, options)
                told(transport, {name: cells[name] for name in mine})
    if "model" in wanted:
        told(BOTH, model(options))
    return [row for row in ROWS.values() if row.name in wanted and row.found]


def told(transport: str, cells: Cells) -> None:
    """Take figures into the table, and say them at once."""
    for name, figure in cells.items():
        ROWS[name].found[transport] = figure
        print(f"{name} {transport}: {figure.text}", file=sys.stderr, flush=True)


def show(rows: list[Row], about: str) -> None:
    """Print the table."""
    print(about)
    print()
    print("| measure | goal | TLS | iroh | reached |")
    print("|---|---|---|---|---|")
    for row in rows:
        whole = row.found.get(BOTH, Figure("", True)).text
        cells = [row.found[t].text if t in row.found else whole for t in TRANSPORTS]
        print(f"| {row.measure} | {row.goal} | {' | '.join(cells)} | {row.reached} |")


def about(options: argparse.Namespace) -> str:
    """Say what was measured, and on what."""
    here = Path(__file__).parent
    git = ["git", "-C", str(here), "describe", "--always", "--dirty"]
    done = subprocess.run(git, capture_output=True, text=True, check=False)
    load = os.getloadavg()
    return (
        f"benchmarks/mesh.py at {done.stdout.strip() or 'no commit'}: {os.cpu_count()} CPUs of "
        f"{_processor()}, {platform.system()} {platform.release()}, Python "
        f"{platform.python_version()}, load {load[0]:.1f} before, seed {options.seed}, "
        f"{options.requests} requests, {options.lookups} lookups a figure"
    )


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((x.partition(": ")[2] for x in lines if x.startswith("model name")), "?")


def main() -> int:
    """Measure, and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", choices=sorted(ROWS), action="append", help="may be repeated")
    parser.add_argument("--transport", choices=TRANSPORTS, action="append")
    parser.add_argument("--requests", type=int, default=200)
    parser.add_argument("--lookups", type=int, default=300)
    parser.add_argument("--minutes", type=float, default=MINUTES, help="of the model's time")
    parser.add_argument("--seed", type=int, default=SEED, help="of the model")
    parser.add_argument("--json", type=Path, help="write the figures there too")
    options = parser.parse_args()
    os.environ["RUST_BACKTRACE"] = "0"  # iroh would read the symbols of every library: 50 MB
    before, began = about(options), time.monotonic()
    rows = measure(options)
    show(rows, f"{before}; took {time.monotonic() - began:.0f} s")
    if options.json is not None:
        content = {"about": before, "rows": [asdict(row) for row in rows]}
        options.json.write_text(json.dumps(content, indent=2))
    return int(any(row.reached != "yes" for row in rows))


if __name__ == "__main__":
    sys.exit(main())
