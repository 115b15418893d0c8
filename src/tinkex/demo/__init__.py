"""Two small tasks that show fine-tuning: `arithmetic` (RL) and `translation` (supervised)."""
