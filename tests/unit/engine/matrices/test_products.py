"""Products of plain matrices by either library."""

from __future__ import annotations

import pytest
import torch

from tinkex.engine.matrices.matrix import can_pack
from tinkex.engine.matrices.products import Products


@pytest.mark.parametrize("onednn", [False, can_pack()])
@pytest.mark.parametrize(("n", "k", "m"), [(4, 24, 16), (512, 256, 48), (16, 300, 800)])
def test_both_forms_equal_double_precision(onednn, n, k, m):
    products = Products(onednn=onednn)
    x, w = torch.randn(n, k), torch.randn(m, k)
    expected = (x.double() @ w.double().T).float()
    for weight in (w, w.T.contiguous().T, torch.cat([w, w], dim=1)[:, :k]):
        torch.testing.assert_close(products.rows(x, weight), expected, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(products.steady(x, weight), expected, rtol=1e-4, atol=1e-4)
    for rows in (x.T.contiguous().T, torch.cat([x, x], dim=1)[:, :k]):
        torch.testing.assert_close(products.rows(rows, w), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("onednn", [False, can_pack()])
def test_steady_row_does_not_tell_the_number_of_rows(onednn):
    products = Products(onednn=onednn)
    x, w = torch.randn(512, 256), torch.randn(48, 256)
    alone = products.steady(x[:4], w)
    for count in (8, 12, 64, 512):
        assert torch.equal(products.steady(x[:count], w)[:4], alone)
