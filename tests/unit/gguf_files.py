"""GGUF files made by hand, byte by byte, so that any of them can be wrong in one place.

Written from the specification and sharing nothing with the reader.  `u32(7)` and its like give a value with
its type number before it; `gguf_bytes` puts a file together and lets each part of it lie.
"""

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

U8, I8, U16, I16, U32, I32, F32, BOOL, STRING, ARRAY, U64, I64, F64 = range(13)
CODES = dict(zip(range(13), "BbHhIifB__Qqd", strict=True))


def raw_string(text: str | bytes) -> bytes:
    raw = text.encode() if isinstance(text, str) else text
    return struct.pack("<Q", len(raw)) + raw


def typed(kind: int, payload: bytes) -> bytes:
    return struct.pack("<I", kind) + payload


def scalar(kind: int, value: float) -> bytes:
    return typed(kind, struct.pack("<" + CODES[kind], value))


def u32(value: int) -> bytes:
    return scalar(U32, value)


def i32(value: int) -> bytes:
    return scalar(I32, value)


def u64(value: int) -> bytes:
    return scalar(U64, value)


def f32(value: float) -> bytes:
    return scalar(F32, value)


def boolean(value: int) -> bytes:
    return scalar(BOOL, value)


def string(text: str | bytes) -> bytes:
    return typed(STRING, raw_string(text))


def array(kind: int, payload: bytes, n: int) -> bytes:
    return typed(ARRAY, struct.pack("<IQ", kind, n) + payload)


def strings(items: Sequence[str | bytes], n: int | None = None) -> bytes:
    return array(STRING, b"".join(map(raw_string, items)), len(items) if n is None else n)


def numbers(kind: int, items: Sequence[float], n: int | None = None) -> bytes:
    payload = struct.pack(f"<{len(items)}{CODES[kind]}", *items)
    return array(kind, payload, len(items) if n is None else n)


@dataclass(frozen=True)
class RawTensor:
    """A tensor as it will stand in the file; offset None puts it behind the one before."""

    name: str | bytes
    shape: tuple[int, ...]
    data: bytes
    ggml_type: int = 0
    offset: int | None = None
    n_dims: int | None = None


def f32_tensor(name: str, *shape: int) -> RawTensor:
    n = 1
    for dim in shape:
        n *= dim
    return RawTensor(name, shape, struct.pack(f"<{n}f", *(0.01 * (i % 50) - 0.25 for i in range(n))))


Metadata = Mapping[str, bytes] | Sequence[tuple[str | bytes, bytes]]


def gguf_bytes(
    metadata: Metadata,
    tensors: Sequence[RawTensor] = (),
    *,
    magic: bytes = b"GGUF",
    version: int = 3,
    n_tensors: int | None = None,
    n_metadata: int | None = None,
    alignment: int = 32,
) -> bytes:
    """A whole file.  The counts default to the truth."""
    pairs = list(metadata.items()) if isinstance(metadata, Mapping) else list(metadata)
    counts = (
        len(tensors) if n_tensors is None else n_tensors,
        len(pairs) if n_metadata is None else n_metadata,
    )
    header = magic + struct.pack("<IQQ", version, *counts)
    header += b"".join(raw_string(key) + value for key, value in pairs)
    data = b""
    for tensor in tensors:
        data += bytes(-len(data) % alignment)
        n_dims = len(tensor.shape) if tensor.n_dims is None else tensor.n_dims
        offset = len(data) if tensor.offset is None else tensor.offset
        header += raw_string(tensor.name) + struct.pack(f"<I{len(tensor.shape)}Q", n_dims, *tensor.shape)
        header += struct.pack("<IQ", tensor.ggml_type, offset)
        data += tensor.data
    return header + bytes(-len(header) % alignment) + data if tensors else header


TOKENS = ("<unk>", "<s>", "</s>", "a", "b", "ab", "c", " ")


def model_metadata(arch: str = "llama") -> dict[str, bytes]:
    """Metadata of a tiny model that passes every check; tests change one key."""
    experts = {"expert_count": 4, "expert_used_count": 2, "expert_feed_forward_length": 8}
    return {
        "general.architecture": string(arch),
        **{f"{arch}.{name}": u32(value) for name, value in experts.items() if arch in ("qwen3moe", "llama4")},
        "general.name": string("tiny"),
        f"{arch}.block_count": u32(2),
        f"{arch}.context_length": u32(128),
        f"{arch}.embedding_length": u32(16),
        f"{arch}.feed_forward_length": u32(32),
        f"{arch}.attention.head_count": u32(4),
        f"{arch}.attention.head_count_kv": u32(2),
        f"{arch}.attention.layer_norm_rms_epsilon": f32(1e-5),
        f"{arch}.rope.dimension_count": u32(4),
        f"{arch}.rope.freq_base": f32(10000.0),
        f"{arch}.vocab_size": u32(len(TOKENS)),
        "tokenizer.ggml.model": string("gpt2"),
        "tokenizer.ggml.tokens": strings(TOKENS),
        "tokenizer.ggml.scores": numbers(F32, [0.0] * len(TOKENS)),
        "tokenizer.ggml.token_type": numbers(I32, [2, 3, 3, 1, 1, 1, 1, 1]),
        "tokenizer.ggml.merges": strings(["a b"]),
        "tokenizer.ggml.bos_token_id": u32(1),
        "tokenizer.ggml.eos_token_id": u32(2),
        "tokenizer.ggml.add_bos_token": boolean(1),
        "tokenizer.chat_template": string("{{ messages[0].content }}"),
    }


def model_tensors() -> list[RawTensor]:
    """The tensors that the checks look at, a quantised one, and one with a name of the longest length."""
    q8_0 = RawTensor("blk.0.attn_q.weight", (32, 3), bytes(range(102)), ggml_type=8)
    return [f32_tensor("token_embd.weight", 16, len(TOKENS)), q8_0, f32_tensor("x" * 64, 5)]


def model_bytes(arch: str = "llama", changes: Mapping[str, bytes | None] | None = None) -> bytes:
    """A tiny sound model with some keys replaced, or left out where the change is None."""
    metadata = model_metadata(arch)
    for key, value in (changes or {}).items():
        if value is None:
            del metadata[key]
        else:
            metadata[key] = value
    return gguf_bytes(metadata, model_tensors())
