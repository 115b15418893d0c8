"""Lookups of 10,000 modelled nodes that come and go: found or not, hops, traffic.

    python benchmarks/mesh_dht_model.py [--nodes 10000] [--minutes 30] [--churn 0.3] [--seed 12]

The tables, lookups and storage are the mesh's own (tinkex.testing.dht_model); delays are log-normal
with a median of 40 ms, those who leave say nothing. 100 topics are announced by three nodes each;
lookups come from nodes at random, each for one publisher. Bytes are those of the messages, encoded,
without what the transport adds. The same seed gives the same figures.
"""

from __future__ import annotations

import argparse
import math
import resource
import statistics
import sys
import time

import msgspec

from tinkex.mesh.dht.api import FindValue, FoundValue, Told
from tinkex.testing.dht_model import Figures, Scenario

RECORD_BYTES = 800
ADDRESSES = ("iroh:203.0.113.7:41641", "iroh:[2001:db8::7]:41641")


def sizes() -> tuple[int, int]:
    """Bytes of a request and of an answer that tells of 16 nodes."""
    request = FindValue("model:tinkex/sprout", ADDRESSES)
    answer = FoundValue((), tuple(Told(bytes([n]) * 32, ADDRESSES) for n in range(16)))
    return len(msgspec.msgpack.encode(request)), len(msgspec.msgpack.encode(answer))


def traffic(figures: Figures) -> float:
    """Bytes that a node sends in a second, requests and answers."""
    request, answer = sizes()
    kinds = figures.messages
    finds = kinds.total() - kinds["ping"] - kinds["store"]
    total = finds * (request + answer) + kinds["store"] * RECORD_BYTES + kinds["ping"] * 64
    # The nearest nodes answer a lookup with three records as well.
    total += figures.lookups * 5 * 3 * RECORD_BYTES
    return total / figures.node_seconds


def scenario_of(nodes: int, *, minutes: float, churn: float, seed: int) -> Scenario:
    """Make the run that is measured."""
    return Scenario(
        nodes=nodes,
        seed=seed,
        topics=100,
        churn=churn,
        lookups_per_s=12,
        seconds=minutes * 60,
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--nodes", type=int, default=10_000)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--churn", type=float, default=0.3, help="share of nodes in an hour")
    parser.add_argument("--seed", type=int, default=12)
    arguments = parser.parse_args()
    scenario = scenario_of(
        arguments.nodes, minutes=arguments.minutes, churn=arguments.churn, seed=arguments.seed
    )
    print(scenario)
    began = time.monotonic()
    figures = scenario.play()
    share = figures.found / figures.lookups
    print(f"lookups                {figures.lookups:>10,}")
    print(f"found                  {share:>10.4%}   (goal > 99.9%)")
    print(f"found by the retry     {figures.retried:>10,}")
    print(
        f"hops, mean / most      {figures.mean_hops:>6.2f} / {max(figures.hops)}"
        f"   (log2 n = {math.log2(arguments.nodes):.1f})"
    )
    print(f"nodes asked, mean      {statistics.fmean(figures.asked):>10.1f}")
    p50, p99 = figures.percentile(0.5), figures.percentile(0.99)
    print(f"time, p50 / p99        {p50 * 1000:>6.0f} / {p99 * 1000:.0f} ms")
    print(f"requests of a node     {figures.requests_per_node:>10.3f} /s")
    print(f"bytes sent by a node   {traffic(figures):>10.0f} /s")
    print(f"requests by kind       {dict(figures.messages.most_common())}")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"took {time.monotonic() - began:.0f} s and {peak:.1f} GiB")
    if figures.missed:
        print(f"missed: {figures.missed}")
    return 0 if share > 0.999 else 1


if __name__ == "__main__":
    sys.exit(main())
