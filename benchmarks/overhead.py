"""What `tinkex serve` spends on a forward_backward besides the engine: 8 x 512 tokens on sprout.

    python benchmarks/overhead.py [--calls 100]

A server of its own is started, with one thread for the engine. The client is a bare HTTP
connection that sends batches encoded beforehand and throws the results away, so what is
left is the server's. Two measures, both as a part of the engine's:

- processor time: of all threads of the server but the engine's, read from /proc. It does not depend
  on what else the machine does, and is the figure that counts.
- elapsed time: from before the batch is sent until its result is there, less the engine's own. The
  loopback and the client's side of the connection are in it, and whoever else uses the machine.

An optim_step follows every batch, in the same way, outside of what is measured.
"""

from __future__ import annotations

import argparse
import http.client
import json
import re
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from tinkex.local import LocalServer
from tinkex.types import Datum, ModelInput
from tinkex.types.training import ForwardBackwardInput, ForwardBackwardRequest
from tinkex.wire.proto import encode_forward_backward_request

PREFIX = "/api/v1"
GOAL = 0.05
JSON, PROTOBUF = "application/json", "application/x-protobuf"


class Caller:
    """One bare connection to a server."""

    def __init__(self, url: str, key: str) -> None:
        self._connection = http.client.HTTPConnection(url.removeprefix("http://"))
        self._key = key

    def send(self, path: str, body: bytes, kind: str = JSON, accept: str = JSON) -> bytes:
        """Post bytes; give the reply's."""
        headers = {"X-API-Key": self._key, "Content-Type": kind, "Accept": accept}
        self._connection.request("POST", PREFIX + path, body, headers)
        response = self._connection.getresponse()
        content = response.read()
        assert response.status == 200, (path, response.status, content[:300])
        return content

    def call(self, path: str, message: dict[str, Any]) -> Any:
        """Post a message; give the reply's."""
        return json.loads(self.send(path, json.dumps(message).encode()))

    def metrics(self) -> str:
        """Read what the server counts."""
        self._connection.request("GET", "/metrics")
        return self._connection.getresponse().read().decode()

    def result(self, request_id: str, accept: str = JSON) -> bytes:
        """Wait for a future's result."""
        while True:
            body = json.dumps({"request_id": request_id}).encode()
            content = self.send("/retrieve_future", body, accept=accept)
            if b"try_again" not in content[:200]:
                return content


def batch(model_id: str, seq_id: int, data: int, tokens: int, vocabulary: int) -> bytes:
    """Encode one batch of random tokens."""
    order = np.random.default_rng(seq_id)
    rows = []
    for _ in range(data):
        ids = order.integers(5, vocabulary, tokens + 1)
        inputs = {"target_tokens": ids[1:], "weights": np.ones(tokens, np.float32)}
        rows.append(Datum(ModelInput.from_ints(ids[:-1].tolist()), inputs))
    return encode_forward_backward_request(
        ForwardBackwardRequest(
            forward_backward_input=ForwardBackwardInput(data=rows, loss_fn="cross_entropy"),
            model_id=model_id,
            seq_id=seq_id,
        )
    )


def create(caller: Caller, rank: int) -> str:
    """Begin a session with one training run; give its id."""
    session = caller.call(
        "/create_session",
        {"tags": [], "user_metadata": {}, "sdk_version": "bench", "type": "create_session"},
    )["session_id"]
    future = caller.call(
        "/create_model",
        {
            "session_id": session,
            "model_seq_id": 0,
            "base_model": "tinkex/sprout",
            "lora_config": {"rank": rank, "seed": 1},
        },
    )
    return str(json.loads(caller.result(future["request_id"]))["model_id"])


def thread_seconds(pid: int) -> dict[str, float]:
    """Read the processor time of each thread of a process."""
    found = {}
    for task in Path(f"/proc/{pid}/task").iterdir():
        try:
            found[task.name] = int((task / "schedstat").read_text().split()[0]) / 1e9
        except OSError:  # it has just ended
            continue
    return found


def engine_seconds(text: str) -> float:
    """Read the engine's time in training from the metrics."""
    (found,) = re.findall(r'tinkex_engine_seconds_total{[^}]*work="training"} (\S+)', text)
    return float(found)


def measure(server: LocalServer, calls: int, data: int, tokens: int) -> dict[str, Any]:
    """Send so many batches, one after the other."""
    caller = Caller(server.address.url, server.address.api_key)
    model_id = create(caller, 8)
    elapsed, engine, cpu_engine, cpu_rest, sizes = [], [], 0.0, 0.0, []
    busiest = ""
    for number in range(calls + 3):
        body = batch(model_id, 2 * number + 1, data, tokens, 1000)
        began_engine, before = engine_seconds(caller.metrics()), thread_seconds(server.pid)
        start = time.perf_counter()
        future = json.loads(caller.send("/forward_backward", body, PROTOBUF))
        result = caller.result(future["request_id"], accept=PROTOBUF)
        took = time.perf_counter() - start
        after, ended_engine = thread_seconds(server.pid), engine_seconds(caller.metrics())
        spent = {tid: seconds - before.get(tid, 0.0) for tid, seconds in after.items()}
        busiest = busiest or max(spent, key=lambda tid: spent[tid])
        step = {"model_id": model_id, "seq_id": 2 * number + 2, "adam_params": {}}
        caller.result(caller.call("/optim_step", step)["request_id"])
        if number < 3:  # warm-up
            continue
        elapsed.append(took)
        engine.append(ended_engine - began_engine)
        cpu_engine += spent.pop(busiest)
        cpu_rest += sum(spent.values())
        sizes.append((len(body), len(result)))
    outside = [took - inside for took, inside in zip(elapsed, engine, strict=True)]
    return {
        "calls": calls,
        "batch": f"{data} x {tokens} tokens",
        "request_bytes": sizes[-1][0],
        "result_bytes": sizes[-1][1],
        "engine_cpu_ms": round(1000 * cpu_engine / calls, 3),
        "outside_cpu_ms": round(1000 * cpu_rest / calls, 3),
        "outside_of_engine_cpu": round(cpu_rest / cpu_engine, 4),
        "engine_elapsed_ms": round(1000 * statistics.median(engine), 3),
        "outside_elapsed_ms": round(1000 * statistics.median(outside), 3),
        "outside_of_engine_elapsed": round(
            statistics.median(outside) / statistics.median(engine), 4
        ),
        "goal": GOAL,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--calls", type=int, default=100)
    parser.add_argument("--data", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=512)
    options = parser.parse_args()
    with (
        tempfile.TemporaryDirectory() as folder,
        LocalServer(Path(folder), ("--threads", "1", "--log-level", "warning")) as server,
    ):
        found = measure(server, options.calls, options.data, options.tokens)
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
