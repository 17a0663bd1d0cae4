"""The lifeline: a pipe whose write end only the parent holds: its end of file says the parent is gone.

A signal sent on the parent's death would come for any thread of it, and is lost when a process changes user;
a pipe's end of file cannot be missed, however the parent died.
"""

import logging
import os
import threading
import time
from typing import Final

import trio

from actors.errors import ConfigError

log = logging.getLogger(__name__)

ORPHAN_S: Final = 3.0
"""From the parent's death to ours, if our loop does not end by itself."""
ORPHAN_EXIT: Final = 70


def watch_lifeline(fd_text: str, life: trio.CancelScope) -> None:
    """Cancel `life` when the pipe at this descriptor ends; "" is an actor that was started alone.

    A thread of its own waits, not a task: a loop that hangs must end, too.
    """
    if not fd_text:
        return
    try:
        fd = int(fd_text)
        os.set_inheritable(fd, False)
    except (ValueError, OSError) as exc:
        raise ConfigError(
            f"RUNTIME_LIFELINE_FD is {fd_text!r}, not an open descriptor", where="RUNTIME_LIFELINE_FD"
        ) from exc
    token = trio.lowlevel.current_trio_token()
    threading.Thread(target=_watch, args=(fd, token, life), name="lifeline", daemon=True).start()


def _watch(fd: int, token: trio.lowlevel.TrioToken, life: trio.CancelScope) -> None:
    while os.read(fd, 1):
        pass
    log.warning("the parent is gone: stopping")
    try:
        token.run_sync_soon(life.cancel)
    except trio.RunFinishedError:
        return
    time.sleep(ORPHAN_S)
    os._exit(ORPHAN_EXIT)  # the loop hangs; there is nobody left to tell
