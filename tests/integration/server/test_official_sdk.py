"""The official SDK, unmodified, against the server on a loopback port."""

import asyncio
import gc
import importlib
import threading

import numpy as np
import pytest
from patience import PATIENCE_S
from server_support import BASE_MODEL, KEY, VOCAB

from tinkex.server.config import Limits
from tinkex.server.futures import Operation

pytestmark = [
    pytest.mark.interop,
    # What the SDK leaves open or deprecates is its own affair.
    pytest.mark.filterwarnings("ignore"),
]


@pytest.fixture
def tinker(monkeypatch):
    monkeypatch.setenv("TINKER_TELEMETRY", "0")
    yield importlib.import_module("tinker")
    # The sockets that the SDK leaves open go now, not in the middle of somebody else's test.
    gc.collect()


@pytest.fixture
def service(tinker, server):
    with tinker.ServiceClient(**server.login) as client:
        yield client


def datum(tinker, tokens, **inputs):
    inputs = {
        "target_tokens": np.asarray(tokens[1:]),
        "weights": np.ones(len(tokens) - 1, np.float32),
        **inputs,
    }
    return tinker.Datum(
        model_input=tinker.ModelInput.from_ints(list(tokens[:-1])), loss_fn_inputs=inputs
    )


def batch(tinker, count=4):
    return [datum(tinker, [5 + i, 6 + i, 7 + i, 8 + i, 9 + i]) for i in range(count)]


def create(service, **kwargs):
    kwargs = {"base_model": BASE_MODEL, "rank": 8, "seed": 7, **kwargs}
    return service.create_lora_training_client(**kwargs).result()


def train(tinker, client, *, steps, learning_rate):
    losses = []
    for _ in range(steps):
        forward_backward = client.forward_backward(batch(tinker), "cross_entropy")
        step = client.optim_step(tinker.AdamParams(learning_rate=learning_rate))
        losses.append(forward_backward.result().metrics["loss:sum"])
        assert step.result().metrics["learning_rate"] == learning_rate
    return losses


def test_twenty_steps_learn_and_without_a_learning_rate_do_not(tinker, service):
    losses = train(tinker, create(service), steps=20, learning_rate=1e-2)
    assert losses[-1] < losses[0] / 2
    control = train(tinker, create(service), steps=20, learning_rate=0.0)
    assert control[-1] == control[0] == losses[0]


def test_save_load_and_sample_again(tinker, service):
    client = create(service)
    train(tinker, client, steps=3, learning_rate=1e-2)
    state = client.save_state("three").result().path
    following = train(tinker, client, steps=3, learning_rate=1e-2)
    resumed = service.create_training_client_from_state_with_optimizer(state).result()
    assert train(tinker, resumed, steps=3, learning_rate=1e-2) == following
    weights = service.create_training_client_from_state(state).result()
    assert train(tinker, weights, steps=1, learning_rate=0.0) == following[:1]
    client.load_state_with_optimizer(state).result()
    assert train(tinker, client, steps=3, learning_rate=1e-2) == following


def test_samplers_of_every_kind_agree(tinker, service):
    client = create(service)
    train(tinker, client, steps=3, learning_rate=1e-2)
    path = client.save_weights_for_sampler("named").result().path
    samplers = [
        service.create_sampling_client(model_path=path).result(),
        client.save_weights_and_get_sampling_client().result(),
        client.save_weights_and_get_sampling_client(kind="inflight").result(),
        client.create_sampling_client(path).result(),
    ]
    prompt = tinker.ModelInput.from_ints([5, 6, 7])
    params = tinker.SamplingParams(max_tokens=6, seed=3, stop=[])
    answers = [sampler.sample(prompt, 2, params).result() for sampler in samplers]
    rows = [[list(sequence.tokens) for sequence in answer.sequences] for answer in answers]
    assert all(row == rows[0] for row in rows)
    assert {sampler.get_base_model() for sampler in samplers} == {BASE_MODEL}
    logprobs = samplers[0].compute_logprobs(prompt).result()
    assert logprobs[0] is None
    output = client.forward([datum(tinker, [5, 6, 7])], "cross_entropy").result()
    assert logprobs[1:] == pytest.approx(output.loss_fn_outputs[0]["logprobs"].data, abs=1e-4)


def test_base_model_is_sampled_without_training(tinker, service):
    sampler = service.create_sampling_client(base_model="Qwen/Qwen3-8B").result()
    params = tinker.SamplingParams(max_tokens=3, stop=[])
    answer = sampler.sample(tinker.ModelInput.from_ints([5]), 3, params).result()
    assert [len(sequence.tokens) for sequence in answer.sequences] == [3, 3, 3]


def test_hundred_samples_at_once_come_back(tinker, service):
    sampler = service.create_sampling_client(base_model=BASE_MODEL).result()
    params = tinker.SamplingParams(max_tokens=4, stop=[])
    futures = [sampler.sample(tinker.ModelInput.from_ints([5, i]), 1, params) for i in range(100)]
    assert {len(future.result().sequences) for future in futures} == {1}


POLICY_LOSSES = {
    "importance_sampling": {},
    "ppo": {"clip_low_threshold": 0.5},
    "cispo": {},
    "dro": {"beta": 0.1},
    "gspo": {"clip_low_threshold": 0.5, "clip_high_threshold": 2.0},
}


def test_metrics_of_every_policy_loss_survive_the_sdks_folding_of_chunks(tinker, make_server):
    ones = np.ones(4, np.float32)
    more = {"logprobs": -5 * ones, "advantages": np.array([1, -1, 2, 0.5], np.float32)}
    limits = Limits(max_rank=64, fwdbwd_max_chunk_len=2)
    with make_server(limits=limits) as server, tinker.ServiceClient(**server.login) as service:
        client = create(service)
        for name, config in POLICY_LOSSES.items():
            inputs = {**more, "sequence_ratio_mask": ones} if name == "gspo" else more
            data = [datum(tinker, [5 + i, 6, 7, 8, 9], **inputs) for i in range(5)]
            metrics = client.forward_backward(data, name, config).result().metrics
            single = [client.forward([one], name, config).result().metrics for one in data]
            assert all(one.keys() == metrics.keys() for one in single)
            assert {"ratio:mean", "ratio:max", "kl:mean", "entropy:mean"} <= metrics.keys()
            folds = {"sum": sum, "min": min, "max": max, "mean": lambda xs: sum(xs) / len(xs)}
            for key, value in metrics.items():
                expected = folds[key.split(":")[1]]([one[key] for one in single])
                assert value == pytest.approx(expected, rel=1e-4, abs=1e-5), key
            assert metrics["num_tokens:sum"] == metrics["num_loss_tokens:sum"] == 20


@pytest.mark.parametrize("compress", [False, True])
def test_several_chunks_equal_one(tinker, make_server, compress, monkeypatch):
    from tinkex.server.routes import meta

    if compress:
        original = meta.ClientConfigResponse
        monkeypatch.setattr(
            meta,
            "ClientConfigResponse",
            lambda **fields: original(**fields, proto_compress_fwdbwd=True),
        )
    limits = Limits(max_rank=64, fwdbwd_max_chunk_len=2)
    with make_server(limits=limits) as server, tinker.ServiceClient(**server.login) as service:
        client = create(service)
        many = client.forward_backward(batch(tinker, 7), "cross_entropy").result()
        assert len(many.loss_fn_outputs) == 7
        step = client.optim_step(tinker.AdamParams(learning_rate=0.0)).result()
        single = [client.forward([d], "cross_entropy").result() for d in batch(tinker, 7)]
        losses = [output.metrics["loss:sum"] for output in single]
        assert many.metrics["loss:sum"] == pytest.approx(sum(losses), rel=1e-5)
        assert step.metrics["grad_norm"] > 0


def test_bad_datum_in_one_of_several_chunks_fails_the_call_and_the_next_one_works(
    tinker, make_server
):
    limits = Limits(max_rank=64, fwdbwd_max_chunk_len=2)
    with make_server(limits=limits) as server, tinker.ServiceClient(**server.login) as service:
        client = create(service)
        data = batch(tinker, 7)
        data[4] = datum(tinker, [5, VOCAB + 5, 6])
        bad = client.forward_backward(data, "cross_entropy")
        with pytest.raises(tinker.RequestFailedError, match="vocab") as caught:
            bad.result(timeout=PATIENCE_S)
        assert "user" in str(caught.value.category).lower()
        good = client.forward(batch(tinker, 7), "cross_entropy").result(timeout=PATIENCE_S)
        assert len(good.loss_fn_outputs) == 7


def test_lost_chunk_fails_the_call_after_the_gap_time_and_the_next_one_works(
    tinker, make_server, monkeypatch
):
    """The second chunk of three never reaches its run, though the client was told it did."""
    from tinkex.server.runs.training import Training

    limits = Limits(max_rank=64, fwdbwd_max_chunk_len=2)
    lost = []
    original = Training.forward_backward

    def lose_one(self, owner, call):
        if call.seq_id == 2 and not lost:
            lost.append(call)
            return self._s.futures.open(owner, Operation.FORWARD_BACKWARD)
        return original(self, owner, call)

    monkeypatch.setattr(Training, "forward_backward", lose_one)
    with (
        make_server(limits=limits, sequence_gap_timeout_s=0.5) as server,
        tinker.ServiceClient(**server.login) as service,
    ):
        client = create(service)
        call = client.forward_backward(batch(tinker, 6), "cross_entropy")
        step = client.optim_step(tinker.AdamParams())
        with pytest.raises(tinker.RequestFailedError, match="seq_id 2") as caught:
            step.result(timeout=PATIENCE_S)
        assert "server" in str(caught.value.category).lower()
        with pytest.raises((tinker.RequestFailedError, TimeoutError)):
            call.result(timeout=0.1)
        assert lost
        good = client.forward(batch(tinker, 6), "cross_entropy").result(timeout=PATIENCE_S)
        assert len(good.loss_fn_outputs) == 6


def test_custom_loss_runs_through_the_logprobs(tinker, service):
    torch = pytest.importorskip("torch")
    client = create(service)

    def loss(_data, logprobs):
        total = torch.stack([row.sum() for row in logprobs]).sum()
        return -total, {"mine": float(total)}

    result = client.forward_backward_custom(batch(tinker), loss).result()
    plain = client.forward(batch(tinker), "cross_entropy").result()
    assert result.metrics["loss:sum"] == pytest.approx(plain.metrics["loss:sum"], rel=1e-5)
    step = client.optim_step(tinker.AdamParams(learning_rate=0.0)).result()
    assert step.metrics["grad_norm"] > 0


def test_importance_sampling_takes_what_was_sampled(tinker, service):
    client = create(service)
    sampler = client.save_weights_and_get_sampling_client().result()
    params = tinker.SamplingParams(max_tokens=4, seed=1, stop=[])
    answer = sampler.sample(tinker.ModelInput.from_ints([5, 6]), 1, params).result()
    (sequence,) = answer.sequences
    tokens = [5, 6, *sequence.tokens]
    example = tinker.Datum(
        model_input=tinker.ModelInput.from_ints(tokens[:-1]),
        loss_fn_inputs={
            "target_tokens": np.asarray(tokens[1:]),
            "logprobs": np.asarray([0.0, *sequence.logprobs], np.float32),
            "advantages": np.asarray([0.0, 1.0, 1.0, 1.0, 1.0], np.float32),
        },
    )
    output = client.forward_backward([example], "importance_sampling").result()
    assert output.metrics["loss:sum"] == pytest.approx(-4.0, abs=1e-3)


@pytest.mark.parametrize("rank", [0, 65])
def test_rank_out_of_bounds_raises_at_once(tinker, service, rank):
    with pytest.raises(tinker.UnprocessableEntityError, match="rank"):
        create(service, rank=rank)


def test_unknown_base_model_raises_at_once(tinker, service):
    with pytest.raises(tinker.BadRequestError, match=BASE_MODEL):
        create(service, base_model="no/such")


def test_wrong_key_raises_at_once(tinker, server):
    with (
        pytest.raises(tinker.AuthenticationError, match="key"),
        tinker.ServiceClient(base_url=server.url, api_key="tml-wrong") as service,
    ):
        create(service)


def test_records_are_read_and_checkpoints_deleted(tinker, service):
    client = create(service)
    path = client.save_state("one", user_metadata={"a": "b"}).result().path
    rest = service.create_rest_client()
    (run,) = rest.list_training_runs().result().training_runs
    assert run.training_run_id == client.model_id
    assert run.last_checkpoint.tinker_path == path
    assert rest.get_weights_info_by_tinker_path(path).result().lora_rank == 8
    assert len(rest.list_user_checkpoints().result().checkpoints) == 1
    rest.delete_checkpoint_from_tinker_path(path).result()
    assert rest.list_checkpoints(client.model_id).result().checkpoints == []
    models = rest.get_server_capabilities().result().supported_models
    assert [model.model_name for model in models] == [BASE_MODEL, "Qwen/Qwen3-8B"]


def test_two_clients_train_and_sample_side_by_side(tinker, server):
    losses, errors = {}, []

    def work(name):
        try:
            with tinker.ServiceClient(**server.login) as service:
                client = create(service)
                losses[name] = train(tinker, client, steps=8, learning_rate=1e-2)
        except Exception as error:  # noqa: BLE001 - told to the test
            errors.append(error)

    threads = [threading.Thread(target=work, args=(name,)) for name in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert losses[0] == losses[1] == losses[2]


def test_closed_client_leaves_nothing_in_the_server(tinker, server):
    with tinker.ServiceClient(**server.login) as service:
        client = create(service)
        client.save_weights_and_get_sampling_client().result()
        assert len(server.services.runs) == 1
    (base,) = server.services.bases

    async def quiet():
        await base.jobs.call("test: after everything else", lambda _engine: None)

    asyncio.run_coroutine_threadsafe(quiet(), server.loop).result(10)
    assert len(server.services.runs) == 0
    assert base.jobs._engine._pool.adapter_ids == frozenset()
    assert base.jobs._engine._pool.sampler_ids == frozenset()


def test_key_is_in_no_reply_and_no_log(tinker, service, capfd):
    create(service)
    captured = capfd.readouterr()
    assert KEY not in captured.out + captured.err
