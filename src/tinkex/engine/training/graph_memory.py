"""What operations of a user's own loss hold in memory besides their results.

Some spread their arguments out against each other before they add up: their result may be one
number, and what comes before it fill any memory. Owns which these are, and how much it is, by the
shapes alone; what may be taken is `graph_loss`'s.
"""

from __future__ import annotations

import math
import operator
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_ADDS_UP = frozenset(
    {
        F.binary_cross_entropy,
        F.binary_cross_entropy_with_logits,
        F.cosine_similarity,
        F.huber_loss,
        F.kl_div,
        F.l1_loss,
        F.mse_loss,
        F.poisson_nll_loss,
        F.smooth_l1_loss,
    }
)
"""Broadcast their arguments, and add the results up."""
_PRODUCTS = frozenset({operator.matmul, torch.matmul})
_ELLIPSIS = "..."


def inner_numbers(function: object, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> int:
    """Count the numbers that a call holds on its way to its result, at most.

    Args:
        function: what is called.
        args: tensors among them, with their shapes.
        kwargs: as above.

    Returns:
        0 for what holds its result alone, and where the shapes do not fit each other.
    """
    tensors = [one for one in (*args, *kwargs.values()) if isinstance(one, Tensor)]
    try:
        if function is torch.einsum:
            return _of_einsum(args)
        if function in _PRODUCTS:
            return _of_product(tensors)
        if function in _ADDS_UP:
            return math.prod(np.broadcast_shapes(*(one.shape for one in tensors)))
    except ValueError:  # the call itself will say so
        return 0
    return 0


def _of_product(factors: Sequence[Tensor]) -> int:
    """Count the copies of two stacks of matrices, each repeated for the other's."""
    if len(factors) != 2 or min(one.ndim for one in factors) < 3:
        return 0
    count = math.prod(np.broadcast_shapes(*(one.shape[:-2] for one in factors)))
    return count * sum(math.prod(one.shape[-2:]) for one in factors)


def _of_einsum(args: tuple[Any, ...]) -> int:
    """Bound what comes between: operands are contracted two at a time, from the left."""
    equation, *operands = args
    if operands and isinstance(operands[0], list | tuple):
        operands = list(operands[0])
    if not isinstance(equation, str) or len(operands) <= 2:
        return 0 if isinstance(equation, str) else _product_of_all(args)
    terms = equation.replace(" ", "").partition("->")[0].split(",")
    if _ELLIPSIS in equation:
        return _product_of_all(operands)
    sizes: dict[str, int] = {}
    for term, operand in zip(terms, operands, strict=False):  # another number of them is a fault
        for label, size in zip(term, operand.shape, strict=False):
            sizes[label] = max(size, sizes.get(label, 1))
    return math.prod(sizes.values())


def _product_of_all(values: Sequence[Any]) -> int:
    return math.prod(one.numel() for one in values if isinstance(one, Tensor))
