"""From provenance to log-probabilities: what `stable_reinforce` reads is what this server recorded.

Owns the meaning of the spans of a datum: which recorded token stands at which position, and what is
wrong when none does. The loss itself is `engine.losses`'; what is recorded, `recordings`'.

The spans of `model_input` tile its tokens, those of the loss inputs its `target_tokens`; each names
a run of the tokens of a recorded sequence, or of the prompt that it was sampled from. Only targets
that were sampled have a loss; which tokens stand at the others is left open, as programs put
placeholders there (the cookbook's `rl_loop` zeros).
"""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from tinkex.errors import InputError
from tinkex.types import SampledProvenanceSpan, TensorData

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from tinkex.server.sampling.recordings import RecordedSequence
    from tinkex.types import Datum, ProvenanceSpan

STABLE_REINFORCE = "stable_reinforce"
LOGPROBS = "logprobs"
WEIGHTS = "weights"
TARGETS = "target_tokens"
TOLERANCE = 1e-4
"""By which log-probabilities that a client sends along may differ from the recorded ones, nats."""


def named_sequences(data: Sequence[Datum]) -> set[str]:
    """Return the ids of all sequences that the data's provenance names."""
    return {
        span.sequence_id
        for datum in data
        for spans in (datum.model_input_spans, datum.loss_fn_input_spans)
        for span in spans or ()
    }


def with_recorded_logprobs(
    data: Sequence[Datum], find: Callable[[str], RecordedSequence | None]
) -> list[Datum]:
    """Fill in the log-probabilities that were recorded when the targets were sampled.

    Args:
        data: data with provenance.
        find: gives a recorded sequence by its id; None for one that is not there.

    Returns:
        The data with `logprobs` float32 [N], and `weights` float32 [N] that are 0 where a target
        was not sampled (and otherwise as sent, or 1).

    Raises:
        InputError: naming the datum: no provenance, spans that do not tile it or name a sampled
            token twice, an unknown sequence, or other tokens than the recorded ones.
    """
    return [_filled(f"datum {index}", datum, find) for index, datum in enumerate(data)]


def _filled(where: str, datum: Datum, find: Callable[[str], RecordedSequence | None]) -> Datum:
    if datum.model_input_spans is None or datum.loss_fn_input_spans is None:
        raise InputError(
            f"{where}: {STABLE_REINFORCE} needs to know which sampled sequence each token came "
            "from; add it with Datum.with_provenance, naming the sequence_id of samples of a "
            "client made with record_stability_info=True"
        )
    tokens = _Field(f"{where}: model_input", datum.model_input.tokens_np(), find)
    for span in datum.model_input_spans:
        tokens.cover(span)
    tokens.finish()
    targets = _Field(f"{where}: {TARGETS}", _targets(where, datum), find, placeholders=True)
    for span in datum.loss_fn_input_spans:
        targets.cover(span)
    targets.finish()
    targets.refuse_overlaps(datum.loss_fn_input_spans)
    sampled = ~np.isnan(targets.logprobs)
    recorded = np.where(sampled, targets.logprobs, np.float32(0))
    _compare_sent(where, datum, recorded, sampled)
    inputs = {**datum.loss_fn_inputs, LOGPROBS: TensorData.from_numpy(recorded)}
    sent = inputs.get(WEIGHTS)
    if sent is None:
        inputs[WEIGHTS] = TensorData.from_numpy(sampled.astype(np.float32))
    elif sent.dtype == "float32" and sent.dimensions == (len(sampled),):
        kept = np.where(sampled, sent.to_numpy(), np.float32(0))
        inputs[WEIGHTS] = TensorData.from_numpy(kept)
    return replace(datum, loss_fn_inputs=inputs)


class _Field:
    """The tokens that one list of spans tiles, covered from left to right."""

    def __init__(
        self,
        where: str,
        tokens: NDArray[np.integer],
        find: Callable[[str], RecordedSequence | None],
        *,
        placeholders: bool = False,
    ) -> None:
        self._where = where
        self._tokens = tokens
        self._find = find
        self._placeholders = placeholders
        self._at = 0
        self.logprobs = np.full(len(tokens), np.nan, np.float32)
        """[N] of the tokens that were sampled; NaN at the others."""

    def cover(self, span: ProvenanceSpan) -> None:
        """Check the span's tokens against the recorded ones, and take their log-probabilities."""
        start, end = self._at, self._at + span.length
        recorded = self._find(span.sequence_id)
        if recorded is None:
            raise InputError(
                f"{self._where}: nothing is recorded for sequence {span.sequence_id!r}. It was not "
                "sampled in this session with record_stability_info=True, or it was sampled or "
                "last trained on too long ago, or made room for later ones. Sample it again"
            )
        is_sampled = isinstance(span, SampledProvenanceSpan)
        source = recorded.tokens if is_sampled else recorded.prompt
        kind = "sampled tokens" if is_sampled else "prompt"
        stop = span.offset + span.length
        if stop > len(source) or end > len(self._tokens):
            raise InputError(
                f"{self._where}: a span covers {span.length} positions from {start}, and tokens "
                f"{span.offset} to {stop} of the {kind} of sequence {span.sequence_id!r}; it has "
                f"{len(source)}, and this has {len(self._tokens)}"
            )
        differs = np.flatnonzero(self._tokens[start:end] != source[span.offset : stop])
        if differs.size and (is_sampled or not self._placeholders):
            first = int(differs[0])
            raise InputError(
                f"{self._where} has the token {self._tokens[start + first]} at {start + first}, "
                f"where the {kind} of sequence {span.sequence_id!r} has "
                f"{source[span.offset + first]}; spans must name the tokens that stand there"
            )
        if is_sampled:
            self.logprobs[start:end] = recorded.logprobs[span.offset : stop]
        self._at = end

    def finish(self) -> None:
        """Check that nothing is left over."""
        if self._at != len(self._tokens):
            raise InputError(
                f"{self._where}: its spans cover {self._at} of {len(self._tokens)} positions; they "
                "must cover all, in order"
            )

    def refuse_overlaps(self, spans: Sequence[ProvenanceSpan]) -> None:
        """Check that no sampled token is learned twice."""
        runs = sorted(
            (span.sequence_id, span.offset, span.offset + span.length)
            for span in spans
            if isinstance(span, SampledProvenanceSpan) and span.length
        )
        for (name, _, end), (following, start, _) in pairwise(runs):
            if name == following and start < end:
                raise InputError(
                    f"{self._where}: two spans overlap: both name token {start} sampled in "
                    f"sequence {name!r}; name each sampled token once in a datum"
                )


def _targets(where: str, datum: Datum) -> NDArray[np.int64]:
    data = datum.loss_fn_inputs.get(TARGETS)
    if data is None or data.dtype != "int64" or len(data.dimensions) != 1:
        raise InputError(f"{where}: {STABLE_REINFORCE} needs {TARGETS}, int64 of shape [T]")
    targets: NDArray[np.int64] = data.to_numpy()
    return targets


def _compare_sent(
    where: str, datum: Datum, recorded: NDArray[np.float32], sampled: NDArray[np.bool_]
) -> None:
    """Refuse log-probabilities that the client sends along and that are not the recorded ones."""
    data = datum.loss_fn_inputs.get(LOGPROBS)
    if data is None:
        return
    sent = data.to_numpy()
    if sent.shape != recorded.shape:
        raise InputError(f"{where}: {LOGPROBS} has the shape {sent.shape}, not {recorded.shape}")
    differs = sampled & ~(np.abs(sent - recorded) <= TOLERANCE)
    if differs.any():
        first = int(np.flatnonzero(differs)[0])
        raise InputError(
            f"{where}: {LOGPROBS} is {sent[first]} at {first}, and {recorded[first]} was recorded "
            f"there; {STABLE_REINFORCE} uses what was recorded, so leave {LOGPROBS} out"
        )
