"""The unit that every generator of synthetic chat makes, and the wordings they share."""

from random import Random
from typing import NamedTuple


class Turn(NamedTuple):
    """One question of a user, a reply to it, and the answer that any right reply contains."""

    question: str
    reply: str
    answer: str


def phrase(rng: Random, templates: tuple[str, ...], **values: object) -> str:
    """Fill in one of the templates, chosen at random."""
    return rng.choice(templates).format(**values)


def listing(words: list[str], last: str = "and") -> str:
    """Join words as English does: 'a, b and c'."""
    return f"{', '.join(words[:-1])} {last} {words[-1]}" if len(words) > 1 else words[0]
