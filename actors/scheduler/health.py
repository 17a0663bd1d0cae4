"""Whether loaded runners still answer.  A dead one is heard of at once; this is for one that hangs.

Without it a hung runner would be leased to request after request, and its model never be loaded anew.
"""

import trio

from actors.errors import PeerGone, RemoteProtocolError, RuntimeFault
from actors.link import connect
from actors.protocol import GetStats, Stats
from actors.scheduler.life import Life, Resident
from actors.scheduler.residents import Residents

PERIOD_S = 10.0  # between two questions to the same runner
ANSWER_S = 20.0  # a runner computes on a thread of its own; its loop answers within milliseconds


class Health:
    """Asks every loaded runner now and then."""

    def __init__(self, residents: Residents) -> None:
        self._residents = residents

    async def run(self) -> None:
        """For ever."""
        while True:
            await trio.sleep(PERIOD_S)
            async with trio.open_nursery() as nursery:
                for resident in self._residents:
                    if resident.life in (Life.READY, Life.EXPIRING):
                        nursery.start_soon(self._check, resident)

    async def _check(self, resident: Resident) -> None:
        if await _answers(resident.address) or resident.gone.is_set():
            return
        fault = PeerGone(
            f"{resident.model.name}: the runner did not answer within {ANSWER_S:g} s",
            where=f"runner {resident.runner_id}",
            mend="send the request again: it is stopped, and the model loaded anew",
        )
        self._residents.give_up(resident, fault)


async def _answers(address: str) -> bool:
    """False for silence only: that a runner is gone is told by its host, with its last words."""
    with trio.move_on_after(ANSWER_S):
        try:
            async with connect(address, name="scheduler") as link:
                await link.ask(GetStats(), Stats)
        except RemoteProtocolError:
            return False  # it did not greet in time
        except RuntimeFault:
            return True
        return True
    return False
