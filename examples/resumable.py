"""A run that goes on after the connection or the server was lost.

    tinkex serve &                # prints the two variables to export
    python examples/resumable.py

What `work` does after its latest checkpoint is done again; it saves as it goes, and begins where
the checkpoint that it is given ends.
"""

import tinkex as tinker

BASE_MODEL = "tinkex/sprout"
STEPS = 9
EVERY = 3
TEXT = "A checkpoint is a promise to your future self."


def start(service):
    return service.create_lora_training_client(BASE_MODEL, rank=8, seed=0).result()


def work(training, checkpoint):
    done = int(checkpoint.rpartition("-")[2]) if checkpoint else 0
    tokens = training.get_tokenizer().encode(TEXT)
    datum = tinker.Datum(
        model_input=tinker.ModelInput.from_ints(tokens[:-1]),
        loss_fn_inputs={"target_tokens": tokens[1:], "weights": [1.0] * (len(tokens) - 1)},
    )
    for step in range(done, STEPS):
        loss = training.forward_backward([datum], "cross_entropy")
        training.optim_step(tinker.AdamParams(learning_rate=5e-3)).result()
        print(f"step {step + 1}  loss {loss.result().metrics['loss:sum'] / (len(tokens) - 1):.3f}")
        if (step + 1) % EVERY == 0:
            print("saved", training.save_state(f"step-{step + 1}").result().path)
    return training.save_weights_for_sampler("final").result().path


def main():
    path = tinker.run_with_recovery(
        tinker.ServiceClient,
        start,
        work,
        on_recovery=lambda recovery: print(
            f"lost ({recovery.error}), on from {recovery.checkpoint}"
        ),
    )
    print("ready to sample from", path)


if __name__ == "__main__":
    main()
