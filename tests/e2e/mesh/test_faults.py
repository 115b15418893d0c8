"""Networks of three auth workers: data deleted and damaged, partition, a leader killed.

One process for each worker, each on a machine of its own; two of the three are enough to write. One
test, in steps, as starting a network takes most of the time: each step leaves it whole.
"""

import shutil
from random import Random

import openai
import pytest
from mesh_hosts import processes_apart
from mesh_logs import damage, same_heads
from mesh_processes import CLOCK, PASSPHRASE
from mesh_program import SCRIPTED, program
from mesh_users import User, counted, scripted_text, until

from tinkex.mesh.identity import PeerId
from tinkex.mesh.workers.founding import Founder

AUTHS = ("auth", "auth-2", "auth-3")
LEASE_S = 6.0


@pytest.fixture
def mesh(transport, tmp_path):
    with processes_apart(tmp_path, transport, seed=1) as processes:
        processes.settings["TINKEX_MESH_AUTH_LEASE_S"] = str(LEASE_S)
        processes.init_with("auth-2", "auth-3")
        scripted = program(tokens_per_s=200)
        processor = processes.start("processor-1", wait=False, program=scripted)
        processes.start_all("gateway-1", "client-1")
        processes.wait_ready(processor)
        yield processes


@pytest.fixture
def user(mesh):
    made = User(mesh.page("client-1", "url"), "ada@example.org")
    made.secret = made.key()["key"]
    yield made
    made.close()


def complete(user, seed, tokens=5):
    with user.openai(user.secret) as client:
        made = client.completions.create(
            model=SCRIPTED, prompt="Once", max_tokens=tokens, seed=seed
        )
    assert made.choices[0].text == scripted_text(SCRIPTED, "Once", max_tokens=tokens, seed=seed)


def completes(user, seed):
    try:
        complete(user, seed)
    except openai.APIStatusError:
        return False
    return True


def use(user, times=1):
    before = len(user.get("/mesh/usage")["entries"])
    for number in range(times):
        until(lambda number=number: completes(user, number), 30, "a completion")
    user.settled(before + times)


def everything(user):
    """What a user can see of an account."""
    return counted(user.get("/mesh/usage")), user.get("/mesh/keys")


def lose(mesh, name):
    """Delete all that a worker had, its key too; who it was."""
    peer = mesh.workers[name].ready["peer_id"]
    mesh.workers[name].kill()
    shutil.rmtree(mesh.folder / name)
    return PeerId.parse(peer)


def auth_worker_that_lost_everything(mesh, user):
    use(user)
    before = everything(user)
    lost = lose(mesh, "auth-2")
    Founder(mesh.folder, PASSPHRASE).shut_out(lost, now=CLOCK.now())
    mesh.start("auth-2", "--join", mesh.invite_auth("auth-2", "auth", "auth-3"))
    mesh.workers["auth"].stop()
    mesh.start("auth")  # it tells the others who is a member now
    _, seconds = same_heads(mesh, AUTHS)
    assert everything(user) == before
    mesh.workers["auth-3"].stop()
    until(lambda: user.request("POST", "/mesh/keys", {"name": "x"}).status_code == 200, 30, "a key")
    mesh.start("auth-3")
    return seconds


def gateway_that_lost_everything(mesh, user):
    use(user)
    before = everything(user)
    lose(mesh, "gateway-1")
    mesh.start("gateway-1")
    until(lambda: user.request("GET", "/mesh/keys").status_code == 200, 30, "an answer")
    assert everything(user) == before
    use(user)
    after = user.get("/mesh/usage")
    assert after["entries"][: len(before[0]["entries"])]
    assert len({entry["gateway"] for entry in after["entries"]}) > 1


def damaged_file_is_made_good(mesh, user, name, rng):
    use(user)
    before = everything(user)
    mesh.workers[name].stop()
    damage(mesh.folder / name / "feeds.db", rng)
    mesh.start(name)
    assert_all_is_back(mesh, user, before)
    assert "logs were damaged" in mesh.workers[name].log()
    assert list((mesh.folder / name).glob("feeds.db.damaged-*"))


def torn_log_is_made_good(mesh, user, name, rng):
    """What was written last is lost with the machine's power: no check of a file can see that."""
    use(user)
    before = everything(user)
    mesh.workers[name].kill()
    damage(mesh.folder / name / "feeds.db-wal", rng)
    mesh.start(name)
    assert_all_is_back(mesh, user, before)


def assert_all_is_back(mesh, user, before):
    until(lambda: user.request("GET", "/mesh/keys").status_code == 200, 30, "an answer")
    same_heads(mesh, AUTHS)
    until(lambda: everything(user) == before, 10, "what there was before")
    use(user)


def told(what, seconds):
    """Print what was measured; `pytest -s` shows it."""
    figures = ", ".join(f"{one:.1f} s" for one in seconds)
    print(f"{what}: {figures}")  # noqa: T201 - a proof says what it saw


def may_write(user):
    reply = user.request("POST", "/mesh/keys", {"name": "another"})
    assert reply.status_code in {200, 503}, reply.text
    return reply.status_code == 200


def minority_reads_and_writes_nothing(mesh, user, auth):
    """Cut a gateway off with one auth worker of three: what it may yet do, and what not."""
    use(user)
    before = everything(user)
    apart = ("gateway-1", "processor-1", "client-1", auth)
    complete(user, 1)
    cut_at = CLOCK.monotonic()
    mesh.hosts.part(apart, [name for name in mesh.workers if name not in apart])
    complete(user, 2)  # by the lease that is there
    assert user.get("/mesh/keys") == before[1]
    assert not may_write(user)
    until(lambda: not completes(user, 3), 3 * LEASE_S, "the end of the lease")
    assert CLOCK.monotonic() - cut_at < 3 * LEASE_S
    assert not may_write(user)
    assert user.get("/mesh/keys") == before[1]
    return before


def everything_goes_on(mesh, user, before):
    mesh.hosts.heal()
    _, seconds = until(lambda: may_write(user), 30, "a write")
    use(user)
    _, agreed_s = same_heads(mesh, AUTHS)
    entries = user.get("/mesh/usage")["entries"]
    assert (
        counted(user.get("/mesh/usage"))["entries"][: len(before[0]["entries"])]
        == (before[0]["entries"])
    )
    assert len({entry["request_id"] for entry in entries}) == len(entries)
    return seconds, agreed_s


@pytest.mark.parametrize("transport", ["tls"])
def test_network_outlives_a_lost_folder_and_a_partition(mesh, user):
    auth_worker_that_lost_everything(mesh, user)
    before = minority_reads_and_writes_nothing(mesh, user, "auth")
    everything_goes_on(mesh, user, before)


@pytest.mark.soak
@pytest.mark.parametrize("transport", ["tls", "iroh"])
def test_nothing_is_lost_whatever_happens_to_one_worker(mesh, user):
    auth_worker_that_lost_everything(mesh, user)
    gateway_that_lost_everything(mesh, user)
    for seed, name in enumerate(("auth-3", "gateway-1")):
        damaged_file_is_made_good(mesh, user, name, Random(seed))
        torn_log_is_made_good(mesh, user, name, Random(seed))


@pytest.mark.soak
@pytest.mark.parametrize("transport", ["tls", "iroh"])
def test_minority_fails_closed_whichever_auth_worker_is_in_it(mesh, user):
    for auth in AUTHS:
        before = minority_reads_and_writes_nothing(mesh, user, auth)
        told(f"{auth} cut off", everything_goes_on(mesh, user, before))


@pytest.mark.soak
@pytest.mark.parametrize("transport", ["tls", "iroh"])
def test_killed_auth_worker_holds_up_writing_for_seconds(mesh, user):
    for auth in AUTHS:
        mesh.workers[auth].kill()
        _, seconds = until(lambda: may_write(user), 20, "a write")
        told(f"{auth} killed: a write again after", (seconds,))
        use(user)
        mesh.start(auth)
        same_heads(mesh, AUTHS)
