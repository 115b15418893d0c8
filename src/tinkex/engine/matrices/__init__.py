"""Frozen weight matrices: their forms, and products with them."""
