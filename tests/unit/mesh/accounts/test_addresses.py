from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinkex.errors import InputError
from tinkex.mesh.accounts.addresses import normalised


@pytest.mark.parametrize(
    ("written", "same"),
    [
        ("  Ann@Example.ORG ", "ann@example.org"),
        ("ann+tag@example.org", "ann+tag@example.org"),
        ("ＡＮＮ@example.org", "ann@example.org"),  # noqa: RUF001 - full-width letters
        ("ann@bücher.example", "ann@xn--bcher-kva.example"),
        ("STRASSE@example.org", "strasse@example.org"),
        ("straße@example.org", "strasse@example.org"),
    ],
)
def test_spellings_of_one_address_are_equal(written, same):
    assert normalised(written) == same


@pytest.mark.parametrize(
    "written",
    [
        "",
        "ann",
        "@example.org",
        "ann@",
        "ann@localhost",
        "ann@exa mple.org",
        "a b@example.org",
        "a\x00b@example.org",
        "ann@@example.org",
        "ann@-a.org",
        "ann@a-.org",
        "ann@a..org",
        "ann@" + "a" * 64 + ".org",
        "a" * 65 + "@example.org",
        "ann@" + "a.b." * 80 + "org",
    ],
)
def test_what_is_no_address_is_refused(written):
    with pytest.raises(InputError, match="no e-mail address"):
        normalised(written)


@given(st.text(max_size=80))
def test_any_text_is_normalised_once_and_for_all_or_refused(text):
    try:
        once = normalised(text)
    except InputError:
        return
    assert normalised(once) == once
