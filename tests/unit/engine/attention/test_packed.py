"""Attention of packed sequences, and what the registered function refuses."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from tinkex.engine.attention.packed import PrefillAttention, packed_attention_forward
from tinkex.errors import ConfigurationError

HEADS, KV, DIM = 4, 2, 8


def packed(count):
    torch.manual_seed(0)
    return torch.randn(count, HEADS, DIM), torch.randn(count, KV, DIM), torch.randn(count, KV, DIM)


def dense(query, key, value, scaling, window):
    """One sequence, by the formula."""
    key, value = (t.repeat_interleave(HEADS // KV, 1) for t in (key, value))
    scores = torch.einsum("qhd,khd->hqk", query, key) * scaling
    distance = torch.arange(len(query))[:, None] - torch.arange(len(query))
    allowed = distance >= 0
    if window:
        allowed &= distance < window
    weights = scores.masked_fill(~allowed, -torch.inf).softmax(-1)
    return torch.einsum("hqk,khd->qhd", weights, value)


@pytest.mark.parametrize("window", [0, 1, 3, 50])
@pytest.mark.parametrize("lengths", [(1,), (5, 5, 5), (3, 9, 9, 1, 9)])
def test_each_sequence_attends_to_itself_alone(lengths, window):
    query, key, value = packed(sum(lengths))
    out = PrefillAttention(lengths).attend(0, query, key, value, scaling=0.3, window=window)
    parts = [t.split(lengths) for t in (query, key, value)]
    expected = torch.cat([dense(*p, 0.3, window) for p in zip(*parts, strict=True)])
    torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-5)


def test_sequence_has_the_same_bits_alone():
    query, key, value = packed(21)
    attend = {"scaling": 0.3, "window": 0}
    together = PrefillAttention((7, 7, 7)).attend(0, query, key, value, **attend)
    alone = PrefillAttention((7,)).attend(0, query[7:14], key[7:14], value[7:14], **attend)
    assert torch.equal(together[7:14], alone)


class Module(nn.Module):
    layer_idx = 0


def call(**options):
    q, k, v = (t.transpose(0, 1)[None] for t in packed(4))
    return packed_attention_forward(Module(), q, k, v, None, **options)


def test_scaling_defaults_to_the_root_of_the_head_dimension():
    out, weights = call(packed_attention=PrefillAttention((4,)), dropout=0.0)
    q, k, v = packed(4)
    expected = F.scaled_dot_product_attention(
        *(t.transpose(0, 1) for t in (q, k, v)), is_causal=True, enable_gqa=True
    ).transpose(0, 1)
    torch.testing.assert_close(out[0], expected)
    assert weights is None


def test_model_that_drops_keyword_arguments_is_refused():
    with pytest.raises(ConfigurationError, match="keyword arguments"):
        call()


def test_unknown_feature_is_refused_by_name():
    with pytest.raises(ConfigurationError, match="softcap"):
        call(packed_attention=PrefillAttention((4,)), softcap=50.0, s_aux=None)
