"""Log lines to standard error: text for people, JSON for collectors.  `extra` is part of the line."""

import logging
import sys
import time
from typing import Final

import msgspec

from actors.config import LogFormat, LogLevel

_OWN: Final = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


def _extra(record: logging.LogRecord) -> dict[str, object]:
    return {key: value for key, value in vars(record).items() if key not in _OWN}


class TextFormatter(logging.Formatter):
    """`12:00:01.250 INFO gateway: served status=200`."""

    def __init__(self, actor: str) -> None:
        super().__init__()
        self._actor = actor

    def format(self, record: logging.LogRecord) -> str:
        """One line, and the traceback below it if there is one."""
        clock = time.strftime("%H:%M:%S", time.localtime(record.created))
        words = [f"{clock}.{int(record.msecs):03d} {record.levelname} {self._actor}: {record.getMessage()}"]
        words += [f"{key}={value}" for key, value in _extra(record).items()]
        line = " ".join(words)
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line


class JsonFormatter(logging.Formatter):
    """One JSON object a line."""

    def __init__(self, actor: str) -> None:
        super().__init__()
        self._actor = actor

    def format(self, record: logging.LogRecord) -> str:
        """One line; a traceback is a field of it."""
        fields: dict[str, object] = {
            "time_s": round(record.created, 3),
            "level": record.levelname.lower(),
            "actor": self._actor,
            "module": record.name,
            "message": record.getMessage(),
            **_extra(record),
        }
        if record.exc_info:
            fields["traceback"] = self.formatException(record.exc_info)
        return msgspec.json.encode(fields, enc_hook=str).decode()


def start_logging(actor: str, level: LogLevel, kind: LogFormat) -> None:
    """Send all log lines of this process to standard error under the actor's name."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter(actor) if kind == "json" else TextFormatter(actor))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    logging.captureWarnings(capture=True)
