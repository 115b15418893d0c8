"""An engine whose base weights are int8: one model for trainer and sampler, alone or in company."""

from pathlib import Path

import numpy as np
import pytest
import torch
from engine_support import (
    check_company_changes_no_bit,
    datum,
    gradient,
    job,
    sample,
    shake,
    tiny_engine,
    tiny_model,
    tokens,
    trained_engine,
    trained_logprobs,
)

from tinkex.engine.engine import Engine, EngineConfig, load_base_model
from tinkex.engine.matrices import layout as weight_layout
from tinkex.engine.matrices import products
from tinkex.engine.matrices.int8_product import can_multiply_int8
from tinkex.engine.matrices.layout import WeightLayout, choose_layout
from tinkex.errors import ConfigurationError
from tinkex.types import LoraConfig


@pytest.fixture(params=["exact", "blocks"])
def way(request, monkeypatch):
    """Both ways of an int8 product, whatever this processor has."""
    if request.param == "blocks":
        monkeypatch.setattr(weight_layout, "can_multiply_int8", lambda: False)
    elif not can_multiply_int8():
        pytest.skip("no exact int8 product here")
    return request.param


def engine_of(family="qwen3", *, seed=0, **settings):
    return trained_engine(family=family, weight_dtype="int8", **settings)


def test_numerics_name_the_form(way):
    found = tiny_engine(weight_dtype="int8").numerics()
    assert found["weight_dtype"] == "int8"
    assert found["products"] == {"exact": "int8, exact", "blocks": "int8, float32 blocks"}[way]
    assert tiny_engine().numerics()["weight_dtype"] == "float32"


@pytest.mark.parametrize("family", ["qwen3", "llama", "gemma3_text", "phi", "qwen3_moe", "gpt_oss"])
def test_trainer_and_sampler_see_the_same_model(family, way):
    engine = engine_of(family)
    work = job("j", tokens(6), "a", max_tokens=60, stop=[], seed=1)
    found = sample(engine, work)["j"].sequences[0]
    trained = trained_logprobs(engine, [*tokens(6), *found.tokens])[5:]
    assert abs(trained - found.logprobs_np).max() < 1e-5


def test_model_is_that_of_the_rounded_weights(way):
    """The same engine in float32, over weights that were rounded beforehand."""
    model = tiny_model("llama")
    layout = WeightLayout.INT8 if way == "exact" else WeightLayout.INT8_BLOCKS
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.dim() == 2 and "embed" not in name:
                weight.copy_(layout.matrix(weight.clone()).dense())
    results = []
    for engine in (tiny_engine(model=model), tiny_engine("llama", weight_dtype="int8")):
        engine.create_adapter("a", trained_engine().adapter_config("a"))
        ids = tokens(40)
        output = engine.forward_backward("a", [datum(40)], "cross_entropy")
        results.append((trained_logprobs(engine, ids), gradient(engine, "a"), output.metrics))
    (rounded, slope, metrics), (found, found_slope, found_metrics) = results
    assert abs(rounded - found).max() < 1e-5
    assert (found_slope - slope).abs().max() < 1e-5 * slope.abs().max()
    assert found_metrics["loss:sum"] == pytest.approx(metrics["loss:sum"], abs=1e-4)


def test_gradient_has_the_bits_of_a_run_alone(way):
    data = {"a": [datum(5), datum(7, seed=1)], "b": [datum(9, seed=2)]}
    alone, together = engine_of(), engine_of()
    for name, batch in data.items():
        alone.forward_backward(name, batch, "cross_entropy")
    tasks = [together.begin_forward_backward(n, d, "cross_entropy") for n, d in data.items()]
    while any(not task.finished for task in tasks):
        together.run_together([task for task in tasks if task.joins])
    for task, name in zip(tasks, data, strict=True):
        task.result()
        assert torch.equal(gradient(together, name), gradient(alone, name))


def test_same_seed_gives_the_same_bits_alone_and_in_company(way):
    check_company_changes_no_bit(engine_of())


def test_weights_that_diverged_fail_their_run_alone(way):
    engine = engine_of()
    before = engine.forward_backward("b", [datum(5)], "cross_entropy", forward_only=True)
    with torch.no_grad():
        engine._pool.adapter("a").weights.flat.fill_(float("inf"))
    tasks = [engine.begin_forward_backward(n, [datum(5)], "cross_entropy") for n in "ab"]
    engine.run_together(tasks)
    with pytest.raises(Exception, match="finite"):
        tasks[0].result()
    assert tasks[1].result().loss_fn_outputs == before.loss_fn_outputs


@pytest.mark.parametrize("tied", [True, False])
def test_float_copies_are_let_go(tied):
    engine = tiny_engine(model=tiny_model("qwen3", tie_word_embeddings=tied), weight_dtype="int8")
    kept = [p for p in engine.base.model.parameters() if p.device.type == "cpu" and p.dim() > 1]
    assert [p.data_ptr() for p in kept] == [
        engine.base.model.get_input_embeddings().weight.data_ptr()
    ]


@pytest.mark.parametrize("family", ["qwen3", "gemma3_text", "phi", "gpt_oss"])
def test_files_of_less_precision_are_rounded_as_they_are(tmp_path, family, monkeypatch):
    monkeypatch.setattr(products, "_WORTH", 0)  # LoRA's small products by the library of large ones
    tiny_model(family).to(torch.bfloat16).save_pretrained(tmp_path)
    found = []
    for dtype in ("float32", "auto"):
        base = load_base_model(str(tmp_path), dtype=dtype)
        engine = Engine(base, EngineConfig(weight_dtype="int8"))
        floats = {*base.model.parameters(), *base.model.buffers()}
        assert {one.dtype for one in floats if one.is_floating_point()} == {torch.float32}
        engine.create_adapter("a", LoraConfig(rank=4, seed=0))
        shake(engine, "a")
        found.append(trained_logprobs(engine, tokens(20)))
    assert np.array_equal(*found)


def test_file_is_not_held_once_it_is_read(tmp_path):
    tiny_model().save_pretrained(tmp_path)
    engine = Engine(load_base_model(str(tmp_path)), EngineConfig(weight_dtype="int8"))
    maps = Path("/proc/self/maps")
    if not maps.exists():
        pytest.skip("no /proc here")
    assert str(tmp_path) not in maps.read_text()
    engine.create_adapter("a", LoraConfig(rank=4, seed=0))
    assert trained_logprobs(engine, tokens(20)).shape == (19,)


def test_int8_is_refused_by_name_where_it_is_not_supported():
    for dtype in ("bfloat16", "float16"):
        with pytest.raises(ConfigurationError, match=f"needs dtype float32.*{dtype}"):
            EngineConfig(dtype=dtype, weight_dtype="int8")
    with pytest.raises(ConfigurationError, match=r"CPU only, not on cuda:0.*bfloat16"):
        EngineConfig(device="cuda:0", weight_dtype="int8")
    with pytest.raises(ConfigurationError, match=r"CPU only, and the model lies on meta.*bfloat16"):
        choose_layout(EngineConfig(weight_dtype="int8"), tiny_model().to("meta"))
    with pytest.raises(ConfigurationError, match=r"weight_dtype must be int8.*'int4'"):
        EngineConfig(weight_dtype="int4")
    with pytest.raises(ConfigurationError, match="pack_weights"):
        EngineConfig(weight_dtype="int8", pack_weights=True)
