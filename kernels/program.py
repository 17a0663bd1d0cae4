"""A typed tensor program: what a model computes, with a symbolic batch, and nothing of memory or devices.

A model family builds one with the methods below; no op runs meanwhile.  `plan.py` binds it to devices, the
reference backend interprets it, other backends compile it.

    program = ProgramBuilder(n_layer=2)
    x = program.rows(program.weight("token_embd.weight", (n_vocab, n_embd), DType.Q8_0), tokens)
    ...
    program.output("logits", x)
    done = program.build()
"""

from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np

from kernels.dtype import DType
from kernels.ops.attention import Attention, StoreKV
from kernels.ops.conv import ShortConv
from kernels.ops.experts import ExpertMatmul, Gating, Route, SlotSum
from kernels.ops.gate import Activation, Gate
from kernels.ops.matmul import Matmul
from kernels.ops.norm import RmsNorm
from kernels.ops.op import Array, Op
from kernels.ops.rope import Rope, Rotation
from kernels.ops.rows import Rows
from kernels.ops.softcap import SoftCap
from kernels.tensor import Role, Shape, Sym, Tensor

INPUT_LAYER = -1


class ShapeError(ValueError):
    """An op was given tensors whose shapes or dtypes do not fit; the message names both."""


@dataclass(frozen=True, slots=True, eq=False)
class Program:
    """Immutable: ops in order of execution, every tensor by role; `n_layer` is the output layer's index."""

    n_layer: int
    ops: tuple[Op, ...]
    inputs: Mapping[str, Tensor]
    constants: Mapping[str, Array]  # the values of those inputs that are the same in each run
    weights: Mapping[str, Tensor]
    states: Mapping[str, Tensor]
    outputs: Mapping[str, Tensor]

    @property
    def symbols(self) -> frozenset[str]:
        """The names of all that sizes depend on."""
        dims = (dim for tensor in self.inputs.values() for dim in tensor.shape)
        return frozenset(dim.name for dim in dims if isinstance(dim, Sym))

    def without(self, rows: Sym) -> "Program":
        """What is left when there are none of these rows: the ops on other rows, as far as outputs need them.

        States are kept as they are.
        """
        needed = set(self.outputs.values())
        ops: list[Op] = []
        for op in reversed(self.ops):
            if any(tensor.shape[0] is rows for tensor in op.reads):
                continue
            if any(tensor.role is Role.STATE or tensor in needed for tensor in op.writes):
                ops.append(op)
                needed.update(op.reads)
        inputs = {name: tensor for name, tensor in self.inputs.items() if tensor in needed}
        return replace(
            self,
            ops=tuple(reversed(ops)),
            inputs=inputs,
            constants={name: value for name, value in self.constants.items() if name in inputs},
            weights={name: tensor for name, tensor in self.weights.items() if tensor in needed},
        )


class ProgramBuilder:
    """Collects ops.  Tensors and ops belong to the layer that is current, see `in_layer`."""

    def __init__(self, n_layer: int) -> None:
        self.n_layer = n_layer
        self._layer = INPUT_LAYER
        self._ops: list[Op] = []
        self._inputs: dict[str, Tensor] = {}
        self._constants: dict[str, Array] = {}
        self._weights: dict[str, Tensor] = {}
        self._states: dict[str, Tensor] = {}
        self._outputs: dict[str, Tensor] = {}
        self._routes: dict[Tensor, Route] = {}  # by the ids they make

    @contextmanager
    def in_layer(self, layer: int) -> Generator[None]:
        """Everything declared inside belongs to this layer: 0..n_layer-1, or n_layer for the output."""
        if not 0 <= layer <= self.n_layer:
            raise ShapeError(f"layer {layer} is outside 0..{self.n_layer}")
        before, self._layer = self._layer, layer
        try:
            yield
        finally:
            self._layer = before

    def input(self, name: str, shape: Shape, dtype: DType = DType.I32) -> Tensor:
        """A value that arrives with each run."""
        return self._declare(self._inputs, Tensor(name, shape, dtype, Role.INPUT, INPUT_LAYER))

    def constant(self, name: str, values: Array) -> Tensor:
        """An i32 input with these values in each run; nobody gives them."""
        _expect(values.dtype == np.int32, f"constant {name} is of {values.dtype}, not int32")
        self._constants[name] = values
        return self.input(name, values.shape)

    def weight(self, name: str, shape: tuple[int, ...], dtype: DType) -> Tensor:
        """A tensor of the model file; a name asked for again gives the same tensor (tied embeddings)."""
        known = self._weights.get(name)
        if known is not None:
            _expect(
                known.shape == shape and known.dtype is dtype,
                f"{known} asked for again as {shape} {dtype.name}",
            )
            return known
        return self._declare(self._weights, Tensor(name, shape, dtype, Role.WEIGHT, self._layer))

    def state(self, name: str, shape: tuple[int, ...], dtype: DType) -> Tensor:
        """Memory that outlives a run."""
        return self._declare(self._states, Tensor(name, shape, dtype, Role.STATE, self._layer))

    def output(self, name: str, tensor: Tensor) -> None:
        """Name a value that the caller reads after each run."""
        _expect(tensor.role is Role.VALUE, f"output {name}: {tensor} is no computed value")
        _expect(name not in self._outputs, f"output {name} declared twice")
        self._outputs[name] = tensor

    def rows(self, table: Tensor, ids: Tensor, scale: float = 1.0) -> Tensor:
        """See `ops.rows.Rows`."""
        _expect(len(table.shape) == 2 and ids.dtype is DType.I32, f"rows of {table} by {ids}")
        out = self._value("rows", (ids.shape[0], table.shape[1]))
        self._ops.append(Rows(self._layer, table, ids, out, scale))
        return out

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float, residual: Tensor | None = None) -> Tensor:
        """See `ops.norm.RmsNorm`."""
        _expect(
            weight.dtype is DType.F32 and len(weight.shape) == 1, f"rms_norm weight {weight} is not F32[k]"
        )
        _expect_residual(residual, x.shape, weight)
        return self._norm(x, weight, weight.width, eps, residual)

    def unit_norm(self, x: Tensor, chunk: int, eps: float) -> Tensor:
        """See `ops.norm.RmsNorm`; without a weight."""
        return self._norm(x, None, chunk, eps, None)

    def matmul(
        self, x: Tensor, weight: Tensor, bias: Tensor | None = None, residual: Tensor | None = None
    ) -> Tensor:
        """See `ops.matmul.Matmul`."""
        _expect(len(weight.shape) == 2 and x.width == weight.shape[1], f"matmul of {x} with {weight}")
        shape = (x.shape[0], weight.shape[0])
        if bias is not None:
            _expect(bias.shape == (shape[1],) and bias.dtype is DType.F32, f"bias {bias} of {weight}")
        _expect_residual(residual, shape, weight)
        out = self._value("matmul", shape)
        self._ops.append(Matmul(self._layer, x, weight, out, bias, residual))
        return out

    def rope(self, x: Tensor, positions: Tensor, head_dim: int, rotation: Rotation) -> Tensor:
        """See `ops.rope.Rope`."""
        _expect(x.width % head_dim == 0 and rotation.n_rot <= head_dim, f"rope of {x}, head_dim {head_dim}")
        out = self._value("rope", x.shape)
        self._ops.append(Rope(self._layer, x, positions, out, head_dim, rotation))
        return out

    def store_kv(
        self,
        k: Tensor,
        v: Tensor,
        positions: Tensor,
        cells: Tensor,
        k_state: Tensor,
        v_state: Tensor,
        *,
        head_dim: int,
        page_size: int,
        rotation: Rotation | None,
    ) -> None:
        """See `ops.attention.StoreKV`."""
        _expect(
            k.shape == v.shape and k.width == k_state.width == v_state.width,
            f"store {k}, {v} in {k_state}",
        )
        _expect_cache(k_state, v_state, head_dim, page_size)
        op = StoreKV(self._layer, k, v, positions, cells, k_state, v_state, head_dim, page_size, rotation)
        self._ops.append(op)

    def attention(
        self,
        q: Tensor,
        k_state: Tensor,
        v_state: Tensor,
        tables: Tensor,
        rows: Tensor,
        n_visible: Tensor,
        *,
        head_dim: int,
        page_size: int,
        scale: float,
        window: int = 0,
        softcap: float = 0.0,
        chunk: int = 0,
        temperature: float = 0.0,
        temperature_length: int = 0,
        bias: Tensor | None = None,
        positions: Tensor | None = None,
    ) -> Tensor:
        """See `ops.attention.Attention`."""
        _expect(q.width % k_state.width == 0 and q.width % head_dim == 0, f"attention of {q} over {k_state}")
        _expect_cache(k_state, v_state, head_dim, page_size)
        _expect((bias is None) == (positions is None), f"a bias {bias} needs positions, {positions}")
        if bias is not None:
            _expect_bias(bias, q.width // head_dim, softcap)
            _expect(positions is not None and positions.shape == q.shape[:1], f"{positions} of {q}")
        out = self._value("attention", q.shape)
        op = Attention(
            self._layer,
            q,
            k_state,
            v_state,
            tables,
            rows,
            n_visible,
            out,
            head_dim,
            page_size,
            scale,
            window,
            softcap,
            chunk,
            temperature,
            temperature_length,
            bias,
            positions,
        )
        self._ops.append(op)
        return out

    def short_conv(
        self, x: Tensor, weight: Tensor, state: Tensor, rows: Tensor, sources: Tensor, targets: Tensor
    ) -> Tensor:
        """See `ops.conv.ShortConv`."""
        _expect(len(weight.shape) == 2 and weight.dtype is DType.F32, f"taps {weight} are not F32[k, n_taps]")
        n_channels, n_taps = weight.shape
        assert isinstance(n_channels, int), "weights have a known shape"
        assert isinstance(n_taps, int), "weights have a known shape"
        _expect(n_taps > 1 and x.width == 3 * n_channels, f"short convolution of {x} with {weight}")
        _expect(
            state.dtype is DType.F32 and state.width == (n_taps - 1) * n_channels,
            f"state {state} of taps {weight}",
        )
        out = self._value("conv", (x.shape[0], n_channels))
        self._ops.append(ShortConv(self._layer, x, weight, state, rows, sources, targets, out))
        return out

    def gate(self, gate: Tensor, up: Tensor | None, activation: Activation) -> Tensor:
        """See `ops.gate.Gate`."""
        _expect(up is None or gate.shape == up.shape, f"gate of {gate} and {up}")
        out = self._value("gate", gate.shape)
        self._ops.append(Gate(self._layer, gate, up, out, activation))
        return out

    def softcap(self, x: Tensor, cap: float) -> Tensor:
        """See `ops.softcap.SoftCap`."""
        _expect(cap > 0, f"softcap of {x} at {cap}")
        out = self._value("softcap", x.shape)
        self._ops.append(SoftCap(self._layer, x, out, cap))
        return out

    def route(self, logits: Tensor, n_used: int, gating: Gating) -> Route:
        """See `ops.experts.Route`; its `ids` and `weights` are values."""
        _expect(1 <= n_used <= logits.width, f"{n_used} experts of {logits}")
        shape = (logits.shape[0], n_used)
        ids, weights = self._value("ids", shape, DType.I32), self._value("weights", shape)
        op = self._routes[ids] = Route(self._layer, logits, ids, weights, gating)
        self._ops.append(op)
        return op

    def expert_matmul(self, x: Tensor, weight: Tensor, route: Route, *, is_scaled: bool = False) -> Tensor:
        """See `ops.experts.ExpertMatmul`; scaled by the route's weights where `is_scaled`."""
        _expect(
            len(weight.shape) == 3 and weight.shape[0] == route.n_expert,
            f"{weight} is not of {route.n_expert} experts",
        )
        _, n_out, n_in = weight.shape
        assert isinstance(n_out, int), "weights have a known shape"
        assert isinstance(n_in, int), "weights have a known shape"
        _expect(x.width in (n_in, route.n_used * n_in), f"{route.n_used} slots of {x} with {weight}")
        _expect(x.shape[0] == route.ids.shape[0], f"{x} has other rows than {route.ids}")
        # a backend trusts computed ids: they have to be of a route that it runs itself, before this
        _expect(
            self._routes.get(route.ids) is route and route.layer == self._layer,
            f"{route.ids} are not of a route in layer {self._layer}",
        )
        out = self._value("experts", (x.shape[0], route.n_used * n_out))
        scales = route.weights if is_scaled else None
        self._ops.append(ExpertMatmul(self._layer, x, weight, route.ids, out, scales))
        return out

    def slot_sum(self, x: Tensor, n_used: int, residual: Tensor | None = None) -> Tensor:
        """See `ops.experts.SlotSum`; x has n_used slots."""
        _expect(n_used > 0 and x.width % n_used == 0, f"{x} is not {n_used} slots")
        shape = (x.shape[0], x.width // n_used)
        _expect_residual(residual, shape, x)
        out = self._value("sum", shape)
        self._ops.append(SlotSum(self._layer, x, out, residual))
        return out

    def build(self) -> Program:
        """The finished program."""
        _expect(bool(self._outputs), "a program without outputs computes nothing")
        return Program(
            self.n_layer,
            tuple(self._ops),
            self._inputs,
            self._constants,
            self._weights,
            self._states,
            self._outputs,
        )

    def _value(self, stem: str, shape: Shape, dtype: DType = DType.F32) -> Tensor:
        return Tensor(f"{stem}.{len(self._ops)}", shape, dtype, Role.VALUE, self._layer)

    def _norm(
        self, x: Tensor, weight: Tensor | None, chunk: int, eps: float, residual: Tensor | None
    ) -> Tensor:
        _expect(
            chunk > 0 and x.width % chunk == 0 and eps > 0, f"rms_norm of {x} in chunks of {chunk}, eps {eps}"
        )
        out = self._value("norm", x.shape)
        self._ops.append(RmsNorm(self._layer, x, weight, out, chunk, eps, residual))
        return out

    def _declare(self, group: dict[str, Tensor], tensor: Tensor) -> Tensor:
        _expect(tensor.name not in group, f"{tensor.role.value} {tensor.name} declared twice")
        group[tensor.name] = tensor
        return tensor


def _expect_residual(residual: Tensor | None, shape: Shape, weight: Tensor) -> None:
    """What is added has the shape of the result."""
    _expect(residual is None or residual.shape == shape, f"residual {residual} of {weight}")


def _expect_cache(k_state: Tensor, v_state: Tensor, head_dim: int, page_size: int) -> None:
    """Whole pages of whole heads; heads of whole blocks where the cache is quantised."""
    n_cells, block_n = k_state.shape[0], k_state.dtype.block_n
    _expect(
        k_state.shape == v_state.shape and k_state.dtype is v_state.dtype,
        f"keys in {k_state}, values in {v_state}",
    )
    _expect(
        isinstance(n_cells, int) and page_size > 0 and n_cells % page_size == 0,
        f"{k_state} is not whole pages of {page_size} cells",
    )
    _expect(k_state.width % head_dim == 0, f"{k_state} is not whole heads of {head_dim}")
    _expect(
        head_dim % block_n == 0,
        f"a cache of {k_state.dtype.name} needs heads of whole blocks of {block_n}, head_dim is {head_dim}; "
        f"an f16 cache takes any",
    )


def _expect_bias(bias: Tensor, n_head: int, softcap: float) -> None:
    """Of as many distances before as behind, for each head."""
    n_distances = bias.shape[0]
    is_odd = isinstance(n_distances, int) and n_distances % 2 == 1
    _expect(
        len(bias.shape) == 2 and is_odd and bias.width == n_head and bias.dtype is DType.F32,
        f"bias {bias} is not F32[2 r + 1, {n_head}]",
    )
    _expect(softcap == 0, f"bias {bias} with scores capped at {softcap}")


def _expect(holds: bool, what: str) -> None:
    if not holds:
        raise ShapeError(what)
