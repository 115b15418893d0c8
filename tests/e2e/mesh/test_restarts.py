"""Every worker in turn is killed and started again, and started with a clock that is wrong.

One process for each worker. What a user was told before, it is told afterwards, and goes on from.
"""

import pytest
from mesh_processes import mesh_processes
from mesh_program import program
from mesh_users import told, until
from mesh_witness import Witness

from tinkex.mesh.config import parse_contact

WORKERS = ("bootstrap-1", "auth", "gateway-1", "processor-1", "client-1")
MINUTE_S = 60.0

pytestmark = [pytest.mark.soak, pytest.mark.parametrize("transport", ["tls", "iroh"])]


@pytest.fixture
def mesh(transport, tmp_path):
    with mesh_processes(tmp_path, transport) as processes:
        processes.init()
        processes.start("auth")
        others = [start(processes, name, wait=False) for name in WORKERS if name != "auth"]
        for worker in others:
            processes.wait_ready(worker)
        yield processes


@pytest.fixture
def user(mesh):
    made = Witness(mesh.workers["client-1"].ready["url"])
    yield made
    made.close()


def start(mesh, name, *, clock_s=0.0, **options):
    scripted = 200 if name == "processor-1" else 0
    return mesh.start(name, program=program(clock_s=clock_s, tokens_per_s=scripted), **options)


def goes_on(mesh, user, before):
    """Use all that the network offers; how many seconds that was not possible."""
    user.move(mesh.workers["client-1"].ready["url"])
    _, seconds = until(user.reads, what="an answer")
    user.use()
    user.log_in()
    _, more = until(user.writes, what="a key")
    user.assert_still_there(before)
    return seconds + more


def test_each_worker_that_is_killed_comes_back_to_what_it_had(mesh, user):
    user.use()
    for name in WORKERS:
        before = user.everything()
        mesh.workers[name].kill()
        start(mesh, name)
        told(f"{name} killed: all of it again after", [goes_on(mesh, user, before)])
    # who comes now hears of everybody from the bootstrap worker that was killed
    known = [parse_contact(mesh.workers["bootstrap-1"].ready["contact"])]
    mesh.start("client-2", "--join", mesh.invite("client", contacts=known))
    user.move(mesh.workers["client-2"].ready["url"])
    user.use()


@pytest.mark.parametrize("minutes", [-1, 1])
def test_worker_whose_clock_is_a_minute_wrong_serves_and_can_be_set_right(mesh, user, minutes):
    user.use()
    for name in WORKERS:
        for clock_s in (minutes * MINUTE_S, 0.0):
            before = user.everything()
            assert mesh.workers[name].stop() == 0, mesh.workers[name].log()
            start(mesh, name, clock_s=clock_s)
            seconds = goes_on(mesh, user, before)
            told(f"{name} at {clock_s:+g} s: all of it again after", [seconds])
