"""Block-quantised formats of GGUF files: their layouts, and what their bytes mean in float32.

A quantised row is a run of blocks; a block holds 32 or 256 consecutive elements as small integers with a
shared scale, in places a shared minimum.  Everything is little-endian.  The record types below are the
layouts; the function under the same name says what an element is worth.  Results are compared bit for bit,
so the arithmetic is float32 in this order: multiply the scales, then the integer, then subtract the minimum.

Within a byte of packed integers the low bits belong to the earlier half (or quarter) of a run of elements,
so unpacking is: shift the whole run by 0, then by 4 (or 0, 2, 4, 6), and lay the results one after the other.

Layouts: the GGUF specification and ggml's public block definitions; MXFP4: OCP Microscaling Formats 1.0.
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kernels.dtype import DType

F32 = NDArray[np.float32]
U8 = NDArray[np.uint8]
I8 = NDArray[np.int8]
Blocks = NDArray[np.void]  # [n_blocks] records of one of the layouts below
Buffer = bytes | bytearray | memoryview | NDArray[Any]

# fmt: off
_LAYOUTS: Mapping[DType, np.dtype[np.void]] = MappingProxyType({
    # 32 elements.  d: scale, m: minimum, qs: low 4 bits (first half in low nibbles), qh: fifth bits
    DType.Q4_0: np.dtype([("d", "<f2"), ("qs", "u1", 16)]),
    DType.Q4_1: np.dtype([("d", "<f2"), ("m", "<f2"), ("qs", "u1", 16)]),
    DType.Q5_0: np.dtype([("d", "<f2"), ("qh", "u1", 4), ("qs", "u1", 16)]),
    DType.Q5_1: np.dtype([("d", "<f2"), ("m", "<f2"), ("qh", "u1", 4), ("qs", "u1", 16)]),
    DType.Q8_0: np.dtype([("d", "<f2"), ("qs", "i1", 32)]),
    DType.IQ4_NL: np.dtype([("d", "<f2"), ("qs", "u1", 16)]),
    DType.MXFP4: np.dtype([("e", "u1"), ("qs", "u1", 16)]),
    # 256 elements, in sub-blocks of 16 or 32 with a scale each: a small integer in units of d (and dmin)
    DType.Q2_K: np.dtype([("scales", "u1", 16), ("qs", "u1", 64), ("d", "<f2"), ("dmin", "<f2")]),
    DType.Q3_K: np.dtype([("hmask", "u1", 32), ("qs", "u1", 64), ("scales", "u1", 12), ("d", "<f2")]),
    DType.Q4_K: np.dtype([("d", "<f2"), ("dmin", "<f2"), ("scales", "u1", 12), ("qs", "u1", 128)]),
    DType.Q5_K: np.dtype(
        [("d", "<f2"), ("dmin", "<f2"), ("scales", "u1", 12), ("qh", "u1", 32), ("qs", "u1", 128)]),
    DType.Q6_K: np.dtype([("ql", "u1", 128), ("qh", "u1", 64), ("scales", "i1", 16), ("d", "<f2")]),
})
# fmt: on

# The sixteen levels of IQ4_NL, spaced for weights that are roughly normal.
IQ4_NL_LEVELS: I8 = np.array(
    [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113], dtype=np.int8
)
# Twice the values of a 4-bit float E2M1 (0, 0.5, 1, 1.5, 2, 3, 4, 6); twice, so that they are integers.
MXFP4_LEVELS: I8 = np.array([0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12], dtype=np.int8)


def dequantize(raw: Buffer, dtype: DType, n: int) -> F32:
    """The n elements stored in raw, as a new float32 array [n].

    raw is exactly `dtype.n_bytes(n)` bytes, C-contiguous.  Raises ValueError when it is not, or when n is not
    whole blocks.  Elements of a block with an infinite or NaN scale come out as IEEE arithmetic makes them.
    """
    octets = np.frombuffer(raw, dtype=np.uint8)
    if octets.size != dtype.n_bytes(n):
        raise ValueError(f"{n} elements of {dtype.name} take {dtype.n_bytes(n)} bytes, got {octets.size}")
    if dtype in _PLAIN:
        return octets.view(_PLAIN[dtype]).astype(np.float32)
    if dtype is DType.BF16:
        return (octets.view("<u2").astype(np.uint32) << np.uint32(16)).view(np.float32)
    with np.errstate(invalid="ignore", over="ignore"):
        return _DEQUANTIZERS[dtype](octets.view(_LAYOUTS[dtype])).reshape(n)


def quantize_q8_0(x: F32) -> U8:
    """x [n] with n a multiple of 32 -> its Q8_0 blocks, bytes [n / 32 * 34].  Halves round away from zero."""
    blocks = _in_blocks(x, DType.Q8_0)
    scale = np.abs(blocks).max(axis=1, keepdims=True) / np.float32(127)
    scaled = blocks * _inverse(scale)
    levels = np.copysign(np.floor(np.abs(scaled) + np.float32(0.5)), scaled)
    out = np.empty(len(blocks), _LAYOUTS[DType.Q8_0])
    out["d"] = scale[:, 0]
    out["qs"] = levels.astype(np.int8)
    return out.view(np.uint8)


def quantize_q4_0(x: F32) -> U8:
    """x [n] with n a multiple of 32 -> its Q4_0 blocks, bytes [n / 32 * 18].

    The scale maps the element of largest magnitude to level 0 (that is -8), exact to half precision.
    """
    blocks = _in_blocks(x, DType.Q4_0)
    extreme = np.take_along_axis(blocks, np.abs(blocks).argmax(axis=1)[:, None], axis=1)
    scale = extreme / np.float32(-8)
    levels = (blocks * _inverse(scale) + np.float32(8.5)).astype(np.uint8).clip(0, 15)
    out = np.empty(len(blocks), _LAYOUTS[DType.Q4_0])
    out["d"] = scale[:, 0]
    out["qs"] = levels[:, :16] | (levels[:, 16:] << np.uint8(4))
    return out.view(np.uint8)


def _in_blocks(x: F32, dtype: DType) -> F32:
    if x.ndim != 1 or x.size % dtype.block_n:
        raise ValueError(f"shape {x.shape} is not whole {dtype.name} blocks of {dtype.block_n}")
    return x.astype(np.float32, copy=False).reshape(-1, dtype.block_n)


def _inverse(scale: F32) -> F32:
    """1 / scale, and 0 for a block of zeros."""
    with np.errstate(divide="ignore"):
        return np.where(scale == 0, np.float32(0), np.float32(1) / scale)


def _unpack(packed: U8, width: int, run: int) -> U8:
    """packed [n, k] -> integers of width bits [n, k * 8 / width]: runs of bytes, shifted by 0, width..."""
    shifts = np.arange(0, 8, width, dtype=np.uint8)[:, None]
    mask = np.uint8((1 << width) - 1)
    runs = packed.reshape(len(packed), packed.shape[1] // run, 1, run)
    return ((runs >> shifts) & mask).reshape(len(packed), packed.shape[1] * (8 // width))


def _f32(halves: NDArray[np.float16]) -> F32:
    """[n] halves -> [n, 1] floats, to multiply a block's elements."""
    return halves.astype(np.float32)[:, None]


def _fifth_bits(qh: U8) -> U8:
    """[n, 4] -> [n, 32]: bit i, moved to where it belongs in a 5-bit integer."""
    return np.unpackbits(qh, axis=1, bitorder="little") << np.uint8(4)


def _q4_0(blocks: Blocks) -> F32:
    """d * (q - 8), q in 0..15."""
    return _f32(blocks["d"]) * (_unpack(blocks["qs"], 4, 16).astype(np.float32) - 8)


def _q4_1(blocks: Blocks) -> F32:
    """d * q + m, q in 0..15."""
    return _f32(blocks["d"]) * _unpack(blocks["qs"], 4, 16).astype(np.float32) + _f32(blocks["m"])


def _q5_0(blocks: Blocks) -> F32:
    """d * (q - 16), q in 0..31."""
    q = _unpack(blocks["qs"], 4, 16) | _fifth_bits(blocks["qh"])
    return _f32(blocks["d"]) * (q.astype(np.float32) - 16)


def _q5_1(blocks: Blocks) -> F32:
    """d * q + m, q in 0..31."""
    q = _unpack(blocks["qs"], 4, 16) | _fifth_bits(blocks["qh"])
    return _f32(blocks["d"]) * q.astype(np.float32) + _f32(blocks["m"])


def _q8_0(blocks: Blocks) -> F32:
    """d * q, q in -128..127."""
    return _f32(blocks["d"]) * blocks["qs"].astype(np.float32)


def _iq4_nl(blocks: Blocks) -> F32:
    """d * level[q], q in 0..15."""
    return _f32(blocks["d"]) * IQ4_NL_LEVELS[_unpack(blocks["qs"], 4, 16)].astype(np.float32)


def _mxfp4(blocks: Blocks) -> F32:
    """2 ** (e - 128) * level[q]: e is an 8-bit exponent with bias 127, and the levels are doubled."""
    scale = np.ldexp(np.float32(1), blocks["e"].astype(np.int32) - 128)[:, None]
    return scale * MXFP4_LEVELS[_unpack(blocks["qs"], 4, 16)].astype(np.float32)


def _by_sub_block(scale: F32, q: F32, minimum: F32 | None = None) -> F32:
    """scale [n, k], q [n, 256], minimum [n, k] -> scale * q - minimum [n, 256], each for 256 / k elements."""
    n, k = scale.shape
    values = scale[:, :, None] * q.reshape(n, k, 256 // k)
    return (values if minimum is None else values - minimum[:, :, None]).reshape(n, 256)


def _q2_k(blocks: Blocks) -> F32:
    """16 sub-blocks of 16: (d * s) * q - dmin * m; s and m are low and high 4 bits of a byte, q in 0..3."""
    packed = blocks["scales"]
    scale = _f32(blocks["d"]) * (packed & np.uint8(15)).astype(np.float32)
    minimum = _f32(blocks["dmin"]) * (packed >> np.uint8(4)).astype(np.float32)
    return _by_sub_block(scale, _unpack(blocks["qs"], 2, 32).astype(np.float32), minimum)


def _q3_k(blocks: Blocks) -> F32:
    """16 sub-blocks of 16: (d * (s - 32)) * q, q in -4..3.

    s is 6 bits: low 4 in bytes 0..7 (sub-blocks 0..7 low, 8..15 high), high 2 in bytes 8..11.  A clear bit in
    hmask takes 4 from the element; bit j of hmask's byte i belongs to element 32 j + i.
    """
    packed = blocks["scales"]
    s = _unpack(packed[:, :8], 4, 8) | (_unpack(packed[:, 8:], 2, 4) << np.uint8(4))
    scale = _f32(blocks["d"]) * (s.astype(np.float32) - 32)
    high = _unpack(blocks["hmask"], 1, 32).astype(np.float32) * 4 - 4
    return _by_sub_block(scale, _unpack(blocks["qs"], 2, 32).astype(np.float32) + high)


def _scales_and_minima(packed: U8) -> tuple[U8, U8]:
    """The twelve bytes of Q4_K and Q5_K -> 8 scales and 8 minima of 6 bits, [n, 8] each.

    Bytes 0..3 hold scales 0..3, bytes 4..7 minima 0..3, in their low 6 bits.  Scales and minima 4..7 have
    their low 4 bits in the low and high half of bytes 8..11, their high 2 bits on top of bytes 0..3 and 4..7.
    """
    first, second, third = packed[:, :4], packed[:, 4:8], packed[:, 8:]
    low_scale, low_min = third & np.uint8(15), third >> np.uint8(4)
    top_scale = (first >> np.uint8(6)) << np.uint8(4)
    top_min = (second >> np.uint8(6)) << np.uint8(4)
    scales = np.concatenate([first & np.uint8(63), low_scale | top_scale], axis=1)
    minima = np.concatenate([second & np.uint8(63), low_min | top_min], axis=1)
    return scales, minima


def _q4_k(blocks: Blocks) -> F32:
    """8 sub-blocks of 32: (d * s) * q - dmin * m, q in 0..15."""
    s, m = _scales_and_minima(blocks["scales"])
    scale, minimum = _f32(blocks["d"]) * s.astype(np.float32), _f32(blocks["dmin"]) * m.astype(np.float32)
    return _by_sub_block(scale, _unpack(blocks["qs"], 4, 32).astype(np.float32), minimum)


def _q5_k(blocks: Blocks) -> F32:
    """As Q4_K with q in 0..31; bit j of qh's byte i is the fifth bit of element 32 j + i."""
    s, m = _scales_and_minima(blocks["scales"])
    scale, minimum = _f32(blocks["d"]) * s.astype(np.float32), _f32(blocks["dmin"]) * m.astype(np.float32)
    q = _unpack(blocks["qs"], 4, 32) | (_unpack(blocks["qh"], 1, 32) << np.uint8(4))
    return _by_sub_block(scale, q.astype(np.float32), minimum)


def _q6_k(blocks: Blocks) -> F32:
    """16 sub-blocks of 16: (d * s) * (q - 32), s in -128..127, q in 0..63; low 4 bits in ql, high 2 in qh."""
    q = _unpack(blocks["ql"], 4, 64) | (_unpack(blocks["qh"], 2, 32) << np.uint8(4))
    scale = _f32(blocks["d"]) * blocks["scales"].astype(np.float32)
    return _by_sub_block(scale, q.astype(np.float32) - 32)


_PLAIN: Mapping[DType, str] = MappingProxyType(
    {DType.F32: "<f4", DType.F16: "<f2", DType.I8: "i1", DType.I16: "<i2", DType.I32: "<i4", DType.I64: "<i8"}
)
_DEQUANTIZERS: Mapping[DType, Callable[[Blocks], F32]] = MappingProxyType(
    {
        DType.Q4_0: _q4_0,
        DType.Q4_1: _q4_1,
        DType.Q5_0: _q5_0,
        DType.Q5_1: _q5_1,
        DType.Q8_0: _q8_0,
        DType.IQ4_NL: _iq4_nl,
        DType.MXFP4: _mxfp4,
        DType.Q2_K: _q2_k,
        DType.Q3_K: _q3_k,
        DType.Q4_K: _q4_k,
        DType.Q5_K: _q5_k,
        DType.Q6_K: _q6_k,
    }
)
