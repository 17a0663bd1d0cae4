"""What a dead runner's last words tell its callers."""

import signal

from actors.errors import PeerGone
from actors.protocol import RunnerExited

TELLING = ("panic:", "fatal", "error", "cuda", "assert", "out of memory", "killed")
LINE_MAX = 500  # characters of a line that reach an API error
N_LINES = 3
GROUP_FRAME = "+-| "  # what Python draws around the traceback of an exception group


def death_of(name: str, exited: RunnerExited | None, doing: str) -> PeerGone:
    """The error for those who waited for, or used, the model of a runner that died."""
    if exited is None:
        return PeerGone(
            f"{name}: the runner went away {doing}", where="runner", mend="send the request again"
        )
    message = f"{name}: the runner {ending(exited.exit_code)} {doing}"
    words = telling_lines(exited.last_words)
    return PeerGone(
        f"{message}: {words}" if words else message,
        where=f"runner {exited.runner_id}",
        mend="send the request again; if it happens again, see the log for more",
    )


def ending(exit_code: int) -> str:
    """An exit code in words."""
    if exit_code >= 0:
        return f"exited with status {exit_code}"
    try:
        return f"was killed by {signal.Signals(-exit_code).name}"
    except ValueError:
        return f"was killed by signal {-exit_code}"


def telling_lines(last_words: str) -> str:
    """From the first line that names an error, else the last line: at most N_LINES, each cut to LINE_MAX."""
    stripped = (line.strip().lstrip(GROUP_FRAME) for line in last_words.splitlines())
    lines = [line for line in stripped if line]
    first = next((i for i, line in enumerate(lines) if line.lower().startswith(TELLING)), len(lines) - 1)
    return " | ".join(line[:LINE_MAX] for line in lines[max(0, first) :][:N_LINES])
