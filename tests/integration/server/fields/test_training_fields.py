"""Fields of requests about runs and checkpoints: each has an effect, or is refused by name."""

import pytest
from field_support import covers, failed, refused, sampled, trained
from server_support import BASE_MODEL, batch_json

NEW = {"base_model": BASE_MODEL, "lora_config": {"rank": 4, "seed": 1}}


async def saved(api, model, seq_id, name="one", path="/save_weights", **fields):
    body = {"model_id": model, "seq_id": seq_id, "path": name, **fields}
    return (await api.result(await api.ok(path, body)))["path"]


async def checkpoints(api, model):
    listed = await api.get(f"/training_runs/{model}/checkpoints")
    return {one["checkpoint_id"]: one for one in listed.json()["checkpoints"]}


@covers("CreateModelRequest.session_id", "CreateModelRequest.model_seq_id")
@covers("CreateModelRequest.base_model", "CreateModelRequest.user_metadata")
@covers("CreateModelRequest.lora_config", "LoraConfig.rank", "GetInfoRequest.model_id")
async def test_creation(api):
    session = await api.session()
    body = {"session_id": session, "model_seq_id": 7, **NEW, "user_metadata": {"a": "b"}}
    model = (await api.result(await api.ok("/create_model", body)))["model_id"]
    assert model == f"{session}:train:7"
    assert (await api.ok("/get_info", {"model_id": model}))["lora_rank"] == 4
    assert (await api.get(f"/training_runs/{model}")).json()["user_metadata"] == {"a": "b"}
    path = "/create_model"
    await refused(api, path, {**body, "session_id": "none"}, "none", status=404)
    body["model_seq_id"] = 8
    await refused(api, path, {**body, "base_model": "none"}, "none", status=400)
    await refused(api, path, {**body, "lora_config": {"rank": 0}}, "rank")
    await refused(api, "/get_info", {"model_id": "none"}, "none", status=404)


@covers("LoraConfig.seed", "LoraConfig.train_attn", "LoraConfig.train_mlp")
@covers("LoraConfig.train_unembed")
async def test_shape_of_the_adapter(api):
    plain = (await trained(api))[1]
    assert (await trained(api))[1] == plain
    for change in (
        {"seed": 2},
        {"train_attn": False},
        {"train_mlp": False},
        {"train_unembed": False},
    ):
        fields = {"lora_config": {"rank": 4, "seed": 1, **change}}
        assert (await trained(api, model_fields=fields))[1] != plain, change


@covers("CreateModelRequest.optimizer_config", "OptimizerConfigBase.type")
@covers("AdamOptimizerConfig.type", "DimuonOptimizerConfig.type", "DimuonOptimizerConfig.version")
async def test_optimizer_of_a_run(api):
    fields = {"optimizer_config": {"type": "dimuon", "version": 1}}
    params = {"type": "dimuon", "learning_rate": 0.05}
    model, _ = await trained(api, model_fields=fields, adam_params=None, optimizer_params=params)
    info = await api.ok("/get_info", {"model_id": model})
    assert info["optimizer_config"]["type"] == "dimuon"
    body = {"session_id": await api.session(), "model_seq_id": 0, **NEW}
    for config, word in (({"type": "sgd"}, "sgd"), ({"type": "dimuon", "version": 2}, "version")):
        await refused(api, "/create_model", {**body, "optimizer_config": config}, word)


@covers("OptimStepRequest.optim_params", "OptimParamsBase.type", "AdamParams.learning_rate")
@covers("AdamParams.beta1", "AdamParams.beta2", "AdamParams.eps", "AdamParams.weight_decay")
@covers("AdamParams.grad_clip_norm")
async def test_parameters_of_adam(api):
    base = {"learning_rate": 0.05}
    plain = (await trained(api, steps=3, adam_params=base))[1]
    for change in (
        {"learning_rate": 0.01},
        {"beta1": 0.5},
        {"beta2": 0.5},
        {"eps": 0.1},
        {"weight_decay": 0.5},
        {"grad_clip_norm": 1e-9, "eps": 1e-3},
    ):
        found = (await trained(api, steps=3, adam_params={**base, **change}))[1]
        assert found[-1] != plain[-1], change
    model = await api.model()
    body = {"model_id": model, "seq_id": 1}
    await refused(api, "/optim_step", {**body, "adam_params": {"momentum": 1}}, "momentum")
    await refused(api, "/optim_step", {**body, "optimizer_params": {"type": "sgd"}}, "type")


@covers("DimuonParams.type", "DimuonParams.learning_rate", "DimuonParams.grad_clip_norm")
@covers("DimuonParams.beta1")
async def test_parameters_of_dimuon(api):
    fields = {"optimizer_config": {"type": "dimuon"}}

    async def found(**change):
        params = {"type": "dimuon", "learning_rate": 0.05, **change}
        given = {"adam_params": None, "optimizer_params": params, "model_fields": fields}
        return (await trained(api, steps=3, **given))[1][-1]

    plain = await found()
    assert await found() == plain
    assert await found(learning_rate=0.01) != plain
    assert await found(beta1=0.1) != plain
    assert await found(grad_clip_norm=1e-3) != plain
    model, _ = await trained(
        api, steps=0, model_fields=fields, adam_params=None, optimizer_params=None
    )
    body = {"model_id": model, "seq_id": 1}
    for wrong, word in (({"type": "sgd"}, "type"), ({"type": "dimuon", "beta1": 1}, "beta1")):
        params = {"learning_rate": 0.1, **wrong}
        await refused(api, "/optim_step", {**body, "optimizer_params": params}, word)


RUN_REQUESTS = {
    "/optim_step": {},
    "/save_weights": {"path": "a"},
    "/save_weights_for_sampler": {"path": "b"},
    "/save_weights_external": {"path": "c"},
    "/load_weights": {"path": "tinker://a/weights/b", "optimizer": False},
}


@covers("OptimStepRequest.model_id", "SaveWeightsRequest.model_id")
@covers("SaveWeightsForSamplerRequest.model_id", "SaveWeightsExternalRequest.model_id")
@covers("LoadWeightsRequest.model_id", "UnloadModelRequest.model_id")
@covers("OptimStepRequest.seq_id", "SaveWeightsRequest.seq_id", "LoadWeightsRequest.seq_id")
@covers("SaveWeightsForSamplerRequest.seq_id", "SaveWeightsExternalRequest.seq_id")
@pytest.mark.parametrize("path", RUN_REQUESTS)
async def test_run_and_place_in_its_sequence(api, path):
    body = {"model_id": await api.model(), "seq_id": 1, **RUN_REQUESTS[path]}
    first = await api.ok(path, body)
    assert await api.ok(path, body) == first
    assert await api.ok(path, {**body, "seq_id": 2}) != first
    await failed(api, path, {**body, "model_id": "none"}, "none")
    await failed(api, path, {**body, "seq_id": 0}, "seq_id")
    await failed(api, "/unload_model", {"model_id": "none"}, "none")


@covers("SaveWeightsRequest.path", "SaveWeightsRequest.overwrite", "SaveWeightsRequest.ttl_seconds")
@covers("SaveWeightsRequest.user_metadata", "SaveWeightsForSamplerRequest.path")
@covers("SaveWeightsForSamplerRequest.ttl_seconds", "SaveWeightsForSamplerRequest.user_metadata")
@covers("SaveWeightsExternalRequest.path", "SaveWeightsExternalRequest.ttl_seconds")
async def test_saved_checkpoints(api):
    model = await api.model()
    fields = {"ttl_seconds": 7200, "user_metadata": {"a": "b"}}
    assert await saved(api, model, 1, "one", **fields) == f"tinker://{model}/weights/one"
    path = await saved(api, model, 2, "two", "/save_weights_for_sampler", **fields)
    assert path == f"tinker://{model}/sampler_weights/two"
    await saved(api, model, 3, "three", "/save_weights_external", ttl_seconds=7200)
    await saved(api, model, 4, "four")
    listed = await checkpoints(api, model)
    expiring = ("weights/one", "sampler_weights/two", "external_weights/three")
    assert all("expires_at" in listed[name] for name in expiring)
    assert "expires_at" not in listed["weights/four"]
    assert listed["weights/one"]["user_metadata"] == {"a": "b"}
    assert listed["sampler_weights/two"]["user_metadata"] == {"a": "b"}
    body = {"model_id": model, "seq_id": 5, "path": "one"}
    await failed(api, "/save_weights", body, "one")
    await saved(api, model, 6, "one", overwrite=True)
    assert "user_metadata" not in (await checkpoints(api, model))["weights/one"]


@covers("SaveWeightsExternalRequest.age_encryption_recipients")
async def test_recipients_of_an_export(api):
    model = await api.model()
    body = {"model_id": model, "seq_id": 1, "path": "a", "age_encryption_recipients": ["none"]}
    await failed(api, "/save_weights_external", body, "age_encryption_recipients")


@covers("SaveWeightsForSamplerRequest.kind", "SaveWeightsForSamplerRequest.sampling_session_seq_id")
async def test_ephemeral_samplers(api):
    session = await api.session()
    model, _ = await trained(api, session)
    samplers = {}
    for seq_id, kind in ((5, "snapshot"), (6, "inflight")):
        body = {"model_id": model, "seq_id": seq_id, "sampling_session_seq_id": seq_id}
        future = await api.ok("/save_weights_for_sampler", {**body, "kind": kind})
        samplers[kind] = (await api.result(future))["sampling_session_id"]
        assert samplers[kind] == f"{session}:sample:{seq_id}"

    async def logprobs(kind):
        found = await sampled(api, sampling_session_id=samplers[kind], prompt_logprobs=True)
        return found.prompt_logprobs

    assert await logprobs("snapshot") == await logprobs("inflight")
    await api.ok("/forward_backward", batch_json(model, 7))
    step = {"model_id": model, "seq_id": 8, "adam_params": {"learning_rate": 0.1}}
    await api.ok("/optim_step", step)
    body = {"model_id": model, "seq_id": 9, "sampling_session_seq_id": 9, "kind": "inflight"}
    await api.result(await api.ok("/save_weights_for_sampler", body))
    assert await logprobs("snapshot") != await logprobs("inflight")
    body = {"model_id": model, "seq_id": 10, "sampling_session_seq_id": 10, "kind": "frozen"}
    await refused(api, "/save_weights_for_sampler", body, "kind")


@covers("LoadWeightsRequest.path", "LoadWeightsRequest.optimizer", "LoadWeightsRequest.session_id")
@covers("LoadWeightsRequest.model_seq_id", "LoadWeightsRequest.base_model")
@covers("LoadWeightsRequest.user_metadata", "LoadWeightsRequest.optimizer_config")
@covers("LoadWeightsRequest.weights_access_token")
async def test_loading(api):
    session = await api.session()
    model, _ = await trained(api, session)
    path = await saved(api, model, 5)
    weights = await saved(api, model, 6, "two", "/save_weights_for_sampler")
    body = {"session_id": session, "path": path, "optimizer": True, "model_seq_id": 5}
    fields = {"user_metadata": {"a": "b"}, "base_model": BASE_MODEL}
    loaded = await api.result(await api.ok("/load_weights", {**body, **fields}))
    assert loaded == {"path": path, "model_id": f"{session}:train:5"}
    run = (await api.get(f"/training_runs/{loaded['model_id']}")).json()
    assert run["user_metadata"] == {"a": "b"}
    body["model_seq_id"] = 6
    await failed(api, "/load_weights", {**body, "path": weights}, "optimiser")
    await failed(api, "/load_weights", {**body, "base_model": "none"}, "none")
    await failed(api, "/load_weights", {**body, "path": f"{path}x"}, "onex")
    other = {"optimizer": False, "optimizer_config": {"type": "dimuon"}}
    loaded = await api.result(await api.ok("/load_weights", {**body, **other}))
    info = await api.ok("/get_info", {"model_id": loaded["model_id"]})
    assert info["optimizer_config"]["type"] == "dimuon"
    await refused(api, "/load_weights", {**body, "session_id": "none"}, "none", status=404)
    token = {**body, "path": f"{path}x", "model_seq_id": 9, "weights_access_token": "x"}
    await failed(api, "/load_weights", token, "weights_access_token")


@covers("CopyWeightsRequest.source_path", "CopyWeightsRequest.destination_project_id")
@covers("CopyWeightsRequest.ttl_seconds", "CopyWeightsRequest.session_id")
@covers("CopyWeightsRequest.model_seq_id", "CopyWeightsRequest.weights_access_token")
async def test_copies(api):
    path = await saved(api, await api.model(), 1)
    body = {"source_path": path, "ttl_seconds": 7200, "destination_project_id": "p"}
    copy = (await api.ok("/copy_weights", body))["tinker_path"]
    run = copy.removeprefix("tinker://").partition("/")[0]
    assert "expires_at" in (await checkpoints(api, run))["weights/one"]
    listed = (await api.get("/training_runs?project_id=p")).json()["training_runs"]
    assert [one["training_run_id"] for one in listed] == [run]
    await refused(api, "/copy_weights", {"source_path": f"{path}x"}, "onex", status=400)
    for field, value in (("session_id", "s"), ("model_seq_id", 1)):
        await refused(api, "/copy_weights", {"source_path": path, field: value}, field)
    token = {"source_path": f"{path}x", "weights_access_token": "t"}
    await refused(api, "/copy_weights", token, "weights_access_token", status=400)
    headers = {"X-Tinker-Weights-Access-Token": "t"}
    response = await api.post("/copy_weights", {"source_path": f"{path}x"}, headers=headers)
    assert response.status_code == 400
    assert "weights_access_token" in response.json()["detail"]


@covers("body.SetTtl.ttl_seconds")
async def test_expiry_of_a_checkpoint(api):
    model = await api.model()
    await saved(api, model, 1)
    path = f"/training_runs/{model}/checkpoints/weights/one/ttl"
    assert (await api.request("PUT", path, {"ttl_seconds": 7200})).status_code == 200
    assert "expires_at" in (await checkpoints(api, model))["weights/one"]
    assert (await api.request("PUT", path, {"ttl_seconds": None})).status_code == 200
    assert "expires_at" not in (await checkpoints(api, model))["weights/one"]
    for body, word in (({"ttl_seconds": 1}, "ttl_seconds"), ({"colour": 1}, "colour")):
        response = await api.request("PUT", path, body)
        assert response.status_code in {400, 422}
        assert word in response.json()["detail"]


LOGPROBS = {"op": "placeholder", "name": "logprobs", "target": "logprobs", "args": [], "kwargs": {}}
TOTAL = {"op": "call_method", "name": "x", "target": "sum", "args": [{"ref": "logprobs"}]}
OUTPUT = {
    "op": "output",
    "name": "output",
    "target": "output",
    "args": [{"tuple": [{"ref": "x"}, {"dict": {}}]}],
}


def custom_loss(session, *, node=None, **changes):
    total = {**TOTAL, "kwargs": {}, **(node or {})}
    graph = {"format": 1, "nodes": [LOGPROBS, total, OUTPUT], **changes.pop("graph", {})}
    inputs = [{"name": "logprobs", "rank": 1}]
    body = {"session_id": session, "custom_loss_seq_id": 7, "name": "mine", "inputs": inputs}
    return {**body, "graph": graph, **changes}


@covers("CreateCustomLossRequest.session_id", "CreateCustomLossRequest.custom_loss_seq_id")
@covers("CreateCustomLossRequest.name", "CreateCustomLossRequest.inputs")
@covers("CreateCustomLossRequest.graph", "CustomLossGraph.format", "CustomLossGraph.nodes")
@covers("CustomLossNode.op", "CustomLossNode.name", "CustomLossNode.target", "CustomLossNode.args")
@covers("CustomLossNode.kwargs", "CustomLossInput.name", "CustomLossInput.rank")
async def test_loss_of_ones_own(api):
    session = await api.session()
    path = "/create_custom_loss"
    made = await api.result(await api.ok(path, custom_loss(session)))
    assert made["loss_id"] == f"{session}:loss:7"
    model = await api.model(session)

    def batch(number, loss):
        body = batch_json(model, number, loss_fn="custom")
        del body["forward_backward_input"]["data"][0]["loss_fn_inputs"]["weights"]
        body["forward_backward_input"]["loss_fn_config"] = loss
        return body

    assert "metrics" in await api.result(await api.ok("/forward_backward", batch(1, made)))
    body = custom_loss(session, custom_loss_seq_id=8, node={"kwargs": {"colour": 1}})
    odd = await api.result(await api.ok(path, body))
    await failed(api, "/forward_backward", batch(2, odd), "colour")
    await refused(api, path, custom_loss("none"), "none", status=404)
    await refused(api, path, custom_loss(session, graph={"format": 2}), "format")
    await refused(api, path, custom_loss(session, inputs=[{"name": "x", "rank": 3}]), "rank")
    wrong = {
        "op": {"node": {"op": "import"}},
        "target": {"node": {"target": "backward"}},
        "args": {"node": {"args": [{"ref": "nothing"}]}},
        "kwargs": {"node": {"kwargs": {"a b": 1}}},
        "name of a node": {"node": {"name": "logprobs"}},
        "nodes": {"graph": {"nodes": []}},
        "name of an input": {"inputs": [{"name": "colour", "rank": 1}]},
        "inputs": {"inputs": []},
    }
    for number, (what, changes) in enumerate(wrong.items()):
        body = custom_loss(session, custom_loss_seq_id=10 + number, **changes)
        error, category = await api.failure(await api.ok(path, body))
        assert (category, bool(error)) == ("user", True), what
    named = custom_loss(session, custom_loss_seq_id=30, name="")
    assert (await api.post(path, named)).status_code in {200, 422}
