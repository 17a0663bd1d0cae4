"""Spans of time as people write them: `300`, `"5m"`, `"1h30m"`, `"-1"`; the grammar is Go's."""

import math
import re
from typing import Final

from actors.errors import RequestError

_UNIT_S: Final = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "μs": 1e-6, "ms": 1e-3, "s": 1, "m": 60, "h": 3600}
_NUMBER: Final = r"(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)"
_PART: Final = re.compile(rf"({_NUMBER})(ns|us|µs|μs|ms|s|m|h)")
_BARE: Final = re.compile(rf"[+-]?{_NUMBER}")
_MAX_S: Final = 2**63 / 1e9  # what a signed 64-bit count of nanoseconds holds, the bound clients know


class DurationError(RequestError, ValueError):
    """Not a span of time."""


def parse_duration(value: str | float) -> float:
    """Seconds; a bare number is seconds already.  Negative spans are kept: callers read them as "for ever".

    Raises DurationError for anything else, and for spans that 64-bit nanoseconds cannot hold.
    """
    seconds = _parse_text(value.strip()) if isinstance(value, str) else float(value)
    if not math.isfinite(seconds) or abs(seconds) >= _MAX_S:
        raise _invalid(value)
    return seconds


def _parse_text(text: str) -> float:
    if _BARE.fullmatch(text):
        return float(text)
    sign = -1.0 if text.startswith("-") else 1.0
    rest = text[1:] if text[:1] in ("+", "-") else text
    seconds = 0.0
    position = 0
    while part := _PART.match(rest, position):
        seconds += float(part[1]) * _UNIT_S[part[2]]
        position = part.end()
    if position == 0 or position != len(rest):
        raise _invalid(text)
    return sign * seconds


def _invalid(value: str | float) -> DurationError:
    shown = f'"{value}"' if isinstance(value, str) else str(value)
    return DurationError(
        f"time: invalid duration {shown}",
        where="duration",
        mend='write a number of seconds or a span like "300ms", "5m" or "1h30m"',
    )
