"""Training runs: how one begins, the order of its requests, what each does, what is saved."""
