"""Room 2a: trains and samples LoRA adapters over one base model.

Synchronous: no HTTP, no asyncio, no session, no user. Takes and returns `tinkex.types`. The only
home of torch. Importing this package imports nothing heavy; `tinkex.engine.engine` does.

    config <- models <- {attention, lora, head} <- model_runner <- {trainer, generation} <- engine
"""
