"""A user's own loss, run by the interpreter: equal to the function; nothing else gets through."""

import math

import numpy as np
import pytest
import torch
from engine_support import tiny_engine
from torch.nn import functional as F

import tinkex as tinker
from tinkex.client.loss_handle import trace
from tinkex.engine.training.graph_loss import MAX_NODES, GraphLoss
from tinkex.errors import InputError
from tinkex.testing import VirtualClock
from tinkex.types import CustomLossGraph, CustomLossInput, CustomLossNode, LoraConfig

T = 6


def example(seed=0):
    g = torch.Generator().manual_seed(seed)
    logprobs = (-3 + torch.randn(T, generator=g)).requires_grad_()
    inputs = {
        "advantages": torch.randn(T, generator=g),
        "weights": torch.tensor([0.0, 0, 1, 1, 2, 1]),
    }
    return logprobs, inputs


def read(fn, **ranks):
    handle = trace(fn, {"logprobs": 1, **ranks})
    return GraphLoss(handle.name, handle.inputs, handle.encode())


def run(graph, logprobs, inputs=None, deadline=math.inf):
    return graph.run(logprobs, inputs or {}, clock=VirtualClock(), deadline=deadline)


def nll(logprobs, weights):
    loss = -(logprobs * weights).sum()
    return loss, {"custom/nll:sum": loss, "custom/w:mean": weights.mean()}


def clipped(logprobs, advantages, weights):
    ratio = torch.exp(logprobs - advantages)
    held = ratio.clamp(0.8, 1.2) * advantages
    loss = -torch.minimum(ratio * advantages, held)[weights > 0].sum() / logprobs.shape[0]
    return loss, {}


def varied(logprobs, advantages, weights):
    best = logprobs[1:].max(dim=0)[0]
    smooth = F.logsigmoid(logprobs * 2).mean() + F.softplus(-logprobs).sum() * 0.1
    spread = torch.stack([logprobs, advantages]).std(dim=1).sum()
    where = torch.where(weights != 0, logprobs**2, torch.zeros_like(logprobs))
    total = best + smooth + spread + where.sum() + (logprobs - logprobs.detach()).abs().sum()
    return total + torch.logsumexp(logprobs, dim=-1), {"custom/a/b:sum": best}


@pytest.mark.parametrize("fn", [nll, varied, clipped])
def test_graph_equals_the_function_in_value_gradient_and_metrics(fn):
    names = fn.__code__.co_varnames[1 : fn.__code__.co_argcount]
    graph = read(fn, **dict.fromkeys(names, 1))
    (logprobs, inputs), (again, _) = example(), example()
    inputs = {name: inputs[name] for name in names}
    found = run(graph, logprobs, inputs)
    loss, metrics = fn(again, **inputs)
    assert torch.equal(found.loss, loss)
    assert found.metrics == {name: float(value.detach()) for name, value in metrics.items()}
    found.loss.backward()
    loss.backward()
    assert torch.equal(logprobs.grad, again.grad)


def three_operands(column, row):
    return torch.einsum("i,j,i->j", column[:, 0], row[0], column[:, 0])


def with_an_ellipsis(column, row):
    return torch.einsum("...,j,...->j", column[:, 0], row[0], column[:, 0])


def mean_of_all_pairs(column, row):
    return F.mse_loss(column, row)


def cosine_of_all_pairs(column, row):
    return F.cosine_similarity(column[:, :, None], row[:, :, None], dim=1)


def stacks_of_matrices(column, row):
    first = column[:2000, :, None, None].expand(-1, 1, 1, 8)
    return torch.matmul(first, row[:, :2000, None, None].expand(1, -1, 8, 1))


@pytest.mark.filterwarnings("ignore:Using a target size")
@pytest.mark.parametrize(
    "function",
    [three_operands, with_an_ellipsis, mean_of_all_pairs, cosine_of_all_pairs, stacks_of_matrices],
)
def test_memory_that_an_operation_takes_on_its_way_is_bounded_too(function):
    """Arguments and result are small; what is between are all pairs."""

    def loss(logprobs):
        return function(logprobs[:, None], logprobs[None, :]).sum(), {}

    graph = read(loss)
    small = (-3 + torch.randn(40)).requires_grad_()
    assert torch.isfinite(run(graph, small).loss)
    with pytest.raises(InputError, match="hold more than"):
        run(graph, torch.full((20_000,), -1.0).requires_grad_())


def test_products_of_large_matrices_are_not_counted_as_pairs():
    def loss(logprobs):
        matrix = logprobs.view(1000, 100)
        both = torch.einsum("ij,kj->ik", matrix, matrix) + matrix @ matrix.T
        return both.sum(), {}

    long = torch.full((100_000,), -0.1).requires_grad_()
    assert torch.isfinite(run(read(loss), long).loss)


def nuclear(matrix):
    return torch.norm(matrix, "nuc")


def spectral(matrix):
    return torch.linalg.matrix_norm(matrix, 2)


def spectral_by_name(matrix):
    return torch.linalg.norm(matrix, ord=-2)


def of_the_tensor(matrix):
    return matrix.norm(p="nuc")


@pytest.mark.parametrize("norm", [nuclear, spectral, spectral_by_name, of_the_tensor])
def test_norm_that_takes_minutes_in_one_piece_is_refused_before(norm):
    """Between two operations the time is looked at, within one nothing can."""

    def loss(logprobs):
        return norm(torch.outer(logprobs, logprobs)), {}

    graph = read(loss)
    small = (-3 + torch.randn(40)).requires_grad_()
    assert torch.isfinite(run(graph, small).loss)
    with pytest.raises(InputError, match="takes too long"):
        run(graph, torch.full((3000,), -1.0).requires_grad_())


def test_norm_of_a_large_vector_is_taken():
    def loss(logprobs):
        return torch.linalg.norm(logprobs, 2) + logprobs.norm() + torch.norm(logprobs, 2), {}

    long = torch.full((100_000,), -1.0).requires_grad_()
    assert float(run(read(loss), long).loss.detach()) == pytest.approx(3 * 100_000**0.5)


def test_mask_picks_by_value_and_what_follows_is_measured_then():
    def greedy(logprobs, weights):
        return logprobs[weights > 0].repeat(1000, 1000).sum(), {}

    logprobs, inputs = example()
    weights = {"weights": inputs["weights"]}
    assert run(read(greedy, weights=1), logprobs, weights).loss.isfinite()
    small = read(greedy, weights=1)
    small._max_elements = 10**6
    for _ in range(2):  # the first run learns that it must measure
        with pytest.raises(InputError, match="more than 1000000 numbers"):
            run(small, logprobs, weights)


def node(op, name, target, *args, **kwargs):
    return CustomLossNode(op=op, name=name, target=target, args=list(args), kwargs=kwargs)


def ref(name):
    return {"ref": name}


def graph_of(*nodes, loss="x", metrics=None, inputs=("logprobs",), **settings):
    placeholders = [node("placeholder", name, name) for name in inputs]
    output = {"tuple": [ref(loss), {"dict": metrics or {}}]}
    whole = [*placeholders, *nodes, node("output", "output", "output", output)]
    ranks = [CustomLossInput(name=name, rank=1) for name in inputs]
    return GraphLoss("evil", ranks, CustomLossGraph(nodes=whole), **settings)


def call(target, *args, name="x", **kwargs):
    return node("call_function", name, target, *args, **kwargs)


def method(target, *args, name="x", **kwargs):
    return node("call_method", name, target, *args, **kwargs)


LP = ref("logprobs")
REFUSED = {
    "eval": ([call("builtins.eval", "1")], "builtins.eval, which is not on the list"),
    "a file": ([call("torch.load", "/etc/passwd")], "torch.load"),
    "save": ([call("torch.save", LP, "/tmp/x")], "torch.save"),
    "process": ([call("os.system", "true")], "os.system"),
    "module function": ([call("torch.hub.load", "x")], "torch.hub.load"),
    "dunder method": ([method("__reduce__", LP)], "__reduce__"),
    "in place": ([method("add_", LP, 1)], "add_"),
    "to Python": ([method("tolist", LP)], "tolist"),
    "apply": ([method("apply_", LP, LP)], "apply_"),
    "storage": ([method("untyped_storage", LP)], "untyped_storage"),
    "set": ([method("set_", LP, LP)], "set_"),
    "to a device": ([method("to", LP, "cuda")], "device"),
    "out": ([call("torch.exp", LP, out=LP)], "argument that cannot be used"),
    "attribute node": ([node("get_attr", "x", "weight")], "kind 'get_attr'"),
    "module node": ([node("call_module", "x", "m", LP)], "kind 'call_module'"),
    "later node": ([call("torch.exp", ref("y"))], "'ref' cannot be used"),
    "twice": ([call("torch.exp", LP), call("torch.exp", LP)], "used twice"),
    "bad name": ([call("torch.exp", LP, name="x y")], "is no name"),
    "huge number": ([call("operator.mul", LP, 10**300)], "too large"),
    "long text": ([call("torch.sum", LP, "x" * 100)], "too long"),
    "deep": ([call("torch.exp", [[[[[[[[[[[1]]]]]]]]]]])], "nested too deeply"),
    "device constant": ([call("torch.exp", {"device": "cuda"})], "'device' cannot be used"),
    "wide dtype": ([method("to", LP, {"dtype": "complex128"})], "'dtype' cannot be used"),
    "unknown form": ([call("torch.exp", {"a": 1, "b": 2})], "another form"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_not_on_the_list_is_refused_when_read(case):
    nodes, message = REFUSED[case]
    with pytest.raises(InputError, match=message):
        graph_of(*nodes)


def test_size_and_form_of_a_graph_are_bounded():
    many = [call("torch.exp", LP, name=f"n{i}") for i in range(MAX_NODES)]
    with pytest.raises(InputError, match="512 at most"):
        graph_of(*many, loss="n0")
    with pytest.raises(InputError, match="metric"):
        graph_of(call("torch.sum", LP), metrics={"loss:sum": ref("x")})
    with pytest.raises(InputError, match="placeholders"):
        GraphLoss("e", [CustomLossInput(name="logprobs", rank=1)], CustomLossGraph(nodes=[]))
    with pytest.raises(InputError, match="first input must be logprobs"):
        GraphLoss("e", [], CustomLossGraph(nodes=[]))


AT_RUN = {
    "memory by repeat": ([method("repeat", LP, 10**12)], "more than"),
    "memory by product": (
        [call("torch.outer", LP, LP, name="a"), method("repeat", ref("a"), 10**4, 10**4)],
        "more than",
    ),
    "memory by expand": ([method("expand", LP, 10**9, 6)], "more than"),
    "memory by new_zeros": ([method("new_zeros", LP, [10**6, 10**6])], "more than"),
    "memory by pad": ([call("torch.nn.functional.pad", LP, [0, 10**10])], "more than"),
    "number tower": (
        [
            call("getattr", LP, "ndim", name="a"),
            call("operator.add", ref("a"), 9, name="b"),
            call("operator.pow", ref("b"), 10**9),
        ],
        "without a tensor",
    ),
    "hidden attribute": ([call("getattr", LP, "__class__")], "attribute other than"),
    "data pointer": ([call("getattr", LP, "data")], "attribute other than"),
    "wrong shape": ([call("torch.matmul", LP, [1])], "fails"),
    "no scalar": ([call("torch.exp", LP)], "scalar tensor, not a tensor of shape"),
    "no tensor": ([call("getattr", LP, "ndim")], "scalar tensor, not int"),
    "detached": (
        [method("detach", LP, name="a"), call("torch.sum", ref("a"))],
        "does not depend on logprobs",
    ),
}


@pytest.mark.parametrize("case", AT_RUN)
def test_what_a_run_must_not_do_is_refused_before_it_costs_anything(case):
    nodes, message = AT_RUN[case]
    graph = graph_of(*nodes)
    logprobs, _ = example()
    with pytest.raises(InputError, match=message):
        run(graph, logprobs)


def test_memory_is_counted_over_all_nodes():
    nodes = [call("torch.exp", LP if i == 0 else ref(f"n{i - 1}"), name=f"n{i}") for i in range(9)]
    nodes.append(call("torch.sum", ref("n8")))
    logprobs, _ = example()
    assert run(graph_of(*nodes, max_elements=9 * T + 1), logprobs).loss.ndim == 0
    with pytest.raises(InputError, match=f"more than {9 * T} numbers"):
        run(graph_of(*nodes, max_elements=9 * T), logprobs)


def test_time_is_bounded():
    logprobs, inputs = example()
    graph = read(nll, weights=1)
    weights = {"weights": inputs["weights"]}
    with pytest.raises(InputError, match="takes too long"):
        run(graph, logprobs, weights, deadline=-1.0)


def test_rank_of_an_input_is_the_one_that_was_said():
    logprobs, _ = example()
    with pytest.raises(InputError, match="weights has rank 2, it was made for 1"):
        run(read(nll, weights=1), logprobs, {"weights": torch.ones(T, 1)})


# --- in the engine -------------------------------------------------------------------------------


def data(count=3):
    rng = np.random.default_rng(0)
    found = []
    for index in range(count):
        tokens = rng.integers(1, 60, 5 + 3 * index).tolist()
        length = len(tokens)
        found.append(
            tinker.Datum(
                tinker.ModelInput.from_ints(tokens),
                {
                    "target_tokens": rng.integers(1, 60, length).tolist(),
                    "weights": rng.normal(size=length).astype(np.float32),
                },
            )
        )
    return found


def engine_with_adapter():
    engine = tiny_engine()
    engine.create_adapter("a", LoraConfig(rank=4, seed=1))
    torch.nn.init.normal_(engine._pool.adapter("a").weights.flat, std=0.05)
    return engine


def gradient(engine):
    return engine._pool.adapter("a").gradient


def test_custom_loss_gives_the_gradient_of_the_built_in_one():
    engine, other = engine_with_adapter(), engine_with_adapter()
    other._pool.adapter("a").weights.flat.data.copy_(engine._pool.adapter("a").weights.flat)
    own = engine.forward_backward("a", data(), "custom", graph=read(nll, weights=1))
    same = other.forward_backward("a", data(), "cross_entropy")
    assert own.metrics["loss:sum"] == pytest.approx(same.metrics["loss:sum"], rel=1e-6)
    assert own.metrics["custom/nll:sum"] == pytest.approx(same.metrics["loss:sum"], rel=1e-6)
    means = [float(d.loss_fn_inputs["weights"].values.mean()) for d in data()]
    assert own.metrics["custom/w:mean"] == pytest.approx(sum(means) / 3, rel=1e-5)
    torch.testing.assert_close(gradient(engine), gradient(other), rtol=1e-5, atol=1e-7)
    for a, b in zip(own.loss_fn_outputs, same.loss_fn_outputs, strict=True):
        assert a["logprobs"] == b["logprobs"]
        assert set(a) == {"logprobs"}


def test_forward_alone_leaves_no_gradient_and_gives_the_loss():
    engine = engine_with_adapter()
    graph = read(nll, weights=1)
    found = engine.forward_backward("a", data(), "custom", graph=graph, forward_only=True)
    assert gradient(engine) is None
    again = engine.forward_backward("a", data(), "custom", graph=graph)
    assert found.metrics == again.metrics


def test_loss_that_is_not_finite_names_its_datum_and_leaves_no_gradient():
    def broken(logprobs, weights):
        return (logprobs / (weights * 0)).sum(), {}

    engine = engine_with_adapter()
    with pytest.raises(InputError, match="datum 0: the loss 'broken' is"):
        engine.forward_backward("a", data(), "custom", graph=read(broken, weights=1))
    assert gradient(engine) is None


def test_missing_input_is_named():
    def other(logprobs, margins):
        return (logprobs * margins).sum(), {}

    engine = engine_with_adapter()
    with pytest.raises(InputError, match="needs the input 'margins'"):
        engine.forward_backward("a", data(), "custom", graph=read(other, margins=1))


def test_gspo_sees_each_sequence_whole_whatever_the_microbatches():
    def marked(datum):
        inputs = dict(datum.loss_fn_inputs)
        length = datum.model_input.length
        inputs["advantages"] = inputs["weights"]
        inputs["weights"] = [1.0] * length
        inputs["logprobs"] = [-4.0] * length
        inputs["sequence_ratio_mask"] = [1.0] * length
        return tinker.Datum(datum.model_input, inputs)

    batch = [marked(datum) for datum in data()]
    config = {"clip_low_threshold": 0.5, "clip_high_threshold": 1.5}
    engine = engine_with_adapter()
    whole = engine.forward_backward("a", batch, "gspo", config)
    total = gradient(engine).clone()
    engine._pool.adapter("a").gradient = None
    losses = [
        engine.forward_backward("a", [datum], "gspo", config).metrics["loss:sum"] for datum in batch
    ]
    assert whole.metrics["loss:sum"] == pytest.approx(sum(losses), rel=1e-6)
    torch.testing.assert_close(gradient(engine), total, rtol=1e-5, atol=1e-6)
    for name in ("ratio:mean", "ratio:min", "ratio:max", "kl:mean", "entropy:mean"):
        assert math.isfinite(whole.metrics[name])
    lp = np.concatenate([o["logprobs"].values for o in whole.loss_fn_outputs]).astype(float)
    advantages = np.concatenate([d.loss_fn_inputs["advantages"].values for d in batch])
    counted = advantages != 0
    assert whole.metrics["kl:mean"] == pytest.approx((-4.0 - lp[counted]).mean(), rel=1e-5)
    assert whole.metrics["ratio:max"] == pytest.approx(np.exp(lp + 4)[counted].max(), rel=1e-5)
    assert whole.metrics["num_loss_tokens:sum"] == counted.sum()
