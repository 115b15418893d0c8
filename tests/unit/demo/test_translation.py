import re
import unicodedata

import pytest

from tinkex.demo import translation


@pytest.fixture(scope="module")
def split():
    return translation.load()


def words(example):
    return set(re.findall(r"[^\W\d_]+", f"{example.prompt} {example.reply}".lower()))


def english(example):
    return example.prompt.removeprefix("Translate to French: ")


def test_load_gives_a_fixed_split(split):
    train, held_out = split
    assert (len(train), len(held_out)) == (480, 100)
    assert translation.load() == split


def test_no_sentence_occurs_twice(split):
    sentences = [example.prompt for part in split for example in part]
    assert len(set(sentences)) == len(sentences)


def test_every_held_out_word_occurs_in_training(split):
    train, held_out = split
    known = set().union(*map(words, train))
    assert all(words(example) <= known for example in held_out)


def test_every_prompt_asks_for_one_english_sentence(split):
    for example in split[0] + split[1]:
        assert example.prompt.startswith("Translate to French: ")
        assert re.fullmatch(r"[A-Z][A-Za-z ]+[.?]", english(example)), example.prompt


def test_replies_are_composed_unicode_with_a_full_stop(split):
    for example in split[0] + split[1]:
        assert unicodedata.normalize("NFC", example.reply) == example.reply
        assert example.reply[0].isupper()
        assert example.reply.endswith((".", " ?"))
        assert (example.reply[-1] == "?") == (example.prompt[-1] == "?")


def test_short_words_are_elided_before_a_vowel(split):
    broken = re.compile(r"\b(le|la|je|ne|de) [aeiouéêh]", re.IGNORECASE)
    assert not [example.reply for part in split for example in part if broken.search(example.reply)]


@pytest.mark.parametrize(
    ("noun", "wrong"),
    [
        ("maison|voiture|chaise|fleur|pomme|clé|vache|souris|fille|femme", "le|un|mon|petit|grand"),
        ("chat|chien|cheval|livre|chapeau|bateau|gâteau|garçon", "la|une|ma|petite|grande"),
    ],
)
def test_words_before_a_noun_agree_with_its_gender(split, noun, wrong):
    broken = re.compile(rf"\b({wrong}) ({noun})\b", re.IGNORECASE)
    assert not [example.reply for part in split for example in part if broken.search(example.reply)]


def test_messages_ask_and_do_not_answer(split):
    example = split[0][0]
    assert example.messages == [{"role": "user", "content": example.prompt}]
