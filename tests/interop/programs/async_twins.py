"""Each deprecated `*_async` method of the official SDK, awaited; prints what each gave as JSON.

Those that only read are asked twice, by the twin and by the method itself: the answers are equal.
"""

import asyncio
import json
import warnings
from datetime import UTC, datetime, timedelta

warnings.simplefilter("ignore")

import tinker  # noqa: E402
from tinker import types  # noqa: E402

BASE = "tinkex/sprout"
PROMPT = types.ModelInput.from_ints([5, 6, 7])
DATA = [
    types.Datum(PROMPT, {"target_tokens": [6, 7, 8], "weights": [1.0, 1.0, 1.0]}),
]
ADAM = types.AdamParams(learning_rate=1e-3)
called = {}


async def call(client, name, *arguments, **options):
    """Await the twin of a method; where that gives a future, await that too."""
    found = await getattr(client, f"{name}_async")(*arguments, **options)
    if hasattr(found, "result_async"):
        found = await found
    called[f"{type(client).__name__}.{name}_async"] = type(found).__name__
    return found


async def same(client, name, *arguments):
    """The same, and compare with what the method itself gives."""
    twin = await call(client, name, *arguments)
    plain = await getattr(client, name)(*arguments)
    assert twin == plain, name
    return twin


def squares(_data, logprobs):
    return sum((one**2).sum() for one in logprobs), {}


async def train(service):
    training = await call(service, "create_lora_training_client", BASE, rank=4, seed=1)
    await call(training, "forward", DATA, "cross_entropy")
    await call(training, "forward_backward", DATA, "cross_entropy")
    await call(training, "optim_step", ADAM)
    await call(training, "forward_backward_custom", DATA, squares)
    await call(training, "optim_step", ADAM)
    info = await call(training, "get_info")
    assert info.lora_rank == 4
    paths = {
        "state": (await call(training, "save_state", "state")).path,
        "sampler": (await call(training, "save_weights_for_sampler", "sampler")).path,
        "export": (await call(training, "save_weights_external", "export")).path,
    }
    await call(training, "load_state", paths["state"])
    await call(training, "load_state_with_optimizer", paths["state"])
    for name in (
        "create_training_client_from_state",
        "create_training_client_from_state_with_optimizer",
    ):
        await call(service, name, paths["state"])
    await call(service, "get_server_capabilities")
    return training, paths


async def sample(service, training, paths):
    clients = [
        await call(service, "create_sampling_client", model_path=paths["sampler"]),
        await call(training, "create_sampling_client", paths["sampler"]),
        await call(training, "save_weights_and_get_sampling_client"),
    ]
    params = types.SamplingParams(max_tokens=4, seed=3)
    tokens = [
        (await call(client, "sample", PROMPT, 1, params)).sequences[0].tokens for client in clients
    ]
    assert tokens[0] == tokens[1]
    await same(clients[0], "compute_logprobs", PROMPT)
    assert await call(clients[0], "get_base_model") == BASE


async def records(service, training, paths):
    rest = service.create_rest_client()
    run = training.model_id
    session = run.partition(":")[0]
    saved = paths["state"]
    for name, key in (("get_training_run", run), ("get_training_run_by_tinker_path", saved)):
        assert (await call(rest, name, key)).training_run_id == run
    await same(rest, "list_checkpoints", run)
    # other tests may make runs meanwhile
    assert (await call(rest, "list_training_runs", 2)).training_runs
    assert (await call(rest, "list_user_checkpoints", 2)).checkpoints
    assert (await call(rest, "list_sessions", 2)).sessions
    await same(rest, "get_session", session)
    await same(rest, "get_sampler", f"{session}:sample:0")
    urls = await call(rest, "get_external_weights_urls", paths["export"])
    assert "adapter_config.json" in urls.urls
    copied = (await call(rest, "copy_weights", saved, "p")).removeprefix("tinker://").split("/")
    await call(rest, "delete_checkpoint", copied[0], "/".join(copied[1:]))
    await call(rest, "publish_checkpoint_from_tinker_path", saved)
    await call(rest, "unpublish_checkpoint_from_tinker_path", saved)
    await call(rest, "set_checkpoint_ttl_from_tinker_path", saved, 7200)
    await call(rest, "delete_checkpoint_from_tinker_path", paths["export"])
    await call(rest, "assign_session_project", session, "p")
    assert (await call(rest, "export_session_trace", session)).startswith("http")
    hour = datetime.now(UTC).replace(minute=0, second=0, microsecond=0)
    for client in (rest, tinker.AdminClient()):
        await call(client, "get_audit_log", "projects")
        await call(
            client, "get_billing_usage", hour - timedelta(hours=1), hour + timedelta(hours=1)
        )
        await call(client, "get_current_checkpoint_storage_usage")


async def main():
    service = tinker.ServiceClient()
    training, paths = await train(service)
    await sample(service, training, paths)
    await records(service, training, paths)
    print(json.dumps(called))


asyncio.run(main())
