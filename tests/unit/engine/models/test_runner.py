"""The model's modules and the routing of one forward."""

from __future__ import annotations

import pytest
import torch
from engine_support import VOCAB, tiny_engine, tiny_model, trained_engine

from tinkex.engine.attention.packed import PrefillAttention
from tinkex.engine.lora.linear import LoraLinear
from tinkex.engine.lora.weights import LoraSegment
from tinkex.errors import EngineError
from tinkex.types import LoraConfig

IDS = torch.arange(6)


def run(engine, segments=()):
    with torch.no_grad():
        return engine._runner.hidden(IDS, IDS, PrefillAttention((6,)), segments)


def test_every_linear_layer_but_the_head_is_taken_over():
    engine = trained_engine(dense_path=False)
    kinds = [type(m) for m in engine.base.model.modules()]
    assert kinds.count(LoraLinear) == 14
    assert kinds.count(torch.nn.Linear) == 1


def test_shapes_name_layers_as_in_the_causal_lm():
    engine = trained_engine()
    shapes = {s.name: s for s in engine._runner.shapes(LoraConfig(rank=1))}
    down = shapes["model.layers.0.mlp.down_proj"]
    assert (down.rows_in, down.rows_out) == (48, 32)
    assert (shapes["lm_head"].rows_in, shapes["lm_head"].rows_out) == (32, VOCAB)


def test_routing_is_cleared_after_a_forward_and_after_a_failure():
    engine = trained_engine()
    plain = run(engine)
    segments = [LoraSegment(0, 6, engine._pool.sampler("a"))]
    adapted = run(engine, segments)
    assert not torch.equal(plain, adapted)
    assert torch.equal(run(engine), plain)
    with pytest.raises(IndexError), torch.no_grad():
        engine._runner.hidden(IDS + VOCAB, IDS, PrefillAttention((6,)), segments)
    assert torch.equal(run(engine), plain)


def test_entering_twice_is_refused():
    engine = trained_engine()
    segments = [LoraSegment(0, 6, engine._pool.sampler("a"))]

    class Greedy(PrefillAttention):
        def attend(self, *args, **options):
            run(engine, segments)

    with pytest.raises(EngineError, match="one thread must own it"), torch.no_grad():
        engine._runner.hidden(IDS, IDS, Greedy((6,)), segments)


def test_parameters_stay_frozen():
    engine = trained_engine(dense_path=False)
    assert not any(p.requires_grad for p in engine.base.model.parameters())
    left = dict(engine.base.model.named_parameters())
    matrices = {n: m for n, m in engine.base.model.named_modules() if isinstance(m, LoraLinear)}
    for name, parameter in tiny_model().named_parameters():
        module = name.removesuffix(".weight").removesuffix(".bias")
        if module in matrices:  # its weights are the matrix's alone
            assert name not in left
            found = matrices[module].matrix
            kept = found.bias if name.endswith(".bias") else found.dense()
        elif module == "lm_head":
            kept = engine._runner.head.matrix.dense()
        else:
            kept = left[name]
        assert torch.equal(kept, parameter)


def test_second_engine_over_a_model_is_refused():
    for dense in (True, False):
        model = tiny_model()
        tiny_engine(model=model, dense_path=dense)
        with pytest.raises(EngineError, match="already drives"):
            tiny_engine(model=model)
