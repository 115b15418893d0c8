"""Accounts, sessions and keys: domain code that knows no network, no disk and no clock.

    events   what can happen, as it stands in the auth log      addresses  e-mail addresses
    state    the fold of them                                   credentials  keys, refresh tokens
    accounts decides: a state and a wish in, events out         tokens     JWT
    lockout  who guesses has to wait                            scopes     what a key is for
    public   what gateways fold: verifies keys and tokens offline

An event is appended to the log first and folded after, by `workers.auth`.
"""
