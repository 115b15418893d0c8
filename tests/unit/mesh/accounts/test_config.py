from __future__ import annotations

import pytest

from tinkex.errors import ConfigurationError
from tinkex.mesh.accounts.config import AuthConfig


def test_the_defaults_hold_and_an_account_may_have_no_limit():
    assert 600 <= AuthConfig().access_s <= 900
    assert AuthConfig(default_quota_tokens=None).default_quota_tokens is None


def test_every_setting_that_is_wrong_is_named():
    with pytest.raises(ConfigurationError) as found:
        AuthConfig(
            access_s=3600,
            session_s=0,
            lease_tokens=-1,
            default_quota_tokens=-5,
            lockout_s=10,
            lockout_max_s=1,
        )
    told = "; ".join(found.value.problems)
    assert len(found.value.problems) == 5
    for name in ("access_s", "session_s", "lease_tokens", "default_quota_tokens", "lockout_max_s"):
        assert name in told
