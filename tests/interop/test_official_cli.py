"""Every command of the official command line, on a real server: it ends well and says the right.

The commands are those that the official package itself lists: one without a row here fails.
"""

import base64
import json
import re

import pytest
from fake_hub import fake_hub
from tinker.cli.__main__ import main_cli

import tinkex

pytestmark = [pytest.mark.interop, pytest.mark.filterwarnings("ignore")]

READS = {"run info", "run list", "checkpoint list", "checkpoint info", "model list", "version"}
CHANGES = {
    "checkpoint publish", "checkpoint unpublish", "checkpoint set-ttl", "checkpoint delete",
}  # fmt: skip
FILES = {"checkpoint download", "checkpoint push-hf", "session export-trace"}
ACCOUNT = {
    "auth login", "auth status", "auth whoami", "auth logout", "billing usage",
    "billing checkpoint-storage",
}  # fmt: skip


def commands(group=main_cli, prefix=""):
    """The names of all commands, as the official package has them."""
    found = set()
    for name in group.list_commands(None):
        command = group.get_command(None, name)
        inner = f"{prefix}{name}"
        found |= commands(command, f"{inner} ") if hasattr(command, "list_commands") else {inner}
    return found


@pytest.fixture
def stage(server):
    """A run with a checkpoint of each kind."""
    with tinkex.ServiceClient(**server.login) as service:
        client = service.create_lora_training_client("tinkex/sprout", rank=4).result()
        return {
            "state": client.save_state("state").result().path,
            "sampler": client.save_weights_for_sampler("sampler").result().path,
            "export": client.save_weights_external("export").result().path,
            "run": client.model_id,
            "session": client.model_id.partition(":")[0],
        }


@pytest.fixture
def tinker(workplace, official_cli):
    """Run a command of the official command line; give what it printed."""
    called = set()

    def run(*words, stdin=None, **environment):
        line = " ".join(word for word in words if word not in {"-f", "json"})
        called.update(name for name in commands() if line.startswith(name))
        return workplace.command(official_cli, *words, stdin=stdin, **environment).stdout

    run.called = called
    return run


def test_every_official_command_has_a_test_below():
    assert commands() == READS | CHANGES | FILES | ACCOUNT


def test_commands_that_read(tinker, stage):
    shown = json.loads(tinker("-f", "json", "run", "info", stage["run"]))
    assert stage["run"] in json.dumps(shown)
    assert stage["run"] in tinker("-f", "json", "run", "list", "--limit", "0")
    assert stage["run"] in tinker("run", "list", "-c", "id,model,lora")
    listed = json.loads(tinker("-f", "json", "checkpoint", "list", "--run-id", stage["run"]))
    paths = {one["tinker_path"] for one in listed["checkpoints"]}
    assert paths == {stage["state"], stage["sampler"], stage["export"]}
    assert json.loads(tinker("-f", "json", "checkpoint", "info", stage["state"]))["lora_rank"] == 4
    assert "tinkex/sprout" in tinker("model", "list", "sprout")
    assert tinker("version").startswith("tinker 0.38.0")
    assert tinker.called == READS


def test_commands_that_change_a_checkpoint(tinker, stage):
    def info():
        return json.loads(tinker("-f", "json", "checkpoint", "info", stage["state"]))

    assert tinker("checkpoint", "publish", stage["state"]) == ""
    assert info()["public"] is True
    assert tinker("checkpoint", "unpublish", stage["state"]) == ""
    assert tinker("checkpoint", "set-ttl", stage["state"], "--ttl", "7200") == ""
    shown = info()
    assert shown["public"] is False
    assert shown["expires_at"] is not None
    gone = json.loads(tinker("-f", "json", "checkpoint", "delete", "-y", stage["sampler"]))
    assert gone == {"deleted_count": 1, "failed": []}
    assert tinker.called - READS == CHANGES


def test_commands_that_move_files(tinker, stage, workplace):
    for name in ("state", "export"):
        shown = json.loads(tinker("-f", "json", "checkpoint", "download", stage[name], "-o", "."))
        folder = workplace.folder / shown["destination"]
        assert json.loads((folder / "adapter_config.json").read_text())["r"] == 4
    tinker("session", "export-trace", stage["session"], "-o", "trace.pftrace")
    assert (workplace.folder / "trace.pftrace").stat().st_size > 0
    with fake_hub() as hub:
        there = {"HF_ENDPOINT": hub["url"], "HF_TOKEN": "hf_right", "HF_HUB_OFFLINE": "0"}
        tinker("checkpoint", "push-hf", stage["export"], "-r", "me/adapter", **there)
        config = json.loads(base64.b64decode(hub["files"]["adapter_config.json"]))
    assert config["base_model_name_or_path"] == "tinkex/sprout"
    assert "adapter_model.safetensors" in hub["files"]
    assert tinker.called == FILES


def test_commands_about_keys_and_bills(tinker, stage, workplace):
    key = workplace.login["api_key"]
    alone = {"TINKER_API_KEY": ""}
    assert re.search("Stored API key", tinker("auth", "login", stdin=f"{key}\n", **alone))
    assert "Tinker accessible: yes" in tinker("auth", "status", **alone)
    assert json.loads(tinker("-f", "json", "auth", "whoami", **alone))["user_urn"]
    assert "The API key is still active" in tinker("auth", "logout", **alone)
    days = ("2026-01-01T00:00:00Z", "2026-01-08T00:00:00Z")
    assert "data" in json.loads(tinker("-f", "json", "billing", "usage", *days))
    stored = json.loads(tinker("-f", "json", "billing", "checkpoint-storage"))
    assert stored["data"]
    assert tinker.called == ACCOUNT
