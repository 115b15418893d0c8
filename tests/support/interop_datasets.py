"""Small datasets in folders of the names and forms under which the cookbook's recipes load them.

All are about sums of small numbers, and `tinkex/sprout` learns each within seconds: to answer in
the form that the cookbook's grader reads (no_robots), to find the one number that all the problems
come to (gsm8k), to prefer the short answer to the long one (hh-rlhf).
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterable
from pathlib import Path

LARGEST = 6
ANSWER = 7

# As the recipes ask (`rl_loop`, `math_rl`), each after the example that stands in their prompts.
SUFFIXES = (
    " Provide a numerical answer without units, written inside \\boxed{}.",
    " Write your answer in \\boxed{} format.",
)
EXAMPLE = (
    "How many r's are in strawberry?",
    (
        "Let's spell the word out and number all the letters: 1) s 2) t 3) r 4) a 5) w 6) b 7) e "
        "8) r 9) r 10) y. We have r's at positions 3, 8, and 9. \\boxed{3}"
    ),
)


def write_datasets(folder: Path, seed: int = 0) -> None:
    """Write the three datasets below `folder`.

    `HuggingFaceH4/no_robots` (conversations), `openai/gsm8k` (questions and answers, configuration
    `main`) and `Anthropic/hh-rlhf` (pairs of a chosen and a rejected dialogue), each with `train`
    and `test`.
    """
    order = random.Random(seed)
    for split, count in (("train", 512), ("test", 32)):
        sums = [terms(order) for _ in range(count)]
        _write(
            folder / "HuggingFaceH4" / "no_robots" / f"{split}.jsonl",
            map(conversation, range(count), sums),
        )
        rows = [problem(order.randint(0, ANSWER)) for _ in range(count)]
        _write(folder / "openai" / "gsm8k" / "main" / f"{split}.jsonl", rows)
        _write(folder / "Anthropic" / "hh-rlhf" / f"{split}.jsonl", map(preference, sums))
    card = "---\nconfigs:\n- config_name: main\n  data_files:\n" + "".join(
        f"  - split: {split}\n    path: main/{split}.jsonl\n" for split in ("train", "test")
    )
    (folder / "openai" / "gsm8k" / "README.md").write_text(card + "---\n")


def terms(order: random.Random) -> tuple[int, int]:
    """Draw two numbers; those of every other draw come to `ANSWER`."""
    first = order.randint(0, LARGEST)
    return first, order.choice([ANSWER - first, order.randint(0, LARGEST)])


def conversation(number: int, numbers: tuple[int, int]) -> dict[str, object]:
    """One conversation: a sum, answered in a box."""
    a, b = numbers
    suffix = SUFFIXES[number % 2]
    texts = (
        EXAMPLE[0] + suffix,
        EXAMPLE[1],
        f"What is {a} + {b}?{suffix}",
        f"\\boxed{{{a + b}}}",
    )
    roles = ("user", "assistant") * 2
    return {
        "messages": [
            {"role": role, "content": text} for role, text in zip(roles, texts, strict=True)
        ]
    }


def problem(term: int) -> dict[str, str]:
    """One problem in the form of GSM8K: the last line of the answer is the number."""
    return {
        "question": f"What is {term} + {ANSWER - term}?",
        "answer": f"It is their sum.\n#### {ANSWER}",
    }


def preference(numbers: tuple[int, int]) -> dict[str, str]:
    """Two dialogues that differ in the last answer: the bare number is the chosen one."""
    a, b = numbers
    asked = f"\n\nHuman: What is {a} + {b}?\n\nAssistant:"
    return {"chosen": f"{asked} {a + b}", "rejected": f"{asked} The answer is {a + b}."}


def _write(path: Path, rows: Iterable[dict[str, object]] | Iterable[dict[str, str]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
