"""How large a row of keys and values is: what the scheduler reserves and the cache allocates.

No tensors, so that the scheduler stays a policy.
"""

_SMALLEST_ROW = 64


def row_capacity(tokens: int) -> int:
    """Give the size class, in tokens, of a cache row that holds `tokens`."""
    return max(_SMALLEST_ROW, 1 << (tokens - 1).bit_length())
