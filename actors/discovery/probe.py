"""`python -m actors.discovery.probe`: asks the NVIDIA driver in a process of its own.

A driver that crashes or hangs takes nobody along.  Writes a JSON line with the GPUs every PERIOD_S, and ends
when there are none, or nobody reads any more.
"""

import sys
import time
from typing import Final

import msgspec

from actors.errors import Unsupported

PERIOD_S: Final = 2.0


def main() -> int:
    """Report until the reader is gone; 0 when there is no GPU, no driver or no library: a normal case."""
    encode = msgspec.json.Encoder().encode
    try:
        from actors.discovery.nvidia import read_gpus  # not everybody has what it imports

        while gpus := read_gpus():
            sys.stdout.buffer.write(encode(gpus) + b"\n")
            sys.stdout.buffer.flush()
            time.sleep(PERIOD_S)
    except (ImportError, Unsupported, BrokenPipeError):
        return 0
    return 0


if __name__ == "__main__":
    sys.exit(main())
