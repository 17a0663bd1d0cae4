"""Random weights in every block format, centred and of the size that a tiny model needs."""

import gguf
import numpy as np
import numpy.typing as npt

F32 = npt.NDArray[np.float32]
Kind = gguf.GGMLQuantizationType

# byte offset of the f16 scale, of the f16 minimum's scale, and what centres the values: min per scale
SCALES: dict[Kind, tuple[int, int | None, float]] = {
    Kind.Q4_0: (0, None, 0.0),
    Kind.Q4_1: (0, 2, -7.5),
    Kind.Q5_0: (0, None, 0.0),
    Kind.Q5_1: (0, 2, -15.5),
    Kind.Q8_0: (0, None, 0.0),
    Kind.Q2_K: (80, 82, 1.5),
    Kind.Q3_K: (108, None, 0.0),
    Kind.Q4_K: (0, 2, 7.5),
    Kind.Q5_K: (0, 2, 15.5),
    Kind.Q6_K: (208, None, 0.0),
    Kind.IQ4_NL: (0, None, 0.0),
}


def random_blocks(kind: Kind, shape: tuple[int, int], std: float, rng: np.random.Generator) -> bytes:
    """Random blocks [n_rows, n_columns]; dequantised they have about this standard deviation."""
    n_columns, n_bytes = gguf.GGML_QUANT_SIZES[kind]
    raw = rng.integers(0, 256, (shape[0] * shape[1] // n_columns, n_bytes), np.uint8)
    if kind is Kind.MXFP4:
        raw[:, 0] = 125 + round(
            np.log2(std)
        )  # the values of a block have a deviation of about 4 scales' half
        return raw.tobytes()
    _scale(raw, kind, 1.0, rng)
    unit = float(gguf.quants.dequantize(raw, kind).std())
    _scale(raw, kind, std / unit, rng)
    return raw.tobytes()


def _scale(raw: npt.NDArray[np.uint8], kind: Kind, size: float, rng: np.random.Generator) -> None:
    at, min_at, centre = SCALES[kind]
    scales = size * rng.uniform(0.8, 1.2, (len(raw), 1))
    raw[:, at : at + 2] = scales.astype(np.float16).view(np.uint8)
    if min_at is not None:
        raw[:, min_at : min_at + 2] = (scales * centre).astype(np.float16).view(np.uint8)
