"""Synthetic chat about letters and words: repeat, reverse, spell, count, sort, join."""

import string
from random import Random

from lexicon import CATEGORIES, COLOURS, NAMES, OBJECTS, PLACES, SHORT_WORDS
from turn import Turn, listing, phrase

_WORDS = tuple(
    dict.fromkeys(
        (*SHORT_WORDS, *OBJECTS, *PLACES, *COLOURS, *(w for ws in CATEGORIES.values() for w in ws))
    )
)


def word(rng: Random) -> str:
    """Draw a word, or at times a string of letters that is no word."""
    if rng.random() < 0.15:
        return "".join(rng.choices(string.ascii_lowercase, k=rng.randint(3, 5)))
    return rng.choice(_WORDS)


def words(rng: Random, low: int, high: int) -> list[str]:
    """Draw some different words."""
    return rng.sample(_WORDS, rng.randint(low, high))


def repeat(rng: Random) -> Turn:
    """Say something back, once or several times."""
    if rng.random() < 0.3:
        item, times = word(rng), rng.randint(2, 5)
        reply = " ".join([item] * times)
        asked = ("Say {w} {n} times.", "Write the word {w} {n} times.", "Repeat {w} {n} times.")
        return Turn(phrase(rng, asked, w=item, n=times), reply, reply)
    text = " ".join(words(rng, 1, 5))
    if rng.random() < 0.3:
        text = f"{rng.choice(NAMES)} has {rng.randint(2, 99)} {rng.choice(OBJECTS)}s."
    asked = ("Repeat after me: {t}", "Say: {t}", "Repeat: {t}", "Copy this: {t}", "Echo: {t}")
    return Turn(phrase(rng, asked, t=text), text, text)


def reverse(rng: Random) -> Turn:
    """Write a word backwards, or words in the other order."""
    if rng.random() < 0.4:
        items = words(rng, 2, 4)
        reply = " ".join(reversed(items))
        asked = ("Reverse the order of these words: {t}", "Write these words backwards: {t}")
        return Turn(phrase(rng, asked, t=" ".join(items)), reply, reply)
    item = word(rng)
    asked = (
        "Reverse the word {w}.",
        "Write {w} backwards.",
        "Spell {w} backwards.",
        "Reverse {w}.",
    )
    return Turn(phrase(rng, asked, w=item), item[::-1], item[::-1])


def case(rng: Random) -> Turn:
    """Change the case of a word."""
    item = word(rng)
    if rng.random() < 0.6:
        asked = ("Write {w} in capital letters.", "Write {w} in uppercase.", "Make {w} uppercase.")
        return Turn(phrase(rng, asked, w=item), item.upper(), item.upper())
    asked = ("Write {w} in small letters.", "Write {w} in lowercase.", "Make {w} lowercase.")
    return Turn(phrase(rng, asked, w=item.upper()), item, item)


def letter(rng: Random) -> Turn:
    """Name the first or the last letter of a word."""
    item, first = word(rng), rng.random() < 0.5
    which, answer = ("first", item[0]) if first else ("last", item[-1])
    asked = (
        "What is the {p} letter of {w}?",
        "Give me the {p} letter of the word {w}.",
        "Which letter is {p} in {w}?",
    )
    replies = ("{a}", "The {p} letter of {w} is {a}.", "{a}")
    return Turn(
        phrase(rng, asked, p=which, w=item), phrase(rng, replies, p=which, w=item, a=answer), answer
    )


def length(rng: Random) -> Turn:
    """Count the letters of a word, or the words of a list."""
    if rng.random() < 0.4:
        items = words(rng, 2, 6)
        question = phrase(
            rng,
            ("How many words are in this list: {t}?", "Count the words: {t}"),
            t=", ".join(items),
        )
        return Turn(question, str(len(items)), str(len(items)))
    item = word(rng)
    asked = ("How many letters are in {w}?", "Count the letters in {w}.", "How long is {w}?")
    replies = ("{n}", "{w} has {n} letters.", "{n} letters")
    count = str(len(item))
    return Turn(phrase(rng, asked, w=item), phrase(rng, replies, w=item, n=count), count)


def sort(rng: Random) -> Turn:
    """Sort words or numbers."""
    if rng.random() < 0.5:
        numbers = rng.sample(range(1, 60), rng.randint(3, 4))
        reply = ", ".join(map(str, sorted(numbers)))
        asked = ("Sort these numbers: {t}", "Put in order: {t}", "Sort from small to large: {t}")
        return Turn(phrase(rng, asked, t=", ".join(map(str, numbers))), reply, reply)
    items = words(rng, 3, 4)
    reply = ", ".join(sorted(items))
    asked = ("Sort these words: {t}", "Sort by alphabet: {t}", "Put in alphabetical order: {t}")
    return Turn(phrase(rng, asked, t=", ".join(items)), reply, reply)


def spell(rng: Random) -> Turn:
    """Spell a word letter by letter, or put letters together."""
    item = word(rng)
    if rng.random() < 0.6:
        reply = "-".join(item)
        asked = ("Spell {w}.", "Spell the word {w}.", "How do you spell {w}?", "Spell out {w}.")
        return Turn(phrase(rng, asked, w=item), reply, reply)
    asked = ("Which word is {t}?", "Put these letters together: {t}", "Join these letters: {t}")
    return Turn(phrase(rng, asked, t="-".join(item)), item, item)


def join(rng: Random) -> Turn:
    """Join words with commas, dashes or as an English list."""
    items = words(rng, 2, 4)
    kind = rng.choice(("commas", "dashes", "the word and"))
    reply = {
        "commas": ", ".join(items),
        "dashes": "-".join(items),
        "the word and": " and ".join(items),
    }[kind]
    asked = ("Join these words with {k}: {t}", "Put {k} between these words: {t}")
    return Turn(phrase(rng, asked, k=kind, t=" ".join(items)), reply, reply)


def pick(rng: Random) -> Turn:
    """Name the item at some place of a list."""
    items = words(rng, 3, 5)
    place = rng.randrange(len(items))
    name = ("first", "second", "third", "fourth", "fifth")[place]
    if place == len(items) - 1 and rng.random() < 0.5:
        name = "last"
    asked = ("What is the {p} word: {t}?", "Name the {p} of these: {t}.", "Give the {p} item: {t}")
    question = phrase(rng, asked, p=name, t=", ".join(items))
    return Turn(question, items[place], items[place])


def membership(rng: Random) -> Turn:
    """Say whether a word is in a list, or whether a letter is in a word."""
    items = words(rng, 3, 5)
    probe = rng.choice(items) if rng.random() < 0.5 else rng.choice(_WORDS)
    answer = "Yes" if probe in items else "No"
    asked = ("Is {w} in this list: {t}?", "Does this list contain {w}: {t}?")
    question = phrase(
        rng, asked, w=probe, t=listing(items) if rng.random() < 0.3 else ", ".join(items)
    )
    reply = phrase(
        rng,
        ("{a}", "{a}, {w} is {s}in the list."),
        a=answer,
        w=probe,
        s="" if answer == "Yes" else "not ",
    )
    return Turn(question, reply, answer)
