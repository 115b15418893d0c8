"""Batched polls: every completion is told once, to the client it belongs to."""

import asyncio

import pytest
from server_support import OTHER_KEY, sample_json, settle

CLONES = 10**9


def question(sampler, cursor=0, clone=0, retrieved=(), **fields):
    target = {
        "type": "sampling_session",
        "sampling_session_id": sampler,
        "cloned_sampler_id": clone,
    }
    return {
        "target": target,
        "prev_cursor": cursor,
        "retrieved_request_ids": list(retrieved),
        **fields,
    }


async def ask(api, sampler, cursor=0, **fields):
    return await api.ok("/retrieve_futures", question(sampler, cursor, **fields))


async def told(api, sampler, count):
    """Ask until so many completions came: (their ids in order, the cursor)."""
    found, cursor = [], 0
    while len(found) < count:
        answer = await ask(api, sampler, cursor)
        found += [one["request_id"] for one in answer["completions"]]
        cursor = answer["cursor"]
    return found, cursor


async def test_each_completion_is_told_once_and_its_result_is_there(api):
    sampler = await api.sampler()
    sent = [
        (await api.ok("/asample", sample_json(sampler, number)))["request_id"]
        for number in range(20)
    ]
    found, cursor = await told(api, sampler, 20)
    assert sorted(found) == sorted(sent)
    assert len(set(found)) == 20
    assert (await ask(api, sampler, cursor, timeout=0.0)) == {"completions": [], "cursor": cursor}
    for request_id in sent:
        body = {"request_id": request_id, "allow_metadata_only": False}
        assert "sequences" in await api.ok("/retrieve_future", body)


async def test_question_waits_for_the_next_completion(virtual, advance):
    api = virtual
    sampler = await api.sampler()
    asked = asyncio.ensure_future(ask(api, sampler))
    await settle()
    assert not asked.done()
    future = await api.ok("/asample", sample_json(sampler))
    answer = await asked
    (completion,) = answer["completions"]
    assert completion["state"] == "finished"
    assert completion["request_id"] == future["request_id"]
    assert completion["response_payload_uncompressed_size"] > 0
    again = asyncio.ensure_future(ask(api, sampler, answer["cursor"]))
    await advance(api.services.config.long_poll_s + 1)
    assert await again == {"completions": [], "cursor": answer["cursor"]}


async def test_failed_and_cancelled_samples_are_told_as_failed(api):
    sampler = await api.sampler()
    bad = await api.ok("/asample", sample_json(sampler, 0, tokens=[10**6]))
    long = await api.ok("/asample", sample_json(sampler, 1, max_tokens=100))
    await api.ok("/cancel_future", {"request_id": long["request_id"]})
    found = {}
    cursor = 0
    while len(found) < 2:
        answer = await ask(api, sampler, cursor)
        cursor = answer["cursor"]
        found |= {one["request_id"]: one["state"] for one in answer["completions"]}
    assert found[bad["request_id"]] == "failed"
    assert set(found) == {bad["request_id"], long["request_id"]}


async def test_sequence_id_used_again_for_another_request_is_told_as_failed(api):
    sampler = await api.sampler()
    await api.ok("/asample", sample_json(sampler, 0))
    clash = await api.ok("/asample", sample_json(sampler, 0, tokens=[9]))
    found, _ = await told(api, sampler, 2)
    assert clash["request_id"] in found


async def test_each_client_of_a_sampling_session_hears_of_its_own(api):
    sampler = await api.sampler()
    numbers = [
        (await api.ok("/join_sampling_session", {"sampling_session_id": sampler}))["client_counter"]
        for _ in range(2)
    ]
    assert numbers == [1, 2]
    sent = {}
    for clone in (0, 1, 2):
        body = sample_json(sampler, clone * CLONES)
        sent[clone] = (await api.ok("/asample", body))["request_id"]
    for clone, request_id in sent.items():
        answer = await ask(api, sampler, clone=clone)
        assert [one["request_id"] for one in answer["completions"]] == [request_id]


async def test_results_that_are_acknowledged_are_dropped_and_others_stay(api):
    sampler = await api.sampler()
    sent = [
        (await api.ok("/asample", sample_json(sampler, number)))["request_id"]
        for number in range(2)
    ]
    _, cursor = await told(api, sampler, 2)
    await api.result({"request_id": sent[0]})
    # the second one was not fetched: acknowledging it must not lose it
    await ask(api, sampler, cursor, retrieved=[*sent, "unknown"], timeout=0.0)
    assert (await api.post("/retrieve_future", {"request_id": sent[0]})).status_code == 410
    assert "sequences" in await api.result({"request_id": sent[1]})


async def test_another_key_hears_nothing_and_drops_nothing(api):
    sampler = await api.sampler()
    sent = (await api.ok("/asample", sample_json(sampler)))["request_id"]
    await api.result({"request_id": sent})
    for path, body in (
        ("/retrieve_futures", question(sampler, retrieved=[sent])),
        ("/join_sampling_session", {"sampling_session_id": sampler}),
    ):
        assert (await api.post(path, body, key=OTHER_KEY)).status_code == 404
    session = await api.session(key=OTHER_KEY)
    body = {"session_id": session, "sampling_session_seq_id": 0, "base_model": "tiny/qwen3"}
    own = (await api.ok("/create_sampling_session", body, key=OTHER_KEY))["sampling_session_id"]
    await api.ok("/retrieve_futures", question(own, retrieved=[sent], timeout=0), key=OTHER_KEY)
    assert "sequences" in await api.result({"request_id": sent})


async def test_end_of_the_session_wakes_who_waits(api):
    session = await api.session()
    sampler = await api.sampler(session)
    asked = asyncio.ensure_future(ask(api, sampler))
    await settle()
    await api.ok(f"/sessions/{session}/finish", {"reason": {"type": "success"}})
    assert (await asked)["completions"] == []
    assert (await api.post("/retrieve_futures", question(sampler))).status_code == 404


@pytest.mark.parametrize(
    ("version", "batched"),
    [
        ("0.38.0", True),
        ("1.0.0", True),
        ("tinkex-0.1", True),
        ("0.37.9", False),
        ("0.22.0", False),
        ("", False),
        (None, False),
    ],
)
async def test_only_clients_that_know_batched_polls_are_told_of_them(api, version, batched):
    config = await api.ok("/client/config", {"sdk_version": version})
    assert config["sample_use_retrieve_futures"] is batched
    assert config["sample_join_sampling_session"] is batched
