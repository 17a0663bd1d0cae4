"""What the gateway and its template workers say to each other.  Imports nothing of Jinja: only workers do."""

import struct
from typing import Any

import msgspec

RENDER_LIMIT_S = 5.0  # the largest real template with 1000 turns takes under 0.1 s
MAX_FRAME_BYTES = 256 << 20
LENGTH = struct.Struct("<I")  # in front of every MessagePack body

Json = Any  # what a JSON document holds; templates decide what they make of it


class Job(msgspec.Struct, frozen=True):
    """Render this template with these variables; `only_check`: tell what is wrong with it, render nothing."""

    template: str
    variables: dict[str, Json]
    only_check: bool = False


class Outcome(msgspec.Struct, frozen=True):
    """The text, or why there is none."""

    text: str = ""
    error: str = ""
