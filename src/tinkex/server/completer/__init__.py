"""The engine behind OpenAI's API: names, text, and the way of a prompt to the sampler and back."""
