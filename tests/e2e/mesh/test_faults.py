"""Networks of three auth workers: data deleted and damaged, partition, a leader killed.

One process for each worker, each on a machine of its own; two of the three are enough to write. One
test, in steps, as starting a network takes most of the time: each step leaves it whole.
"""

import shutil
from random import Random

import pytest
from mesh_hosts import processes_apart
from mesh_logs import damage, same_heads
from mesh_processes import CLOCK, PASSPHRASE
from mesh_program import program
from mesh_users import told, until
from mesh_witness import Witness

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
    made = Witness(mesh.page("client-1", "url"))
    yield made
    made.close()


def lose(mesh, name):
    """Delete all that a worker had, its key too; who it was."""
    peer = mesh.workers[name].ready["peer_id"]
    mesh.workers[name].kill()
    shutil.rmtree(mesh.folder / name)
    return PeerId.parse(peer)


def auth_worker_that_lost_everything(mesh, user):
    user.use()
    before = user.everything()
    lost = lose(mesh, "auth-2")
    Founder(mesh.folder, PASSPHRASE).let_go(lost, now=CLOCK.now())
    mesh.start("auth-2", "--join", mesh.invite_auth("auth-2", "auth", "auth-3"))
    _, seconds = same_heads(mesh, AUTHS)
    until(user.reads, what="an answer")
    assert user.everything() == before
    mesh.workers["auth-3"].stop()
    until(user.writes, what="a key")
    mesh.start("auth-3")
    return seconds


def gateway_that_lost_everything(mesh, user):
    user.use()
    before = user.everything()
    lose(mesh, "gateway-1")
    mesh.start("gateway-1")
    until(user.reads, what="an answer")
    assert user.everything() == before
    after = user.use()
    user.assert_still_there(before)
    assert len({entry["gateway"] for entry in after["entries"]}) > 1


def damaged_file_is_made_good(mesh, user, name, rng):
    user.use()
    before = user.everything()
    mesh.workers[name].stop()
    damage(mesh.folder / name / "feeds.db", rng)
    mesh.start(name)
    assert_all_is_back(mesh, user, before)
    assert "logs were damaged" in mesh.workers[name].log()
    assert list((mesh.folder / name).glob("feeds.db.damaged-*"))


def torn_log_is_made_good(mesh, user, name, rng):
    """What was written last is lost with the machine's power: no check of a file can see that."""
    user.use()
    before = user.everything()
    mesh.workers[name].kill()
    damage(mesh.folder / name / "feeds.db-wal", rng)
    mesh.start(name)
    assert_all_is_back(mesh, user, before)


def assert_all_is_back(mesh, user, before):
    until(user.reads, what="an answer")
    same_heads(mesh, AUTHS)
    until(lambda: user.everything() == before, what="what there was before")
    user.use()


def minority_reads_and_writes_nothing(mesh, user, auth):
    """Cut a gateway off with one auth worker of three: what it may yet do, and what not."""
    user.use()
    # Its lease begins with its first request, just before the cut. Who was cut off before may have
    # stood for election at its return.
    user.secret, _ = until(user.writes, what="a key")
    same_heads(mesh, AUTHS)
    before = user.everything()
    apart = ("gateway-1", "processor-1", "client-1", auth)
    until(lambda: user.completes(1), what="a lease")
    mesh.hosts.part(apart, [name for name in mesh.workers if name not in apart])
    user.complete(2)  # by the lease that is there
    until(user.reads, what="an answer of the auth worker that is left")
    assert user.keys() == before[1]
    assert not user.writes()
    until(lambda: not user.completes(3), what="the end of the lease")
    assert not user.writes()
    user.assert_still_there(before)  # of the keys it was told that nobody knows: look later
    return before


def everything_goes_on(mesh, user, before):
    mesh.hosts.heal()
    _, seconds = until(user.writes, what="a write")
    user.use()
    _, agreed_s = same_heads(mesh, AUTHS)
    user.assert_still_there(before)
    return seconds, agreed_s


@pytest.mark.timeout(900)  # half a minute, where nothing else runs
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
        user.use()
        before = user.everything()
        mesh.workers[auth].kill()
        _, seconds = until(user.writes, what="a write")
        told(f"{auth} killed: a write again after", (seconds,))
        user.use()
        user.assert_still_there(before)
        mesh.start(auth)
        same_heads(mesh, AUTHS)
