"""The supervised demo task: translate simple English sentences to French.

Owns reading the sentence pairs and their fixed split. The pairs themselves are data
(`translation.jsonl`, made by `tools/sprout/pairs.py`). The base model `tinkex/sprout` has seen no
French: what it translates after training, it learnt from the training pairs.
"""

import json
from dataclasses import dataclass
from importlib import resources

HELD_OUT = 100
"""How many lines at the end of the file are held out.

No held-out sentence is a training sentence, and each of its words occurs in one.
"""


@dataclass(frozen=True, slots=True)
class Example:
    """One request for a translation, and the right reply."""

    prompt: str
    reply: str

    @property
    def messages(self) -> list[dict[str, str]]:
        """The request as chat messages, ready for a chat template; the reply is not among them."""
        return [{"role": "user", "content": self.prompt}]


def load() -> tuple[list[Example], list[Example]]:
    """Read the training and the held-out examples."""
    text = resources.files("tinkex.demo").joinpath("translation.jsonl").read_text(encoding="utf-8")
    examples = [_example(line) for line in text.splitlines()]
    return examples[:-HELD_OUT], examples[-HELD_OUT:]


def _example(line: str) -> Example:
    user, assistant = json.loads(line)["messages"]
    return Example(prompt=user["content"], reply=assistant["content"])
