"""Whatever happens to the bytes of a file, reading it gives a sound file or a ModelError, nothing else."""

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.gguf_files import model_bytes
from tests.unit.gguf_use import use

SEED = model_bytes()
HEADER_BYTES = SEED.index(bytes([0, 1, 2, 3, 4, 5]))
edits = st.lists(st.tuples(st.integers(0, HEADER_BYTES), st.integers(0, 255)), min_size=1, max_size=6)
numbers = st.sampled_from([0, 1, 2**31, 2**32 - 1, 2**60, 2**63 - 1, 2**63, 2**64 - 8, 2**64 - 1])


@given(edits)
@settings(max_examples=600, deadline=None)
def test_changed_bytes_are_read_or_refused(changes: list[tuple[int, int]]) -> None:
    data = bytearray(SEED)
    for at, byte in changes:
        data[at] = byte
    use(bytes(data))


@given(st.integers(4, HEADER_BYTES - 8), numbers)
@settings(max_examples=600, deadline=None)
def test_eight_bytes_replaced_by_a_tempting_number_are_read_or_refused(at: int, number: int) -> None:
    use(SEED[:at] + number.to_bytes(8, "little") + SEED[at + 8 :])


@given(st.integers(0, HEADER_BYTES), st.integers(0, 64), st.binary(max_size=32))
@settings(max_examples=600, deadline=None)
def test_bytes_taken_out_and_put_in_are_read_or_refused(at: int, n_out: int, put_in: bytes) -> None:
    use(SEED[:at] + put_in + SEED[at + n_out :])


@given(st.binary(max_size=200))
@settings(max_examples=300, deadline=None)
def test_any_bytes_after_a_sound_beginning_are_read_or_refused(rest: bytes) -> None:
    use(SEED[:8] + rest)
