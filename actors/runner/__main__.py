"""`python -m actors.runner --id ID` is one runner; `... inspect PATH` reads a header and ends."""

import argparse
import sys

from actors.actor import main
from actors.runner.inspect import inspect_to
from actors.runner.service import Runner


def run(arguments: list[str]) -> int:
    """Process entry; the exit code."""
    parser = argparse.ArgumentParser(prog="python -m actors.runner", description="One model in one process.")
    parser.add_argument("--id", help="the runner's id; its socket is runner-ID.sock")
    commands = parser.add_subparsers(dest="command")
    inspecting = commands.add_parser("inspect", help="print a model file's header as JSON and end")
    inspecting.add_argument("path")
    options = parser.parse_args(arguments)
    if options.command == "inspect":
        return inspect_to(sys.stdout.buffer, options.path)
    if not options.id:
        parser.error("--id is required")
    return main(f"runner-{options.id}", lambda config: Runner(config, options.id))


if __name__ == "__main__":
    raise SystemExit(run(sys.argv[1:]))
