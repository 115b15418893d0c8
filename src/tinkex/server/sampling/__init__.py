"""Sampling: the handles that clients hold, the samples, what was sampled, and streams of it."""
