"""Every endpoint has a success and an error, held against the route table."""

import pytest
from server_support import BASE_MODEL, batch_json, sample_json
from starlette.routing import Mount

from tinkex.wire import endpoints

CHECKPOINT = "/training_runs/{training_run_id}/checkpoints/{checkpoint_id}"


class Stage:
    """A session with a run, a saved checkpoint and a sampler, to call endpoints on."""

    @classmethod
    async def set(cls, api):
        self = cls()
        self.session = await api.session()
        self.model = await api.model(self.session)
        body = {"model_id": self.model, "seq_id": 1, "path": "saved"}
        self.path = (await api.result(await api.ok("/save_weights", body)))["path"]
        body = {"model_id": self.model, "seq_id": 2, "path": "export"}
        await api.result(await api.ok("/save_weights_external", body))
        export = CHECKPOINT.format(
            training_run_id=self.model, checkpoint_id="external_weights/export"
        )
        urls = (await api.get(f"{export}/external_weights_urls")).json()["urls"]
        self.file = urls["adapter_config.json"].partition("/downloads/")[2]
        self.sampler = await api.sampler(self.session)
        given = {"args": [], "kwargs": {}}
        output = {"tuple": [{"ref": "x"}, {"dict": {}}]}
        nodes = [
            {"op": "placeholder", "name": "logprobs", "target": "logprobs", **given},
            {"op": "call_method", "name": "x", "target": "sum", "args": [{"ref": "logprobs"}]},
            {"op": "output", "name": "output", "target": "output", "args": [output]},
        ]
        graph = {"format": 1, "nodes": nodes}
        self.loss = {
            "session_id": self.session,
            "custom_loss_seq_id": 0,
            "name": "x",
            "inputs": [{"name": "logprobs", "rank": 1}],
            "graph": graph,
        }
        self.future = await api.ok("/optim_step", {"model_id": self.model, "seq_id": 3})
        return self

    def cases(self):
        """(method, path template): (parts, a body that works, parts and a body that do not)."""
        run = {"training_run_id": self.model}
        none = {"training_run_id": "none"}
        session = {"session_id": self.session}
        request = {"request_id": self.future["request_id"]}
        finish = {"reason": {"type": "success"}, "detail": None}
        batch = batch_json(self.model, 4)
        forward = batch_json(self.model, 4)
        forward["forward_input"] = forward.pop("forward_backward_input")
        model = {"model_id": self.model}
        new = {"base_model": BASE_MODEL, "lora_config": {"rank": 2}}
        get, post, put, delete = "GET", "POST", "PUT", "DELETE"
        saved = {**run, "checkpoint_id": "weights/saved"}
        export = {**run, "checkpoint_id": "external_weights/export"}
        no_checkpoint = {**run, "checkpoint_id": "weights/none"}
        return {
            (get, "/healthz"): ({}, None, {}, None),
            (post, "/client/config"): ({}, {"sdk_version": "1"}, {}, []),
            (post, "/client/dynamic_config"): ({}, {"sdk_version": "1"}, {}, []),
            (get, "/get_server_capabilities"): ({}, None, {}, None),
            (post, "/telemetry"): ({}, {"events": []}, {}, None),
            (post, "/create_session"): ({}, {"tags": [], "sdk_version": "1"}, {}, {"tags": 3}),
            (post, "/session_heartbeat"): ({}, session, {}, {"session_id": "none"}),
            (get, "/sessions"): ({}, None, {}, None),
            (get, "/sessions/{session_id}"): (session, None, {"session_id": "none"}, None),
            (post, "/sessions/{session_id}/finish"): (
                session, finish, {"session_id": "none"}, finish,
            ),
            (post, "/create_model"): ({}, {**session, **new, "model_seq_id": 5}, {}, new),
            (post, "/get_info"): ({}, model, {}, {"model_id": "none"}),
            (post, "/unload_model"): ({}, model, {}, {}),
            (post, "/forward_backward"): ({}, batch, {}, {"model_id": self.model}),
            (post, "/forward"): ({}, forward, {}, {"model_id": self.model}),
            (post, "/create_custom_loss"): ({}, self.loss, {}, {**self.loss, "graph": {}}),
            (post, "/optim_step"): ({}, {**model, "seq_id": 4}, {}, {**model, "lr": 1}),
            (post, "/save_weights"): ({}, {**model, "seq_id": 4}, {}, {**model, "nam": "a"}),
            (post, "/save_weights_for_sampler"): (
                {}, {**model, "seq_id": 4, "path": "x"}, {}, {**model, "seq_id": 4},
            ),
            (post, "/load_weights"): (
                {}, {**model, "seq_id": 4, "path": self.path, "optimizer": True}, {}, model,
            ),
            (post, "/weights_info"): ({}, {"tinker_path": self.path}, {}, {"tinker_path": "x"}),
            (post, "/create_sampling_session"): (
                {}, {**session, "sampling_session_seq_id": 7, "base_model": BASE_MODEL},
                {}, {**session, "sampling_session_seq_id": 7, "base_model": "none"},
            ),
            (get, "/samplers/{sampler_id}"): (
                {"sampler_id": self.sampler}, None, {"sampler_id": "none"}, None,
            ),
            (post, "/sample_stream"): (
                {}, stream_json(self.sampler), {}, stream_json("none"),
            ),
            (post, "/asample"): ({}, sample_json(self.sampler), {}, sample_json("none")),
            (post, "/join_sampling_session"): (
                {}, {"sampling_session_id": self.sampler}, {}, {"sampling_session_id": "none"},
            ),
            (post, "/retrieve_futures"): (
                {}, batched(self.sampler), {}, batched("none"),
            ),
            (post, "/retrieve_future"): ({}, request, {}, {"request_id": "none"}),
            (post, "/cancel_future"): ({}, request, {}, {"request_id": "none"}),
            (get, "/training_runs"): ({}, None, {}, None),
            (get, "/training_runs/{training_run_id}"): (run, None, none, None),
            (get, "/training_runs/{training_run_id}/checkpoints"): (run, None, none, None),
            (delete, CHECKPOINT): (saved, None, no_checkpoint, None),
            (post, f"{CHECKPOINT}/publish"): (saved, None, no_checkpoint, None),
            (delete, f"{CHECKPOINT}/publish"): (saved, None, no_checkpoint, None),
            (put, f"{CHECKPOINT}/ttl"): (
                saved, {"ttl_seconds": 3600}, no_checkpoint, {"ttl_seconds": None},
            ),
            (get, f"{CHECKPOINT}/external_weights_urls"): (export, None, saved, None),
            (post, "/copy_weights"): (
                {}, {"source_path": self.path}, {}, {"source_path": f"{self.path}x"},
            ),
            (post, "/save_weights_external"): (
                {}, {**model, "seq_id": 4, "path": "x"}, {}, {**model, "seq_id": 4},
            ),
            (get, "/downloads/{path}"): ({"path": self.file}, None, {"path": "x"}, None),
            (get, "/checkpoints"): ({}, None, {}, None),
        }  # fmt: skip


def stream_json(sampler):
    return {name: v for name, v in sample_json(sampler).items() if name != "seq_id"}


def batched(sampler):
    target = {"type": "sampling_session", "sampling_session_id": sampler}
    return {"target": target, "prev_cursor": 0, "timeout": 0.0, "retrieved_request_ids": []}


# Nothing that a client sends can be wrong with these; their error is a missing key.
ALWAYS_RIGHT = {
    "/client/config",
    "/client/dynamic_config",
    "/telemetry",
    "/get_server_capabilities",
    "/sessions",
    "/training_runs",
    "/checkpoints",
}


def route_table(app):
    table = set()
    for mount in app.routes:
        assert isinstance(mount, Mount)
        for route in mount.routes:
            path = route.path.replace("run_id}", "training_run_id}").replace(":path}", "}")
            table |= {(method, path) for method in route.methods - {"HEAD"}}
    return table


async def test_every_route_is_called_here_and_in_the_table_of_endpoints(api):
    stage = await Stage.set(api)
    table = route_table(api.app)
    assert set(stage.cases()) == table
    known = {(e.method, e.path.removeprefix(endpoints.PREFIX)) for e in endpoints.ALL}
    # Its addresses are given out signed; no client makes one.
    assert table - known == {("GET", "/downloads/{path}")}


async def test_every_endpoint_answers_a_right_call_with_json(api):
    for name in (await Stage.set(api)).cases():
        if name[1].startswith(("/downloads/", "/sample_stream")):
            continue
        stage = await Stage.set(api)
        method, path = name
        parts, body, _, _ = stage.cases()[name]
        response = await api.request(method, path.format(**parts), body)
        assert response.status_code == 200, (name, response.text)
        assert response.headers["content-type"] == "application/json"
        answer = response.json()
        if "request_id" in answer and path != "/retrieve_future":
            assert "error" not in await api.result(answer), name
        assert "error" not in answer


async def test_every_endpoint_answers_a_wrong_call_with_a_detail(api):
    stage = await Stage.set(api)
    for (method, path), (_, _, parts, body) in stage.cases().items():
        if path == "/healthz":
            continue
        key = None if path in ALWAYS_RIGHT else api.key
        response = await api.request(method, path.format(**parts), body, key=key)
        assert 400 <= response.status_code < 500, (path, response.text)
        assert response.status_code != 409
        assert response.json()["detail"], path


@pytest.mark.parametrize("path", ["/telemetry", "/client/config"])
async def test_sink_and_settings_take_whatever_comes(api, path):
    for body in (b"", b"garbage", b'{"anything": 1}'):
        assert (await api.post(path, content=body)).status_code == 200


async def test_limits_are_advertised(api):
    config = await api.ok("/client/config", {"sdk_version": "1"})
    assert config["fwdbwd_max_chunk_len"] == 1024
    assert config["fwdbwd_max_chunk_bytes_count"] == 5_000_000
    assert config["sample_max_concurrent_requests"] == 2000
    assert not config["sample_use_retrieve_futures"]
    assert not config["pjwt_auth_enabled"]
