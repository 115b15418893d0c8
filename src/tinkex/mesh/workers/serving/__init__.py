"""How a gateway serves one completion.

bounds     what a request may be, and the most that it can cost
relay      what the client has, and whether what a processor sends may follow it
directory  the processors there are
dispatch   begins at one processor, goes on at another
"""
