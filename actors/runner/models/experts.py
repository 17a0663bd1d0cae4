"""Mixtures of experts in place of a feed-forward part: what their layers and keys have in common.

A router chooses some of n_expert feed-forward parts for each row, n_ff_exp wide (`kernels/ops/experts.py`).
"""

from dataclasses import replace
from typing import ClassVar

from actors.errors import Unsupported
from actors.runner.gguf.reader import GGUFFile
from actors.runner.models.hparams import Hparams, read_sizes
from actors.runner.models.module import Layer, Linear, Module, gguf
from kernels.ops.experts import Gating, Route
from kernels.ops.gate import Activation
from kernels.tensor import Tensor

SOFTMAX, SIGMOID = 1, 2  # of `expert_gating_func`


class ExpertLinear(Layer):
    """weight [n_expert, n_out, n_in]: x [n, n_in] or [n, k * n_in] -> [n, k * n_out], k experts used."""

    def __call__(self, x: Tensor, route: Route, *, is_scaled: bool = False) -> Tensor:
        """x weight^T of the experts that the route names (* its weights)."""
        return self.builder.expert_matmul(x, self.weight, route, is_scaled=is_scaled)


class Experts(Module):
    """x [n_tokens, n_embd] -> [n_tokens, n_embd]; what experts give is weighed."""

    activation: ClassVar[Activation] = "silu"
    gating: ClassVar[Gating]
    weighs_input: ClassVar[bool] = False  # an expert's input is scaled by its weight, not what it gives

    router: Linear = gguf("ffn_gate_inp", "n_expert", "n_embd")
    gate: ExpertLinear = gguf("ffn_gate_exps", "n_expert", "n_ff_exp", "n_embd")
    up: ExpertLinear = gguf("ffn_up_exps", "n_expert", "n_ff_exp", "n_embd")
    down: ExpertLinear = gguf("ffn_down_exps", "n_expert", "n_embd", "n_ff_exp")

    def __call__(self, x: Tensor, residual: Tensor) -> Tensor:
        """Of normalised x, added to the residual stream."""
        g, n_used = self.builder, self.hparams.n_expert_used
        route = g.route(self.router(x), n_used, self.gating)
        # before the gate products are linear: to scale them is to scale the input
        gate, up = (into(x, route, is_scaled=self.weighs_input) for into in (self.gate, self.up))
        given = self.down(g.gate(gate, up, self.activation), route, is_scaled=not self.weighs_input)
        return g.slot_sum(given, n_used, residual)


def read_experts(file: GGUFFile, *, gating_func: int, n_shared: int, has_norm: bool) -> Hparams:
    """Sizes with those of the experts, which every layer has.

    gating_func, n_shared (experts that every row goes through), has_norm (weights are divided by their sum):
    what the family has.

    ModelError names a missing key, Unsupported what changes the choice in a way that is not implemented.
    """
    sizes = read_sizes(file, has_experts=True)
    arch = sizes.arch
    for name, known in (
        ("expert_gating_func", gating_func),
        ("expert_group_count", 1),
        ("expert_group_used_count", 1),
        ("expert_shared_count", n_shared),
    ):
        value = file.get_int(f"{arch}.{name}", known)
        if value != known:
            raise Unsupported(
                f"{arch} with {name} {value} is not implemented, only {known}",
                where=f"{file.name}: {arch}.{name}",
            )
    if file.get_bool(f"{arch}.expert_weights_norm", has_norm) != has_norm:
        raise Unsupported(
            f"{arch} with expert_weights_norm {not has_norm} is not implemented, only {has_norm}",
            where=f"{file.name}: {arch}.expert_weights_norm",
        )
    scale = file.get_float(f"{arch}.expert_weights_scale", 1.0)
    if scale not in (0.0, 1.0):  # 0: not set
        raise Unsupported(
            f"{arch} with expert weights scaled by {scale} is not implemented",
            where=f"{file.name}: {arch}.expert_weights_scale",
        )
    return replace(
        sizes,
        n_expert=file.get_int(f"{arch}.expert_count"),
        n_expert_used=file.get_int(f"{arch}.expert_used_count"),
        n_ff_exp=file.get_int(f"{arch}.expert_feed_forward_length"),
        experts=(True,) * sizes.n_layer,
    )
