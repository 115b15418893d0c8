"""What workers ask one another: the messages, and who may call what.

    auth        accounts, keys, quota leases     called by gateways
    gateway     completions, accounts            called by clients
    processor   completions under a permit       called by gateways

Each class is abstract: the worker of that name implements it, callers name its methods.
"""
