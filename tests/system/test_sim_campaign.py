"""A slice of the campaign on simulated devices; `make sim-campaign` takes 200 steps."""

import os

from tests.system.sim_campaign import campaign

N_STEPS = int(os.environ.get("SIM_STEPS", "20"))
SEED = int(os.environ.get("SIM_SEED", "1"))


def test_random_loads_unloads_hang_ups_and_kills_leave_nothing_behind() -> None:
    assert campaign(N_STEPS, SEED)["answers"] > 0
