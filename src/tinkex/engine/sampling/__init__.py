"""Sampling: who runs when, prompts, tokens."""
