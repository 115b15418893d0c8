"""A forward_backward request as the server first sees it: whose it is, before what is in it.

A request whose data are bad must fail through its future, and a future needs the model id and the
sequence id. So the outer message is read first, and the data only when they are asked for.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from tinkex.types import Datum, ForwardBackwardInput, ForwardBackwardRequest

if TYPE_CHECKING:
    from collections.abc import Callable


@dataclass(frozen=True)
class ForwardBackwardEnvelope:
    """The outer fields of a forward_backward request, and how to read its data."""

    model_id: str
    seq_id: int | None
    loss_fn: str
    loss_fn_config: dict[str, float | str] | None
    forward_only: bool
    datum_count: int
    decode_data: Callable[[], list[Datum]]
    """Reads the data.

    Raises:
        InputError: naming the index of the first datum that cannot be read.
    """

    def request(self) -> ForwardBackwardRequest:
        """Return the whole request; InputError when a datum cannot be read."""
        inner = ForwardBackwardInput(self.decode_data(), self.loss_fn, self.loss_fn_config)
        return ForwardBackwardRequest(inner, self.model_id, self.seq_id, self.forward_only)
