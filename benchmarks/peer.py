"""Training and sampling through the Tinker API: `tinkex serve` beside the JAX server skyrl-tx.

The peer is no dependency of ours. Install it into an environment of its own, then name that here:

    python3 -m venv PEER
    PEER/bin/pip install torch==2.13.0
    PEER/bin/pip install 'skyrl-tx[tinker]==0.3.0' tinker==0.13.1 'jax>=0.8,<1' flax optax
    python benchmarks/peer.py PEER

(torch first and pinned: a looser range fetches gigabytes of CUDA packages.) Both serve
`tinkex/sprout`, 5.25 million parameters, written as one float32 folder. Servers take turns, each
round starts both afresh, and `train_sample.py` drives them: 8 x 128 tokens a step at rank 8, then
16 prompts x 64 tokens. Three sides: our server with our client, our server with the peer's SDK, the
peer with its SDK. The best of the rounds counts for each figure. Memory is that of all processes of
a server at the end, their own peaks summed.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from tinkex.local import LocalServer

if TYPE_CHECKING:
    from collections.abc import Iterator

HERE = Path(__file__).resolve().parent
SPROUT = HERE.parent / "src" / "tinkex" / "engine" / "assets" / "sprout"
START_SECONDS = 180.0
GOALS = {
    "steps_per_s": ("steps/s", 3.0, True),
    "sampled_tokens_per_s": ("sampled tokens/s", 20.0, True),
    "first_step_s": ("first step, s", 1.0, False),
    "peak_mib": ("server's peak resident memory, MiB", 1024.0, False),
    "resident_mib": ("server's resident memory at the end, MiB", 1024.0, False),
    "ready_s": ("server ready after, s", None, False),
}
"""Figure: name, goal, and whether the goal is a ratio to the peer (more is better) or a bound."""


def write_model(folder: Path) -> None:
    """Write the base model as a float32 folder that transformers 4 and 5 both read."""
    model = AutoModelForCausalLM.from_pretrained(SPROUT, dtype=torch.float32)
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(SPROUT).save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    rope = config.get("rope_parameters", {})
    config |= {"rope_theta": rope.get("rope_theta", 10_000.0), "torch_dtype": "float32"}
    (folder / "config.json").write_text(json.dumps(config))
    tokenizer = json.loads((folder / "tokenizer_config.json").read_text())
    tokenizer["tokenizer_class"] = "PreTrainedTokenizerFast"
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer))


def memory(pid: int) -> dict[str, float]:
    """Sum present and peak resident memory over a process and its descendants, in MiB."""
    found = {"resident_mib": 0.0, "peak_mib": 0.0}
    parent = psutil.Process(pid)
    for process in [parent, *parent.children(recursive=True)]:
        with contextlib.suppress(psutil.NoSuchProcess, FileNotFoundError):
            found["resident_mib"] += process.memory_info().rss / 2**20
            for line in Path(f"/proc/{process.pid}/status").read_text().splitlines():
                if line.startswith("VmHWM"):
                    found["peak_mib"] += int(line.split()[1]) / 1024
    return found


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def skyrl(python: Path, model: Path, folder: Path) -> Iterator[tuple[str, int, float]]:
    """Run the peer; yield its URL, its process id and the seconds until it was ready.

    It starts its engine by `uv run ... -m MODULE`; a shim of that name runs the module with the
    peer's own interpreter, so that nothing is downloaded.
    """
    shim = folder / "bin" / "uv"
    shim.parent.mkdir(parents=True)
    shim.write_text(f'#!/bin/sh\nwhile [ "$1" != -m ]; do shift; done\nexec {python} "$@"\n')
    shim.chmod(0o755)
    port = free_port()
    command = [str(python), "-m", "tx.tinker.api", "--host", "127.0.0.1", "--port", str(port)]
    command += ["--base-model", str(model), "--checkpoints-base", str(folder / "checkpoints")]
    command += ["--database-url", f"sqlite:///{folder / 'tinker.db'}"]
    environment = {**os.environ, "PATH": f"{shim.parent}:{os.environ['PATH']}"}
    environment |= {"JAX_PLATFORMS": "cpu", "HF_HUB_OFFLINE": "1", "PYTHONPATH": ""}
    start = time.perf_counter()
    with (folder / "server.log").open("wb") as log:
        server = subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT)
        try:
            url = f"http://127.0.0.1:{port}"
            while not _answers(f"{url}/api/v1/healthz"):
                if server.poll() is not None or time.perf_counter() - start > START_SECONDS:
                    sys.exit((folder / "server.log").read_text()[-4000:])
                time.sleep(0.1)
            yield url, server.pid, time.perf_counter() - start
        finally:
            _stop(server)


def _stop(server: subprocess.Popen[bytes]) -> None:
    """End the peer and what it started."""
    if server.poll() is None:
        processes = psutil.Process(server.pid).children(recursive=True)
        server.terminate()
        _, alive = psutil.wait_procs([*processes, psutil.Process(server.pid)], timeout=20)
        for process in alive:
            process.kill()
        server.wait()


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=1) as reply:  # noqa: S310 - our own loopback URL
            return bool(reply.status == 200)
    except OSError:
        return False


def drive(python: Path, sdk: str, url: str, key: str, model: str, steps: int) -> dict[str, Any]:
    """Run `train_sample.py` in an interpreter that has the SDK."""
    command = [str(python), str(HERE / "train_sample.py"), "--sdk", sdk, "--base-url", url]
    command += ["--api-key", key, "--base-model", model, "--steps", str(steps)]
    environment = {**os.environ, "TINKER_TELEMETRY": "0", "HF_HUB_OFFLINE": "1"}
    if sdk == "tinker":
        environment["PYTHONPATH"] = ""
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, check=False, timeout=600
    )
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}\n{done.stderr[-4000:]}")
    return dict(json.loads(done.stdout))


def ours(python: Path, sdk: str, model: Path, folder: Path, steps: int) -> dict[str, Any]:
    arguments = ["--base-model", str(model), "--alias", f"sprout={model}"]
    with LocalServer(folder, arguments) as server:
        login = server.login
        found = drive(python, sdk, login["base_url"], login["api_key"], "sprout", steps)
        return {**found, **memory(server.pid), "ready_s": server.start_seconds}


def theirs(python: Path, model: Path, folder: Path, steps: int) -> dict[str, Any]:
    with skyrl(python, model, folder) as (url, pid, ready):
        found = drive(python, "tinker", url, "tml-peer", str(model), steps)
        return {**found, **memory(pid), "ready_s": ready}


def table(rounds: dict[str, list[dict[str, Any]]]) -> list[str]:
    """Give the best of the rounds of each side, the ratio of ours to the peer's, and the goals."""
    lines = ["| measure | " + " | ".join(rounds) + " | ours / peer | goal |"]
    lines.append("|---" * (len(rounds) + 3) + "|")
    for figure, (name, goal, more) in GOALS.items():
        pick = max if more else min
        best = {side: pick(one[figure] for one in found) for side, found in rounds.items()}
        cells = [f"{value:,.3g}" if value < 100 else f"{value:,.0f}" for value in best.values()]
        mine, *_, peer = best.values()
        said = "" if goal is None else f">= {goal:g}x" if more else f"< {goal:g}"
        lines.append(f"| {name} | {' | '.join(cells)} | {mine / peer:.3g} | {said} |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("peer", type=Path, help="the peer's virtual environment")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=20, help="training steps after the first")
    chosen = parser.parse_args()
    python = (chosen.peer / "bin" / "python").absolute()
    own = Path(sys.executable)
    rounds: dict[str, list[dict[str, Any]]] = {
        "tinkex, its client": [],
        "tinkex, SDK 0.13.1": [],
        "skyrl-tx, SDK 0.13.1": [],
    }
    with tempfile.TemporaryDirectory() as temporary:
        model = Path(temporary) / "sprout"
        write_model(model)
        for turn in range(chosen.rounds):
            makers = (
                lambda at: ours(own, "tinkex", model, at, chosen.steps),
                lambda at: ours(python, "tinker", model, at, chosen.steps),
                lambda at: theirs(python, model, at, chosen.steps),
            )
            for side, make in zip(rounds, makers, strict=True):
                one = make(Path(temporary) / f"{turn} {len(side)}")
                rounds[side].append(one)
                shown = {figure: round(one[figure], 3) for figure in GOALS}
                print(f"round {turn + 1}, {side}: {json.dumps(shown)}", file=sys.stderr, flush=True)
    print("\n".join(table(rounds)))


if __name__ == "__main__":
    main()
