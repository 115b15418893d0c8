"""Futures: the envelope of an asynchronous request, and the answers to asking for it."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Literal

from pydantic import Field

from tinkex.types._model import WireRequest, WireResponse, absent

RequestID = str


class QueueState(StrEnum):
    """Why a request waits. An unknown word becomes `unknown`."""

    ACTIVE = "active"
    PAUSED_CAPACITY = "paused_capacity"
    PAUSED_RATE_LIMIT = "paused_rate_limit"
    UNKNOWN = "unknown"

    @classmethod
    def parse(cls, word: str) -> QueueState:
        """Read a word of the wire, in any letter case."""
        known = {member.value: member for member in cls}
        return known.get(word.lower(), cls.UNKNOWN)


class RequestErrorCategory(StrEnum):
    """Whose failure it was. Any letter case is read; an unknown word becomes `unknown`."""

    Unknown = "unknown"
    Server = "server"
    User = "user"

    @classmethod
    def parse(cls, word: str) -> RequestErrorCategory:
        """Read a word of the wire, in any letter case."""
        return next((member for member in cls if member.value == word.lower()), cls.Unknown)

    @classmethod
    def _missing_(cls, value: object) -> RequestErrorCategory:
        return cls.parse(str(value))


class UntypedAPIFuture(WireResponse):
    """The server took the request; its result is asked for with `request_id`."""

    request_id: RequestID
    model_id: str | None = absent()
    sample_sequence_ids: list[str] | None = absent()
    """Of a sampling request: an id for each sequence, num_samples of them."""


class FutureRetrieveRequest(WireRequest):
    """Ask for a result; the server holds the request open until there is one."""

    request_id: RequestID
    allow_metadata_only: bool = False
    """Whether the size may come first, for a large result."""


class TryAgainResponse(WireResponse):
    """No result yet: ask again."""

    type: Literal["try_again"] = "try_again"
    request_id: RequestID
    queue_state: str = "active"
    queue_state_reason: str | None = absent()


class RequestFailedResponse(WireResponse):
    """The request failed for good."""

    error: str
    category: RequestErrorCategory


class FutureMetadataResponse(WireResponse):
    """The result is there and this large; ask once more with allow_metadata_only false."""

    status: Literal["complete_metadata"] = "complete_metadata"
    response_payload_size: int


class SamplingSessionFuturesTarget(WireRequest):
    """Whose completions are asked for."""

    type: Literal["sampling_session"] = "sampling_session"
    sampling_session_id: str
    cloned_sampler_id: int | None = absent()


class FuturesRetrieveRequest(WireRequest):
    """Ask for the completions of a sampling session since `prev_cursor`."""

    target: SamplingSessionFuturesTarget
    prev_cursor: int
    timeout: float | None = absent()
    """Seconds the server may wait; 0 answers at once."""
    retrieved_request_ids: list[RequestID]


class FutureFinished(WireResponse):
    """A result is ready."""

    state: Literal["finished"] = "finished"
    request_id: RequestID
    response_payload_uncompressed_size: int | None = absent()


class FutureFailed(WireResponse):
    """A request failed."""

    state: Literal["failed"] = "failed"
    request_id: RequestID


FutureCompletion = Annotated[FutureFinished | FutureFailed, Field(discriminator="state")]


class FuturesRetrieveResponse(WireResponse):
    """Completions since the cursor, and the new cursor."""

    completions: list[FutureCompletion]
    cursor: int


class CancelFutureRequest(WireRequest):
    """Nobody waits for this result any more."""

    request_id: RequestID
