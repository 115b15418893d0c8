"""Every command against a real server, beside the official CLI: the same JSON, the same codes."""

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import tinkex as tinker

RANK = 4


@pytest.fixture(scope="module")
def stage(server):
    """A run with checkpoints of each kind, and the environment of both command lines."""
    with tinker.ServiceClient(**server.login) as service:
        client = service.create_lora_training_client(
            "tinkex/sprout", rank=RANK, user_metadata={"colour": "blue"}
        ).result()
        training = client.save_state("first").result().path
        sampler = client.save_weights_for_sampler("second").result().path
        export = client.save_weights_external("third").result().path
    run = tinker.types.ParsedCheckpointTinkerPath.from_tinker_path(training).training_run_id
    return {
        "training": training,
        "sampler": sampler,
        "export": export,
        "run": run,
        "session": run.partition(":")[0],
    }


@pytest.fixture(scope="module")
def environment(server, tmp_path_factory):
    login = server.login
    return {
        **{name: value for name, value in os.environ.items() if not name.startswith("TINK")},
        "TINKEX_BASE_URL": login["base_url"],
        "TINKEX_API_KEY": login["api_key"],
        "TINKER_BASE_URL": login["base_url"],
        "TINKER_API_KEY": login["api_key"],
        "TINKER_TELEMETRY": "0",
        "HOME": str(tmp_path_factory.mktemp("home")),
        "COLUMNS": "200",
    }


@pytest.fixture(scope="module")
def call(environment):
    def run(module, *arguments, **options):
        return subprocess.run(
            [sys.executable, "-m", module, *map(str, arguments)],
            env={**environment, **options.pop("env", {})},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
            **options,
        )

    return run


@pytest.fixture(scope="module")
def ours(call):
    return lambda *arguments, **options: call("tinkex", *arguments, **options)


@pytest.fixture(scope="module")
def shown(ours):
    """Run a command with `-f json`; it must succeed, and print JSON alone."""

    def run(*arguments, code=0, **options):
        done = ours("-f", "json", *arguments, **options)
        assert done.returncode == code, done.stderr
        return json.loads(done.stdout)

    return run


@pytest.fixture
def fresh(server):
    """A checkpoint of its own for a test that changes it."""
    with tinker.ServiceClient(**server.login) as service:
        client = service.create_lora_training_client("tinkex/sprout", rank=RANK).result()
        yield client.save_state("mine").result().path


def both(call, *arguments):
    with ThreadPoolExecutor(2) as threads:
        return list(threads.map(lambda module: call(module, *arguments), ("tinkex", "tinker.cli")))


def test_reading_commands_print_the_official_json(call, stage):
    commands = [
        ("run", "info", stage["run"]),
        ("run", "list", "--limit", "0"),
        ("checkpoint", "list", "--run-id", stage["run"]),
        ("checkpoint", "list", "--limit", "0"),
        ("checkpoint", "info", stage["training"]),
        ("checkpoint", "info", stage["sampler"]),
        ("model", "list"),
    ]
    for command in commands:
        mine, theirs = both(call, "-f", "json", *command)
        assert theirs.returncode == mine.returncode == 0, (command, mine.stderr, theirs.stderr)
        assert equal_but_later(json.loads(mine.stdout), json.loads(theirs.stdout)), command


def equal_but_later(mine, theirs):
    """Equal, though other tests may have made more runs between the two calls."""
    for name in ("runs", "checkpoints"):
        if name in mine:
            ids = [json.dumps(item, sort_keys=True) for item in mine[name]]
            others = [json.dumps(item, sort_keys=True) for item in theirs[name]]
            return bool(ids) and len(set(ids) & set(others)) >= len(ids) - 3
    # our server tells hidden_size too; the official client does not read it
    for model in mine.get("models", ()):
        assert model.pop("hidden_size") > 0
    return mine == theirs


def test_changing_commands_are_silent_and_do_what_they_say(call, ours, shown, fresh):
    for command, public in (("publish", True), ("unpublish", False)):
        done = ours("checkpoint", command, fresh)
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
        assert shown("checkpoint", "info", fresh)["public"] is public
    assert ours("checkpoint", "set-ttl", fresh, "--ttl", "7200").returncode == 0
    assert shown("checkpoint", "info", fresh)["expires_at"] is not None
    assert call("tinker.cli", "checkpoint", "set-ttl", fresh, "--remove").returncode == 0
    assert shown("checkpoint", "info", fresh)["expires_at"] is None
    done = ours("checkpoint", "set-ttl", fresh)
    assert done.returncode == 1
    assert "--remove" in done.stderr


def test_delete_asks_first_and_a_no_ends_with_exit_code_1(ours, shown, fresh):
    done = ours("checkpoint", "delete", fresh, input="n\n")
    assert done.returncode == 1
    assert fresh in done.stderr
    assert done.stdout == ""
    assert shown("checkpoint", "info", fresh)["tinker_path"] == fresh
    gone = f"{fresh}x"
    answer = shown("checkpoint", "delete", "-y", fresh, gone, code=1)
    assert answer["deleted_count"] == 1
    assert [one["path"] for one in answer["failed"]] == [gone]
    assert ours("checkpoint", "info", fresh).returncode == 1


def test_delete_of_a_run_takes_what_the_filters_take(ours, shown, server):
    with tinker.ServiceClient(**server.login) as service:
        client = service.create_lora_training_client("tinkex/sprout", rank=RANK).result()
        kept = client.save_state("kept").result().path
        client.save_weights_for_sampler("gone").result()
    run = kept.removeprefix("tinker://").partition("/")[0]
    none = shown("checkpoint", "delete", "-y", "--run-id", run, "--before", "2020-01-01")
    assert none == {"deleted_count": 0, "failed": []}
    some = shown("checkpoint", "delete", "-y", "--run-id", run, "--type", "sampler_weights")
    assert some == {"deleted_count": 1, "failed": []}
    left = shown("checkpoint", "list", "--run-id", run)["checkpoints"]
    assert [one["tinker_path"] for one in left] == [kept]
    for wrong in (
        ("--run-id", run, "--type", "x"),
        ("--run-id", run, "--after", "soon"),
        (kept, "--type", "weights"),
        (),
    ):
        assert ours("checkpoint", "delete", "-y", *wrong).returncode == 1


@pytest.mark.parametrize("kind", ["training", "export"])
def test_download_gives_the_folder_that_peft_reads(shown, ours, stage, tmp_path, kind):
    peft = pytest.importorskip("peft")
    path = stage[kind]
    answer = shown("checkpoint", "download", path, "-o", tmp_path)
    folder = Path(answer["destination"])
    assert folder.parent == tmp_path
    config = peft.LoraConfig.from_pretrained(folder)
    assert config.r == RANK
    assert answer["file_size_bytes"] == sum(one.stat().st_size for one in folder.iterdir())
    again = ours("checkpoint", "download", path, "-o", tmp_path)
    assert again.returncode == 1
    assert "--force" in again.stderr
    assert ours("checkpoint", "download", path, "-o", tmp_path, "--force").returncode == 0


def test_official_download_gives_the_same_files(call, stage, tmp_path):
    ours = call("tinkex", "checkpoint", "download", stage["export"], "-o", tmp_path / "ours")
    theirs = call("tinker.cli", "checkpoint", "download", stage["export"], "-o", tmp_path / "its")
    assert (ours.returncode, theirs.returncode) == (0, 0), theirs.stderr
    (mine,), (its,) = (list((tmp_path / name).iterdir()) for name in ("ours", "its"))
    assert {one.name for one in mine.iterdir()} == {one.name for one in its.iterdir()}
    for one in mine.iterdir():
        assert one.read_bytes() == (its / one.name).read_bytes()


def test_tables_show_what_the_json_holds(ours, stage):
    table = ours("run", "list", "--limit", "0", "-c", "id,model,owner,lora,checkpoint").stdout
    assert stage["run"] in table
    assert "Rank 4" in table
    assert "weights/first" in table
    table = ours("run", "info", stage["run"]).stdout
    assert "colour" in table
    assert "blue" in table
    table = ours("checkpoint", "list", "--run-id", stage["run"]).stdout
    assert stage["export"] in table
    assert "3 checkpoints" in table
    assert "tinkex/sprout" in ours("model", "list", "SPROUT").stdout
    table = ours("session", "info", stage["session"]).stdout
    assert stage["run"] in table
    assert stage["session"] in ours("session", "list", "--limit", "1000").stdout


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("nosuch",), 2, "No such command"),
        (("run", "list", "--columns", "nope"), 2, "nope"),
        (("run", "list", "--limit", "-1"), 2, "limit"),
        (("-f", "xml", "run", "list"), 2, "json"),
        (("checkpoint", "info", "/x"), 1, "tinker://"),
        (("checkpoint", "info", "tinker://none:train:0/weights/x"), 1, "none:train:0"),
        (("run", "info", "none"), 1, "none"),
        (("session", "info", "none"), 1, "none"),
        (("model", "list", "nonsense"), 1, "nonsense"),
        (("checkpoint", "download", "tinker://r:train:0/sampler_weights/x"), 1, "sampler"),
        (("--base-url", "http://127.0.0.1:9", "run", "list"), 1, "127.0.0.1:9"),
    ],
)
def test_wrong_calls_end_with_the_documented_code_and_a_sentence(ours, arguments, code, words):
    done = ours(*arguments)
    assert done.returncode == code, done
    assert words in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


def test_login_stores_the_key_and_logout_forgets_it(environment, ours, tmp_path):
    key = environment["TINKEX_API_KEY"]
    alone = {"TINKEX_API_KEY": "", "TINKER_API_KEY": "", "HOME": str(tmp_path)}
    assert ours("auth", "status", env=alone).returncode == 1
    wrong = ours("auth", "login", env=alone, input="tml-wrong-key-0123456789\n")
    assert wrong.returncode == 1
    assert "tml-wrong" not in wrong.stderr + wrong.stdout
    assert ours("auth", "login", env=alone, input="not a key\n").returncode == 1
    done = ours("auth", "login", env=alone, input=f"{key}\n")
    assert done.returncode == 0, done.stderr
    assert key not in done.stdout
    assert ours("auth", "login", env=alone, input=f"{key}\n").returncode == 1
    status = ours("-f", "json", "auth", "status", env=alone)
    assert json.loads(status.stdout) == {
        "credentials_available": True,
        "tinker_accessible": True,
    }
    assert ours("auth", "logout", env=alone).returncode == 0
    assert ours("auth", "logout", env=alone).returncode == 1


def test_version_and_help(ours):
    assert ours("version").stdout == f"tinkex {tinker.__version__}\n"
    for group in ("", "auth", "billing", "checkpoint", "model", "run", "session"):
        done = ours(*filter(None, (group,)), "-h")
        assert done.returncode == 0
        assert "Usage" in done.stdout
    assert "Exit codes" in ours("--help").stdout
