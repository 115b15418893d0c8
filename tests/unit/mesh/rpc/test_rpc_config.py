"""Settings of remote calls: every one has bounds, and all problems are told at once."""

from dataclasses import fields, replace

import pytest

from tinkex.errors import ConfigurationError
from tinkex.mesh.rpc.config import RpcConfig


@pytest.mark.parametrize("name", [field.name for field in fields(RpcConfig)])
def test_no_setting_may_be_negative(name):
    with pytest.raises(ConfigurationError, match=name):
        replace(RpcConfig(), **{name: -1})


def test_items_need_not_wait_for_others():
    assert RpcConfig(coalesce_s=0).coalesce_s == 0


def test_all_problems_are_told_at_once():
    with pytest.raises(ConfigurationError) as caught:
        RpcConfig(ping_s=5.0, window_bytes=10, max_links=0)
    assert len(caught.value.problems) == 3
