"""Settings: every fault at once, secrets out of reprs."""

import pytest

from tinkex.errors import ConfigurationError
from tinkex.server.config import Limits, ServerConfig


def test_defaults_are_valid_and_local(tmp_path):
    config = ServerConfig(data_dir=tmp_path)
    assert config.listens_on_loopback
    assert config.base_models == ("tinkex/sprout",)


def test_all_faults_are_reported_together(tmp_path):
    with pytest.raises(ConfigurationError) as caught:
        ServerConfig(
            data_dir=tmp_path,
            host="",
            port=70_000,
            base_models=(),
            aliases={"big": "small"},
            api_keys=("nope",),
            api_key_file=tmp_path,
            allow_pickle=frozenset({"other"}),
            log_level="loud",
            long_poll_s=50,
            session_ttl_s=0,
            threads=0,
            dtype="float8",
            weight_dtype="int4",
            limits=Limits(max_rank=0),
        )
    text = str(caught.value)
    for word in (
        "host",
        "port 70000",
        "base_models",
        "alias 'big' stands for 'small'",
        "api_keys[0]",
        "choose one",
        "allow_pickle",
        "log_level",
        "45 s",
        "session_ttl_s",
        "threads",
        "dtype 'float8' is none of auto, float32",
        "weight_dtype 'int4'",
        "limits.max_rank",
    ):
        assert word in text


def test_alias_must_not_hide_a_base_model(tmp_path):
    with pytest.raises(ConfigurationError, match="alias 'a' is also"):
        ServerConfig(data_dir=tmp_path, base_models=("a", "b"), aliases={"a": "b"})


def test_keys_are_not_in_the_repr(tmp_path):
    config = ServerConfig(data_dir=tmp_path, api_keys=("tml-very-secret-key",))
    assert "secret" not in repr(config)


@pytest.mark.parametrize(
    ("host", "local"),
    [
        ("127.0.0.1", True),
        ("::1", True),
        ("localhost", True),
        ("127.1.2.3", True),
        ("0.0.0.0", False),
        ("10.0.0.1", False),
        ("example.org", False),
    ],
)
def test_loopback_is_recognised(tmp_path, host, local):
    assert ServerConfig(data_dir=tmp_path, host=host).listens_on_loopback is local
