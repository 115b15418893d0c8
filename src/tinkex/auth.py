"""Is there a key, and does the server take it?"""

from __future__ import annotations

from tinkex._clock import SystemClock
from tinkex.client.credentials import StaticKey, configured_credentials
from tinkex.errors import TinkerError

__all__ = ["get_tinker_token", "raise_if_tinker_not_accessible", "tinker_has_credentials"]


def get_tinker_token() -> str | None:
    """Return the configured key; None when there is none, or a command gives it.

    No command is run for it, and no request made.
    """
    try:
        found = configured_credentials(SystemClock())
    except TinkerError:
        return None
    return found.account if isinstance(found, StaticKey) else None


def tinker_has_credentials() -> bool:
    """Say whether a key, or a command that gives one, is configured. Makes no request."""
    try:
        configured_credentials(SystemClock())
    except TinkerError:
        return False
    return True


def raise_if_tinker_not_accessible() -> None:
    """Ask the configured server once, without retries, and return if it takes the key.

    Raises:
        CredentialError: there is no key, or one of the wrong form.
        AuthenticationError: the server does not take the key.
        BillingError: the account cannot pay.
        APIConnectionError: the server does not answer.
    """
    from tinkex.client.service import ServiceClient  # noqa: PLC0415 - not needed for the others

    with ServiceClient(max_retries=0) as client:
        client.get_server_capabilities()
