"""Imitates the part of amdsmi that probes use, on cards described by the JSON file in $FAKE_DRIVERS.

"amdsmi": {"0000:03:00.0": [total, used]}
"""

import json
import os
from pathlib import Path
from types import SimpleNamespace


class AmdSmiException(Exception):
    pass


AmdSmiMemoryType = SimpleNamespace(VRAM=0)


def _cards() -> dict[str, list[int]]:
    cards: dict[str, list[int]] = json.loads(Path(os.environ["FAKE_DRIVERS"]).read_text()).get("amdsmi", {})
    return cards


def amdsmi_init() -> None:
    if not _cards():
        raise AmdSmiException("driver not loaded")


def amdsmi_get_processor_handles() -> list[str]:
    return list(_cards())


def amdsmi_get_gpu_memory_total(handle: str, kind: int) -> int:
    assert kind == AmdSmiMemoryType.VRAM
    return _cards()[handle][0]


def amdsmi_get_gpu_memory_usage(handle: str, kind: int) -> int:
    assert kind == AmdSmiMemoryType.VRAM
    return _cards()[handle][1]


def amdsmi_get_gpu_device_bdf(handle: str) -> str:
    return handle.upper()
