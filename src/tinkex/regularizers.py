"""Terms to add to a loss of your own, each with a weight, its value and its gradient's norm.

    loss = with_regularizers(my_loss, [l2(0.01), kl(0.1)])
    training.forward_backward_custom(data, loss)

Owns the mathematics. Every term is a function of the log-probabilities l that a custom loss is
given: a tensor for each datum, [T] or [T, K]. `torch` is imported on use.
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from tinkex.client.custom_loss import require_torch
from tinkex.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from contextlib import AbstractContextManager

    from tinkex.types import Datum

    CustomLossFn = Callable[[list[Datum], list[Any]], tuple[Any, Mapping[str, float]]]
    Operation = Callable[..., AbstractContextManager[dict[str, Any]]]
    Term = Callable[[list[Datum], list[Any], Any], Any]
    """(data, log-probabilities, the loss without the terms) -> a scalar tensor."""


@dataclass(frozen=True, slots=True)
class Regularizer:
    """One term: `weight * value` is added to the loss."""

    name: str
    weight: float
    value: Term


class RegularizedLoss:
    """A loss and its terms, to be called like any custom loss."""

    def __init__(self, loss_fn: CustomLossFn, terms: Sequence[Regularizer]) -> None:
        self.loss_fn = loss_fn
        self.terms = tuple(terms)

    def __call__(self, data: list[Datum], logprobs: list[Any]) -> tuple[Any, dict[str, float]]:
        """Return (the loss with its terms, the metrics with theirs)."""
        return self._run(lambda _name, **_attributes: nullcontext({}), data, logprobs)

    def observed(self, operation: Operation) -> CustomLossFn:
        """Return the same loss, each term of which is an operation that handlers hear of."""
        return partial(self._run, operation)

    def _run(
        self, operation: Operation, data: list[Datum], logprobs: list[Any]
    ) -> tuple[Any, dict[str, float]]:
        torch = require_torch()
        loss, metrics = self.loss_fn(data, logprobs)
        found = dict(metrics)
        total = loss
        for term in self.terms:
            with operation("regularizer", term=term.name, weight=term.weight) as told:
                value = term.value(data, logprobs, loss)
                gradients = torch.autograd.grad(
                    value, logprobs, retain_graph=True, allow_unused=True
                )
                squares = [(one**2).sum() for one in gradients if one is not None]
                norm = torch.stack(squares).sum().sqrt() if squares else torch.zeros(())
                told["value"] = found[f"regularizer/{term.name}"] = float(value.detach())
                told["grad_norm"] = found[f"regularizer/{term.name}/grad_norm"] = float(norm)
            total = total + term.weight * value
        return total, found


def with_regularizers(loss_fn: CustomLossFn, terms: Sequence[Regularizer]) -> RegularizedLoss:
    """Add terms to a loss.

    The metrics gain `regularizer/<name>`, the term without its weight, and
    `regularizer/<name>/grad_norm`, the 2-norm of its gradient by all log-probabilities. Handlers
    of the training client hear `regularizer.start` and `.stop` of each term.

    Raises:
        InputError: two terms have one name.
    """
    names = [term.name for term in terms]
    if len(set(names)) != len(names):
        raise InputError(f"Two regularizers have one name: {', '.join(names)}.")
    return RegularizedLoss(loss_fn, terms)


def l1(weight: float) -> Regularizer:
    """Sum of |l|."""
    return Regularizer("l1", weight, lambda _data, logprobs, _loss: _flat(logprobs).abs().sum())


def l2(weight: float) -> Regularizer:
    """Sum of l squared."""
    return Regularizer("l2", weight, lambda _data, logprobs, _loss: (_flat(logprobs) ** 2).sum())


def elastic_net(weight: float, l1_ratio: float = 0.5) -> Regularizer:
    """Rho * sum |l| + (1 - rho) / 2 * sum l^2 (Zou and Hastie 2005), rho being `l1_ratio`.

    Raises:
        InputError: the ratio is not within 0..1.
    """
    if not 0 <= l1_ratio <= 1:
        raise InputError(f"l1_ratio must be within 0..1, not {l1_ratio}.")

    def value(_data: list[Datum], logprobs: list[Any], _loss: Any) -> Any:
        flat = _flat(logprobs)
        return l1_ratio * flat.abs().sum() + (1 - l1_ratio) / 2 * (flat**2).sum()

    return Regularizer("elastic_net", weight, value)


def entropy(weight: float) -> Regularizer:
    """Mean negative entropy for each position: a positive weight keeps the policy broad.

    Of [T, K] log-probabilities, sum over K of p log p; of [T], of tokens that the policy itself
    sampled, their mean, which estimates it (E[log p] = -H).
    """

    def value(_data: list[Datum], logprobs: list[Any], _loss: Any) -> Any:
        torch = require_torch()
        rows = [(one.exp() * one).sum(-1) if one.ndim == 2 else one for one in logprobs]
        return torch.cat([row.reshape(-1) for row in rows]).mean()

    return Regularizer("entropy", weight, value)


def kl(weight: float, reference: str = "ref_logprobs") -> Regularizer:
    """Mean KL divergence to a reference policy, by Schulman's k3 estimator (2020).

    k3 = r - 1 - log r with r = p_ref / p, never negative. The reference's log-probabilities stand
    in `loss_fn_inputs[reference]` of each datum, shaped as `target_tokens`.
    """

    def value(data: list[Datum], logprobs: list[Any], _loss: Any) -> Any:
        torch = require_torch()
        terms = []
        for index, (datum, one) in enumerate(zip(data, logprobs, strict=True)):
            tensor = datum.loss_fn_inputs.get(reference)
            if tensor is None:
                raise InputError(f"Datum {index} has no loss_fn_inputs[{reference!r}] for kl.")
            log_ratio = tensor.to_torch().to(one.dtype).reshape(one.shape) - one
            terms.append((log_ratio.exp() - 1 - log_ratio).reshape(-1))
        return torch.cat(terms).mean()

    return Regularizer("kl", weight, value)


def consistency(weight: float) -> Regularizer:
    """Mean squared difference between pairs of data: 0 and 1, 2 and 3, ... of equal shape.

    For two forms of one example that should be as likely.
    """

    def value(_data: list[Datum], logprobs: list[Any], _loss: Any) -> Any:
        torch = require_torch()
        if len(logprobs) % 2 or not logprobs:
            raise InputError(f"consistency takes pairs of data, not {len(logprobs)}.")
        pairs = list(zip(logprobs[::2], logprobs[1::2], strict=True))
        if any(a.shape != b.shape for a, b in pairs):
            raise InputError("consistency: the two data of a pair must have equal shapes.")
        return torch.cat([(a - b).reshape(-1) ** 2 for a, b in pairs]).mean()

    return Regularizer("consistency", weight, value)


def orthogonality(weight: float) -> Regularizer:
    """Mean squared cosine between the log-probabilities of any two data, of equal shape."""

    def value(_data: list[Datum], logprobs: list[Any], _loss: Any) -> Any:
        torch = require_torch()
        if len(logprobs) < 2 or len({one.shape for one in logprobs}) != 1:
            raise InputError("orthogonality takes two data or more, of equal shapes.")
        rows = torch.stack([one.reshape(-1) for one in logprobs])
        unit = torch.nn.functional.normalize(rows, dim=1)
        above = torch.triu(unit @ unit.T, diagonal=1)
        return (above**2).sum() / (len(logprobs) * (len(logprobs) - 1) / 2)

    return Regularizer("orthogonality", weight, value)


def gradient_penalty(weight: float, target: float = 0.0) -> Regularizer:
    """(|| dC / dl || - target)^2 of the loss C itself: keeps its gradient near a size."""

    def value(_data: list[Datum], logprobs: list[Any], loss: Any) -> Any:
        torch = require_torch()
        gradients = torch.autograd.grad(loss, logprobs, create_graph=True, allow_unused=True)
        squares = [(one**2).sum() for one in gradients if one is not None]
        # the root has no derivative at 0
        norm = (torch.stack(squares).sum() + 1e-12).sqrt()
        difference = (norm - target) ** 2
        # a loss that is linear has a constant gradient, and the penalty then has none
        return difference if difference.requires_grad else difference + 0 * _flat(logprobs).sum()

    return Regularizer("gradient_penalty", weight, value)


def _flat(logprobs: Sequence[Any]) -> Any:
    return require_torch().cat([one.reshape(-1) for one in logprobs])
