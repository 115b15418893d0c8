"""The plots of `learning.py`, drawn from its rows. Owns what each shows; trains nothing."""

from __future__ import annotations

import math
from collections import defaultdict
from typing import TYPE_CHECKING, Any

import numpy as np
from line_plot import Axis, Panel, Series, draw

if TYPE_CHECKING:
    from collections.abc import Callable

Row = dict[str, Any]
RATE_TICKS = (1e-4, 1e-3, 1e-2, 1e-1)
CURVE_RATE = 1e-3
"""The rate at which the ranks' training curves are compared."""


def number(value: float) -> str:
    """Write a figure with five digits."""
    return f"{value:.5g}"


def grouped(rows: list[Row], key: str, value: str) -> dict[float, list[float]]:
    """Collect `value` by `key`, in the order of the keys; rows without it are left out."""
    found: dict[float, list[float]] = defaultdict(list)
    for row in rows:
        if row[value] != "":
            found[float(row[key])].append(float(row[value]))
    return dict(sorted(found.items()))


def mean_by(rows: list[Row], key: str) -> dict[float, float]:
    """Give the geometric mean over seeds of the held-out loss at each value of `key`."""
    return {
        at: math.exp(sum(math.log(loss) for loss in losses) / len(losses))
        for at, losses in grouped(rows, key, "held_out_loss").items()
    }


def best_rate(curve: dict[float, float]) -> tuple[float, float]:
    """Lay a parabola of log loss over log rate through the best rate and its neighbours.

    No wider: the loss falls slowly on the left and jumps on the right, where training diverges.

    Returns:
        The rate at its lowest point, held within those rates, and the loss there.
    """
    rates = sorted(rate for rate, loss in curve.items() if math.isfinite(loss))
    best = min(range(len(rates)), key=lambda at: curve[rates[at]])
    near = rates[max(best - 1, 0) : best + 2]
    if len(near) < 3:  # at the border of what was tried
        return rates[best], curve[rates[best]]
    across = [math.log(rate) for rate in near]
    square, slope, base = np.polyfit(across, [math.log(curve[rate]) for rate in near], 2)
    low = -slope / (2 * square) if square > 0 else math.log(rates[best])
    low = min(max(low, across[0]), across[-1])
    return math.exp(low), math.exp(square * low * low + slope * low + base)


def _over_seeds(rows: list[Row], value: str, name: str, colour: str, **look: Any) -> Series:
    found = grouped(rows, "step", value)
    return Series(
        name,
        [(step, sum(values) / len(values)) for step, values in found.items()],
        colour,
        band=[(step, min(values), max(values)) for step, values in found.items()],
        **look,
    )


def supervised_plot(rows: list[Row]) -> str:
    panel = Panel(
        "English to French, by examples",
        Axis("optimiser steps (16 sentence pairs each)", 0, 150, (0, 30, 60, 90, 120, 150)),
        Axis("loss, nats per target token", 0.005, 12, (0.01, 0.03, 0.1, 0.3, 1, 3, 10), log=True),
        [
            _over_seeds(rows, "loss", "training batch", "c4", width=1.2),
            _over_seeds(rows, "held_out_loss", "100 held-out pairs", "c0", dots=True),
        ],
    )
    return draw([panel], "Training loss and held-out loss fall over 150 optimiser steps")


def reinforcement_plot(rows: list[Row]) -> str:
    steps = Axis("steps (16 problems x 8 replies each)", 0, 18, (0, 3, 6, 9, 12, 15, 18))
    share = Axis(
        "greedy accuracy, 200 held-out problems", 0, 1, (0, 0.2, 0.4, 0.6, 0.8, 1), percent=True
    )
    looks = {"importance_sampling": "c0", "ppo": "c1", "cispo": "c2"}
    titles = {"1": "One update per step", "4": "Four updates per step, on the same replies"}
    panels = []
    for passes, title in titles.items():
        chosen = [row for row in rows if row["passes"] == passes]
        lines = []
        for place, (loss_fn, colour) in enumerate(looks.items()):
            of_loss = [row for row in chosen if row["loss_fn"] == loss_fn]
            lone = len({row["seed"] for row in of_loss}) == 1
            look: dict[str, Any] = {"dots": not lone}
            if lone:  # it lies on the first seed of importance sampling
                look = {"dash": "1 7" if place == 1 else "5 9", "width": 2.5}
            name = f"{loss_fn} (seed 0)" if lone else loss_fn
            lines.append(_over_seeds(of_loss, "held_out_accuracy", name, colour, **look))
        panels.append(Panel(title, steps, share, lines))
    return draw(panels, "Greedy accuracy on held-out sums rises with reinforcement learning steps")


def _rate_series(rows: list[Row], name: str, colour: str, **look: Any) -> Series:
    curve = mean_by(rows, "learning_rate")
    found = grouped(rows, "learning_rate", "held_out_loss")
    rate, loss = best_rate(curve)
    return Series(
        name,
        list(curve.items()),
        colour,
        band=[(at, min(losses), max(losses)) for at, losses in found.items()],
        dots=True,
        marks=[(rate, loss)],
        **look,
    )


def _rate_axes() -> tuple[Axis, Axis]:
    return (
        Axis("peak learning rate of Adam", 1e-4, 1e-1, RATE_TICKS, log=True),
        Axis(
            "held-out loss after 60 steps, nats per token",
            0.2,
            20,
            (0.2, 0.5, 1, 2, 5, 10, 20),
            log=True,
        ),
    )


def sweep_plot(rows: list[Row]) -> str:
    x, y = _rate_axes()
    ranks = sorted({int(row["rank"]) for row in rows})
    left = [
        _rate_series([r for r in rows if int(r["rank"]) == rank], f"rank {rank}", f"s{place}")
        for place, rank in enumerate(ranks)
    ]
    right = []
    for place, rank in enumerate(ranks):
        curves = [
            [float(loss) for loss in row["losses"].split()]
            for row in rows
            if int(row["rank"]) == rank and float(row["learning_rate"]) == CURVE_RATE
        ]
        means = np.mean(np.array(curves), axis=0)
        points = [(float(step + 1), float(loss)) for step, loss in enumerate(means)]
        right.append(Series(f"rank {rank}", points, f"s{place}", width=1.6))
    panels = [
        Panel("Best rate (triangles) by rank", x, y, left),
        Panel(
            f"Training at the rate {CURVE_RATE:g}",
            Axis("optimiser steps", 0, 60, (0, 10, 20, 30, 40, 50, 60)),
            Axis("loss of the batch, nats per target token", 0, 10, (0, 2, 4, 6, 8, 10)),
            right,
        ),
    ]
    return draw(panels, "Held-out loss over the learning rate for LoRA ranks 1, 4, 16 and 64")


def layers_plot(rows: list[Row]) -> str:
    x, y = _rate_axes()
    names = list(dict.fromkeys(row["layers"] for row in rows))
    lines = [
        _rate_series([row for row in rows if row["layers"] == name], name, f"c{place}")
        for place, name in enumerate(names)
    ]
    return draw(
        [Panel("Which layers are trained", x, y, lines)],
        "Held-out loss over the learning rate for adapters on different layers",
    )


PLOTS: dict[str, Callable[[list[Row]], str]] = {
    "supervised": supervised_plot,
    "reinforcement": reinforcement_plot,
    "sweep": sweep_plot,
    "layers": layers_plot,
}
