"""Measures an exported `tinkex/sprout`: the figures of its model card.

Owns the held-out losses, the share of right greedy replies in each family of the synthetic chat,
and where the two demo tasks start from.

    python tools/sprout/evaluate.py src/tinkex/engine/assets/sprout
"""

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from random import Random

import torch
from chat import FAMILIES, is_test
from tokenizers import Tokenizer
from train import held_out_losses
from transformers import AutoModelForCausalLM, AutoTokenizer
from turn import Turn

from tinkex.demo import arithmetic

PER_FAMILY = 100
SAMPLES = 8


class Sprout:
    """An exported model that answers questions, many at a time."""

    def __init__(self, folder: Path) -> None:
        self.model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        self.tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")

    @torch.no_grad()
    def reply(self, questions: list[str], *, greedy: bool = True, tokens: int = 64) -> list[str]:
        """Answer each question on its own."""
        prompts = [
            self.tokenizer.apply_chat_template(
                [{"role": "user", "content": question}], tokenize=False, add_generation_prompt=True
            )
            for question in questions
        ]
        batch = self.tokenizer(prompts, return_tensors="pt", padding=True)
        output = self.model.generate(
            input_ids=batch["input_ids"],
            attention_mask=batch["attention_mask"],
            max_new_tokens=tokens,
            do_sample=not greedy,
            temperature=None if greedy else 1.0,
            top_k=0 if not greedy else None,
        )
        replies = output[:, batch["input_ids"].shape[1] :]
        return self.tokenizer.batch_decode(replies, skip_special_tokens=True)


def unseen(make: Callable[[Random], Turn], count: int) -> list[Turn]:
    """Draw turns that training cannot have seen as a conversation of one turn.

    A family with few questions may have none in the test part; its turns are then drawn freely.
    """
    rng = Random(5)  # noqa: S311 - synthetic data
    drawn = [make(rng) for _ in range(count * 100)]
    kept = {t.question: t for t in drawn if is_test(_as_messages(t))}
    return list(kept.values())[:count] or drawn[:count]


def family_accuracy(sprout: Sprout, make: Callable[[Random], Turn]) -> float:
    """Return the share of greedy replies that contain the answer as whole words."""
    turns = unseen(make, PER_FAMILY)
    replies = sprout.reply([turn.question for turn in turns])
    return sum(map(_right, turns, replies)) / len(turns)


def arithmetic_start(sprout: Sprout) -> dict[str, float]:
    """Return how the RL task starts, over its held-out problems, and the skill behind it.

    `greedy` and `sampled` use the task's own reward. `asked for the number` adds to each question
    the words that training tied to a bare number: what the model knows, whatever its habit.
    """
    problems = arithmetic.held_out()
    questions = [problem.question for problem in problems]
    torch.manual_seed(0)
    sampled = [sprout.reply(questions, greedy=False, tokens=12) for _ in range(SAMPLES)]
    asked = [f"{question} Reply with just the number." for question in questions]
    return {
        "greedy": _mean_reward(problems, sprout.reply(questions, tokens=12)),
        "sampled": sum(_mean_reward(problems, replies) for replies in sampled) / SAMPLES,
        "asked for the number": _mean_reward(problems, sprout.reply(asked, tokens=12)),
    }


def main(folder: Path) -> None:
    """Print every figure as JSON."""
    sprout = Sprout(folder)
    figures = {
        "held-out loss": held_out_losses(
            sprout.model, Tokenizer.from_file(str(folder / "tokenizer.json"))
        ),
        "arithmetic task": arithmetic_start(sprout),
        "families": {name: family_accuracy(sprout, make) for name, (make, _) in FAMILIES.items()},
    }
    print(json.dumps(figures, indent=1))


def _mean_reward(problems: list[arithmetic.Problem], replies: list[str]) -> float:
    return sum(map(arithmetic.reward, problems, replies)) / len(problems)


def _right(turn: Turn, reply: str) -> bool:
    return re.search(rf"(?<!\w){re.escape(turn.answer)}(?!\w)", reply) is not None


def _as_messages(turn: Turn) -> list[dict[str, str]]:
    return [
        {"role": "user", "content": turn.question},
        {"role": "assistant", "content": turn.reply},
    ]


if __name__ == "__main__":
    main(Path(sys.argv[1]))
