"""How a family file declares what it is: modules whose annotated fields name tensors of the GGUF file.

    class FeedForward(Module):
        gate: Linear = gguf("ffn_gate", "n_ff", "n_embd")

Shapes are written outermost first in the names of `Hparams`.  Building a module takes each tensor from the
file with exactly that shape; `Weights.finish` refuses a file with tensors that nobody took.
"""

from dataclasses import dataclass
from functools import cache
from typing import Any, get_type_hints

from actors.errors import ModelError
from actors.runner.gguf.reader import GGUFFile
from actors.runner.models.hparams import Hparams
from kernels.program import ProgramBuilder
from kernels.tensor import Tensor


@dataclass(frozen=True, slots=True)
class Declared:
    """A tensor name below the module's prefix, and its shape in names of `Hparams`."""

    name: str
    shape: tuple[str, ...]
    has_bias: bool | None  # None: when the file has one


def gguf(name: str, *shape: str, bias: bool | None = False) -> Any:  # noqa: ANN401  (stands for the annotated type)
    """Declare that a field is made from tensor `<prefix><name>.weight` (and `.bias`)."""
    return Declared(name, shape, bias)


class Weights:
    """Hands out the file's tensors to a program, each exactly once."""

    def __init__(self, file: GGUFFile, hparams: Hparams, builder: ProgramBuilder) -> None:
        self.hparams = hparams
        self.builder = builder
        self._file = file
        self._left = set(file.tensors)

    def take(self, name: str, shape: tuple[int, ...]) -> Tensor:
        """The tensor of that name; ModelError when it is missing or shaped otherwise."""
        info = self._file.tensors.get(name)
        if info is None:
            raise ModelError(
                f"tensor {name} is missing", where=self._file.name, mend="convert the model again"
            )
        found = tuple(reversed(info.shape))
        if found != shape:
            raise ModelError(
                f"tensor {name}: expected shape {list(shape)}, found {list(found)}", where=self._file.name
            )
        self._left.discard(name)
        return self.builder.weight(name, shape, info.dtype)

    def has(self, name: str) -> bool:
        """Whether the file has a tensor of that name."""
        return name in self._file.tensors

    def ignore(self, name: str) -> None:
        """This tensor was used while reading the hyper-parameters."""
        self._left.discard(name)

    def finish(self) -> None:
        """ModelError that lists the tensors nobody took."""
        if self._left:
            names = ", ".join(sorted(self._left)[:8])
            more = f" and {len(self._left) - 8} more" if len(self._left) > 8 else ""
            raise ModelError(
                f"{len(self._left)} tensors have no place in a {self.hparams.arch} model: {names}{more}",
                where=self._file.name,
                mend="the file may be of a variant that this build does not run",
            )


class Layer:
    """Base of the leaves: made from one declared tensor."""

    def __init__(self, weights: Weights, prefix: str, declared: Declared) -> None:
        self.builder = weights.builder
        shape = tuple(int(getattr(weights.hparams, name)) for name in declared.shape)
        self.weight = weights.take(f"{prefix}{declared.name}.weight", shape)
        bias_name = f"{prefix}{declared.name}.bias"
        has_bias = weights.has(bias_name) if declared.has_bias is None else declared.has_bias
        self.bias = weights.take(bias_name, shape[:1]) if has_bias else None


class Linear(Layer):
    """weight [n_out, n_in]: x [n, n_in] -> [n, n_out]."""

    def __call__(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """x weight^T (+ bias) (+ residual)."""
        return self.builder.matmul(x, self.weight, self.bias, residual)


class RMSNorm(Layer):
    """weight [k]: every k values of x are normalised."""

    def __init__(self, weights: Weights, prefix: str, declared: Declared) -> None:
        super().__init__(weights, prefix, declared)
        self._eps = weights.hparams.eps

    def __call__(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """Same shape as x (+ residual)."""
        return self.builder.rms_norm(x, self.weight, self._eps, residual)


class Embedding(Layer):
    """weight [n_vocab, n_embd]: ids [n] -> [n, n_embd]."""

    def __init__(self, weights: Weights, prefix: str, declared: Declared) -> None:
        super().__init__(weights, prefix, declared)
        self._scale = weights.hparams.embd_scale

    def __call__(self, ids: Tensor) -> Tensor:
        """Rows of the table, scaled as the model wants them."""
        return self.builder.rows(self.weight, ids, self._scale)


class Module:
    """Base of what a family declares: makes every declared field from the file's tensors."""

    def __init__(self, weights: Weights, prefix: str = "") -> None:
        self.builder = weights.builder
        self.hparams = weights.hparams
        for name, kind, declared in _declared_fields(type(self)):
            setattr(self, name, kind(weights, prefix, declared))


@cache
def _declared_fields(module: type[Module]) -> tuple[tuple[str, type[Layer], Declared], ...]:
    """Name, class and declaration of each field; a model makes a module of every class for each layer."""
    hints = get_type_hints(module)
    return tuple(
        (name, kind, declared)
        for name, kind in hints.items()
        if isinstance(declared := getattr(module, name, None), Declared)
    )
