"""Turn chat messages into tokens and training examples.

Owns the shift by one: position `t` of `target_tokens` is the token that follows position `t` of
the input. Owns no templates; the tokenizer brings its own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tinkex import types
from tinkex.types import TensorData

Message = Mapping[str, str]


def prompt_tokens(messages: Sequence[Message], tokenizer: Any) -> list[int]:
    """Render `messages` up to the point where the assistant starts to speak."""
    return list(
        tokenizer.apply_chat_template(
            list(messages), add_generation_prompt=True, tokenize=True, return_dict=False
        )
    )


def completion_tokens(text: str, tokenizer: Any) -> list[int]:
    """Return the tokens of an assistant's reply, its end-of-turn token included."""
    return [*tokenizer.encode(text, add_special_tokens=False), tokenizer.eos_token_id]


def supervised_datum(messages: Sequence[Message], reply: str, tokenizer: Any) -> types.Datum:
    """Build a cross-entropy example: the reply is learned, the messages are context.

    Args:
        messages: a chat up to the user's last message.
        reply: what the assistant should answer.
        tokenizer: a Hugging Face tokenizer with a chat template.

    Shape:
        model_input [T], target_tokens [T] int64, weights [T] float32, T = len(tokens) - 1.
    """
    prompt = prompt_tokens(messages, tokenizer)
    completion = completion_tokens(reply, tokenizer)
    tokens = np.asarray(prompt + completion, dtype=np.int64)
    weights = np.zeros(len(tokens) - 1, dtype=np.float32)
    weights[len(prompt) - 1 :] = 1.0
    return types.Datum(
        model_input=types.ModelInput.from_ints(tokens[:-1].tolist()),
        loss_fn_inputs={
            "target_tokens": TensorData.from_numpy(tokens[1:]),
            "weights": TensorData.from_numpy(weights),
        },
    )


def policy_gradient_datum(
    prompt: Sequence[int], sampled: Sequence[int], logprobs: Sequence[float], advantage: float
) -> types.Datum:
    """Build an importance-sampling example from one sampled completion.

    Prompt positions carry advantage 0, so they give no gradient.

    Args:
        prompt: prompt tokens, at least one.
        sampled: tokens of the completion.
        logprobs: log-probability of each sampled token when it was sampled, in nats.
        advantage: how much better than expected this completion did; dimensionless.

    Shape:
        every array [T], T = len(prompt) + len(sampled) - 1.
    """
    tokens = np.asarray([*prompt, *sampled], dtype=np.int64)
    context = len(prompt) - 1
    advantages = np.full(len(tokens) - 1, advantage, dtype=np.float32)
    advantages[:context] = 0.0
    padded = np.zeros(len(tokens) - 1, dtype=np.float32)
    padded[context:] = np.asarray(logprobs, dtype=np.float32)
    return types.Datum(
        model_input=types.ModelInput.from_ints(tokens[:-1].tolist()),
        loss_fn_inputs={
            "target_tokens": TensorData.from_numpy(tokens[1:]),
            "logprobs": TensorData.from_numpy(padded),
            "advantages": TensorData.from_numpy(advantages),
        },
    )
