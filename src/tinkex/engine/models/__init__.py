"""Base models: where they come from, which are refused, how their linear layers are found."""
