"""The server's completer: prompts go to the engine the way that the Tinker API's samples go.

Owns what a model's name may be, which limits a prompt must keep, and the translation of requests.
Sampling itself, its weights, limits and futures are `server.sampling`'s.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from tinkex.errors import InputError
from tinkex.openai_api.completer import ModelCard
from tinkex.openai_api.refusal import model_not_found, refused
from tinkex.openai_api.sampling import fitted, sampling_fields
from tinkex.server.accounts.caller import READ
from tinkex.server.completer.completion import SampledCompletion
from tinkex.server.completer.texts import Texts
from tinkex.server.completer.warm import WarmWeights
from tinkex.types import ModelInput, SampleRequest, SamplingParams

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tinkex.openai_api.completer import CompletionRequest, Prompt
    from tinkex.openai_api.model_text import ModelText
    from tinkex.openai_api.sampling import TurnEnd
    from tinkex.server.accounts.caller import Caller
    from tinkex.server.models.bases import HostedBase
    from tinkex.server.services import Services
    from tinkex.server.storage.store import CheckpointRow

OWNED_BY = "tinkex"
PATH_SCHEME = "tinker://"
LISTED_CHECKPOINTS = 1000
"""Most checkpoints in the list of models, newest first."""
SAMPLER_KIND = "sampler_weights"


@dataclass(frozen=True, slots=True)
class _Target:
    """What a model's name stands for."""

    base: HostedBase
    base_name: str | None
    """As the client wrote it; None for a checkpoint alone."""
    model_path: str | None
    created: float
    owned_by: str


class ServerCompleter:
    """Completes prompts on the engines of this server, for a `Caller`."""

    def __init__(self, services: Services) -> None:
        self._s = services
        self._texts = Texts(services.clock, services.logger)
        self._warm = WarmWeights(services.timers)
        self._started = services.clock.now()

    async def models(self, caller: Caller) -> Sequence[ModelCard]:
        """List base models, their aliases, and the checkpoints for sampling that a key may see."""
        cards = [
            self._card(name, _Target(self._s.bases.get(name), name, None, self._started, OWNED_BY))
            for name in self._s.bases.names
        ]
        if READ not in caller.scopes:
            return cards
        rows, _ = await self._s.store.checkpoints(
            caller.owner, now=self._s.clock.now(), limit=LISTED_CHECKPOINTS, offset=0
        )
        base_names: dict[str, str] = {}
        for row in rows:
            if row.kind != SAMPLER_KIND:
                continue
            if row.run_id not in base_names:
                base_names[row.run_id] = await self._s.checkpoints.base_of(row)
            base = self._s.bases.find(base_names[row.run_id])
            if base is not None:
                cards.append(self._card(row.key.path, _of_checkpoint(row, base, None)))
        return cards

    async def model(self, caller: Caller, name: str) -> ModelCard:
        """Describe a base model, an alias, a checkpoint's path or `<base>;<path>`.

        Raises:
            APIStatusError: 404, when there is none of this name.
        """
        return self._card(name, await self._target(caller, name))

    async def count_tokens(self, caller: Caller, model: str, prompt: Prompt) -> int:
        """Say how many tokens a prompt has for a model.

        Raises:
            APIStatusError: as of `complete`.
        """
        target = await self._target(caller, model)
        text = await self._text(target.base)
        return len(await text.encode(prompt, target.base.max_context_length))

    async def complete(self, caller: Caller, request: CompletionRequest) -> SampledCompletion:
        """Send a prompt to the engine.

        Raises:
            APIStatusError: no such model, what it cannot do, a prompt too long, or no room now.
            InputError: a conversation that the model's chat template does not take.
        """
        target = await self._target(caller, request.model)
        text = await self._text(target.base)
        prompt = await text.encode(request.prompt, target.base.max_context_length)
        request = fitted(request, len(prompt), target.base.max_context_length)
        if target.model_path is not None:
            _, snapshot = await self._s.sampling_sessions.weights(
                caller.owner, target.base_name, target.model_path
            )
            self._warm.keep(snapshot)
        future, _, stream = await self._s.sampling.stream(
            caller.owner,
            _sample_request(target, prompt, request, text.turn_end(request.prompt)),
            key_id=caller.key_id,
            also_stop_at_end=True,
        )
        return SampledCompletion(
            self._s.futures,
            future,
            stream,
            request,
            prompt,
            text.vocabulary,
            text.tool_form(request.prompt),
        )

    async def _text(self, base: HostedBase) -> ModelText:
        return await self._texts.of(
            base.name, base.tokenizer_location, trust_remote_code=base.trust_remote_code
        )

    async def _target(self, caller: Caller, name: str) -> _Target:
        base_name, _, path = name.rpartition(";")
        if not base_name and not path.startswith(PATH_SCHEME):
            return _Target(self._base(name), name, None, self._started, OWNED_BY)
        try:
            row = await self._s.checkpoints.resolve(caller.owner, path)
        except InputError as error:
            raise model_not_found(str(error)) from error
        base = self._base(await self._s.checkpoints.base_of(row))
        if base_name and self._base(base_name) is not base:
            raise refused(
                f"Checkpoint {path} was trained on {base.name!r}, not on {base_name!r}. Give the "
                "path alone.",
                param="model",
                code="invalid_value",
            )
        return _of_checkpoint(row, base, base_name or None)

    def _base(self, name: str) -> HostedBase:
        base = self._s.bases.find(name)
        if base is None:
            raise model_not_found(
                f"The model {name[:200]!r} does not exist here. There are: "
                f"{', '.join(self._s.bases.names)}; a checkpoint's path ({PATH_SCHEME}...); and "
                "<base model>;<path>."
            )
        return base

    @staticmethod
    def _card(name: str, target: _Target) -> ModelCard:
        return ModelCard(
            name=name,
            created=int(target.created),
            owned_by=target.owned_by,
            base_model=target.base.name,
            max_context_length=target.base.max_context_length,
        )


def _of_checkpoint(row: CheckpointRow, base: HostedBase, base_name: str | None) -> _Target:
    return _Target(base, base_name, row.key.path, row.created_at, row.owner)


def _sample_request(
    target: _Target, prompt: list[int], request: CompletionRequest, end: TurnEnd | None
) -> SampleRequest:
    return SampleRequest(
        num_samples=request.n,
        prompt=ModelInput.from_ints(prompt),
        sampling_params=SamplingParams(**sampling_fields(request, end)),
        base_model=target.base_name,
        model_path=target.model_path,
        topk_sample_logprobs=request.top_logprobs,
        prompt_logprobs=request.prompt_logprobs or None,
        topk_prompt_logprobs=request.top_logprobs if request.prompt_logprobs else 0,
    )
