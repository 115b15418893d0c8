"""What a gateway is made of.

api         each call of a client's, handed to the part that answers it
admission   who may ask, and how often
freshness   whether what is known of accounts is new enough
bounds      what a request may be, and the most that it can cost
ledger      leases, reservations, what was spent
directory   the processors there are
dispatch    begins at one processor, goes on at another
relay       what the client has, and whether what a processor sends may follow it
completion  one completion, from the request to the receipt
auth_calls  asks auth workers
"""
