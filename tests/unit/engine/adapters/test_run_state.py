"""A run's whole state on disk: back bit for bit, whole or absent, never damaged unnoticed."""

import json

import pytest
import torch
from engine_support import datum, tiny_engine

from tinkex.engine.adapters.run_state import MANIFEST, TENSORS, write_state
from tinkex.errors import EngineError
from tinkex.types import AdamParams, DimuonParams, LoraConfig

STEPS = {"adamw": AdamParams(learning_rate=0.01), "dimuon": DimuonParams(learning_rate=0.01)}


def train(engine, *, steps, first=0, kind="adamw"):
    for i in range(first, first + steps):
        engine.forward_backward("a", [datum(12, seed=i)], "cross_entropy")
        engine.optim_step("a", STEPS[kind])


def started(kind="adamw", *, steps=2, gradient=True):
    engine = tiny_engine()
    engine.create_adapter("a", LoraConfig(rank=4, seed=1), kind)
    train(engine, steps=steps, kind=kind)
    if gradient:
        engine.forward_backward("a", [datum(9, seed=50)], "cross_entropy")
    return engine


def bits(engine):
    adapter = engine._pool.adapter("a")
    return {name: tensor.clone() for name, tensor in adapter.tensors().items()}


def equal(one, two):
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


@pytest.mark.parametrize("kind", ["adamw", "dimuon"])
@pytest.mark.parametrize("steps", [0, 2])
@pytest.mark.parametrize("gradient", [False, True])
def test_restored_run_goes_on_bit_for_bit(tmp_path, kind, steps, gradient):
    engine = started(kind, steps=steps, gradient=gradient)
    write_state(tmp_path / "1", engine.adapter_state("a"))
    other = tiny_engine()
    lora, name = other.restore_adapter("a", tmp_path / "1")
    assert (lora.rank, lora.seed, name) == (4, 1, kind)
    assert equal(bits(engine), bits(other))
    for one in (engine, other):
        train(one, steps=2, first=7, kind=kind)
    assert equal(bits(engine), bits(other))


def test_copied_state_does_not_change_with_the_run(tmp_path):
    engine = started()
    before, state = bits(engine), engine.adapter_state("a")
    train(engine, steps=1, first=30)
    write_state(tmp_path / "1", state)
    other = tiny_engine()
    other.restore_adapter("a", tmp_path / "1")
    assert equal(before, bits(other))
    assert not equal(bits(engine), bits(other))


def test_files_are_the_owners_alone(tmp_path):
    folder = tmp_path / "runs" / "1"
    write_state(folder, started().adapter_state("a"))
    assert {path.name for path in folder.iterdir()} == {TENSORS, MANIFEST}
    assert all(path.stat().st_mode & 0o077 == 0 for path in [folder, *folder.iterdir()])
    assert [path.name for path in folder.parent.iterdir()] == ["1"]


def test_state_is_there_whole_or_not_at_all(tmp_path, monkeypatch):
    def refuse(*_args):
        raise OSError("no space left")

    state = started().adapter_state("a")
    monkeypatch.setattr("tinkex.engine.adapters.run_state.save_tensors", refuse)
    with pytest.raises(OSError, match="no space"):
        write_state(tmp_path / "1", state)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", [TENSORS, MANIFEST])
@pytest.mark.parametrize("damage", ["flip", "cut", "remove"])
def test_damage_is_an_error_and_changes_nothing(tmp_path, name, damage):
    engine = started()
    write_state(tmp_path / "1", engine.adapter_state("a"))
    before = bits(engine)
    path = tmp_path / "1" / name
    data = bytearray(path.read_bytes())
    if damage == "flip" and name == TENSORS:
        data[len(data) // 2] ^= 1
    elif damage == "flip":
        data = bytearray(data.replace(b'"format_version": 1', b'"format_version": 9'))
    else:
        del data[len(data) // 2 :]
    path.write_bytes(data)
    if damage == "remove":
        path.unlink()
    with pytest.raises(EngineError, match="1 "):
        engine.restore_adapter("a", tmp_path / "1")
    assert equal(before, bits(engine))


def test_state_of_another_base_or_other_layers_is_refused(tmp_path):
    write_state(tmp_path / "1", started().adapter_state("a"))
    path = tmp_path / "1" / MANIFEST
    found = json.loads(path.read_text())
    for change, word in (({"base_model": "other"}, "base"), ({"layers": []}, "layers")):
        path.write_text(json.dumps(found | change))
        with pytest.raises(EngineError, match=word):
            tiny_engine().restore_adapter("a", tmp_path / "1")
