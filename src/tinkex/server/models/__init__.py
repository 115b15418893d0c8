"""The base models, and the thread that owns the engine of each."""
