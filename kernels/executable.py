"""A bound plan: the only thing the hot loop calls."""

from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np
import numpy.typing as npt

from kernels.backend import Segment
from kernels.dtype import DType
from kernels.memory import Bytes, Memory, host_array
from kernels.ops.op import Array
from kernels.tensor import Bounds, Sym, Tensor

NUMPY_TYPES: Mapping[DType, type[np.generic]] = {
    DType.F32: np.float32,
    DType.F16: np.float16,
    DType.I32: np.int32,
}


NO_CONSTANTS: Final[Mapping[str, Array]] = {}


def view(memory: Bytes, tensor: Tensor, values: Bounds) -> Array:
    """The tensor's memory as a numpy array of its shape, without a copy; its bytes when it is quantised."""
    if tensor.dtype.is_quantized:
        return memory[: tensor.n_bytes(values)]
    shape = tuple(values[d.name] if isinstance(d, Sym) else d for d in tensor.shape)
    typed: npt.NDArray[np.generic] = memory[: tensor.n_bytes(values)].view(NUMPY_TYPES[tensor.dtype])
    return typed.reshape(shape)


class Executable:
    """Segments in order over memory that was allocated before; running allocates no device memory."""

    def __init__(
        self,
        segments: Sequence[Segment],
        inputs: Mapping[str, tuple[Tensor, Memory]],
        outputs: Mapping[str, tuple[Tensor, Memory]],
        bounds: Bounds,
        constants: Mapping[str, Array] = NO_CONSTANTS,
    ) -> None:
        """Inputs and outputs lie in host memory; a plan has them copied where they are used or made.

        constants: inputs that no run is given.
        """
        self._segments = segments
        typed = {
            name: (t, host_array(memory)[: t.n_bytes(bounds)].view(NUMPY_TYPES[t.dtype]))
            for name, (t, memory) in inputs.items()
        }
        self._inputs = {name: pair for name, pair in typed.items() if name not in constants}
        # their bytes are other values' between two runs
        self._constants = [(typed[name][1], values) for name, values in constants.items() if name in typed]
        self._outputs = {name: (t, host_array(memory)) for name, (t, memory) in outputs.items()}
        self._bounds = bounds

    @property
    def segments(self) -> Sequence[Segment]:
        """What a run executes, in order, between `load` and reading an output."""
        return self._segments

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Execute once.

        Inputs by name, C-contiguous, in the declared dtype; symbols take their sizes from them.
        Returns views of the outputs that the next run overwrites.  ValueError names an input that is missing,
        too large or of another dtype.
        """
        values = self.load(inputs)
        for segment in self._segments:
            segment.run(values)
        return {name: self.output(name, values) for name in self._outputs}

    def load(self, inputs: Mapping[str, Array]) -> dict[str, int]:
        """The first part of a run: put the inputs where the ops read them; gives the symbols' values."""
        values = self._values(inputs)
        for name, (_, typed) in self._inputs.items():
            given = inputs[name]
            if given.dtype is not typed.dtype and given.dtype != typed.dtype:
                raise ValueError(f"input {name}: expected {typed.dtype}, got {given.dtype}")
            typed[: given.size] = given if given.ndim == 1 else given.reshape(-1)
        for typed, given in self._constants:
            typed[:] = given
        return values

    def output(self, name: str, values: Bounds) -> Array:
        """The last part of a run: a view of an output."""
        tensor, memory = self._outputs[name]
        return view(memory, tensor, values)

    def _values(self, inputs: Mapping[str, Array]) -> dict[str, int]:
        values: dict[str, int] = {}
        bounds = self._bounds
        for name, (tensor, _) in self._inputs.items():
            given = inputs.get(name)
            if given is None:
                raise ValueError(f"input {name} is missing")
            shape = given.shape  # numpy makes the tuple anew each time
            if len(shape) != len(tensor.shape):
                raise ValueError(f"input {name}: expected shape {tensor.shape}, got {given.shape}")
            for dim, n in zip(tensor.shape, shape, strict=True):
                is_free = isinstance(dim, Sym)
                expected = values.setdefault(dim.name, n) if is_free else dim
                if n != expected or (is_free and n > bounds[dim.name]):
                    raise ValueError(
                        f"input {name}: {dim} is {n}, expected {expected}, bounds {dict(self._bounds)}"
                    )
        return values
