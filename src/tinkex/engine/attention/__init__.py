"""Attention on packed tokens, in its forms, and the keys and values that it reads."""
