"""Leases on loaded models, kept through restarts of the scheduler.

A lease lives as long as its stream to the scheduler.  When the scheduler dies the runner goes on, and so does
what it generates; the lease is taken anew as soon as there is a scheduler again.
"""

import logging
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import TypeVar

import trio

from actors.errors import RemoteProtocolError, RuntimeFault
from actors.gateway.links import Links
from actors.link import ItemStream, Link
from actors.protocol import Acquire, Lease, ListLoaded, Loaded, LoadProgress, Queued, Unload

log = logging.getLogger(__name__)

SCHEDULER_S = 15.0  # the supervisor brings a dead scheduler back within 5 s
RENEW_S = 1.0  # runners register anew first, so that the scheduler knows what it leases
T = TypeVar("T")
OnWait = Callable[[Queued | LoadProgress], None]


def unheard(news: Queued | LoadProgress) -> None:
    """For those whom nothing can be told while they wait."""
    log.debug("waiting: %s", news)


class Leases:
    """The gateway's side of scheduling.  The tasks that hold leases live in `home_nursery`."""

    def __init__(self, home_nursery: trio.Nursery, links: Links, scheduler_address: str) -> None:
        self._home_nursery = home_nursery
        self._links = links
        self._address = scheduler_address

    @asynccontextmanager
    async def lease(self, acquire: Acquire, on_wait: OnWait = unheard) -> AsyncGenerator[Lease, None]:
        """The model, loaded, for as long as the block runs; `on_wait` hears why that takes time.

        It hears nothing of a request that the queue does not take.
        Whatever the scheduler refuses with (CapacityError, QueueFull, ...); PeerGone when there is none.
        """
        lease, scope = await self._home_nursery.start(self._hold, acquire, on_wait)
        try:
            yield lease
        finally:
            scope.cancel()

    async def unload(self, digest: str) -> None:
        """Have a model unloaded once it is idle."""

        async def ask(link: Link) -> None:
            async with link.request(Unload(digest=digest)) as items:
                async for _ in items:
                    pass

        await self._insist(ask)

    async def loaded(self) -> Loaded:
        """What is loaded now."""

        async def ask(link: Link) -> Loaded:
            return await link.ask(ListLoaded(), Loaded)

        return await self._insist(ask)

    async def _insist(self, ask: Callable[[Link], Awaitable[T]]) -> T:
        return await self._links.insist(self._address, ask, patience_s=SCHEDULER_S)

    async def _hold(
        self,
        acquire: Acquire,
        on_wait: OnWait,
        *,
        task_status: trio.TaskStatus[tuple[Lease, trio.CancelScope]],
    ) -> None:
        with trio.CancelScope() as scope:
            await self._insist(partial(self._first, acquire, on_wait, task_status, scope))
            # only a dead scheduler ends the stream of a lease: take it anew, for whoever still generates
            while True:
                await trio.sleep(RENEW_S)
                try:
                    await self._insist(partial(self._keep, acquire))
                except RuntimeFault as fault:
                    log.warning("%s runs without a lease: %s", acquire.model.name, fault.message)

    async def _first(
        self,
        acquire: Acquire,
        on_wait: OnWait,
        task_status: trio.TaskStatus[tuple[Lease, trio.CancelScope]],
        scope: trio.CancelScope,
        link: Link,
    ) -> None:
        async with link.request(acquire) as items:
            lease = await _wait_lease(items, on_wait)
            task_status.started((lease, scope))
            await _until_gone(items)

    async def _keep(self, acquire: Acquire, link: Link) -> None:
        async with link.request(acquire) as items:
            await _wait_lease(items, unheard)
            await _until_gone(items)


async def _wait_lease(items: ItemStream, on_wait: OnWait) -> Lease:
    async for item in items:
        match item:
            case Lease():
                return item
            case Queued() | LoadProgress():
                on_wait(item)
            case _:
                raise RemoteProtocolError(f"the scheduler answered Acquire with {type(item).__name__}")
    raise RemoteProtocolError("the scheduler ended Acquire without a lease", where="gateway.leases")


async def _until_gone(items: ItemStream) -> None:
    try:
        async for _ in items:
            pass
    except RuntimeFault as fault:
        log.warning("a lease ended: %s", fault.message)
