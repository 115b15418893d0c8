"""Does learning work, and does it behave as LoRA should? Trains, checks stated figures, plots.

    python benchmarks/learning.py                          # all parts; figures into docs/learning
    python benchmarks/learning.py supervised --output DIR  # some parts, elsewhere
    python benchmarks/learning.py --draw                   # the plots anew from the figures

Everything goes through the public client to a `tinkex serve` that this starts, with one thread and
fixed seeds. The tasks are those of `tinkex demo`: English to French by examples, sums by reward.
Each part writes a CSV file; the plots are drawn from these files. Ends with exit code 1 when a
stated figure is not reached.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import platform
import resource
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from learning_plots import PLOTS, best_rate, mean_by, number

import tinkex
from tinkex import ServiceClient
from tinkex._clock import SystemClock
from tinkex.demo import reinforcement, supervised
from tinkex.demo.reinforcement import ReinforcementSettings
from tinkex.demo.supervised import SupervisedSettings
from tinkex.errors import TinkerError
from tinkex.local import LocalServer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tinkex.types import LossFnType

Row = dict[str, Any]

BASE_MODEL = "tinkex/sprout"
DOCS = Path(__file__).resolve().parents[1] / "docs" / "learning"
SEEDS = (0, 1, 2)
RANK = 32
"""Of the two curves; the demo's."""

SUPERVISED = SupervisedSettings(evaluate_every=10)
REINFORCEMENT = ReinforcementSettings(steps=18, learning_rate=1e-3, evaluate_every=2)
LOSSES: tuple[LossFnType, ...] = ("importance_sampling", "ppo", "cispo")
PASSES = 4
"""Updates on the same replies in the second half of the reinforcement part."""

SWEEP = SupervisedSettings(steps=60, evaluate_every=60)
SWEEP_SEEDS = (0, 1)
RANKS = (1, 4, 16, 64)
RATES = tuple(round(10 ** (-4 + third / 3), 6) for third in range(10))
LAYER_RATES = RATES[3:8]
LAYERS: dict[str, dict[str, Any]] = {
    "mlp and attention": {"rank": 16, "train_unembed": False},
    "mlp": {"rank": 16, "train_unembed": False, "train_attn": False},
    "attention": {"rank": 16, "train_unembed": False, "train_mlp": False},
    "attention, rank 64": {"rank": 64, "train_unembed": False, "train_mlp": False},
    "unembedding": {"rank": 16, "train_mlp": False, "train_attn": False},
}


class Runs:
    """Makes fresh adapters on one server, and trains them."""

    def __init__(self, server: LocalServer) -> None:
        self.login = server.login
        self.clock = SystemClock()

    def supervised(
        self, settings: SupervisedSettings, *, seed: int, **adapter: Any
    ) -> supervised.SupervisedResult:
        """Train an adapter by examples; `seed` seeds its matrices and the order of the data."""
        with ServiceClient(**self.login) as service:
            client = service.create_lora_training_client(BASE_MODEL, seed=seed, **adapter).result()
            found = supervised.train(
                client, client.get_tokenizer(), replace(settings, seed=seed), clock=self.clock
            )
            client.unload().result()
        return found

    def reinforcement(
        self, settings: ReinforcementSettings, *, seed: int
    ) -> reinforcement.ReinforcementResult:
        """Train an adapter by reward."""
        with ServiceClient(**self.login) as service:
            client = service.create_lora_training_client(BASE_MODEL, seed=seed, rank=RANK).result()
            found = reinforcement.train(
                client, client.get_tokenizer(), replace(settings, seed=seed), clock=self.clock
            )
            client.unload().result()
        return found


def supervised_rows(runs: Runs) -> Iterator[Row]:
    """Loss of each step, held-out loss every so many steps, for each seed."""
    for seed in SEEDS:
        found = runs.supervised(SUPERVISED, seed=seed, rank=RANK)
        before = number(found.held_out_loss_before)
        yield {"seed": seed, "step": 0, "loss": "", "held_out_loss": before}
        for step in found.steps:
            held_out = "" if step.held_out_loss is None else number(step.held_out_loss)
            yield {
                "seed": seed,
                "step": step.step,
                "loss": number(step.loss),
                "held_out_loss": held_out,
            }


def reinforcement_rows(runs: Runs) -> Iterator[Row]:
    """Mean reward and greedy accuracy against steps, for each loss, number of passes and seed."""
    kinds = [(1, "importance_sampling", seed) for seed in SEEDS]
    kinds += [(1, loss_fn, SEEDS[0]) for loss_fn in LOSSES[1:]]
    kinds += [(PASSES, loss_fn, seed) for loss_fn in LOSSES for seed in SEEDS]
    for passes, loss_fn, seed in kinds:
        settings = replace(REINFORCEMENT, passes=passes, loss_fn=loss_fn)
        found = runs.reinforcement(settings, seed=seed)
        common = {"passes": passes, "loss_fn": loss_fn, "seed": seed}
        before = number(found.accuracy_before)
        yield {**common, "step": 0, "mean_reward": "", "held_out_accuracy": before}
        for step in found.steps:
            accuracy = step.held_out_accuracy
            yield {
                **common,
                "step": step.step,
                "mean_reward": number(step.mean_reward),
                "held_out_accuracy": "" if accuracy is None else number(accuracy),
            }


def _swept(runs: Runs, name: str, rate: float, seed: int, adapter: Row) -> Row:
    """One run of a sweep; a run whose gradient is no longer finite has an infinite loss."""
    settings = replace(SWEEP, learning_rate=rate)
    row = {"layers": name, "rank": adapter["rank"], "learning_rate": rate, "seed": seed}
    try:
        found = runs.supervised(settings, seed=seed, **adapter)
    except TinkerError as error:
        print(f"  {name}, rank {adapter['rank']}, rate {rate:g}: {error}", flush=True)
        return {**row, "held_out_loss": "inf", "losses": ""}
    losses = " ".join(number(step.loss) for step in found.steps)
    return {**row, "held_out_loss": number(found.held_out_loss_after), "losses": losses}


def sweep_rows(runs: Runs) -> Iterator[Row]:
    """Held-out loss of every rank at every rate, all layers trained."""
    for rank in RANKS:
        for rate in RATES:
            for seed in SWEEP_SEEDS:
                yield _swept(runs, "all", rate, seed, {"rank": rank})


def layers_rows(runs: Runs) -> Iterator[Row]:
    """Held-out loss of adapters on some of the layers."""
    for name, adapter in LAYERS.items():
        for rate in LAYER_RATES:
            for seed in SWEEP_SEEDS:
                yield _swept(runs, name, rate, seed, adapter)


PARTS: dict[str, Callable[[Runs], Iterator[Row]]] = {
    "supervised": supervised_rows,
    "reinforcement": reinforcement_rows,
    "sweep": sweep_rows,
    "layers": layers_rows,
}


def check_supervised(rows: list[Row]) -> list[tuple[str, float, float, bool]]:
    worst = max(float(row["held_out_loss"]) for row in rows if row["step"] == "150")
    before = float(rows[0]["held_out_loss"])
    return [
        ("held-out loss before", before, 5.0, before > 5.0),
        ("held-out loss after 150 steps, worst seed", worst, 0.15, worst < 0.15),
    ]


def check_reinforcement(rows: list[Row]) -> list[tuple[str, float, float, bool]]:
    """Accuracy rises for every loss and seed; on policy the three losses are one."""
    last = [row for row in rows if row["step"] == str(REINFORCEMENT.steps)]
    before = float(rows[0]["held_out_accuracy"])
    found = [("greedy accuracy before", before, 0.4, before < 0.4)]
    for passes in (1, PASSES):
        for loss_fn in LOSSES:
            ends = [
                float(row["held_out_accuracy"])
                for row in last
                if (row["passes"], row["loss_fn"]) == (str(passes), loss_fn)
            ]
            name = f"{loss_fn}, {passes} updates a step: accuracy after, worst seed"
            found.append((name, min(ends), 0.85, min(ends) > 0.85))
    curves = {
        loss_fn: [
            (row["mean_reward"], row["held_out_accuracy"])
            for row in rows
            if (row["passes"], row["loss_fn"], row["seed"]) == ("1", loss_fn, str(SEEDS[0]))
        ]
        for loss_fn in LOSSES
    }
    same = sum(curve == curves[LOSSES[0]] for curve in curves.values())
    found.append(("losses with the same curve on policy", same, 3, same == 3))
    return found


def check_sweep(rows: list[Row]) -> list[tuple[str, float, float, bool]]:
    """The best rate is nearly the same for every rank."""
    found, rates = [], []
    for rank in RANKS:
        curve = mean_by([row for row in rows if row["rank"] == str(rank)], "learning_rate")
        rate, loss = best_rate(curve)
        rates.append(rate)
        inside = RATES[0] < rate < RATES[-1]
        found.append((f"rank {rank}: best rate (loss there {loss:.3f})", rate, RATES[-1], inside))
    spread = max(rates) / min(rates)
    found.append(("best rates, largest / smallest over the ranks", spread, 3.0, spread < 3.0))
    return found


def check_layers(rows: list[Row]) -> list[tuple[str, float, float, bool]]:
    """Adapters on the MLPs learn better than on attention alone, whatever its rank."""
    best = {
        name: min(mean_by([row for row in rows if row["layers"] == name], "learning_rate").values())
        for name in LAYERS
    }
    bound = best["attention"]
    return [
        (f"{name}: best held-out loss", loss, bound, loss <= bound or "attention" not in name)
        for name, loss in best.items()
    ]


CHECKS = {
    "supervised": check_supervised,
    "reinforcement": check_reinforcement,
    "sweep": check_sweep,
    "layers": check_layers,
}


def write_rows(path: Path, rows: Iterator[Row]) -> None:
    """Write rows as they come, so that a long part can be watched."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer: csv.DictWriter[str] | None = None
        for row in rows:
            if writer is None:
                writer = csv.DictWriter(file, list(row), lineterminator="\n")
                writer.writeheader()
            writer.writerow(row)
            file.flush()


def read_rows(path: Path) -> list[Row]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def measure(parts: list[str], folder: Path) -> dict[str, float]:
    """Run the parts on a server of their own; give the CPU seconds that each took."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    seconds = {}
    with tempfile.TemporaryDirectory() as data:
        for part in parts:
            start = resource.getrusage(resource.RUSAGE_CHILDREN)
            wall = time.perf_counter()
            with LocalServer(Path(data) / part, environment=environment) as server:
                write_rows(folder / f"{part}.csv", PARTS[part](Runs(server)))
            end = resource.getrusage(resource.RUSAGE_CHILDREN)
            seconds[part] = end.ru_utime + end.ru_stime - start.ru_utime - start.ru_stime
            print(
                f"{part}: {seconds[part]:.0f} CPU s of the server, "
                f"{time.perf_counter() - wall:.0f} s",
                flush=True,
            )
    return seconds


def judge(parts: list[str], folder: Path) -> list[Row]:
    """Compare the figures with what is stated, and print both."""
    found = []
    for part in parts:
        for name, value, bound, reached in CHECKS[part](read_rows(folder / f"{part}.csv")):
            print(f"| {name} | {value:.4g} | {bound:g} | {'yes' if reached else 'NO'} |")
            found.append(
                {"part": part, "figure": name, "value": float(f"{value:.4g}"), "reached": reached}
            )
    return found


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("parts", nargs="*", choices=[[], *PARTS], help="all if none is named")
    parser.add_argument("--output", type=Path, default=DOCS, help="folder for figures and plots")
    parser.add_argument("--draw", action="store_true", help="train nothing, draw and check only")
    chosen = parser.parse_args()
    parts = chosen.parts or list(PARTS)
    chosen.output.mkdir(parents=True, exist_ok=True)
    seconds = {} if chosen.draw else measure(parts, chosen.output)
    figures = judge(parts, chosen.output)
    for part in parts:
        text = PLOTS[part](read_rows(chosen.output / f"{part}.csv"))
        (chosen.output / f"{part}.svg").write_text(text, encoding="utf-8")
    if not chosen.draw and not chosen.parts:
        summary = {
            "command": "python benchmarks/learning.py",
            "tinkex": tinkex.__version__,
            "machine": platform.machine(),
            "server_cpu_seconds": {part: round(value) for part, value in seconds.items()},
            "figures": figures,
        }
        (chosen.output / "summary.json").write_text(json.dumps(summary, indent=1) + "\n")
    return 0 if all(row["reached"] for row in figures) else 1


if __name__ == "__main__":
    sys.exit(main())
