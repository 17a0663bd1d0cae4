"""`python -m actors.discovery`: the discovery actor alone; `... --diagnose` prints a Diagnosis and ends."""

import argparse
import logging
import os
import sys

import msgspec
import trio

from actors.actor import main
from actors.config import load_config
from actors.discovery.service import Discovery, diagnose


def run(arguments: list[str]) -> int:
    """Process entry; the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m actors.discovery", description="Which devices there are."
    )
    parser.add_argument("--diagnose", action="store_true", help="print what was found as JSON, and end")
    if not parser.parse_args(arguments).diagnose:
        return main("discovery", Discovery)
    logging.disable()  # what the log would say is in the answer
    config = load_config(None, os.environ)
    sys.stdout.buffer.write(msgspec.json.encode(trio.run(diagnose, config, os.environ)) + b"\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(run(sys.argv[1:]))
