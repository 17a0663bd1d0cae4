"""Tells a stream's client what it waits for, until the answer begins."""

from collections.abc import Awaitable, Callable

import trio

TELL_EVERY_S = 1.0  # what ends sooner, as most refusals do, still has its status line


class Teller:
    """Hands the latest news to `send` now and then, each once."""

    def __init__(self, send: Callable[[str], Awaitable[None]]) -> None:
        self.news = ""
        self._send = send
        self._over = trio.Event()
        self._ended = trio.Event()

    async def run(self) -> None:
        """Tell until `stop`."""
        told = ""
        try:
            while not await self._is_over_soon():
                if told != self.news:
                    told = self.news
                    await self._send(told)
        finally:
            self._ended.set()

    async def stop(self) -> None:
        """Tell nothing any more; nothing is being sent when this returns."""
        self._over.set()
        await self._ended.wait()

    async def _is_over_soon(self) -> bool:
        with trio.move_on_after(TELL_EVERY_S):
            await self._over.wait()
        return self._over.is_set()
