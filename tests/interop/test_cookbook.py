"""The tinker-cookbook's recipes, as they are: they run, the loss falls, the reward rises.

`MODEL` is an alias of `tinkex/sprout`; beside base URL and key nothing is told to the recipes but
what their own command lines take: sizes, rates, numbers of steps.
"""

import json
from itertools import pairwise

import pytest

pytestmark = [pytest.mark.interop, pytest.mark.soak]

MODEL = "model_name=Qwen/Qwen3-4B-Instruct-2507"
SUPERVISED = ("batch_size=16", "learning_rate=2e-3", "lora_rank=8")
SUMS = "train_on_what=last_assistant_message"


@pytest.fixture
def rows(workplace):
    """What a recipe logged: one row of metrics a step, or the checkpoints it saved."""

    def read(name, kind="metrics"):
        text = (workplace.folder / name / f"{kind}.jsonl").read_text()
        return [json.loads(line) for line in text.splitlines()]

    return read


@pytest.fixture
def curve(rows):
    """One metric of a recipe, step by step."""
    return lambda name, metric: [row[metric] for row in rows(name) if metric in row]


@pytest.fixture
def trained(cookbook, rows):
    """Train by examples until the policy answers in the form that the grader reads."""
    cookbook("recipes.sl_loop", MODEL, "log_path=sl", "max_steps=12", SUMS, *SUPERVISED)
    return rows("sl", "checkpoints")[-1]


def test_supervised_loop_lowers_the_loss_and_saves(trained, curve, rows):
    losses = curve("sl", "train_mean_nll")
    assert len(losses) == 12
    assert losses[-1] < losses[0] / 5
    assert trained["sampler_path"].startswith("tinker://")


def test_supervised_training_evaluates_saves_and_resumes(cookbook, curve, rows):
    recipe = (
        "recipes.chat_sl.train", MODEL, "log_path=chat", "dataset=no_robots", *SUPERVISED,
        "eval_every=2", "save_every=4", "rolling_save_every=1", "behavior_if_log_dir_exists=resume",
    )  # fmt: skip
    cookbook(*recipe, "max_steps=5")
    first = rows("chat", "checkpoints")
    assert {"000004", "final"} <= {row["name"] for row in first}
    cookbook(*recipe, "num_epochs=1", "max_steps=5")  # nothing is left to do
    assert [row["step"] for row in rows("chat")] == list(range(5))
    held_out = curve("chat", "test/nll")
    assert held_out[-1] < held_out[0] * 0.6


def test_interrupted_supervised_training_goes_on_from_its_checkpoint(cookbook, workplace, rows):
    recipe = ("recipes.sl_loop", MODEL, "log_path=sl", SUMS, *SUPERVISED, "save_every=3")
    cookbook(*recipe, "max_steps=8")
    whole = rows("sl")
    saved = workplace.folder / "sl" / "checkpoints.jsonl"
    lines = saved.read_text().splitlines(keepends=True)
    saved.write_text("".join(lines[:2]))  # as if it had been killed after its sixth step
    cookbook(*recipe, "max_steps=8")
    again = [row for row in rows("sl")[len(whole) :] if row["step"] >= 6]
    expected = [row["train_mean_nll"] for row in whole if row["step"] >= 6]
    assert [row["train_mean_nll"] for row in again] == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("loss", ["stable_reinforce", "importance_sampling", "cispo", "gspo"])
def test_reinforcement_loop_raises_the_reward(trained, cookbook, workplace, curve, loss):
    name = f"rl-{loss}"
    warm = {"name": "warm", "batch": 0, "state_path": trained["state_path"]}
    (workplace.folder / name).mkdir()
    (workplace.folder / name / "checkpoints.jsonl").write_text(json.dumps(warm) + "\n")
    cookbook(
        "recipes.rl_loop", MODEL, f"log_path={name}", f"loss_fn={loss}", "batch_size=8",
        "group_size=8", "learning_rate=5e-4", "max_steps=5", "max_tokens=12",
    )  # fmt: skip
    rewards = curve(name, "reward/total")
    assert len(rewards) == 5
    assert sum(rewards[-2:]) / 2 > rewards[0] + 0.15, rewards


REINFORCED = (
    "recipes.math_rl.train", MODEL, "env=arithmetic", "lora_rank=8", "group_size=8",
    "learning_rate=1e-3", "max_tokens=6", "eval_every=0",
)  # fmt: skip


def test_reinforcement_training_raises_the_reward_and_resumes(cookbook, curve, rows):
    recipe = (*REINFORCED, "log_path=rl", "groups_per_batch=12", "save_every=4")
    resume = "behavior_if_log_dir_exists=resume"
    cookbook(*recipe, "max_steps=6", resume)
    cookbook(*recipe, "max_steps=8", resume)
    rewards = curve("rl", "env/all/reward/total")
    assert len(rewards) == 8
    assert sum(rewards[-2:]) > sum(rewards[:2]) + 0.2, rewards
    assert "final" in {row["name"] for row in rows("rl", "checkpoints")}


@pytest.mark.parametrize(
    "settings",
    [
        ("compute_post_kl=True", "kl_penalty_coef=0.0", "num_substeps=2"),
        ("loss_fn=ppo", "max_steps_off_policy=1"),
        (
            "loss_fn=importance_sampling",
            "stream_minibatch_config.groups_per_batch=4",
            "stream_minibatch_config.num_minibatches=2",
        ),
    ],
    ids=["substeps", "off-policy", "stream"],
)
def test_ways_of_reinforcement_training_run(cookbook, rows, settings):
    cookbook(*REINFORCED, "log_path=rl", "groups_per_batch=4", "max_steps=2", *settings)
    assert rows("rl")
    assert rows("rl", "checkpoints")[-1]["sampler_path"].startswith("tinker://")


def test_reinforcement_training_from_a_checkpoint_evaluates(trained, cookbook, curve):
    cookbook(
        "recipes.math_rl.train", MODEL, "env=gsm8k", "log_path=rl", "groups_per_batch=4",
        "group_size=4", "learning_rate=5e-4", "max_tokens=12", "eval_every=1", "max_steps=2",
        "save_every=0", f"load_checkpoint_path={trained['state_path']}",
    )  # fmt: skip
    assert curve("rl", "test/env/all/format")[0] > 0.8


def test_preference_optimisation_lowers_its_loss(cookbook, curve):
    cookbook(
        "recipes.preference.dpo.train", MODEL, "dataset=hhh", "log_path=dpo", "batch_size=16",
        "learning_rate=1e-3", "max_steps=6",
    )  # fmt: skip
    losses = curve("dpo", "dpo_loss")
    assert losses[0] == pytest.approx(0.6931, abs=1e-3)  # the policy is its reference
    assert losses[-1] < 0.6
    assert all(later < earlier for earlier, later in pairwise(losses))
    assert curve("dpo", "accuracy")[-1] > 0.9


def test_scripts_for_checkpoints_and_records_run(cookbook, workplace, rows):
    """`get_access_token` is left out: it names the hosted service's address in its source."""
    cookbook("recipes.sl_loop", MODEL, "log_path=sl", "max_steps=2", SUMS, *SUPERVISED)
    saved = rows("sl", "checkpoints")[-1]["state_path"]
    copied = cookbook(
        "scripts.copy_checkpoint", "--source-path", saved, "--output-kind", "training"
    )
    assert "/weights/final" in copied.stdout
    assert saved not in copied.stdout.split("tinker://")[-1]
    cookbook("scripts.save_audit_log", "--once", "--backfill-days", "0", "--output-dir", "audit")
    (day,) = (workplace.folder / "audit").iterdir()
    events = [json.loads(line) for line in day.read_text().splitlines()]
    assert saved.removeprefix("tinker://").partition("/")[0] in json.dumps(events)
