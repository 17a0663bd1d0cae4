"""Every module compiles for every architecture without a warning, and takes what is recorded.

python -m tests.kernels.test_cuda_compiles --record
"""

import json
import sys
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from kernels.cuda.sources import BIASED, MODULES, kernels_of, source_of
from tests.kernels.nvrtc import CompileError, Usage, compile_for, library

RECORDED = Path(__file__).with_name("cuda_usage.json")
ARCHS = ("sm_75", "sm_80", "sm_86", "sm_89", "sm_90", "sm_100", "sm_120")
TYPES = (
    "Q4_K",
    "F16",
    "Q4_K+Q6_K",
)  # the same source for each: for all architectures these, for the oldest the others
RARER = (
    "F32",
    "BF16",
    "Q8_0",
    "Q6_K",
    "Q4_0",
    "Q4_1",
    "Q5_0",
    "Q5_1",
    "Q2_K",
    "Q3_K",
    "Q5_K",
    "IQ4_NL",
    "MXFP4",
    "Q5_K+Q6_K",  # of pairs, what files of one quantisation mix
    "Q2_K+Q3_K",
    "Q8_0+Q5_0",
)
SPARE_REGISTERS = 8  # what another release of the compiler may want

CASES = [
    *((module, "", arch) for module in MODULES if module != "products" for arch in ARCHS),
    *(("tiled_attention", BIASED, arch) for arch in ARCHS),
    *(("products", kind, arch) for kind in TYPES for arch in ARCHS),
    *(("products", kind, ARCHS[0]) for kind in RARER),
]
needs_nvrtc = pytest.mark.skipif(library() is None, reason="the package nvidia-cuda-nvrtc is not installed")


def compiled() -> dict[str, Mapping[str, Usage]]:
    """Usage of every case by "module type arch"."""
    path = library()
    assert path is not None

    def one(case: tuple[str, str, str]) -> Mapping[str, Usage]:
        module, kind, arch = case
        return compile_for(path, source_of(module, kind), arch)

    with ThreadPoolExecutor(2) as pool:  # NVRTC lets go of the interpreter
        return {
            " ".join(filter(None, case)): usage
            for case, usage in zip(CASES, pool.map(one, CASES), strict=True)
        }


@needs_nvrtc
def test_every_module_compiles_and_takes_what_is_recorded() -> None:
    recorded: dict[str, dict[str, list[int]]] = json.loads(RECORDED.read_text())
    for case, usage in compiled().items():
        assert sorted(usage) == sorted(kernels_of(case.split()[0])), case
        for kernel, used in usage.items():
            n_registers, shared_bytes = recorded[case][kernel]
            assert used.spill_bytes == 0, (case, kernel)
            assert used.n_registers <= n_registers + SPARE_REGISTERS, (case, kernel)
            assert used.shared_bytes <= shared_bytes, (case, kernel)


@needs_nvrtc
def test_a_warning_is_an_error() -> None:
    path = library()
    assert path is not None
    with pytest.raises(CompileError, match="never referenced"):
        compile_for(path, 'extern "C" __global__ void k(int* x) { int unused = 1; x[0] = 2; }', "sm_90")


def record() -> None:
    """Store what this compiler takes."""
    made = {
        case: {kernel: [used.n_registers, used.shared_bytes] for kernel, used in sorted(usage.items())}
        for case, usage in compiled().items()
    }
    lines = ",\n".join(f" {json.dumps(case)}: {json.dumps(usage)}" for case, usage in made.items())
    RECORDED.write_text(f"{{\n{lines}\n}}\n")
    print(f"recorded {len(made)} modules")


if __name__ == "__main__" and "--record" in sys.argv:
    record()
