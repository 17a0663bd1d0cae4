"""Connections to other actors, shared by all who need one at the same time.

A connection is opened by its first user and closed after its last, so that none is left to a runner that was
unloaded.  One that breaks is forgotten at once: the next user opens a new one.
"""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import trio

from actors.errors import PeerGone
from actors.link import Link, connect

CONNECT_S = 5.0  # a Unix socket answers at once or not at all


@dataclass(slots=True, eq=False)
class _Shared:
    n_users: int = 0
    link: Link | None = None
    opening: trio.Lock = field(default_factory=trio.Lock)
    closing: trio.Event = field(default_factory=trio.Event)


class Links:
    """The gateway's connections by address.  Their tasks live in `home_nursery`."""

    def __init__(self, home_nursery: trio.Nursery, name: str) -> None:
        self._home_nursery = home_nursery
        self._name = name
        self._shared: dict[str, _Shared] = {}

    @asynccontextmanager
    async def use(self, address: str) -> AsyncGenerator[Link, None]:
        """A link to the actor at `address`; PeerGone when nobody answers there."""
        shared = self._shared.setdefault(address, _Shared())
        shared.n_users += 1
        try:
            yield await self._open(address, shared)
        except PeerGone:
            self._forget(address, shared)
            raise
        finally:
            shared.n_users -= 1
            if shared.n_users == 0:
                shared.closing.set()
                self._forget(address, shared)

    async def _open(self, address: str, shared: _Shared) -> Link:
        async with shared.opening:
            if shared.link is None:
                with trio.move_on_after(CONNECT_S):
                    shared.link = await self._home_nursery.start(self._hold, address, shared)
            if shared.link is None:
                raise PeerGone(f"{address} did not answer within {CONNECT_S:.0f} s", where="gateway.links")
        return shared.link

    async def _hold(self, address: str, shared: _Shared, *, task_status: trio.TaskStatus[Link]) -> None:
        async with connect(address, name=self._name) as link:
            task_status.started(link)
            await shared.closing.wait()

    def _forget(self, address: str, shared: _Shared) -> None:
        if self._shared.get(address) is shared:
            del self._shared[address]
