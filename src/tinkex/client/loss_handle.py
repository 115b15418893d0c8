"""A per-datum loss, traced once: it runs on the server where that is offered, else here.

Owns the tracing with `torch.fx`, the rules a traced loss keeps, and its form on the wire. The
rules are the server's: a loss that breaks one is refused here, before anything is sent. `torch`
is imported on use.
"""

from __future__ import annotations

import hashlib
import inspect
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from tinkex.client.custom_loss import require_torch
from tinkex.errors import InputError
from tinkex.types import CustomLossGraph, CustomLossInput, CustomLossNode, Datum

if TYPE_CHECKING:
    import torch
    from torch import fx

    from tinkex.types import CustomLossInputRank

    PerDatumLossFn = Callable[..., tuple[torch.Tensor, Mapping[str, torch.Tensor]]]
else:
    PerDatumLossFn = Callable[..., tuple[Any, dict[str, Any]]]
    """(logprobs: float32, shaped as `target_tokens`; then each of the datum's inputs that the loss
    reads) -> (loss: a scalar tensor, metrics: scalar tensors named `custom/<name>:sum|mean`)."""

MAX_INPUTS = 16
_METRIC = re.compile(r"custom/[a-z0-9_./-]{1,64}:(sum|mean)")
_PARAMETER = re.compile(r"[a-z_][a-z0-9_]{0,63}")
_MODULES = {"torch", "math", "operator", "_operator"}
_TO_PYTHON = {"item", "numpy", "tolist"}


@dataclass(frozen=True)
class LossHandle:
    """A loss made by `ServiceClient.create_custom_loss`, to pass to `forward_backward_custom`."""

    name: str
    inputs: tuple[CustomLossInput, ...]
    """`logprobs`, then the keys of `loss_fn_inputs` that the loss reads, each with its rank."""
    session_id: str
    """Clients of this session alone can use it."""
    graph: fx.GraphModule = field(repr=False, compare=False)
    """The traced loss: what runs."""
    loss_id: str | None = None
    """The server's name for it; None when it runs here."""

    @property
    def key(self) -> str:
        """What tells two losses apart: a digest of the traced code and the inputs."""
        described = f"{self.graph.code}{[(one.name, one.rank) for one in self.inputs]}"
        return hashlib.sha256(described.encode()).hexdigest()

    @property
    def input_names(self) -> tuple[str, ...]:
        """The keys of `loss_fn_inputs` that the loss reads, in the order it takes them."""
        return tuple(one.name for one in self.inputs[1:])

    def uploaded(self, loss_id: str) -> LossHandle:
        """Return the handle of the same loss on the server."""
        return replace(self, loss_id=loss_id)

    def within(self, session_id: str) -> LossHandle:
        """Return the handle as one of this session."""
        return replace(self, session_id=session_id)

    def check(self, data: Sequence[Datum]) -> None:
        """Check that every datum has what the loss reads.

        Raises:
            InputError: an input is missing, or has another rank.
        """
        wanted = [("target_tokens", self.inputs[0].rank)]
        wanted += [(one.name, one.rank) for one in self.inputs[1:]]
        for index, datum in enumerate(data):
            for key, rank in wanted:
                tensor = datum.loss_fn_inputs.get(key)
                if tensor is None:
                    raise InputError(
                        f"Datum {index} has no loss_fn_inputs[{key!r}], which the loss "
                        f"{self.name!r} reads."
                    )
                if len(tensor.dimensions) != rank:
                    raise InputError(
                        f"Datum {index}: loss_fn_inputs[{key!r}] has rank "
                        f"{len(tensor.dimensions)}, but the loss {self.name!r} was made for rank "
                        f"{rank}."
                    )

    def run(
        self, data: Sequence[Datum], logprobs: Sequence[torch.Tensor]
    ) -> tuple[torch.Tensor, dict[str, float]]:
        """Run the loss here: on every datum, losses summed, metrics by their suffix.

        Raises:
            InputError: the loss of a datum is no scalar.
        """
        torch = require_torch()
        total = torch.zeros(())
        sums: dict[str, float] = {}
        for datum, logprob in zip(data, logprobs, strict=True):
            inputs = [datum.loss_fn_inputs[name].to_torch() for name in self.input_names]
            loss, metrics = self.graph(logprob, *inputs)
            if loss.ndim != 0:
                raise InputError(
                    f"The loss {self.name!r} must return a scalar, not a tensor of shape "
                    f"{tuple(loss.shape)}: sum or average it."
                )
            total = total + loss
            for name, value in metrics.items():
                sums[name] = sums.get(name, 0.0) + float(value.detach())
        count = len(data)
        return total, {
            name: value / count if name.endswith(":mean") else value for name, value in sums.items()
        }

    def encode(self) -> CustomLossGraph:
        """Return the graph as plain data, node for node."""
        return CustomLossGraph(nodes=[self._node(node) for node in self.graph.graph.nodes])

    def _node(self, node: fx.Node) -> CustomLossNode:
        return CustomLossNode(
            op=node.op,
            name=node.name,
            target=_target_name(node),
            args=[_argument(arg) for arg in node.args],
            kwargs={name: _argument(arg) for name, arg in node.kwargs.items()},
        )


def trace(
    fn: PerDatumLossFn, input_ranks: Mapping[str, CustomLossInputRank], session_id: str = ""
) -> LossHandle:
    """Trace a loss.

    Args:
        fn: the loss.
        input_ranks: number of dimensions of each of its parameters, `logprobs` included.
        session_id: of the handle.

    Raises:
        InputError: the loss breaks a rule; the message says which.
        MissingPackageError: PyTorch is not installed.
    """
    require_torch()
    if not callable(fn):
        raise InputError(f"The loss must be a function, not {type(fn).__name__}.")
    from torch import fx  # noqa: PLC0415 - the client imports without it

    name = getattr(fn, "__name__", type(fn).__name__)
    inputs = _inputs(fn, name, input_ranks)
    try:
        graph = fx.symbolic_trace(fn)
    except Exception as error:
        raise InputError(
            f"The loss {name!r} cannot be traced by torch.fx ({error}). It must not branch on "
            "values of tensors, nor call anything but torch and math."
        ) from error
    handle = LossHandle(name=name, inputs=inputs, session_id=session_id, graph=graph)
    for node in graph.graph.nodes:
        problem = _PROBLEMS[node.op](node)
        if problem is not None:
            raise InputError(f"The loss {name!r} {problem}")
    try:
        handle.encode()
    except InputError as error:
        raise InputError(f"The loss {name!r} {error}") from None
    return handle


def _inputs(
    fn: PerDatumLossFn, name: str, ranks: Mapping[str, CustomLossInputRank]
) -> tuple[CustomLossInput, ...]:
    parameters = list(inspect.signature(fn).parameters.values())
    names = [parameter.name for parameter in parameters]
    if not names or names[0] != "logprobs":
        raise InputError(
            f"The first parameter of the loss {name!r} must be logprobs; the others name the "
            "loss_fn_inputs that it reads: def loss(logprobs, advantages)."
        )
    if len(names) > MAX_INPUTS:
        raise InputError(f"The loss {name!r} has {len(names)} parameters; {MAX_INPUTS} at most.")
    for parameter in parameters:
        if not _PARAMETER.fullmatch(parameter.name):
            raise InputError(
                f"The loss {name!r}: parameter {parameter.name!r} must be lower-case letters, "
                "digits and underscores."
            )
        positional = {parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD}
        if parameter.kind not in positional or parameter.default is not parameter.empty:
            raise InputError(
                f"The loss {name!r}: parameter {parameter.name!r} must be positional and without "
                "a default, as every datum gives it."
            )
    if not hasattr(ranks, "keys") or set(ranks) != set(names):
        raise InputError(
            f"input_ranks must give the rank of each parameter of {name!r}: {', '.join(names)}."
        )
    wrong = {one: rank for one, rank in ranks.items() if rank not in (0, 1, 2)}
    if wrong or ranks["logprobs"] == 0:
        raise InputError(
            f"A rank is 0 (a scalar), 1 ([T]) or 2 ([T, K]), and that of logprobs 1 or 2: {ranks}."
        )
    return tuple(CustomLossInput(name=one, rank=ranks[one]) for one in names)


# --- what a traced loss may do -------------------------------------------------------------------


def _no_problem(_node: fx.Node) -> str | None:
    return None


def _function_problem(node: fx.Node) -> str | None:
    target = node.target
    module = getattr(target, "__module__", None) or ""
    if target is getattr or module.partition(".")[0] in _MODULES:
        return None
    named = getattr(target, "__qualname__", target)
    return f"calls {module}.{named}: nothing but torch and math can be called."


def _method_problem(node: fx.Node) -> str | None:
    torch = require_torch()
    method = str(node.target)
    if method == "backward":
        return "calls backward(): return the loss, and forward_backward_custom differentiates it."
    if method in _TO_PYTHON:
        return f"calls {method}(), which leaves torch: keep every value a tensor, metrics too."
    if not hasattr(torch.Tensor, method):
        return f"calls {method}(), which tensors do not have."
    return None


def _module_problem(node: fx.Node) -> str | None:
    return f"uses the module {node.target!r}: use torch.nn.functional instead."


def _attribute_problem(node: fx.Node) -> str | None:
    return f"uses a tensor from outside ({node.target!r}): pass it as one of loss_fn_inputs."


def _output_problem(node: fx.Node) -> str | None:
    from torch import fx  # noqa: PLC0415 - the client imports without it

    output = node.args[0]
    if not isinstance(output, tuple | list) or len(output) != 2:
        return "must return two things: (loss, metrics)."
    loss, metrics = output
    if not isinstance(loss, fx.Node):
        return f"must return its loss as a tensor, not {loss!r}."
    if not isinstance(metrics, dict):
        return "must return its metrics as a dict."
    for key, value in metrics.items():
        if not (isinstance(key, str) and _METRIC.fullmatch(key)):
            return (
                f"returns a metric {key!r}: it must be custom/<name>:sum or custom/<name>:mean in "
                "lower case; the suffix says how it combines over the data."
            )
        if not isinstance(value, fx.Node):
            return f"returns the metric {key!r} as {value!r}: it must be a tensor."
    return None


_PROBLEMS: dict[str, Callable[[Any], str | None]] = {
    "placeholder": _no_problem,
    "call_function": _function_problem,
    "call_method": _method_problem,
    "call_module": _module_problem,
    "get_attr": _attribute_problem,
    "output": _output_problem,
}


# --- the wire ------------------------------------------------------------------------------------


def _target_name(node: fx.Node) -> str:
    if node.op != "call_function":
        return str(node.target)
    from torch.fx.node import _get_qualified_name  # noqa: PLC0415 - the client imports without it

    # Python's operators live in a private module; the wire names the public one.
    name = _get_qualified_name(node.target)  # type: ignore[arg-type]
    return f"operator.{name.removeprefix('_operator.')}" if name.startswith("_operator.") else name


def _argument(value: Any) -> Any:
    """Write an argument as JSON; what JSON has not is an object with one key.

    Raises:
        InputError: it cannot be written.
    """
    torch = require_torch()
    constants = {
        torch.dtype: "dtype",
        torch.device: "device",
        torch.layout: "layout",
        torch.memory_format: "memory_format",
    }
    match value:
        case torch.fx.Node():
            return {"ref": value.name}
        case float() if not math.isfinite(value):
            return {"float": str(value)}
        case None | bool() | int() | float() | str():
            return value
        case list():
            return [_argument(one) for one in value]
        case tuple():
            return {"tuple": [_argument(one) for one in value]}
        case dict() if all(isinstance(key, str) for key in value):
            return {"dict": {key: _argument(one) for key, one in value.items()}}
        case slice():
            return {"slice": [_argument(one) for one in (value.start, value.stop, value.step)]}
        case _ if value is Ellipsis:
            return {"ellipsis": True}
        case _ if type(value) in constants:
            return {constants[type(value)]: str(value).removeprefix("torch.")}
    raise InputError(f"passes a {type(value).__name__}, which cannot be sent to a server.")
