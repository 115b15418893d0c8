"""A training run that leaves its traces in a folder and can go on from them.

    OUTPUT/settings.json       what was asked for
    OUTPUT/metrics.jsonl       one line for each step
    OUTPUT/checkpoints.jsonl   one line for each checkpoint: its step and its two tinker paths

Owns the folder and how a run is taken up again; the loop is `loop`'s.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from tinkex.errors import ConfigurationError, InputError
from tinkex.sft import conversations, loop, rendering
from tinkex.types.tinker_path import check_part

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tinkex import types
    from tinkex._clock import Clock
    from tinkex.client.service import ServiceClient
    from tinkex.client.training import TrainingClient
    from tinkex.sft.loop import TrainSettings, TrainStep


_DIGEST = "data_sha256"


@dataclass(frozen=True, slots=True)
class RunSettings:
    """What a run is made of."""

    data: Path
    """JSONL file of conversations."""
    output: Path
    """Folder of the run."""
    base_model: str
    name: str = "train"
    """Beginning of the names of its checkpoints."""
    rank: int = 32
    learning_rate: float | None = None
    """None takes the recommended one."""
    epochs: int = 1
    batch_size: int = 8
    schedule: loop.Schedule = "linear"
    max_length: int | None = None
    """Tokens kept of each example; None is the model's context."""
    eval_split: float = 0.0
    """Share of the conversations kept back for evaluation."""
    evaluate_every: int = 0
    save_every: int = 0
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A saved moment of a run."""

    step: int
    state_path: str
    """To go on training."""
    sampler_path: str
    """To sample from."""


@dataclass(frozen=True, slots=True)
class RunPlan:
    """What is about to happen, for whoever shows it."""

    examples: int
    held_out: int
    steps: int
    first_step: int
    """Steps done already, by the run that this one goes on from."""
    learning_rate: float
    cut: int = 0
    """Examples that lose their ends, as they are longer than `max_length`."""


def run(
    service: ServiceClient,
    settings: RunSettings,
    *,
    clock: Clock,
    resume: bool = False,
    on_plan: Callable[[RunPlan], None] = lambda _: None,
    on_step: Callable[[TrainStep], None] = lambda _: None,
    on_checkpoint: Callable[[Checkpoint], None] = lambda _: None,
    stop: Callable[[], bool] = lambda: False,
) -> Checkpoint:
    """Train, and return the last checkpoint.

    Args:
        service: the server to train on.
        settings: data, model and numbers.
        clock: measures the steps.
        resume: go on from the last checkpoint in the output folder, optimiser included.
        on_plan: called once, before the first step.
        on_step: called after each step.
        on_checkpoint: called after each checkpoint.
        stop: asked once a step; True ends the run after it, with a checkpoint to resume from.

    Raises:
        InputError: the data cannot be used, there is nothing to resume, the folder holds another
            run, or the settings to resume with differ from those it began with.
        ConfigurationError: a number is out of range.
    """
    _check(settings)
    content = conversations.read(settings.data)
    found = conversations.parsed(content, settings.data)
    train_part, held_part = conversations.split(found, settings.eval_split, settings.seed)
    model = _model(service, settings.base_model)
    numbers = _numbers(settings, model.hidden_size)
    folder = _Folder(settings.output)
    last: Checkpoint | None = None
    if resume:
        last = folder.take_up(_remembered(settings, content))
    else:
        folder.begin(_remembered(settings, content))
    client = _client(service, settings, last)
    tokenizer = client.get_tokenizer()
    max_length = model.max_context_length if settings.max_length is None else settings.max_length

    examples, cut = _rendered(train_part, tokenizer, max_length)
    held_out, cut_too = _rendered(held_part, tokenizer, max_length)
    plan = RunPlan(
        examples=len(examples),
        held_out=len(held_out),
        steps=loop.steps_in(len(examples), numbers),
        first_step=last.step if last else 0,
        learning_rate=numbers.learning_rate,
        cut=cut + cut_too,
    )
    on_plan(plan)

    def step_done(step: TrainStep) -> None:
        folder.append("metrics.jsonl", asdict(step))
        on_step(step)

    def save(step: int) -> None:
        nonlocal last
        last = _save(client, settings.name, step)
        folder.append("checkpoints.jsonl", asdict(last))
        on_checkpoint(last)

    loop.train(
        client,
        examples,
        numbers,
        clock=clock,
        held_out=held_out,
        first_step=plan.first_step,
        on_step=step_done,
        on_save=save,
        stop=stop,
    )
    assert last is not None  # the last step saves
    return last


def _rendered(
    part: list[conversations.Conversation], tokenizer: Any, max_length: int | None
) -> tuple[list[types.Datum], int]:
    """Make data of conversations; returns how many were cut to `max_length`, too."""
    cut = itertools.count()
    data = [d for one in part for d in rendering.datums(one, tokenizer, max_length, cut.__next__)]
    return data, next(cut)


def _check(settings: RunSettings) -> None:
    """Refuse what would only fail once the work is done, or do something else in silence."""
    check_part(_checkpoint_name(settings.name, 0), "checkpoint name")
    if settings.max_length is not None and settings.max_length < 2:
        raise ConfigurationError([f"max_length must be at least 2, not {settings.max_length}"])


def _numbers(settings: RunSettings, hidden_size: int | None) -> TrainSettings:
    rate = settings.learning_rate
    return loop.TrainSettings(
        learning_rate=loop.recommended_learning_rate(hidden_size) if rate is None else rate,
        epochs=settings.epochs,
        batch_size=settings.batch_size,
        schedule=settings.schedule,
        evaluate_every=settings.evaluate_every,
        save_every=settings.save_every,
        seed=settings.seed,
    )


def _client(
    service: ServiceClient, settings: RunSettings, last: Checkpoint | None
) -> TrainingClient:
    if last is not None:
        return service.create_training_client_from_state_with_optimizer(last.state_path).result()
    return service.create_lora_training_client(
        settings.base_model, rank=settings.rank, seed=settings.seed
    ).result()


def _model(service: ServiceClient, name: str) -> types.SupportedModel:
    models = service.server_capabilities().result().supported_models
    for model in models:
        if model.model_name == name:
            return model
    names = ", ".join(sorted(model.model_name for model in models if model.model_name))
    raise InputError(f"The server has no base model {name!r}. It has: {names}.")


def _checkpoint_name(name: str, step: int) -> str:
    return f"{name}-{step:06d}"


def _save(client: TrainingClient, name: str, step: int) -> Checkpoint:
    title = _checkpoint_name(name, step)
    state = client.save_state(title, overwrite=True)
    weights = client.save_weights_for_sampler(title)
    return Checkpoint(step, state.result().path, weights.result().path)


def _remembered(settings: RunSettings, content: bytes) -> dict[str, Any]:
    """Return what must be the same when a run is taken up again: `content` is the data's."""
    remembered = asdict(settings)
    for name in ("output", "evaluate_every", "save_every", "name"):
        del remembered[name]
    digest = hashlib.sha256(content).hexdigest()
    return {**remembered, "data": str(settings.data.resolve()), _DIGEST: digest}


class _Folder:
    """The traces of one run."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def begin(self, remembered: dict[str, Any]) -> None:
        """Start a new run here.

        Raises:
            InputError: there is one already.
        """
        if (self._path / "checkpoints.jsonl").exists():
            raise InputError(
                f"{self._path} holds the checkpoints of another run. Go on with it (--resume), or "
                "choose another folder (--output)."
            )
        self._path.mkdir(parents=True, exist_ok=True)
        (self._path / "metrics.jsonl").unlink(missing_ok=True)
        text = json.dumps(remembered, indent=2) + "\n"
        (self._path / "settings.json").write_text(text, encoding="utf-8")

    def take_up(self, remembered: dict[str, Any]) -> Checkpoint:
        """Find where a run stopped; steps after its last checkpoint are forgotten.

        Raises:
            InputError: there is none, or it was another run.
        """
        try:
            began = json.loads((self._path / "settings.json").read_bytes())
            last = Checkpoint(**self._whole_lines("checkpoints.jsonl")[-1])
        except (OSError, ValueError, TypeError, IndexError) as error:
            raise InputError(
                f"{self._path} holds no checkpoint to resume from ({type(error).__name__}). "
                "Start afresh without --resume."
            ) from error
        # Which steps are done means something for the same examples alone, wherever they lie now.
        # Who began with an earlier version wrote down no more than the path.
        unimportant = "data" if _DIGEST in began else _DIGEST
        different = sorted(
            name
            for name in remembered
            if name != unimportant and began.get(name) != remembered[name]
        )
        if different == [_DIGEST]:
            raise InputError(
                f"The run in {self._path} began with other contents of {began.get('data')}: which "
                "of its examples were trained on is not known any more. Give the file as it was, "
                "or start a run in another folder (--output)."
            )
        if different:
            told = ", ".join(f"{name} was {began.get(name)!r}" for name in different)
            raise InputError(f"The run in {self._path} began with other settings: {told}.")
        self._forget_after(last.step)
        return last

    def append(self, name: str, line: dict[str, Any]) -> None:
        """Add a line to one of the files."""
        with (self._path / name).open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")

    def _forget_after(self, step: int) -> None:
        """Forget steps, and what is left of lines for which the disk had no room."""
        for name in ("metrics.jsonl", "checkpoints.jsonl"):
            path = self._path / name
            if path.exists():
                kept = [json.dumps(one) for one in self._whole_lines(name) if one["step"] <= step]
                path.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")

    def _whole_lines(self, name: str) -> list[dict[str, Any]]:
        found = []
        for line in (self._path / name).read_text(encoding="utf-8").splitlines():
            try:
                value = json.loads(line)
            except ValueError:
                continue
            if isinstance(value, dict) and "step" in value:
                found.append(value)
        return found
