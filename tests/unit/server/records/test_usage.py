"""Amounts add up field by field."""

from dataclasses import fields

from tinkex.server.records.usage import FIELDS, Usage


def test_every_amount_is_added():
    one = Usage(**{name: number for number, name in enumerate(FIELDS, start=1)})
    two = one + one
    assert [getattr(two, field.name) for field in fields(Usage)] == [
        2 * number for number in range(1, len(FIELDS) + 1)
    ]


def test_tokens_are_those_that_were_computed():
    usage = Usage(
        forward_tokens=1,
        forward_backward_tokens=10,
        prefilled_tokens=100,
        cached_tokens=5000,
        sampled_tokens=1000,
    )
    assert usage.tokens == 1111
