"""Names that programs import from `tinker.lib`; they live elsewhere."""
