"""Losses that a user traced and uploaded: a graph of tensor operations, run by an interpreter.

Nothing a user sends is ever evaluated as code. A graph is a list of nodes; each calls one function
or tensor method of a fixed list, on earlier nodes and plain constants. Everything else is refused
by name when the graph is read. Before a graph runs on data of some shape it runs once on `meta`
tensors, which have a shape and no memory: what it would take is known, and bounded, before it is
taken. A graph sees one datum at a time: the log-probabilities and the inputs that it names.

Owns the lists, the limits, and the format of the wire (`types.CustomLossGraph`, format 1).
"""

from __future__ import annotations

import math
import operator
import re
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.fx.node import _get_qualified_name
from torch.nn import functional as F

from tinkex.engine.training.graph_memory import inner_numbers
from tinkex.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from tinkex._clock import Clock
    from tinkex.types import CustomLossGraph, CustomLossInput, CustomLossNode

MAX_NODES = 512
MAX_DEPTH = 8
"""Nesting of lists in the arguments of a node."""
MAX_ELEMENTS = 2**25
"""Numbers in all results of a graph together, for one datum: 128 MiB of float32."""
MAX_SINGULAR_WORK = 2**27
"""Numbers of a matrix times its smaller side, where a norm needs its singular values: a tenth of a
second. Larger ones take minutes, in which nothing looks at the time."""
LOGPROBS = "logprobs"

_METRIC = re.compile(r"custom/[a-z0-9_./-]{1,64}:(sum|mean)")
_NAME = re.compile(r"[A-Za-z_]\w{0,127}")
_BIGGEST_NUMBER = 2.0**53
_DTYPES = {
    name: getattr(torch, name)
    for name in ("float32", "float64", "float", "double", "int64", "long", "int32", "int", "bool")
}
_ATTRIBUTES = frozenset({"shape", "ndim", "dtype", "device", "T", "mT"})
_REFUSED_KEYWORDS = frozenset({"out", "generator", "requires_grad", "pin_memory", "layout"})

_OPERATORS = (
    "add sub mul truediv floordiv mod neg pos abs lt le gt ge eq ne and_ or_ xor invert matmul "
    "getitem pow"
)
_TORCH = (
    "abs absolute add addcdiv addcmul all amax amin any argmax argmin atan atan2 bitwise_not bmm "
    "cat ceil clamp clamp_max clamp_min clip clone cos cosh cummax cummin cumprod cumsum "
    "logcumsumexp "
    "deg2rad detach diag diff div divide dot einsum eq erf erfc exp exp2 expm1 flatten flip floor "
    "floor_divide fmax fmin frac full_like gather ge greater greater_equal gt heaviside hypot "
    "index_select isclose isfinite isinf isnan le lerp less less_equal log log10 log1p log2 "
    "logaddexp logaddexp2 log_softmax logical_and logical_not logical_or logical_xor logit "
    "logsumexp lt masked_fill matmul max maximum mean median min minimum mm movedim mul multiply "
    "mv nan_to_num nanmean nansum narrow ne neg negative norm not_equal ones_like outer "
    "permute "
    "positive pow prod reciprocal relu remainder reshape roll round rsqrt scatter scatter_add "
    "select sgn sigmoid sign sin sinh softmax sort sqrt square squeeze stack std sub subtract sum "
    "swapaxes t take_along_dim tan tanh tensordot topk trace transpose tril triu true_divide trunc "
    "unbind unsqueeze var vstack hstack where xlogy zeros_like"
)
_FUNCTIONAL = (
    "binary_cross_entropy binary_cross_entropy_with_logits celu cosine_similarity elu gelu "
    "hardsigmoid hardswish hardtanh huber_loss kl_div l1_loss leaky_relu log_softmax logsigmoid "
    "mse_loss nll_loss normalize pad poisson_nll_loss relu relu6 selu silu smooth_l1_loss softmax "
    "softmin softplus softsign tanh threshold"
)
_METHODS = (
    _TORCH.replace("einsum ", "").replace("tensordot ", "") + " __getitem__ bool contiguous dim "
    "double expand expand_as float int long masked_fill new_ones new_zeros numel repeat size "
    "sum_to_size to type_as view view_as"
)
_NO_METHODS = frozenset(
    {"cat", "full_like", "hstack", "ones_like", "stack", "vstack", "zeros_like"}
)
_LINALG = "norm vector_norm matrix_norm"


@cache
def _functions() -> Mapping[str, Callable[..., Any]]:
    """The functions that a graph may call, by the name that torch.fx gives them."""
    found: dict[str, Callable[..., Any]] = {"getattr": getattr, "builtins.getattr": getattr}
    for name in _OPERATORS.split():
        found[f"operator.{name}"] = getattr(operator, name)
    found["math.sqrt"], found["math.log"], found["math.exp"] = math.sqrt, math.log, math.exp
    for module, prefix, names in (
        (torch, "torch", _TORCH),
        (F, "torch.nn.functional", _FUNCTIONAL),
        (torch.linalg, "torch.linalg", _LINALG),
    ):
        for name in names.split():
            function = getattr(module, name, None)
            if function is not None:
                found[f"{prefix}.{name}"] = function
                found[_get_qualified_name(function)] = function
    return found


@cache
def _methods() -> frozenset[str]:
    return frozenset(_METHODS.split()) - _NO_METHODS


@dataclass(frozen=True, slots=True)
class _Reference:
    name: str


@dataclass(frozen=True, slots=True)
class _Node:
    op: str
    name: str
    target: str
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class GraphResult:
    """What a graph gave for one datum."""

    loss: Tensor
    """[] float, with a gradient by the log-probabilities."""
    metrics: Mapping[str, float]
    """By name, with their suffix `:sum` or `:mean`."""

    def detached(self) -> GraphResult:
        """Return the same without the history that a gradient needs."""
        return GraphResult(self.loss.detach(), self.metrics)


class _PicksByValueError(Exception):
    """A node whose result's shape depends on values."""


class GraphLoss:
    """A checked graph, ready to run.

    Args:
        name: of the loss, for messages.
        inputs: `logprobs` and the keys of `loss_fn_inputs` that it reads, each with its rank.
        graph: its nodes.
        max_elements: numbers that its results may hold for one datum.

    Raises:
        InputError: it calls what is not on the list, or has another form; the message says what.
    """

    def __init__(
        self,
        name: str,
        inputs: Sequence[CustomLossInput],
        graph: CustomLossGraph,
        *,
        max_elements: int = MAX_ELEMENTS,
    ) -> None:
        self.name = name
        self.inputs = tuple(inputs)
        self._max_elements = max_elements
        self._shapes_seen: set[tuple[Any, ...]] = set()
        self._picks_by_value = False
        if not inputs or inputs[0].name != LOGPROBS or inputs[0].rank == 0:
            raise self._fault("its first input must be logprobs, of rank 1 or 2")
        if len(graph.nodes) > MAX_NODES:
            raise self._fault(f"it has {len(graph.nodes)} nodes; {MAX_NODES} at most")
        self._nodes = self._read(graph.nodes)

    @property
    def input_names(self) -> tuple[str, ...]:
        """The keys of `loss_fn_inputs` that the loss reads."""
        return tuple(one.name for one in self.inputs[1:])

    def run(
        self, logprobs: Tensor, inputs: Mapping[str, Tensor], *, clock: Clock, deadline: float
    ) -> GraphResult:
        """Run the graph on one datum.

        Args:
            logprobs: [T] or [T, K] float32, a leaf with gradient.
            inputs: the datum's inputs by name, float32 or int64.
            clock: tells when it has run too long.
            deadline: by that clock, in seconds.

        Raises:
            InputError: an operation fails on these shapes or values, the loss is no scalar or does
                not depend on the log-probabilities, or memory or time run out.
        """
        values = (logprobs, *(inputs[name] for name in self.input_names))
        for one, value in zip(self.inputs, values, strict=True):
            if value.ndim != one.rank:
                raise self._fault(f"{one.name} has rank {value.ndim}, it was made for {one.rank}")
        signature = tuple((*value.shape, value.dtype) for value in values)
        if not self._picks_by_value and signature not in self._shapes_seen:
            self._measure(values)
            self._shapes_seen.add(signature)

        def check_time() -> None:
            if clock.monotonic() > deadline:
                raise self._fault("it takes too long; make it smaller, or send fewer data")

        with torch.enable_grad():
            count = self._counter() if self._picks_by_value else None
            loss, metrics = self._evaluate(values, check_time, count)
        if not isinstance(loss, Tensor) or loss.ndim != 0 or not loss.is_floating_point():
            raise self._fault(f"it must return a scalar tensor, not {_described(loss)}")
        if logprobs.requires_grad and not loss.requires_grad:
            raise self._fault("its loss does not depend on logprobs: nothing could be learned")
        return GraphResult(loss, {key: self._metric(key, one) for key, one in metrics.items()})

    def _metric(self, key: str, value: object) -> float:
        if not isinstance(value, Tensor) or value.numel() != 1:
            raise self._fault(f"the metric {key} must be a scalar tensor, not {_described(value)}")
        return float(value.detach())

    def warm_up(self) -> None:
        """Have torch load what it needs for `run`, on shapes of no data; takes seconds once."""
        shapes = [(8,) * one.rank for one in self.inputs]
        with suppress(InputError):  # these shapes may be none that the loss is for
            self._measure([torch.empty(shape) for shape in shapes])

    # --- reading --------------------------------------------------------------------------------

    def _read(self, nodes: Sequence[CustomLossNode]) -> tuple[_Node, ...]:
        known: set[str] = set()
        placeholders: list[str] = []
        read = []
        for node in nodes:
            if not _NAME.fullmatch(node.name) or node.name in known:
                raise self._fault(f"the node name {node.name[:60]!r} is no name, or is used twice")
            self._check_target(node)
            args = tuple(self._argument(arg, known, 0) for arg in node.args)
            # None is what torch.norm itself fills in
            refused = {name for name in _REFUSED_KEYWORDS if node.kwargs.get(name) is not None}
            if refused or not all(_NAME.fullmatch(name) for name in node.kwargs):
                raise self._fault(f"{node.target} takes an argument that cannot be used here")
            kwargs = {name: self._argument(arg, known, 0) for name, arg in node.kwargs.items()}
            if node.target == "to" and any(
                isinstance(one, str) for one in (*args, *kwargs.values())
            ):
                raise self._fault("it moves a tensor to a device that it names")
            read.append(_Node(node.op, node.name, node.target, args, kwargs))
            known.add(node.name)
            if node.op == "placeholder":
                placeholders.append(node.target)
        if placeholders != [one.name for one in self.inputs]:
            raise self._fault("its placeholders are not its inputs, in their order")
        if not read or read[-1].op != "output" or [n.op for n in read].count("output") != 1:
            raise self._fault("it must end in its one output")
        self._check_output(read[-1])
        return tuple(read)

    def _check_target(self, node: CustomLossNode) -> None:
        if node.op == "call_function":
            if node.target not in _functions():
                raise self._fault(f"it calls {node.target[:80]}, which is not on the list")
        elif node.op == "call_method":
            if node.target not in _methods():
                raise self._fault(
                    f"it calls the method {node.target[:80]}, which is not on the list"
                )
        elif node.op not in {"placeholder", "output"}:
            raise self._fault(f"it has a node of kind {node.op[:40]!r}")

    def _check_output(self, node: _Node) -> None:
        output = node.args[0] if len(node.args) == 1 else None
        if not isinstance(output, tuple | list) or len(output) != 2:
            raise self._fault("it must return (loss, metrics)")
        loss, metrics = output
        if not isinstance(loss, _Reference) or not isinstance(metrics, dict):
            raise self._fault("it must return (loss, metrics)")
        for key, value in metrics.items():
            if not _METRIC.fullmatch(key) or not isinstance(value, _Reference):
                raise self._fault(f"the metric {key[:80]!r} must be custom/<name>:sum or :mean")

    def _argument(self, value: Any, known: set[str], depth: int) -> Any:
        """Read one argument; what JSON has not is an object with one key."""
        if depth > MAX_DEPTH:
            raise self._fault("its arguments are nested too deeply")

        def inner(values: Any) -> list[Any]:
            if not isinstance(values, list):
                raise self._fault("an argument has another form")
            return [self._argument(one, known, depth + 1) for one in values]

        if isinstance(value, list):
            return inner(value)
        if not isinstance(value, dict):
            return self._constant(value)
        if len(value) != 1:
            raise self._fault("an argument has another form")
        ((kind, body),) = value.items()
        match kind:
            case "ref" if isinstance(body, str) and body in known:
                return _Reference(body)
            case "tuple":
                return tuple(inner(body))
            case "dict" if isinstance(body, dict):
                return {str(k): self._argument(one, known, depth + 1) for k, one in body.items()}
            case "slice" if isinstance(body, list) and len(body) == 3:
                return slice(*inner(body))
            case "ellipsis":
                return Ellipsis
            case "float" if body in {"inf", "-inf", "nan"}:
                return float(body)
            case "dtype" if isinstance(body, str) and body in _DTYPES:
                return _DTYPES[body]
        raise self._fault(f"an argument {kind[:40]!r} cannot be used here")

    def _constant(self, value: Any) -> Any:
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if is_number and not abs(value) <= _BIGGEST_NUMBER:
            raise self._fault("a number in it is too large")
        if isinstance(value, str) and len(value) > 64:
            raise self._fault("a text in it is too long")
        return value

    # --- running --------------------------------------------------------------------------------

    @torch.no_grad()
    def _measure(self, values: Sequence[Tensor]) -> None:
        """Run on shapes alone, and refuse what would take too much memory.

        A graph that picks elements by their values has shapes that only a run knows; such a run
        measures each node before it.
        """
        try:
            self._evaluate([_shadow(one) for one in values], None, self._counter())
        except _PicksByValueError:
            self._picks_by_value = True

    def _counter(self) -> Callable[..., None]:
        """Give what adds up the numbers that results hold, and refuses too many."""
        taken = 0

        def count(result: Any, inner: int = 0) -> None:
            nonlocal taken
            taken += inner + sum(one.numel() for one in _tensors(result))
            if taken > self._max_elements:
                raise self._fault(
                    f"its results hold more than {self._max_elements} numbers for one datum"
                )

        return count

    def _evaluate(
        self,
        values: Sequence[Tensor],
        check_time: Callable[[], None] | None,
        count: Callable[..., None] | None = None,
    ) -> tuple[Any, dict[str, Any]]:
        found: dict[str, Any] = {}
        given = iter(values)
        for node in self._nodes:
            if node.op == "placeholder":
                found[node.name] = next(given)
                continue
            args = _resolve(node.args, found)
            if node.op == "output":
                loss, metrics = args[0]
                return loss, metrics
            kwargs = _resolve(dict(node.kwargs), found)
            if check_time is not None:
                check_time()
            try:
                if count is not None:
                    self._count(node, args, kwargs, count)
                result = self._call(node, args, kwargs)
            except (ArithmeticError, LookupError, RuntimeError, TypeError, ValueError) as error:
                text = (str(error).strip() or type(error).__name__).split("\n", 1)[0]
                raise self._fault(f"{node.target} fails: {text[:200]}") from None
            found[node.name] = result
        raise self._fault("it must end in its one output")

    def _count(
        self,
        node: _Node,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        count: Callable[..., None],
    ) -> None:
        """Measure one node's result on shapes alone, and what it holds on the way there."""
        if node.target in {"operator.getitem", "__getitem__"} and _has_mask(args[1:]):
            if args[0].is_meta:
                raise _PicksByValueError
            count(args[0])  # a mask picks no more than there is
            return
        shadows = (_shadowed(args), _shadowed(kwargs))
        with torch.no_grad():
            count(self._call(node, *shadows), inner_numbers(_function_of(node), *shadows))

    def _call(self, node: _Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if node.op == "call_method":
            if not args or not isinstance(args[0], Tensor):
                raise self._fault(f"{node.target} is called on what is no tensor")
            if node.target == "norm":
                self._check_norm(torch.norm, args, kwargs)
            return getattr(args[0], node.target)(*args[1:], **kwargs)
        function = _functions()[node.target]
        if function is getattr:
            if len(args) != 2 or not isinstance(args[0], Tensor) or args[1] not in _ATTRIBUTES:
                raise self._fault(f"it reads an attribute other than {sorted(_ATTRIBUTES)}")
            return getattr(args[0], args[1])
        if not any(True for _ in _tensors((args, kwargs))):
            return self._plain(node, function, args, kwargs)
        self._check_norm(function, args, kwargs)
        return function(*args, **kwargs)

    def _check_norm(
        self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> None:
        """Refuse a norm that would take too long in one piece."""
        of = args[0] if args else kwargs.get("A", kwargs.get("input"))
        if not isinstance(of, Tensor) or of.ndim < 2:
            return
        order = args[1] if len(args) > 1 else kwargs.get("ord", kwargs.get("p"))
        if not _needs_singular_values(function, order):
            return
        if of.numel() * sorted(of.shape)[-2] > MAX_SINGULAR_WORK:
            raise self._fault(
                f"the norm {order!r} of a tensor of shape {list(of.shape)} takes too long"
            )

    def _plain(
        self, node: _Node, function: Callable[..., Any], args: tuple[Any, ...], kwargs: Any
    ) -> Any:
        """Call on numbers alone, as the arithmetic of a shape does; the results stay small."""
        picks = node.target == "operator.getitem"
        if kwargs or node.target == "operator.pow" or node.target.startswith("torch"):
            raise self._fault(f"{node.target} is called without a tensor")
        if not picks and not all(isinstance(one, int | float | bool) for one in args):
            raise self._fault(f"{node.target} is called on what is neither tensor nor number")
        result = function(*args)
        if isinstance(result, int | float):
            self._constant(result)
        return result

    def _fault(self, what: str) -> InputError:
        return InputError(f"the loss {self.name!r}: {what}")


def _function_of(node: _Node) -> object:
    """Give the function that a node calls, or the one of torch that its method is."""
    if node.op == "call_function":
        return _functions()[node.target]
    return getattr(torch, node.target, None)


def _needs_singular_values(function: Callable[..., Any], order: object) -> bool:
    if function in {torch.norm, torch.linalg.norm, torch.linalg.matrix_norm} and order == "nuc":
        return True
    of_matrices = function in {torch.linalg.norm, torch.linalg.matrix_norm}
    return of_matrices and order in {2, -2}


def _resolve(value: Any, found: Mapping[str, Any]) -> Any:
    match value:
        case _Reference():
            return found[value.name]
        case tuple():
            return tuple(_resolve(one, found) for one in value)
        case list():
            return [_resolve(one, found) for one in value]
        case dict():
            return {key: _resolve(one, found) for key, one in value.items()}
        case slice():
            return slice(*(_resolve(one, found) for one in (value.start, value.stop, value.step)))
    return value


def _shadow(tensor: Tensor) -> Tensor:
    """Give a tensor of the same shape and dtype without memory."""
    return torch.empty_like(tensor, device="meta")


def _shadowed(value: Any) -> Any:
    match value:
        case Tensor():
            return _shadow(value)
        case torch.Size():
            return value
        case tuple():
            return tuple(_shadowed(one) for one in value)
        case list():
            return [_shadowed(one) for one in value]
        case dict():
            return {key: _shadowed(one) for key, one in value.items()}
    return value


def _has_mask(value: Any) -> bool:
    return any(one.dtype == torch.bool for one in _tensors(value))


def _tensors(value: Any) -> Any:
    """Yield the tensors in nested tuples, lists and dicts."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, tuple | list):
        for one in value:
            yield from _tensors(one)
    elif isinstance(value, dict):
        for one in value.values():
            yield from _tensors(one)


def _described(value: object) -> str:
    if isinstance(value, Tensor):
        return f"a tensor of shape {list(value.shape)} and {value.dtype}"
    return type(value).__name__
