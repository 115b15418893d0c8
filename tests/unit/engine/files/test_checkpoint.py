"""Checkpoint files: complete or absent, checked when read."""

from __future__ import annotations

import json

import pytest
import torch
from engine_support import (
    datum,
    flat,
    job,
    sample,
    shake,
    tiny_engine,
    tiny_model,
    tokens,
    trained_engine,
)
from safetensors.torch import load_file

from tinkex.engine.files.checkpoint import MANIFEST, checkpoint_lora_config
from tinkex.errors import EngineError, InputError
from tinkex.types import AdamParams, LoraConfig

FILES = {"adapter_config.json", "adapter_model.safetensors", "tinkex.json"}
PARAMS = AdamParams(learning_rate=1e-3, weight_decay=0.01)


def train(engine, steps, adapter_id="a", start=0):
    for i in range(start, start + steps):
        engine.forward_backward(adapter_id, [datum(9, seed=i), datum(5, seed=i)], "cross_entropy")
        engine.optim_step(adapter_id, PARAMS)


@pytest.mark.parametrize("family", ["qwen3", "qwen3_moe", "gpt_oss"])
def test_continuing_from_a_checkpoint_equals_not_stopping(tmp_path, family):
    straight = trained_engine(family=family)
    train(straight, 6)
    first = trained_engine(family=family)
    train(first, 3)
    first.save_adapter("a", tmp_path / "c", optimizer=True)
    second = tiny_engine(family)
    second.load_adapter("resumed", tmp_path / "c", optimizer=True)
    train(second, 3, "resumed", start=3)
    assert torch.equal(flat(straight, "a"), flat(second, "resumed"))


def test_weights_alone_start_a_fresh_optimiser(tmp_path):
    engine = trained_engine()
    train(engine, 2)
    engine.save_adapter("a", tmp_path / "c", optimizer=False)
    assert {p.name for p in (tmp_path / "c").iterdir()} == FILES
    engine.load_adapter("new", tmp_path / "c", optimizer=False)
    assert torch.equal(flat(engine, "a"), flat(engine, "new"))
    assert engine._pool.adapter("new").optimizer is None


def test_optimiser_state_that_was_not_saved_is_refused(tmp_path):
    engine = trained_engine()
    engine.save_adapter("a", tmp_path / "c", optimizer=False)
    with pytest.raises(InputError, match="without the optimiser"):
        engine.load_adapter("a", tmp_path / "c", optimizer=True)


def test_untrained_adapter_saves_a_fresh_optimiser_state(tmp_path):
    engine = trained_engine()
    engine.save_adapter("a", tmp_path / "c", optimizer=True)
    engine.load_adapter("n", tmp_path / "c", optimizer=True)
    assert engine._pool.adapter("n").optimizer.step == 0


def test_loaded_sampler_gives_the_same_samples_as_a_snapshot(tmp_path):
    engine = trained_engine()
    engine.save_adapter("a", tmp_path / "c", optimizer=False)
    engine.load_sampler("loaded", tmp_path / "c")
    jobs = [job(n, tokens(5), n, seed=1, max_tokens=20) for n in ("a", "loaded")]
    found = sample(engine, *jobs)
    for name in ("tokens_np", "logprobs_np"):
        one, other = (getattr(found[n].sequences[0], name).tolist() for n in ("a", "loaded"))
        assert one == other


def test_loading_replaces_and_drops_the_gradient(tmp_path):
    engine = trained_engine()
    engine.save_adapter("a", tmp_path / "c", optimizer=True)
    before = flat(engine, "a")
    train(engine, 1)
    engine.forward_backward("a", [datum(4)], "cross_entropy")
    engine.load_adapter("a", tmp_path / "c", optimizer=True)
    assert torch.equal(flat(engine, "a"), before)
    assert engine._pool.adapter("a").gradient is None


def test_checkpoint_describes_itself(tmp_path):
    engine = tiny_engine()
    lora = LoraConfig(rank=3, seed=7, train_mlp=False)
    engine.create_adapter("x", lora)
    engine.optim_step("x", AdamParams())
    engine.save_adapter("x", tmp_path / "c", optimizer=True)
    info = checkpoint_lora_config(tmp_path / "c")
    assert (info.base_model, info.lora, info.has_optimizer, info.step) == ("tiny", lora, True, 1)
    manifest = json.loads((tmp_path / "c" / MANIFEST).read_text())
    assert manifest["numerics"]["dtype"] == "float32"
    peft = json.loads((tmp_path / "c" / "adapter_config.json").read_text())
    assert peft["r"] == 3
    assert peft["lora_alpha"] == 32
    assert peft["base_model_name_or_path"] == "tiny"
    assert peft["target_modules"] == ["k_proj", "lm_head", "o_proj", "q_proj", "v_proj"]


def test_tensors_carry_pefts_names(tmp_path):
    engine = trained_engine()
    engine.save_adapter("a", tmp_path / "c", optimizer=False)
    tensors = load_file(tmp_path / "c" / "adapter_model.safetensors")
    name = "base_model.model.model.layers.1.mlp.down_proj.lora_A.weight"
    assert tensors[name].shape == (4, 48)
    assert tensors["base_model.model.lm_head.lora_B.weight"].shape == (97, 4)
    assert len(tensors) == 2 * (7 * 2 + 1)


def test_saving_again_replaces_the_whole_directory(tmp_path):
    engine = trained_engine()
    engine.save_adapter("a", tmp_path / "c", optimizer=True)
    engine.save_adapter("b", tmp_path / "c", optimizer=False)
    assert {p.name for p in (tmp_path / "c").iterdir()} == FILES
    assert checkpoint_lora_config(tmp_path / "c").lora.rank == 8
    assert [p.name for p in tmp_path.iterdir()] == ["c"]


def test_failed_write_leaves_what_was_there(tmp_path, monkeypatch):
    engine = trained_engine()
    engine.save_adapter("a", tmp_path / "c", optimizer=False)

    def no_space(*args, **kwargs):
        raise OSError("no space left on device")

    monkeypatch.setattr("tinkex.engine.files.checkpoint.save_tensors", no_space)
    for name in ("c", "d"):
        with pytest.raises(EngineError, match="no space left"):
            engine.save_adapter("b", tmp_path / name, optimizer=False)
    assert checkpoint_lora_config(tmp_path / "c").lora.rank == 4
    assert [p.name for p in tmp_path.iterdir()] == ["c"]


@pytest.mark.parametrize("name", ["adapter_model.safetensors", "optimizer.safetensors"])
@pytest.mark.parametrize("damage", ["flip", "cut", "gone"])
def test_damaged_file_is_noticed_and_nothing_is_replaced(tmp_path, name, damage):
    engine = trained_engine()
    engine.save_adapter("a", tmp_path / "c", optimizer=True)
    path = tmp_path / "c" / name
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    if damage == "gone":
        path.unlink()
    else:
        path.write_bytes(content if damage == "flip" else content[:-10])
    shake(engine, "a")
    before = flat(engine, "a")
    with pytest.raises(EngineError, match="damaged"):
        engine.load_adapter("a", tmp_path / "c", optimizer=True)
    assert torch.equal(flat(engine, "a"), before)


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"format_version": 1}'])
def test_damaged_manifest_is_noticed(tmp_path, text):
    engine = trained_engine()
    engine.save_adapter("a", tmp_path / "c", optimizer=False)
    (tmp_path / "c" / MANIFEST).write_text(text)
    with pytest.raises(EngineError, match="manifest of checkpoint c is damaged"):
        checkpoint_lora_config(tmp_path / "c")


def test_newer_format_is_refused(tmp_path):
    engine = trained_engine()
    engine.save_adapter("a", tmp_path / "c", optimizer=False)
    path = tmp_path / "c" / MANIFEST
    path.write_text(json.dumps({**json.loads(path.read_text()), "format_version": 99}))
    with pytest.raises(EngineError, match="upgrade tinkex"):
        checkpoint_lora_config(tmp_path / "c")


def test_absent_checkpoint_is_refused(tmp_path):
    with pytest.raises(InputError, match="no checkpoint gone"):
        checkpoint_lora_config(tmp_path / "gone")


def test_checkpoint_of_another_base_model_is_refused(tmp_path):
    from tinkex.engine.engine import Engine
    from tinkex.engine.models.loader import wrap_model

    trained_engine().save_adapter("a", tmp_path / "c", optimizer=False)
    other = Engine(wrap_model(tiny_model(), name="other"))
    with pytest.raises(InputError, match="belongs to the base model 'tiny'"):
        other.load_sampler("s", tmp_path / "c")


def test_checkpoint_that_does_not_fit_is_refused(tmp_path):
    trained_engine().save_adapter("a", tmp_path / "c", optimizer=False)
    larger = tiny_engine(model=tiny_model(intermediate_size=64))
    with pytest.raises(EngineError, match="does not fit"):
        larger.load_sampler("s", tmp_path / "c")
