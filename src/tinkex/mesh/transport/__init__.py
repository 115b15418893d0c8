"""Encrypted links between peers: iroh, TLS, and memory for tests and simulation."""
