"""The database and the checkpoint folders."""
