"""One condition for all of the scheduler's tasks: something changed, look again."""

import trio


class Changes:
    """`notify` wakes every task in `wait`.  Check, then wait, with no await between: nothing is missed."""

    def __init__(self) -> None:
        self._event = trio.Event()

    def notify(self) -> None:
        """Wake all who wait."""
        self._event.set()
        self._event = trio.Event()

    async def wait(self) -> None:
        """Until the next `notify`."""
        await self._event.wait()
