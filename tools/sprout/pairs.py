"""Writes the English and French sentence pairs of the supervised demo task.

Owns the small bilingual grammar behind `src/tinkex/demo/translation.jsonl`: gender and agreement,
the place of the adjective, elision (l', j', n') and possessives. The file is committed; this script
makes it again, byte for byte.

    python tools/sprout/pairs.py src/tinkex/demo/translation.jsonl
"""

import json
import re
import sys
from pathlib import Path
from random import Random
from typing import NamedTuple

SEED = 11
TRAIN, HELD_OUT = 480, 100


class Noun(NamedTuple):
    """A noun in both languages, with its French gender ('m' or 'f')."""

    english: str
    french: str
    gender: str

    @property
    def elides(self) -> bool:
        """Tell whether a short word before the noun loses its vowel."""
        return self.french[0] in "aeiouéêh"

    def the(self) -> str:
        """Return the noun with its definite article."""
        return f"l'{self.french}" if self.elides else f"{self.article()} {self.french}"

    def article(self) -> str:
        """Return the definite article as it stands before an adjective."""
        return "le" if self.gender == "m" else "la"

    def an(self) -> str:
        """Return the indefinite article."""
        return "un" if self.gender == "m" else "une"

    def my(self) -> str:
        """Return the possessive of the first person: mon before a vowel, whatever the gender."""
        return "mon" if self.gender == "m" or self.elides else "ma"


class Adjective(NamedTuple):
    """An adjective in both languages; `before` tells that French puts it before the noun."""

    english: str
    masculine: str
    feminine: str
    before: bool = False

    def agreed(self, noun: Noun) -> str:
        """Return the form that agrees with the noun."""
        return self.masculine if noun.gender == "m" else self.feminine


def _nouns(text: str) -> tuple[Noun, ...]:
    return tuple(Noun(*entry.split("/")) for entry in text.split())


PEOPLE = _nouns("girl/fille/f boy/garçon/m woman/femme/f man/homme/m child/enfant/m")
ANIMALS = _nouns("cat/chat/m dog/chien/m bird/oiseau/m horse/cheval/m cow/vache/f mouse/souris/f")
THINGS = _nouns(
    "house/maison/f car/voiture/f book/livre/m chair/chaise/f flower/fleur/f tree/arbre/m "
    "apple/pomme/f hat/chapeau/m boat/bateau/m key/clé/f cake/gâteau/m star/étoile/f"
)
PLACES = _nouns("garden/jardin/m kitchen/cuisine/f school/école/f forest/forêt/f")
COLOURS = (
    Adjective("black", "noir", "noire"),
    Adjective("white", "blanc", "blanche"),
    Adjective("green", "vert", "verte"),
    Adjective("blue", "bleu", "bleue"),
    Adjective("red", "rouge", "rouge"),
    Adjective("yellow", "jaune", "jaune"),
)
SIZES = (
    Adjective("small", "petit", "petite", before=True),
    Adjective("big", "grand", "grande", before=True),
    Adjective("pretty", "joli", "jolie", before=True),
)
MOODS = (
    Adjective("tired", "fatigué", "fatiguée"),
    Adjective("sad", "triste", "triste"),
    Adjective("happy", "content", "contente"),
)
ACTIONS = (
    ("is sleeping", "dort"),
    ("is singing", "chante"),
    ("is eating", "mange"),
    ("is walking", "marche"),
    ("is dancing", "danse"),
    ("is playing", "joue"),
)
DEEDS = (
    ("sees", "see", "voit", "vois"),
    ("likes", "like", "aime", "aime"),
    ("wants", "want", "veut", "veux"),
    ("buys", "buy", "achète", "achète"),
    ("finds", "find", "trouve", "trouve"),
    ("draws", "draw", "dessine", "dessine"),
    ("takes", "take", "prend", "prends"),
)
WHERE = (("in", "dans"), ("behind", "derrière"), ("in front of", "devant"))

Pair = tuple[str, str]


def described(rng: Random, noun: Noun) -> Adjective:
    """Choose an adjective that goes with the noun."""
    if noun in PEOPLE:
        return rng.choice(SIZES)
    return rng.choice(COLOURS + SIZES)


def definite(noun: Noun, adjective: Adjective | None) -> Pair:
    """Return 'the black cat' in both languages."""
    if adjective is None:
        return f"the {noun.english}", noun.the()
    english = f"the {adjective.english} {noun.english}"
    word = adjective.agreed(noun)
    if adjective.before:
        return english, f"{noun.article()} {word} {noun.french}"
    return english, f"{noun.the()} {word}"


def indefinite(noun: Noun, adjective: Adjective) -> Pair:
    """Return 'a black cat' in both languages."""
    word = adjective.agreed(noun)
    parts = (word, noun.french) if adjective.before else (noun.french, word)
    return f"a {adjective.english} {noun.english}", " ".join((noun.an(), *parts))


def acting(rng: Random) -> Pair:
    """The black cat is sleeping."""
    noun = rng.choice(PEOPLE + ANIMALS)
    english, french = definite(noun, described(rng, noun) if rng.random() < 0.7 else None)
    doing, fait = rng.choice(ACTIONS)
    return f"{english} {doing}", f"{french} {fait}"


def being(rng: Random) -> Pair:
    """The house is not white."""
    noun = rng.choice(PEOPLE + ANIMALS + THINGS)
    adjective = rng.choice(MOODS if noun in PEOPLE else COLOURS + SIZES)
    not_, est = rng.choice((("", "est"), ("", "est"), (" not", "n'est pas")))
    if rng.random() < 0.4:
        english, french = f"my {noun.english}", f"{noun.my()} {noun.french}"
    else:
        english, french = definite(noun, None)
    return f"{english} is{not_} {adjective.english}", f"{french} {est} {adjective.agreed(noun)}"


def doing(rng: Random) -> Pair:
    """The girl sees the boat; I see the boat; she sees the boat."""
    thing = rng.choice(THINGS + ANIMALS)
    adjective = described(rng, thing) if rng.random() < 0.5 else None
    what, quoi = (
        definite(thing, adjective)
        if rng.random() < 0.6
        else indefinite(thing, adjective or described(rng, thing))
    )
    third, first, troisieme, premiere = rng.choice(DEEDS)
    if rng.random() < 0.3:
        je = "j'" if premiere[0] == "a" else "je "
        return f"I {first} {what}", f"{je}{premiere} {quoi}"
    who, qui = rng.choice((("he", "il"), ("she", "elle"), *(definite(p, None) for p in PEOPLE)))
    return f"{who} {third} {what}", f"{qui} {troisieme} {quoi}"


def having(rng: Random) -> Pair:
    """The boy has a red hat."""
    what, quoi = indefinite(thing := rng.choice(THINGS + ANIMALS), described(rng, thing))
    who, qui = rng.choice((("he", "il"), ("she", "elle"), *(definite(p, None) for p in PEOPLE)))
    return f"{who} has {what}", f"{qui} a {quoi}"


def lying(rng: Random) -> Pair:
    """The cat is in the garden; there is a small cat in the garden; where is the cat?"""
    noun, place = rng.choice(ANIMALS + PEOPLE), rng.choice(PLACES)
    at, ou = rng.choice(WHERE)
    there = f"{at} the {place.english}", f"{ou} {place.the()}"
    if rng.random() < 0.4:
        english, french = indefinite(noun, described(rng, noun))
        return f"there is {english} {there[0]}", f"il y a {french} {there[1]}"
    adjective = described(rng, noun) if rng.random() < 0.4 else None
    english, french = definite(noun, adjective)
    return f"{english} is {there[0]}", f"{french} est {there[1]}"


def asking(rng: Random) -> Pair:
    """Where is the cat?"""
    noun = rng.choice(ANIMALS + THINGS + PEOPLE)
    english, french = definite(noun, described(rng, noun) if rng.random() < 0.4 else None)
    return f"where is {english}?", f"où est {french} ?"


PATTERNS = (acting, acting, being, being, doing, doing, doing, having, lying, lying, asking)


def pair(rng: Random) -> Pair:
    """Draw one sentence in both languages, with a capital and a full stop."""
    english, french = rng.choice(PATTERNS)(rng)
    stop = "" if english.endswith("?") else "."
    return english[0].upper() + english[1:] + stop, french[0].upper() + french[1:] + stop


def words(text: str) -> set[str]:
    """Return the words of a sentence, in small letters."""
    return set(re.findall(r"[^\W\d_]+", text.lower()))


def split(pairs: list[Pair]) -> tuple[list[Pair], list[Pair]]:
    """Split into training and held-out pairs, all of whose words occur in the training ones."""
    train, rest = pairs[:TRAIN], pairs[TRAIN:]
    known = set().union(*(words(f"{english} {french}") for english, french in train))
    held_out = [p for p in rest if words(f"{p[0]} {p[1]}") <= known][:HELD_OUT]
    return train, held_out


def main(path: Path) -> None:
    """Write the training pairs and then the held-out pairs, a line each."""
    rng = Random(SEED)  # noqa: S311 - a reproducible data set
    unique: dict[str, str] = {}
    while len(unique) < 2 * (TRAIN + HELD_OUT):
        english, french = pair(rng)
        unique.setdefault(english, french)
    train, held_out = split(list(unique.items()))
    with path.open("w", encoding="utf-8") as file:
        for english, french in train + held_out:
            messages = [
                {"role": "user", "content": f"Translate to French: {english}"},
                {"role": "assistant", "content": french},
            ]
            file.write(json.dumps({"messages": messages}, ensure_ascii=False) + "\n")
    print(f"{len(train)} training and {len(held_out)} held-out pairs")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
