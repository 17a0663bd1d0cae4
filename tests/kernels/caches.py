"""Cache states for tests: empty ones whose cells are NaN, and cells written as the reference writes them."""

from dataclasses import dataclass

import numpy as np

from kernels.dtype import DType
from kernels.ops.attention import read_cells, write_cells
from kernels.ops.op import F32, I32, Array

NUMPY_TYPES = {
    DType.F32: np.dtype(np.float32),
    DType.F16: np.dtype(np.float16),
    DType.Q8_0: np.dtype(np.uint8),
}


@dataclass(frozen=True)
class CacheShape:
    """The shape of a key or value state."""

    n_pages: int
    page_size: int
    n_kv: int
    head_dim: int
    dtype: DType

    @property
    def shape(self) -> tuple[int, int]:
        """As declared."""
        return self.n_pages * self.page_size, self.n_kv * self.head_dim

    def empty(self) -> Array:
        """Bytes 0xFF: NaN in F32, F16 and in the scales of Q8_0."""
        raw = np.full(self.dtype.n_bytes(self.shape[0] * self.shape[1]), 0xFF, np.uint8)
        return raw if self.dtype is DType.Q8_0 else raw.view(NUMPY_TYPES[self.dtype]).reshape(self.shape)

    def write(self, state: Array, cells: I32, values: F32, is_keys: bool) -> None:
        """Write values [n, n_kv * head_dim] into cells."""
        write_cells(state, cells, values, self.n_kv, self.head_dim, self.page_size, is_keys)

    def read(self, state: Array, is_keys: bool) -> Array:
        """Cells [n_cells, n_kv, head_dim]."""
        return read_cells(state, self.n_kv, self.head_dim, self.page_size, is_keys)

    def cells_of(self, table: I32, n: int) -> I32:
        """Cells of a sequence's first n positions."""
        index = np.arange(n)
        return (table[index // self.page_size] * self.page_size + index % self.page_size).astype(np.int32)
