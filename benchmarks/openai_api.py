"""Measure what OpenAI's API costs beside the Tinker API, for the same tokens of one server.

    python benchmarks/openai_api.py

Starts a `tinkex serve` and samples the same sequences (equal prompts and seeds) in turn through the
Tinker API, through `/v1/completions` whole and through it as streams. Prints one JSON object: for
each, tokens/s and the server's CPU time for a token, in microseconds. The CPU time hardly depends
on what else the machine does.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import tempfile
import time
from pathlib import Path

import httpx
import psutil

import tinkex as tinker
from tinkex.local import LocalServer

PROMPT = list(range(5, 69))
MODEL = "tinkex/sprout"


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--requests", type=int, default=16, help="at once")
    parser.add_argument("--samples", type=int, default=2, help="sequences of each")
    parser.add_argument("--new-tokens", type=int, default=200, help="most of each sequence")
    parser.add_argument("--rounds", type=int, default=5)
    return parser.parse_args()


async def through_tinker(sampler: tinker.SamplingClient, chosen: argparse.Namespace) -> int:
    prompt = tinker.ModelInput.from_ints(PROMPT)
    futures = [
        sampler.sample(
            prompt, chosen.samples, tinker.SamplingParams(max_tokens=chosen.new_tokens, seed=seed)
        )
        for seed in range(chosen.requests)
    ]
    results = [await future for future in futures]
    return sum(len(sequence.tokens) for one in results for sequence in one.sequences)


async def through_completions(
    client: httpx.AsyncClient, chosen: argparse.Namespace, *, stream: bool
) -> int:
    async def one(seed: int) -> int:
        body = {
            "model": MODEL,
            "prompt": PROMPT,
            "n": chosen.samples,
            "max_tokens": chosen.new_tokens,
            "seed": seed,
            "stream": stream,
        }
        if stream:
            body["stream_options"] = {"include_usage": True}
        reply = await client.post("/v1/completions", json=body)
        reply.raise_for_status()
        if not stream:
            return int(reply.json()["usage"]["completion_tokens"])
        *_, last, _done = [line for line in reply.text.split("\n\n") if line.startswith("data: ")]
        return int(json.loads(last.removeprefix("data: "))["usage"]["completion_tokens"])

    return sum(await asyncio.gather(*(one(seed) for seed in range(chosen.requests))))


async def measure(login: dict[str, str], pid: int, chosen: argparse.Namespace) -> dict[str, dict]:
    server = psutil.Process(pid)
    service = tinker.ServiceClient(**login)
    sampler = await service.create_sampling_client(base_model=MODEL)
    headers = {"authorization": f"Bearer {login['api_key']}"}
    async with httpx.AsyncClient(
        base_url=login["base_url"], headers=headers, timeout=300
    ) as client:
        ways = {
            "tinker": lambda: through_tinker(sampler, chosen),
            "completions": lambda: through_completions(client, chosen, stream=False),
            "completions, streamed": lambda: through_completions(client, chosen, stream=True),
        }
        found = {name: {"tokens": 0, "seconds": 0.0, "cpu": 0.0} for name in ways}
        for number in range(chosen.rounds + 1):
            for name, way in ways.items():
                cpu, start = server.cpu_times(), time.perf_counter()
                tokens = await way()
                seconds, after = time.perf_counter() - start, server.cpu_times()
                if number:  # the first round warms up
                    spent = after.user + after.system - cpu.user - cpu.system
                    found[name]["tokens"] += tokens
                    found[name]["seconds"] += seconds
                    found[name]["cpu"] += spent
    service.close()
    return {
        name: {
            "tokens": one["tokens"],
            "tokens_per_second": round(one["tokens"] / one["seconds"]),
            "server_cpu_us_per_token": round(1e6 * one["cpu"] / one["tokens"], 1),
        }
        for name, one in found.items()
    }


def main() -> None:
    chosen = arguments()
    with (
        tempfile.TemporaryDirectory() as folder,
        LocalServer(Path(folder)) as server,
    ):
        found = asyncio.run(measure(server.login, server.pid, chosen))
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
