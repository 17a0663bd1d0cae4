"""Tells runners how long they are to stay: a scheduler that is killed hears it from them again.

A model that somebody asked to keep for ever would otherwise leave some minutes after the scheduler died.
"""

import trio

from actors.errors import RuntimeFault
from actors.link import connect
from actors.protocol import Keep
from actors.scheduler.changes import Changes
from actors.scheduler.life import Life, Resident
from actors.scheduler.residents import Residents

TELL_S = 5.0  # a runner answers within milliseconds; one that does not is given up by `health`


class Reminders:
    """Follows the keep-alive of every loaded model."""

    def __init__(self, residents: Residents, changes: Changes) -> None:
        self._residents = residents
        self._changes = changes

    async def run(self) -> None:
        """For ever."""
        async with trio.open_nursery() as nursery:
            while True:
                for resident in self._residents:
                    if resident.life is Life.READY and resident.told != resident.keep:
                        resident.told = resident.keep
                        nursery.start_soon(_tell, resident, resident.keep)
                await self._changes.wait()


async def _tell(resident: Resident, keep: Keep) -> None:
    with trio.move_on_after(TELL_S):
        try:
            async with connect(resident.address, name="scheduler") as link, link.request(keep) as items:
                async for _ in items:
                    continue
        except RuntimeFault:
            return  # it is gone, or as good as gone; then there is nothing to remember
