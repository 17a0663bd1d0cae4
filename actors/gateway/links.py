"""Connections to other actors, shared by all who need one at the same time.

A connection is opened by its first user, and closed when nobody has used it for a while: greeting each other
takes as long as a short request.  One that breaks is forgotten at once: the next user opens a new one.
"""

from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import TypeVar

import trio

from actors.errors import PeerGone
from actors.link import Link, connect

T = TypeVar("T")

RETRY_S = 0.25
MAX_TRIES = 3
CONNECT_S = 5.0  # a Unix socket answers at once or not at all
LINGER_S = 10.0  # between requests


@dataclass(slots=True, eq=False)
class _Shared:
    n_users: int = 0
    left_s: float = 0.0  # when the last user left
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
        shared = self._shared.get(address)
        if shared is None or (shared.link is not None and shared.link.is_gone):
            shared = self._shared[address] = _Shared()
        shared.n_users += 1
        try:
            yield await self._open(address, shared)
        except PeerGone:
            self._forget(address, shared)
            raise
        finally:
            shared.n_users -= 1
            shared.left_s = trio.current_time()
            if shared.n_users == 0 and shared.link is None:
                self._forget(address, shared)  # whoever wanted it left before it was open
            if shared.n_users == 0 and self._shared.get(address) is not shared:
                shared.closing.set()

    async def insist(self, address: str, ask: Callable[[Link], Awaitable[T]], *, patience_s: float) -> T:
        """Ask the actor at `address`, waiting up to `patience_s` for it to come (back).

        Again if it dies of the question, or just then, up to MAX_TRIES times; then PeerGone.
        """
        for n_try in range(1, MAX_TRIES + 1):
            is_there = False
            try:
                async with AsyncExitStack() as stack:
                    link = await self._enter(stack, address, patience_s)
                    is_there = True
                    return await ask(link)
            except PeerGone:
                if not is_there or n_try == MAX_TRIES:
                    raise
        raise AssertionError("the last try returns or raises")

    async def _enter(self, stack: AsyncExitStack, address: str, patience_s: float) -> Link:
        give_up_s = trio.current_time() + patience_s
        while True:
            try:
                return await stack.enter_async_context(self.use(address))
            except PeerGone:
                if trio.current_time() >= give_up_s:
                    raise
            await trio.sleep(RETRY_S)

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
            while not shared.closing.is_set():
                with trio.move_on_after(LINGER_S):
                    await shared.closing.wait()
                if shared.n_users == 0 and trio.current_time() - shared.left_s >= LINGER_S:
                    self._forget(address, shared)
                    return

    def _forget(self, address: str, shared: _Shared) -> None:
        if self._shared.get(address) is shared:
            del self._shared[address]
