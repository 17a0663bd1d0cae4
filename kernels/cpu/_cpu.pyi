"""The native module, built from module.cpp.  Addresses are integers (0: absent), checked by backend.py.

A dimension is a number >= 0, or -1 - i for the value of the i-th symbol given to `Segment.run`.
"""

from collections.abc import Sequence

from kernels.memory import Bytes
from kernels.ops.op import F32, I32
from kernels.ops.sampling import Mask

ACT_GROUP_N: int
ACT_GROUP_BYTES: int
MAX_ROTATED: int
MAX_TAPS: int
NOT_FINITE: int
ALL_MASKED: int
BAD_HISTORY: int

Rotation = tuple[Sequence[float], float, bool]  # inverse frequencies, magnitude, neox style
Cache = tuple[int, int, int, int]  # key/value heads, head_dim, page_size, ggml number of the dtype

def available_isas() -> list[str]: ...
def matmul_scratch(n: int) -> int: ...
def order_words(n_expert: int, n_slots: int) -> int: ...
def attention_workspace_bytes(
    *,
    cache: Cache,
    n_group: int,
    max_rows: int,
    max_cells: int,
    has_bias: bool,
    reach: int,
    n_threads: int,
) -> int: ...
def allocate(n_bytes: int) -> Bytes | None: ...
def dequantize(isa: str, raw: Bytes, dtype: int, n: int) -> F32: ...
def sample(logits: F32, history: I32, mask: Mask | None, params: SamplingParams) -> int: ...
def logprobs(logits: F32, token: int, top_k: int) -> tuple[bool, float, list[tuple[int, float]]]: ...
def philox(counter: Sequence[int], key: Sequence[int]) -> list[int]: ...

class SamplingParams:
    def __init__(
        self,
        *,
        temperature: float,
        top_k: int,
        top_p: float,
        min_p: float,
        typical_p: float,
        repeat_last_n: int,
        repeat_penalty: float,
        presence_penalty: float,
        frequency_penalty: float,
        seed: int,
        position: int,
    ) -> None: ...

class Pool:
    def __init__(self, n_threads: int) -> None: ...
    @property
    def n_threads(self) -> int: ...

def timed_read(pool: Pool, isa: str, data: Bytes) -> tuple[float, int]: ...
def timed_int8(pool: Pool, isa: str, n_rounds: int) -> tuple[float, int]: ...
def timed_f32(pool: Pool, isa: str, n_rounds: int) -> tuple[float, int]: ...

class Segment:
    def __init__(self, pool: Pool, isa: str) -> None: ...
    @property
    def n_threads(self) -> int: ...
    def add_rows(
        self, *, table: int, ids: int, out: int, width: int, scale: float, dtype: int, n: int
    ) -> None: ...
    def add_rms_norm(
        self, *, x: int, weight: int, residual: int, out: int, width: int, chunk: int, eps: float, n: int
    ) -> None: ...
    def add_matmul(
        self,
        *,
        x: int,
        weight: int,
        bias: int,
        residual: int,
        out: int,
        scratch: int,
        acts: int,
        thread_floats: int,
        n_in: int,
        n_out: int,
        dtype: int,
        row_bytes: int,
        quantizes: bool,
        n: int,
    ) -> None: ...
    def add_rope(
        self, *, x: int, positions: int, out: int, n_head: int, head_dim: int, rotation: Rotation, n: int
    ) -> None: ...
    def add_store_kv(
        self,
        *,
        k: int,
        v: int,
        positions: int,
        cells: int,
        k_state: int,
        v_state: int,
        cache: Cache,
        rotation: Rotation,
        n: int,
    ) -> None: ...
    def add_attention(
        self,
        *,
        q: int,
        k_state: int,
        v_state: int,
        tables: int,
        rows: int,
        n_visible: int,
        out: int,
        workspace: int,
        n_head: int,
        cache: Cache,
        window: int,
        chunk: int,
        scale: float,
        softcap: float,
        temperature: float,
        temperature_length: int,
        bias: int,
        positions: int,
        reach: int,
        max_rows: int,
        n: int,
        n_pages: int,
    ) -> None: ...
    def add_gate(self, *, gate: int, up: int, out: int, activation: int, width: int, n: int) -> None: ...
    def add_short_conv(
        self,
        *,
        x: int,
        weight: int,
        state: int,
        rows: int,
        sources: int,
        targets: int,
        out: int,
        width: int,
        n_taps: int,
        n: int,
    ) -> None: ...
    def add_softcap(self, *, x: int, out: int, cap: float, width: int, n: int) -> None: ...
    def add_route(
        self, *, logits: int, ids: int, weights: int, n_expert: int, n_used: int, gating: int, n: int
    ) -> None: ...
    def add_experts(
        self,
        *,
        x: int,
        weight: int,
        ids: int,
        scales: int,
        out: int,
        scratch: int,
        acts: int,
        order: int,
        thread_floats: int,
        n_in: int,
        n_out: int,
        n_expert: int,
        n_used: int,
        max_slots: int,
        dtype: int,
        row_bytes: int,
        is_shared: bool,
        prepares: bool,
        n: int,
    ) -> None: ...
    def add_slot_sum(self, *, x: int, residual: int, out: int, n_slot: int, width: int, n: int) -> None: ...
    def check_index(self, *, name: str, data: int, limit: int, n: int) -> None: ...
    def check_tables(
        self,
        *,
        names: Sequence[str],
        tables: int,
        rows: int,
        n_visible: int,
        page_size: int,
        n_cells: int,
        max_seqs: int,
        n: int,
        n_seqs: int,
        n_pages: int,
    ) -> None: ...
    def run(self, values: Sequence[int], is_alone: bool) -> None: ...

# params, position, history, log-probabilities wanted (-1: none)
Draw = tuple[SamplingParams, int, Sequence[int], int]
# token or one of the codes above, whether its log-probabilities are finite, its own, the likeliest tokens'
Drawn = tuple[int, bool, float, list[tuple[int, float]]]

class Worker:
    def __init__(self, pool: Pool) -> None: ...
    @property
    def fd(self) -> int: ...
    @property
    def compute_s(self) -> float: ...
    def start(
        self,
        segments: Sequence[tuple[Segment, Sequence[int]]],
        logits: F32,
        draws: Sequence[Draw],
        is_alone: bool,
    ) -> None: ...
    def take(self) -> list[Drawn]: ...
