"""What comes twice because its client never heard of the first time."""


async def test_nameless_sampler_may_be_numbered_anew_when_asked_for_again(life, trainer, crashed):
    async with life() as api:
        run = await trainer(api)
        await run.train()
        body = {"model_id": run.model_id, "seq_id": run.seq_id + 1}
        first = await api.ok("/save_weights_for_sampler", {**body, "sampling_session_seq_id": 5})
        found = crashed(api)
    async with life(data_dir=found) as api:
        again = await api.ok("/save_weights_for_sampler", {**body, "sampling_session_seq_id": 6})
        assert again == first
        assert (await api.result(again))["sampling_session_id"].endswith(":sample:5")
