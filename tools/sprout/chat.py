"""Makes the synthetic chat of `tinkex/sprout`: whole conversations, in a training and a test part.

Owns the mixture of the generators, system prompts, conversations of several turns, and the split:
a conversation is in the test part when a checksum of its text says so, so no training conversation
is ever in it.

    python tools/sprout/chat.py             # print a few
"""

import zlib
from collections.abc import Callable, Iterator
from random import Random

import arithmetic_chat as numbers
import invented_chat as invented
import string_chat as strings
import world_chat as world
from turn import Turn

Messages = list[dict[str, str]]

FAMILIES: dict[str, tuple[Callable[[Random], Turn], float]] = {
    "free_form": (numbers.free_form, 30),
    "fixed_form": (numbers.fixed_form, 14),
    "sums": (numbers.sums, 5),
    "comparison": (numbers.comparison, 2),
    "neighbour": (numbers.neighbour, 2),
    "series": (numbers.series, 2),
    "spelling": (numbers.spelling, 3),
    "parity": (numbers.parity, 1),
    "repeat": (strings.repeat, 4),
    "reverse": (strings.reverse, 4),
    "case": (strings.case, 2),
    "letter": (strings.letter, 2),
    "length": (strings.length, 2),
    "sort": (strings.sort, 4),
    "spell": (strings.spell, 4),
    "join": (strings.join, 2),
    "pick": (strings.pick, 3),
    "membership": (strings.membership, 2),
    "about_me": (world.about_me, 1.5),
    "greeting": (world.greeting, 1.5),
    "fact": (world.fact, 1.5),
    "calendar": (world.calendar, 2),
    "opposite": (world.opposite, 1),
    "plural": (world.plural, 1),
    "past": (world.past, 1),
    "category": (world.category, 2),
    "odd_one_out": (world.odd_one_out, 2),
    "passage": (world.passage, 8),
    "sentence": (world.sentence, 2),
    "story": (world.story, 2),
    "enumerate": (world.enumerate_names, 1),
    "translation": (invented.translation, 10),
    "dictionary": (invented.dictionary, 2),
}
"""Every generator by name, with its share of the turns."""

SYSTEM_PROMPTS = (
    "You are Sprout, a small model.",
    "You are a helpful assistant.",
    "You are Sprout. Answer briefly.",
    "Be brief and friendly.",
    "Answer the question.",
)


def turn(rng: Random) -> Turn:
    """Draw one turn of the mixture."""
    make, _ = FAMILIES[rng.choices(list(FAMILIES), [share for _, share in FAMILIES.values()])[0]]
    return make(rng)


def conversation(rng: Random, first: Callable[[Random], Turn] = turn) -> Messages:
    """Draw one conversation: mostly a single turn, at times more or with a system prompt."""
    messages: Messages = []
    if rng.random() < 0.08:
        messages.append({"role": "system", "content": rng.choice(SYSTEM_PROMPTS)})
    count = rng.choices((1, 2, 3), (88, 9, 3))[0]
    for made in [first(rng), *(turn(rng) for _ in range(count - 1))]:
        messages.append({"role": "user", "content": made.question})
        messages.append({"role": "assistant", "content": made.reply})
    return messages


def is_test(messages: Messages) -> bool:
    """Tell whether a conversation belongs to the test part: one in fifty, by checksum."""
    text = "\n".join(message["content"] for message in messages)
    return zlib.crc32(text.encode()) % 50 == 0


def conversations(seed: int, *, test: bool = False) -> Iterator[Messages]:
    """Yield conversations of the training or the test part, without end."""
    rng = Random(seed)  # noqa: S311 - synthetic data
    while True:
        messages = conversation(rng)
        if is_test(messages) == test:
            yield messages


def main() -> None:
    """Print one turn of every family."""
    rng = Random(0)  # noqa: S311 - synthetic data
    for name, (make, _) in FAMILIES.items():
        made = make(rng)
        print(f"{name:12} {made.question!r} -> {made.reply!r} [{made.answer}]")


if __name__ == "__main__":
    main()
