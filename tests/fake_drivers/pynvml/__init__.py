"""Imitates the part of pynvml that probes use, on GPUs described by the JSON file in $FAKE_DRIVERS.

    "nvml": {"gpus": [{"uuid": "GPU-...", "busId": "00000000:01:00.0", "total": 1, "free": 1}], "error": 12}

"processes" of a GPU are [{"pid": 1, "used": bytes or null}, ...].

A GPU without "total" shares the host's memory; one that is "lost" answers nothing.
"""

import json
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

NVML_ERROR_NOT_SUPPORTED = 3


class NVMLError(Exception):
    def __init__(self, value: int) -> None:
        super().__init__(f"error {value}")
        self.value = value


def _script() -> dict[str, Any]:
    script: dict[str, Any] = json.loads(Path(os.environ["FAKE_DRIVERS"]).read_text())
    return script.get("nvml", {"error": 12})  # NVML_ERROR_LIBRARY_NOT_FOUND


def nvmlInit() -> None:
    if "error" in _script():
        raise NVMLError(_script()["error"])


def nvmlSystemGetDriverVersion() -> str:
    return "560.35"


def nvmlSystemGetCudaDriverVersion() -> int:
    return int(_script().get("cuda", 12060))


def nvmlDeviceGetCount() -> int:
    return len(_script()["gpus"])


def nvmlDeviceGetHandleByIndex(index: int) -> dict[str, Any]:
    gpu: dict[str, Any] = _script()["gpus"][index]
    return gpu


def nvmlDeviceGetUUID(gpu: dict[str, Any]) -> str:
    if gpu.get("lost"):
        raise NVMLError(15)  # NVML_ERROR_GPU_IS_LOST
    return str(gpu["uuid"])


def nvmlDeviceGetName(gpu: dict[str, Any]) -> bytes:
    return str(gpu.get("name", "Fake GPU")).encode()


def nvmlDeviceGetPciInfo(gpu: dict[str, Any]) -> SimpleNamespace:
    return SimpleNamespace(busId=gpu["busId"])


def nvmlDeviceGetMemoryInfo(gpu: dict[str, Any]) -> SimpleNamespace:
    if "total" not in gpu:
        raise NVMLError(NVML_ERROR_NOT_SUPPORTED)
    return SimpleNamespace(total=gpu["total"], free=gpu["free"])


def nvmlDeviceGetHandleByUUID(uuid: str) -> dict[str, Any]:
    for gpu in _script()["gpus"]:
        if gpu["uuid"] == uuid:
            return dict(gpu)
    raise NVMLError(6)  # NVML_ERROR_NOT_FOUND


def nvmlDeviceGetComputeRunningProcesses(gpu: dict[str, Any]) -> list[SimpleNamespace]:
    return [SimpleNamespace(pid=p["pid"], usedGpuMemory=p["used"]) for p in gpu.get("processes", [])]
