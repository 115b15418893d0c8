"""A loss that the server computes: a traced graph of tensor operations and its inputs."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from tinkex.types._model import Int, NotBoolean, WireRequest, WireResponse, absent

CustomLossInputRank = Literal[0, 1, 2]


class CustomLossInput(WireRequest):
    """A value that the loss takes for each datum: its name and how many dimensions it has."""

    name: str
    rank: Annotated[CustomLossInputRank, NotBoolean]


class CustomLossNode(WireRequest):
    """One operation of the graph; `args` and `kwargs` name earlier nodes."""

    op: str
    name: str
    target: str
    args: list[Any] = Field(default_factory=list)
    kwargs: dict[str, Any] = Field(default_factory=dict)


class CustomLossGraph(WireRequest):
    """The operations, in the order in which they run."""

    format: Annotated[Literal[1], NotBoolean] = 1
    nodes: list[CustomLossNode]


class CreateCustomLossRequest(WireRequest):
    """Give the server a loss to compute."""

    session_id: str
    custom_loss_seq_id: Int
    name: str
    inputs: list[CustomLossInput]
    graph: CustomLossGraph
    type: Literal["create_custom_loss"] = "create_custom_loss"


class CreateCustomLossResponse(WireResponse):
    """What `forward_backward` names the loss by."""

    loss_id: str
    type: Literal["create_custom_loss"] | None = absent()
