"""Telling systemd how we are (sd_notify(3)): one datagram to the socket that NOTIFY_SOCKET names."""

import logging
import os
import socket
from collections.abc import Mapping
from typing import Final

log = logging.getLogger(__name__)

STATUS_MAX: Final = 400
BUSY_S: Final = 1.0


class Notifier:
    """Sends states to the service manager; does nothing when there is none."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        named = environ.get("NOTIFY_SOCKET", "")
        # "@" stands for the zero byte of the abstract namespace
        self._address = "\0" + named[1:] if named.startswith("@") else named
        self.watchdog_s = _watchdog_s(environ)

    def send(self, *states: str) -> None:
        """States like "READY=1"; a manager that does not listen is no reason to stop."""
        if not self._address:
            return
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
                # a manager whose queue is full loses a sign of life, but should not lose a READY=1
                sock.settimeout(0.0 if states[0] == "WATCHDOG=1" else BUSY_S)
                sock.sendto("\n".join(states).encode(), self._address)
        except OSError as exc:
            log.warning("the service manager could not be told %s: %s", states[0], exc)

    def status(self, text: str) -> None:
        """One line for `systemctl status`."""
        self.send("STATUS=" + text.replace("\n", " ")[:STATUS_MAX])


def _watchdog_s(environ: Mapping[str, str]) -> float:
    """Seconds in which WATCHDOG=1 must come; 0: never."""
    meant_for = environ.get("WATCHDOG_PID", str(os.getpid()))
    usec = environ.get("WATCHDOG_USEC", "")
    return int(usec) / 1e6 if usec.isdigit() and meant_for == str(os.getpid()) else 0.0
