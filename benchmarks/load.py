"""Many clients of one `tinkex serve` at once, for a minute: how long they wait, and what it holds.

    python benchmarks/load.py [--clients 200] [--seconds 60] [--warm-up 60]

Everything is on the loopback. Each client has a session of its own and one connection, and sends
its next request when it has the result of the last: three of four sample (a prompt of 32 tokens, 16
tokens to come), the fourth trains (one batch of 64 tokens at rank 4, then a step). Each also sends
heartbeats. Latencies are from sending a request until its result is there. Any status but 200, a
failed future or a broken connection is an error, and the program then exits with 1.

Clients work through the warm-up and go on; what comes after it counts. Results that were
delivered are kept for 5 s instead of 120, so that memory comes to rest within the warm-up. Memory
is the server's resident set: its median in the first and the last quarter of what counts.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from tinkex.local import LocalServer

PREFIX = "/api/v1"
PROMPT, COMPLETION, BATCH = 32, 16, 64
HEARTBEAT_S = 10.0
SETTINGS = ("--threads", "1", "--log-level", "warning", "--delivered-ttl-s", "5")


@dataclass
class Findings:
    """What all clients saw."""

    latencies: dict[str, list[float]] = field(default_factory=lambda: {"sample": [], "train": []})
    errors: list[str] = field(default_factory=list)
    resident: list[tuple[float, int]] = field(default_factory=list)
    """Seconds since the warm-up, bytes."""
    counts: bool = True
    """Whether the warm-up is over."""


class Connection:
    """A bare HTTP/1.1 connection that is kept."""

    def __init__(self, host: str, port: int, key: str) -> None:
        self._address, self._key = (host, port), key
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None

    async def post(self, path: str, message: dict[str, Any]) -> tuple[int, bytes]:
        """Send a message; give the status and the body of the reply."""
        if self._writer is None:
            self._reader, self._writer = await asyncio.open_connection(*self._address)
        assert self._reader is not None
        body = json.dumps(message).encode()
        head = (
            f"POST {PREFIX}{path} HTTP/1.1\r\nHost: localhost\r\nX-API-Key: {self._key}\r\n"
            f"Content-Type: application/json\r\nAccept: application/json\r\n"
            f"Content-Length: {len(body)}\r\n\r\n"
        )
        self._writer.write(head.encode() + body)
        lines = (await self._reader.readuntil(b"\r\n\r\n")).decode().lower().split("\r\n")
        length = next(int(one.split(":")[1]) for one in lines if one.startswith("content-length"))
        return int(lines[0].split()[1]), await self._reader.readexactly(length)

    def close(self) -> None:
        """Hang up."""
        if self._writer is not None:
            self._writer.close()


class Client:
    """One user's program."""

    def __init__(self, number: int, connection: Connection, base_model: str) -> None:
        self._number, self._connection, self._base_model = number, connection, base_model
        self._trains = number % 4 == 3
        self._session = ""
        self._sampler = self._model = ""
        self._seq_id = 0
        self._last_beat = 0.0

    async def ask(self, path: str, message: dict[str, Any]) -> Any:
        """Send a message that must succeed; give the reply."""
        status, content = await self._connection.post(path, message)
        if status != 200:
            raise RuntimeError(f"{path}: {status} {content[:200]!r}")
        return json.loads(content)

    async def result(self, future: dict[str, Any]) -> Any:
        """Wait for a future that must succeed."""
        while True:
            found = await self.ask("/retrieve_future", {"request_id": future["request_id"]})
            if "error" in found:
                raise RuntimeError(f"a future failed: {found}")
            if found.get("type") != "try_again":
                return found

    async def begin(self) -> None:
        """Begin a session, with a training run or a sampling session."""
        body = {"tags": [], "user_metadata": {}, "sdk_version": "load", "type": "create_session"}
        self._session = (await self.ask("/create_session", body))["session_id"]
        base = {"session_id": self._session, "base_model": self._base_model}
        if self._trains:
            create = {**base, "model_seq_id": 0, "lora_config": {"rank": 4, "seed": self._number}}
            future = await self.ask("/create_model", create)
            self._model = (await self.result(future))["model_id"]
        else:
            create = {**base, "sampling_session_seq_id": 0}
            found = await self.ask("/create_sampling_session", create)
            self._sampler = found["sampling_session_id"]

    async def turn(self, findings: Findings) -> None:
        """Do one piece of work, and note how long it took."""
        start = time.perf_counter()
        if self._trains:
            await self.train()
        else:
            await self.sample()
        now = time.perf_counter()
        if findings.counts:
            findings.latencies["train" if self._trains else "sample"].append(now - start)
        if now - self._last_beat > HEARTBEAT_S:
            self._last_beat = now
            beat = {"session_id": self._session, "type": "session_heartbeat"}
            await self.ask("/session_heartbeat", beat)

    async def sample(self) -> None:
        """Sample once."""
        self._seq_id += 1
        tokens = [5 + (self._number * 31 + self._seq_id + n * 7) % 200 for n in range(PROMPT)]
        message = {
            "num_samples": 1,
            "prompt": {"chunks": [{"tokens": tokens, "type": "encoded_text"}]},
            "sampling_params": {"max_tokens": COMPLETION, "seed": self._seq_id},
            "sampling_session_id": self._sampler,
            "seq_id": self._seq_id,
            "type": "sample",
        }
        await self.result(await self.ask("/asample", message))

    async def train(self) -> None:
        """Train one step."""
        tokens = [5 + (self._number * 31 + self._seq_id + n * 7) % 200 for n in range(BATCH + 1)]
        inputs = {
            "target_tokens": {"data": tokens[1:], "dtype": "int64", "shape": [BATCH]},
            "weights": {"data": [1.0] * BATCH, "dtype": "float32", "shape": [BATCH]},
        }
        chunk = {"tokens": tokens[:-1], "type": "encoded_text"}
        datum = {"model_input": {"chunks": [chunk]}, "loss_fn_inputs": inputs}
        body = {"data": [datum], "loss_fn": "cross_entropy"}
        self._seq_id += 2
        batch = await self.ask(
            "/forward_backward",
            {
                "forward_backward_input": body,
                "model_id": self._model,
                "seq_id": self._seq_id - 1,
            },
        )
        step = await self.ask(
            "/optim_step", {"model_id": self._model, "seq_id": self._seq_id, "adam_params": {}}
        )
        await self.result(batch)
        await self.result(step)

    async def live(self, findings: Findings, until: float) -> None:
        """Work until it is time to go, but once at least."""
        try:
            await self.begin()
            await self.turn(findings)
            while time.perf_counter() < until:
                await self.turn(findings)
        except (RuntimeError, OSError, asyncio.IncompleteReadError) as error:
            findings.errors.append(f"client {self._number}: {type(error).__name__}: {error}")
        finally:
            self._connection.close()


async def put_under_load(
    url: str,
    key: str,
    base_model: str,
    pid: int,
    *,
    clients: int,
    seconds: float,
    warm_up: float = 0.0,
) -> Findings:
    """Run all clients for so long."""
    findings = Findings(counts=not warm_up)
    host, _, port = url.removeprefix("http://").rpartition(":")
    begin = time.perf_counter() + warm_up
    made = [
        Client(number, Connection(host, int(port), key), base_model) for number in range(clients)
    ]
    work = asyncio.gather(*(one.live(findings, begin + seconds) for one in made))
    process = psutil.Process(pid)
    while not work.done():
        findings.counts = time.perf_counter() >= begin
        findings.resident.append((time.perf_counter() - begin, process.memory_info().rss))
        await asyncio.wait({work}, timeout=0.5)
    await work
    return findings


def summary(findings: Findings, *, clients: int, seconds: float) -> dict[str, Any]:
    """Put what was found into figures."""

    def mib(first: float, last: float) -> float:
        found = [size for at, size in findings.resident if first * seconds <= at < last * seconds]
        return round(statistics.median(found) / 2**20, 1) if found else 0.0

    told: dict[str, Any] = {"clients": clients, "seconds": seconds, "errors": len(findings.errors)}
    for kind, latencies in findings.latencies.items():
        ordered = sorted(latencies)
        told[kind] = {
            "finished": len(ordered),
            "p50_s": round(ordered[len(ordered) // 2], 3) if ordered else None,
            "p99_s": round(ordered[len(ordered) * 99 // 100], 3) if ordered else None,
        }
    told["resident_mib"] = {"after_warm_up": mib(0.0, 0.25), "at_the_end": mib(0.75, 1.0)}
    return told


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--clients", type=int, default=200)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--warm-up", type=float, default=60.0)
    options = parser.parse_args()
    with (
        tempfile.TemporaryDirectory() as folder,
        LocalServer(Path(folder), SETTINGS) as server,
    ):
        address = server.address
        findings = asyncio.run(
            put_under_load(
                address.url,
                address.api_key,
                "tinkex/sprout",
                address.pid,
                clients=options.clients,
                seconds=options.seconds,
                warm_up=options.warm_up,
            )
        )
    print(json.dumps(summary(findings, clients=options.clients, seconds=options.seconds), indent=2))
    for error in findings.errors[:10]:
        print(error, file=sys.stderr)
    sys.exit(bool(findings.errors))


if __name__ == "__main__":
    main()
