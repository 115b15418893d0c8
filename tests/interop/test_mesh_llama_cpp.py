"""The real llama.cpp behind a processor: openai's client reaches it through a whole mesh.

It runs the shipped model, written as GGUF. Our engine runs the same model on another processor, so
that greedy text and log-probabilities can be compared.
"""

import subprocess
from pathlib import Path

import httpx
import openai
import pytest
from interop_environments import ENVIRONMENTS
from mesh_processes import START_S, mesh_processes

import tinkex.engine

# soak: its environment is the largest; `make interop` has it, `make test` another server's back end
pytestmark = [pytest.mark.interop, pytest.mark.soak]

SPROUT = Path(tinkex.engine.__file__).parent / "assets" / "sprout"
PROGRAM = Path(__file__).parent / "programs" / "llama_cpp_server.py"
OURS, THEIRS = "tinkex/sprout", "llama-sprout"
ASKED = ("What is 3 plus 4?", "Hello!", "What is 12 minus 5?")


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    """Its base URL, up to and with `/v1`."""
    folder = tmp_path_factory.mktemp("llama")
    python = ENVIRONMENTS["llama-cpp"].make()
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(
            [str(python), str(PROGRAM), str(SPROUT), str(folder / "sprout.gguf")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
        )
    try:
        yield f"{process.stdout.readline().strip()}/v1"
    finally:
        process.stdin.close()
        process.wait(START_S)
        process.stdout.close()


@pytest.fixture(scope="module")
def client(llama, tmp_path_factory):
    """openai's client of a mesh with both processors."""
    with mesh_processes(tmp_path_factory.mktemp("mesh"), "tls") as mesh:
        mesh.init()
        for name in ("auth", "gateway", "processor", "client"):
            mesh.start(name)
        mesh.start(
            "processor-llama",
            "--backend-url",
            llama,
            "--base-model",
            THEIRS,
            "--backend-context-length",
            "2048",
            role="processor",
        )
        url = mesh.workers["client"].ready["url"]
        login = {"email": "ada@example.org", "password": "correct horse battery"}
        with httpx.Client(base_url=f"{url}/mesh", timeout=60) as http:
            http.post("/register", json=login).raise_for_status()
            token = http.post("/login", json=login).json()["access_token"]
            bearer = {"authorization": f"Bearer {token}"}
            key = http.post("/keys", json={"name": "test"}, headers=bearer).json()["key"]
        with openai.OpenAI(base_url=f"{url}/v1", api_key=key, max_retries=0, timeout=60) as made:
            yield made


def ask(client, model, question, **options):
    messages = [{"role": "user", "content": question}]
    return client.chat.completions.create(
        model=model, messages=messages, max_tokens=20, temperature=0, **options
    )


def test_both_models_are_listed(client):
    assert {OURS, THEIRS} <= {model.id for model in client.models.list()}


@pytest.mark.parametrize("question", ASKED)
def test_greedy_text_and_counts_are_those_of_our_engine(client, question):
    ours, theirs = (ask(client, model, question) for model in (OURS, THEIRS))
    assert theirs.choices[0].message.content == ours.choices[0].message.content != ""
    assert theirs.choices[0].finish_reason == ours.choices[0].finish_reason
    assert theirs.usage.completion_tokens == ours.usage.completion_tokens
    assert theirs.usage.prompt_tokens == ours.usage.prompt_tokens


def test_stream_is_the_whole_reply_and_its_usage(client):
    whole = ask(client, THEIRS, ASKED[0])
    options = {"stream": True, "stream_options": {"include_usage": True}}
    chunks = list(ask(client, THEIRS, ASKED[0], **options))
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == whole.choices[0].message.content
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens


def test_plain_completion_stops_at_a_string(client):
    made = client.completions.create(
        model=THEIRS, prompt="One two three four", max_tokens=24, temperature=0, stop=["e"]
    )
    assert "e" not in made.choices[0].text
    assert made.choices[0].finish_reason in ("stop", "length")


def test_what_it_cannot_keep_to_is_refused_by_name(client):
    with pytest.raises(openai.BadRequestError) as caught:
        client.completions.create(model=THEIRS, prompt=[5, 300, 301], max_tokens=4)
    assert "token" in str(caught.value)
