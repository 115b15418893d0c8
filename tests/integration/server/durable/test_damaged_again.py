"""Snapshots that are damaged again and again, each time only the last one."""


def damage_last(folder, run):
    snapshots = folder / "snapshots" / run.model_id
    last = max((path.name for path in snapshots.iterdir()), key=int)
    file = snapshots / last / "state.safetensors"
    data = bytearray(file.read_bytes())
    data[-5] ^= 1
    file.write_bytes(data)


async def test_the_snapshot_before_is_always_left(life, trainer, crashed, rows, tmp_path):
    async with life(data_dir=tmp_path / "plain") as api:  # nothing happens to this one
        run = await trainer(api)
        expected = [await run.train() for _ in range(6)]
    losses, folder, run = [], tmp_path / "data", None
    for steps in (3, 1, 1, 1):
        async with life(snapshot_steps=1, data_dir=folder) as api:
            run = await trainer(api) if run is None else run.on(api)
            for _ in range(steps):
                losses.append(await run.train())
                await api.services.tasks.finished()
            assert len(rows(api, "SELECT generation FROM run_snapshots")) == 2
            folder = crashed(api)
        damage_last(folder, run)
    assert losses == expected
