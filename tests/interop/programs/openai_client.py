"""The `openai` package with nothing but its two environment variables; prints JSON.

Arguments: names of models: a base, its alias, a checkpoint.
"""

import json
import sys

from openai import OpenAI

client = OpenAI()
messages = [{"role": "user", "content": "What is 3 + 4? Answer with the number alone."}]
found = {"models": [card.id for card in client.models.list()], "answers": {}}
for model in sys.argv[1:]:
    settings = {"model": model, "max_tokens": 8, "temperature": 0}
    whole = client.chat.completions.create(messages=messages, logprobs=True, **settings)
    parts = client.chat.completions.create(messages=messages, stream=True, **settings)
    streamed = "".join(part.choices[0].delta.content or "" for part in parts if part.choices)
    text = client.completions.create(prompt="The quick brown", n=2, seed=1, **settings)
    found["answers"][model] = {
        "whole": whole.choices[0].message.content,
        "streamed": streamed,
        "tokens": whole.usage.completion_tokens,
        "logprobs": len(whole.choices[0].logprobs.content),
        "text": [choice.text for choice in text.choices],
    }
print(json.dumps(found))
