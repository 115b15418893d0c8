"""Reward what you can check: short answers to small sums, by policy gradient.

    tinkex serve &                    # prints the two variables to export
    python examples/reinforcement.py

For each problem a group of replies is sampled; a reply's advantage is its reward less the mean of
its group (as in GRPO, without its division by the deviation). The `importance_sampling` loss
weighs each token by how much likelier the trained policy finds it than the one that sampled it.
"""

import random
import re

import tinkex as tinker

BASE_MODEL = "tinkex/sprout"
STEPS = 8
PROBLEMS = 12
GROUP = 8
LEARNING_RATE = 3e-3


def problem(chance):
    a, b = chance.randint(1, 20), chance.randint(1, 20)
    return f"What is {a} + {b}?", a + b


def reward(text, answer):
    """One for the number alone; anything else, nothing."""
    return float(bool(re.fullmatch(rf"\s*{answer}\s*", text)))


def datum(prompt, reply, advantage):
    """The prompt's positions have advantage 0, so they give no gradient."""
    tokens = prompt + list(reply.tokens)
    before = len(prompt) - 1
    return tinker.Datum(
        model_input=tinker.ModelInput.from_ints(tokens[:-1]),
        loss_fn_inputs={
            "target_tokens": tokens[1:],
            "logprobs": [0.0] * before + list(reply.logprobs),
            "advantages": [0.0] * before + [advantage] * len(reply.tokens),
        },
    )


def main():
    chance = random.Random(0)
    with tinker.ServiceClient() as service:
        training = service.create_lora_training_client(BASE_MODEL, rank=16, seed=0).result()
        tokenizer = training.get_tokenizer()
        for step in range(STEPS):
            sampler = training.save_weights_and_get_sampling_client().result()
            groups = []
            for number in range(PROBLEMS):
                text, answer = problem(chance)
                prompt = tokenizer.apply_chat_template(
                    [{"role": "user", "content": text}],
                    add_generation_prompt=True,
                    return_dict=False,
                )
                params = tinker.SamplingParams(max_tokens=12, seed=step * PROBLEMS + number)
                replies = sampler.sample(tinker.ModelInput.from_ints(prompt), GROUP, params)
                groups.append((prompt, answer, replies))
            data, rewards = [], []
            for prompt, answer, replies in groups:
                scored = [
                    (
                        reply,
                        reward(tokenizer.decode(reply.tokens, skip_special_tokens=True), answer),
                    )
                    for reply in replies.result().sequences
                ]
                mean = sum(score for _, score in scored) / GROUP
                rewards.append(mean)
                data += [
                    datum(prompt, reply, score - mean) for reply, score in scored if score != mean
                ]
            print(f"step {step + 1}  mean reward {sum(rewards) / PROBLEMS:.2f}  data {len(data)}")
            if data:  # a group that agrees teaches nothing
                training.forward_backward(data, "importance_sampling")
                training.optim_step(tinker.AdamParams(learning_rate=LEARNING_RATE)).result()


if __name__ == "__main__":
    main()
