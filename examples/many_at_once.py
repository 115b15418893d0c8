"""Two adapters trained side by side on one base model, while a third client samples.

    tinkex serve &                   # prints the two variables to export
    python examples/many_at_once.py

The same calls as in the other examples, awaited. Each adapter's own calls keep their order; the
server batches what different clients ask for.
"""

import asyncio

import tinkex as tinker

BASE_MODEL = "tinkex/sprout"
STEPS = 6
TEXTS = {
    "tides": "The moon pulls the water, and the water answers twice a day.",
    "bread": "Flour, water, salt and time are all that bread has ever needed.",
}


async def train(service, name, text):
    training = await service.create_lora_training_client_async(BASE_MODEL, rank=8)
    tokens = training.get_tokenizer().encode(text)
    datum = tinker.Datum(
        model_input=tinker.ModelInput.from_ints(tokens[:-1]),
        loss_fn_inputs={"target_tokens": tokens[1:], "weights": [1.0] * (len(tokens) - 1)},
    )
    for step in range(STEPS):
        # the first await sends, the second waits for the result
        loss = await training.forward_backward_async([datum], "cross_entropy")
        step_done = await training.optim_step_async(tinker.AdamParams(learning_rate=5e-3))
        metrics = (await loss).metrics
        await step_done
        print(f"{name}  step {step + 1}  loss {metrics['loss:sum'] / (len(tokens) - 1):.3f}")


async def sample(service):
    sampler = await service.create_sampling_client_async(base_model=BASE_MODEL)
    tokenizer = sampler.get_tokenizer()
    params = tinker.SamplingParams(max_tokens=8, temperature=0.8, seed=1)
    prompts = [tinker.ModelInput.from_ints(tokenizer.encode(f"{n} and")) for n in range(40)]
    replies = await asyncio.gather(*(sampler.sample_async(one, 1, params) for one in prompts))
    tokens = sum(len(reply.sequences[0].tokens) for reply in replies)
    print(f"sampled {tokens} tokens for {len(replies)} prompts")


async def main():
    with tinker.ServiceClient() as service:
        trained = (train(service, name, text) for name, text in TEXTS.items())
        await asyncio.gather(*trained, sample(service))


if __name__ == "__main__":
    asyncio.run(main())
