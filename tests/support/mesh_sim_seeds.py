"""Which seeds a simulation is run with, and how one of them is run again."""

import os

ONLY = "TINKEX_SIM_SEED"


def seeds(first, number):
    """Give the seeds of a test; the one in the environment alone, if there is one."""
    only = os.environ.get(ONLY)
    return [int(only)] if only else range(first, first + number)
