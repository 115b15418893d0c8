"""The engine: one base model, many adapters, training and sampling.

The room's front. Owns which request goes where, and nothing of how it is done. Synchronous and not
thread-safe: one thread owns it, alternating `TrainingTask.run_microbatch` and `step`.

Everything a caller sends is checked before anything is computed (`InputError`); a failure of ours
is `EngineError`. Either way weights, optimiser state, gradients and other requests stay as they
were.
"""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING
from weakref import WeakSet

import torch

from tinkex._clock import SystemClock
from tinkex.engine.adapters.adapter import Adapter, adapter_bytes
from tinkex.engine.adapters.pool import AdapterPool, MemoryLevel, WeightsSource
from tinkex.engine.adapters.run_state import RunState, copy_state, read_lora, read_state
from tinkex.engine.adapters.spill import SpillFolder
from tinkex.engine.attempts import computing
from tinkex.engine.config import EngineConfig
from tinkex.engine.device import memory_bytes
from tinkex.engine.files.checkpoint import (
    WEIGHTS,
    CheckpointContents,
    CheckpointCopy,
    CheckpointInfo,
    checkpoint_lora_config,
    copy_checkpoint,
    optimizer_of,
    read_checkpoint,
    weights_of,
)
from tinkex.engine.lora.weights import initial_weights, parameter_count
from tinkex.engine.models.loader import BaseModel, load_base_model, load_for_engine
from tinkex.engine.models.runner import ModelRunner
from tinkex.engine.sampling.generation import Generator
from tinkex.engine.sampling.sequence import (
    JobState,
    SampleFinished,
    SampleJob,
    SamplingRule,
    check_job,
    check_prompt_targets,
    check_result_size,
    check_resume,
    check_sampling,
    token_limit,
)
from tinkex.engine.sampling.stops import stop_rule
from tinkex.engine.training.batching import BatchLimits, prompt_tokens, training_sequences
from tinkex.engine.training.losses import custom_loss_call, loss_call
from tinkex.engine.training.optimizers import ADAMW, find_optimizer
from tinkex.engine.training.trainer import TrainerSettings, TrainingTask, run_together
from tinkex.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from torch import Tensor

    from tinkex._clock import Clock
    from tinkex.engine.lora.weights import LoraWeights
    from tinkex.engine.training.graph_loss import GraphLoss
    from tinkex.types import Datum, ForwardBackwardOutput, LoraConfig, OptimParams

__all__ = [
    "BaseModel",
    "CheckpointInfo",
    "Engine",
    "EngineConfig",
    "SampleFinished",
    "SampleJob",
    "TrainingTask",
    "checkpoint_lora_config",
    "load_base_model",
    "load_for_engine",
]


class Engine:
    """Trains and samples adapters of one base model; takes the model's modules over."""

    def __init__(
        self, base: BaseModel, config: EngineConfig | None = None, *, clock: Clock | None = None
    ) -> None:
        self.base = base
        self._clock = clock or SystemClock()
        self.config = config = config or EngineConfig()
        if config.threads is not None:
            torch.set_num_threads(config.threads)
        self.context_length = min(
            base.max_context_length, config.max_context_length or base.max_context_length
        )
        self._limits = BatchLimits(base.vocab_size, self.context_length, config.max_request_tokens)
        self._runner = ModelRunner(base, config)
        self._generator = Generator(self._runner, config)
        self._tasks: WeakSet[TrainingTask] = WeakSet()
        """Those that somebody still means to run; an abandoned one goes by itself."""
        folder = config.spill_directory
        self._spill = None if folder is None else SpillFolder(folder, config.spill_bytes)
        self._pool = AdapterPool(
            _memory_levels(self._runner.device, config),
            self._spill,
            max_adapters=config.max_adapters,
            max_samplers=config.max_samplers,
            in_use=self._weights_in_use,
            now=self._clock.monotonic,
        )

    def close(self) -> None:
        """Erase what was moved to the disk, and let its folder go; the engine is of no use then."""
        if self._spill is not None:
            self._spill.close()

    def _weights_in_use(self) -> set[int]:
        training = {id(task.weights) for task in self._tasks if not task.finished}
        return training | self._generator.weights_in_use()

    # --- adapters -------------------------------------------------------------------------------

    @computing("making an adapter")
    def create_adapter(self, adapter_id: str, lora: LoraConfig, optimizer: str = ADAMW) -> None:
        """Add an adapter with fresh weights; without `lora.seed` they are drawn anew each time.

        Args:
            adapter_id: its name.
            lora: rank, seed, and which layers.
            optimizer: name of its optimiser, `adamw` or `dimuon`.

        Raises:
            InputError: the name is taken, the rank out of bounds, no layer chosen, or the optimiser
                unknown.
            EngineError: no room for another adapter.
        """
        find_optimizer(optimizer)
        if self._pool.optimizer_type(adapter_id) is not None:
            raise InputError(f"adapter {adapter_id!r} exists already; choose another name")
        self._check_rank(lora.rank)
        shapes = self._runner.shapes(lora)
        parameters = parameter_count(shapes, lora.rank)
        self._pool.make_room_for_adapter(adapter_id, adapter_bytes(parameters, optimizer))
        seed = secrets.randbits(63) if lora.seed is None else lora.seed
        weights = initial_weights(
            shapes, lora.rank, self.config.lora_alpha, seed, self._runner.device
        )
        self._pool.put_adapter(adapter_id, Adapter(lora, weights, optimizer))

    def remove_adapter(self, adapter_id: str) -> None:
        """Forget an adapter, if there; its samplers stay."""
        self._pool.remove_adapter(adapter_id)

    def adapter_config(self, adapter_id: str) -> LoraConfig:
        """Give the configuration of an adapter.

        Raises:
            InputError: there is none of this name.
        """
        return self._pool.adapter_config(adapter_id)

    @computing("moving idle adapters out")
    def move_idle_out(self, idle_s: float, most: int) -> int:
        """Move at most so many adapters and samplers that were not used for so long to the disk.

        Returns:
            How many moved; 0 without a disk behind memory.
        """
        return self._pool.move_idle_out(idle_s, most)

    def places(self) -> dict[tuple[str, str], tuple[int, int]]:
        """Count adapters ("adapter") and samplers ("sampler") by where they lie: number, bytes."""
        return self._pool.places()

    # --- training -------------------------------------------------------------------------------

    @computing("preparing forward_backward")
    def begin_forward_backward(
        self,
        adapter_id: str,
        data: Sequence[Datum],
        loss_fn: str,
        loss_fn_config: Mapping[str, float | str] | None = None,
        *,
        forward_only: bool = False,
        graph: GraphLoss | None = None,
    ) -> TrainingTask:
        """Check a request and give the task that computes it.

        A `graph` is a user's own loss; it takes the place of `loss_fn`.

        The gradient is added to the adapter's when the task ends; the adapter's weights are read at
        each microbatch, so no `optim_step` of this adapter may come in between.

        Raises:
            InputError: anything wrong with the request, by datum and key.
        """
        adapter = self._pool.adapter(adapter_id)
        call = loss_call(loss_fn, loss_fn_config) if graph is None else custom_loss_call(graph)
        task = TrainingTask(
            self._runner,
            adapter,
            training_sequences(data, call, self._limits),
            call,
            TrainerSettings(
                self.config.microbatch_tokens,
                self.config.row_multiple,
                self.config.custom_loss_seconds,
                self._clock,
            ),
            forward_only=forward_only,
        )
        self._tasks.add(task)
        return task

    def run_together(self, tasks: Sequence[TrainingTask]) -> None:
        """Run the next microbatch of several tasks of different adapters in one forward.

        Each must be one that `joins`. What goes wrong with one is raised by its own next
        `run_microbatch` or `result`; the others do not notice.
        """
        run_together(tasks)

    def forward_backward(
        self,
        adapter_id: str,
        data: Sequence[Datum],
        loss_fn: str,
        loss_fn_config: Mapping[str, float | str] | None = None,
        *,
        forward_only: bool = False,
        graph: GraphLoss | None = None,
    ) -> ForwardBackwardOutput:
        """Run a whole request.

        Raises:
            InputError: anything wrong with the request, or a loss that overflows on it.
            EngineError: the computation failed.
        """
        task = self.begin_forward_backward(
            adapter_id, data, loss_fn, loss_fn_config, forward_only=forward_only, graph=graph
        )
        while not task.run_microbatch():
            pass
        return task.result()

    @computing("optim_step")
    def optim_step(self, adapter_id: str, params: OptimParams) -> dict[str, float]:
        """Apply the accumulated gradient with the adapter's optimiser and zero it.

        Without a gradient the step is taken with zeros: momentum and weight decay still act.

        Returns:
            `grad_norm` (global norm before clipping) and `learning_rate`.

        Raises:
            InputError: hyperparameters of another optimiser or out of range, or a step that would
                not be finite; weights and optimiser state are then unchanged.
            EngineError: the computation failed; the gradient is kept too.
        """
        return self._pool.adapter(adapter_id).step(params)

    # --- checkpoints ----------------------------------------------------------------------------

    def save_adapter(self, adapter_id: str, directory: Path, *, optimizer: bool) -> None:
        """Write an adapter in PEFT's format, with its optimiser state if asked; see `checkpoint`.

        Raises:
            InputError: there is no such adapter.
            EngineError: the disk refused.
        """
        self.copy_adapter(adapter_id, optimizer=optimizer).write(directory)

    @computing("saving")
    def copy_adapter(self, adapter_id: str, *, optimizer: bool) -> CheckpointCopy:
        """Copy an adapter, to be written in another thread: a disk may take its time.

        Raises:
            InputError: there is no such adapter.
        """
        adapter = self._pool.adapter(adapter_id)
        return copy_checkpoint(
            base_model=self.base.name,
            lora=adapter.lora,
            weights=adapter.weights,
            optimizer=adapter.state_to_save() if optimizer else None,
            optimizer_type=adapter.optimizer_type,
            numerics=self.numerics(),
        )

    @computing("loading")
    def load_adapter(
        self,
        adapter_id: str,
        checkpoint: Path | CheckpointContents,
        *,
        optimizer: bool,
        optimizer_type: str | None = None,
    ) -> LoraConfig:
        """Create or replace an adapter from a checkpoint; a gradient not yet applied is dropped.

        Args:
            adapter_id: its name.
            checkpoint: its folder, or what `read_checkpoint` read of it in another thread, as a
                disk may take its time.
            optimizer: whether the optimiser's state is loaded too.
            optimizer_type: name of the optimiser that it is to have; None keeps that of the adapter
                it replaces, or else the checkpoint's.

        Raises:
            InputError: no checkpoint there, one of another base model, without optimiser state, or
                with that of another optimiser.
            EngineError: it is damaged, or there is no room.
        """
        contents = self._contents(checkpoint, optimizer=optimizer)
        info = contents.info
        chosen = optimizer_type or self._pool.optimizer_type(adapter_id) or info.optimizer_type
        find_optimizer(chosen)
        if optimizer and info.has_optimizer and chosen != info.optimizer_type:
            raise InputError(
                f"checkpoint {contents.name} has the state of the optimizer "
                f"{info.optimizer_type!r}, not of {chosen!r}: load it without the optimiser"
            )
        shapes = self._runner.shapes(info.lora)
        parameters = parameter_count(shapes, info.lora.rank)
        self._pool.make_room_for_adapter(adapter_id, adapter_bytes(parameters, chosen))
        weights = weights_of(contents, shapes, self._runner.device)
        adapter = Adapter(info.lora, weights, chosen)
        if optimizer:
            adapter.optimizer = optimizer_of(contents, adapter.weights)
        self._pool.put_adapter(adapter_id, adapter)
        return info.lora

    # --- the state of a run ---------------------------------------------------------------------

    @computing("copying a state")
    def adapter_state(self, adapter_id: str) -> RunState:
        """Copy everything that an adapter's future depends on, the gradient included.

        Raises:
            InputError: there is no such adapter.
        """
        adapter = self._pool.adapter(adapter_id)
        return copy_state(adapter, base_model=self.base.name, numerics=self.numerics())

    @computing("restoring a state")
    def restore_adapter(self, adapter_id: str, directory: Path) -> tuple[LoraConfig, str]:
        """Create or replace an adapter from what `write_state` wrote of one.

        Returns:
            Its configuration, and the name of its optimiser.

        Raises:
            DamagedDataError: the files are damaged or not there.
            InputError: the rank is above what this engine takes.
            EngineError: they are of another base model, or there is no room.
        """
        lora, kind = read_lora(directory, self.base.name)
        self._check_rank(lora.rank)
        shapes = self._runner.shapes(lora)
        parameters = parameter_count(shapes, lora.rank)
        self._pool.make_room_for_adapter(adapter_id, adapter_bytes(parameters, kind))
        device = self._runner.device
        adapter = read_state(directory, shapes, base_model=self.base.name, device=device)
        self._pool.put_adapter(adapter_id, adapter)
        return lora, kind

    # --- samplers -------------------------------------------------------------------------------

    @computing("taking a snapshot")
    def snapshot_sampler(self, sampler_id: str, adapter_id: str) -> None:
        """Keep a copy of an adapter's present weights for sampling.

        Raises:
            InputError: there is no such adapter.
            EngineError: no room.
        """
        self._pool.put_sampler(sampler_id, self._pool.adapter(adapter_id).weights.frozen_copy())

    @computing("saving")
    def copy_sampler(self, sampler_id: str, lora: LoraConfig) -> CheckpointCopy:
        """Copy a sampler's weights, to be written for `load_sampler` in another thread.

        Args:
            sampler_id: its name.
            lora: configuration of the adapter that it was taken from.

        Raises:
            InputError: there is no such sampler.
        """
        return copy_checkpoint(
            base_model=self.base.name,
            lora=lora,
            weights=self._pool.sampler(sampler_id),
            optimizer=None,
            optimizer_type=ADAMW,
            numerics=self.numerics(),
        )

    @computing("loading")
    def load_sampler(self, sampler_id: str, checkpoint: Path | CheckpointContents) -> None:
        """Load a checkpoint's weights for sampling.

        Args:
            sampler_id: its name.
            checkpoint: as of `load_adapter`.

        Raises:
            InputError: no checkpoint there, or one of another base model.
            EngineError: it is damaged, or there is no room.
        """
        contents = self._contents(checkpoint, optimizer=False)
        shapes = self._runner.shapes(contents.info.lora)
        parameters = parameter_count(shapes, contents.info.lora.rank)
        self._pool.make_room_for_sampler(sampler_id, 4 * parameters)
        name, info, device = contents.name, contents.info, self._runner.device

        def make(tensors: Mapping[str, Tensor]) -> LoraWeights:
            return weights_of(CheckpointContents(name, info, {WEIGHTS: tensors}), shapes, device)

        source = None if contents.saved is None else WeightsSource(contents.saved, make)
        self._pool.put_sampler(sampler_id, make(contents.tensors[WEIGHTS]), source)

    def remove_sampler(self, sampler_id: str) -> None:
        """Forget a sampler, if there; samples that run with it go on."""
        self._pool.remove_sampler(sampler_id)
        self._generator.sweep()

    # --- sampling -------------------------------------------------------------------------------

    @computing("preparing a sample")
    def add_sample(self, request: SampleJob) -> None:
        """Check a sampling request and queue it.

        Raises:
            InputError: anything wrong with the request.
        """
        if self._generator.has_job(request.job_id):
            raise InputError(f"sampling job {request.job_id!r} is already there; choose another id")
        sampler = request.sampler_id
        weights = None if sampler is None else self._pool.sampler(sampler)
        check_job(request, self.config.max_num_samples, self.base.vocab_size)
        params = request.sampling_params
        check_sampling(params)
        prompt = prompt_tokens(request.prompt, self._limits, "prompt")
        check_prompt_targets(request.target_prompt_logprobs, len(prompt), self.base.vocab_size)
        max_tokens = token_limit(params, len(prompt), self.context_length)
        check_result_size(request, len(prompt), max_tokens, self.config.max_sample_bytes)
        check_resume(request, max_tokens, self.base.vocab_size)
        state = JobState(
            job=request,
            weights=weights,
            prompt=prompt,
            max_tokens=max_tokens,
            rule=SamplingRule(
                temperature=params.temperature,
                top_k=max(params.top_k, 0),
                top_p=params.top_p,
                seed=secrets.randbits(64) if params.seed is None else params.seed,
                stop=stop_rule(
                    params.stop,
                    self.base.eos_token_ids,
                    lambda: self.base.tokenizer,
                    also_at_end=request.also_stop_at_end,
                    before=int(prompt[-1]),
                ),
            ),
        )
        self._generator.add(state)

    def cancel_sample(self, job_id: str) -> None:
        """Forget a sampling job, if there; it gets no `SampleFinished`."""
        self._generator.cancel(job_id)

    def hold_sample(self, job_id: str, *, held: bool) -> None:
        """Let a sampling job wait as it is, or go on, for somebody who reads slowly.

        It keeps its memory, and its bits do not tell. A step in which all wait does nothing.
        """
        self._generator.hold(job_id, held=held)

    def has_sampling_work(self) -> bool:
        """Say whether `step` would do something."""
        return self._generator.has_work

    def step(self) -> list[SampleFinished]:
        """Compute chunks of prompts or decode one token each; give the jobs that ended."""
        return self._generator.step()

    @property
    def served(self) -> Mapping[str, int]:
        """By sampling job: tokens that the last step computed for it."""
        return self._generator.served

    @property
    def prefilled_tokens(self) -> int:
        """Prompt tokens computed since the engine was made."""
        return self._generator.prefilled_tokens

    @property
    def preemptions(self) -> int:
        """How often a sample gave its memory to an older one, since the engine was made."""
        return self._generator.preemptions

    @property
    def cached_tokens(self) -> int:
        """Prompt tokens taken from the prefix cache instead of computing them."""
        return self._generator.reused_tokens

    # --- itself ---------------------------------------------------------------------------------

    def numerics(self) -> dict[str, str]:
        """Say what the bits of results depend on, for checkpoints."""
        return {
            "torch": torch.__version__,
            "device": self.config.device,
            "dtype": self.config.dtype,
            "threads": str(torch.get_num_threads()),
            "cpu_capability": torch.backends.cpu.get_cpu_capability(),
            "weight_dtype": self.config.weight_dtype or self.config.dtype,
            "products": self._runner.layout.value,
            "decoder": self._runner.decoder_name,
            "row_multiple": str(self.config.row_multiple),
            "microbatch_tokens": str(self.config.microbatch_tokens),
            "prefill_block_tokens": str(self.config.prefill_block_tokens),
        }

    def _check_rank(self, rank: int) -> None:
        if not 1 <= rank <= self.config.max_rank:
            raise InputError(f"rank must be between 1 and {self.config.max_rank}, got {rank}")

    def _contents(
        self, checkpoint: Path | CheckpointContents, *, optimizer: bool
    ) -> CheckpointContents:
        """Read a checkpoint that was not read yet, and check that it is for this engine."""
        contents = checkpoint
        if not isinstance(contents, CheckpointContents):
            contents = read_checkpoint(contents, optimizer=optimizer)
        info = contents.info
        if info.base_model != self.base.name:
            raise InputError(
                f"checkpoint {contents.name} belongs to the base model {info.base_model!r}, not "
                f"{self.base.name!r}"
            )
        self._check_rank(info.lora.rank)
        return contents


def _memory_levels(device: torch.device, config: EngineConfig) -> list[MemoryLevel]:
    """Make the memories that hold adapters, the one that computes first; on a CPU it is one."""
    host = torch.device("cpu")
    wanted = [("device", device, config.device_adapter_bytes)] if device.type != "cpu" else []
    wanted.append(("host", host, config.host_adapter_bytes))
    share = config.adapter_memory_share
    return [
        MemoryLevel(name, where, limit or int(share * (memory_bytes(where) or _UNKNOWN_MEMORY)))
        for name, where, limit in wanted
    ]


_UNKNOWN_MEMORY = 16 * 2**30
"""Bytes of a device that does not say."""
