"""What huge pages save the engine: steps of `tinkex/sprout` with and without them, side by side.

    python benchmarks/huge_pages.py [--rounds 6] [--threads 1]

Processes of both kinds take turns, as pages that were joined stay so; each loads the model, joins
its pages or does not, and computes completions of 32 tokens: the median of a step counts. A kernel
that joins none gives a ratio of 1.
"""

from __future__ import annotations

import argparse
import random
import statistics
import subprocess
import sys
import time

PROMPT, TOKENS, WARM_UP, MEASURED = 12, 32, 3, 8
BATCHES = (1, 8)


def steps(threads: int, *, gathered: bool) -> list[float]:
    """Compute completions; how many milliseconds a step takes, for each size of batch."""
    from tinkex._clock import SystemClock
    from tinkex._huge_pages import gather
    from tinkex.engine.config import EngineConfig
    from tinkex.engine.engine import Engine, load_base_model
    from tinkex.engine.sampling.sequence import SampleJob
    from tinkex.types import ModelInput, SamplingParams

    base = load_base_model("tinkex/sprout", device="cpu", dtype="float32")
    engine = Engine(base, EngineConfig(threads=threads), clock=SystemClock())
    rng = random.Random(7)

    def run(batch: int) -> float:
        for place in range(batch):
            prompt = [rng.randrange(300, 2000) for _ in range(PROMPT)]
            engine.add_sample(
                SampleJob(
                    job_id=str(place),
                    sampler_id=None,
                    prompt=ModelInput.from_ints(prompt),
                    num_samples=1,
                    sampling_params=SamplingParams(max_tokens=TOKENS, seed=place),
                )
            )
        took = []
        while engine.has_sampling_work():
            start = time.perf_counter()
            engine.step()
            took.append(time.perf_counter() - start)
        return statistics.median(took) * 1000

    for batch in BATCHES:
        run(batch)
    if gathered:
        print(f"{gather() >> 20} MB in huge pages", file=sys.stderr)
    return [
        statistics.median([run(batch) for _ in range(WARM_UP + MEASURED)][WARM_UP:])
        for batch in BATCHES
    ]


def main() -> int:
    """Measure, and print the ratios."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--kind", choices=("plain", "gathered"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.kind:
        print(*steps(arguments.threads, gathered=arguments.kind == "gathered"))
        return 0
    found: dict[str, list[list[float]]] = {"plain": [], "gathered": []}
    for number in range(arguments.rounds):
        for kind in sorted(found, reverse=bool(number % 2)):
            command = [
                sys.executable,
                __file__,
                "--kind",
                kind,
                "--threads",
                str(arguments.threads),
            ]
            told = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
            found[kind].append([float(word) for word in told.split()])
    print(f"| batch, {arguments.threads} threads | plain, ms a step | huge pages | ratio |")
    print("|---|---|---|---|")
    for place, batch in enumerate(BATCHES):
        plain, huge = (statistics.median(one[place] for one in found[kind]) for kind in found)
        print(f"| {batch} | {plain:.2f} | {huge:.2f} | {huge / plain:.2f} |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
