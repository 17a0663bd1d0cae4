"""What every actor is: a socket, a life from start to drain, a lifeline, a log, an answer to GetStats.

    raise SystemExit(main("discovery", Discovery))

The life: read the configuration; make the service and let it come up; accept peers; run until SIGTERM or
SIGINT (drain, then stop; a second one hurries), until the supervisor is gone (the lifeline ends), or until a
bug ends it.  Exit codes: 0 asked to stop, 78 a setting that cannot be used (no restart mends it), 1 the rest.
"""

import logging
import os
import signal
import sys
import time
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from pathlib import Path
from typing import Final, Protocol, runtime_checkable

import trio

from actors.config import Config, load_config
from actors.connection import unix_path
from actors.errors import ConfigError, PeerGone, RemoteProtocolError, RequestError, RuntimeFault
from actors.faults import sole_fault
from actors.inherited import bind_unix, group_id, listener_of, make_run_dir, take_socket
from actors.lifeline import watch_lifeline
from actors.link import Link, Replies, connect, serve
from actors.logs import start_logging
from actors.protocol import GetStats, Request, Stats
from actors.version import VERSION

log = logging.getLogger(__name__)

CONFIG_EXIT: Final = 78  # EX_CONFIG of sysexits.h
DRAIN_S: Final = 20.0
"""For finishing what has begun, after SIGTERM."""
CONNECT_S: Final = 5.0
RETRY_FIRST_S: Final = 0.05
RETRY_MAX_S: Final = 1.0


class Service(Protocol):
    """What makes one actor different from another."""

    async def run(self, *, task_status: trio.TaskStatus[None]) -> None:
        """Background work; calls `started()` when up, without waiting for peers; runs until cancelled."""
        ...

    async def handle(self, request: Request, replies: Replies) -> None:
        """Answer one request, or raise not_understood(request).  GetStats never comes here."""
        ...

    def gauges(self) -> dict[str, float]:
        """Counters for Stats, by metric name."""
        ...


@runtime_checkable
class Draining(Protocol):
    """A service that has something to finish before it stops."""

    async def drain(self) -> None:
        """Take on nothing new and finish what has begun; cut short after DRAIN_S."""
        ...


def not_understood(request: Request) -> RequestError:
    """The answer to a request that this actor does not serve."""
    return RequestError(
        f"{type(request).__name__} is not answered here",
        where="actor",
        mend="docs/protocol.md says which actor answers what",
    )


def main(name: str, make_service: Callable[[Config], Service]) -> int:
    """Be the actor of that name; returns the exit code."""
    started_s = time.monotonic()
    try:
        config = load_config(None, os.environ)
        start_logging(name, config.log_level, config.log_format)
        trio.run(_live, name, make_service, config, os.environ, started_s)
    except ConfigError as fault:
        return _fail(name, fault, CONFIG_EXIT)
    except RuntimeFault as fault:
        return _fail(name, fault, 1)
    except BaseExceptionGroup as group:
        fault = sole_fault(group)
        if fault is None:
            log.critical("%s ends by a bug", name, exc_info=group)
            return 1
        return _fail(name, fault, CONFIG_EXIT if isinstance(fault, ConfigError) else 1)
    except Exception:
        log.critical("%s ends by a bug", name, exc_info=True)
        return 1
    return 0


def _fail(name: str, fault: RuntimeFault, code: int) -> int:
    log.critical("%s", fault)
    if not logging.getLogger().handlers:  # the configuration itself was at fault
        sys.stderr.write(f"{name}: {fault}\n")
    return code


async def _live(
    name: str,
    make_service: Callable[[Config], Service],
    config: Config,
    environ: MutableMapping[str, str],
    started_s: float,
) -> None:
    gid = group_id(config.group)
    gids = () if gid is None else (gid,)
    async with trio.open_nursery() as nursery:
        # children of ours get a lifeline of their own, so ours must not be in their environment
        watch_lifeline(environ.pop("RUNTIME_LIFELINE_FD", ""), nursery.cancel_scope)
        accepting = trio.CancelScope()
        service = make_service(config)
        await nursery.start(_drain_on_signal, service, accepting, nursery.cancel_scope)
        await nursery.start(_run_service, service)

        async def handle(request: Request, replies: Replies) -> None:
            if isinstance(request, GetStats):
                uptime_s = time.monotonic() - started_s
                await replies.send(Stats(name, os.getpid(), VERSION, uptime_s, service.gauges()))
            else:
                await service.handle(request, replies)

        async with _Listening(name, config, gid, environ) as listener:
            with accepting:
                log.debug("up after %.3f s", time.monotonic() - started_s)
                await serve(listener, handle, name=name, allowed_gids=gids, connections_nursery=nursery)
            await trio.sleep_forever()  # draining: the signal's task ends us


async def _run_service(service: Service, *, task_status: trio.TaskStatus[None]) -> None:
    await service.run(task_status=task_status)


class _Listening:
    """The actor's own socket: inherited, or bound and in the end unlinked here."""

    def __init__(self, name: str, config: Config, gid: int | None, environ: Mapping[str, str]) -> None:
        self._name, self._config, self._gid = name, config, gid
        self._environ = environ
        self._path = ""

    async def __aenter__(self) -> trio.SocketListener:
        sock = take_socket(self._name, self._environ)
        if sock is None:
            path = unix_path(self._config.socket_address(self._name))
            make_run_dir(self._config.run_dir, self._gid)
            sock = bind_unix(path, self._gid)
            self._path = path
        self._listener = listener_of(sock)
        return self._listener

    async def __aexit__(self, *_: object) -> None:
        if self._path:
            # first, as closing may raise Cancelled
            Path(self._path).unlink(missing_ok=True)  # noqa: ASYNC240  # one call on tmpfs
        await trio.aclose_forcefully(self._listener)


async def _drain_on_signal(
    service: Service,
    accepting: trio.CancelScope,
    life: trio.CancelScope,
    *,
    task_status: trio.TaskStatus[None],
) -> None:
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        task_status.started()
        await anext(signals)
        log.debug("stopping")
        accepting.cancel()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_drain, service, nursery.cancel_scope)
            await anext(signals)  # a second one hurries
            nursery.cancel_scope.cancel()
    life.cancel()


async def _drain(service: Service, done: trio.CancelScope) -> None:
    if isinstance(service, Draining):
        with trio.move_on_after(DRAIN_S) as scope:
            await service.drain()
        if scope.cancelled_caught:
            log.warning("not all was finished within %s s", DRAIN_S)
    done.cancel()


async def stay_connected(address: str, name: str, use: Callable[[Link], Awaitable[None]]) -> None:
    """Connect and `use` the link, for ever: again when the peer is gone, cannot be reached, or `use` returns.

    Waits between tries, longer each time up to RETRY_MAX_S, short again after a connection that was made.
    Every other fault that `use` raises goes up.
    """
    delay_s = RETRY_FIRST_S
    while True:
        with trio.move_on_after(CONNECT_S) as connecting:
            try:
                async with connect(address, name=name) as link:
                    connecting.deadline = float("inf")
                    delay_s = RETRY_FIRST_S
                    await use(link)
            except (PeerGone, RemoteProtocolError) as fault:
                log.debug("%s: %s", address, fault)
            except BaseExceptionGroup as group:
                rest = group.split((PeerGone, RemoteProtocolError))[1]
                if rest is not None:
                    raise rest from group.__cause__
                log.debug("%s: the link is gone", address)
        await trio.sleep(delay_s)
        delay_s = min(2 * delay_s, RETRY_MAX_S)
