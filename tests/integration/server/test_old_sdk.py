"""SDK 0.22, which speaks JSON: its recorded requests, replayed in their order."""

import io
import json
import re
import tarfile
from pathlib import Path

import pytest
from server_support import ALIAS

from tinkex.wire.proto import decode_forward_backward_output, decode_sample_response

RECORDINGS = Path(__file__).parents[2] / "support" / "fixtures" / "wire" / "old_sdk_0.22.0"
FLOW = [
    "service_client",
    "create_lora_training_client",
    "forward",
    "forward_backward",
    "optim_step",
    "save_state",
    "from_state",
    "create_sampling_client",
    "sample",
    "get_server_capabilities",
]


class Replay:
    """Sends recorded requests; ids of the recording become those that this server gave."""

    def __init__(self, api):
        self.api = api
        self.ids = {}

    async def case(self, name):
        """Replay one case: the (path, answer) of each exchange."""
        recorded = json.loads((RECORDINGS / f"{name}.json").read_text())
        return [await self.exchange(exchange) for exchange in recorded["exchanges"]]

    async def exchange(self, exchange):
        request = exchange["request"]
        body = self.translated(request.get("body"))
        keep = {"accept", "content-type"}
        headers = {name: v for name, v in request["headers"].items() if name.lower() in keep}
        path = request["path"].removeprefix("/api/v1")
        response = await self.api.request(request["method"], path, body, headers=headers)
        assert response.status_code == 200, (path, response.text)
        if response.headers["content-type"] == "application/x-protobuf":
            kind = request["headers"]["x-tinker-request-type"]
            decode = decode_sample_response if kind == "Sample" else decode_forward_backward_output
            return path, decode(response.content)
        answer = response.json()
        self.learn(exchange["response"]["body"], answer)
        return path, answer

    def learn(self, recorded, answer):
        for key in ("session_id", "request_id", "sampling_session_id", "path"):
            if key in answer:
                self.ids[recorded[key]] = answer[key]

    def translated(self, body):
        """Replace the longest recorded ids first: a model id begins with its session's.

        All in one pass: an id of ours may begin as a recorded one does.
        """
        text = json.dumps(body)
        if self.ids:
            known = "|".join(map(re.escape, sorted(self.ids, key=len, reverse=True)))
            text = re.sub(known, lambda found: self.ids[found.group()], text)
        saved = next((new for new in self.ids.values() if new.startswith("tinker://")), None)
        return json.loads(text.replace("tinker://r/weights/a", saved) if saved else text)


async def test_recorded_flow_of_sdk_0_22_runs(api):
    replay = Replay(api)
    answers = {name: await replay.case(name) for name in FLOW}
    _, created = answers["create_lora_training_client"][1]
    assert created["model_id"].endswith(":train:0")
    for name in ("forward", "forward_backward"):
        _, output = answers[name][1]
        assert output.metrics["loss:sum"] > 0
        assert list(output.loss_fn_outputs[0]["logprobs"].dimensions) == [3]
    assert "metrics" in answers["optim_step"][1][1]
    assert answers["save_state"][1][1]["path"].endswith(":train:0/weights/a")
    assert answers["from_state"][-1][1]["path"].endswith(":train:0/weights/a")
    assert len(answers["sample"][1][1].sequences) == 1
    names = [
        model["model_name"]
        for model in answers["get_server_capabilities"][0][1]["supported_models"]
    ]
    assert ALIAS in names


def test_an_id_of_ours_that_begins_as_a_recorded_one_is_left_alone():
    replay = Replay(api=None)
    replay.ids = {"sess-11": "sess-11ab", "sess-11:sample:0": "sess-11ab:sample:0"}
    body = {"sampling_session_id": "sess-11:sample:0", "model_id": "sess-11:train:0"}
    assert replay.translated(body) == {
        "sampling_session_id": "sess-11ab:sample:0",
        "model_id": "sess-11ab:train:0",
    }


async def test_json_results_have_the_recorded_form(api):
    replay = Replay(api)
    for name in FLOW[:3]:
        await replay.case(name)
    recorded = json.loads((RECORDINGS / "forward_backward.json").read_text())["exchanges"]
    _, future = await replay.exchange(recorded[0])
    answer = await api.result(future)
    form = recorded[1]["response"]["body"]
    assert answer.keys() == form.keys()
    for key in ("logprobs", "elementwise_loss"):
        ours, theirs = answer["loss_fn_outputs"][0][key], form["loss_fn_outputs"][0][key]
        assert ours.keys() == theirs.keys()
        assert (ours["dtype"], ours["shape"]) == (theirs["dtype"], theirs["shape"])


async def test_forward_leaves_no_gradient(api):
    replay = Replay(api)
    for name in FLOW[:3]:
        await replay.case(name)
    (model,) = api.services.runs._runs
    step = await api.result(await api.ok("/optim_step", {"model_id": model, "seq_id": 2}))
    assert step["metrics"]["grad_norm"] == pytest.approx(0)


async def test_archive_is_where_the_old_sdk_looks_for_it(api):
    model = await api.model()
    await api.result(
        await api.ok("/save_weights", {"model_id": model, "seq_id": 1, "path": "0001"})
    )
    recorded = json.loads((RECORDINGS / "archive_url.json").read_text())["exchanges"][0]["request"]
    path = recorded["path"].removeprefix("/api/v1").replace("sess-1:train:0", model)
    headers = {"Accept": recorded["headers"]["Accept"]}
    response = await api.request(recorded["method"], path, headers=headers)
    assert response.status_code == 302  # as 0.22 reads it; it looks into `Location` and `Expires`
    found = await api.client.get(response.headers["location"])
    with tarfile.open(fileobj=io.BytesIO(found.content), mode="r") as archive:
        assert {"adapter_model.safetensors", "checkpoint_complete"} <= set(archive.getnames())
