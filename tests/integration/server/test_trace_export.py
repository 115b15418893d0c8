"""A session's timeline: signed, readable by Perfetto, with queue and run times."""

import json

import pytest
from server_support import OTHER_KEY, batch_json, sample_json


async def work(api, session):
    model = await api.model(session)
    futures = [
        await api.ok("/forward_backward", batch_json(model, 1)),
        await api.ok("/forward_backward", batch_json(model, 2)),
        await api.ok("/optim_step", {"model_id": model, "seq_id": 3}),
        await api.ok("/optim_step", {"model_id": model, "seq_id": 4, "adam_params": {"eps": -1.0}}),
    ]
    for future in futures:
        await api.result(future)
    sampler = await api.sampler(session)
    await api.result(await api.ok("/asample", sample_json(sampler, max_tokens=2, stop=[])))
    return model, sampler


async def export(api, session, **options):
    return (await api.get(f"/sessions/{session}/trace_export", **options)).json()


async def fetch(api, url):
    return await api.client.get(url)  # without a key


async def test_every_request_is_a_slice_with_its_queue_and_run_time(api):
    session = await api.session()
    model, sampler = await work(api, session)
    answer = await export(api, session)
    assert answer["status"] == "ready"
    assert ".pftrace?" in answer["url"]
    response = await fetch(api, answer["url"])
    assert response.status_code == 200
    events = json.loads(response.content)["traceEvents"]
    names = {event["pid"]: event["args"]["name"] for event in events if event["ph"] == "M"}
    assert set(names.values()) == {model, sampler}
    requests = [event for event in events if event.get("cat") == "request"]
    told = sorted((names[event["pid"]], event["name"]) for event in requests)
    assert told == sorted(
        [
            (model, "create_model"),
            *[(model, "forward_backward"), (model, "optim_step")] * 2,
            (sampler, "sample"),
        ]
    )
    by_name = {event["name"]: event["args"] for event in requests}
    assert by_name["forward_backward"]["forward_backward_tokens"] == 4
    assert by_name["forward_backward"]["engine_seconds"] > 0
    assert by_name["sample"]["sampled_tokens"] == 2
    (failed,) = [event["args"]["error"] for event in requests if "error" in event["args"]]
    assert "eps" in failed
    assert_nested(events)


def assert_nested(events):
    """Slices of one thread lie apart or in one another, as viewers demand."""
    threads = {}
    for event in events:
        if event["ph"] == "X":
            assert event["dur"] >= 0
            threads.setdefault((event["pid"], event["tid"]), []).append(event)
    for slices in threads.values():
        open_ends = []
        for event in sorted(slices, key=lambda one: (one["ts"], -one["dur"])):
            while open_ends and open_ends[-1] <= event["ts"]:
                open_ends.pop()
            end = event["ts"] + event["dur"]
            assert not open_ends or end <= open_ends[-1]
            open_ends.append(end)
    by_kind = {
        kind: sum(event["dur"] for event in events if event.get("cat") == kind)
        for kind in ("request", "queued", "running")
    }
    assert by_kind["queued"] + by_kind["running"] == by_kind["request"]
    assert by_kind["running"] > 0


async def test_a_session_in_which_nothing_ended_has_no_trace(api):
    answer = await export(api, await api.session())
    assert answer["status"] == "failed"
    assert "14 days" in answer["error"]


async def test_a_trace_is_the_owners_until_its_address_ends(virtual, advance):
    session = await virtual.session()
    await virtual.model(session)
    refused = await virtual.get(f"/sessions/{session}/trace_export", key=OTHER_KEY)
    assert refused.status_code == 404
    url = (await export(virtual, session))["url"]
    assert (await fetch(virtual, url)).status_code == 200
    other = await virtual.session()
    assert (await fetch(virtual, url.replace(session, other))).status_code == 401
    await advance(3601)
    assert (await fetch(virtual, url)).status_code == 401


@pytest.mark.parametrize("count", [2500])
async def test_a_long_trace_comes_in_pieces_and_is_whole(api, count):
    session = await api.session()
    await api.model(session)
    await api.services.ledger.flush()
    from tinkex.server.records.tables import REQUESTS

    async with api.services.store.begin() as connection:
        (row,) = (await connection.execute(REQUESTS.select())).mappings().all()
        copies = [
            {**row, "number": None, "request_id": f"req-{n}", "finished_at": row["finished_at"] + n}
            for n in range(count)
        ]
        await connection.execute(REQUESTS.insert(), copies)
    response = await fetch(api, (await export(api, session))["url"])
    events = json.loads(response.content)["traceEvents"]
    requests = {e["args"]["request_id"] for e in events if e.get("cat") == "request"}
    assert len(requests) == count + 1
    assert len({event["tid"] for event in events}) == count + 1  # all began at the same time
