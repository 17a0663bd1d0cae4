"""The devices' figures: told by discovery when they change, and asked for when a load depends on them."""

import trio

from actors.actor import stay_connected
from actors.errors import PeerGone, RuntimeFault
from actors.link import Link
from actors.protocol import Devices, MeasureDevices, SubscribeDevices
from actors.scheduler.changes import Changes
from actors.scheduler.journal import Journal
from actors.scheduler.ledger import Ledger

MEASURE_S = 1.0  # a driver that is slower to say what is free leaves a load with the figures of a moment ago


class Readings:
    """Keeps the ledger up to date."""

    def __init__(self, address: str, ledger: Ledger, journal: Journal, changes: Changes) -> None:
        """address: of discovery."""
        self._address = address
        self._ledger = ledger
        self._journal = journal
        self._changes = changes
        self._link: Link | None = None  # while discovery is there

    async def run(self) -> None:
        """Take what discovery tells, for ever."""

        async def use(link: Link) -> None:
            self._link = link
            try:
                async with link.request(SubscribeDevices()) as items:
                    async for item in items:
                        if isinstance(item, Devices):
                            self._take(item)
            finally:
                self._link = None

        await stay_connected(self._address, "scheduler", use)

    async def measure(self) -> None:
        """Have the devices read now; where discovery is gone or slow, what is known stays."""
        if self._link is None:
            return
        n_takings = self._ledger.n_takings
        try:
            with trio.move_on_after(MEASURE_S) as patience:
                devices = await self._link.ask(MeasureDevices(), Devices)
                if self._ledger.n_takings == n_takings:  # else it may not have seen what was taken meanwhile
                    self._take(devices)
        except PeerGone:
            return  # it is started again
        except RuntimeFault as fault:
            self._journal.note(f"the devices were not measured: {fault.message}")
            return
        if patience.cancelled_caught:
            self._journal.note(f"discovery did not measure the devices within {MEASURE_S:g} s")

    def _take(self, devices: Devices) -> None:
        self._ledger.update(devices)
        self._changes.notify()
