"""What a processor runs: settings, and the back end that they make.

Owns the settings' bounds. torch is loaded only where our own engine is what runs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from importlib.util import find_spec
from typing import TYPE_CHECKING

from tinkex._clock import Clock
from tinkex._process import in_a_thread_that_ends
from tinkex.errors import ConfigurationError, MissingPackageError
from tinkex.mesh.dht.records import MAX_TOPIC_CHARACTERS
from tinkex.mesh.positive import not_positive
from tinkex.mesh.processing.backend import Backend
from tinkex.mesh.workers.discovery import model_topic
from tinkex.mesh.workers.processor import ProcessorConfig

if TYPE_CHECKING:
    from tinkex.mesh.processing.openai_backend import OpenAIBackendConfig

DEFAULT_BASE_MODEL = "tinkex/sprout"


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """Which model a processor runs, and on what.

    Raises:
        ConfigurationError: a value that cannot be.
    """

    base_model: str = DEFAULT_BASE_MODEL
    """The model: `tinkex/sprout`, a folder in Hugging Face's layout, or a hub id."""

    model_name: str | None = None
    """What the mesh calls it, in 122 characters at most; None: its own name."""

    device: str = "auto"
    """`auto`, `cpu`, `cuda` or `cuda:N`."""

    dtype: str = "auto"
    """`auto`, `float32`, `bfloat16` or `float16`: what it computes in. Processors of equal numerics
    give equal tokens for equal seeds."""

    weight_dtype: str | None = None
    """`int8` keeps the base model's weights in a quarter of float32's memory; None: as `dtype`."""

    threads: int | None = None
    """CPU threads of the engine; None: all cores, which the processors of `mesh up` share."""

    max_context_length: int | None = None
    """Tokens of one sequence, prompt and reply together, where the model takes more. A completion
    that names no `max_tokens` may go on so far."""

    kv_cache_tokens: int = 65_536
    """Tokens of the keys and values of all completions that run at once; others wait. Each begins
    with room for its prompt and up to 1,024 tokens more, and the youngest give theirs back, to go
    on later, where older ones need it. Memory is taken as they come."""

    backend_url: str | None = None
    """A server that speaks OpenAI's API (Ollama, vLLM, llama.cpp), up to and with `/v1`: it runs
    `base_model` in place of tinkex's engine. Nothing is gone on with there when it is lost."""

    backend_key: str | None = field(default=None, repr=False)
    """What that server wants as a key."""

    backend_context_length: int = 4096
    """Tokens that its model takes; such a server does not tell."""

    backend_slots: int = 8
    """Completions that it is asked for at once."""

    def __post_init__(self) -> None:
        if self.backend_url is not None:
            self.foreign()
        problems = not_positive(self)
        name = self.model_name or self.base_model
        most = MAX_TOPIC_CHARACTERS - len(model_topic(""))
        if len(name) > most:
            problems.append(
                f"the model's name has {len(name)} characters, and the mesh announces {most} at "
                "most: give it another with --model-name (TINKEX_MESH_PROCESSOR_MODEL_NAME)"
            )
        if problems:
            raise ConfigurationError(problems)

    def foreign(self) -> OpenAIBackendConfig:
        """Return the settings of the server at `backend_url`.

        Raises:
            ConfigurationError: naming every one that cannot be.
        """
        from tinkex.mesh.processing.openai_backend import (  # noqa: PLC0415 - few workers need it
            OpenAIBackendConfig,
        )

        return OpenAIBackendConfig(
            url=self.backend_url or "",
            model=self.base_model,
            api_key=self.backend_key or "",
            name=self.model_name or "",
            context_length=self.backend_context_length,
            slots=self.backend_slots,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessorSettings:
    """All settings of a processor."""

    model: ModelConfig = field(default_factory=ModelConfig)
    """What it runs."""

    serving: ProcessorConfig = field(default_factory=ProcessorConfig)
    """How it serves."""


async def make_backend(
    config: ModelConfig, *, clock: Clock, on_fault: Callable[[BaseException], None]
) -> Backend:
    """Load the model; the event loop goes on meanwhile.

    Raises:
        ConfigurationError: there is no such model, or a setting does not fit this machine.
        MissingPackageError: the engine's packages are not installed.
    """
    if config.backend_url is not None:
        from tinkex.mesh.processing.openai_backend import OpenAIBackend  # noqa: PLC0415 - as above

        return OpenAIBackend(config.foreign(), clock=clock, on_fault=on_fault)
    missing = [name for name in ("torch", "transformers") if find_spec(name) is None]
    if missing:
        raise MissingPackageError(
            f"a processor that runs models itself needs {', '.join(missing)}: pip install "
            "'tinkex[server,mesh]'"
        )
    return await in_a_thread_that_ends(partial(_load, config, clock, on_fault))


def _load(config: ModelConfig, clock: Clock, on_fault: Callable[[BaseException], None]) -> Backend:
    # Loaded only here: every other worker lives without torch.
    from tinkex.mesh.processing.engine_backend import (  # noqa: PLC0415
        engine_config,
        load_engine_backend,
    )

    engine = engine_config(
        device=config.device,
        dtype=config.dtype,
        weight_dtype=config.weight_dtype,
        threads=config.threads,
        max_context_length=config.max_context_length,
        kv_cache_tokens=config.kv_cache_tokens,
    )
    return load_engine_backend(
        config.base_model, name=config.model_name, config=engine, clock=clock, on_fault=on_fault
    )
