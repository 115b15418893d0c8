"""Whole workers, used by people while everything goes wrong; then everything must be right.

A seed that fails is run again by itself:

    TINKEX_SIM_SEED=27 pytest tests/simulation/mesh/test_scenarios.py -k soak -m soak
"""

import pytest
from mesh_sim_scenario import Scenario
from mesh_sim_seeds import seeds

from tinkex.testing.simulation import simulate

SMALL = {"gateways": 2, "processors": 2, "clients": 1, "chaos_s": 8.0}


def lived(folder, seed, **shape):
    """Live one scenario; what was delivered, seen and done wrong, in one hash."""
    folder.mkdir(exist_ok=True)

    async def live():
        return await Scenario(seed, folder, **shape).run()

    return simulate(live(), seed=seed)


@pytest.mark.parametrize("seed", seeds(1, 2))
def test_nothing_is_lost_doubled_or_overspent_whatever_goes_wrong(tmp_path, seed):
    lived(tmp_path, seed, auths=1, **SMALL)


@pytest.mark.parametrize("seed", seeds(5, 1))
def test_nor_with_three_auth_workers_of_which_one_leads(tmp_path, seed):
    lived(tmp_path, seed, auths=3, **SMALL)


@pytest.mark.parametrize("seed", seeds(3, 1))
def test_the_same_seed_does_the_same_again_to_the_byte_and_the_moment(tmp_path, seed):
    first = lived(tmp_path / "first", seed, auths=1, **SMALL)
    assert lived(tmp_path / "again", seed, auths=1, **SMALL) == first


@pytest.mark.soak
@pytest.mark.parametrize("seed", seeds(1000, 200))
def test_soak_of_many_scenarios(tmp_path, seed):
    lived(tmp_path, seed)
