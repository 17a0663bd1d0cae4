"""`python -m bench.cuda`: a GPU's limits; what products, attention and whole models of ours attain of them.

Needs CuPy and a GPU, and nothing built: models are programs over random weights, which no file holds.
"""

import argparse
import importlib
import sys
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from statistics import median
from typing import Any

import numpy as np

from bench.inputs import index_arrays
from bench.shapes import SHAPES, Shape, dtype_of
from kernels.cuda.backend import CudaBackend
from kernels.cuda.cupy_driver import CupyDriver
from kernels.cuda.driver import Gemm, Work
from kernels.cuda.fuse import MAX_COUNTERS
from kernels.cuda.launches import Place
from kernels.cuda.works import scratch_bytes, works_of
from kernels.dtype import DType
from kernels.executable import Executable
from kernels.memory import Buffer, Bytes, Memory
from kernels.ops.matmul import Matmul
from kernels.ops.op import Array
from kernels.ops.rope import Rotation
from kernels.plan import Placement, plans
from kernels.program import Program, ProgramBuilder
from kernels.reference import ReferenceBackend
from kernels.tensor import N_OUTPUTS, N_PAGES, N_SEQS, N_TOKENS, Tensor

COPY_BYTES = 2 << 30
MATRIX_N = 8192
ROTATED_BYTES = 400 << 20  # of copies of a weight: several times what caches hold
PAGE_SIZE = 32
N_PASSES = 5
GIGA, TERA = 1e9, 1e12
HOST = "cpu"


def main(arguments: Sequence[str]) -> int:
    """Process entry; the exit code."""
    options = _parser().parse_args(arguments)
    cupy: Any = importlib.import_module("cupy")  # has no types
    properties = cupy.cuda.runtime.getDeviceProperties(0)
    driver = CupyDriver(0, properties["name"].decode())
    driver.open()
    versions = f"driver serves CUDA {cupy.cuda.runtime.driverGetVersion()}, CuPy {cupy.__version__}"
    print(f"{driver.title}, {versions}, NVRTC {cupy.cuda.nvrtc.getVersion()}\n", flush=True)
    bandwidth = _limits(cupy)
    if "products" in options.only:
        _products(cupy, driver, bandwidth, options)
    if "attention" in options.only:
        _attention(cupy, driver)
    for name in options.shapes:
        for file_type in options.types.split(","):
            if "models" in options.only:
                _model(driver, SHAPES[name], file_type, bandwidth, options)
    return 0


def _limits(cupy: Any) -> float:  # noqa: ANN401  # CuPy has no types
    """Bytes a second of a copy, read and written; printed beside the matrix peak."""
    a, b = cupy.ones(COPY_BYTES, cupy.uint8), cupy.empty(COPY_BYTES, cupy.uint8)
    bandwidth = 2 * COPY_BYTES / _timed(cupy, partial(cupy.copyto, b, a))
    del a, b
    x = cupy.random.standard_normal((MATRIX_N, MATRIX_N), cupy.float32).astype(cupy.float16)
    peak = 2 * MATRIX_N**3 / _timed(cupy, partial(cupy.matmul, x, x))
    del x
    cupy.get_default_memory_pool().free_all_blocks()
    print(f"copy {bandwidth / GIGA:.0f} GB/s, f16 matrix product {peak / TERA:.0f} TFLOP/s\n", flush=True)
    return bandwidth


def _timed(cupy: Any, work: Callable[[], object], n_passes: int = N_PASSES) -> float:  # noqa: ANN401
    """Median seconds by events on the current stream, after one pass to warm up."""
    found: list[float] = []
    for _ in range(n_passes + 1):
        begin, end = cupy.cuda.Event(), cupy.cuda.Event()
        begin.record()
        work()
        end.record()
        end.synchronize()
        found.append(cupy.cuda.get_elapsed_time(begin, end) / 1e3)
    return median(found[1:])


def _products(cupy: Any, driver: CupyDriver, bandwidth: float, options: argparse.Namespace) -> None:  # noqa: ANN401
    print(
        "| product | type | rows | us | GB/s of weight | of copy | TFLOP/s |\n|---|---|---|---|---|---|---|"
    )
    rng = np.random.default_rng(1)
    for n_out, n_in in ((4096, 4096), (14336, 4096), (4096, 14336)):
        for dtype in (DType.Q4_K, DType.Q6_K, DType.Q8_0, DType.F16):
            n_bytes = dtype.n_bytes(n_in * n_out)
            raw = rng.integers(0, 60, n_bytes, np.uint8)  # small scales: no infinities
            copies = [driver.allocate(n_bytes) for _ in range(max(2, ROTATED_BYTES // n_bytes))]
            for pointer in copies:
                driver.upload(pointer, raw)
            for n in options.rows:
                seconds = _product_s(cupy, driver, n_out, n_in, dtype, n, copies)
                rate, flops = n_bytes / seconds, 2 * n * n_in * n_out / seconds
                cells = f"{n_out}x{n_in} | {dtype.name} | {n} | {1e6 * seconds:.1f} | {rate / GIGA:.0f}"
                print(f"| {cells} | {rate / bandwidth:.0%} | {flops / TERA:.1f} |", flush=True)
            for pointer in copies:
                driver.free(pointer)
    print()


def _product_s(
    cupy: Any,  # noqa: ANN401
    driver: CupyDriver,
    n_out: int,
    n_in: int,
    dtype: DType,
    n: int,
    copies: Sequence[int],
) -> float:
    """Seconds of one product, weights taken in turn so that no cache holds them."""
    g = ProgramBuilder(1)
    x = g.input("x", (n, n_in), DType.F32)
    weight = g.weight("w", (n_out, n_in), dtype)
    g.output("out", g.matmul(x, weight))
    op = g.build().ops[0]
    assert isinstance(op, Matmul)
    needed = {t: driver.allocate(t.n_bytes({})) for t in (x, op.out)}
    scratch = driver.allocate(max(512, scratch_bytes(op, {}, has_gemm=True)))
    driver.upload(
        needed[x], np.random.default_rng(2).standard_normal((n, n_in), np.float32).view(np.uint8).reshape(-1)
    )
    works: list[Work] = []
    for pointer in copies:
        address = {**needed, weight: pointer}.__getitem__
        place = Place(address, scratch, (), {}, scratch, scratch, {}, has_gemm=True)
        works += works_of([op], place, {})
    driver.prepare(works)
    driver.run(works)
    driver.synchronize()
    has_gemm = any(isinstance(work, Gemm) for work in works)
    graph = None if has_gemm else driver.record(works)
    with driver.stream:
        seconds = _timed(cupy, (lambda: driver.run(works)) if graph is None else graph.launch)
    for pointer in (*needed.values(), scratch):
        driver.free(pointer)
    return seconds / len(copies)


def _attention(cupy: Any, driver: CupyDriver) -> None:  # noqa: ANN401  # CuPy has no types
    """A layer's, of an 8B model's prompt; a cache of f32 is attended to row by row."""
    print("| attention | cache | rows | after | us | TFLOP/s |\n|---|---|---|---|---|---|")
    shape = SHAPES["8B"]
    for dtype in (DType.F16, DType.Q8_0, DType.F32):
        for n, depth in ((64, 4000), (512, 0), (512, 3584), (2048, 0)):
            seconds = _attention_s(cupy, driver, shape, dtype, n, depth)
            flops = 4 * shape.q_width * n * (depth + (n + 1) / 2) / seconds
            cells = f"{shape.n_head}x{shape.head_dim} / {shape.n_head_kv} | {dtype.name} | {n} | {depth}"
            print(f"| {cells} | {1e6 * seconds:.1f} | {flops / TERA:.1f} |", flush=True)
    print()


def _attention_s(cupy: Any, driver: CupyDriver, shape: Shape, dtype: DType, n: int, depth: int) -> float:  # noqa: ANN401
    """Seconds for the last n positions of a sequence of depth + n."""
    g = ProgramBuilder(1)
    n_pages = -(-(depth + n) // PAGE_SIZE)
    q, rows, n_visible = (
        g.input("q", (n, shape.q_width), DType.F32),
        *(g.input(name, (n,)) for name in ("rows", "n_visible")),
    )
    tables = g.input("tables", (1, n_pages))
    k_state, v_state = (g.state(name, (n_pages * PAGE_SIZE, shape.kv_width), dtype) for name in "kv")
    out = g.attention(
        q, k_state, v_state, tables, rows, n_visible,
        head_dim=shape.head_dim, page_size=PAGE_SIZE, scale=shape.head_dim**-0.5,
    )  # fmt: skip
    g.output("out", out)
    op = g.build().ops[0]
    rng = np.random.default_rng(5)
    small = [
        rng.integers(0, 60, state.n_bytes({}), np.uint8) for state in (k_state, v_state)
    ]  # finite in any type
    given: dict[Tensor, Array] = {
        q: rng.standard_normal((n, shape.q_width), np.float32),
        rows: np.zeros(n, np.int32),
        n_visible: np.arange(depth + 1, depth + n + 1, dtype=np.int32),
        tables: rng.permutation(n_pages).astype(np.int32),
        k_state: small[0],
        v_state: small[1],
    }
    pointers = {t: driver.allocate(t.n_bytes({})) for t in (*given, out)}
    for tensor, array in given.items():
        driver.upload(pointers[tensor], array.reshape(-1).view(np.uint8))
    scratch = driver.allocate(max(512, scratch_bytes(op, {}, has_gemm=True)))
    counters = driver.allocate(4 * MAX_COUNTERS)
    place = Place(pointers.__getitem__, scratch, (), {}, counters, scratch, {}, has_gemm=True)
    works = works_of([op], place, {})
    driver.prepare(works)
    with driver.stream:
        seconds = _timed(cupy, lambda: driver.run(works))
    for pointer in (*pointers.values(), counters, scratch):
        driver.free(pointer)
    return seconds


def _llama(shape: Shape, file_type: str, n_cells: int) -> Program:
    """A llama decoder after its embedding: input `x`."""
    g = ProgramBuilder(shape.n_layer)
    x = g.input("x", (N_TOKENS, shape.n_embd), DType.F32)
    positions, cells, rows, n_visible = (
        g.input(name, (N_TOKENS,)) for name in ("positions", "cells", "rows", "n_visible")
    )
    tables, outputs = g.input("tables", (N_SEQS, N_PAGES)), g.input("outputs", (N_OUTPUTS,))
    rotation = Rotation(
        "norm", tuple(shape.rope_base ** (-2 * i / shape.head_dim) for i in range(shape.head_dim // 2))
    )

    def weight(name: str) -> Tensor:
        return g.weight(name, shape.tensors()[name], dtype_of(shape, file_type, name))

    def norm(x: Tensor, name: str) -> Tensor:
        return g.rms_norm(x, weight(name), shape.eps)

    for i in range(shape.n_layer):
        with g.in_layer(i):
            normed = norm(x, f"blk.{i}.attn_norm.weight")
            q, k, v = (g.matmul(normed, weight(f"blk.{i}.attn_{kind}.weight")) for kind in "qkv")
            q = g.rope(q, positions, shape.head_dim, rotation)
            k_state, v_state = (g.state(f"{kind}.{i}", (n_cells, shape.kv_width), DType.F16) for kind in "kv")
            g.store_kv(
                k, v, positions, cells, k_state, v_state,
                head_dim=shape.head_dim, page_size=PAGE_SIZE, rotation=rotation,
            )  # fmt: skip
            mixed = g.attention(
                q, k_state, v_state, tables, rows, n_visible,
                head_dim=shape.head_dim, page_size=PAGE_SIZE, scale=shape.head_dim**-0.5,
            )  # fmt: skip
            x = g.matmul(mixed, weight(f"blk.{i}.attn_output.weight"), None, x)
            if i == shape.n_layer - 1:
                x = g.rows(x, outputs)
            normed = norm(x, f"blk.{i}.ffn_norm.weight")
            gate, up = (g.matmul(normed, weight(f"blk.{i}.ffn_{kind}.weight")) for kind in ("gate", "up"))
            x = g.matmul(g.gate(gate, up, "silu"), weight(f"blk.{i}.ffn_down.weight"), None, x)
    with g.in_layer(shape.n_layer):
        g.output("logits", g.matmul(norm(x, "output_norm.weight"), weight(shape.output)))
    return g.build()


@dataclass(frozen=True, slots=True)
class Loaded:
    """A model on the device."""

    executables: Sequence[tuple[int, Executable]]
    weight_bytes: int
    n_cells: int

    def run(self, inputs: dict[str, Array]) -> dict[str, Array]:
        """By the smallest plan that takes it."""
        n = len(inputs["positions"])
        return next(one for bound, one in self.executables if n <= bound).run(inputs)


def _random_bytes(dtype: DType, n_bytes: int, block: Bytes, rng: np.random.Generator) -> Bytes:
    """Of a weight; norms are ones, block formats have small scales."""
    if dtype is DType.F32:
        return np.ones(n_bytes // 4, np.float32).view(np.uint8)
    if dtype is DType.F16:
        return (rng.standard_normal(n_bytes // 2, np.float32) * 0.02).astype(np.float16).view(np.uint8)
    return block[:n_bytes]


@contextmanager
def _loaded(
    driver: CupyDriver, shape: Shape, file_type: str, n_ctx: int, buckets: Sequence[int]
) -> Generator[Loaded]:
    """A model of random weights, freed at the end."""
    n_cells = max(n_ctx, 64 * 512)
    program = _llama(shape, file_type, n_cells)
    backend = CudaBackend("cuda", driver)
    backends = {HOST: ReferenceBackend(HOST), "cuda": backend}
    placement = Placement(("cuda",) * (shape.n_layer + 1), HOST)
    bounds = [
        {
            N_TOKENS.name: n,
            N_OUTPUTS.name: min(n, 64),
            N_SEQS.name: min(n, 64),
            N_PAGES.name: n_ctx // PAGE_SIZE,
        }
        for n in buckets
    ]
    made = plans(program, placement, backends, bounds)
    rng = np.random.default_rng(3)
    block = rng.integers(0, 60, 64 << 20, np.uint8)
    buffers: list[Buffer] = []
    weights: dict[tuple[str, str], Memory] = {}
    began_s, weight_bytes = time.perf_counter(), 0
    for tensor, device in made[0].weights:
        n_bytes = tensor.n_bytes({})
        buffer = backend.allocate(n_bytes, "weights")
        buffers.append(buffer)
        for begin in range(0, n_bytes, len(block)):
            part = min(len(block), n_bytes - begin)
            buffer.memory.part(begin, part).upload(_random_bytes(tensor.dtype, part, block, rng))
        weights[tensor.name, device] = buffer.memory
        weight_bytes += n_bytes
    driver.synchronize()
    took_s = time.perf_counter() - began_s
    rate = weight_bytes / took_s / GIGA
    print(f"{shape.name} {file_type}: {weight_bytes / GIGA:.2f} GB, loaded at {rate:.1f} GB/s")
    states: dict[str, Memory] = {}
    for tensor in program.states.values():
        buffers.append(backend.allocate(tensor.n_bytes({}), "cache"))
        states[tensor.name] = buffers[-1].memory
    graphs: dict[str, Memory] = {}
    for device in backends:
        n_bytes = max(one.graph_bytes[device] for one in made)
        buffers.append(backends[device].allocate(n_bytes, "graph"))
        graphs[device] = buffers[-1].memory
    cache_bytes = sum(state.n_bytes for state in states.values())
    print(f"compute buffer {graphs['cuda'].n_bytes / GIGA:.2f} GB, cache {cache_bytes / GIGA:.2f} GB")
    executables = [
        (n, one.bind(backends, graphs, weights, states)) for n, one in zip(buckets, made, strict=True)
    ]
    try:
        yield Loaded(executables, weight_bytes, n_cells)
    finally:
        for buffer in buffers:
            buffer.free()


def _model(
    driver: CupyDriver, shape: Shape, file_type: str, bandwidth: float, options: argparse.Namespace
) -> None:
    with _loaded(driver, shape, file_type, 4096, (1, 8, 16, 32, 64, options.n_batch)) as loaded:
        print("| batch | depth | ms | ms without logits' way | tok/s | of copy |\n|---|---|---|---|---|---|")
        for n_seq in (1, 2, 4, 8, 16, 32, 64):
            for depth in (32, 448) if n_seq > 1 else (32, 448, 4000):
                steps = [_inputs(shape, [depth + k] * n_seq, 1, loaded.n_cells) for k in range(24)]
                seconds = _wall_s(loaded, steps)
                alone = _device_s(driver, loaded, steps)
                rate = loaded.weight_bytes / alone / bandwidth
                cells = f"{n_seq} decoded | {depth} | {1e3 * seconds:.3f} | {1e3 * alone:.3f}"
                print(f"| {cells} | {n_seq / seconds:.0f} | {rate:.0%} |", flush=True)
        for n in (512, 2048):
            if n > options.n_batch:
                continue
            step = _inputs(shape, [0], n, loaded.n_cells)
            seconds = _wall_s(loaded, [step] * 4)
            print(f"| prompt of {n} | 0 | {1e3 * seconds:.1f} | | {n / seconds:.0f} | |", flush=True)
    print()


def _wall_s(loaded: Loaded, steps: Sequence[dict[str, Array]]) -> float:
    """Median seconds of a step, its logits on the host at the end."""
    found: list[float] = []
    for step in steps:
        began_s = time.perf_counter()
        logits = loaded.run(step)["logits"]
        found.append(time.perf_counter() - began_s)
        assert logits.dtype == np.float32
    return median(found[2:])


def _device_s(driver: CupyDriver, loaded: Loaded, steps: Sequence[dict[str, Array]]) -> float:
    """Seconds of a step's kernels alone: all steps in a row, waited for at the end."""
    n = len(steps[0]["positions"])
    executable = next(one for bound, one in loaded.executables if n <= bound)
    values = executable.load(steps[0])
    kernels = executable.segments[1]
    executable.segments[0].run(values)
    kernels.run(values)
    driver.synchronize()
    began_s = time.perf_counter()
    for _ in range(20):
        executable.segments[0].run(values)  # what inputs lay in has other values by now
        kernels.run(values)
    driver.synchronize()
    return (time.perf_counter() - began_s) / 20


def _inputs(shape: Shape, depths: Sequence[int], n_new: int, n_cells: int) -> dict[str, Array]:
    """n_new inputs of each sequence after `depths` cells, as what their embedding would be."""
    arrays = index_arrays(depths, n_new, n_cells // len(depths) // PAGE_SIZE, PAGE_SIZE, shape.n_vocab)
    n_tokens = len(arrays.pop("tokens"))
    x = np.random.default_rng(4).standard_normal((n_tokens, shape.n_embd), np.float32)
    return {**arrays, "x": x}


def _parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(prog="python -m bench.cuda", description=__doc__)
    add = made.add_argument
    add("--only", default="products,attention,models")
    llamas = [name for name, shape in SHAPES.items() if shape.arch == "llama"]
    add("--shapes", nargs="+", choices=llamas, default=["8B"])
    add("--types", default="Q4_K_M", help="Q4_K_M, Q8_0, F16")
    add("--n-batch", type=int, default=2048)
    add("--rows", type=lambda text: [int(n) for n in text.split(",")], default=[1, 4, 8, 64, 512, 2048])
    return made


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
