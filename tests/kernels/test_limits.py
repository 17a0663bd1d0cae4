"""The chains and reads that measure the machine's limits do the work that they are timed for."""

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kernels.cpu import _cpu
from kernels.cpu.backend import available_isas

Chain = Callable[[_cpu.Pool, str, int], tuple[float, int]]

READ_STEP = 256
FLUSH_ROUNDS = 1 << 20  # rounds after which a chain's small counters are emptied
each_isa = pytest.mark.parametrize("isa", available_isas())
each_chain = pytest.mark.parametrize("chain", [_cpu.timed_int8, _cpu.timed_f32], ids=["int8", "f32"])


@each_isa
@given(n_bytes=st.integers(0, 5000), n_threads=st.integers(1, 3), seed=st.integers(0, 1000))
def test_reading_sees_every_word_of_whole_steps(isa: str, n_bytes: int, n_threads: int, seed: int) -> None:
    data = np.frombuffer(np.random.default_rng(seed).bytes(n_bytes), np.uint8)
    seconds, total = _cpu.timed_read(_cpu.Pool(n_threads), isa, data)
    whole = n_bytes // READ_STEP * READ_STEP
    assert total == int(data[:whole].view(np.uint64).sum())
    assert seconds > 0


@each_isa
@each_chain
@given(n_rounds=st.integers(1, 300), n_threads=st.integers(1, 3))
def test_a_chain_does_the_same_products_in_every_round_on_every_thread(
    chain: Chain, isa: str, n_rounds: int, n_threads: int
) -> None:
    one = chain(_cpu.Pool(1), isa, 1)[1]
    assert one > 0
    assert chain(_cpu.Pool(n_threads), isa, n_rounds)[1] == one * n_rounds * n_threads


@each_chain
def test_a_chain_counts_past_what_its_small_counters_hold(chain: Chain) -> None:
    isa, pool = available_isas()[0], _cpu.Pool(1)
    n_rounds = FLUSH_ROUNDS + 1
    assert chain(pool, isa, n_rounds)[1] == chain(pool, isa, 1)[1] * n_rounds


def test_an_unknown_instruction_set_is_refused() -> None:
    with pytest.raises(ValueError, match="no kernels for abacus"):
        _cpu.timed_int8(_cpu.Pool(1), "abacus", 1)
