"""Adapters by their content: manifests, chunks, and who may fetch them."""
