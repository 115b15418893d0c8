"""Workers of the product's own command that are killed: what clients notice, and what is lost.

    python benchmarks/mesh_failures.py [--transport tls|iroh]

A network of processes, each started by `tinkex mesh ROLE` (`tests/support/mesh_processes.py`):
auth, gateway, client, bootstrap and three processors of `tinkex/sprout`. Requests come from the
`openai` package through the client worker's endpoint. Three measurements:

kills      The processor that makes a stream gets SIGKILL after so many tokens. The pause is the
           longest time without a token that the reader sees from then on; tokens and their
           log-probabilities are compared with a stream that nobody cut.
restarts   Gateway and auth worker get SIGKILL right after they answered, and are started again at
           once. The time is from the kill to the answer to the first request that is answered,
           asked one after the other (a completion; a login). Accounts, keys, quota and usage of
           before must be there after.
memory     Resident memory of every worker without a model, after all that.
"""

from __future__ import annotations

import argparse
import contextlib
import difflib
import json
import os
import secrets
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import openai

HERE = Path(__file__).parent
sys.path.append(str(HERE.parent / "tests" / "support"))  # last: both have a `mesh_gateway`

from mesh_processes import Processes, WorkerProcess, mesh_processes

MODEL = "tinkex/sprout"
CUTS = (20, 250, 500, 750, 1000)
"""Tokens after which a processor is killed."""
AFTER = 60
"""Tokens that a stream goes on for after that."""
LONG = {"model": MODEL, "prompt": "The", "temperature": 2.0, "top_p": 0.8, "logprobs": 0}
"""Of little sense, but it seldom ends, and repeats nothing."""
SEEDS = (35, 133, *range(200, 300))
"""The first are long enough where numbers round as on the machine on which they were found."""
RETRY_S = 0.05
ACCOUNT_RETRY_S = 0.3
"""A gateway takes 60 requests about accounts in a minute from one client worker."""
ACCOUNTS = 3
PATIENCE_S = 60.0
PROCESSORS = ("processor-1", "processor-2", "processor-3")
WITHOUT_MODEL = ("auth", "gateway", "client", "bootstrap")

Sampled = tuple[str, float]
"""A token and its log-probability."""


@dataclass
class Account:
    """A user, and what this program was told of what it has."""

    email: str
    password: str
    http: httpx.Client
    keys: list[str] = field(default_factory=list)
    answered: int = 0
    """Completions that were answered."""
    tokens: int = 0
    """Of these, as their answers say."""

    def log_in(self) -> httpx.Response:
        """Ask for a session, and use it if there is one."""
        login = {"email": self.email, "password": self.password}
        reply = self.http.post("/mesh/login", json=login)
        assert reply.status_code != 429, "asked too often"
        if reply.status_code == 200:
            self.http.headers["authorization"] = f"Bearer {reply.json()['access_token']}"
        return reply

    def complete(self, tokens: int = 3) -> bool:
        """Ask for a completion by a key; whether it was answered."""
        key = self.keys[self.answered % len(self.keys)]
        reply = self.http.post(
            "/v1/completions",
            headers={"authorization": f"Bearer {key}"},
            json={"model": MODEL, "prompt": "One", "max_tokens": tokens},
        )
        if reply.status_code != 200:
            return False
        self.answered += 1
        self.tokens += reply.json()["usage"]["total_tokens"]
        return True

    def books(self) -> dict[str, Any]:
        """What the network says of it, once it says that all answered requests are settled."""
        until = time.monotonic() + PATIENCE_S
        while True:
            report = self.http.get("/mesh/usage").raise_for_status().json()
            if len(report["entries"]) >= self.answered or time.monotonic() > until:
                break
            time.sleep(ACCOUNT_RETRY_S)
        keys = self.http.get("/mesh/keys").raise_for_status().json()
        # Whether this client has countersigned an entry yet is another matter.
        entries = {entry["request_id"]: {**entry, "state": ""} for entry in report["entries"]}
        return {
            "account": report["account_id"],
            "quota": report["quota_tokens"],
            "used": report["used_tokens"],
            "entries": entries,
            "keys": keys,
        }


# --- the network ----------------------------------------------------------------------------------


@contextlib.contextmanager
def network(transport: str) -> Iterator[Processes]:
    """Start one process for each worker; they end with the block."""
    with (
        tempfile.TemporaryDirectory() as folder,
        mesh_processes(Path(folder), transport) as mesh,
    ):
        mesh.init()
        mesh.start("auth")
        for name in ("bootstrap", "gateway", *PROCESSORS, "client"):
            mesh.start(name, wait=False)
        for worker in mesh.workers.values():
            mesh.wait_ready(worker)
        check(mesh)
        yield mesh


def check(mesh: Processes) -> None:
    """Assert that these are processes of their own, reached over the transport that is measured."""
    told = [worker.ready for worker in mesh.workers.values()]
    assert len({one["pid"] for one in told} | {os.getpid()}) == len(told) + 1, "shared process"
    scheme = f"{mesh.transport}:"
    for one in told:
        addresses = one["contact"].partition("@")[2].split(",")
        assert all(address.startswith(scheme) for address in addresses), one


def accounts_of(mesh: Processes, count: int) -> list[Account]:
    """Register accounts, two keys each, and wait until both are known to the gateway."""
    url = mesh.workers["client"].ready["url"]
    made = []
    for number in range(count):
        http = httpx.Client(base_url=url, timeout=PATIENCE_S)
        account = Account(f"user{number}@example.org", secrets.token_urlsafe(16), http)
        login = {"email": account.email, "password": account.password}
        http.post("/mesh/register", json=login).raise_for_status()
        account.log_in().raise_for_status()
        for name in ("one", "two"):
            reply = http.post("/mesh/keys", json={"name": name}).raise_for_status()
            account.keys.append(reply.json()["key"])
        for _ in account.keys:
            patiently(account.complete)
        made.append(account)
    return made


def patiently(ask: Callable[[], bool], every_s: float = RETRY_S) -> None:
    """Ask again and again until it is answered."""
    began = time.monotonic()
    while not ask():
        assert time.monotonic() - began < PATIENCE_S, "nobody answers any more"
        time.sleep(every_s)


# --- kills ----------------------------------------------------------------------------------------


def kills(mesh: Processes, account: Account) -> list[dict[str, Any]]:
    """Kill a processor in the middle of each of some streams; what their reader saw."""
    url = mesh.workers["client"].ready["url"]
    with openai.OpenAI(
        base_url=f"{url}/v1", api_key=account.keys[0], max_retries=0, timeout=PATIENCE_S
    ) as client:
        streams = Streams(client, account)
        whole = streams.uncut(max(CUTS) + AFTER)
        return [killed(mesh, streams, cut, whole[: cut + AFTER]) for cut in CUTS]


class Streams:
    """Asks for the same completion again and again."""

    def __init__(self, client: openai.OpenAI, account: Account) -> None:
        self._client = client
        self._account = account
        self._seed = 0

    def uncut(self, tokens: int) -> list[Sampled]:
        """Find a seed whose completion is long enough; its tokens."""
        for self._seed in SEEDS:
            whole = [token for token, _ in self.stream(tokens)]
            if len(whole) == tokens:
                return whole
        raise AssertionError("no completion is long enough")

    def stream(self, tokens: int) -> Iterator[tuple[Sampled, float]]:
        """Give tokens, and when each came."""
        chunks = self._client.completions.create(
            **LONG,
            max_tokens=tokens,
            seed=self._seed,
            stream=True,
            stream_options={"include_usage": True},
        )
        for chunk in chunks:
            now = time.monotonic()
            for sampled in sampled_in(chunk):
                yield sampled, now
            if chunk.usage is not None:
                self._account.answered += 1
                self._account.tokens += chunk.usage.total_tokens


def sampled_in(chunk: openai.types.Completion) -> Iterator[Sampled]:
    """Give the tokens of a chunk."""
    found = chunk.choices[0].logprobs if chunk.choices else None
    if found is not None:
        for token, logprob in zip(found.tokens or (), found.token_logprobs or (), strict=True):
            assert logprob is not None
            yield token, logprob


def killed(mesh: Processes, streams: Streams, cut: int, whole: list[Sampled]) -> dict[str, Any]:
    """Kill the processor of one stream after `cut` tokens, and start it again afterwards."""
    seen: list[Sampled] = []
    victim: WorkerProcess | None = None
    killed_at = pause = last = 0.0
    for token, now in streams.stream(len(whole)):
        seen.append(token)
        if killed_at:
            pause = max(pause, now - last)
        elif len(seen) == max(1, cut - 15):
            victim = busy(mesh)
        elif len(seen) >= cut:
            assert victim is not None
            victim.kill()
            killed_at = now
        last = now
    assert victim is not None
    assert not victim.alive
    mesh.start(victim.name)
    return {"cut": cut, "pause_s": pause, **compared(whole, seen)}


def busy(mesh: Processes) -> WorkerProcess:
    """The processor that works on the only request there is."""
    for name in PROCESSORS:
        worker = mesh.workers[name]
        page = httpx.get(worker.ready["admin_url"] + "/status", timeout=PATIENCE_S).json()
        if page["load"] > 0:
            return worker
    raise AssertionError("nobody works")


def compared(whole: list[Sampled], seen: list[Sampled]) -> dict[str, int]:
    """Count what is wrong, lost or doubled in what was seen."""
    found = {"wrong": 0, "lost": 0, "doubled": 0}
    if whole != seen:
        matcher = difflib.SequenceMatcher(None, whole, seen, autojunk=False)
        for kind, a, b, c, d in matcher.get_opcodes():
            if kind != "equal":
                both = min(b - a, d - c)
                found["wrong"] += both
                found["lost"] += b - a - both
                found["doubled"] += d - c - both
    return found


# --- restarts -------------------------------------------------------------------------------------


def restart(mesh: Processes, name: str, accounts: list[Account]) -> dict[str, Any]:
    """Kill a keeper of books right after it answered; until it serves again, and what is lost."""
    before = []
    for account in accounts:
        assert account.complete()
        before.append(account.books())
    for account in accounts:  # settled or not, these were answered: their entries may not be lost
        assert account.complete()
    first = accounts[0]
    began = time.monotonic()
    mesh.workers[name].kill()
    worker = mesh.start(name, wait=False)
    if name == "gateway":
        patiently(first.complete)
    else:
        patiently(lambda: first.log_in().status_code == 200, ACCOUNT_RETRY_S)
    back_s = time.monotonic() - began
    mesh.wait_ready(worker)
    check(mesh)
    lost = [
        f"{account.email}: {what}"
        for account, known in zip(accounts, before, strict=True)
        for what in missing(account, known)
    ]
    return {"back_s": back_s, "lost": lost, "accounts": len(accounts)}


def missing(account: Account, before: dict[str, Any]) -> Iterator[str]:
    """Say what an account had before and has no more."""
    reply = account.log_in()
    if reply.status_code != 200:
        yield f"the account ({reply.status_code})"
        return
    after = account.books()
    for name in ("account", "quota", "keys"):
        if after[name] != before[name]:
            yield name
    for request_id, entry in before["entries"].items():
        if after["entries"].get(request_id) != entry:
            yield f"the usage entry of {request_id}"
    if len(after["entries"]) < account.answered:
        yield f"{account.answered - len(after['entries'])} usage entries"
    if after["used"] < account.tokens:
        yield f"{account.tokens - after['used']} used tokens"


# --- memory ---------------------------------------------------------------------------------------


def memory(mesh: Processes) -> dict[str, float]:
    """MB of resident memory of every worker without a model."""
    found = {}
    for name in WITHOUT_MODEL:
        status = Path(f"/proc/{mesh.workers[name].ready['pid']}/status").read_text()
        kib = next(line.split()[1] for line in status.splitlines() if line.startswith("VmRSS:"))
        found[name] = int(kib) * 1024 / 1e6
    return found


def measured(transport: str, parts: set[str]) -> dict[str, Any]:
    """Measure some of `kill`, `gateway`, `auth`, `memory` in one network, in this order."""
    figures: dict[str, Any] = {}
    with network(transport) as mesh:
        accounts = accounts_of(mesh, ACCOUNTS)
        if "kill" in parts:
            figures["kill"] = kills(mesh, accounts[0])
        for name in ("gateway", "auth"):
            if name in parts:
                figures[name] = restart(mesh, name, accounts)
        if "memory" in parts:
            figures["memory"] = memory(mesh)
        for account in accounts:
            account.http.close()
    return figures


def main() -> int:
    """Print the figures as JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--transport", choices=("tls", "iroh"), default="tls")
    parser.add_argument("--part", choices=("kill", "gateway", "auth", "memory"), action="append")
    arguments = parser.parse_args()
    parts = set(arguments.part or ("kill", "gateway", "auth", "memory"))
    print(json.dumps(measured(arguments.transport, parts), indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
