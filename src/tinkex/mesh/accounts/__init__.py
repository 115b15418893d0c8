"""Accounts, sessions and keys: domain code that knows no network, no disk and no clock.

    events   what can happen, as it stands in the auth log      addresses  e-mail addresses
    state    the fold of them                                   credentials  keys, refresh tokens
    accounts decides: a state and a wish in, events out         tokens     JWT
    lockout  who guesses has to wait                            scopes     what a key is for
    public   what gateways fold: verifies keys and tokens offline
    network  what every member folds: the network as the root described it, who is shut out
    config   how long things last, and how much of them there may be

An event is appended to the log first and folded after, by `workers.authority.log`.
"""
