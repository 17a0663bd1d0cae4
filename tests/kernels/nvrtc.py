"""NVRTC's C interface: CUDA C to machine code of any architecture, without a GPU or a driver."""

import ctypes
import importlib.util
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path


@dataclass(frozen=True)
class Usage:
    """What a kernel takes of a multiprocessor."""

    n_registers: int
    shared_bytes: int
    spill_bytes: int  # stored and loaded again for lack of registers


class CompileError(Exception):
    """The compiler's words, warnings among them."""


def library() -> Path | None:
    """The shared library of the package nvidia-cuda-nvrtc, None where it is not installed."""
    spec = importlib.util.find_spec("nvidia")
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        found = sorted(Path(folder).glob("**/libnvrtc.so.*"))
        if found:
            return found[0]
    return None


@cache
def _nvrtc(path: Path) -> ctypes.CDLL:
    return ctypes.CDLL(str(path))


def compile_for(path: Path, source: str, arch: str, options: Sequence[str] = ()) -> Mapping[str, Usage]:
    """Compile for an architecture such as "sm_90"; what each kernel takes.  CompileError for warnings."""
    nvrtc = _nvrtc(path)
    program = ctypes.c_void_p()
    _check(
        nvrtc, nvrtc.nvrtcCreateProgram(ctypes.byref(program), source.encode(), b"kernels.cu", 0, None, None)
    )
    try:
        flags = [f"--gpu-architecture={arch}", "--std=c++17", "--ptxas-options=-v", *options]
        raw = (ctypes.c_char_p * len(flags))(*[flag.encode() for flag in flags])
        code = nvrtc.nvrtcCompileProgram(program, len(flags), raw)
        n_bytes = ctypes.c_size_t()
        nvrtc.nvrtcGetProgramLogSize(program, ctypes.byref(n_bytes))
        buffer = ctypes.create_string_buffer(n_bytes.value)
        nvrtc.nvrtcGetProgramLog(program, buffer)
        log = buffer.value.decode()
        if code or "warning" in log.lower():
            raise CompileError(f"{arch}: {log[:4000]}")
        return _usage(log)
    finally:
        nvrtc.nvrtcDestroyProgram(ctypes.byref(program))


_KERNEL = re.compile(r"Compiling entry function '(\w+)'")
_SPILLS = re.compile(r"(\d+) bytes spill stores, (\d+) bytes spill loads")
_USED = re.compile(r"Used (\d+) registers")
_SHARED = re.compile(r"(\d+) bytes smem")


def _usage(log: str) -> Mapping[str, Usage]:
    found: dict[str, Usage] = {}
    name = ""
    for part in _KERNEL.split(log)[1:]:
        if part.isidentifier():
            name = part
            continue
        used, spills, shared = _USED.search(part), _SPILLS.search(part), _SHARED.search(part)
        if used:
            spilled = int(spills[1]) + int(spills[2]) if spills else 0
            found[name] = Usage(int(used[1]), int(shared[1]) if shared else 0, spilled)
    return found


def _check(nvrtc: ctypes.CDLL, code: int) -> None:
    if code:
        nvrtc.nvrtcGetErrorString.restype = ctypes.c_char_p
        raise RuntimeError(nvrtc.nvrtcGetErrorString(code).decode())
