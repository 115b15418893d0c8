"""A server with room in memory for two adapters and disk behind it: users notice nothing."""

import asyncio

import pytest
from server_support import batch_json, sample_json

from tinkex._clock import SystemClock

RANK = 4


def optim_json(model, seq_id):
    return {"model_id": model, "seq_id": seq_id, "adam_params": {"learning_rate": 0.01}}


async def one_user(api, number, steps=3):
    """Train, sample from a snapshot, train on, save; give everything that comes out."""
    session = await api.session()
    model = await api.model(session, rank=RANK, seed=number)
    futures = []
    seq_id = 0
    for step in range(steps):
        for part in range(2):
            seq_id += 1
            batch = batch_json(model, seq_id, tokens=range(5 + part, 12 + step))
            futures.append(await api.ok("/forward_backward", batch))
        seq_id += 1
        futures.append(await api.ok("/optim_step", optim_json(model, seq_id)))
    results = [await api.result(future) for future in futures]
    seq_id += 1
    body = {
        "model_id": model, "seq_id": seq_id, "sampling_session_seq_id": 0, "kind": "snapshot",
    }  # fmt: skip
    saved = await api.result(await api.ok("/save_weights_for_sampler", body))
    seq_id += 1
    futures = [
        await api.ok("/asample", sample_json(saved["sampling_session_id"], n, num_samples=2))
        for n in range(2)
    ]
    futures.append(await api.ok("/forward_backward", batch_json(model, seq_id)))
    results += [await api.result(future) for future in futures]
    return [{k: v for k, v in result.items() if k != "sequences"} for result in results] + [
        [(s["tokens"], s["logprobs"]) for s in result["sequences"]]
        for result in results
        if "sequences" in result
    ]


async def everybody(api, count):
    return await asyncio.gather(*(one_user(api, number) for number in range(count)))


@pytest.fixture
def small_engine(make_engine, tmp_path):
    def make(adapters=2.5):
        probe = make_engine()
        from tinkex.types import LoraConfig

        probe.create_adapter("x", LoraConfig(rank=RANK))
        size = probe._pool.adapter("x").nbytes
        return make_engine(
            host_adapter_bytes=int(adapters * size),
            spill_directory=tmp_path / "spill",
            max_adapters=1,
            max_samplers=1,
        )

    return make


async def test_users_in_a_small_memory_get_the_bits_of_a_large_one(
    make_config, make_engine, small_engine, serve, tmp_path
):
    async with serve(make_config(), SystemClock(), make_engine()) as api:
        expected = await everybody(api, 7)
    async with serve(make_config(), SystemClock(), small_engine()) as api:
        found = await everybody(api, 7)
        assert len(list((tmp_path / "spill").glob("*.safetensors"))) >= 7
        assert (tmp_path / "spill").stat().st_mode & 0o777 == 0o700
    assert found == expected


async def test_adapter_whose_file_is_gone_fails_by_name_and_no_other(
    make_config, small_engine, serve, tmp_path
):
    async with serve(make_config(), SystemClock(), small_engine(1)) as api:
        first, second = await api.model(), await api.model()
        (file,) = (tmp_path / "spill").glob("*.safetensors")
        file.unlink()
        lost = await api.ok("/forward_backward", batch_json(first, 1))
        kept = await api.ok("/forward_backward", batch_json(second, 1))
        error, category = await api.failure(lost)
        assert first in error
        assert "Load a checkpoint" in error
        assert category == "server"
        assert "metrics" in await api.result(kept)


async def test_sessions_that_end_leave_no_file(make_config, small_engine, serve, tmp_path):
    async with serve(make_config(), SystemClock(), small_engine()) as api:
        await everybody(api, 4)
        for session in list(api.services.sessions._sessions):
            body = {"reason": {"type": "success"}, "detail": None}
            assert (await api.post(f"/sessions/{session}/finish", body)).status_code == 200
        await api.quiet()
        assert list((tmp_path / "spill").glob("*.safetensors")) == []


async def test_sampler_that_finds_no_room_says_so(make_config, make_engine, serve):
    """Not as a failure that nobody foresaw."""
    async with serve(make_config()) as api:
        body = {"model_id": await api.model(rank=64), "seq_id": 1, "path": "one"}
        path = (await api.result(await api.ok("/save_weights_for_sampler", body)))["path"]
    small = make_engine(host_adapter_bytes=20_000)
    async with serve(make_config(), engine=small) as api:
        session = {"session_id": await api.session(), "sampling_session_seq_id": 0}
        refused = await api.post("/create_sampling_session", {**session, "model_path": path})
        assert refused.status_code == 500
        assert "choose a lower rank" in refused.json()["detail"]
        assert api.services.metrics.faults._value.get() == 0
