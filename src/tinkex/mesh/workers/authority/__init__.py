"""What an auth worker is made of.

books      what the logs come to: the folds that views keep
log        one decision after another: appended, folded, told to gateways
hashing    passwords, few at a time
signing    which key signs access tokens now
people     registration, logins, sessions, keys, closing accounts
network    joining, peers that are shut out, the network's description
orders     what the holder of the root key says, carried out
spending   leases and usage
operator   accounts and quotas, for who runs the network
api        the service, put together of these
"""
