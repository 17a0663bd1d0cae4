"""The emulator: matrix instructions hold what the PTX ISA says that a GPU's do, races are found."""

import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from kernels.cuda.driver import Launch
from kernels.cuda.emulator.driver import compiled, emulate
from kernels.cuda.sources import header_of

F16 = npt.NDArray[np.float16]
U32 = npt.NDArray[np.uint32]
LANES = np.arange(32)
GROUP, IN_GROUP = LANES // 4, LANES % 4  # groupID and threadID_in_group
SEED = 3

KERNELS = """
KERNEL multiply(const unsigned* a, const unsigned* b, float* c) {
    const int lane = threadIdx.x;
    unsigned words[4];
    float sums[4];
    for (int i = 0; i < 4; i++) words[i] = a[lane * 4 + i], sums[i] = c[lane * 4 + i];
    mma(sums, words, b[lane * 2], b[lane * 2 + 1]);
    for (int i = 0; i < 4; i++) c[lane * 4 + i] = sums[i];
}
KERNEL load(const unsigned short* rows, unsigned* to) {
    __shared__ unsigned short shared[32 * 8];
    for (int i = 0; i < 8; i++) shared[threadIdx.x * 8 + i] = rows[threadIdx.x * 8 + i];
    __syncwarp();
    unsigned words[4];
    load_transposed(words, shared + threadIdx.x * 8);
    for (int i = 0; i < 4; i++) to[threadIdx.x * 4 + i] = words[i];
}
"""


# each of 64 threads writes a number, reads that of the thread `n_away` from it, and writes again
RACES = """
#define READS(name, n_away, between, after)                         \\
    KERNEL name(int* to) {                                          \\
        __shared__ unsigned short shared[64];                       \\
        const int mine = threadIdx.x, other = (mine + n_away) % 64; \\
        shared[mine] = (unsigned short)mine;                        \\
        between;                                                    \\
        to[mine] = shared[other];                                   \\
        after;                                                      \\
        shared[mine] = 0;                                           \\
    }
#define IN_WARP (mine % 32 == 31 ? 33 : 1)
READS(ordered_by_block, 32, __syncthreads(), __syncthreads())
READS(ordered_by_warp, IN_WARP, __syncwarp(), __syncwarp())
READS(read_early, 32, , __syncthreads())
READS(written_early, 32, __syncthreads(), )
READS(ordered_by_an_exchange, IN_WARP, __shfl_sync(~0u, mine, 0), __syncwarp())
READS(ordered_by_another_warp, 32, __syncwarp(), __syncthreads())
"""


def run(folder: Path, kernel: str, *arrays: npt.NDArray[np.generic], n_threads: int = 32) -> None:
    """One block; arrays are changed."""
    names = re.findall(r"^(?:KERNEL |READS\()(\w+)", KERNELS + RACES, re.MULTILINE)
    library = compiled(folder, "test", header_of(is_emulated=True) + KERNELS + RACES, names, is_watched=True)
    args = tuple(np.uint64(array.ctypes.data) for array in arrays)
    emulate(library, Launch(kernel, "", (1, 1, 1), n_threads, args), SEED)


def halves(shape: tuple[int, ...], seed: int) -> F16:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float16)


def words_of(low: F16, high: F16) -> U32:
    """Two halves to a word."""
    return (low.view(np.uint16) | high.view(np.uint16).astype(np.uint32) << 16).astype(np.uint32)


def fragment_a(a: F16) -> U32:
    """m16n8k16, a_i: row groupID, + 8 for i & 2; column 2 * threadID_in_group + (i & 1), + 8 from i = 4."""
    return np.stack(
        [
            words_of(a[row, col], a[row, col + 1])
            for row, col in ((GROUP + 8 * (i // 2 % 2), 2 * IN_GROUP + 8 * (i // 4)) for i in range(0, 8, 2))
        ],
        axis=1,
    )


def fragment_b(b: F16) -> U32:
    """m16n8k16, b_i: row 2 * threadID_in_group + (i & 1), + 8 from i = 2; column groupID."""
    rows = (2 * IN_GROUP, 2 * IN_GROUP + 8)
    return np.stack([words_of(b[row, GROUP], b[row + 1, GROUP]) for row in rows], axis=1)


def test_mma_adds_the_product_of_fragments_as_the_isa_lays_them_out(tmp_path: Path) -> None:
    a, b = halves((16, 16), 1), halves((16, 8), 2)
    before = halves((16, 8), 3).astype(np.float32)
    at = [(GROUP + 8 * (i // 2), 2 * IN_GROUP + i % 2) for i in range(4)]
    c = np.stack([before[place] for place in at], axis=1)
    run(tmp_path, "multiply", fragment_a(a), fragment_b(b), c)
    got = np.empty_like(before)
    for i, place in enumerate(at):
        got[place] = c[:, i]
    want = before + a.astype(np.float64) @ b.astype(np.float64)
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-5)


def test_loaded_transposed_rows_are_the_second_factor(tmp_path: Path) -> None:
    b = halves((16, 16), 4)  # two factors [16, 8] side by side
    rows = np.concatenate([b[:8, :8], b[8:, :8], b[:8, 8:], b[8:, 8:]])  # of lanes 0..7, 8..15, ...
    words = np.zeros((32, 4), np.uint32)
    run(tmp_path, "load", np.ascontiguousarray(rows), words)
    np.testing.assert_array_equal(words[:, :2], fragment_b(b[:, :8]))
    np.testing.assert_array_equal(words[:, 2:], fragment_b(b[:, 8:]))


@pytest.mark.parametrize("kernel", ["ordered_by_block", "ordered_by_warp"])
def test_what_a_barrier_orders_is_no_race(tmp_path: Path, kernel: str) -> None:
    got = np.zeros(64, np.int32)
    run(tmp_path, kernel, got, n_threads=64)
    away = np.full(64, 32) if kernel == "ordered_by_block" else np.where(np.arange(64) % 32 == 31, 33, 1)
    np.testing.assert_array_equal(got, (np.arange(64) + away) % 64)


@pytest.mark.parametrize(
    "kernel", ["read_early", "written_early", "ordered_by_an_exchange", "ordered_by_another_warp"]
)
def test_a_race_in_shared_memory_ends_the_process_with_words(tmp_path: Path, kernel: str) -> None:
    code = (
        "import sys, pathlib, numpy as np; from tests.kernels.test_cuda_emulator import run;"
        "run(pathlib.Path(sys.argv[1]), sys.argv[2], np.zeros(64, np.int32), n_threads=64)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path), kernel], capture_output=True, text=True, check=False
    )
    assert done.returncode == -signal.SIGABRT
    assert "two threads touch a byte of shared memory without a barrier between" in done.stderr
