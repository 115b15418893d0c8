"""For the tests of every wire field: which fields a test covers, and calls in few words."""

from __future__ import annotations

from server_support import BASE_MODEL, batch_json

from tinkex.wire.proto import decode_sample_response

PROTOBUF = {"Accept": "application/x-protobuf"}


def covers(*_fields):
    """Say which fields a test shows the effect, or the refusal, of.

    `test_every_field.py` reads these words from the source and holds them against the official
    SDK's types.
    """
    return lambda test: test


async def refused(api, path, body, *words, status=422):
    """Check that a body is refused on the spot, by name."""
    response = await api.post(path, body)
    assert response.status_code == status, (path, response.text)
    detail = response.json()["detail"]
    for word in words:
        assert word in detail, (path, detail)


async def failed(api, path, body, *words):
    """Check that a body is taken and its future fails, by name."""
    error, category = await api.failure(await api.ok(path, body))
    assert category == "user"
    for word in words:
        assert word in error, (path, error)


async def sampled(api, prompt=(5, 6, 7, 8), params=None, **fields):
    """Sample from the base model, or from what `fields` say."""
    chunks = fields.pop("chunks", [{"type": "encoded_text", "tokens": list(prompt)}])
    given = {"max_tokens": 4, "seed": 3, "stop": [], **(params or {})}
    body = {"prompt": {"chunks": chunks}, "sampling_params": given, **fields}
    if not {"base_model", "model_path", "sampling_session_id"} & set(fields):
        body["base_model"] = BASE_MODEL
    future = await api.ok("/asample", body)
    response = await api.post(
        "/retrieve_future", {"request_id": future["request_id"]}, headers=PROTOBUF
    )
    assert response.headers["content-type"] == PROTOBUF["Accept"], response.text
    return decode_sample_response(response.content)


async def tokens(api, **kwargs):
    """The tokens of one sample."""
    return (await sampled(api, **kwargs)).sequences[0].tokens


async def trained(api, session=None, *, number=0, model_fields=None, steps=2, **params):
    """Make a run and train it a little: (its id, the loss and gradient's norm of each step)."""
    session = session or await api.session()
    body = {
        "session_id": session,
        "model_seq_id": number,
        "base_model": BASE_MODEL,
        "lora_config": {"rank": 4, "seed": 1},
        **(model_fields or {}),
    }
    model = (await api.result(await api.ok("/create_model", body)))["model_id"]
    params = {"adam_params": {"learning_rate": 0.05}, **params}
    seen = []
    for step in range(steps):
        batch = await api.ok("/forward_backward", batch_json(model, 2 * step + 1))
        body = {"model_id": model, "seq_id": 2 * step + 2, **params}
        metrics = (await api.result(await api.ok("/optim_step", body)))["metrics"]
        seen.append(((await api.result(batch))["metrics"]["loss:sum"], metrics["grad_norm"]))
    return model, seen
