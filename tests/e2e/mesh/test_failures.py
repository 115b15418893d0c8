"""B6, B7: workers that are killed and start again; nobody's token, key or usage is lost.

One process for each worker; in CI over iroh with a scripted model, in `make soak` over both with
our engine. One test, in steps: each step leaves the network as it found it, and starting one takes
most of the time.
"""

import httpx
import openai
import pytest
from mesh_processes import CLOCK, PROGRAM, mesh_processes
from mesh_program import SCRIPTED, program
from mesh_users import SPROUT, User, tokens_of

LONG = {"prompt": "Once upon a time", "max_tokens": 400, "seed": 11, "logprobs": 0}


@pytest.fixture(
    params=[
        ("iroh", SCRIPTED),
        pytest.param(("iroh", SPROUT), marks=pytest.mark.soak),
        pytest.param(("tls", SPROUT), marks=pytest.mark.soak),
    ],
    ids="-".join,
)
def mesh(request, tmp_path):
    transport, model = request.param
    with mesh_processes(tmp_path, transport) as processes:
        processes.model = model
        processes.processor = program(tokens_per_s=200) if model == SCRIPTED else PROGRAM
        processes.init()
        processes.start("auth")
        processors = [start_processor(processes, number, wait=False) for number in (1, 2)]
        processes.start_all("gateway", "client")
        for worker in processors:
            processes.wait_ready(worker)
        yield processes


def start_processor(mesh, number, **options):
    return mesh.start(f"processor-{number}", program=mesh.processor, **options)


@pytest.fixture
def account(mesh):
    user = User(mesh.workers["client"].ready["url"], "ada@example.org")
    user.http.headers["authorization"] = f"Bearer {user.token}"
    with user.openai(user.key()["key"]) as client:
        yield user, client
    user.close()


def busy_processor(mesh):
    """The processor that works on the only request there is."""
    with httpx.Client(timeout=20) as http:
        for name in ("processor-1", "processor-2"):
            worker = mesh.workers[name]
            if worker.alive:
                page = http.get(worker.ready["admin_url"] + "/status").json()
                if page["load"] > 0:
                    return worker
    raise AssertionError("nobody works")


def killed_processor_costs_a_pause_and_no_token(mesh, client):
    whole = [
        token
        for chunk in client.completions.create(model=mesh.model, **LONG, stream=True)
        for token in tokens_of(chunk)
    ]
    killed = None
    seen = []
    for chunk in client.completions.create(model=mesh.model, **LONG, stream=True):
        seen += tokens_of(chunk)
        if killed is None and len(seen) >= 20:
            killed = busy_processor(mesh)
            killed.kill()
    assert seen == whole
    assert killed is not None
    start_processor(mesh, killed.name[-1])


def counted(report):
    """The entries by request; whether the client has countersigned one yet is another matter."""
    return {entry["request_id"]: {**entry, "state": ""} for entry in report["entries"]}


def killed_keeper_of_books_comes_back_with_all_of_them(mesh, user, client, name):
    http = user.http
    made = client.completions.create(model=mesh.model, prompt="One", max_tokens=3)
    report, _ = user.entries_of(made)
    keys = http.get("/mesh/keys").json()
    mesh.workers[name].kill()
    mesh.start(name)
    deadline = CLOCK.monotonic() + 30
    while True:
        try:
            made = client.completions.create(model=mesh.model, prompt="One", max_tokens=3)
            break
        except openai.InternalServerError:  # the others find it again
            assert CLOCK.monotonic() < deadline
    while (reply := http.get("/mesh/keys")).status_code == 503:
        assert CLOCK.monotonic() < deadline
        CLOCK.sleep_sync(0.05)
    assert reply.json() == keys
    after, _ = user.entries_of(made)
    assert counted(after).items() >= counted(report).items()
    assert after["quota_tokens"] == report["quota_tokens"]


def no_processor_left_is_told_and_the_next_one_serves(mesh, client):
    for name in ("processor-1", "processor-2"):
        assert mesh.workers[name].stop() == 0
    with pytest.raises((openai.InternalServerError, openai.NotFoundError)) as caught:
        client.completions.create(model=mesh.model, prompt="One", max_tokens=3)
    assert "processor" in str(caught.value).lower()
    start_processor(mesh, 1)
    deadline = CLOCK.monotonic() + 30
    while True:
        try:
            client.completions.create(model=mesh.model, prompt="One", max_tokens=3)
            break
        except openai.APIStatusError:
            assert CLOCK.monotonic() < deadline


def test_workers_that_fail_cost_nothing_that_anybody_was_told(mesh, account):
    user, client = account
    killed_processor_costs_a_pause_and_no_token(mesh, client)
    for name in ("gateway", "auth"):
        killed_keeper_of_books_comes_back_with_all_of_them(mesh, user, client, name)
    no_processor_left_is_told_and_the_next_one_serves(mesh, client)
    for worker in reversed(mesh.workers.values()):
        if worker.alive:
            assert worker.stop() == 0, worker.log()
