"""Which actors make the runtime."""

import sys

import msgspec


class ActorEntry(msgspec.Struct, frozen=True):
    """One actor: its name, which is its socket's, too, and what starts it."""

    name: str
    command: tuple[str, ...]
    takes_http: bool = False  # inherits the TCP listener under the name "http"
    is_front: bool = False  # clients are connected to it: stops before the others, restarts at a reload


def runtime_table() -> tuple[ActorEntry, ...]:
    """The actors of `runtime up`."""
    python = sys.executable
    return (
        ActorEntry("discovery", (python, "-m", "actors.discovery")),
        ActorEntry("scheduler", (python, "-m", "actors.scheduler")),
        ActorEntry("host", (python, "-m", "actors.runner.host")),
        ActorEntry("gateway", (python, "-m", "actors.gateway"), takes_http=True, is_front=True),
    )
