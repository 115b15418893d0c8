"""The tokenizers of this server's base models, as `openai_api` wants them.

Owns loading each once and off the event loop, and the refusal where a model has none. The tokenizer
is the one that clients get from `get_tokenizer`.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from tinkex.engine.models.tokenizer import load_fast_tokenizer
from tinkex.errors import EngineError
from tinkex.openai_api.model_text import ModelText
from tinkex.openai_api.refusal import refused

if TYPE_CHECKING:
    from tinkex._clock import Clock
    from tinkex._logs import Logger


def load_text(
    name: str, location: str, clock: Clock, *, trust_remote_code: bool = False
) -> ModelText | None:
    """Load a base model's tokenizer; None where there is none.

    Args:
        name: of the base model.
        location: a folder or hub id.
        clock: see `ModelText`.
        trust_remote_code: let the model's repository run its own code here.

    Raises:
        ChatTemplateError: its chat template is broken.
        EngineError: it cannot be loaded.
    """
    tokenizer = load_fast_tokenizer(location, trust_remote_code=trust_remote_code)
    return None if tokenizer is None else ModelText(name, tokenizer, clock)


class Texts:
    """The texts of all base models, each loaded once, when first needed.

    Args:
        clock: see `ModelText`.
        logger: is told why one cannot be loaded.
    """

    def __init__(self, clock: Clock, logger: Logger) -> None:
        self._clock = clock
        self._logger = logger
        self._loading: dict[str, asyncio.Future[ModelText | None]] = {}

    async def of(self, name: str, location: str, *, trust_remote_code: bool = False) -> ModelText:
        """Return a base model's.

        Args:
            name: of the base model.
            location: a folder or hub id.
            trust_remote_code: let the model's repository run its own code here.

        Raises:
            APIStatusError: it has no tokenizer, or it cannot be loaded now.
            ChatTemplateError: its chat template is broken.
        """
        loading = self._loading.get(name)
        if loading is None:
            loading = asyncio.ensure_future(
                asyncio.to_thread(
                    load_text, name, location, self._clock, trust_remote_code=trust_remote_code
                )
            )
            self._loading[name] = loading
        try:
            # A client that goes away must not stop the loading for the others.
            text = await asyncio.shield(loading)
        except EngineError as error:
            if self._loading.get(name) is loading:
                del self._loading[name]  # a hub may be reached the next time
                self._logger.warning("no tokenizer", base_model=name, reason=str(error))
            raise refused(
                f"The tokenizer of {name} cannot be loaded: the server's log says why. Try again "
                "later, or sample the model with token ids through the Tinker API.",
                param="model",
                code="unsupported_parameter",
            ) from None
        if text is None:
            raise refused(
                f"{name} has no tokenizer that this server can use: sample it with token ids "
                "through the Tinker API.",
                param="model",
                code="unsupported_parameter",
            )
        return text
