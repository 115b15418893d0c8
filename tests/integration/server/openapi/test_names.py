"""A checkpoint may be named like a word of the addresses: each reaches what it says."""

import pytest


@pytest.mark.parametrize(
    "name", ["publish", "ttl", "archive", "external_weights_urls", "access_tokens", "weights"]
)
async def test_checkpoint_named_like_an_endpoint_is_published_and_deleted(api, name):
    model = await api.model()
    body = {"model_id": model, "seq_id": 1, "path": name}
    await api.result(await api.ok("/save_weights", body))
    path = f"/training_runs/{model}/checkpoints/weights/{name}"

    async def listed():
        reply = await api.get(f"/training_runs/{model}/checkpoints")
        return [one["public"] for one in reply.json()["checkpoints"]]

    assert (await api.post(f"{path}/publish")).status_code == 200
    assert await listed() == [True]
    assert (await api.request("DELETE", f"{path}/publish")).status_code == 200
    assert await listed() == [False]
    assert (await api.request("PUT", f"{path}/ttl", {"ttl_seconds": 7200})).status_code == 200
    assert (await api.request("DELETE", path)).status_code == 200
    assert await listed() == []
