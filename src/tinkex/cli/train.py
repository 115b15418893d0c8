"""`tinkex train`: parses its options, shows the run; the run itself is `tinkex.sft`."""

from __future__ import annotations

import json
import signal
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rich.progress import Progress, TaskID

    from tinkex.sft.loop import TrainStep
    from tinkex.sft.run import Checkpoint, RunPlan, RunSettings


def train(
    context: typer.Context,
    data: Annotated[
        Path, typer.Argument(help='JSONL: {"messages": [{"role", "content"}, ...]} a line.')
    ],
    model: Annotated[
        str, typer.Option("--model", "--base-model", help="Base model of the server.")
    ] = "tinkex/sprout",
    output: Annotated[
        Path, typer.Option(help="Folder of the run: settings, metrics, checkpoints.")
    ] = Path("tinkex-train"),
    name: Annotated[str, typer.Option(help="Beginning of the checkpoints' names.")] = "train",
    epochs: Annotated[int, typer.Option(help="Times each example is seen.")] = 3,
    batch_size: Annotated[int, typer.Option(help="Examples in a step.")] = 8,
    rank: Annotated[int, typer.Option(help="Rank of the LoRA adapter.")] = 32,
    learning_rate: Annotated[
        float | None,
        typer.Option(help="Peak rate of Adam; by default the one recommended for the model."),
    ] = None,
    schedule: Annotated[str, typer.Option(help="linear, cosine or constant.")] = "linear",
    max_length: Annotated[
        int | None, typer.Option(help="Tokens kept of an example; default: the model's context.")
    ] = None,
    eval_split: Annotated[
        float, typer.Option(help="Share of the examples kept back to evaluate on.")
    ] = 0.05,
    evaluate_every: Annotated[
        int, typer.Option(help="Steps between evaluations; 0: at the end.")
    ] = 0,
    save_every: Annotated[int, typer.Option(help="Steps between checkpoints; 0: at the end.")] = 0,
    seed: Annotated[int, typer.Option(help="Of the adapter and the order of the examples.")] = 0,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from the last checkpoint in the folder.")
    ] = False,
    local: Annotated[
        bool, typer.Option("--local", help="Start a server of its own, inside the folder.")
    ] = False,
    json_lines: Annotated[
        bool, typer.Option("--json", help="Print one JSON object a line instead of a bar.")
    ] = False,
) -> None:
    """Fine-tune an adapter on conversations, with checkpoints to sample from and to go on from."""
    from tinkex.cli.connect import invocation
    from tinkex.sft.run import RunSettings

    settings = RunSettings(
        data=data,
        output=output,
        base_model=model,
        name=name,
        rank=rank,
        learning_rate=learning_rate,
        epochs=epochs,
        batch_size=batch_size,
        schedule=_schedule(schedule),
        max_length=max_length,
        eval_split=eval_split,
        evaluate_every=evaluate_every,
        save_every=save_every,
        seed=seed,
    )
    json_lines = json_lines or invocation(context).form == "json"
    _run(context, settings, resume=resume, local=local, json_lines=json_lines)


def _run(
    context: typer.Context, settings: RunSettings, *, resume: bool, local: bool, json_lines: bool
) -> None:
    """Train, and show it; an interrupted run ends with code 130 once its step is saved."""
    from tinkex._clock import SystemClock
    from tinkex.cli.connect import service_client
    from tinkex.sft.run import run

    folder = settings.output / "server"
    interrupt = _Interrupt()
    with (
        service_client(context, folder if local else None) as service,
        _json_lines() if json_lines else _progress() as show,
        interrupt,
    ):

        def begin(plan: RunPlan) -> None:
            show.plan(plan)
            interrupt.finish_the_step()

        last = run(
            service,
            settings,
            clock=SystemClock(),
            resume=resume,
            on_plan=begin,
            on_step=show.step,
            on_checkpoint=show.checkpoint,
            stop=lambda: interrupt.asked,
        )
    if interrupt.asked and last.step < show.steps:
        show.stopped(last)
        raise typer.Exit(130)
    show.end(last, f" --local {folder}" if local else "")


def _schedule(name: str) -> Literal["linear", "cosine", "constant"]:
    match name:
        case "linear" | "cosine" | "constant":
            return name
        case _:
            raise typer.BadParameter(
                f"{name!r} is none of linear, cosine, constant", param_hint="--schedule"
            )


class _Interrupt:
    """Lets a run that is interrupted finish its step and save it; a second Ctrl-C ends it at once.

    A signal handler, as an exception in the middle of a step would leave open which of its
    requests are on their way, and with that which weights a checkpoint would hold.
    """

    def __init__(self) -> None:
        self.asked = False
        self._before = signal.getsignal(signal.SIGINT)

    def __enter__(self) -> None:
        """Change nothing yet: before the first step there is nothing to save."""

    def __exit__(self, *_error: object) -> None:
        signal.signal(signal.SIGINT, self._before)

    def finish_the_step(self) -> None:
        """From now on the first Ctrl-C is a wish."""
        signal.signal(signal.SIGINT, self._note)

    def _note(self, _number: int, _frame: object) -> None:
        from tinkex.cli.output import remark

        self.asked = True
        signal.signal(signal.SIGINT, self._before)
        remark("\nFinishing this step and saving it; Ctrl-C again ends at once, without.")


@contextmanager
def _json_lines() -> Iterator[_JsonLines]:
    yield _JsonLines()


class _JsonLines:
    """One object a line, told apart by `event`."""

    steps = 0

    def plan(self, plan: RunPlan) -> None:
        self.steps = plan.steps
        self._line("plan", asdict(plan))

    def step(self, step: TrainStep) -> None:
        self._line("step", asdict(step))

    def checkpoint(self, checkpoint: Checkpoint) -> None:
        self._line("checkpoint", asdict(checkpoint))

    def end(self, last: Checkpoint, _place: str) -> None:
        self._line("end", asdict(last))

    def stopped(self, last: Checkpoint) -> None:
        self._line("stopped", asdict(last))

    def _line(self, event: str, values: dict[str, object]) -> None:
        print(json.dumps({"event": event, **values}), flush=True)


@contextmanager
def _progress() -> Iterator[_Progress]:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        Progress,
        SpinnerColumn,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    console = Console(highlight=False)
    columns = (
        SpinnerColumn(),
        BarColumn(bar_width=24),
        TextColumn("{task.completed}/{task.total}"),
        TextColumn("{task.fields[figures]}"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        yield _Progress(bar)


_PLAIN_LINES = 20
"""Steps that are shown of a run whose output is no terminal."""


class _Progress:
    """A live bar on a terminal; elsewhere a line every so many steps."""

    def __init__(self, bar: Progress) -> None:
        self.steps = 0
        self._bar = bar
        self._task: TaskID | None = None

    def plan(self, plan: RunPlan) -> None:
        self.steps = plan.steps
        told = (
            f"{plan.examples} examples, {plan.steps} steps, learning rate {plan.learning_rate:.2e}"
        )
        if plan.held_out:
            told += f"; {plan.held_out} examples kept back"
        if plan.cut:
            told += f"; {plan.cut} cut at their end, as they are too long (--max-length)"
        if plan.first_step:
            told += f"; going on after step {plan.first_step}"
        self._bar.console.print(told, soft_wrap=True)
        self._task = self._bar.add_task(
            "train", total=plan.steps, completed=plan.first_step, figures=""
        )

    def step(self, step: TrainStep) -> None:
        assert self._task is not None
        figures = f"loss {step.loss:.4f}  {step.tokens / max(step.seconds, 1e-9):,.0f} tokens/s"
        self._bar.update(self._task, completed=step.step, figures=figures)
        if step.eval_loss is not None:
            self._bar.console.print(f"step {step.step}: held-out loss {step.eval_loss:.4f}")
        every = max(1, step.total // _PLAIN_LINES)
        if self._bar.disable and (step.step % every == 0 or step.step in {1, step.total}):
            self._bar.console.print(f"step {step.step}/{step.total}  {figures}")

    def checkpoint(self, checkpoint: Checkpoint) -> None:
        self._bar.console.print(
            f"step {checkpoint.step}: saved {checkpoint.state_path}", soft_wrap=True
        )

    def stopped(self, last: Checkpoint) -> None:
        print(f"Stopped after step {last.step} of {self.steps}: --resume goes on from there.")

    def end(self, last: Checkpoint, place: str) -> None:
        print(
            f"\nWeights to sample from: {last.sampler_path}\n"
            f"  tinkex sample --model-path {last.sampler_path}{place} 'YOUR PROMPT'"
        )
