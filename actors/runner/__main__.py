"""`python -m actors.runner --id ID` is one runner; `... inspect PATH` reads a header and ends.

`... --probe LIBRARY` looks for devices and ends: a runner without a model, so that what it finds is what
runners can use.
"""

import argparse
import gc
import os
import sys


def run(arguments: list[str]) -> int:
    """Process entry; the exit code."""
    parser = argparse.ArgumentParser(prog="python -m actors.runner", description="One model in one process.")
    parser.add_argument("--id", help="the runner's id; its socket is runner-ID.sock")
    parser.add_argument(
        "--probe", choices=("cpu", "cuda", "rocm", "sim"), help="report the library's devices as JSON and end"
    )
    parser.add_argument("--check", metavar="DEVICE", help="with --probe: use this one for real")
    parser.add_argument("--watch", action="store_true", help="with --probe: free memory, for each line sent")
    commands = parser.add_subparsers(dest="command")
    inspecting = commands.add_parser("inspect", help="print a model file's header as JSON and end")
    inspecting.add_argument("path")
    options = parser.parse_args(arguments)
    if not (options.probe or options.command == "inspect" or options.id):
        parser.error("--id is required")
    _before_imports()
    if options.probe:
        return _probe(options.probe, options.check, is_watching=options.watch)
    return _inspect(options.path) if options.command == "inspect" else _serve(options.id)


def _before_imports() -> None:
    """What makes importing cheaper: it is a third of the time from spawn to the first token."""
    # numpy's BLAS, which only the reference kernels use, starts a thread for each core, and they spin
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    gc.disable()  # nothing that is imported is garbage; a tenth of the time goes into finding that out


def _after_imports() -> None:
    gc.freeze()  # nor does it become garbage: later collections, between two tokens, leave it out
    gc.enable()


def _probe(library: str, check: str | None, *, is_watching: bool) -> int:
    from actors.runner.probe.main import answer

    _after_imports()
    return answer(library, check=check, is_watching=is_watching)


def _inspect(path: str) -> int:
    from actors.runner.inspect import inspect_to

    _after_imports()
    return inspect_to(sys.stdout.buffer, path)


def _serve(runner_id: str) -> int:
    from actors.actor import main
    from actors.runner.service import Runner

    _after_imports()
    return main(f"runner-{runner_id}", lambda config: Runner(config, runner_id))


if __name__ == "__main__":
    raise SystemExit(run(sys.argv[1:]))
