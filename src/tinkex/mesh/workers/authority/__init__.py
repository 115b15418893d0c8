"""What an auth worker is made of.

books      what the logs come to: the folds that views keep
log        one decision after another: appended, folded, told to gateways
hashing    passwords, few at a time
people     registration, logins, sessions, keys, closing accounts
network    joining, revoked peers, signing keys, the network's description
spending   leases and usage
api        the service, put together of these
"""
