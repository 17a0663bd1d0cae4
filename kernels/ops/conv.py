"""Gated short convolution with a state: what the recurrent layers of lfm2 do between their projections.

Hasani et al., "LFM2 Technical Report", arXiv:2511.23404, section 2: a causal depthwise convolution of a few
taps, gated before and after.
"""

from dataclasses import dataclass

import numpy as np

from kernels.ops.op import F32, I32, Op
from kernels.tensor import Tensor


@dataclass(frozen=True, slots=True, eq=False)
class ShortConv(Op):
    """Convolve each sequence's inputs with those before them, channel by channel.

    x [n, 3 * k] f32: the gate before (b), the gate after (c), the value (v), k each; weight [k, n_taps] f32,
    the last tap is the input's own; state [n_rows, (n_taps - 1) * k] f32, a row holds the last inputs of a
    convolution, the oldest first; rows [n] i32: the sequence of each input, whose inputs are neighbours, in
    order; sources, targets [n_seqs] i32: the rows of the state that a sequence goes on from, and that it
    leaves, which nobody else names (they may be the same row) -> out [n, k] f32:

        u = b * v;  out[i] = c[i] * sum over taps t of weight[:, t] * u[i - (n_taps - 1) + t]
    """

    x: Tensor
    weight: Tensor
    state: Tensor
    rows: Tensor
    sources: Tensor
    targets: Tensor
    out: Tensor

    @property
    def writes(self) -> tuple[Tensor, ...]:
        """The result, and the state it leaves."""
        return (self.out, self.state)


def short_conv_ref(x: F32, weight: F32, state: F32, rows: I32, sources: I32, targets: I32) -> F32:
    """Reference of `ShortConv` in float64; changes `state`."""
    n_channels, n_taps = weight.shape
    before, after, values = np.split(x.astype(np.float64), 3, axis=1)
    out = np.empty((x.shape[0], n_channels))
    for row in dict.fromkeys(rows.tolist()):
        mine = rows == row
        history = state[sources[row]].reshape(n_taps - 1, n_channels)
        # what a state holds is rounded to f32 whoever wrote it
        inputs = np.concatenate([history, (before[mine] * values[mine]).astype(np.float32)])
        windows = np.lib.stride_tricks.sliding_window_view(inputs.astype(np.float64), n_taps, axis=0)
        out[mine] = after[mine] * np.einsum("ict,ct->ic", windows, weight.astype(np.float64))
        state[targets[row]] = inputs[len(inputs) - (n_taps - 1) :].reshape(-1)
    return out.astype(np.float32)
