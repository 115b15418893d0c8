"""Sampling jobs and the sequences that they become. Data only; no torch.

Owns the checks of what a caller asked for; who runs when is `scheduler`'s.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from tinkex.errors import InputError, TinkerError
from tinkex.types import ModelInput, SampleResponse, SamplingParams, StopReason

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence

    import numpy as np
    from numpy.typing import NDArray

    from tinkex.engine.attention.kv_cache import KVRow
    from tinkex.engine.lora.weights import LoraWeights
    from tinkex.engine.sampling.fair_share import Party
    from tinkex.engine.sampling.prefix_cache import PrefixScope
    from tinkex.engine.sampling.prompt_scores import PromptScores
    from tinkex.engine.sampling.stops import StopRule
    from tinkex.engine.sampling.uniform import UniformStream
    from tinkex.types import TensorData

MAX_TOPK_LOGPROBS = 256
"""Most alternatives given for each token."""
MAX_TARGET_CELLS = 2**22
"""Most tokens of one request whose prompt log-probabilities are asked for."""


class SampledToken(NamedTuple):
    """One token of a sample that may not have ended."""

    sequence: int
    """Which of the sequences that its job asks for."""
    token: int
    logprob: float
    topk: tuple[list[int], list[float]] | None
    """The likeliest tokens and their log-probabilities, where they were asked for."""
    stop_reason: StopReason | None
    """Why the sample ends with this token; None when it goes on."""


@dataclass(frozen=True, slots=True)
class SampleJob:
    """One sampling request."""

    job_id: str
    sampler_id: str | None
    """A sampler of this engine, or None for the base model."""
    prompt: ModelInput
    num_samples: int = 1
    sampling_params: SamplingParams = field(default_factory=SamplingParams)
    prompt_logprobs: bool = False
    topk_prompt_logprobs: int = 0
    topk_sample_logprobs: int = 0
    prompt_logprobs_last_n: int | None = None
    """Prompt log-probabilities of the last n tokens only, NaN before."""
    sequence_ids: Sequence[str] = ()
    """A name for each sample; `<job_id>:<n>` when empty."""
    target_prompt_logprobs: TensorData | None = None
    """Tokens [T - 1, K] int64 whose log-probabilities at positions 1..T-1 are wanted; -1: none."""
    prompt_alt_tokens_k: int = 0
    """Tokens to draw for each prompt position after the first."""
    owner: str = ""
    """Whose it is: owners take turns, and nothing computed for one serves another."""
    on_token: Callable[[SampledToken], None] | None = None
    """Called with each token as it is sampled; it must not raise, nor wait."""
    also_stop_at_end: bool = False
    """Whether the model's end tokens end a sample whatever else `stop` names."""
    resume: Sequence[Sequence[int]] = ()
    """Of each sample, the tokens that it has already; sampling goes on after them as if it had
    never been cut, and gives what is new alone. They count in `max_tokens`."""
    ended: Collection[int] = ()
    """Samples that are whole already, by index: nothing more is sampled for them."""


@dataclass(frozen=True, slots=True)
class SampleFinished:
    """The end of one job: a response, or an error."""

    job_id: str
    response: SampleResponse | None
    error: TinkerError | None


@dataclass(frozen=True, slots=True)
class SamplingRule:
    """Checked sampling parameters."""

    temperature: float
    top_k: int
    """0 means all tokens."""
    top_p: float
    seed: int
    stop: StopRule


@dataclass(slots=True, eq=False)
class JobState:
    """A job that was let in."""

    job: SampleJob
    weights: LoraWeights | None
    """The sampler's weights as they were then."""
    prompt: NDArray[np.int64]
    max_tokens: int
    rule: SamplingRule
    sequences: list[RunningSequence] = field(default_factory=list)
    """Samples that run or have ended."""
    to_start: list[int] = field(init=False)
    """Samples that neither run nor have ended, by index, in order."""
    preempted: dict[int, RunningSequence] = field(default_factory=dict)
    """Of those, the ones that ran and gave their memory to others."""
    reserved: dict[int, int] = field(default_factory=dict)
    """Of each sample that runs, the tokens of the cache that are reserved for it."""
    arrival: int = 0
    admitted: bool = False
    slot_held: bool = False
    """Whether a slot waits for the sample that starts next."""
    promised: int = 0
    """Tokens of the cache reserved for the sample that starts next."""
    prompt_reserved: int = 0
    """Tokens of the cache reserved for the prompt, beside what its samples have."""
    overtaken: int = 0
    """Tokens reserved by others who were let by while this one found no room."""
    prompt_row: KVRow | None = None
    """The prompt's keys and values, until the last sample has started."""
    held: bool = False
    """Whether its samples wait, for somebody who reads slowly; they keep their places."""
    computed: int = 0
    """Tokens of the prompt that are in `prompt_row`."""
    reused: int = 0
    """Tokens of the prompt that came from the prefix cache."""
    scope: PrefixScope | None = None
    """Where its prompt's blocks are kept; None when nothing is."""
    block_keys: list[bytes] = field(default_factory=list)
    wanted_from: int = 0
    """The first position of the prompt whose hidden state is asked about."""
    hidden: list[Any] = field(default_factory=list)
    """Hidden states [n, C] from `wanted_from` on, until the prompt is scored."""
    last_hidden: Any = None
    """[C] after the prompt, once it is computed."""
    first_logits: Any = None
    """[V] after the prompt, as long as `prompt_row`."""
    scores: PromptScores | None = None
    """What was asked about the prompt, once that is computed."""

    def __post_init__(self) -> None:
        self.to_start = list(range(self.job.num_samples))

    @property
    def party(self) -> Party:
        """With whom it takes turns."""
        return self.job.owner, self.job.sampler_id

    @property
    def prompt_left(self) -> int:
        """Tokens of the prompt not computed yet."""
        return len(self.prompt) - self.computed

    @property
    def length_limit(self) -> int:
        """Tokens of one sequence in the cache at most; the last token is never fed back."""
        return len(self.prompt) + self.max_tokens - 1

    def known_length(self, index: int) -> int:
        """Tokens of the prompt, and of a sample that is to start what it has already."""
        if index in self.preempted:
            return len(self.prompt) + len(self.preempted[index].tokens)
        return len(self.prompt) + (len(self.job.resume[index]) if self.job.resume else 0)


@dataclass(slots=True, eq=False)
class RunningSequence:
    """One sample on its way."""

    state: JobState
    index: int
    uniforms: UniformStream
    uniform: float | None = None
    """The number drawn for the token to come; a step that is done again takes the same."""
    row: KVRow | None = None
    tokens: list[int] = field(default_factory=list)
    given: int = 0
    """How many of `tokens` came with the job."""
    resumed: bool = False
    """Whether it was preempted: it then starts after the tokens that it has."""
    logprobs: list[float] = field(default_factory=list)
    topk: list[tuple[NDArray[np.int32], NDArray[np.float32]]] = field(default_factory=list)
    """Of each token [k] ids and log-probabilities: arrays, as Python's numbers take ten times as
    much, and a request may ask for hundreds of each of a million tokens."""
    stop_reason: StopReason | None = None

    @property
    def age(self) -> tuple[int, int]:
        """Its place among all samples: the oldest is the lowest."""
        return self.state.arrival, self.index

    @property
    def is_under_way(self) -> bool:
        """Whether it starts after tokens that it has, or has come to its end."""
        return self.given > 0 or self.resumed or self.index in self.state.job.ended

    @property
    def behind(self) -> int:
        """Tokens that it started with and are not in the cache yet; the newest one is not due."""
        if not (self.given or self.resumed) or self.row is None:
            return 0
        return len(self.state.prompt) + len(self.tokens) - 1 - self.row.length

    @property
    def is_full(self) -> bool:
        """Whether its newest token has no place in what is reserved for it."""
        return len(self.state.prompt) + len(self.tokens) > self.state.reserved[self.index]


def check_job(job: SampleJob, max_num_samples: int, vocab_size: int) -> None:
    """Check everything but prompt and sampling parameters.

    Raises:
        InputError: naming the argument at fault.
    """
    _check_range("num_samples", job.num_samples, 1, max_num_samples)
    most = min(MAX_TOPK_LOGPROBS, vocab_size)
    _check_range("topk_prompt_logprobs", job.topk_prompt_logprobs, 0, most)
    _check_range("topk_sample_logprobs", job.topk_sample_logprobs, 0, most)
    _check_range("prompt_alt_tokens_k", job.prompt_alt_tokens_k, 0, MAX_TOPK_LOGPROBS)
    if job.prompt_logprobs_last_n is not None and job.prompt_logprobs_last_n < 0:
        raise InputError("prompt_logprobs_last_n must not be negative")
    if job.sequence_ids and len(job.sequence_ids) != job.num_samples:
        raise InputError(
            f"{len(job.sequence_ids)} sequence ids for {job.num_samples} samples; give one each"
        )


def check_resume(job: SampleJob, max_tokens: int, vocab_size: int) -> None:
    """Check the tokens that samples are to go on after.

    Raises:
        InputError: not one list for each sample, above `max_tokens`, or not of the vocabulary.
    """
    if job.resume and len(job.resume) != job.num_samples:
        raise InputError(
            f"resume has the tokens of {len(job.resume)} samples for {job.num_samples}; give a "
            "list for each, empty where there are none"
        )
    for sample, tokens in enumerate(job.resume):
        if len(tokens) > max_tokens:
            raise InputError(
                f"sample {sample} has {len(tokens)} tokens already; max_tokens is {max_tokens}"
            )
        if tokens and not 0 <= min(tokens) <= max(tokens) < vocab_size:
            raise InputError(
                f"resume has a token outside the vocabulary of {vocab_size} in sample {sample}"
            )


def check_prompt_targets(asked: TensorData | None, prompt: int, vocab_size: int) -> None:
    """Check the tokens whose prompt log-probabilities are wanted, for a prompt of `prompt` tokens.

    Raises:
        InputError: another dtype or shape, too many cells, or a token outside the vocabulary.
    """
    name = "target_prompt_logprobs"
    if asked is None:
        return
    if asked.dtype != "int64" or len(asked.dimensions) != 2 or asked.dimensions[0] != prompt - 1:
        raise InputError(
            f"{name} must be int64 of shape [{prompt - 1}, K] for a prompt of {prompt} tokens, got "
            f"{asked.dtype} of shape {list(asked.dimensions)}"
        )
    cells = asked.values.size
    if asked.sparse_crow_indices is not None:  # computed side by side, as wide as the fullest row
        crow = asked.sparse_crow_indices
        fullest = max((b - a for a, b in itertools.pairwise(crow)), default=0)
        cells = fullest * asked.dimensions[0]
    if cells > MAX_TARGET_CELLS:
        raise InputError(
            f"{name} asks for {cells} tokens; at most {MAX_TARGET_CELLS} in one request (of sparse "
            "rows the fullest counts for all)"
        )
    if asked.values.size and not -1 <= asked.values.min() <= asked.values.max() < vocab_size:
        raise InputError(
            f"{name} has a token outside the vocabulary of {vocab_size}; -1 asks for nothing"
        )


def token_limit(params: SamplingParams, prompt: int, context: int) -> int:
    """Give the most tokens to sample: `max_tokens`, or what the context leaves.

    The last token is sampled but never fed back, so a prompt that fills the context leaves one.

    Raises:
        InputError: the prompt and max_tokens do not fit.
    """
    room = context - prompt + 1
    if params.max_tokens is None:
        return room
    if params.max_tokens < 1:
        raise InputError(f"max_tokens must be at least 1, got {params.max_tokens}")
    if params.max_tokens > room:
        raise InputError(
            f"a prompt of {prompt} tokens leaves room for {room} of the model's {context}; "
            f"max_tokens {params.max_tokens} is too many"
        )
    return params.max_tokens


def check_result_size(job: SampleJob, prompt: int, max_tokens: int, most: int) -> None:
    """Refuse a job whose result could be too large, before any of it is computed.

    Args:
        job: the request.
        prompt: tokens of its prompt.
        max_tokens: the most tokens of each sample.
        most: bytes that a result may take.

    Raises:
        InputError: it could take more.
    """
    asked = job.target_prompt_logprobs
    size = job.num_samples * max_tokens * (8 + 8 * job.topk_sample_logprobs)
    size += prompt * (4 * job.prompt_logprobs + 8 * job.topk_prompt_logprobs)
    size += prompt * 12 * job.prompt_alt_tokens_k + (0 if asked is None else 4 * asked.values.size)
    if size > most:
        raise InputError(
            f"the result could take {size} bytes, and {most} are the most for one request: "
            f"{job.num_samples} samples of up to {max_tokens} tokens with "
            f"{job.topk_sample_logprobs} alternatives for each, and what is asked about the "
            f"prompt of {prompt} tokens. Lower max_tokens, or ask for less at a time"
        )


def check_sampling(params: SamplingParams) -> None:
    """Check temperature, top_k and top_p.

    Raises:
        InputError: naming the parameter at fault.
    """
    if not (math.isfinite(params.temperature) and params.temperature >= 0):
        raise InputError(
            f"temperature must be 0 (greedy) or a positive number, got {params.temperature}"
        )
    if params.top_k < -1:
        raise InputError(
            f"top_k must be at least 1, or -1 (as 0 is) for all tokens, got {params.top_k}"
        )
    if not 0 < params.top_p <= 1:
        raise InputError(f"top_p must be above 0 and at most 1, got {params.top_p}")


def _check_range(name: str, value: int, low: int, high: int) -> None:
    if not low <= value <= high:
        raise InputError(f"{name} must be between {low} and {high}, got {value}")
