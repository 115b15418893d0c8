"""One sample request as a completion, on its way through this server's futures.

Owns waiting for tokens, the signs of life meanwhile, and cancelling. Knows nothing of HTTP; the way
to the engine is `server.sampling`'s, and tokens become text in `openai_api.sampled_text`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tinkex.errors import InputError
from tinkex.openai_api.sampled_text import SampledTexts, with_echo
from tinkex.server.sampling.streaming import something_happened

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from tinkex.openai_api.completer import CompletionRequest, Piece
    from tinkex.openai_api.sampled_text import Scores
    from tinkex.openai_api.tool_calls import ToolForm
    from tinkex.openai_api.vocabulary import Vocabulary
    from tinkex.server.futures import Future, FutureStore
    from tinkex.server.sampling.streaming import TokenStream
    from tinkex.types import SampleResponse


SILENT_TURNS = 16
"""Times that tokens come of which nothing can be shown yet (a call of a tool, say), before the
client is told that they do."""


class SampledCompletion:
    """A request on its way through the engine.

    Args:
        futures: where its future is.
        future: completed with a SampleResponse.
        stream: its tokens, as they come.
        request: what was asked.
        prompt: its tokens.
        vocabulary: of the base model.
        tool_form: how the model writes calls, if it may.
    """

    def __init__(
        self,
        futures: FutureStore,
        future: Future,
        stream: TokenStream,
        request: CompletionRequest,
        prompt: Sequence[int],
        vocabulary: Vocabulary,
        tool_form: ToolForm | None,
    ) -> None:
        self._futures = futures
        self._future = future
        self._stream = stream
        self._request = request
        self._prompt = prompt
        self._texts = SampledTexts(request, prompt, vocabulary, tool_form)

    @property
    def request_id(self) -> str:
        """Names the request, in logs and replies."""
        return self._future.request_id

    @property
    def prompt_tokens(self) -> int:
        """Size of the prompt."""
        return len(self._prompt)

    @property
    def cached_tokens(self) -> int:
        """Tokens of the prompt that were not computed anew; known after the last piece."""
        response: SampleResponse | None = self._future.result
        return 0 if response is None else response.prompt_cache_hit_tokens

    def cancel(self) -> None:
        """End the sampling: nobody wants what is still to come."""
        self._future.cancel(InputError("The client of this completion went away."))
        self._future.mark_delivered()

    async def pieces(self) -> AsyncIterator[Piece | None]:
        """Give the completions piece by piece; None after a while without any.

        Raises:
            TinkerError: the request failed.
        """
        async for piece in with_echo(self._sampled(), self._texts, self._request, self._scores):
            yield piece

    async def _sampled(self) -> AsyncIterator[Piece | None]:
        silent = 0
        while True:
            done = self._future.done  # before the tokens are taken: none comes after it
            came = self._stream.take()
            shown = self._texts.add(came)
            for piece in shown:
                yield piece
            if done:
                break
            silent = 0 if shown else silent + bool(came)
            if silent == SILENT_TURNS:
                silent = 0
                yield None
            if not came and not await something_happened(self._futures, self._future, self._stream):
                yield None
        if self._future.error is not None:
            raise self._future.error

    def _scores(self) -> Scores:
        response: SampleResponse | None = self._future.result
        if response is None:
            return None, None
        return response.prompt_logprobs, response.topk_prompt_logprobs
