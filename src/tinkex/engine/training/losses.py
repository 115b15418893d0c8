r"""The losses: one pure function for each `loss_fn`, from per-token log-probabilities to a loss.

Every loss is a SUM over tokens and data, never a mean. With lp the learner's log-probability of the
target, q the sampling one, A the advantage, w the weight, r = exp(lp - q):

    cross_entropy        L = sum(-lp w)
    importance_sampling  L = -sum(r A)
    ppo                  L = -sum(min(r A, clamp(r, lo, hi) A))           lo, hi = 0.8, 1.2
    cispo                L = -sum(stop_gradient(clamp(r, lo, hi)) lp A)   lo, hi = 0.0, 4.0
    dro                  L = -sum(lp A - beta/2 (lp - q)^2)               beta must be given
    gspo                 L = -sum(min(s_t A, clamp(s_t, lo, hi) A))       lo, hi = 0.9997, 1.0004
                         s_t = stop_gradient(s / p_t) p_t,  s = exp(mean of lp - q, marked tokens)
    stable_reinforce     L = -sum(rho (lp A - kl/2 (lp - q)^2))           hi, kl = 2.0, 0.0
                         rho = stop_gradient(min(r, hi)),  q as the server recorded it
    custom               a user's own: a traced graph (`graph_loss`), summed over data

(The Tinker documentation's losses page; thresholds are absolute ratios. It names no default for
`beta`, so neither do we.) PPO: arXiv 1707.06347; CISPO: arXiv 2506.13585; DRO: arXiv 2405.19107;
GSPO, its token-level variant: arXiv 2507.18071, equation 13. The cookbook's `rl_loop` names no
thresholds for gspo, so there are defaults: the clipping ranges of its paper (3e-4 below, 4e-4
above).

The official `stable_reinforce` is described, its formula is not public: this one is ours, behind
the same interface. It is REINFORCE (Williams 1992) on samples of another policy: each token's
gradient is weighted by its importance ratio, truncated at `clip_high_threshold` (as V-trace does,
arXiv 1802.01561), so that no token counts for much more than it did when sampled. `kl_coeff` is the
name of the official one's setting; here it holds the learner near the sampler: -kl (lp - q) is
added to the advantage, whose mean under the learner is -kl times the gradient of
KL(learner, sampler).

Choices of ours, where the documentation is silent: `weights` absent means 1 everywhere; the
reinforcement losses take an optional `weights` too, a factor on each token's loss (its one general
example carries the key); `clip_low_threshold` and `clip_high_threshold` may also be per-token
inputs, which then win over the configuration. Any other key is refused by name.

Owns formulas and the names of inputs; checks of shapes and values are `batching`'s.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from tinkex.errors import EngineError, InputError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from tinkex.engine.training.graph_loss import GraphLoss

LOW = "clip_low_threshold"
HIGH = "clip_high_threshold"
TARGETS = "target_tokens"
WEIGHTS = "weights"
MASK = "sequence_ratio_mask"
KL = "kl_coeff"


@dataclass(frozen=True, slots=True)
class LossInputs:
    """What a loss sees; the caller guarantees equal shapes and finite inputs."""

    logprobs: Tensor
    """[n, K] float32 log p(target), with gradient; K is 1 but for soft targets."""
    fields: Mapping[str, Tensor]
    """The datum's inputs by name, [n, K] float32 each."""
    config: Mapping[str, float]
    """loss_fn_config with defaults filled in."""


@dataclass(frozen=True, slots=True)
class LossOutput:
    """What a loss gives back."""

    elementwise: Tensor
    """[n, K] float32; their sum is the loss."""


@dataclass(frozen=True, slots=True)
class LossFunction:
    """One loss and the inputs that it takes."""

    compute: Callable[[LossInputs], LossOutput]
    required: tuple[str, ...] = ()
    """Float inputs that each datum must carry, besides `target_tokens`."""
    optional: tuple[str, ...] = (WEIGHTS,)
    defaults: tuple[tuple[str, float | None], ...] = ()
    """Configuration keys; None marks one without a default."""
    soft_targets: bool = False
    """Whether target_tokens may be [T, K]."""
    by_sequence: bool = False
    """Whether a token's loss depends on other tokens of its sequence: `compute` then sees one datum
    at a time, whole."""


def cross_entropy(inputs: LossInputs) -> LossOutput:
    """L = sum(-lp w); w is any float, so this is also the backward of a client's own loss."""
    return LossOutput(_weighted(-inputs.logprobs, inputs))


def importance_sampling(inputs: LossInputs) -> LossOutput:
    """L = -sum(r A)."""
    advantages = inputs.fields["advantages"]
    gap = _gap(inputs)
    # no advantage, no loss: lest 0 x inf give NaN where the ratio overflows
    ratio = torch.exp(torch.where(advantages == 0, torch.zeros_like(gap), gap))
    return LossOutput(_weighted(-ratio * advantages, inputs))


def ppo(inputs: LossInputs) -> LossOutput:
    """L = -sum(min(r A, clamp(r, lo, hi) A))."""
    return LossOutput(_weighted(_pessimistic(_gap(inputs), inputs), inputs))


def cispo(inputs: LossInputs) -> LossOutput:
    """L = -sum(stop_gradient(clamp(r, lo, hi)) lp A)."""
    clipped = _clip(torch.exp(_gap(inputs).detach()), inputs)
    return LossOutput(_weighted(-clipped * inputs.logprobs * inputs.fields["advantages"], inputs))


def dro(inputs: LossInputs) -> LossOutput:
    """L = -sum(lp A - beta/2 (lp - q)^2)."""
    gap = _gap(inputs)
    gain = inputs.logprobs * inputs.fields["advantages"]
    return LossOutput(_weighted(0.5 * inputs.config["beta"] * gap.square() - gain, inputs))


def gspo(inputs: LossInputs) -> LossOutput:
    """L = -sum(min(s_t A, clamp(s_t, lo, hi) A)) of one sequence.

    `sequence_ratio_mask` marks the tokens whose mean log-ratio is the sequence's. Each token then
    has that ratio's value and the gradient of its own log-probability.
    """
    marked = inputs.fields[MASK] != 0
    learner = inputs.logprobs.detach()
    gap = (learner - inputs.fields["logprobs"])[marked]
    of_sequence = gap.mean() if gap.numel() else learner.new_zeros(())
    log_ratio = _silenced(of_sequence + inputs.logprobs - learner, inputs)
    return LossOutput(_weighted(_pessimistic(log_ratio, inputs), inputs))


def stable_reinforce(inputs: LossInputs) -> LossOutput:
    """L = -sum(rho (lp A - kl/2 (lp - q)^2)), rho = stop_gradient(min(r, hi)): ours, see above."""
    high = inputs.fields.get(HIGH, inputs.logprobs.new_tensor(inputs.config[HIGH]))
    gap, coefficient = _gap(inputs), inputs.config[KL]
    truncated = torch.minimum(torch.exp(gap.detach()), high)
    gain = inputs.logprobs * inputs.fields["advantages"]
    if coefficient:
        gain = gain - 0.5 * coefficient * gap.square()
    return LossOutput(_weighted(-truncated * gain, inputs))


def _no_formula(_inputs: LossInputs) -> LossOutput:
    raise EngineError("a custom loss is computed by its graph")


def _pessimistic(log_ratio: Tensor, inputs: LossInputs) -> Tensor:
    """Compute -min(r A, clamp(r, lo, hi) A).

    What is clipped is chosen before r is computed with a gradient: a ratio that overflows there
    would give 0 x inf, though its loss and gradient are plain numbers.
    """
    advantages = inputs.fields["advantages"]
    ratio = torch.exp(log_ratio.detach())
    clipped = _clip(ratio, inputs) * advantages
    kept = ratio * advantages <= clipped  # false for 0 x inf as well
    kept_ratio = torch.exp(torch.where(kept, log_ratio, torch.zeros_like(log_ratio)))
    return -torch.where(kept, kept_ratio * advantages, clipped)


def _gap(inputs: LossInputs) -> Tensor:
    """Compute lp - q, silenced."""
    return _silenced(inputs.logprobs - inputs.fields["logprobs"], inputs)


def _silenced(log_ratio: Tensor, inputs: LossInputs) -> Tensor:
    """Give 0 without gradient where the weight is 0, lest 0 x inf give NaN later."""
    weights = inputs.fields.get(WEIGHTS)
    if weights is None:
        return log_ratio
    return torch.where(weights == 0, torch.zeros_like(log_ratio), log_ratio)


def _clip(ratio: Tensor, inputs: LossInputs) -> Tensor:
    low, high = (
        inputs.fields.get(key, ratio.new_tensor(inputs.config[key])) for key in (LOW, HIGH)
    )
    return torch.clamp(ratio, low, high)


def _weighted(values: Tensor, inputs: LossInputs) -> Tensor:
    """Multiply by the weights; a zero weight gives zero even on an infinite value."""
    weights = inputs.fields.get(WEIGHTS)
    if weights is None:
        return values
    return torch.where(weights == 0, torch.zeros_like(values), values * weights)


_REINFORCEMENT = ("logprobs", "advantages")
_CLIPPED = (WEIGHTS, LOW, HIGH)

LOSSES: Mapping[str, LossFunction] = MappingProxyType(
    {
        "cross_entropy": LossFunction(cross_entropy, soft_targets=True),
        "importance_sampling": LossFunction(importance_sampling, _REINFORCEMENT),
        "ppo": LossFunction(ppo, _REINFORCEMENT, _CLIPPED, ((LOW, 0.8), (HIGH, 1.2))),
        "cispo": LossFunction(cispo, _REINFORCEMENT, _CLIPPED, ((LOW, 0.0), (HIGH, 4.0))),
        "dro": LossFunction(dro, _REINFORCEMENT, defaults=(("beta", None),)),
        "gspo": LossFunction(
            gspo,
            (*_REINFORCEMENT, MASK),
            _CLIPPED,
            ((LOW, 0.9997), (HIGH, 1.0004)),
            by_sequence=True,
        ),
        "stable_reinforce": LossFunction(
            stable_reinforce, _REINFORCEMENT, (WEIGHTS, HIGH), ((HIGH, 2.0), (KL, 0.0))
        ),
    }
)


@dataclass(frozen=True, slots=True)
class LossCall:
    """A loss as one request asks for it."""

    name: str
    loss: LossFunction
    config: Mapping[str, float]
    """Checked, with defaults filled in."""
    graph: GraphLoss | None = None
    """A user's own loss; it takes the place of `loss.compute`."""


def custom_loss_call(graph: GraphLoss) -> LossCall:
    """Make the call of a user's own loss."""
    loss = LossFunction(
        _no_formula, graph.input_names, optional=(), soft_targets=True, by_sequence=True
    )
    return LossCall(f"custom ({graph.name})", loss, {}, graph)


def loss_call(name: str, config: Mapping[str, float | str] | None) -> LossCall:
    """Find a loss by its wire name and check its configuration.

    Raises:
        InputError: no such loss, or a configuration that does not fit.
    """
    loss = LOSSES.get(name)
    if loss is not None:
        return LossCall(name, loss, _checked_config(name, loss, config or {}))
    have = ", ".join(LOSSES)
    raise InputError(
        f"unknown loss_fn {name!r}; this server has {have}, and forward_backward_custom computes "
        "any other on the client"
    )


def _checked_config(
    name: str, loss: LossFunction, given: Mapping[str, float | str]
) -> dict[str, float]:
    config = dict(loss.defaults)
    for key, value in given.items():
        if key not in config:
            known = ", ".join(config) or "none"
            raise InputError(f"loss_fn_config: {name} has no key {key!r}; it takes {known}")
        if isinstance(value, str) or not math.isfinite(value):
            raise InputError(f"loss_fn_config: {key!r} must be a finite number, got {value!r}")
        config[key] = float(value)
    checked = {key: value for key, value in config.items() if value is not None}
    missing = sorted(config.keys() - checked.keys())
    if missing:
        raise InputError(f"loss_fn_config: {name} needs {', '.join(missing)}, which has no default")
    if checked.get(LOW, 0.0) > checked.get(HIGH, math.inf):
        raise InputError(f"loss_fn_config: {LOW} is above {HIGH}")
    return checked
