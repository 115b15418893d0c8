"""The key that signs access tokens, replaced in time.

Owns when a new key is announced and which one signs. A key is announced an hour before it is
needed, so that every gateway has it when the first token comes.
"""

from __future__ import annotations

from collections.abc import Callable

from tinkex.mesh.accounts.config import AuthConfig
from tinkex.mesh.accounts.events import SigningKeyAdded
from tinkex.mesh.accounts.state import AccountsState
from tinkex.mesh.accounts.tokens import Claims, TokenSigner
from tinkex.mesh.identity import KeyPair, PeerId

AHEAD_S = 3600.0
_KID_BYTES = 8


class Signing:
    """One auth worker's signing keys.

    Args:
        identity: the auth worker's key pair.
        network: whose members tokens are for.
        state: which keys were announced.
        config: how long a key signs, and how long a token lasts.
        random: so many random bytes.
    """

    def __init__(
        self,
        identity: KeyPair,
        network: PeerId,
        *,
        state: Callable[[], AccountsState],
        config: AuthConfig,
        random: Callable[[int], bytes],
    ) -> None:
        self._signer = TokenSigner(identity, network)
        self._author = identity.peer_id.raw
        self._state = state
        self._config = config
        self._random = random

    def key(self, now: float) -> tuple[tuple[SigningKeyAdded, ...], str]:
        """Say which key signs now: (keys to announce before, the key's name).

        The oldest that still may; a new one is announced when the newest has an hour left.
        """
        usable = self._usable(now)
        ahead = min(AHEAD_S, self._config.signing_key_s / 2)
        if usable and usable[-1].sign_until - now > ahead:
            return (), usable[0].kid
        kid = self._random(_KID_BYTES).hex()
        added = self._signer.announce(
            kid, now=now, lasts_s=self._config.signing_key_s, token_s=self._config.access_s
        )
        return (added,), usable[0].kid if usable else kid

    def sign(self, kid: str, claims: Claims) -> str:
        """Sign a token."""
        return self._signer.sign(kid, claims)

    def _usable(self, now: float) -> list[SigningKeyAdded]:
        state = self._state()
        mine = [
            key
            for key in state.signing_keys.values()
            if key.author == self._author
            and key.kid not in state.revoked_signing_keys
            and now < key.sign_until
        ]
        return sorted(mine, key=lambda key: key.sign_until)
