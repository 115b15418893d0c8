"""Adapters and frozen samplers, and the memory that each lies in."""
