"""What the names of models stand for, and for whom."""

from __future__ import annotations

import itertools

import pytest

from tinkex.errors import BadRequestError
from tinkex.mesh.catalog import (
    AdapterCatalog,
    AdapterPublished,
    AdapterUnpublished,
    NamedModel,
    check_publication,
    decode_catalog,
    encode_catalog,
)

BASE = "tinkex/sprout"


def published(account: str = "ann", name: str = "pirate", *, content: str = "a", **changes):
    given = {"at": 1.0, "base_model": BASE, "shared": False} | changes
    return AdapterPublished(account_id=account, name=name, content=content * 64, **given)


def unpublished(account: str = "ann", name: str = "pirate"):
    return AdapterUnpublished(account_id=account, name=name, at=2.0)


def catalog(*events) -> AdapterCatalog:
    made = AdapterCatalog()
    for place, event in enumerate(events):
        made.apply((place,), event)
    return made


@pytest.mark.parametrize("model", ["pirate", f"{BASE};pirate", "mesh://" + "a" * 64])
def test_an_owner_names_an_adapter_in_three_ways(model):
    event = published()
    assert catalog(event).resolve("ann", model) == NamedModel(BASE, event)


@pytest.mark.parametrize("model", ["pirate", f"{BASE};pirate", "mesh://" + "a" * 64])
def test_a_private_adapter_does_not_exist_for_others(model):
    assert catalog(published()).resolve("bob", model) == NamedModel(model)
    assert list(catalog(published()).visible("bob")) == []


def test_a_shared_adapter_is_everybodys():
    event = published(shared=True)
    made = catalog(event)
    assert made.resolve("bob", "pirate").adapter == event
    assert list(made.visible("bob")) == [event]


def test_an_adapter_of_another_base_is_not_meant():
    assert catalog(published()).resolve("ann", "other;pirate") == NamedModel("other;pirate")


def test_ones_own_comes_before_a_shared_one_and_the_first_shared_before_later_ones():
    first = published("bob", shared=True, at=1.0, content="b")
    later = published("cec", shared=True, at=2.0, content="c")
    own = published("ann", content="a")
    for order in itertools.permutations([first, later, own]):
        made = catalog(*order)
        assert made.find("ann", "pirate") == own
        assert made.find("dan", "pirate") == first


def test_what_comes_later_in_the_feed_holds_in_whatever_order_it_arrives():
    events = [((1,), published(content="a")), ((2,), unpublished()), ((3,), published(content="b"))]
    for order in itertools.permutations(events):
        made = AdapterCatalog()
        for place, event in order:
            made.apply(place, event)
        found = made.find("ann", "pirate")
        assert found is not None
        assert found.content == "b" * 64
        assert made.resolve("ann", "mesh://" + "a" * 64).adapter is None
        assert made.count("ann") == 1


def test_an_adapter_that_was_unpublished_is_gone():
    made = catalog(published(), unpublished())
    assert made.find("ann", "pirate") is None
    assert made.count("ann") == 0
    assert made.resolve("ann", "mesh://" + "a" * 64).adapter is None


@pytest.mark.parametrize("name", ["", ";", "a;b", "mesh://x", "-a", "a" * 129, "a b", "a\n"])
def test_names_that_mean_something_else_are_refused(name):
    with pytest.raises(BadRequestError, match="name"):
        check_publication(name, "a" * 64)


def test_a_content_that_is_no_hash_is_refused():
    check_publication("org/pirate-1.0_x", "0" * 64)
    with pytest.raises(BadRequestError, match="64 hexadecimal"):
        check_publication("pirate", "A" * 64)


@pytest.mark.parametrize("event", [published(), unpublished()])
def test_entries_are_read_as_they_were_written(event):
    assert decode_catalog(encode_catalog(event)) == event
