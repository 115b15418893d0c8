"""Every loss written a second time, from its formula, in double precision; and inputs to try it on.

On purpose it shares no line with the engine's: plain expressions, no masks against overflow.
"""

from __future__ import annotations

import torch
from torch import Tensor

THRESHOLDS = {"clip_low_threshold": 0.9, "clip_high_threshold": 1.1}

CASES: list[tuple[str, dict[str, float]]] = [
    ("cross_entropy", {}),
    ("importance_sampling", {}),
    ("ppo", {}),
    ("ppo", {"clip_low_threshold": 0.9, "clip_high_threshold": 1.05}),
    ("cispo", {}),
    ("cispo", {"clip_high_threshold": 1.5}),
    ("dro", {"beta": 0.05}),
    ("stable_reinforce", {}),
    ("stable_reinforce", {"clip_high_threshold": 1.0, "kl_coeff": 0.3}),
    ("gspo", THRESHOLDS),
    ("gspo", {"clip_low_threshold": 0.0, "clip_high_threshold": 9.0}),
]
"""Losses with settings; what is not set has the default."""

CLIPPED = ("ppo", "cispo", "gspo", "stable_reinforce")
"""Losses that take thresholds for each token."""

DEFAULTS: dict[str, dict[str, float]] = {
    "ppo": {"clip_low_threshold": 0.8, "clip_high_threshold": 1.2},
    "cispo": {"clip_low_threshold": 0.0, "clip_high_threshold": 4.0},
    "stable_reinforce": {"clip_high_threshold": 2.0, "kl_coeff": 0.0},
}


def reference(name: str, lp: Tensor, fields: dict[str, Tensor], config: dict[str, float]) -> Tensor:
    """Compute a loss token by token for one sequence, [n, K] float64, differentiable by `lp`."""
    given = {**DEFAULTS.get(name, {}), **config, **fields}
    w, q, adv = given.get("weights", 1.0), given.get("logprobs"), given.get("advantages")
    low, high = (_tensor(given.get(f"clip_{side}_threshold"), lp) for side in ("low", "high"))
    if name == "cross_entropy":
        return -lp * w
    ratio = (lp - q).exp()
    if name == "importance_sampling":
        return -ratio * adv * w
    if name == "ppo":
        return -torch.min(ratio * adv, ratio.clamp(low, high) * adv) * w
    if name == "cispo":
        return -ratio.clamp(low, high).detach() * lp * adv * w
    if name == "dro":
        return -(lp * adv - 0.5 * config["beta"] * (lp - q) ** 2) * w
    if name == "stable_reinforce":
        rho = torch.min(ratio, high).detach()
        return -rho * (lp * adv - given["kl_coeff"] / 2 * (lp - q) ** 2) * w
    assert name == "gspo"
    marked = given["sequence_ratio_mask"] != 0
    mean = (lp - q).detach()[marked].mean() if marked.any() else lp.new_zeros(())
    own = mean.exp() * lp.exp() / lp.exp().detach()
    return -torch.min(own * adv, own.clamp(low, high) * adv) * w


def _tensor(value: Tensor | float | None, like: Tensor) -> Tensor | None:
    return None if value is None else torch.as_tensor(value, dtype=like.dtype).expand_as(like)


def random_inputs(
    seed: int = 0, count: int = 60, spread: float = 1.0
) -> tuple[Tensor, dict[str, Tensor]]:
    """Draw log-probabilities [count, 1] and everything that a loss may read."""
    g = torch.Generator().manual_seed(seed)

    def normal() -> Tensor:
        return torch.randn(count, 1, generator=g)

    fields = {
        "weights": normal(),
        "logprobs": -3 + spread * normal(),
        "advantages": normal(),
    }
    fields["weights"][: count // 8] = 0
    fields["sequence_ratio_mask"] = (torch.rand(count, 1, generator=g) > 0.4).float()
    return -3 + spread * normal(), fields


def _column(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float32)[:, None]


def _edge(lp: Tensor, q: Tensor, adv: Tensor, **more: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    ones = torch.ones_like(lp)
    fields = {"weights": ones, "logprobs": q, "advantages": adv, "sequence_ratio_mask": ones}
    return lp, {**fields, **more}


EDGES = {
    "one token": _edge(_column(-1.5), _column(-1.25), _column(0.5)),
    "all weights zero": _edge(
        _column(-1, -2, -3), _column(-1, -2.5, -2), _column(1, -1, 2), weights=_column(0, 0, 0)
    ),
    "all advantages zero": _edge(_column(-1, -2), _column(-1.5, -2.5), _column(0, 0)),
    "ratio exactly one": _edge(_column(-1, -2), _column(-1, -2), _column(1, -1)),
    "all clipped above": _edge(_column(-1, -1), _column(-9, -9), _column(1, 2)),
    "all clipped below": _edge(_column(-9, -9), _column(-1, -1), _column(-1, -2)),
    # 197 nats: exp overflows float32 and not float64
    "ratio overflows where it is clipped": _edge(
        _column(-3, -3), _column(-200, -200), _column(1, 2)
    ),
    "ratio overflows where the advantage is zero": _edge(
        _column(-3, -3, -3), _column(-200, -200, -3), _column(0, 0, 0)
    ),
    "ratio overflows where the weight is zero": _edge(
        _column(-3, -3), _column(-200, -3), _column(1, 1), weights=_column(0, 1)
    ),
    "ratio underflows": _edge(_column(-200, -200), _column(-1, -1), _column(1, -1)),
    "certain and nearly impossible tokens": _edge(
        _column(0, -1e-7, -90), _column(0, 0, -90.5), _column(1, -1, 1)
    ),
    "no token marked": _edge(
        _column(-1, -2), _column(-1.5, -2.5), _column(1, -1), sequence_ratio_mask=_column(0, 0)
    ),
    "advantages large and small": _edge(
        _column(-1, -2), _column(-1.05, -1.95), _column(1e6, -1e-6)
    ),
}
"""Inputs at the borders, by name. Where a loss is too large for float32 it must not be finite."""
