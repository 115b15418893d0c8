"""Measure training and sampling over the Tinker API, through its public calls alone.

Works against any server of this API, with our client or with the official one:

    python benchmarks/train_sample.py --start-server
    python benchmarks/train_sample.py --base-url URL --api-key KEY --base-model NAME
    python benchmarks/train_sample.py --start-server --sdk tinker --rank 8 --batch 8 --length 128

Prints one JSON object: steps/s, trained tokens/s, sampled tokens/s, the wait for the first step,
and, for a server it started itself, peak resident memory and start-up time. Data are random tokens
below `--vocabulary`, so figures do not depend on a tokenizer.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import platform
import random
import resource
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

SETTINGS = [
    *("base_model", "rank", "batch", "length", "steps"),
    *("prompts", "prompt_length", "num_samples", "new_tokens"),
]


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--sdk", default="tinkex", choices=["tinkex", "tinker"])
    parser.add_argument("--start-server", action="store_true", help="start a `tinkex serve`")
    parser.add_argument("--base-url", help="a running server")
    parser.add_argument("--api-key", help="its key")
    parser.add_argument("--base-model", default="tinkex/sprout")
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--batch", type=int, default=8, help="sequences in a step")
    parser.add_argument("--length", type=int, default=128, help="tokens in a sequence")
    parser.add_argument("--steps", type=int, default=20, help="steps after the first")
    parser.add_argument("--prompts", type=int, default=16)
    parser.add_argument("--prompt-length", type=int, default=64)
    parser.add_argument("--num-samples", type=int, default=1, help="samples for each prompt")
    parser.add_argument("--new-tokens", type=int, default=64, help="tokens in a sample")
    parser.add_argument("--rounds", type=int, default=3, help="repeats of the sampling part")
    parser.add_argument("--vocabulary", type=int, default=256, help="token ids below this number")
    chosen = parser.parse_args()
    if chosen.start_server == bool(chosen.base_url):
        parser.error("give either --start-server or --base-url")
    return chosen


def batch(sdk: Any, args: argparse.Namespace, order: random.Random) -> list[Any]:
    data = []
    for _ in range(args.batch):
        tokens = [order.randrange(args.vocabulary) for _ in range(args.length + 1)]
        data.append(
            sdk.Datum(
                model_input=sdk.ModelInput.from_ints(tokens[:-1]),
                loss_fn_inputs={
                    "target_tokens": np.asarray(tokens[1:], dtype=np.int64),
                    "weights": np.ones(args.length, dtype=np.float32),
                },
            )
        )
    return data


def measure_training(sdk: Any, client: Any, args: argparse.Namespace) -> dict[str, float]:
    order = random.Random(0)
    batches = [batch(sdk, args, order) for _ in range(args.steps + 1)]
    seconds = []
    for data in batches:
        start = time.perf_counter()
        forward_backward = client.forward_backward(data, "cross_entropy")
        optim = client.optim_step(sdk.AdamParams(learning_rate=1e-4))
        forward_backward.result()
        optim.result()
        seconds.append(time.perf_counter() - start)
    first, rest = seconds[0], seconds[1:]
    return {
        "first_step_s": first,
        "steps_per_s": len(rest) / sum(rest),
        "step_median_s": statistics.median(rest),
        "trained_tokens_per_s": args.batch * args.length * len(rest) / sum(rest),
    }


def measure_sampling(sdk: Any, client: Any, args: argparse.Namespace) -> dict[str, float]:
    order = random.Random(1)
    save_start = time.perf_counter()
    sampler = client.save_weights_and_get_sampling_client()
    sampler = sampler.result() if hasattr(sampler, "result") else sampler
    save_seconds = time.perf_counter() - save_start
    # stop=[] switches every stop off: each sample has its full length.
    params = sdk.SamplingParams(max_tokens=args.new_tokens, temperature=1.0, seed=0, stop=[])
    prompts = [
        sdk.ModelInput.from_ints(
            [order.randrange(args.vocabulary) for _ in range(args.prompt_length)]
        )
        for _ in range(args.prompts)
    ]
    rates, seconds = [], []
    for _ in range(args.rounds + 1):
        start = time.perf_counter()
        futures = [sampler.sample(prompt, args.num_samples, params) for prompt in prompts]
        results = [future.result() for future in futures]
        seconds.append(time.perf_counter() - start)
        tokens = sum(len(s.tokens) for result in results for s in result.sequences)
        rates.append(tokens / seconds[-1])
    # The first round warms up.
    return {
        "save_for_sampling_s": save_seconds,
        "sampled_tokens_per_s": statistics.median(rates[1:]),
        "sampling_round_s": statistics.median(seconds[1:]),
    }


def process_memory(pid: int) -> dict[str, float]:
    """Return the present and peak resident memory of a process in MiB, where the system tells."""
    status = Path(f"/proc/{pid}/status")
    if not status.exists():
        return {}
    fields = dict(
        line.split(":", 1) for line in status.read_text().splitlines() if line.startswith("Vm")
    )
    return {
        "server_resident_mib": int(fields["VmRSS"].split()[0]) / 1024,
        "server_peak_resident_mib": int(fields["VmHWM"].split()[0]) / 1024,
    }


def main() -> None:
    args = arguments()
    report: dict[str, Any] = {"sdk": args.sdk, "machine": platform.machine()}
    report["settings"] = {name: getattr(args, name) for name in SETTINGS}
    with contextlib.ExitStack() as stack:
        server = None
        if args.start_server:
            from tinkex.local import LocalServer

            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            models = ["--base-model", args.base_model]
            server = stack.enter_context(LocalServer(folder, models))
            report["server_start_s"] = server.start_seconds
            report["server_at_start"] = process_memory(server.pid)
        login = server.login if server else {"base_url": args.base_url, "api_key": args.api_key}
        sdk = importlib.import_module(args.sdk)
        service = sdk.ServiceClient(**login)
        created = time.perf_counter()
        client = service.create_lora_training_client(base_model=args.base_model, rank=args.rank)
        client = client.result() if hasattr(client, "result") else client
        report["create_model_s"] = time.perf_counter() - created
        report |= measure_training(sdk, client, args)
        report |= measure_sampling(sdk, client, args)
        if server:
            report |= process_memory(server.pid)
        report["client_peak_resident_mib"] = (
            resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        )
        if hasattr(service, "close"):  # older official clients have none
            service.close("success")
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
