"""A2.5: secrets are taken out of whatever is shown."""

import pytest

from tinkex._redact import REDACTED, redact


@pytest.mark.parametrize(
    "secret",
    [
        "tml-0123456789abcdef",
        "tmk-AbC_d-0123456789",
        "tmr-ses-0123.AbC_d-4567",
        "tinkex-mesh:ABCDEFGH234567==",
        "eyJhbGciOi.eyJzdWIiOi.c2ln",
    ],
)
def test_secret_is_taken_out_wherever_it_stands(secret):
    for before, after in (("", ""), ("key=", " end"), ("a%3D", "&b"), ('"', '"')):
        assert redact(f"{before}{secret}{after}") == f"{before}{REDACTED}{after}"


@pytest.mark.parametrize("text", ["html-page", "a tinkex-mesh network", "team-tmk", "keys"])
def test_plain_words_stay(text):
    assert redact(text) == text
