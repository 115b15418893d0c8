"""Each term against its formula, and its gradient against finite differences."""

import math

import numpy as np
import pytest

import tinkex as tinker
from tinkex import regularizers
from tinkex.errors import InputError

torch = pytest.importorskip("torch")


def datum(reference):
    tensor = tinker.TensorData.from_numpy(np.asarray(reference, np.float32))
    inputs = {"target_tokens": [1] * len(reference), "ref_logprobs": tensor}
    return tinker.Datum(tinker.ModelInput.from_ints([1] * len(reference)), inputs)


L = [[-0.5, -1.0, -2.0], [-0.25, -3.0, -0.75]]
DATA = [datum([-1.0, -1.0, -1.0]), datum([-0.5, -0.5, -0.5])]


def logprobs(values=L):
    return [torch.tensor(row, dtype=torch.float64, requires_grad=True) for row in values]


def value(term, values=L, loss=None):
    rows = logprobs(values)
    base = sum((row**2).sum() for row in rows) if loss is None else loss(rows)
    return float(term.value(DATA, rows, base).detach())


def k3(ref, one):
    return math.exp(ref - one) - 1 - (ref - one)


FLAT = [x for row in L for x in row]
REF = [-1.0] * 3 + [-0.5] * 3


def cosine(a, b):
    return sum(x * y for x, y in zip(a, b, strict=True)) / (math.hypot(*a) * math.hypot(*b))


@pytest.mark.parametrize(
    ("term", "expected"),
    [
        (regularizers.l1(1.0), sum(map(abs, FLAT))),
        (regularizers.l2(1.0), sum(x * x for x in FLAT)),
        (
            regularizers.elastic_net(1.0, 0.25),
            0.25 * sum(map(abs, FLAT)) + 0.375 * sum(x * x for x in FLAT),
        ),
        (regularizers.entropy(1.0), sum(FLAT) / 6),
        (regularizers.kl(1.0), sum(map(k3, REF, FLAT)) / 6),
        (regularizers.consistency(1.0), sum((a - b) ** 2 for a, b in zip(*L, strict=True)) / 3),
        (regularizers.orthogonality(1.0), cosine(*L) ** 2),
        (regularizers.gradient_penalty(1.0, 1.0), (2 * math.hypot(*FLAT) - 1) ** 2),
    ],
    ids=lambda one: getattr(one, "name", ""),
)
def test_term_has_its_formula_s_value_and_gradient(term, expected):
    assert value(term) == pytest.approx(expected, rel=1e-9)

    def function(*rows):
        return term.value(DATA, list(rows), sum((row**2).sum() for row in rows))

    assert torch.autograd.gradcheck(function, tuple(logprobs()))


def test_entropy_of_distributions_is_exact():
    row = [[math.log(0.5), math.log(0.25)], [math.log(0.1), math.log(0.9)]]
    expected = (0.5 * math.log(0.5) + 0.25 * math.log(0.25) + 0.1 * math.log(0.1)
                + 0.9 * math.log(0.9)) / 2  # fmt: skip
    assert value(regularizers.entropy(1.0), [row]) == pytest.approx(expected)


def test_terms_add_to_the_loss_by_weight_and_show_value_and_gradient_norm():
    def base(_data, rows):
        return -sum(row.sum() for row in rows), {"mine": 1.0}

    rows = logprobs()
    loss_fn = regularizers.with_regularizers(base, [regularizers.l2(0.5), regularizers.kl(2.0)])
    loss, metrics = loss_fn(DATA, rows)
    squares = sum(x * x for x in FLAT)
    expected = -sum(FLAT) + 0.5 * squares + 2 * sum(map(k3, REF, FLAT)) / 6
    assert float(loss.detach()) == pytest.approx(expected)
    assert metrics["mine"] == 1.0
    assert metrics["regularizer/l2"] == pytest.approx(squares)
    assert metrics["regularizer/l2/grad_norm"] == pytest.approx(2 * math.hypot(*FLAT))
    loss.backward()
    assert rows[0].grad.abs().sum() > 0


def test_penalty_of_a_linear_loss_is_a_number_without_gradient():
    rows = logprobs()
    found = regularizers.gradient_penalty(1.0).value(DATA, rows, sum(row.sum() for row in rows))
    found.backward()
    assert float(found.detach()) == pytest.approx(6.0)
    assert rows[0].grad.abs().max() == 0


@pytest.mark.parametrize(
    ("term", "values"),
    [
        (regularizers.consistency(1.0), [L[0]]),
        (regularizers.consistency(1.0), [L[0], [1.0]]),
        (regularizers.orthogonality(1.0), [L[0]]),
        (regularizers.orthogonality(1.0), [L[0], [1.0]]),
    ],
)
def test_data_that_do_not_fit_a_term_are_refused(term, values):
    with pytest.raises(InputError):
        value(term, values)


def test_missing_reference_and_wrong_settings_are_named():
    with pytest.raises(InputError, match=r"Datum 0.*other"):
        value(regularizers.kl(1.0, "other"))
    with pytest.raises(InputError, match="l1_ratio"):
        regularizers.elastic_net(1.0, 2.0)
    with pytest.raises(InputError, match="one name"):
        regularizers.with_regularizers(lambda d, r: (r[0].sum(), {}), [regularizers.l1(1)] * 2)
