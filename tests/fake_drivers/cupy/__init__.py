"""Imitates the part of CuPy that probes use, on devices described by the JSON file in $FAKE_DRIVERS.

    "cupy": {"is_hip": false, "devices": [...], "error": "cudaErrorNoDevice: ...",
             "crashes": [ordinal, ...], "hangs": [...], "wrong": [...], "uncompilable": [...],
             "runtime": 12040, "driver": 12060, "nvrtc": [12, 4] or null,
             "full": [...], "uncopyable": [...], "free": bytes, "copyto_s": 0.0, "to_host_s": 0.0}

An array is as large as REAL_BYTES at most: nobody looks at the rest.

Written from CuPy's documentation; no driver is behind it.  CUDA_VISIBLE_DEVICES hides devices as CUDA does: a
list of ordinals that ends at the first that there is not.
"""

import json
import os
import signal
import time
from pathlib import Path
from types import SimpleNamespace, TracebackType
from typing import Any

import numpy as np

__version__ = "99.0"
_script: dict[str, Any] = json.loads(Path(os.environ["FAKE_DRIVERS"]).read_text()).get("cupy", {})
if not _script:
    raise ModuleNotFoundError("No module named 'cupy'", name="cupy")
if "import_error" in _script:
    raise ImportError(_script["import_error"])
REAL_BYTES = 1 << 20
_now = {"ordinal": 0}
_queued_s = [0.0]  # work that the device has not done yet


class CUDARuntimeError(RuntimeError):
    pass


def _visible() -> list[dict[str, Any]]:
    if "error" in _script:
        raise CUDARuntimeError(_script["error"])
    devices: list[dict[str, Any]] = _script.get("devices", [])
    listed = os.environ.get("CUDA_VISIBLE_DEVICES")
    if listed is None:
        return devices
    chosen: list[dict[str, Any]] = []
    for word in listed.split(","):
        if not word.isdigit() or int(word) >= len(devices):
            break
        chosen.append(devices[int(word)])
    if not chosen:
        raise CUDARuntimeError("cudaErrorNoDevice: no CUDA-capable device is detected")
    return chosen


def _properties(ordinal: int) -> dict[str, Any]:
    device = _visible()[ordinal]
    made = {
        "name": b"Fake GPU",
        "totalGlobalMem": 8 << 30,
        "major": 8,
        "minor": 6,
        "integrated": 0,
        "pciDomainID": 0,
        "pciBusID": 1 + ordinal,
        "pciDeviceID": 0,
    }
    made |= {key: value for key, value in device.items() if key in made}
    made["name"] = str(device.get("name", "Fake GPU")).encode()
    if "uuid" in device:
        made["uuid"] = bytes.fromhex(device["uuid"])
    if "gcnArchName" in device:
        made["gcnArchName"] = device["gcnArchName"].encode()
    return made


def _synchronize() -> None:
    time.sleep(_queued_s[0])
    _queued_s[0] = 0.0


runtime = SimpleNamespace(
    is_hip=_script.get("is_hip", False),
    CUDARuntimeError=CUDARuntimeError,
    getDeviceCount=lambda: len(_visible()),
    getDeviceProperties=_properties,
    memGetInfo=lambda: (_script.get("free", 3 << 30), 8 << 30),
    deviceSynchronize=_synchronize,
    runtimeGetVersion=lambda: _script.get("runtime", 12040),
    driverGetVersion=lambda: _script.get("driver", 12060),
)


def _nvrtc_version() -> tuple[int, int]:
    if "nvrtc" not in _script:
        return 12, 4
    if _script["nvrtc"] is None:
        raise RuntimeError("CuPy failed to load libnvrtc.so.12")
    return tuple(_script["nvrtc"])


nvrtc = SimpleNamespace(getVersion=_nvrtc_version)


class _Device:
    def __init__(self, ordinal: int) -> None:
        self._ordinal = ordinal

    def __enter__(self) -> None:
        _now["ordinal"] = self._ordinal
        if self._ordinal in _script.get("crashes", []):
            os.kill(os.getpid(), signal.SIGSEGV)
        while self._ordinal in _script.get("hangs", []):
            signal.pause()

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None


class OutOfMemoryError(MemoryError):
    pass


class _Array(np.ndarray[Any, Any]):
    """An array of the device."""

    def set(self, array: np.ndarray[Any, Any]) -> None:
        self[...] = array


cuda = SimpleNamespace(
    runtime=runtime, nvrtc=nvrtc, Device=_Device, memory=SimpleNamespace(OutOfMemoryError=OutOfMemoryError)
)
arange = np.arange


def zeros(n: int, dtype: str) -> _Array:
    if _now["ordinal"] in _script.get("full", []) and n > REAL_BYTES:
        raise OutOfMemoryError(f"Out of memory allocating {n:,} bytes")
    return np.zeros(min(n, REAL_BYTES), dtype).view(_Array)


def asnumpy(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    _queued_s[0] += _script.get("to_host_s", 0.0)
    _synchronize()
    return np.array(array)


def copyto(target: _Array, source: _Array) -> None:
    if _now["ordinal"] in _script.get("uncopyable", []):
        raise CUDARuntimeError("cudaErrorECCUncorrectable: uncorrectable ECC error encountered")
    target[...] = source
    _queued_s[0] += _script.get("copyto_s", 0.0)


class RawKernel:
    def __init__(self, source: str, name: str) -> None:
        assert f"void {name}(" in source
        if _now["ordinal"] in _script.get("uncompilable", []):
            raise RuntimeError("\n====\nnvrtc: error: invalid value for --gpu-architecture\n")

    def __call__(self, grid: tuple[int], block: tuple[int], args: tuple[Any, Any, int]) -> None:
        x, y, n = args
        n_threads = min(n, grid[0] * block[0])
        y[:n_threads] = 2 * x[:n_threads]
        if _now["ordinal"] in _script.get("wrong", []):
            y[0] = 1
