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
        tokens = CHECKPOINT.format(training_run_id=self.model, checkpoint_id="weights/saved")
        self.token_id = (await api.ok(f"{tokens}/access_tokens", {}))["token_id"]
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
        self.account = (await api.ok("/accounts", {"name": "Ada"}))["account_id"]
        key = await api.ok(f"/accounts/{self.account}/keys", {"name": "a"})
        own_key = await api.ok("/keys", {"name": "b"})
        self.keys = {"mine": own_key["key_id"], "theirs": key["key_id"]}
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
        hours = {"?": "?starting_on=2026-01-01T00:00Z&ending_before=2026-01-02T00:00Z"}
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
            (get, f"{CHECKPOINT}/archive"): (saved, None, no_checkpoint, None),
            (post, f"{CHECKPOINT}/access_tokens"): (
                saved, {"ttl_seconds": 60}, saved, {"ttl_seconds": 1},
            ),
            (get, f"{CHECKPOINT}/access_tokens"): (saved, None, no_checkpoint, None),
            (delete, f"{CHECKPOINT}/access_tokens/{{token_id}}"): (
                {**saved, "token_id": self.token_id}, None, {**saved, "token_id": "x"}, None,
            ),
            (post, "/copy_weights"): (
                {}, {"source_path": self.path}, {}, {"source_path": f"{self.path}x"},
            ),
            (post, "/save_weights_external"): (
                {}, {**model, "seq_id": 4, "path": "x"}, {}, {**model, "seq_id": 4},
            ),
            (get, "/downloads/{path}"): ({"path": self.file}, None, {"path": "x"}, None),
            (get, "/checkpoints"): ({}, None, {}, None),
            **self.account_cases(),
            (get, "/billing/usage/events"): (hours, None, {}, None),
            (get, "/billing/usage/checkpoints/current"): ({}, None, {"?": "?from=1"}, None),
            (get, "/audit"): ({}, None, {"?": "?day=today"}, None),
            (post, "/sessions/search"): ({}, {}, {}, {"limit": 0}),
            (put, "/sessions/{session_id}/project"): (
                session, {"project_id": "p"}, {"session_id": "none"}, {"project_id": "p"},
            ),
            (get, "/sessions/{session_id}/trace_export"): (
                session, None, {"session_id": "none"}, None,
            ),
            (get, "/downloads/traces/{session_id}.pftrace"): (session, None, session, None),
            (get, "/usage"): ({"?": "?by=hour,source"}, None, {"?": "?by=colour"}, None),
            (get, "/training_runs/{training_run_id}/metrics"): (run, None, none, None),
        }  # fmt: skip

    def account_cases(self):
        account, key = {"account_id": self.account}, {"key_id": self.keys["mine"]}
        no_account, no_key, name = {"account_id": "none"}, {"key_id": "none"}, {"name": "x"}
        login = {"email": "nobody@example.org", "password": "wrong"}
        get, post, delete, one = "GET", "POST", "DELETE", "/accounts/{account_id}"
        return {
            (post, "/auth/token"): ({}, {}, {}, {}),
            (get, "/auth/apikey/me"): ({}, None, {}, None),
            (delete, "/auth/apikey/me"): ({}, None, {}, None),
            (post, "/auth/login"): ({}, login, {}, login),
            (get, "/keys"): ({}, None, {}, None),
            (post, "/keys"): ({}, name, {}, {"name": ""}),
            (get, "/keys/{key_id}"): (key, None, no_key, None),
            (delete, "/keys/{key_id}"): (key, None, no_key, None),
            (get, "/accounts"): ({}, None, {}, None),
            (post, "/accounts"): ({}, name, {}, {**name, "role": "king"}),
            (get, one): (account, None, no_account, None),
            ("PATCH", one): (account, {"disabled": True}, account, {"role": "king"}),
            (get, f"{one}/keys"): (account, None, no_account, None),
            (post, f"{one}/keys"): (account, name, account, {**name, "scopes": ["admin"]}),
            (delete, f"{one}/keys/{{key_id}}"): (
                {**account, "key_id": self.keys["theirs"]}, None, {**account, **key}, None,
            ),
        }  # fmt: skip


def place(path, parts):
    return path.format(**parts) + parts.get("?", "")


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
    "/auth/token",
    "/auth/apikey/me",
    "/keys",
    "/accounts",
}

# Their right calls need more than a stage: test_accounts.py and test_logins.py make them.
ELSEWHERE = {("DELETE", "/auth/apikey/me"), ("POST", "/auth/login")}


def route_table(app):
    table = set()
    for mount in app.routes:
        if not isinstance(mount, Mount) or mount.path != endpoints.PREFIX:
            continue
        for route in mount.routes:
            path = route.path.replace("run_id}", "training_run_id}").replace(":path}", "}")
            path = path.replace("{kind}/{name}", "{checkpoint_id}")
            table |= {(method, path) for method in route.methods - {"HEAD"}}
    return table


async def test_every_route_is_called_here(api):
    stage = await Stage.set(api)
    assert set(stage.cases()) == route_table(api.app)


async def test_every_endpoint_answers_a_right_call_with_json(api):
    stage = await Stage.set(api)
    # those that change nothing share a stage, and go first
    for name in sorted(stage.cases(), key=lambda case: case[0] != "GET"):
        if name[1].startswith(("/downloads/", "/sample_stream")) or name in ELSEWHERE:
            continue
        method, path = name
        if method != "GET":
            stage = await Stage.set(api)
        parts, body, _, _ = stage.cases()[name]
        response = await api.request(method, place(path, parts), body)
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
        key = None if path in ALWAYS_RIGHT and (method, path) != ("POST", "/keys") else api.key
        response = await api.request(method, place(path, parts), body, key=key)
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
    for version in ("0.38.0", "tinkex 0.1"):
        config = await api.ok("/client/config", {"sdk_version": version})
        assert config["sample_use_retrieve_futures"]
        assert config["pjwt_auth_enabled"]
