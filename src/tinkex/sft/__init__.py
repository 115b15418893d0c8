"""Supervised fine-tuning as `tinkex train` does it: conversations, their tokens, the loop.

Stands on the client's public API alone. `from tinkex.sft import loop, conversations` is fine for
programs that want the same with their own data.
"""
