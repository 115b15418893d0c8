"""What training told is kept by the server: a lost terminal loses no curve."""

import csv
import io

from server_support import OTHER_KEY, batch_json


async def train(api, model, steps, first=1):
    """Take steps of one forward_backward and one optim_step: the losses that the client saw."""
    losses = []
    for step in range(steps):
        seq_id = first + 2 * step
        optim = {"model_id": model, "seq_id": seq_id + 1}
        answers = [
            await api.ok("/forward_backward", batch_json(model, seq_id)),
            await api.ok("/optim_step", {**optim, "adam_params": {"learning_rate": 1e-2}}),
        ]
        results = [
            await api.result(answer, headers={"accept": "application/json"}) for answer in answers
        ]
        losses.append(results[0]["metrics"]["loss:sum"])
    return losses


async def metrics_of(api, model, query="", **options):
    response = await api.get(f"/training_runs/{model}/metrics{query}", **options)
    assert response.status_code == 200, response.text
    return response.json()


async def test_every_step_is_kept_as_the_client_saw_it(api):
    model = await api.model()
    losses = await train(api, model, 3)
    answer = await metrics_of(api, model)
    rows = answer["metrics"]
    assert [(row["step"], row["operation"]) for row in rows] == [
        (step, operation) for step in (1, 2, 3) for operation in ("forward_backward", "optim_step")
    ]
    assert [row["metrics"]["loss:sum"] for row in rows[::2]] == losses
    assert [row["tokens"] for row in rows] == [4, 0] * 3
    assert set(rows[1]["metrics"]) == {"grad_norm", "learning_rate"}
    assert [row["time"] for row in rows] == sorted(row["time"] for row in rows)
    assert "next_cursor" not in answer


async def test_an_evaluation_is_told_from_training(api):
    model = await api.model()
    await train(api, model, 1)
    forward = batch_json(model, 3)
    forward["forward_input"] = forward.pop("forward_backward_input")
    await api.result(await api.ok("/forward", forward))
    rows = (await metrics_of(api, model))["metrics"]
    assert [(row["step"], row["operation"], row["tokens"]) for row in rows] == [
        (1, "forward_backward", 4),
        (1, "optim_step", 0),
        (2, "forward", 4),
    ]


async def test_pages_follow_one_another(api):
    model = await api.model()
    await train(api, model, 3)
    whole = (await metrics_of(api, model))["metrics"]
    cursor, found = 0, []
    while cursor is not None:
        page = await metrics_of(api, model, f"?limit=4&cursor={cursor}")
        found += page["metrics"]
        cursor = page.get("next_cursor")
    assert found == whole


async def test_metrics_are_there_as_csv(api):
    model = await api.model()
    losses = await train(api, model, 2)
    response = await api.get(f"/training_runs/{model}/metrics?format=csv")
    assert response.headers["content-type"].startswith("text/csv")
    rows = list(csv.DictReader(io.StringIO(response.text)))
    assert [float(row["loss:sum"]) for row in rows[::2]] == losses
    assert rows[0]["grad_norm"] == ""
    assert float(rows[1]["grad_norm"]) > 0


async def test_they_outlive_the_session_and_the_server(make_config, serve):
    async with serve(make_config()) as first:
        session = await first.session()
        model = await first.model(session)
        await train(first, model, 2)
        done = {"reason": {"type": "success"}, "detail": None}
        await first.ok(f"/sessions/{session}/finish", done)
    async with serve(make_config()) as second:
        assert [row["step"] for row in (await metrics_of(second, model))["metrics"]] == [1, 1, 2, 2]


async def test_they_are_those_of_the_account_alone(api):
    model = await api.model()
    await train(api, model, 1)
    path = f"/training_runs/{model}/metrics"
    assert (await api.get(path, key=OTHER_KEY)).status_code == 404
    assert (await api.get("/training_runs/none/metrics")).status_code == 404


async def test_they_are_erased_a_year_after(virtual, advance):
    model = await virtual.model()
    await train(virtual, model, 1)
    assert len((await metrics_of(virtual, model))["metrics"]) == 2
    for days in (364, 2):
        await advance(days * 86_400)
        await virtual.services.tasks.finished()
    assert (await metrics_of(virtual, model))["metrics"] == []
