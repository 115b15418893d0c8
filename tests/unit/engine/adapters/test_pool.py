"""Where adapters and samplers lie, who makes room, and what cannot."""

from __future__ import annotations

import pytest
import torch

from tinkex.engine.adapters.adapter import Adapter
from tinkex.engine.adapters.pool import AdapterPool, MemoryLevel
from tinkex.engine.adapters.spill import SpillFolder
from tinkex.engine.lora.weights import LoraShape, initial_weights
from tinkex.errors import EngineBusyError, EngineError, InputError
from tinkex.types import LoraConfig

CPU = torch.device("cpu")
SAMPLER = 4 * 2 * (4 + 6)
ADAPTER = 4 * SAMPLER


def weights(seed=0):
    return initial_weights([LoraShape("layer", 4, 6)], 2, 32.0, seed, CPU)


def adapter(seed=0):
    return Adapter(LoraConfig(rank=2), weights(seed))


class Rig:
    """A pool of some levels, by the number of adapters that each holds."""

    def __init__(self, folder, *room, **settings):
        self.used = set()
        self.spill = None if folder is None else SpillFolder(folder, settings.pop("spill", None))
        names = ["device", "host"] if len(room) == 2 else ["host"]
        levels = [
            MemoryLevel(name, CPU, int(n * ADAPTER)) for name, n in zip(names, room, strict=True)
        ]
        self.levels = levels
        settings = {"max_adapters": 2, "max_samplers": 2, **settings}
        self.pool = AdapterPool(
            levels, self.spill, in_use=lambda: self.used, now=lambda: 0.0, **settings
        )

    def put(self, *names):
        for name in names:
            self.pool.put_adapter(name, adapter(ord(name)))

    def where(self, *names):
        return [self.pool.where("adapter", name) for name in names]

    def check(self):
        """The books are right: bytes held, files there."""
        for level in self.levels:
            assert level.held_bytes == sum(e.nbytes for e in level.entries.values())
            assert level.held_bytes <= level.max_bytes


@pytest.fixture
def rig(tmp_path):
    made = []

    def make(*room, disk=True, **settings):
        made.append(Rig(tmp_path if disk else None, *room, **settings))
        return made[-1]

    yield make
    for one in made:
        one.check()


def test_without_a_disk_there_are_so_many_adapters(rig):
    pool = rig(100, disk=False, max_adapters=1).pool
    pool.put_adapter("a", adapter())
    pool.put_adapter("a", adapter())
    with pytest.raises(EngineError, match="at most 1 adapters"):
        pool.put_adapter("b", adapter())
    pool.remove_adapter("a")
    pool.remove_adapter("a")
    pool.put_adapter("b", adapter())
    assert pool.adapter_ids == {"b"}


def test_without_a_disk_there_are_so_many_samplers(rig):
    pool = rig(100, disk=False, max_samplers=1).pool
    pool.put_sampler("a", weights())
    with pytest.raises(EngineError, match="at most 1 samplers"):
        pool.put_sampler("b", weights())
    pool.remove_sampler("a")
    pool.remove_sampler("a")
    assert pool.sampler_ids == frozenset()


def test_without_a_disk_memory_that_is_full_refuses(rig):
    r = rig(1, disk=False)
    r.put("a")
    with pytest.raises(EngineError, match="no disk behind it"):
        r.put("b")
    assert r.pool.adapter_ids == {"a"}


def test_unknown_names_are_refused(rig):
    pool = rig(1).pool
    with pytest.raises(InputError, match="unknown adapter 'x'"):
        pool.adapter("x")
    with pytest.raises(InputError, match="unknown adapter 'x'"):
        pool.adapter_config("x")
    with pytest.raises(InputError, match="unknown sampler 'x'"):
        pool.sampler("x")
    assert pool.optimizer_type("x") is None


def test_what_was_not_used_for_longest_moves_out_first(rig):
    r = rig(3)
    r.put("a", "b", "c")
    r.pool.adapter("a")
    r.put("d")
    assert r.where("a", "b", "c", "d") == ["host", "disk", "host", "host"]
    r.pool.adapter("b")
    assert r.where("a", "b", "c", "d") == ["host", "host", "disk", "host"]


def test_bounds_on_numbers_do_not_count_with_a_disk(rig, tmp_path):
    r = rig(2)
    r.put(*"abcdefgh")
    assert len(r.pool.adapter_ids) == 8
    assert len(list(tmp_path.glob("*.safetensors"))) == 6


def test_everything_comes_back_with_its_bits(rig):
    r = rig(1)
    a = adapter(7)
    a.accumulate(torch.randn(a.weights.flat.shape))
    expected = {name: tensor.clone() for name, tensor in a.tensors().items()}
    r.pool.put_adapter("a", a)
    r.put("b")
    found = r.pool.adapter("a")
    assert found is not a
    assert found.tensors().keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(found.tensors()[name], tensor)


def test_device_then_host_then_disk(rig):
    r = rig(1, 2)
    r.put(*"abcd")
    assert r.where(*"abcd") == ["disk", "host", "host", "device"]
    expected = adapter(ord("b")).weights.flat
    assert torch.equal(r.pool.adapter("b").weights.flat, expected)
    assert r.where(*"abcd") == ["disk", "device", "host", "host"]
    r.pool.adapter("a")
    assert r.where(*"abcd") == ["device", "host", "disk", "host"]


def test_device_and_host_change_places_without_a_disk(rig):
    r = rig(1, 1, disk=False)
    r.put("a", "b")
    for name in "abab":
        r.pool.adapter(name)
        assert r.where(name) == ["device"]
    with pytest.raises(EngineError, match="at most 2 adapters"):
        r.put("c")


def test_host_too_small_for_one_is_passed_over(rig):
    r = rig(1, 0.5)
    r.put("a", "b")
    assert r.where("a", "b") == ["disk", "device"]


def test_what_is_in_use_does_not_move(rig):
    r = rig(2)
    r.put("a", "b")
    r.used = {id(r.pool.adapter("a").weights)}
    r.pool.adapter("b")
    r.put("c")
    assert r.where("a", "b", "c") == ["host", "disk", "host"]


def test_when_all_is_in_use_the_request_is_told_and_nothing_moves(rig):
    r = rig(2)
    r.put("a", "b", "c")
    r.used = {id(r.pool.adapter(name).weights) for name in "bc"}
    with pytest.raises(EngineBusyError, match="in use") as caught:
        r.pool.adapter("a")
    assert caught.value.category == "server"
    with pytest.raises(EngineBusyError):
        r.put("d")
    assert r.where("a", "b", "c") == ["disk", "host", "host"]
    r.used = set()
    assert torch.equal(r.pool.adapter("a").weights.flat, adapter(ord("a")).weights.flat)


def test_replacing_needs_no_second_room_and_erases_the_old(rig, tmp_path):
    r = rig(1)
    r.put("a")
    r.used = {id(r.pool.adapter("a").weights)}
    r.put("a")
    r.used = set()
    r.put("b")
    assert len(list(tmp_path.glob("*.safetensors"))) == 1
    r.put("a")
    assert len(list(tmp_path.glob("*.safetensors"))) == 1
    assert r.where("a", "b") == ["host", "disk"]


def test_one_too_large_is_refused_before_anything_moves(rig):
    r = rig(0.5)
    r.pool.put_sampler("s", weights())
    with pytest.raises(EngineError, match="holds at most"):
        r.put("a")
    assert r.pool.where("sampler", "s") == "host"


def test_removed_one_leaves_no_file(rig, tmp_path):
    r = rig(1)
    r.put("a", "b")
    r.pool.remove_adapter("a")
    assert list(tmp_path.glob("*.safetensors")) == []
    with pytest.raises(InputError):
        r.pool.adapter("a")


def test_sampler_is_written_once_however_often_it_moves(rig, tmp_path):
    r = rig(1)
    r.pool.put_sampler("s", weights(5))
    r.put("a")
    (file,) = tmp_path.glob("*.safetensors")
    written = file.stat().st_mtime_ns
    for _ in range(3):
        assert torch.equal(r.pool.sampler("s").flat, weights(5).flat)
        r.pool.adapter("a")
    assert file.stat().st_mtime_ns == written
    r.pool.sampler("s")
    r.pool.remove_sampler("s")
    assert not file.exists()


@pytest.mark.parametrize("damage", [lambda p: p.unlink(), lambda p: p.write_bytes(b"x")])
def test_damaged_or_missing_file_fails_its_adapter_alone(rig, tmp_path, damage):
    r = rig(1)
    r.put("a", "b")
    (file,) = tmp_path.glob("*.safetensors")
    damage(file)
    for _ in range(2):
        with pytest.raises(EngineError, match="adapter 'a' was moved to the disk"):
            r.pool.adapter("a")
    assert torch.equal(r.pool.adapter("b").weights.flat, adapter(ord("b")).weights.flat)
    assert r.pool.adapter_config("a").rank == 2
    assert r.spill.held_bytes == sum(4 * 20 for _ in tmp_path.glob("*.safetensors"))
    r.put("a")
    r.pool.adapter("b")
    r.pool.adapter("a")


def test_disk_that_cannot_be_read_just_now_loses_nothing(rig, tmp_path):
    r = rig(1)
    r.put("a", "b")
    (file,) = tmp_path.glob("*.safetensors")
    aside = file.rename(tmp_path / "aside")
    file.mkdir()
    with pytest.raises(EngineError, match="try again"):
        r.pool.adapter("a")
    file.rmdir()
    aside.rename(file)
    assert torch.equal(r.pool.adapter("a").weights.flat, adapter(ord("a")).weights.flat)


def test_full_disk_fails_who_needs_room_and_loses_nothing(rig):
    r = rig(2, spill=SAMPLER)
    r.put("a", "b", "c")
    with pytest.raises(EngineError, match="disk behind this server's memory is full"):
        r.put("d")
    with pytest.raises(EngineError, match="full"):
        r.pool.adapter("a")
    assert r.pool.adapter_ids == {"a", "b", "c"}
    r.pool.remove_adapter("c")
    for name in "ab":
        assert torch.equal(r.pool.adapter(name).weights.flat, adapter(ord(name)).weights.flat)


@pytest.mark.parametrize("levels", [1, 2])
def test_move_that_fails_loses_nothing(rig, monkeypatch, levels):
    r = rig(*[1] * levels)
    r.put(*"abc")

    def no_memory(*_args, **_kwargs):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

    monkeypatch.setattr(torch.Tensor, "to", no_memory)
    for refused in (lambda: r.pool.adapter("a"), lambda: r.pool.adapter("b")):
        with pytest.raises(EngineError, match="send less at once"):
            refused()
        r.check()
    monkeypatch.undo()
    for name in "abc":
        assert torch.equal(r.pool.adapter(name).weights.flat, adapter(ord(name)).weights.flat)
