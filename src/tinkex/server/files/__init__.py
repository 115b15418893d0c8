"""Checkpoints as files: recorded, checked, encrypted, archived, downloaded, backed up."""
