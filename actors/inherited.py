"""Listening sockets: inherited by systemd's convention, or bound here.

LISTEN_FDS sockets lie at descriptors 3, 4, ...; LISTEN_FDNAMES names them, separated by colons; LISTEN_PID
is the process they are meant for, so that its children do not take them for theirs (sd_listen_fds(3)).
"""

import errno
import grp
import os
import socket
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import trio

from actors.connection import unix_path
from actors.errors import ConfigError

FIRST_FD: Final = 3
BACKLOG: Final = 1024
"""Connections that wait while an actor restarts; the kernel cuts it to net.core.somaxconn."""


OURS_ALONE: Final = (
    "LISTEN_FDS",
    "LISTEN_PID",
    "LISTEN_FDNAMES",
    "NOTIFY_SOCKET",
    "WATCHDOG_USEC",
    "WATCHDOG_PID",
)


def child_environment(environ: Mapping[str, str], **changes: str) -> dict[str, str]:
    """Ours without what was addressed to us alone (sockets handed down, systemd's notifications)."""
    kept = {key: value for key, value in environ.items() if key not in OURS_ALONE}
    return kept | changes


def inherited_fds(environ: Mapping[str, str], pid: int) -> dict[str, int]:
    """Descriptors by name; empty when none are for process `pid`.  ConfigError for a broken convention."""
    if environ.get("LISTEN_PID") != str(pid):
        return {}
    try:
        n_fds = int(environ.get("LISTEN_FDS", "0"))
    except ValueError as exc:
        raise ConfigError(
            f"LISTEN_FDS is {environ['LISTEN_FDS']!r}, not a count", where="LISTEN_FDS"
        ) from exc
    names = environ.get("LISTEN_FDNAMES", "").split(":") if environ.get("LISTEN_FDNAMES") else []
    if names and len(names) != n_fds:
        raise ConfigError(
            f"{n_fds} sockets were inherited, {len(names)} names for them", where="LISTEN_FDNAMES"
        )
    return {name: FIRST_FD + i for i, name in enumerate(names or ["unknown"] * n_fds)}


def take_socket(name: str, environ: Mapping[str, str] | None = None) -> socket.socket | None:
    """The listening socket inherited under that name, or None.  Once per name: two owners would close it."""
    fd = inherited_fds(os.environ if environ is None else environ, os.getpid()).get(name)
    if fd is None:
        return None
    os.set_inheritable(fd, False)  # children get theirs handed down, not by leak
    sock = socket.socket(fileno=fd)
    sock.setblocking(False)
    return sock


def bind_unix(path: str, gid: int | None = None) -> socket.socket:
    """Listen at `path`, taking the place of a dead socket; ConfigError when somebody listens there.

    Mode 0600, or 0660 for the group `gid`.  Who binds unlinks.
    """
    _remove_dead(path)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        # the directory keeps others out between bind and chmod
        sock.bind(path)
        if gid is not None:
            os.chown(path, -1, gid)
        os.chmod(path, 0o600 if gid is None else 0o660)
        sock.listen(BACKLOG)
    except OSError as exc:
        sock.close()
        raise ConfigError(
            f"the socket {path} cannot be made: {exc.strerror}",
            where="run_dir",
            mend="set RUNTIME_RUN_DIR to a directory of yours",
        ) from exc
    return sock


def _remove_dead(path: str) -> None:
    try:
        if not stat.S_ISSOCK(os.lstat(path).st_mode):
            raise ConfigError(
                f"{path} is in the way: it is not a socket", where="run_dir", mend="move it away"
            )
    except FileNotFoundError:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(path)
        except (ConnectionRefusedError, FileNotFoundError):
            Path(path).unlink(missing_ok=True)
            return
        except OSError:
            pass  # a full backlog is a listener, too
    raise ConfigError(
        f"another process listens at {path}",
        where="run_dir",
        mend="stop it, or set RUNTIME_RUN_DIR to another place",
    )


def bind_tcp(host: str, port: int) -> socket.socket:
    """Listen for HTTP; ConfigError that names the address and OLLAMA_HOST when it cannot be had.

    An empty host is every interface.  Of a name's several addresses the first IPv4 one is taken.
    """
    try:
        family, address = _resolve(host, port)
        sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    except OSError as exc:
        raise _no_tcp(host, port, exc) from exc
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0 if not host else 1)
        sock.bind(address)
        sock.listen(BACKLOG)
    except OSError as exc:
        sock.close()
        raise _no_tcp(host, port, exc) from exc
    return sock


def _resolve(host: str, port: int) -> tuple[int, tuple[str, int]]:
    if not host:
        return (
            (socket.AF_INET6, ("::", port))
            if socket.has_dualstack_ipv6()
            else (socket.AF_INET, ("0.0.0.0", port))
        )
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    found.sort(key=lambda entry: entry[0] != socket.AF_INET)
    family, _, _, _, address = found[0]
    return family, (str(address[0]), port)


def _no_tcp(host: str, port: int, exc: OSError) -> ConfigError:
    shown = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    if exc.errno == errno.EADDRINUSE:
        key, message = "port", f"port {port} is in use: another program listens at {shown}"
    else:
        key, message = "host", f"cannot listen at {shown}: {exc.strerror or exc}"
    return ConfigError(
        message,
        where=key,
        mend=f"stop it, or set RUNTIME_HOST to another address, like 127.0.0.1:{max(port, 1023) % 65535 + 1}",
    )


def group_id(group: str) -> int | None:
    """The number of the group that may use the sockets; None for "".  ConfigError when there is none."""
    if not group:
        return None
    try:
        return grp.getgrnam(group).gr_gid
    except KeyError as exc:
        raise ConfigError(
            f'there is no group "{group}" on this machine', where="group", mend="name an existing one"
        ) from exc


def make_run_dir(path: str, gid: int | None = None) -> None:
    """Create the run directory, mode 0700 (0710 for a group); ConfigError when it is not ours alone."""
    unix_path(f"unix:{path}/supervisor.sock")
    try:
        os.makedirs(path, mode=0o700, exist_ok=True)
        info = os.lstat(path)
        if not stat.S_ISDIR(info.st_mode) or info.st_uid != os.getuid():
            raise ConfigError(
                f"the run directory {path} is not a directory of user {os.getuid()}",
                where="run_dir",
                mend="set RUNTIME_RUN_DIR to a directory of yours",
            )
        if gid is not None:
            os.chown(path, -1, gid)
        os.chmod(path, 0o700 if gid is None else 0o710)
    except OSError as exc:
        raise ConfigError(
            f"the run directory {path} cannot be made: {exc.strerror}",
            where="run_dir",
            mend="set RUNTIME_RUN_DIR to a directory of yours",
        ) from exc


def listener_of(sock: socket.socket) -> trio.SocketListener:
    """A trio listener that owns the socket."""
    return trio.SocketListener(trio.socket.from_stdlib_socket(sock))
