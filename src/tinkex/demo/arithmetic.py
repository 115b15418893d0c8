"""The reinforcement-learning demo task: two-operand sums whose reply a rule can check.

Owns the problems, their split and their reward. It owns no model and no training loop, and it
imports nothing heavy, so a client without torch can use it.

The split is by operands: an unordered pair of operands is held out when `is_held_out` says so,
whatever the operation and the wording. `problems` never draws such a pair, `held_out` draws no
other, and the data `tinkex/sprout` was trained on has none of them in a sum or a difference.
"""

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass

MAX_OPERAND = 49
"""Operands are 1 to this number, so that an answer has at most two digits."""

PHRASINGS = (
    "What is {a} {sign} {b}?",
    "Compute {a} {sign} {b}.",
    "How much is {a} {word} {b}?",
    "{a} {sign} {b} = ?",
    "Work out {a} {sign} {b}.",
)
"""The wordings of a question; `sign` is + or -, `word` is plus or minus."""

_WORDS = {"+": "plus", "-": "minus"}
_HELD_OUT_SEED = 2026


@dataclass(frozen=True, slots=True)
class Problem:
    """One question and the number that answers it."""

    question: str
    answer: int


def is_held_out(a: int, b: int) -> bool:
    """Tell whether the pair of operands belongs to the held-out problems, in either order."""
    low, high = sorted((a, b))
    return (7 * high + 3 * low) % 11 == 4


def problems(seed: int, count: int) -> list[Problem]:
    """Draw training problems, with repetition.

    Args:
        seed: Equal seeds give equal problems.
        count: How many to draw.

    Returns:
        The problems, none of which has a held-out pair of operands.
    """
    drawn = _draw(random.Random(seed), keep=lambda a, b: not is_held_out(a, b))  # noqa: S311
    return [next(drawn) for _ in range(count)]


def held_out(count: int = 200) -> list[Problem]:
    """Return the first `count` held-out problems; the same ones at every call.

    Args:
        count: How many, all with different questions.

    Raises:
        ValueError: If there are not that many (a few hundred exist).
    """
    if count > 500:
        raise ValueError(f"{count} held-out problems were asked for; ask for at most 500")
    drawn = _draw(random.Random(_HELD_OUT_SEED), keep=is_held_out)  # noqa: S311
    unique: dict[str, Problem] = {}
    while len(unique) < count:
        problem = next(drawn)
        unique.setdefault(problem.question, problem)
    return list(unique.values())


def messages(problem: Problem) -> list[dict[str, str]]:
    """Return the problem as chat messages, ready for a chat template."""
    return [{"role": "user", "content": problem.question}]


def reward(problem: Problem, reply_text: str) -> float:
    """Return 1.0 if the reply is exactly the number (white space around it is allowed), else 0.0.

    The right number inside a sentence earns nothing: the form is part of the task.
    """
    return 1.0 if reply_text.strip() == str(problem.answer) else 0.0


def _draw(rng: random.Random, keep: Callable[[int, int], bool]) -> Iterator[Problem]:
    while True:
        a, b = rng.randint(1, MAX_OPERAND), rng.randint(1, MAX_OPERAND)
        sign, phrasing = rng.choice("+-"), rng.choice(PHRASINGS)
        if keep(a, b):
            yield _problem(a, b, sign, phrasing)


def _problem(a: int, b: int, sign: str, phrasing: str) -> Problem:
    if sign == "-":
        a, b = max(a, b), min(a, b)
    question = phrasing.format(a=a, b=b, sign=sign, word=_WORDS[sign])
    return Problem(question, a + b if sign == "+" else a - b)
