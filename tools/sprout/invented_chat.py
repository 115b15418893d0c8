# ruff: noqa: SIM905 - word lists read better as text
"""Synthetic chat in languages that do not exist: translation, without any real second language.

Each invented language has its own words, two genders with their own articles and endings, and its
own place for the adjective. The base model learns from them what translating is; French, which the
supervised demo teaches, is in none of its data. The English side shares words with that demo.
"""

from collections.abc import Callable
from random import Random
from typing import NamedTuple

from turn import Turn, phrase

_NOUNS = (
    "girl boy woman man child cat dog bird horse cow mouse house car book chair flower tree apple "
    "hat boat key cake star garden kitchen school forest fish table door ball stone friend king "
    "river town letter ship"
).split()
_ADJECTIVES = (
    "black white green blue red yellow small big pretty tired sad happy old new kind strong"
).split()
_DOING = "sleeping singing eating walking dancing playing running waiting".split()
_DEEDS = "sees likes wants buys finds draws takes has loves".split()
_WHERE = ("in", "behind", "in front of", "near")
_SMALL = ("he", "she", "I", "my", "not", "where", "there", "is")
_ONSETS = "b d f g k l m n p r s t v z br tr ch".split()
_VOWELS = "a e i o u a e i o u ou an é è ê â à".split()
_ENDS = ("", "", "", "n", "r", "l", "s", "t")


class Phrase(NamedTuple):
    """A noun phrase: the English words it is made of."""

    noun: str
    adjective: str | None
    article: str

    def english(self) -> str:
        """Return it in English."""
        return " ".join(filter(None, (self.article, self.adjective, self.noun)))


class Language:
    """An invented language: its dictionary and grammar come from its name."""

    def __init__(self, name: str, *, adjective_first: bool) -> None:
        self.name, self.adjective_first = name, adjective_first
        rng = Random(name)  # noqa: S311 - a dictionary, not a secret
        vocabulary = (*_NOUNS, *_ADJECTIVES, *_DOING, *_DEEDS, *_WHERE, *_SMALL)
        self.words = {word: _word(rng) for word in vocabulary}
        self.genders = {noun: rng.randrange(2) for noun in _NOUNS}
        self.articles = {word: (_word(rng)[:3], _word(rng)[:3]) for word in ("the", "a")}
        self.ending = rng.choice("aeio")

    def noun_phrase(self, part: Phrase) -> str:
        """Translate a noun phrase; article and adjective agree with the noun."""
        article = self.words["my"] if part.article == "my" else self._article(part)
        noun = self.words[part.noun]
        if part.adjective is None:
            return f"{article} {noun}"
        adjective = self.adjective(part.adjective, part.noun)
        pair = (adjective, noun) if self.adjective_first else (noun, adjective)
        return " ".join((article, *pair))

    def adjective(self, word: str, noun: str) -> str:
        """Translate an adjective; one of the genders has an ending."""
        return self.words[word] + (self.ending if self.genders[noun] else "")

    def _article(self, part: Phrase) -> str:
        return self.articles[part.article][self.genders[part.noun]]


def _word(rng: Random) -> str:
    syllables = rng.choices((1, 2, 3), (45, 50, 5))[0]
    parts = [rng.choice(_ONSETS) + rng.choice(_VOWELS) for _ in range(syllables)]
    return "".join(parts) + rng.choice(_ENDS)


LANGUAGES = (
    Language("Vornish", adjective_first=False),
    Language("Tolo", adjective_first=True),
    Language("Keshi", adjective_first=False),
    Language("Amari", adjective_first=False),
)


def _noun_phrase(rng: Random, articles: tuple[str, ...] = ("the", "the", "my")) -> Phrase:
    adjective = rng.choice(_ADJECTIVES) if rng.random() < 0.6 else None
    article = rng.choice(articles)
    if article == "a" and (adjective or "x")[0] in "aeiou":
        adjective = "small"
    return Phrase(rng.choice([n for n in _NOUNS if n != "apple"]), adjective, article)


def _acting(rng: Random, to: Language) -> tuple[str, str]:
    subject, action = _noun_phrase(rng), rng.choice(_DOING)
    return f"{subject.english()} is {action}", f"{to.noun_phrase(subject)} {to.words[action]}"


def _being(rng: Random, to: Language) -> tuple[str, str]:
    subject = _noun_phrase(rng)._replace(adjective=None)
    word = rng.choice(_ADJECTIVES)
    negative = rng.random() < 0.3
    english = f"{subject.english()} is {'not ' if negative else ''}{word}"
    verb = f"{to.words['not']} {to.words['is']}" if negative else to.words["is"]
    return english, f"{to.noun_phrase(subject)} {verb} {to.adjective(word, subject.noun)}"


def _doing(rng: Random, to: Language) -> tuple[str, str]:
    thing, deed = _noun_phrase(rng, ("the", "a", "a", "my")), rng.choice(_DEEDS)
    if rng.random() < 0.4:
        who = rng.choice(("he", "she", "I"))
        said = "have" if deed == "has" else deed.removesuffix("s")
        english = f"{who} {said if who == 'I' else deed} {thing.english()}"
        return english, f"{to.words[who]} {to.words[deed]} {to.noun_phrase(thing)}"
    subject = _noun_phrase(rng)._replace(adjective=None)
    english = f"{subject.english()} {deed} {thing.english()}"
    return english, f"{to.noun_phrase(subject)} {to.words[deed]} {to.noun_phrase(thing)}"


def _lying(rng: Random, to: Language) -> tuple[str, str]:
    where, place = rng.choice(_WHERE), _noun_phrase(rng)._replace(article="the", adjective=None)
    there = f"{to.words[where]} {to.noun_phrase(place)}"
    if rng.random() < 0.4:
        subject = _noun_phrase(rng, ("a",))
        english = f"there is {subject.english()} {where} {place.english()}"
        return english, f"{to.words['there']} {to.noun_phrase(subject)} {there}"
    subject = _noun_phrase(rng)
    english = f"{subject.english()} is {where} {place.english()}"
    return english, f"{to.noun_phrase(subject)} {to.words['is']} {there}"


def _asking(rng: Random, to: Language) -> tuple[str, str]:
    subject = _noun_phrase(rng)
    english = f"where is {subject.english()}?"
    return english, f"{to.words['where']} {to.words['is']} {to.noun_phrase(subject)} ?"


_PATTERNS: tuple[Callable[[Random, Language], tuple[str, str]], ...] = (
    _acting, _acting, _being, _being, _doing, _doing, _doing, _lying, _lying, _asking,
)  # fmt: skip


def translation(rng: Random) -> Turn:
    """Translate a sentence to an invented language."""
    to = rng.choice(LANGUAGES)
    english, other = rng.choice(_PATTERNS)(rng, to)
    stop = "" if english.endswith("?") else "."
    english = english[0].upper() + english[1:] + stop
    other = other[0].upper() + other[1:] + stop
    asked = ("Translate to {to}: {t}", "Translate to {to}: {t}", "Say in {to}: {t}")
    return Turn(phrase(rng, asked, to=to.name, t=english), other, other)


def dictionary(rng: Random) -> Turn:
    """Translate a single word to an invented language or back."""
    to = rng.choice(LANGUAGES)
    word = rng.choice((*_NOUNS, *_ADJECTIVES, *_DOING))
    asked = ("What is {w} in {to}?", "How do you say {w} in {to}?", "Translate to {to}: {w}")
    return Turn(phrase(rng, asked, w=word, to=to.name), to.words[word], to.words[word])
