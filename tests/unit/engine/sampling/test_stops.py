"""Stop tokens and stop strings."""

from __future__ import annotations

import pytest
from tokenizers import Tokenizer, decoders, models

from tinkex.engine.sampling.stops import stop_rule
from tinkex.errors import InputError


class Bytes:
    """A tokenizer whose tokens are pieces of UTF-8."""

    def __init__(self, *pieces):
        self.pieces = [p if isinstance(p, bytes) else p.encode() for p in pieces]

    def decode(self, ids, *, skip_special_tokens=True):
        assert not skip_special_tokens
        return b"".join(self.pieces[i] for i in ids).decode(errors="replace")


def rule(stop, *pieces):
    return stop_rule(stop, (7, 9), lambda: Bytes(*pieces) if pieces else None)


def test_absent_stop_means_the_models_end_tokens():
    assert rule(None).token_ids == {7, 9}


def test_empty_list_means_no_stop_at_all():
    assert not rule([]).hit([7])


def test_token_ids_replace_the_end_tokens():
    found = rule([3, 4])
    assert found.hit([1, 3])
    assert not found.hit([3, 7])


@pytest.mark.parametrize("stop", ["END", ["x", "END"]])
def test_string_is_found_across_token_borders(stop):
    found = rule(stop, "aE", "N", "Db", "E")
    assert not found.hit([0, 1])
    assert found.hit([0, 1, 2])
    assert not found.hit([3, 1])


def test_string_is_found_inside_a_token():
    assert rule("lo w", "hello world").hit([0])


def test_character_split_over_tokens_is_found():
    first, second = "é".encode()[:1], "é".encode()[1:]
    found = rule("né", "n", first, second)
    assert not found.hit([0, 1])
    assert found.hit([0, 1, 2])


def test_string_is_found_at_the_end_of_a_long_text():
    found = rule("abc", "a", "b", "c", "x")
    assert found.hit([3] * 500 + [0, 1, 2])


def test_tokens_without_text_do_not_hide_a_stop():
    found = rule("ab", "a", "b", "")
    assert found.hit([0, 2, 2, 2, 1])


def spaces_before_words():
    """A tokenizer like those of Llama 2: decoding drops the space with which a text begins."""
    pieces = ["<0xC3>", "<0xA9>", "▁the", "▁end", "s", "▁"]
    found = Tokenizer(models.WordLevel({piece: i for i, piece in enumerate(pieces)}, "s"))
    spaces = decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()
    found.decoder = decoders.Sequence([*spaces, decoders.Strip(" ", 1, 0)])
    return found


@pytest.mark.parametrize(
    ("before", "sampled", "stops"),
    [
        (2, [3], True),
        (2, [5, 3], True),
        (4, [2, 3], True),
        (5, [3], True),
        (2, [4, 3], True),
        (3, [4], False),  # the stop is in the prompt
        (0, [1, 3], True),  # a character that the prompt's end cuts
        (None, [3], False),
    ],
)
def test_space_with_which_a_sample_begins_is_part_of_a_stop(before, sampled, stops):
    found = stop_rule(" end", (), spaces_before_words, before=before)
    assert found.hit(sampled) is stops


@pytest.mark.parametrize(
    ("stop", "message"),
    [
        (["a", 1], "mixes"),
        ([""], "1 to 1024 bytes"),
        (["a" * 1025], "1 to 1024 bytes"),
        (list(range(65)), "at most 64"),
    ],
)
def test_bad_stop_is_refused(stop, message):
    with pytest.raises(InputError, match=message):
        rule(stop, "a")


def test_string_without_a_tokenizer_is_refused():
    with pytest.raises(InputError, match="token ids"):
        rule("END")
