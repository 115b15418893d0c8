"""Training and sampling as users of the official SDK have written it since 0.22; prints JSON.

Nothing names a server or a key: both come from the environment. Only calls that 0.22, 0.25 and 0.38
all have, in their older form (clients at once, `*_async` twins), which 0.38 keeps.
"""

import asyncio
import importlib.util
import json
import random
import warnings
from concurrent.futures import ThreadPoolExecutor

warnings.simplefilter("ignore")  # 0.38 warns of the older forms

import tinker  # noqa: E402
from tinker import types  # noqa: E402

BASE_MODEL = "Qwen/Qwen3-4B-Instruct-2507"
ADAM = types.AdamParams(learning_rate=1e-2)


def datum(tokens, **inputs):
    count = len(tokens) - 1
    inputs = inputs or {"weights": [1.0] * count}
    return types.Datum(
        model_input=types.ModelInput.from_ints(tokens[:-1]),
        loss_fn_inputs={"target_tokens": tokens[1:], **inputs},
    )


def batch(seed, count=4, length=24):
    order = random.Random(seed)
    return [datum([order.randrange(300, 1500) for _ in range(length)]) for _ in range(count)]


def logprobs(output):
    return [[float(x) for x in one["logprobs"].tolist()] for one in output.loss_fn_outputs]


def plain(response):
    return [
        [list(one.tokens), [float(x) for x in one.logprobs], str(one.stop_reason)]
        for one in response.sequences
    ]


def train(service):
    training = service.create_lora_training_client(base_model=BASE_MODEL, rank=8, seed=7)
    info = training.get_info()
    found = {"info": [info.lora_rank, info.model_data.model_name]}
    data, losses = batch(0), []
    steps = [
        (training.forward_backward(data, "cross_entropy"), training.optim_step(ADAM))
        for _ in range(12)
    ]
    for forward_backward, optim in steps:  # all were sent before the first was waited for
        losses.append(forward_backward.result().metrics["loss:sum"])
        optim.result()
    found["losses"] = losses
    found["forward"] = logprobs(training.forward(data[:1], "cross_entropy").result())
    found["many"] = (
        training.forward(batch(1, 1030, 6), "cross_entropy").result().metrics["loss:sum"]
    )
    found["tokens"] = training.get_tokenizer().encode("The quick brown fox")
    return training, found


def custom(training):
    """A loss of one's own needs torch on this side."""
    if importlib.util.find_spec("torch") is None:
        return None
    output = training.forward_backward_custom(
        batch(2), lambda _data, logprobs: (sum((one**2).sum() for one in logprobs), {"mine": 1.0})
    ).result()
    training.optim_step(ADAM).result()
    metrics = output.metrics  # 0.22 has the linearised loss alone, as `loss:sum`
    linearised = metrics.get("surrogate_loss:sum", metrics["loss:sum"])
    after = training.forward(batch(2), "cross_entropy").result().metrics["loss:sum"]
    return [metrics["mine"], linearised, after]


def save_and_load(service, training):
    state = training.save_state("state").result().path
    weights = training.save_weights_for_sampler("weights").result().path
    found = {"loaded": training.load_state(state).result().path == state}
    for name in ("", "_with_optimizer"):
        again = getattr(service, f"create_training_client_from_state{name}")(state)
        losses = []
        for _ in range(3):
            losses.append(
                again.forward_backward(batch(0), "cross_entropy").result().metrics["loss:sum"]
            )
            again.optim_step(ADAM).result()
        found[f"from_state{name}"] = losses
    return weights, found


def sample(service, training, path):
    prompt = types.ModelInput.from_ints([300, 301, 302, 303])
    params = types.SamplingParams(max_tokens=8, temperature=0.7, seed=11)
    found = {}
    clients = {
        "path": service.create_sampling_client(model_path=path),
        "base": service.create_sampling_client(base_model=BASE_MODEL),
        "now": training.save_weights_and_get_sampling_client(name="now"),
    }
    for name, client in clients.items():
        response = client.sample(
            prompt=prompt, num_samples=2, sampling_params=params, include_prompt_logprobs=True,
            topk_prompt_logprobs=2,
        ).result()  # fmt: skip
        found[name] = plain(response)
        found[f"{name} prompt"] = [list(response.prompt_logprobs), response.topk_prompt_logprobs]
        found[f"{name} logprobs"] = client.compute_logprobs(prompt).result()
    greedy = types.SamplingParams(max_tokens=6, temperature=0.0)
    with ThreadPoolExecutor(20) as threads:
        many = [
            threads.submit(lambda n: clients["path"].sample(prompt, 1, greedy).result(), n)
            for n in range(40)
        ]
        found["many"] = [plain(one.result()) for one in many]
    stop = types.SamplingParams(max_tokens=8, stop=[found["many"][0][0][0][1]], temperature=0.0)
    found["stop"] = plain(clients["path"].sample(prompt, 1, stop).result())
    return clients["now"], found


def reinforce(training, sampler):
    """One step of policy gradient for each loss, on what was just sampled."""
    prompt = [300, 301, 302, 303]
    params = types.SamplingParams(max_tokens=6, temperature=1.0, seed=5)
    sequences = sampler.sample(types.ModelInput.from_ints(prompt), 4, params).result().sequences
    found = {}
    for name in ("importance_sampling", "ppo", "cispo"):
        data = []
        for number, one in enumerate(sequences):
            before = len(prompt) - 1
            tokens = [*prompt, *one.tokens]
            advantage = 1.0 if number % 2 else -1.0
            data.append(
                datum(
                    tokens,
                    logprobs=[0.0] * before + [float(x) for x in one.logprobs],
                    advantages=[0.0] * before + [advantage] * len(one.tokens),
                )
            )
        found[name] = training.forward_backward(data, name).result().metrics["loss:sum"]
        training.optim_step(ADAM).result()
    return found


def records(service, training):
    rest = service.create_rest_client()
    run = training.model_id
    saved = f"tinker://{run}/weights/state"
    rest.publish_checkpoint_from_tinker_path(saved).result()
    public = [one.public for one in rest.list_checkpoints(run).result().checkpoints]
    rest.unpublish_checkpoint_from_tinker_path(saved).result()
    rest.set_checkpoint_ttl_from_tinker_path(saved, 7200).result()
    rest.delete_checkpoint_from_tinker_path(f"tinker://{run}/sampler_weights/weights").result()
    names = [one.checkpoint_id for one in rest.list_checkpoints(run).result().checkpoints]
    return {
        "base_model": rest.get_training_run(run).result().base_model,
        "runs": len(rest.list_training_runs(limit=2).result().training_runs) > 0,
        "public": sorted(public),
        "names": sorted(names),
        "rank": rest.get_weights_info_by_tinker_path(saved).result().lora_rank,
        "session": run in rest.get_session(run.partition(":")[0]).result().training_run_ids,
    }


def wrong(training):
    """Bad data: an error that says so, and a run that goes on."""
    try:
        training.forward_backward([datum([5, 6, 999_999_999])], "cross_entropy").result()
    except tinker.TinkerError as error:
        words = "999999999" in str(error).replace(",", "").replace("_", "")
    training.optim_step(ADAM).result()
    return words


async def asynchronously(service):
    training = await service.create_lora_training_client_async(BASE_MODEL, rank=4, seed=1)
    losses = []
    for _ in range(3):
        step = await training.forward_backward_async(batch(3), "cross_entropy")
        optim = await training.optim_step_async(ADAM)
        losses.append((await step.result_async()).metrics["loss:sum"])
        await optim.result_async()
    sampler = await training.save_weights_and_get_sampling_client_async(name="a")
    prompt = types.ModelInput.from_ints([300, 301])
    params = types.SamplingParams(max_tokens=4, seed=2)
    answers = await asyncio.gather(*(sampler.sample_async(prompt, 1, params) for _ in range(4)))
    return {"losses": losses, "samples": [plain(one) for one in answers]}


def main():
    service = tinker.ServiceClient()
    names = [one.model_name for one in service.get_server_capabilities().supported_models]
    found = {"capabilities": BASE_MODEL in names}
    training, found["training"] = train(service)
    path, found["saving"] = save_and_load(service, training)
    sampler, found["sampling"] = sample(service, training, path)
    found["reinforce"] = reinforce(training, sampler)
    found["wrong"] = wrong(training)
    found["records"] = records(service, training)
    found["custom"] = custom(training)
    found["async"] = asyncio.run(asynchronously(service))
    print(json.dumps({"version": tinker.__version__, "found": found}))


main()
