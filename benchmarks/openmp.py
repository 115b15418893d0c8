"""What OpenMP's waiting threads cost: steps of `tinkex/sprout`, and what is spun after each.

    python benchmarks/openmp.py [--rounds 5]

Processes of three kinds take turns. Each loads the model and computes completions of 32 tokens in
another thread, as the engine's is: the median of a step counts, and the processor time that the
process spends while it sleeps for 20 ms after a completion.

stayed   The thread that loaded the model stays, and its OpenMP threads with it.
long     It ends, and threads spin as long as the library has them: libgomp 300,000 times.
brief    It ends, and they spin as long as `tinkex serve` and `tinkex mesh` have them.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import statistics
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from tinkex._process import in_a_thread_that_ends
from tinkex.cli.openmp import wait_briefly

if TYPE_CHECKING:
    from tinkex.engine.engine import Engine

KINDS = ("stayed", "long", "brief")
PROMPT, TOKENS, WARM_UP, MEASURED = 12, 32, 5, 15
SLEEP_S = 0.02


def load() -> Engine:
    """Load the shipped model, on all cores."""
    from tinkex.engine.config import EngineConfig
    from tinkex.engine.engine import Engine, load_base_model

    base = load_base_model("tinkex/sprout", device="cpu", dtype="float32")
    return Engine(base, EngineConfig())


def measured(engine: Engine) -> tuple[float, float]:
    """Compute completions; milliseconds of a step, and of spinning after one."""
    from tinkex.engine.sampling.sequence import SampleJob
    from tinkex.types import ModelInput, SamplingParams

    steps, spun = [], []
    for number in range(WARM_UP + MEASURED):
        prompt = ModelInput.from_ints(
            [300 + (number * 37 + place) % 1700 for place in range(PROMPT)]
        )
        params = SamplingParams(max_tokens=TOKENS, seed=number)
        engine.add_sample(
            SampleJob(
                job_id=str(number),
                sampler_id=None,
                prompt=prompt,
                num_samples=1,
                sampling_params=params,
            )
        )
        while engine.has_sampling_work():
            start = time.perf_counter()
            engine.step()
            if number >= WARM_UP:
                steps.append(time.perf_counter() - start)
        before = time.process_time()
        time.sleep(SLEEP_S)
        spun.append(time.process_time() - before)
    return statistics.median(steps) * 1000, statistics.median(spun[WARM_UP:]) * 1000


def run(kind: str) -> tuple[float, float]:
    """Be a process of one kind."""
    if kind == "brief":
        wait_briefly()
    engine = load() if kind == "stayed" else asyncio.run(in_a_thread_that_ends(load))
    with ThreadPoolExecutor(1) as stepper:
        return stepper.submit(measured, engine).result()


def main() -> int:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--kind", choices=KINDS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.kind:
        print(*run(arguments.kind))
        return 0
    chosen = {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY", "OMP_NUM_THREADS"}
    environment = {name: value for name, value in os.environ.items() if name not in chosen}
    found: dict[str, list[list[float]]] = {kind: [] for kind in KINDS}
    for _ in range(arguments.rounds):
        for kind in KINDS:
            told = subprocess.run(
                [sys.executable, __file__, "--kind", kind],
                env=environment,
                check=True,
                stdout=subprocess.PIPE,
                text=True,
            ).stdout
            found[kind].append([float(word) for word in told.split()])
    least = statistics.median(step for step, _ in found["brief"])
    print("| kind | ms a step | ratio to brief | ms of processor time after it |")
    print("|---|---|---|---|")
    for kind in KINDS:
        step, spun = (statistics.median(one[place] for one in found[kind]) for place in (0, 1))
        print(f"| {kind} | {step:.2f} | {step / least:.2f} | {spun:.2f} |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
