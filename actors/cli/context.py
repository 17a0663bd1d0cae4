"""What every command works with."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TypeVar

import click
import msgspec
import trio

from actors.cli.http import Http
from actors.client import Client, open_client
from actors.config import Config
from actors.errors import PeerGone

ANSWER_S = 30.0  # for one question over a socket; a plan of a large model starts a runner first

T = TypeVar("T")


@dataclass
class Cli:
    """The settings, and where the runtime is."""

    config: Config
    url: str  # of the HTTP server

    @cached_property
    def http(self) -> Http:
        """The HTTP client; made when it is first needed."""
        return Http(self.url)

    @property
    def is_local(self) -> bool:
        """Whether a runtime's sockets are on this machine, so that the socket protocol can be spoken."""
        return Path(self.config.run_dir, "scheduler.sock").exists()

    def ask(self, question: Callable[[Client], Awaitable[T]], within_s: float = ANSWER_S) -> T:
        """Ask the runtime something over its sockets; PeerGone if it is not there or does not answer."""
        return trio.run(self._ask, question, within_s)

    async def _ask(self, question: Callable[[Client], Awaitable[T]], within_s: float) -> T:
        try:
            with trio.fail_after(within_s):
                async with open_client(self.config.run_dir, name="cli") as client:
                    return await question(client)
        except trio.TooSlowError as exc:
            raise PeerGone(
                f"the runtime did not answer within {within_s:g} s", where="cli", mend="see its log"
            ) from exc


pass_cli = click.make_pass_decorator(Cli)


def say_json(value: object) -> None:
    """Print a value as indented JSON."""
    click.echo(msgspec.json.format(msgspec.json.encode(value), indent=2).decode())
