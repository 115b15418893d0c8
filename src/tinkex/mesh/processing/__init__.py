"""What a processor runs requests on: our engine, or any server that speaks OpenAI's API."""
