"""The probe process: one question, one answer; or, watching, one answer for each line it is sent.

    python -m actors.runner --probe LIBRARY               a LibraryReport
    python -m actors.runner --probe LIBRARY --check ID    a LibraryReport of that device alone
    python -m actors.runner --probe LIBRARY --watch       FreeMemory items for each line on standard input

Answers are JSON, a line each.  The process ends with its standard input; a question that holds it longer than
the settings allow ends it, too: the kernel's alarm needs nobody that still listens.
"""

import os
import signal
import sys
import threading
from importlib import import_module
from typing import BinaryIO, Final

import msgspec

from actors.config import load_config
from actors.errors import ConfigError
from actors.protocol import LibraryReport
from actors.runner.probe.report import Probe, Surroundings
from actors.settings import VISIBILITY

PROBES: Final = {"cpu": "Cpu", "cuda": "Cuda", "rocm": "Rocm", "sim": "Sim"}
GRACE_S: Final = 5.0  # after the time-out of whoever asked, who is expected to end us
ORPHANED: Final = 70


def answer(library: str, *, check: str | None = None, is_watching: bool = False) -> int:
    """Be the probe; the exit code."""
    out = _take_stdout()
    encode = msgspec.json.Encoder().encode
    try:
        config = load_config(None, os.environ)
    except ConfigError as fault:
        report = LibraryReport(library, "failed", reason=str(fault))
        return _write(out, encode(report))
    patience_s = config.probe_timeout_s + GRACE_S
    signal.setitimer(signal.ITIMER_REAL, patience_s)
    variables = {name: os.environ[name] for name in VISIBILITY if name in os.environ}
    around = Surroundings(config, variables)
    probe = _load(library)
    if is_watching:
        for _ in sys.stdin.buffer:
            signal.setitimer(signal.ITIMER_REAL, patience_s)
            if _write(out, encode(probe.measure(around))):
                break  # nobody reads any more
            signal.setitimer(signal.ITIMER_REAL, 0)
        return 0
    threading.Thread(target=_end_with_stdin, daemon=True).start()
    report = probe.look(around) if check is None else probe.check(around, check)
    return _write(out, encode(report))


def _take_stdout() -> BinaryIO:
    """Standard output for answers alone: what drivers print goes to standard error from here on."""
    out = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    return out


def _load(library: str) -> Probe:
    # by name: each brings its own libraries, which the others must do without
    module = import_module(f"actors.runner.probe.{library}")
    probe: Probe = getattr(module, PROBES[library])()
    return probe


def _write(out: BinaryIO, text: bytes) -> int:
    try:
        out.write(text + b"\n")
        out.flush()
    except BrokenPipeError:
        return 1
    return 0


def _end_with_stdin() -> None:
    while os.read(0, 1):
        pass
    os._exit(ORPHANED)  # whoever asked is gone; what the driver holds is the kernel's to take back
