import pytest

from tinkex.errors import ConfigurationError, InputError
from tinkex.mesh.identity import KeyPair
from tinkex.mesh.transport.addresses import (
    MAX_ADDRESSES,
    advertised,
    dialable,
    join_address,
    split_address,
)
from tinkex.mesh.transport.base import Contact

PEER = KeyPair(bytes(32)).peer_id


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("127.0.0.1:4433", ("127.0.0.1", 4433)),
        ("[::1]:0", ("::1", 0)),
        ("mesh.example:65535", ("mesh.example", 65535)),
    ],
)
def test_addresses_are_read_and_written(text, place):
    assert split_address(text) == place
    assert join_address(*place) == text


@pytest.mark.parametrize("text", ["[0:0:0:0:0:0:0:1]:80", "[0::01]:80", "[::1]:80"])
def test_an_address_of_ipv6_is_one_however_it_is_written(text):
    assert split_address(text) == ("::1", 80)
    assert split_address("[2001:DB8::A]:1") == ("2001:db8::a", 1)


@pytest.mark.parametrize(
    "text",
    ["", ":", "host", "host:", ":80", "host:-1", "host:65536", "::1:80", "[x]:80", "host:٣"],
)
def test_what_is_no_address_is_refused(text):
    with pytest.raises(InputError, match="no address"):
        split_address(text)


@pytest.mark.parametrize("host", ["a..b", ".a", "x" * 64, "a\0b", "\udcff", "\u2260\u3002.x"])
def test_a_host_that_no_resolver_takes_is_no_address(host):
    with pytest.raises(InputError, match="no address"):
        split_address(f"{host}:80")


@pytest.mark.parametrize("host", ["mesh.example.", "b\u00fccher.example", "a_b", "x" * 63])
def test_other_names_are_the_resolvers_business(host):
    assert split_address(f"{host}:80") == (host, 80)


def test_a_contact_of_strangers_is_read_with_care():
    good = ["tls:[::1]:5"] * 20
    addresses = ("iroh:127.0.0.1:1", "tls:junk", "tls:127.0.0.1:0", "tls:a..b:4433", *good)
    assert dialable(Contact(PEER, addresses), "tls:") == [("::1", 5)] * MAX_ADDRESSES


def test_where_others_see_a_peer_stands_for_where_it_listens():
    bound = [("127.0.0.1", 5), ("::1", 6)]
    assert advertised("tls:", bound, []) == ["tls:127.0.0.1:5", "tls:[::1]:6"]
    assert advertised("tls:", bound, ["mesh.example:7"]) == ["tls:mesh.example:7"]
    with pytest.raises(ConfigurationError, match="port 0"):
        advertised("tls:", bound, ["mesh.example:0"])


@pytest.mark.parametrize("host", ["0.0.0.0", "::"])
def test_a_wildcard_is_nothing_to_dial(host):
    with pytest.raises(ConfigurationError, match="advertise"):
        advertised("tls:", [(host, 5)], [])
    assert advertised("tls:", [(host, 5)], ["mesh.example:5"]) == ["tls:mesh.example:5"]
