"""What it costs to switch among more adapters than memory holds.

    python benchmarks/adapter_pool.py --adapters 500 --room 20 --rank 8

Makes adapters of `tinkex/sprout`, trains each once (so that each has its optimiser's state), and
goes round them: with room for `--room` every turn moves one out to the disk and another in; the
same turns on adapters that stay in memory are the floor. One thread; CPU time of the process, and
wall time for the switch alone, least of two rounds.
"""

from __future__ import annotations

import argparse
import resource
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from tinkex.engine.engine import Engine, EngineConfig, SampleJob, load_base_model
from tinkex.types import AdamParams, Datum, LoraConfig, ModelInput, SamplingParams, TensorData

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

MIB = 2**20
PARAMS = AdamParams(learning_rate=1e-3)
TOKENS = 8


def main() -> None:
    """Print the figures of one run as a table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--adapters", type=int, default=500)
    parser.add_argument("--room", type=int, default=20, help="adapters that memory holds")
    parser.add_argument("--rank", type=int, default=8)
    options = parser.parse_args()
    base = load_base_model("tinkex/sprout", device="cpu", dtype="float32")
    probe = Engine(base, EngineConfig(threads=1))
    probe.create_adapter("probe", LoraConfig(rank=options.rank))
    size = probe._pool.adapter("probe").nbytes
    with tempfile.TemporaryDirectory() as folder:
        base = load_base_model("tinkex/sprout", device="cpu", dtype="float32")
        engine = Engine(
            base,
            EngineConfig(
                threads=1, host_adapter_bytes=options.room * size, spill_directory=Path(folder)
            ),
        )
        rows = measure(engine, Path(folder), options.adapters, options.room, options.rank)
        engine.close()
    print(f"| {options.adapters} adapters of rank {options.rank}, room for {options.room} | |")
    print("|---|---|")
    for name, value in rows.items():
        print(f"| {name} | {value} |")


def measure(engine: Engine, folder: Path, count: int, room: int, rank: int) -> dict[str, str]:
    """Measure creating, training in turns and sampling in turns."""
    names = [f"adapter {n}" for n in range(count)]
    rows = {}
    seconds = timed(lambda name: create(engine, name, rank), names)[0]
    rows["create one and train it once, ms"] = f"{1e3 * seconds:.2f}"
    files = list(folder.glob("*.safetensors"))
    rows["one on the disk, MiB"] = f"{sum(f.stat().st_size for f in files) / len(files) / MIB:.2f}"
    rows["all on the disk, MiB"] = f"{sum(f.stat().st_size for f in files) / MIB:.0f}"
    few = names[-room + 1 :]
    turn(engine, few[0])
    stay = timed(lambda name: turn(engine, name), few)[0]
    move = timed(lambda name: turn(engine, name), names)[0]
    rows["a training step of 8 tokens, adapter in memory, ms"] = f"{1e3 * stay:.2f}"
    rows["the same, one moved out and one in, ms"] = f"{1e3 * move:.2f}"
    cpu, wall = timed(engine._pool.adapter, names)
    rows["the switch alone, ms"] = f"{1e3 * cpu:.2f} ({1e3 * wall:.2f} of wall time)"
    for name in names:
        engine.snapshot_sampler(name, name)
    kept = timed(lambda _: sample(engine, names[-1]), few)[0]
    moved = timed(lambda name: sample(engine, name), names)[0]
    rows["a sample of 1 token, sampler in memory, ms"] = f"{1e3 * kept:.2f}"
    rows["the same, sampler from the disk, ms"] = f"{1e3 * moved:.2f}"
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    rows["peak memory of the process, MiB"] = (
        f"{peak / (MIB if sys.platform == 'darwin' else 1024):.0f}"
    )
    return rows


def create(engine: Engine, name: str, rank: int) -> None:
    """Make an adapter with an optimiser's state, anew if it is there."""
    engine.remove_adapter(name)
    engine.create_adapter(name, LoraConfig(rank=rank))
    turn(engine, name)


def turn(engine: Engine, name: str) -> None:
    """Train one step."""
    ids = np.arange(TOKENS + 1)
    datum = Datum(
        model_input=ModelInput.from_ints(ids[:-1].tolist()),
        loss_fn_inputs={
            "target_tokens": TensorData.from_numpy(ids[1:]),
            "weights": TensorData.from_numpy(np.ones(TOKENS, np.float32)),
        },
    )
    engine.forward_backward(name, [datum], "cross_entropy")
    engine.optim_step(name, PARAMS)


def sample(engine: Engine, name: str) -> None:
    """Sample one token."""
    prompt = ModelInput.from_ints([5, 6, 7])
    engine.add_sample(SampleJob("job", name, prompt, sampling_params=SamplingParams(max_tokens=1)))
    while engine.has_sampling_work():
        engine.step()


def timed(work: Callable[[str], object], names: Sequence[str]) -> tuple[float, float]:
    """Give the seconds of CPU and of wall time that one name takes, the least of two rounds."""
    cpu, wall = [], []
    for _ in range(2):
        starts = time.process_time(), time.perf_counter()
        for name in names:
            work(name)
        cpu.append(time.process_time() - starts[0])
        wall.append(time.perf_counter() - starts[1])
    return min(cpu) / len(names), min(wall) / len(names)


if __name__ == "__main__":
    main()
