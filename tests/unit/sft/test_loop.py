"""What the loop sends, in which order, and at which rate."""

from concurrent.futures import Future
from types import SimpleNamespace

import pytest

from tinkex.errors import ConfigurationError
from tinkex.sft.loop import (
    TrainSettings,
    batches,
    learning_rate_at,
    recommended_learning_rate,
    steps_in,
    train,
)
from tinkex.sft.rendering import shifted_datum
from tinkex.testing import VirtualClock

EXAMPLES = [shifted_datum([number, number + 1, number + 2], [0, 1, 1]) for number in range(10)]


class Client:
    """Notes the calls; every loss is one nat a token."""

    def __init__(self):
        self.calls = []

    def forward_backward(self, data, loss_fn):
        assert loss_fn == "cross_entropy"
        return self._note("forward_backward", data)

    def forward(self, data, loss_fn):
        assert loss_fn == "cross_entropy"
        return self._note("forward", data)

    def optim_step(self, params):
        return self._note("optim_step", params.learning_rate)

    def _note(self, name, value):
        self.calls.append((name, value))
        future = Future()
        tokens = 2.0 * len(value) if isinstance(value, list) else 0.0
        future.set_result(SimpleNamespace(metrics={"loss:sum": tokens}))
        return future


def run(client, settings, **options):
    steps, saves = [], []
    train(
        client,
        EXAMPLES,
        settings,
        clock=VirtualClock(),
        on_step=steps.append,
        on_save=lambda done: saves.append((done, len(client.calls))),
        **options,
    )
    return steps, saves


def test_every_example_is_seen_once_an_epoch_in_an_order_of_its_own():
    settings = TrainSettings(learning_rate=1.0, epochs=2, batch_size=4)
    found = list(batches(EXAMPLES, settings))
    assert [len(batch) for batch in found] == [4, 4, 2, 4, 4, 2]
    epochs = [[id(d) for b in found[:3] for d in b], [id(d) for b in found[3:] for d in b]]
    assert sorted(epochs[0]) == sorted(epochs[1]) == sorted(map(id, EXAMPLES))
    assert epochs[0] != epochs[1]
    assert steps_in(len(EXAMPLES), settings) == 6


def test_next_step_is_sent_before_the_last_is_awaited():
    client = Client()
    order = []
    client._note = lambda name, value, note=client._note: order.append(name) or note(name, value)
    settings = TrainSettings(learning_rate=1.0, batch_size=4)
    train(client, EXAMPLES, settings, clock=VirtualClock(), on_step=lambda s: order.append(s.step))
    step = ["forward_backward", "optim_step"]
    assert order == [*step, *step, 1, *step, 2, 3]


def test_losses_are_per_token_and_evaluation_comes_after_its_step():
    client = Client()
    settings = TrainSettings(learning_rate=1.0, batch_size=4, evaluate_every=2)
    steps, saves = run(client, settings, held_out=EXAMPLES[:3])
    assert [step.loss for step in steps] == [1.0, 1.0, 1.0]
    assert [step.eval_loss for step in steps] == [None, 1.0, 1.0]
    names = [name for name, _ in client.calls]
    assert names[:5] == ["forward_backward", "optim_step"] * 2 + ["forward"]
    assert [done for done, _ in saves] == [3]


def test_checkpoint_is_due_before_the_next_step_is_sent():
    client = Client()
    _, saves = run(client, TrainSettings(learning_rate=1.0, batch_size=4, save_every=1))
    assert saves == [(1, 2), (2, 4), (3, 6)]


def test_resumed_run_goes_on_with_the_batches_that_were_left():
    settings = TrainSettings(learning_rate=1.0, epochs=2, batch_size=4)
    whole, rest = Client(), Client()
    run(whole, settings)
    steps, _ = run(rest, settings, first_step=4)
    assert rest.calls == whole.calls[8:]
    assert [step.step for step in steps] == [5, 6]


@pytest.mark.parametrize(
    ("schedule", "rates"),
    [
        ("constant", [1.0, 1.0, 1.0, 1.0]),
        ("linear", [1.0, 0.75, 0.5, 0.25]),
        ("cosine", [1.0, 0.8535534, 0.5, 0.1464466]),
    ],
)
def test_rate_falls_as_the_schedule_says(schedule, rates):
    settings = TrainSettings(learning_rate=1.0, schedule=schedule)
    assert [learning_rate_at(step, 4, settings) for step in range(4)] == pytest.approx(rates)


def test_recommended_rate_falls_with_the_width():
    assert recommended_learning_rate(2000) == pytest.approx(5e-4)
    assert recommended_learning_rate(256) == pytest.approx(2.485e-3, rel=1e-3)
    assert recommended_learning_rate(8192) < recommended_learning_rate(2048)
    assert recommended_learning_rate(None) == 2e-4


@pytest.mark.parametrize(
    "wrong",
    [
        {"epochs": 0},
        {"batch_size": 0},
        {"learning_rate": 0.0},
        {"learning_rate": float("nan")},
        {"save_every": -1},
        {"schedule": "steep"},
    ],
)
def test_settings_that_cannot_work_are_refused(wrong):
    with pytest.raises(ConfigurationError, match=next(iter(wrong))):
        TrainSettings(**{"learning_rate": 1.0, **wrong})


def test_run_that_is_asked_to_stop_saves_what_it_has_done_and_sends_no_more():
    client, asked = Client(), []

    def stop():
        asked.append(len(client.calls))
        return len(asked) == 3

    settings = TrainSettings(learning_rate=1.0, epochs=2, batch_size=4)
    steps, saves = run(client, settings, stop=stop)
    assert [step.step for step in steps] == [1, 2, 3]
    assert saves == [(3, 6)]
    assert len(client.calls) == 6
