"""B8: one schema of settings for all workers; every setting has a test."""

import pytest

from tinkex.errors import ConfigurationError, InputError
from tinkex.mesh.config import MeshConfig, format_contact, parse_contact
from tinkex.mesh.identity import KeyPair
from tinkex.mesh.transport.base import Contact

PEER = KeyPair(bytes(range(32))).peer_id


def test_defaults_are_reachable_from_this_machine_only(tmp_path):
    config = MeshConfig(data_dir=tmp_path)
    assert {address.rpartition(":")[0] for address in config.bind} == {"127.0.0.1", "[::1]"}
    assert config.admin_host == "127.0.0.1"
    assert config.contacts == ()


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("transport", "http", "transport is 'http': it is one of iroh, tls"),
        ("log_level", "loud", "log_level is 'loud'"),
        ("bind", (), "bind names no address"),
        ("bind", ("127.0.0.1",), "'127.0.0.1' is no address with a port"),
        ("bind", ("127.0.0.1:70000",), "no address with a port"),
        ("bind", ("::1:80",), "no address with a port"),
        ("bind", ("[127.0.0.1]:80",), "no address with a port"),
        ("advertise", ("example.org:80",), "advertise: 'example.org:80'"),
        ("bootstrap", ("nobody",), "bootstrap: 'nobody' is not of the form"),
        ("bootstrap", ("abcd@iroh:127.0.0.1:1",), "is no peer id"),
        ("admin_host", "0.0.0.0", "admin_host is 0.0.0.0"),
        ("admin_port", 70000, "admin_port is 70000"),
        ("shutdown_grace_s", -1.0, "shutdown_grace_s is -1"),
    ],
)
def test_wrong_value_is_told_by_name(tmp_path, name, value, words):
    with pytest.raises(ConfigurationError, match=words.replace("[", r"\[")):
        MeshConfig(data_dir=tmp_path, **{name: value})


def test_relay_needs_iroh(tmp_path):
    MeshConfig(data_dir=tmp_path, relay_url="https://relay.example")
    with pytest.raises(ConfigurationError, match="relay_url is for the transport iroh"):
        MeshConfig(data_dir=tmp_path, relay_url="https://relay.example", transport="tls")


def test_everything_wrong_is_told_at_once(tmp_path):
    with pytest.raises(ConfigurationError) as caught:
        MeshConfig(data_dir=tmp_path, transport="x", log_level="y", admin_port=-1)
    for name in ("transport", "log_level", "admin_port"):
        assert name in str(caught.value)


def test_contact_is_read_as_it_is_written():
    contact = Contact(PEER, ("iroh:127.0.0.1:4433", "tls:[::1]:4433"))
    assert parse_contact(format_contact(contact)) == contact
    for text in ("", "@", f"{PEER}", f"{PEER}@", f"{PEER}@ ,"):
        with pytest.raises(InputError):
            parse_contact(text)


def test_bootstrap_is_given_as_contacts(tmp_path):
    text = f"{PEER}@tls:127.0.0.1:4433"
    assert MeshConfig(data_dir=tmp_path, bootstrap=(text,)).contacts == (parse_contact(text),)
