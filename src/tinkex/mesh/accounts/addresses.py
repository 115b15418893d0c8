"""E-mail addresses, in the one form in which they are compared."""

from __future__ import annotations

import unicodedata

from tinkex.errors import InputError

MAX_LENGTH = 254
_MAX_LOCAL_LENGTH = 64


def normalised(address: str) -> str:
    """Return the form in which two spellings of an address are equal.

    Letters lose their case, on both sides of the sign: no mail service in use tells `Ann@` from
    `ann@`, and two accounts that differ in that alone would be a trap. The domain is written in
    ASCII (IDNA), and compatibility forms of letters become the letters.

    Raises:
        InputError: it is no address.
    """
    folded = unicodedata.normalize("NFKC", address.strip()).casefold()
    local, sign, domain = folded.rpartition("@")
    if not sign or not local or len(local) > _MAX_LOCAL_LENGTH or "@" in local:
        raise _none()
    try:
        domain = domain.encode("idna").decode("ascii")
    except UnicodeError as error:
        raise _none() from error
    found = f"{local}@{domain}"
    if len(found) > MAX_LENGTH or not _readable(local) or not _is_domain(domain):
        raise _none()
    return found


def _readable(local: str) -> bool:
    return local.isprintable() and not any(each.isspace() for each in local)


def _is_domain(domain: str) -> bool:
    labels = domain.split(".")
    return len(labels) >= 2 and all(
        label and label.replace("-", "a").isalnum() and label[0] != "-" != label[-1]
        for label in labels
    )


def _none() -> InputError:
    return InputError("email: this is no e-mail address")
