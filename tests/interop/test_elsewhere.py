"""What is trained here runs elsewhere: PEFT, transformers, the cookbook's tools, vLLM, `openai`.

Everything goes through the server: trained over its API, downloaded from it, asked over HTTP.
"""

import base64
import json
import sys

import pytest
from fake_hub import fake_hub
from vllm_layout import DENSE, EMBEDDINGS, problems

import tinkex
from tinkex import types

pytestmark = [pytest.mark.interop, pytest.mark.filterwarnings("ignore")]

TOKENS = [5, 300, 301, 12, 700, 9, 1500, 42]
TOLERANCE = 1e-4


@pytest.fixture
def sprout(workplace):
    """The base model as a folder, as transformers reads it."""
    folder = workplace.folder / "sprout"
    folder.mkdir()
    for one in workplace.base.iterdir():
        (folder / one.name).symlink_to(one)
    return folder


@pytest.fixture
def trained(workplace):
    """Train an adapter some steps: its paths, and the server's own log-probabilities."""

    def train(**settings):
        data = [types.Datum(types.ModelInput.from_ints(TOKENS[:-1]), {"target_tokens": TOKENS[1:]})]
        with tinkex.ServiceClient(**workplace.login) as service:
            client = service.create_lora_training_client(
                "tinkex/sprout", rank=8, seed=1, **settings
            ).result()
            for _ in range(4):
                client.forward_backward(data, "cross_entropy").result()
                client.optim_step(types.AdamParams(learning_rate=5e-3)).result()
            output = client.forward(data, "cross_entropy").result().loss_fn_outputs[0]
            return {
                "logprobs": output["logprobs"].to_numpy().tolist(),
                "export": client.save_weights_external("export").result().path,
                "state": client.save_state("state").result().path,
            }

    return train


@pytest.fixture
def command(workplace):
    """Run a command of ours with `-f json`; give what it printed."""

    def run(*words, **environment):
        login = {f"TINKEX_{name.upper()}": value for name, value in workplace.login.items()}
        done = workplace.run(
            sys.executable, "-m", "tinkex", "-f", "json", *words, **login, **environment
        )
        return json.loads(done.stdout)

    return run


def logprobs(model):
    import torch

    with torch.no_grad():
        logits = model.float().eval()(torch.tensor([TOKENS[:-1]])).logits[0].log_softmax(-1)
    return logits[range(len(TOKENS) - 1), TOKENS[1:]].tolist()


def plain(folder):
    import torch
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


@pytest.mark.parametrize("kind", ["export", "state"])
def test_downloaded_adapter_gives_the_servers_logits_in_peft(
    trained, command, sprout, workplace, kind
):
    from peft import PeftModel

    made = trained()
    answer = command("checkpoint", "download", made[kind], "-o", ".")
    adapter = workplace.folder / answer["destination"]
    before = logprobs(plain(sprout))
    after = logprobs(PeftModel.from_pretrained(plain(sprout), adapter))
    assert after == pytest.approx(made["logprobs"], abs=TOLERANCE)
    assert sum(after) > sum(before) + 5  # it did learn


def test_merged_model_gives_the_servers_logits_in_transformers(trained, command, workplace):
    from transformers import AutoTokenizer

    made = trained()
    command("checkpoint", "merge", made["export"], "-o", "merged", "--dtype", "float32")
    merged = workplace.folder / "merged"
    assert logprobs(plain(merged)) == pytest.approx(made["logprobs"], abs=TOLERANCE)
    config = json.loads((merged / "config.json").read_text())
    assert config["architectures"] == ["Qwen3ForCausalLM"]  # what vLLM chooses its class by
    assert AutoTokenizer.from_pretrained(merged).encode("Hello")


def test_pushed_files_are_the_downloaded_ones(trained, command, workplace):
    made = trained()
    answer = command("checkpoint", "download", made["export"], "-o", ".")
    adapter = workplace.folder / answer["destination"]
    with fake_hub() as hub:
        there = {"HF_ENDPOINT": hub["url"], "HF_TOKEN": "hf_right", "HF_HUB_OFFLINE": "0"}
        command("checkpoint", "push-hf", made["export"], "-r", "me/adapter", **there)
        pushed = {name: base64.b64decode(text) for name, text in hub["files"].items()}
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        assert pushed[name] == (adapter / name).read_bytes()


def test_adapter_without_the_head_is_what_vllm_loads(trained, command, workplace):
    made = trained(train_unembed=False)
    answer = command("checkpoint", "download", made["export"], "-o", ".")
    adapter = workplace.folder / answer["destination"]
    assert problems(adapter) == []
    assert problems(adapter, max_lora_rank=1) == ["rank 8 is above 1"]


def test_adapter_with_the_head_needs_a_model_whose_head_vllm_adapts(trained, command, workplace):
    made = trained()
    answer = command("checkpoint", "download", made["export"], "-o", ".")
    adapter = workplace.folder / answer["destination"]
    assert problems(adapter) == ["lm_head takes no LoRA"]
    assert problems(adapter, DENSE | EMBEDDINGS) == []


def test_what_vllm_refuses_is_seen(trained, command, workplace):
    made = trained(train_unembed=False)
    answer = command("checkpoint", "download", made["export"], "-o", ".")
    path = workplace.folder / answer["destination"] / "adapter_config.json"
    config = json.loads(path.read_text())
    for change, words in (
        ({"modules_to_save": ["lm_head"]}, "modules_to_save is set"),
        ({"use_dora": True}, "use_dora is set"),
        ({"bias": "all"}, "bias is not none"),
        ({"rank_pattern": {"q_proj": 4}}, "rank_pattern is not read"),
    ):
        path.write_text(json.dumps({**config, **change}))
        assert problems(path.parent) == [words]
    path.write_text(json.dumps({**config, "r": 4}))
    assert "is not of rank 4" in problems(path.parent)[0]


@pytest.mark.soak
@pytest.mark.parametrize(("kind", "head"), [("export", True), ("state", False)])
def test_checkpoint_tools_of_the_cookbook_give_the_servers_logits(
    trained, sprout, workplace, python_of, kind, head
):
    """A training checkpoint comes through an age-encrypted export, which is deleted again.

    The tools merge no `lm_head` into a model of tied embeddings (docs/deviations.md).
    """
    made = trained(train_unembed=head)
    program = workplace.program("checkpoint_tools.py")
    what = "leave" if head else "merge"
    done = workplace.run(python_of("cookbook"), program, what, made[kind], sprout, *TOKENS)
    found = json.loads(done.stdout.splitlines()[-1])
    assert {"adapter_config.json", "adapter_model.safetensors"} <= set(found["files"])
    for name in found.keys() - {"files", "base"}:
        assert found[name] == pytest.approx(made["logprobs"], abs=TOLERANCE), name
    assert found["base"] != pytest.approx(made["logprobs"], abs=0.1)
    assert ("merged" in found) is not head


def test_openai_client_needs_its_two_variables_alone(trained, workplace, python_of):
    made = trained()
    with tinkex.ServiceClient(**workplace.login) as service:
        again = service.create_training_client_from_state(made["state"]).result()
        path = again.save_weights_for_sampler("served").result().path
    models = ("tinkex/sprout", "Qwen/Qwen3-4B-Instruct-2507", path)
    done = workplace.run(
        python_of("dev"), workplace.program("openai_client.py"), *models,
        OPENAI_BASE_URL=f"{workplace.login['base_url']}/v1",
        OPENAI_API_KEY=workplace.login["api_key"],
    )  # fmt: skip
    found = json.loads(done.stdout)
    assert set(models) <= set(found["models"])
    for answer in found["answers"].values():
        assert answer["whole"] == answer["streamed"]
        assert answer["tokens"] == answer["logprobs"] > 0
        assert answer["text"][0] == answer["text"][1]  # greedy
    base, alias, tuned = found["answers"].values()
    assert base == alias
    assert tuned != base
