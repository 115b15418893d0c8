"""Addresses of files that work for a while without a key.

Owns the signature: HMAC-SHA256 (RFC 2104) over what is named, what lies there and when it ends,
under a secret of this data folder. Knows nothing of files.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from typing import TYPE_CHECKING
from urllib.parse import quote, urlencode

from tinkex._files import read_whole, write_whole

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from tinkex._clock import Clock

SECRET_NAME = "url_secret"  # noqa: S105 - a file's name
_SECRET_BYTES = 32


class SignedUrls:
    """Signs paths and checks signatures.

    Args:
        secret_file: kept there, made when missing, for its owner's eyes alone.
        clock: tells when a signature ends.
        lifetime_s: how long one is good.
    """

    def __init__(self, secret_file: Path, *, clock: Clock, lifetime_s: float) -> None:
        self._secret_file = secret_file
        self._clock = clock
        self._lifetime_s = lifetime_s
        self._secret = b""

    def open(self) -> None:
        """Read the secret, or make one. Blocks."""
        self._secret = read_whole(self._secret_file) or b""
        if len(self._secret) < _SECRET_BYTES:  # whoever guesses a short one can sign
            self._secret = secrets.token_bytes(_SECRET_BYTES)
            write_whole(self._secret_file, self._secret)

    def sign(self, base_url: str, path: str, content: str) -> tuple[str, float]:
        """Return the address of a path, and when it ends in unix seconds.

        Args:
            base_url: of this server, as its client reaches it.
            path: what it is the address of.
            content: tells what lies there now from what may lie there later.
        """
        expires = int(self._clock.now() + self._lifetime_s)
        signature = self._signature(path, expires, content)
        query = urlencode({"expires": expires, "content": content, "signature": signature})
        return f"{base_url.rstrip('/')}{quote(path)}?{query}", float(expires)

    def accepts(self, path: str, query: Mapping[str, str]) -> bool:
        """Whether a request for a path carries a good signature that has not ended."""
        text = query.get("expires", "")
        if not (text.isascii() and text.isdigit()) or len(text) > 12:
            return False
        wanted = self._signature(path, int(text), query.get("content", ""))
        same = hmac.compare_digest(wanted.encode(), query.get("signature", "").encode())
        return same and int(text) > self._clock.now()

    def _signature(self, path: str, expires: int, content: str) -> str:
        message = f"{path}\n{expires}\n{content}".encode()
        return hmac.new(self._secret, message, hashlib.sha256).hexdigest()
