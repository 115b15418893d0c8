"""Teach the base model facts it does not know, then ask it.

    tinkex serve &                 # prints the two variables to export
    python examples/supervised.py

Questions are read and answers are learned: the tokens of a question have the weight 0.
"""

import random

import tinkex as tinker

BASE_MODEL = "tinkex/sprout"
CAPITALS = {
    "Atlora": "Mirenth",
    "Besk": "Oltar",
    "Cavoria": "Dunmeal",
    "Drenn": "Pellis",
    "Estavia": "Corrin",
    "Fael": "Tambrel",
}
STEPS = 24
BATCH = 6
LEARNING_RATE = 5e-3


def question(country):
    return [{"role": "user", "content": f"What is the capital of {country}?"}]


def prompt_tokens(tokenizer, messages):
    return tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)


def example(tokenizer, country, capital):
    """Position t of the targets is what follows position t of the input; the prompt weighs 0."""
    prompt = prompt_tokens(tokenizer, question(country))
    reply = [*tokenizer.encode(capital, add_special_tokens=False), tokenizer.eos_token_id]
    tokens = prompt + reply
    weights = [0.0] * (len(prompt) - 1) + [1.0] * len(reply)
    return tinker.Datum(
        model_input=tinker.ModelInput.from_ints(tokens[:-1]),
        loss_fn_inputs={"target_tokens": tokens[1:], "weights": weights},
    )


def answers(sampler, tokenizer):
    """Ask about every country at once."""
    params = tinker.SamplingParams(max_tokens=12, temperature=0.0)
    futures = {
        country: sampler.sample(
            tinker.ModelInput.from_ints(prompt_tokens(tokenizer, question(country))), 1, params
        )
        for country in CAPITALS
    }
    return {
        country: tokenizer.decode(future.result().sequences[0].tokens, skip_special_tokens=True)
        for country, future in futures.items()
    }


def main():
    with tinker.ServiceClient() as service:
        training = service.create_lora_training_client(BASE_MODEL, rank=16, seed=0).result()
        tokenizer = training.get_tokenizer()
        data = [example(tokenizer, *pair) for pair in CAPITALS.items()]
        targets = sum(sum(datum.loss_fn_inputs["weights"].data) for datum in data)
        order = random.Random(0)
        for step in range(STEPS):
            rate = LEARNING_RATE * (1 - step / STEPS)
            batch = order.sample(data, BATCH)
            # both are sent at once; the server does them in this order
            loss = training.forward_backward(batch, "cross_entropy")
            training.optim_step(tinker.AdamParams(learning_rate=rate)).result()
            if step % 6 == 0 or step == STEPS - 1:
                mean = loss.result().metrics["loss:sum"] / targets
                print(f"step {step + 1:2}  loss per token {mean:.3f}")
        sampler = training.save_weights_and_get_sampling_client().result()
        given = answers(sampler, tokenizer)
        for country, capital in CAPITALS.items():
            mark = "right" if given[country] == capital else f"wrong, it is {capital}"
            print(f"{country}: {given[country]} ({mark})")
        right = sum(given[country] == capital for country, capital in CAPITALS.items())
        print(f"{right} of {len(CAPITALS)} right")


if __name__ == "__main__":
    main()
