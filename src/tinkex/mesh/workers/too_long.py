"""What a program is told of a completion that no message of the mesh can hold.

Owns these words. Programs look for the code in them, and shorten what they send: no context that
a message's bytes would fill leaves room for more.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from tinkex.mesh.rpc.messages import MAX_BODY_BYTES
from tinkex.mesh.rpc.peers import RequestTooLongError
from tinkex.openai_api.refusal import context_length_exceeded


@contextmanager
def told_as_too_long() -> Iterator[None]:
    """Turn a request that is too long for a message into one that is for the context.

    Raises:
        APIStatusError: 400, `context_length_exceeded`.
    """
    try:
        yield
    except RequestTooLongError as error:
        raise context_length_exceeded(
            f"A request may have {MAX_BODY_BYTES} bytes on its way through the mesh, and this one "
            "has more. Shorten the prompt.",
            "prompt",
        ) from error
