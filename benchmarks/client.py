"""Measure our client beside the official one, on a server that does nothing.

    python benchmarks/client.py [--rounds 7] [--only NAME ...]

Each measurement is a fresh process, the SDKs take turns in alternating order, and the figure is the
median. "Without torch" hides torch from the import system, as if it were not installed. Prints a
table: both figures, the ratio (above 1: ours is better), and the goal.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SDKS = ("tinkex", "tinker")
CLI = {"tinkex": "tinkex", "tinker": "tinker.cli"}
HERE = Path(__file__).resolve()
HIDE_TORCH = "import sys; sys.modules.update(dict.fromkeys(('torch', 'transformers')))"
KEY = "tml-benchmark-key-0123456789"


@dataclass(frozen=True)
class Measure:
    """One row of the table."""

    name: str
    title: str
    unit: str
    goal: float
    """Ours must be this many times better."""
    higher_is_better: bool = False


MEASURES = [
    Measure("import_torch", "import, torch installed", "s", 5),
    Measure("import_plain", "import, no torch", "s", 2),
    Measure("use_torch", "import and name ServiceClient, torch installed", "s", 1),
    Measure("use_plain", "import and name ServiceClient, no torch", "s", 1),
    Measure("help_torch", "CLI --help, torch installed", "s", 8),
    Measure("help_plain", "CLI --help, no torch", "s", 3),
    Measure("version_torch", "CLI version, torch installed", "s", 8),
    Measure("version_plain", "CLI version, no torch", "s", 3),
    Measure("batch_cpu", "forward_backward 128 x 1024, client CPU", "s", 2),
    Measure("samples", "2,000 concurrent samples", "calls/s", 2, higher_is_better=True),
    Measure("samples_batched", "the same, batched polls", "calls/s", 2, higher_is_better=True),
    Measure("memory", "10,000 queued samples, peak memory", "MiB", 2),
    Measure("latency_p50", "one call, p50", "ms", 1),
    Measure("latency_p99", "one call, p99", "ms", 1),
    Measure("heartbeat", "longest gap between heartbeats, thread busy 30 s", "s", 1),
]

# --- measured in a process of its own ------------------------------------------------------------


def sdk_module(name: str) -> Any:
    import importlib
    import logging

    logging.disable(logging.WARNING)
    return importlib.import_module(name)


def cpu_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def sampler_of(sdk: Any, url: str) -> tuple[Any, Any]:
    service = sdk.ServiceClient(base_url=url, api_key=KEY)
    return service, service.create_sampling_client(base_model="m").result()


def prompt_and_params(sdk: Any) -> tuple[Any, Any]:
    prompt = sdk.ModelInput.from_ints(list(range(100)))
    return prompt, sdk.SamplingParams(max_tokens=64)


def batch_cpu(sdk: Any, url: str) -> dict[str, float]:
    import random

    order = random.Random(1)
    rows = [[order.randrange(50_000) for _ in range(1025)] for _ in range(128)]
    weights = [1.0] * 1024
    service = sdk.ServiceClient(base_url=url, api_key=KEY)
    client = service.create_lora_training_client("m", rank=8).result()

    def step() -> None:
        data = [
            sdk.Datum(
                model_input=sdk.ModelInput.from_ints(row[:-1]),
                loss_fn_inputs={"target_tokens": row[1:], "weights": weights},
            )
            for row in rows
        ]
        output = client.forward_backward(data, "cross_entropy").result()
        assert len(output.loss_fn_outputs) == 128
        assert output.loss_fn_outputs[5]["logprobs"].to_numpy()[3] == -0.5

    step()
    before = cpu_seconds()
    for _ in range(3):
        step()
    return {"batch_cpu": (cpu_seconds() - before) / 3}


def samples(sdk: Any, url: str, count: int = 2000) -> dict[str, float]:
    _service, sampler = sampler_of(sdk, url)
    prompt, params = prompt_and_params(sdk)
    sampler.sample(prompt, 1, params).result()
    began = time.perf_counter()
    futures = [sampler.sample(prompt, 1, params) for _ in range(count)]
    for future in futures:
        assert len(future.result().sequences[0].tokens) == 64
    return {"samples": count / (time.perf_counter() - began)}


def samples_batched(sdk: Any, url: str) -> dict[str, float]:
    return {"samples_batched": samples(sdk, url)["samples"]}


def memory(sdk: Any, url: str) -> dict[str, float]:
    _service, sampler = sampler_of(sdk, url)
    prompt, params = prompt_and_params(sdk)
    sampler.sample(prompt, 1, params).result()
    futures = [sampler.sample(prompt, 1, params) for _ in range(10_000)]
    for future in futures:
        future.result()
    return {"memory": peak_mib()}


def latency(sdk: Any, url: str) -> dict[str, float]:
    _service, sampler = sampler_of(sdk, url)
    prompt, params = prompt_and_params(sdk)
    for _ in range(20):
        sampler.sample(prompt, 1, params).result()
    found = []
    for _ in range(500):
        began = time.perf_counter()
        sampler.sample(prompt, 1, params).result()
        found.append(1000 * (time.perf_counter() - began))
    found.sort()
    return {"latency_p50": found[250], "latency_p99": found[495]}


def heartbeat(sdk: Any, url: str) -> dict[str, float]:
    import urllib.request

    _service, _sampler = sampler_of(sdk, url)
    began = time.monotonic()
    number = 0
    while time.monotonic() - began < 32:
        number = (number * 31 + 7) % 1_000_003
    with urllib.request.urlopen(f"{url}/api/v1/heartbeats") as answer:  # noqa: S310 - loopback
        beats = [began, *(beat for beat in json.load(answer) if beat > began)]
    gaps = [later - earlier for earlier, later in itertools.pairwise(beats)]
    assert len(gaps) >= 2, f"{len(gaps)} heartbeats in 32 s"
    return {"heartbeat": max(gaps)}


WORKERS = {
    "batch_cpu": batch_cpu,
    "samples": samples,
    "samples_batched": samples_batched,
    "memory": memory,
    "latency_p50": latency,
    "heartbeat": heartbeat,
}


def work(measure: str, sdk_name: str, url: str) -> None:
    result = WORKERS[measure](sdk_module(sdk_name), url)
    print(json.dumps(result), flush=True)
    os._exit(0)  # what the SDKs do at exit is not measured


# --- measured from outside -----------------------------------------------------------------------


def wall(code: str) -> float:
    began = time.perf_counter()
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - began


def command_seconds(name: str, sdk: str) -> float:
    what, _, torch = name.partition("_")
    hide = HIDE_TORCH if torch == "plain" else "import sys"
    if what == "import":
        return wall(f"{hide}; import {sdk}")
    if what == "use":
        return wall(f"{hide}; import {sdk}; {sdk}.ServiceClient")
    arguments = ["--help"] if what == "help" else ["version"]
    return wall(
        f"{hide}; import runpy; sys.argv = ['x', *{arguments}]; "
        f"runpy.run_module({CLI[sdk]!r}, run_name='__main__')"
    )


@contextlib.contextmanager
def null_server(*, batched: bool) -> Any:
    with tempfile.TemporaryDirectory() as folder:
        ready = Path(folder) / "ready.json"
        command = [
            sys.executable,
            str(HERE.with_name("null_server.py")),
            "--ready-file",
            str(ready),
        ]
        process = subprocess.Popen(command + ["--batched"] * batched)
        try:
            while not ready.exists():
                assert process.poll() is None, "the null server did not start"
                time.sleep(0.02)
            yield json.loads(ready.read_text())["url"]
        finally:
            process.terminate()
            process.wait()


def measured(measure: str, sdk: str) -> dict[str, float]:
    if measure not in WORKERS:
        return {measure: command_seconds(measure, sdk)}
    with null_server(batched=measure == "samples_batched") as url:
        done = subprocess.run(
            [sys.executable, str(HERE), "--worker", measure, sdk, url],
            check=True,
            capture_output=True,
            text=True,
            timeout=300,
            env={**os.environ, "TINKER_TELEMETRY": "0", "OMP_NUM_THREADS": "1"},
        )
    return json.loads(done.stdout.strip().splitlines()[-1])


def table(found: dict[str, dict[str, list[float]]]) -> str:
    lines = ["| measure | tinkex | tinker | ratio | goal | reached |", "|---|---|---|---|---|---|"]
    for measure in MEASURES:
        if measure.name not in found:
            continue
        ours, theirs = (statistics.median(found[measure.name][sdk]) for sdk in SDKS)
        ratio = ours / theirs if measure.higher_is_better else theirs / ours
        reached = "yes" if ratio >= measure.goal * (0.9 if measure.goal == 1 else 1) else "NO"
        lines.append(
            f"| {measure.title} | {ours:,.3g} {measure.unit} | {theirs:,.3g} {measure.unit} "
            f"| {ratio:.2f} | {measure.goal:g} | {reached} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    names = [measure.name for measure in MEASURES if measure.name != "latency_p99"]
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--only", nargs="*", choices=names, default=names)
    parser.add_argument("--worker", nargs=3, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.worker:
        work(*chosen.worker)
    found: dict[str, dict[str, list[float]]] = {}
    for name in chosen.only:
        rounds = min(chosen.rounds, 1) if name == "heartbeat" else chosen.rounds
        for number in range(rounds):
            for sdk in SDKS if number % 2 == 0 else SDKS[::-1]:
                for key, value in measured(name, sdk).items():
                    found.setdefault(key, {}).setdefault(sdk, []).append(value)
        print(f"{name}: {found[name]}", file=sys.stderr, flush=True)
    print(table(found))


if __name__ == "__main__":
    main()
