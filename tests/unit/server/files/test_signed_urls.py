"""The secret under addresses that work without a key."""

from __future__ import annotations

import hashlib
import hmac
import stat

import pytest

from tinkex.server.files.signed_urls import SignedUrls
from tinkex.testing.clock import VirtualClock


def opened(path, clock):
    urls = SignedUrls(path, clock=clock, lifetime_s=60.0)
    urls.open()
    return urls


def query_of(url):
    return dict(part.split("=") for part in url.partition("?")[2].split("&"))


def test_secret_outlives_a_restart(tmp_path):
    path, clock = tmp_path / "url_secret", VirtualClock()
    url, _ = opened(path, clock).sign("http://here", "/file", "c1")
    assert opened(path, clock).accepts("/file", query_of(url))
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


@pytest.mark.parametrize("left", [b"", b"half of the sec"])
def test_secret_that_a_crash_cut_short_signs_nothing(tmp_path, left):
    path, clock = tmp_path / "url_secret", VirtualClock()
    path.write_bytes(left)
    urls = opened(path, clock)
    expires = int(clock.now() + 30)
    made_up = hmac.new(left, f"/file\n{expires}\nc1".encode(), hashlib.sha256).hexdigest()
    forged = {"expires": str(expires), "content": "c1", "signature": made_up}
    assert not urls.accepts("/file", forged)
    url, _ = urls.sign("http://here", "/file", "c1")
    assert opened(path, clock).accepts("/file", query_of(url))
