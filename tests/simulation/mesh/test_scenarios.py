"""Whole workers, used by people while everything goes wrong; then everything must be right.

A seed that fails is run again by itself:

    TINKEX_SIM_SEED=27 pytest tests/simulation/mesh/test_scenarios.py -k soak -m soak
"""

import gc

import pytest
from mesh_sim_program import begun
from mesh_sim_scenario import Scenario
from mesh_sim_seeds import seeds

from tinkex.testing.simulation import simulate

# A process that was killed in the middle of everything leaves frames that go on nowhere. When they
# are collected, those of a generator that somebody read cannot be closed in order.
pytestmark = pytest.mark.filterwarnings(
    "ignore:Exception ignored in. <coroutine object User:pytest.PytestUnraisableExceptionWarning"
)
SMALL = {"gateways": 2, "processors": 2, "clients": 1, "chaos_s": 8.0}


def lived(folder, seed, **shape):
    """Live one scenario; what was delivered, seen and done wrong, in one hash."""

    async def live():
        return await Scenario(seed, folder, **shape).run()

    try:
        return simulate(live(), seed=seed)
    finally:
        gc.collect()  # here, where it may complain


@pytest.mark.parametrize("seed", seeds(1, 2))
def test_nothing_is_lost_doubled_or_overspent_whatever_goes_wrong(tmp_path, seed):
    lived(tmp_path, seed, auths=1, **SMALL)


@pytest.mark.parametrize("seed", seeds(5, 1))
def test_three_auth_workers_live_a_seed_the_same_again_to_the_byte_and_the_moment(seed):
    """In other processes, with another order of every set, as whoever looks into a failure has."""
    running = [begun(seed, {"auths": 3, **SMALL}, hash_seed=one) for one in (0, 1)]
    told = [(one.communicate()[0], one.returncode) for one in running]
    assert told[0] == told[1]
    assert told[0][1] == 0, "what failed is on stderr"


@pytest.mark.soak
@pytest.mark.parametrize("seed", seeds(1000, 200))
def test_soak_of_many_scenarios(tmp_path, seed):
    lived(tmp_path, seed)
