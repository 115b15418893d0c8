"""LoRA: factors of adapters, and the layers that apply many of them at once."""
