"""When a sequence stops: at token ids, or at strings, also across token borders.

Owns the reading of `SamplingParams.stop`: absent means the model's end tokens; an empty list means
no stop at all; ints are token ids; a string or strings are text. Whatever completes the stop is
part of the tokens, as in the official service.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tinkex.errors import InputError

if TYPE_CHECKING:
    from tinkex.engine.models.tokenizer import TextDecoder

_MAX_STOPS = 64
_MAX_STOP_BYTES = 1024

Stop = str | Sequence[str] | Sequence[int] | None


@dataclass(frozen=True, slots=True)
class StopRule:
    """One request's stops."""

    token_ids: frozenset[int]
    strings: tuple[str, ...] = ()
    decoder: TextDecoder | None = None
    window: int = 0
    """Last tokens whose text can hold a stop string that the newest token completes."""
    before: tuple[int, ...] = ()
    """The prompt's last token."""

    def hit(self, tokens: Sequence[int]) -> bool:
        """Say whether the newest token completes a stop."""
        if tokens[-1] in self.token_ids:
            return True
        if not self.strings or self.decoder is None:
            return False
        text = self._text(self.decoder, tokens)
        return any(stop in text for stop in self.strings)

    def _text(self, decoder: TextDecoder, tokens: Sequence[int]) -> str:
        """Give the text of the last tokens: of the sample alone, as it stands behind its prompt.

        Some tokenizers drop the space with which a text begins.
        """
        if len(tokens) <= self.window and self.before:
            start = decoder.decode(self.before, skip_special_tokens=False)
            whole = decoder.decode([*self.before, *tokens], skip_special_tokens=False)
            if whole.startswith(start):  # not where a character is cut by the prompt's end
                return whole[len(start) :]
        return decoder.decode(tokens[-self.window :], skip_special_tokens=False)


def stop_rule(
    stop: Stop,
    eos_token_ids: Sequence[int],
    tokenizer: Callable[[], TextDecoder | None],
    *,
    also_at_end: bool = False,
    before: int | None = None,
) -> StopRule:
    """Read a request's `stop`.

    Args:
        stop: As on the wire.
        eos_token_ids: The model's end tokens.
        tokenizer: Gives the tokenizer; called only for stop strings.
        also_at_end: Whether the model's end tokens stop too, whatever `stop` names.
        before: The prompt's last token.

    Raises:
        InputError: mixed or empty stops, too many or too long, or strings without a tokenizer.
    """
    if stop is None:
        return StopRule(frozenset(eos_token_ids))
    stops = [stop] if isinstance(stop, str) else list(stop)
    if len(stops) > _MAX_STOPS:
        raise InputError(f"stop has {len(stops)} entries; at most {_MAX_STOPS}")
    ids = [s for s in stops if isinstance(s, int)]
    ends = frozenset(eos_token_ids if also_at_end else ())
    strings = tuple(s for s in stops if isinstance(s, str))
    if ids and strings:
        raise InputError("stop mixes token ids and strings; send one kind")
    if not strings:
        return StopRule(ends.union(ids))
    longest = max(len(s.encode()) for s in strings)
    if not all(strings) or longest > _MAX_STOP_BYTES:
        raise InputError(f"a stop string must have 1 to {_MAX_STOP_BYTES} bytes")
    decoder = tokenizer()
    if decoder is None:
        raise InputError("this base model has no tokenizer; give stop as token ids")
    # Every token carries at least a byte; a few more cover tokens whose text is empty or that only
    # begin a character.
    prompt_end = () if before is None else (before,)
    return StopRule(ends, strings, decoder, longest + 8, prompt_end)
