"""The DHT's numbers have ranges."""

import pytest

from tinkex.errors import ConfigurationError
from tinkex.mesh.dht.config import DhtConfig


def test_defaults_are_those_of_the_design():
    config = DhtConfig()
    assert 8 <= config.k <= 20
    assert (config.alpha, config.hedge_s) == (3, 0.15)
    assert 30 <= config.ttl_s <= 60


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"k": 7}, "k must be"),
        ({"k": 21}, "k must be"),
        ({"alpha": 0}, "alpha"),
        ({"quorum": 17}, "quorum"),
        ({"witnesses": -1}, "witnesses"),
        ({"ttl_s": 61.0}, "ttl_s"),
        ({"ttl_s": 2.0}, "ttl_s"),
        ({"hedge_s": 2.0}, "hedge_s"),
        ({"k": 7, "ttl_s": 61.0}, "k must be .*; ttl_s"),
    ],
)
def test_what_is_out_of_range_is_refused_by_name(changes, named):
    with pytest.raises(ConfigurationError, match=named):
        DhtConfig(**changes)
