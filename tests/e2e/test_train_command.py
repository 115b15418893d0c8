"""`tinkex train` and `tinkex sample` against a real server."""

import json
import os
import signal
import subprocess
import sys
import threading

import pytest
from patience import PATIENCE_S

import tinkex as tinker
from tinkex._clock import SystemClock
from tinkex.errors import InputError
from tinkex.sft.run import RunSettings, run

COLOURS = ["red", "green", "blue"]


@pytest.fixture
def data(tmp_path):
    lines = [
        {
            "messages": [
                {"role": "user", "content": f"What is the colour of item {number}?"},
                {"role": "assistant", "content": COLOURS[number % 3]},
            ]
        }
        for number in range(24)
    ]
    path = tmp_path / "colours.jsonl"
    path.write_text("\n".join(json.dumps(line) for line in lines))
    return path


@pytest.fixture
def tinkex(login):
    environment = {
        **os.environ,
        "TINKEX_BASE_URL": login["base_url"],
        "TINKEX_API_KEY": login["api_key"],
    }

    def call(*arguments, start=False, **options):
        command = [sys.executable, "-m", "tinkex", *map(str, arguments)]
        if start:
            pipe = subprocess.PIPE
            return subprocess.Popen(command, env=environment, stdout=pipe, stderr=pipe, text=True)
        return subprocess.run(
            command,
            env=environment,
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
            check=False,
            **options,
        )

    return call


def settings(data, output, **changes):
    return RunSettings(
        data=data,
        output=output,
        base_model="tinkex/sprout",
        rank=4,
        epochs=2,
        batch_size=4,
        **changes,
    )


def weights_of(service, path):
    client = service.create_training_client_from_state(path).result()
    tokens = [300, 301, 302, 303]
    datum = tinker.Datum(tinker.ModelInput.from_ints(tokens[:-1]), {"target_tokens": tokens[1:]})
    output = client.forward([datum], "cross_entropy").result()
    return output.loss_fn_outputs[0]["logprobs"].tolist()


def test_train_learns_and_its_weights_can_be_sampled_from(tinkex, data, tmp_path):
    output = tmp_path / "run"
    done = tinkex("train", data, "--output", output, "--epochs", 4, "--eval-split", 0.1, "--json")
    assert done.returncode == 0, done.stderr
    events = [json.loads(line) for line in done.stdout.splitlines()]
    assert events[0]["event"] == "plan"
    losses = [event["loss"] for event in events if event["event"] == "step"]
    assert losses[-1] < losses[0] / 2
    kept = (output / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["loss"] for line in kept] == losses
    assert json.loads(kept[-1])["eval_loss"] is not None
    path = events[-1]["sampler_path"]
    asked = ["--json", "--temperature", 0, "What is the colour of item 7?"]
    reply = tinkex("sample", "--model-path", path, *asked)
    assert reply.returncode == 0, reply.stderr
    assert json.loads(reply.stdout)["replies"][0]["text"].strip() in COLOURS


def test_run_that_was_stopped_goes_on_to_the_weights_of_one_that_was_not(login, data, tmp_path):
    class StoppedError(Exception):
        pass

    def stop(step):
        if step.step == 8:
            raise StoppedError

    clock = SystemClock()
    whole_settings = settings(data, tmp_path / "whole", save_every=5, seed=3)
    cut_settings = settings(data, tmp_path / "cut", save_every=5, seed=3)
    with tinker.ServiceClient(**login) as service:
        whole = run(service, whole_settings, clock=clock)
        with pytest.raises(StoppedError):
            run(service, cut_settings, clock=clock, on_step=stop)
    with tinker.ServiceClient(**login) as service:
        resumed = run(service, cut_settings, clock=clock, resume=True)
        assert weights_of(service, resumed.state_path) == weights_of(service, whole.state_path)
    steps = [
        json.loads(line)["step"]
        for line in (tmp_path / "cut" / "metrics.jsonl").read_text().splitlines()
    ]
    assert steps == list(range(1, 13))


def test_folder_of_another_run_is_not_overwritten_and_other_settings_not_resumed(
    login, data, tmp_path
):
    output = tmp_path / "run"
    with tinker.ServiceClient(**login) as service:
        run(service, settings(data, output), clock=SystemClock())
        with pytest.raises(InputError, match="--resume"):
            run(service, settings(data, output), clock=SystemClock())
        with pytest.raises(InputError, match="seed was 0"):
            run(service, settings(data, output, seed=1), clock=SystemClock(), resume=True)
        with pytest.raises(InputError, match="no checkpoint to resume"):
            run(service, settings(data, tmp_path / "new"), clock=SystemClock(), resume=True)


def test_run_goes_on_with_the_examples_that_it_began_with_wherever_they_lie(login, data, tmp_path):
    output, mine, moved = (tmp_path / name for name in ("run", "data.jsonl", "moved.jsonl"))
    mine.write_bytes(data.read_bytes())
    clock = SystemClock()
    with tinker.ServiceClient(**login) as service:
        last = run(service, settings(mine, output), clock=clock)
        mine.rename(moved)
        assert run(service, settings(moved, output), clock=clock, resume=True) == last
        moved.write_text("\n".join(reversed(data.read_text().splitlines())))
        with pytest.raises(InputError, match="with other contents"):
            run(service, settings(moved, output), clock=clock, resume=True)
        began = json.loads((output / "settings.json").read_text())  # as earlier versions wrote it
        del began["data_sha256"]
        (output / "settings.json").write_text(json.dumps(began))
        with pytest.raises(InputError, match="data was "):
            run(service, settings(moved, output), clock=clock, resume=True)
        mine.write_bytes(data.read_bytes())
        assert run(service, settings(mine, output), clock=clock, resume=True) == last


def test_examples_that_come_through_a_pipe_are_told_apart_as_those_of_a_file(login, data, tmp_path):
    """As `tinkex train <(zcat data.jsonl.gz)` gives them: they can be read once."""
    pipe, output, lines = tmp_path / "pipe", tmp_path / "run", data.read_text().splitlines()
    os.mkfifo(pipe)

    def through_the_pipe(lines, **options):
        writer = threading.Thread(target=pipe.write_text, args=["\n".join(lines)])
        writer.start()
        try:
            return run(service, settings(pipe, output), clock=SystemClock(), **options)
        finally:
            writer.join()

    with tinker.ServiceClient(**login) as service:
        last = through_the_pipe(lines)
        assert through_the_pipe(lines, resume=True) == last
        with pytest.raises(InputError, match="with other contents"):
            through_the_pipe(lines[::-1], resume=True)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--model", "no/such"], "no base model 'no/such'"),
        (["--epochs", "0"], "epochs must be at least 1"),
        (["--eval-split", "1.5"], "evaluation split"),
        (["--name", "a/b"], "checkpoint name 'a/b-000000'"),
        (["--max-length", "-5"], "max_length must be at least 2"),
        (["--max-length", "0"], "max_length must be at least 2"),
    ],
)
def test_mistake_is_a_sentence_and_exit_code_one(tinkex, data, tmp_path, arguments, told):
    done = tinkex("train", data, "--output", tmp_path / "run", *arguments)
    assert done.returncode == 1
    assert done.stderr.startswith("Error: ")
    assert told in done.stderr
    assert "Traceback" not in done.stderr
    assert '"event": "step"' not in done.stdout
    assert not (tmp_path / "run").exists()


def test_interrupted_run_saves_what_it_has_done_and_goes_on_from_there(tinkex, data, tmp_path):
    output = tmp_path / "run"
    asked = ["train", data, "--output", output, "--epochs", 16, "--rank", 4, "--json"]
    with tinkex(*asked, start=True) as running:
        assert running.stdout is not None
        for line in running.stdout:
            if json.loads(line).get("step") == 2:
                running.send_signal(signal.SIGINT)
                break
        rest = [json.loads(line) for line in running.stdout]
        told = running.stderr.read()
        assert running.wait(PATIENCE_S) == 130, told
    assert "Traceback" not in told
    assert rest[-1]["event"] == "stopped"
    done = rest[-1]["step"]
    assert 2 <= done < 16 * 3
    again = tinkex(*asked, "--resume")
    assert again.returncode == 0, again.stderr
    kept = (output / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in kept] == list(range(1, 16 * 3 + 1))


def test_run_whose_last_lines_a_full_disk_cut_is_resumed(login, data, tmp_path):
    class StoppedError(Exception):
        pass

    def stop(step):
        if step.step == 6:
            raise StoppedError

    output = tmp_path / "run"
    asked = settings(data, output, save_every=2)
    with tinker.ServiceClient(**login) as service:
        with pytest.raises(StoppedError):
            run(service, asked, clock=SystemClock(), on_step=stop)
        for name in ("metrics.jsonl", "checkpoints.jsonl"):
            with (output / name).open("a") as file:
                file.write('{"step": 6, "st')
        last = run(service, asked, clock=SystemClock(), resume=True)
    for name in ("metrics.jsonl", "checkpoints.jsonl"):
        steps = [json.loads(line)["step"] for line in (output / name).read_text().splitlines()]
        assert steps == list(range(1, 13) if name == "metrics.jsonl" else range(2, 13, 2))
    assert last.step == 12


def test_examples_that_are_too_long_are_told(tinkex, data, tmp_path):
    reply = {"role": "assistant", "content": "red " * 60}
    with data.open("a") as file:
        file.write("\n" + json.dumps({"messages": [{"role": "user", "content": "All?"}, reply]}))
    asked = ["--output", tmp_path / "run", "--epochs", 1, "--max-length", 50]
    done = tinkex("train", data, *asked)
    assert done.returncode == 0, done.stderr
    assert "1 cut at their end" in done.stdout


def test_sample_reads_its_prompt_from_a_pipe(tinkex):
    done = tinkex("sample", "--raw", "--max-tokens", 3, "--temperature", 0, input="One two three")
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()


def test_global_format_is_that_of_every_command(tinkex, data, tmp_path):
    asked = ["--output", tmp_path / "run", "--epochs", 1, "--batch-size", 24, "--rank", 4]
    trained = tinkex("-f", "json", "train", data, *asked)
    assert trained.returncode == 0, trained.stderr
    events = [json.loads(line)["event"] for line in trained.stdout.splitlines()]
    assert events[0] == "plan"
    assert events[-1] == "end"
    sampled = tinkex("-f", "json", "sample", "--raw", "--max-tokens", 3, "One two three")
    assert sampled.returncode == 0, sampled.stderr
    assert len(json.loads(sampled.stdout)["replies"][0]["tokens"]) <= 3
