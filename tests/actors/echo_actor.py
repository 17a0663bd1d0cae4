"""A throwaway actor: answers Tokenize with the bytes of the text, and misbehaves when told.  `... NAME`."""

import os
import sys
import time
from typing import Final

import trio

from actors.actor import main, not_understood
from actors.config import Config
from actors.errors import ConfigError, RequestError
from actors.inherited import take_socket
from actors.link import Replies
from actors.protocol import Request, Text, Tokenize, Tokens

FAILS_AT_START: Final = "fails-at-start"
FLOOD_BYTES: Final = 1 << 16


class Echo:
    """See the module."""

    def __init__(self, config: Config) -> None:
        if config.cpu_isa == FAILS_AT_START:
            raise ConfigError("this cannot be", where="cpu_isa", mend="unset it")
        self._n_waiting = 0
        self._n_flooded = 0
        self._http = take_socket("http")
        self._is_drained = trio.Event()

    async def run(self, *, task_status: trio.TaskStatus[None]) -> None:
        """Nothing to do."""
        task_status.started()
        await trio.sleep_forever()

    async def handle(self, request: Request, replies: Replies) -> None:
        """Misbehave as told: hang the loop, exit with 3, have a bug, refuse, wait to be drained, flood."""
        if not isinstance(request, Tokenize):
            raise not_understood(request)
        match request.text:
            case "hang":
                time.sleep(1000)  # noqa: ASYNC251  # the point of it
            case "exit":
                os._exit(3)
            case "bug":
                raise ZeroDivisionError
            case "flood":
                while True:
                    await replies.send(Text(text="x" * FLOOD_BYTES))
                    self._n_flooded += 1
            case "refuse":
                raise RequestError("no")
            case "wait":
                self._n_waiting += 1
                await replies.send(Text(text="waiting"))
                await self._is_drained.wait()
                await replies.send(Text(text="drained"))
                self._n_waiting -= 1
            case text:
                await replies.send(Tokens(tokens=tuple(text.encode())))

    async def drain(self) -> None:
        """Let those who wait go."""
        self._is_drained.set()
        while self._n_waiting:  # noqa: ASYNC110  # short enough for a test actor
            await trio.sleep(0.01)

    def gauges(self) -> dict[str, float]:
        """Whether the HTTP socket was handed down."""
        return {
            "has_http": float(self._http is not None),
            "waiting": float(self._n_waiting),
            "flooded": float(self._n_flooded),
        }


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1], Echo))
