"""Files: checkpoints, PEFT's format, merged models."""
