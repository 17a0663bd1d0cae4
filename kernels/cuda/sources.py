"""The kernels' sources as one text for each module, and what a module is called."""

import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path

from kernels.dtype import DType

FOLDER = Path(__file__).parent
PLAIN_TYPES = ("F32", "F16", "BF16")
MODULES = ("elements", "cache", "tiled_attention", "activations", "sampling", "products")
BIASED = "BIASED"
_INCLUDE = re.compile(r'^#include "(\w+\.cuh)"$', re.MULTILINE)
_KERNEL = re.compile(r"^KERNEL (\w+)\(", re.MULTILINE)
_MADE = re.compile(r"^(MATVEC|TILED)\((\d+)(?:, \d)*\)$", re.MULTILINE)
_STEMS = {"MATVEC": "matvec", "TILED": "tiled_attention"}  # of what these macros make


@cache
def source_of(module: str, type_name: str = "", *, is_emulated: bool = False) -> str:
    """The text of a module with everything that it includes, the header of a GPU or the emulator's before it.

    type_name: the weights' type, of `products`, or two that share launches, such as "Q4_K+Q6_K"; BIASED of
    `tiled_attention` that adds a bias to scores.
    """
    texts = [header_of(is_emulated=is_emulated)]
    texts.append(f"enum {{ {', '.join(f'{dtype.name} = {dtype.ggml_id}' for dtype in DType)} }};")
    if type_name == BIASED:
        texts.append("#define IS_BIASED 1")
    elif type_name:
        first, *others = type_name.split("+")
        is_plain = int(first in PLAIN_TYPES)
        texts.append(
            f"#define TYPE {first}\n#define IS_PLAIN {is_plain}\n#define OTHER {(others or [first])[0]}\n"
        )
    texts.append(_expanded((FOLDER / f"{module}.cu").read_text(), set()))
    return "\n".join(texts).replace("#pragma once\n", "")


def header_of(*, is_emulated: bool) -> str:
    """What stands before every module."""
    names = ("emulator/cuda.hpp", "emulator/shadow.hpp") if is_emulated else ("device.cuh",)
    return "\n".join((FOLDER / name).read_text() for name in names).replace("#pragma once\n", "")


def kernels_of(module: str) -> list[str]:
    """The kernels' names, in order."""
    text = (FOLDER / f"{module}.cu").read_text()
    return [*_KERNEL.findall(text), *(f"{_STEMS[macro]}_{n}" for macro, n in _MADE.findall(text))]


def _expanded(text: str, seen: set[str]) -> str:
    """The text with each include in place of its first mention."""

    def content(match: "re.Match[str]") -> str:
        name = match[1]
        if name in seen:
            return ""
        seen.add(name)
        return _expanded((FOLDER / name).read_text(), seen)

    return _INCLUDE.sub(content, text)


def module_of(kernel: str) -> str:
    """The module that a kernel is in."""
    return _MODULES[kernel]


_MODULES: Mapping[str, str] = {kernel: module for module in MODULES for kernel in kernels_of(module)}
