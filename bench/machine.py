"""The machine in words that say what matters for speed and name no machine."""

import datetime
import os
from pathlib import Path

from bench.results import Machine


def describe(n_threads: int, isa: str) -> Machine:
    """Processors allowed, their model, the kernels' instruction set, and today."""
    today = datetime.datetime.now(datetime.UTC).date().isoformat()
    n_processors = len(os.sched_getaffinity(0))
    return Machine(f"{n_processors} processors ({_model()}), kernels for {isa}", n_threads, isa, today)


def _model() -> str:
    fields = {"vendor_id": "unknown", "cpu family": "unknown", "model": "unknown"}
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        key, _, value = line.partition(":")
        if key.strip() in fields:
            fields[key.strip()] = value.strip()
    return f"{fields['vendor_id']} family {fields['cpu family']} model {fields['model']}"
