"""The demo's two loops learn, for every seed, through the API of a real server."""

import io

import pytest
from rich.console import Console

import tinkex as tinker
from tinkex._clock import SystemClock
from tinkex.demo import reinforcement, supervised, translation
from tinkex.demo.reinforcement import ReinforcementSettings
from tinkex.demo.run import RANK, DemoSettings, run
from tinkex.demo.screen import Screen
from tinkex.demo.supervised import SupervisedSettings

pytestmark = pytest.mark.slow


@pytest.fixture
def client(login):
    with tinker.ServiceClient(**login) as service:
        yield service.create_lora_training_client("tinkex/sprout", rank=RANK, seed=0).result()


@pytest.mark.parametrize(
    ("settings", "gain"),
    [
        # half of the demo's steps, which have to teach twice as much as the whole of them
        ({"steps": 12, "held_out": 100}, 0.5),
        *(pytest.param({"seed": seed}, 0.25, marks=pytest.mark.soak) for seed in range(3)),
    ],
    ids=str,
)
def test_reward_raises_held_out_accuracy(client, settings, gain):
    result = reinforcement.train(
        client, client.get_tokenizer(), ReinforcementSettings(**settings), clock=SystemClock()
    )
    assert result.gain >= gain
    assert result.accuracy_before <= 0.4
    rewards = [step.mean_reward for step in result.steps]
    assert sum(rewards[-5:]) > sum(rewards[:5])


@pytest.mark.parametrize(
    ("steps", "lower", "least"), [(75, 8, 1), pytest.param(150, 10, 40, marks=pytest.mark.soak)]
)
def test_examples_lower_held_out_loss_and_change_what_is_said(client, steps, lower, least):
    tokenizer = client.get_tokenizer()
    _, held_out = translation.load()
    result = supervised.train(
        client, tokenizer, SupervisedSettings(steps=steps), clock=SystemClock()
    )
    assert result.held_out_loss_after < result.held_out_loss_before / lower
    sampler = client.save_weights_and_get_sampling_client().result()
    replies = supervised.translate(sampler, tokenizer, held_out)
    right = sum(r == e.reply for r, e in zip(replies, held_out, strict=True))
    assert right >= least


def test_demo_says_what_it_does_and_leaves_both_adapters(tmp_path):
    text = io.StringIO()
    run(
        DemoSettings(
            output=tmp_path,
            supervised=SupervisedSettings(steps=4, evaluate_every=2),
            reinforcement=ReinforcementSettings(steps=2, held_out=20),
        ),
        screen=Screen(Console(file=text, width=100)),
    )
    shown = text.getvalue()
    for words in ("Starting", "held-out loss", "tokens per second", "mean reward", "tinker://"):
        assert words in shown
    for name in ("french", "arithmetic"):
        files = {path.name for path in (tmp_path / "adapters" / name).iterdir()}
        assert {"adapter_config.json", "adapter_model.safetensors"} <= files
