"""C4: an adapter that the training server made is served by processors that fetch it by content."""

import json

import httpx
import openai
import pytest
from mesh_users import until
from patience import PATIENCE_S

import tinkex
from tinkex.local import LocalServer

BASE = "tinkex/sprout"
PASSWORD = "a long enough password"
PROMPT = "What is 3 plus 4?"


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A training server, the path of an adapter that says one thing, and what it says there."""
    folder = tmp_path_factory.mktemp("train") / "data"
    with LocalServer(folder, start_timeout=PATIENCE_S) as server:
        with tinkex.ServiceClient(**server.login) as service:
            run = service.create_lora_training_client(base_model=BASE, rank=4, seed=1).result()
            tokenizer = run.get_tokenizer()
            tokens = tokenizer.encode(PROMPT) + tokenizer.encode(" grapefruit grapefruit")
            data = tinkex.Datum(
                model_input=tinkex.ModelInput.from_ints(tokens[:-1]),
                loss_fn_inputs={"target_tokens": tokens[1:], "weights": [1.0] * (len(tokens) - 1)},
            )
            for _ in range(12):
                run.forward_backward([data], "cross_entropy")
                run.optim_step(tinkex.AdamParams(learning_rate=5e-3))
            path = run.save_weights_for_sampler(name="fruit").result().path
            sampler = service.create_sampling_client(model_path=path).result()
            sampled = sampler.sample(
                tinkex.ModelInput.from_ints(tokenizer.encode(PROMPT)),
                1,
                tinkex.SamplingParams(max_tokens=6, temperature=0.0),
            ).result()
        yield server.login, path, tokenizer.decode(sampled.sequences[0].tokens)


@pytest.fixture(scope="module")
def account(mesh):
    url = mesh.workers["client"].ready["url"]
    with httpx.Client(base_url=url, timeout=60) as http:
        login = {"email": "grace@example.org", "password": PASSWORD}
        assert http.post("/mesh/register", json=login).status_code == 200
        token = http.post("/mesh/login", json=login).json()["access_token"]
        http.headers["authorization"] = f"Bearer {token}"
        yield (
            http,
            http.post(
                "/mesh/keys", json={"name": "test", "scopes": ["infer", "read", "publish"]}
            ).json()["key"],
        )


def said(url, key, model):
    with openai.OpenAI(base_url=f"{url}/v1", api_key=key, max_retries=0, timeout=60) as client:
        reply = client.completions.create(model=model, prompt=PROMPT, max_tokens=6, temperature=0)
        return reply.choices[0].text


def said_if_served(url, key, model):
    """What it says; None while nobody serves it."""
    try:
        return said(url, key, model)
    except openai.APIStatusError:
        return None


def private_adapter_is_its_owners_alone(mesh, http):
    url = mesh.workers["client"].ready["url"]
    other = {"email": "linus@example.org", "password": PASSWORD}
    assert http.post("/mesh/register", json=other).status_code == 200
    token = http.post("/mesh/login", json=other).json()["access_token"]
    for name in ("fruit", f"{BASE};fruit"):
        with pytest.raises(openai.NotFoundError):
            said(url, token, name)
    models = http.get("/v1/models", headers={"authorization": f"Bearer {token}"}).text
    assert "fruit" not in models
    assert "fruit" in http.get("/v1/models").text


def test_published_adapter_says_on_the_mesh_what_it_said_where_it_was_trained(
    mesh, account, trained
):
    http, key = account
    login, path, expected = trained
    url = mesh.workers["client"].ready["url"]
    published = json.loads(
        mesh.tinkex(
            "-f",
            "json",
            "mesh",
            "publish",
            path,
            "--url",
            url,
            "--data-dir",
            mesh.folder,
            tinkex_mesh_key=key,
            tinkex_base_url=login["base_url"],
            tinkex_api_key=login["api_key"],
        )
    )
    assert published["name"] == "fruit"
    plain = said(url, key, BASE)
    assert said(url, key, "fruit") == expected != plain
    assert said(url, key, f"{BASE};fruit") == expected
    private_adapter_is_its_owners_alone(mesh, http)
    # a processor with an empty folder gets it over the mesh, from the client or the first one
    mesh.workers["processor-1"].stop()
    mesh.start("processor-2")
    until(lambda: said_if_served(url, key, "fruit") == expected, what="the adapter elsewhere")
    fetched = mesh.folder / "processor-2" / "adapters" / published["content"]
    assert (fetched / "adapter_model.safetensors").is_file()
