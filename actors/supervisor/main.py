"""`runtime up`: make the run directory, bind the sockets, keep the actors alive, stop in order.

Signals: SIGTERM and SIGINT drain and stop (exit 0), a second one hurries.  SIGHUP reads the configuration
again and replaces the gateway, which keeps the listening socket, so that no client is refused; the address to
listen at, and what the other actors read, change with a restart only.
"""

import fcntl
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Final

import trio

from actors.config import Config, load_config, traced
from actors.errors import ConfigError, RuntimeFault
from actors.faults import sole_fault
from actors.inherited import bind_tcp, bind_unix, group_id, inherited_fds, make_run_dir, take_socket
from actors.lifeline import ORPHAN_S, watch_lifeline
from actors.logs import start_logging
from actors.settings import HostAddress
from actors.supervisor.keeper import HealthPolicy, Keeper, Ties
from actors.supervisor.notify import Notifier
from actors.supervisor.policy import RestartPolicy
from actors.supervisor.table import ActorEntry, runtime_table
from actors.version import VERSION

log = logging.getLogger(__name__)

REBIND_S: Final = ORPHAN_S + 2
"""For the actors of a supervisor that was killed to notice and end."""


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def main(
    environ: MutableMapping[str, str] | None = None,
    table: Sequence[ActorEntry] | None = None,
    say: Callable[[str], None] = _say,
    policy: RestartPolicy | None = None,
    health: HealthPolicy | None = None,
) -> int:
    """Run the runtime until it is asked to stop; returns the exit code, 0 or 1.

    `environ` is the configuration's and the children's environment, `say` gets the line that it is ready.
    """
    environ = os.environ if environ is None else environ
    started_s = time.monotonic()
    try:
        config = load_config(None, environ)
        start_logging("supervisor", config.log_level, config.log_format)
        with _Home(config, [entry.name for entry in table or runtime_table()], environ) as home:
            runtime = _Runtime(
                home,
                table or runtime_table(),
                environ,
                lambda: say(_ready_line(home, config, time.monotonic() - started_s)),
                policy or RestartPolicy(),
                health or HealthPolicy(),
            )
            trio.run(runtime.run)
    except ConfigError as fault:
        return _fail(traced(fault, environ))
    except RuntimeFault as fault:
        return _fail(fault)
    except BaseExceptionGroup as group:
        fault = sole_fault(group)
        if fault is None:
            raise
        return _fail(fault)
    return 0


def _fail(fault: RuntimeFault) -> int:
    if logging.getLogger().handlers:
        log.critical("%s", fault)
    else:  # the configuration itself was at fault
        sys.stderr.write(f"runtime: {fault}\n")
    return 1


def _ready_line(home: "_Home", config: Config, took_s: float) -> str:
    return (
        f"actor-runtime {VERSION} listening on {home.url}  "
        f"(models in {config.models_dir}, sockets in {config.run_dir}; ready in {took_s:.1f} s)"
    )


class _Home:
    """What outlives every child: the lock, the listening sockets, the lifeline."""

    def __init__(self, config: Config, names: Sequence[str], environ: Mapping[str, str]) -> None:
        self._config = config
        self._names = names
        self._environ = environ
        self._lock: int | None = None
        self._lifeline_end: int | None = None
        self.lifeline_fd = -1
        self.sockets: dict[str, socket.socket] = {}
        self.http: socket.socket
        self.url = ""

    def address(self, name: str) -> str:
        return self._config.socket_address(name)

    def __enter__(self) -> "_Home":
        try:
            self._open()
        except ConfigError:
            self.__exit__(None, None, None)
            raise
        return self

    def _open(self) -> None:
        gid = group_id(self._config.group)
        make_run_dir(self._config.run_dir, gid)
        self._lock = _lock(self._config.run_dir)
        for name in self._names:
            self.sockets[name] = _bind_patiently(self.address(name).removeprefix("unix:"), gid)
        self.http = _activated(self._environ) or bind_tcp(self._config.host, self._config.port)
        host, port = self.http.getsockname()[:2]
        self.url = HostAddress("http", str(host), int(port), "").url
        self.lifeline_fd, self._lifeline_end = os.pipe()

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        for name, sock in self.sockets.items():
            Path(self.address(name).removeprefix("unix:")).unlink(missing_ok=True)
            sock.close()
        if hasattr(self, "http"):
            self.http.close()
        for fd in (self.lifeline_fd, self._lifeline_end, self._lock):
            if fd is not None and fd >= 0:
                os.close(fd)


def _lock(run_dir: str) -> int:
    fd = os.open(f"{run_dir}/lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as exc:
        pid = os.read(fd, 20).decode(errors="replace").strip()
        os.close(fd)
        raise ConfigError(
            f"another runtime (process {pid}) lives in {run_dir}",
            where="run_dir",
            mend="use it, stop it, or set RUNTIME_RUN_DIR to another place",
        ) from exc
    os.ftruncate(fd, 0)
    os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
    return fd


def _bind_patiently(path: str, gid: int | None) -> socket.socket:
    """Bind; when a killed supervisor's orphans still listen, they end within REBIND_S."""
    deadline_s = time.monotonic() + REBIND_S
    while True:
        try:
            return bind_unix(path, gid)
        except ConfigError:
            if time.monotonic() > deadline_s:
                raise
            time.sleep(0.05)


def _activated(environ: Mapping[str, str]) -> socket.socket | None:
    """The HTTP socket when systemd made it: named "http", or the only one there is."""
    names = list(inherited_fds(environ, os.getpid()))
    if not names:
        return None
    return take_socket("http" if "http" in names else names[0], environ)


class _Runtime:
    """All actors, from the first start to the last stop."""

    def __init__(
        self,
        home: _Home,
        table: Sequence[ActorEntry],
        environ: Mapping[str, str],
        on_ready: Callable[[], None],
        policy: RestartPolicy,
        health: HealthPolicy,
    ) -> None:
        self._environ = environ
        self._on_ready = on_ready
        self._notifier = Notifier(environ)
        self._keepers = [Keeper(entry, self._ties(home, entry), policy, health) for entry in table]

    def _ties(self, home: _Home, entry: ActorEntry) -> Ties:
        fds = {entry.name: home.sockets[entry.name].fileno()}
        if entry.takes_http:
            fds["http"] = home.http.fileno()
        return Ties(home.address(entry.name), fds, home.lifeline_fd, self._environ)

    async def run(self) -> None:
        """Until a signal has stopped everything, or an actor cannot be kept alive (RuntimeFault)."""
        async with trio.open_nursery() as nursery:
            # of whoever started us for a while, as `runtime run --up` does
            watch_lifeline(self._environ.get("RUNTIME_LIFELINE_FD", ""), nursery.cancel_scope)
            await nursery.start(self._mind_signals, nursery.cancel_scope)
            nursery.start_soon(self._announce)
            self._notifier.status("starting")
            for keeper in self._keepers:
                nursery.start_soon(keeper.run)

    async def _announce(self) -> None:
        for keeper in self._keepers:
            await keeper.wait_ready()
        self._notifier.send("READY=1", "STATUS=all actors answer")
        self._on_ready()
        await self._feed_watchdog()

    async def _feed_watchdog(self) -> None:
        # from READY=1 on, as systemd counts; starting has a time-out of its own
        while self._notifier.watchdog_s:
            self._notifier.send("WATCHDOG=1")
            await trio.sleep(self._notifier.watchdog_s / 3)

    async def _mind_signals(self, life: trio.CancelScope, *, task_status: trio.TaskStatus[None]) -> None:
        with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT, signal.SIGHUP) as signals:
            task_status.started()
            async for number in signals:
                if number != signal.SIGHUP:
                    break
                self._reload()
            self._notifier.send("STOPPING=1", "STATUS=finishing what has begun")
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._stop_all, nursery.cancel_scope)
                async for number in signals:
                    if number != signal.SIGHUP:
                        for keeper in self._keepers:
                            keeper.hurry()
        life.cancel()

    async def _stop_all(self, done: trio.CancelScope) -> None:
        """The front first: what it still answers needs the others."""
        for is_front in (True, False):
            stopping = [keeper for keeper in self._keepers if keeper.entry.is_front is is_front]
            for keeper in stopping:
                keeper.stop()
            for keeper in stopping:
                await keeper.wait_stopped()
        done.cancel()

    def _reload(self) -> None:
        try:
            load_config(None, self._environ)
        except ConfigError as fault:
            log.error("not reloaded, the old configuration stays: %s", fault)
            self._notifier.status(f"not reloaded: {fault}")
            return
        log.info("reloading: the gateway is replaced")
        for keeper in self._keepers:
            if keeper.entry.is_front:
                keeper.replace()
