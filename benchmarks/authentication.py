"""What it costs to find out who calls: by key, by token, and a password's hash.

    python benchmarks/authentication.py

Prints microseconds, the least of five rounds, on a database with 200 keys.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING

from tinkex._clock import SystemClock
from tinkex.passwords import Passwords
from tinkex.server.accounts.authenticator import Authenticator
from tinkex.server.accounts.directory import Directory, KeyTerms
from tinkex.server.accounts.store import AccountStore
from tinkex.server.accounts.tokens import TokenIssuer

if TYPE_CHECKING:
    from collections.abc import Callable


def microseconds(call: Callable[[], object], count: int) -> float:
    rounds = []
    for _ in range(5):
        start = perf_counter()
        for _ in range(count):
            call()
        rounds.append((perf_counter() - start) / count * 1e6)
    return min(rounds)


def main() -> None:
    clock = SystemClock()
    with tempfile.TemporaryDirectory() as folder:
        store = AccountStore(Path(folder) / "db.sqlite3")
        store.open()
        directory = Directory(store, clock)
        account = directory.create_account("a").account_id
        keys = [directory.create_key(account, "k", KeyTerms()).secret for _ in range(200)]
        tokens = TokenIssuer(Path(folder) / "keys.json", clock=clock, lifetime_s=3600.0)
        authenticator = Authenticator(store, tokens, clock)
        token, _ = tokens.issue(authenticator.claims(keys[0]))

        def new_token() -> None:
            tokens._read.clear()
            authenticator.caller(token)

        print(f"key             {microseconds(lambda: authenticator.caller(keys[7]), 2000):9.0f}")
        print(f"token, seen     {microseconds(lambda: authenticator.caller(token), 2000):9.0f}")
        print(f"token, new      {microseconds(new_token, 300):9.0f}")
        claims = authenticator.claims(keys[0])
        print(f"token, signed   {microseconds(lambda: tokens.issue(claims), 300):9.0f}")
        passwords = Passwords()
        print(f"password's hash {microseconds(lambda: passwords.hash('x' * 12), 1):9.0f}")
        store.close()


if __name__ == "__main__":
    main()
