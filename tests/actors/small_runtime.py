"""A supervisor of three throwaway actors: "one", "two", and "front", which gets the HTTP socket."""

import sys

from actors.supervisor.keeper import HealthPolicy
from actors.supervisor.main import main
from actors.supervisor.policy import RestartPolicy
from actors.supervisor.table import ActorEntry

NAMES = ("one", "two", "front")


def entry(name: str) -> ActorEntry:
    """One row of the table."""
    command = (sys.executable, "-m", "tests.actors.echo_actor", name)
    return ActorEntry(name, command, takes_http=name == "front", is_front=name == "front")


if __name__ == "__main__":
    raise SystemExit(
        main(
            table=[entry(name) for name in NAMES],
            policy=RestartPolicy(first_delay_s=0.05, max_deaths=5),
            health=HealthPolicy(period_s=0.1, answer_s=2.0, start_s=20.0),
        )
    )
