"""Prefer one reply to another: direct preference optimisation, with a loss of one's own.

    tinkex serve &                  # prints the two variables to export
    python examples/preferences.py

The loss is that of Rafailov et al. 2023 (arXiv:2305.18290, equation 7). It runs here, on
log-probabilities that the server sends; the server takes the gradient of the weights.
"""

import torch

import tinkex as tinker

BASE_MODEL = "tinkex/sprout"
BETA = 0.1
STEPS = 6
# prompt, the reply we want, the one we do not
PAIRS = [
    ("Good morning!", "Good morning! How can I help?", "What do you want?"),
    ("Thank you.", "You are very welcome.", "Whatever."),
    ("I am lost.", "Let us find the way together.", "Not my problem."),
]


def example(tokenizer, prompt, reply):
    before = tokenizer.apply_chat_template(
        [{"role": "user", "content": prompt}], add_generation_prompt=True, return_dict=False
    )
    after = [*tokenizer.encode(reply, add_special_tokens=False), tokenizer.eos_token_id]
    tokens = before + after
    return tinker.Datum(
        model_input=tinker.ModelInput.from_ints(tokens[:-1]),
        loss_fn_inputs={
            "target_tokens": tokens[1:],
            "weights": [0.0] * (len(before) - 1) + [1.0] * len(after),
        },
    )


def of_replies(data, logprobs):
    """Log-probability of each reply: one value a datum."""
    weights = [datum.loss_fn_inputs["weights"].to_torch() for datum in data]
    return torch.stack([(one * w).sum() for one, w in zip(logprobs, weights, strict=True)])


def preference_loss(reference):
    def loss(data, logprobs):
        gain = of_replies(data, logprobs) - reference
        margin = gain[0::2] - gain[1::2]  # wanted less unwanted
        value = -torch.nn.functional.logsigmoid(BETA * margin).mean()
        seen = margin.detach()
        return value, {"margin": float(seen.mean()), "preferred": float((seen > 0).sum())}

    return loss


def main():
    with tinker.ServiceClient() as service:
        training = service.create_lora_training_client(BASE_MODEL, rank=8, seed=0).result()
        tokenizer = training.get_tokenizer()
        data = [
            example(tokenizer, prompt, reply)
            for prompt, wanted, unwanted in PAIRS
            for reply in (wanted, unwanted)
        ]
        outputs = training.forward(data, "cross_entropy").result().loss_fn_outputs
        reference = of_replies(data, [output["logprobs"].to_torch() for output in outputs])
        loss = preference_loss(reference)
        for step in range(STEPS):
            metrics = training.forward_backward_custom(data, loss).result().metrics
            training.optim_step(tinker.AdamParams(learning_rate=3e-4)).result()
            print(
                f"step {step + 1}  loss {metrics['loss:sum']:.4f}  margin {metrics['margin']:+.2f}"
                f"  preferred {metrics['preferred']:.0f} of {len(PAIRS)}"
            )


if __name__ == "__main__":
    main()
