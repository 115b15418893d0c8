"""What a processor worker needs of whatever runs its models.

Owns the two protocols, and what back ends of every kind have in common. Permits, slots and queues
are the worker's business.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from tinkex.mesh.api.processor import ServedModel
from tinkex.openai_api.completer import CompletionRequest, Piece
from tinkex.openai_api.refusal import model_not_found

KEEP_ALIVE_S = 10.0
"""Silence after which a sign of life is given."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One request, as far as a back end is concerned. Its repr shows no prompt."""

    request: CompletionRequest
    account: str
    """Whose it is: accounts take turns, and nothing computed for one serves another."""
    adapter: str = ""
    """Content id of an adapter that is loaded; empty for the base model."""
    resume: Sequence[Sequence[int]] = ()
    """Of each completion, the tokens that it has already; empty where there are none of any."""
    finished: Sequence[int] = ()
    """Completions that are whole: nothing more comes of them."""

    def __repr__(self) -> str:
        return f"Job(n={self.request.n}, adapter={self.adapter[:12]!r})"


class Run(Protocol):
    """A job on its way."""

    @property
    def prompt_tokens(self) -> int:
        """Size of the prompt; 0 where it is known at the end only."""

    @property
    def deterministic(self) -> bool:
        """Whether the same seed gives the same tokens where the fingerprint is equal."""

    def pieces(self) -> AsyncGenerator[Piece | None, None]:
        """Give what is new, piece by piece; None as a sign of life.

        Whoever does not read holds the job up, and nothing else.

        Raises:
            TinkerError: the job failed.
        """

    @property
    def cached_tokens(self) -> int:
        """Tokens of the prompt that were not computed anew; known after the last piece."""

    def cancel(self) -> None:
        """End the sampling: nobody wants what is still to come. Harmless after the end."""


class Backend(Protocol):
    """Runs one base model, and adapters on it if it can."""

    @property
    def model(self) -> ServedModel:
        """What it runs."""

    @property
    def fingerprint(self) -> str:
        """What the bits of its results depend on: equal ones sample equal tokens."""

    @property
    def slots(self) -> int:
        """Completions that it runs at once."""

    @property
    def adapters(self) -> tuple[str, ...]:
        """Content ids of the adapters that are loaded, latest used first."""

    @property
    def adapters_in_use(self) -> tuple[str, ...]:
        """Content ids of those that jobs use now, or whose files are being read."""

    @property
    def failure(self) -> str:
        """Why it can do nothing any more; empty while it can."""

    async def start(self) -> None:
        """Make ready.

        Raises:
            TinkerError: it cannot; nothing of it is left.
        """

    async def stop(self) -> None:
        """End what runs, and let go of everything. Harmless twice, and before `start`."""

    async def load_adapter(self, content: str, folder: Path) -> None:
        """Load an adapter beside the others; one not used for long may go for it.

        Raises:
            InputError: it does not fit the base model.
            UnsupportedError: this back end has no adapters.
            EngineBusyError: there is no room now.
        """

    async def begin(self, job: Job) -> Run:
        """Check a job and begin it.

        Raises:
            APIStatusError: it does not fit the model, its context, or this back end.
            InputError: something in the request is wrong.
            UnsupportedError: this back end cannot do it.
        """

    async def count_tokens(self, request: CompletionRequest) -> int:
        """Count a prompt's tokens.

        Raises:
            TinkerError: as `begin`.
        """


def check_model(request: CompletionRequest, model: ServedModel) -> None:
    """Refuse a request for another model than a back end runs.

    Raises:
        APIStatusError: 404, it is.
    """
    if request.model != model.name:
        raise model_not_found(f"This processor runs {model.name!r}, not {request.model[:200]!r}.")
