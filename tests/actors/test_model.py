"""A model's memory: sized without allocating, refused with nothing left behind, hostile headers in words."""

import struct
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from actors.errors import ModelError
from actors.protocol import LoadOptions, ModelSpec
from actors.runner.model import Model
from kernels.cpu.backend import CpuBackend
from kernels.host import private_bytes
from tests.golden import tiny as t

TINY = t.VARIANTS["llama"]
OPTIONS = LoadOptions(n_ctx=64, n_batch=16, n_parallel=2)
N_ALLOCATIONS = 2 * TINY.n_layer + 1  # keys and values of each layer, then the compute buffer


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "tiny.gguf"
    t.write(path, TINY, t.weights(TINY))
    return path


def open_model(path: Path, backend: CpuBackend, options: LoadOptions = OPTIONS) -> Model:
    return Model.open(ModelSpec("tiny", "sha256:0", str(path), 0), options, (), {"cpu": backend})


@pytest.mark.parametrize("nth", range(1, N_ALLOCATIONS + 1))
def test_a_refused_allocation_is_named_and_everything_is_given_back(path: Path, nth: int) -> None:
    backend = CpuBackend(1, fail_allocation=nth)
    model = open_model(path, backend)
    assert not model.allocate()
    report = model.report()
    device = report.devices[0]
    failed = [item for item in (*device.cache, device.graph) if item.status == "failed"]
    assert failed == [device.graph if nth == N_ALLOCATIONS else device.cache[(nth - 1) // 2]]
    assert "could not allocate" in report.failure
    assert (backend.allocations.given_bytes, backend.allocations.asked_bytes) == (0, 0)
    again = open_model(path, backend)
    assert again.allocate()
    again.close()
    model.close()
    assert backend.allocations.given_bytes == 0


def test_a_model_of_80_layers_is_sized_without_allocating(tmp_path: Path) -> None:
    path = tmp_path / "big.gguf"
    write_header(path, n_layer=80, n_embd=8192, n_ff=28672)
    backend = CpuBackend(1)
    before_bytes = private_bytes()
    model = open_model(path, backend, LoadOptions(n_ctx=8192, n_batch=512, n_parallel=4))
    device = model.report().devices[0]
    assert sum(item.planned_bytes for item in device.weights) > 30 << 30
    n_cells = 4 * 4096  # more than one sequence's context
    assert sum(item.planned_bytes for item in device.cache) == 2 * 80 * n_cells * 1024 * 2
    assert backend.allocations.n_allocations == 0
    assert private_bytes() - before_bytes < 64 << 20
    model.close()


def write_header(path: Path, n_layer: int, n_embd: int, n_ff: int) -> None:
    """A llama of Q4_0 matrices, 128 wide heads, 8 of them for keys; the data is a hole in the file."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(n_layer)
    writer.add_context_length(131072)
    writer.add_embedding_length(n_embd)
    writer.add_feed_forward_length(n_ff)
    writer.add_head_count(n_embd // 128)
    writer.add_head_count_kv(8)
    writer.add_layer_norm_rms_eps(1e-5)
    t.add_vocabulary(writer, 260)
    total_bytes = 0

    def add(name: str, *shape: int) -> None:
        nonlocal total_bytes
        if len(shape) == 1:
            n_bytes = 4 * shape[0]
            writer.add_tensor_info(name, shape, np.dtype(np.float32), n_bytes)
        else:
            raw = (shape[0], shape[1] // 32 * 18)
            n_bytes = raw[0] * raw[1]
            kind = gguf.GGMLQuantizationType.Q4_0
            writer.add_tensor_info(name, raw, np.dtype(np.uint8), n_bytes, raw_dtype=kind)
        total_bytes += n_bytes + 32

    add("token_embd.weight", 260, n_embd)
    for i in range(n_layer):
        add(f"blk.{i}.attn_norm.weight", n_embd)
        add(f"blk.{i}.ffn_norm.weight", n_embd)
        for name, n_out, n_in in (
            ("attn_q", n_embd, n_embd),
            ("attn_k", 1024, n_embd),
            ("attn_v", 1024, n_embd),
            ("attn_output", n_embd, n_embd),
            ("ffn_gate", n_ff, n_embd),
            ("ffn_up", n_ff, n_embd),
            ("ffn_down", n_embd, n_ff),
        ):
            add(f"blk.{i}.{name}.weight", n_out, n_in)
    add("output_norm.weight", n_embd)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()
    with path.open("r+b") as file:
        file.truncate(file.seek(0, 2) + total_bytes)


YARN = t.VARIANTS["llama-yarn"]


@pytest.mark.parametrize(
    ("tiny", "more", "said"),
    [
        (replace(YARN, rope_base=1.0), {}, "freq_base is 1.0, expected a number above 1"),
        (replace(TINY, rope_base=1e-30), {}, "expected a number above 1"),
        (TINY, {"rope_freqs.weight": np.ones(3, np.float32)}, "has 3 values, expected 8"),
        (replace(YARN, rope={**YARN.rope, "attn_factor": float("nan")}), {}, "attn_factor is nan"),
        (replace(TINY, head_dim=4096, n_embd=32), {}, "head_dim 4096 is over"),
    ],
)
def test_a_header_that_no_kernel_can_serve_is_refused_in_words(
    tmp_path: Path, tiny: t.Tiny, more: Mapping[str, Any], said: str
) -> None:
    path = tmp_path / "odd.gguf"
    t.write(path, tiny, {**t.weights(tiny), **more})
    with pytest.raises(ModelError, match=said):
        open_model(path, CpuBackend(1))


def test_a_loaded_model_measures_what_was_planned(path: Path) -> None:
    model = open_model(path, CpuBackend(1))
    assert model.allocate()
    model.load()
    report = model.report()
    device = report.devices[0]
    items = (*device.weights, *device.cache[:-1], device.graph, report.input_weights)
    assert all(item.measured_bytes == item.planned_bytes > 0 for item in items)
    model.close()


def test_a_load_says_how_far_it_is_and_ends_where_its_listener_raises(path: Path) -> None:
    model = open_model(path, CpuBackend(1))
    assert model.allocate()
    told: list[tuple[str, int, int]] = []

    def stop_after_two(phase: str, done_bytes: int, total_bytes: int) -> None:
        told.append((phase, done_bytes, total_bytes))
        if len(told) == 2:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        model.load(stop_after_two)
    told.clear()
    model.load(lambda *item: told.append(item))
    _, _, total_bytes = told[0]
    assert told[0] == ("reading", 0, total_bytes)
    assert [done for _, done, _ in told] == sorted(done for _, done, _ in told)
    assert told[-1] == ("finalising", total_bytes, total_bytes)
    model.close()


def test_a_load_fails_where_no_tokenizer_can_be_made_of_the_file(path: Path, tmp_path: Path) -> None:
    merge, no_merge = (struct.pack("<Q", 3) + text for text in (b"a b", b"abc"))
    content = path.read_bytes()
    assert merge in content
    (tmp_path / "odd.gguf").write_bytes(content.replace(merge, no_merge))
    model = open_model(tmp_path / "odd.gguf", CpuBackend(1))
    assert model.allocate()
    with pytest.raises(ModelError, match="merges does not fit"):
        model.load()
    model.close()
