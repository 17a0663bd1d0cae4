"""The cache: what is held equals what slots list, prefixes are shared, room is decided beforehand.

Where a window or a recurrent state limits what a sequence can go on after, it goes on after that.
"""

import hypothesis.strategies as st
import pytest
from hypothesis import given
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from actors.runner.cache.cache import Cache, Slot
from actors.runner.cache.pages import Pages
from actors.runner.cache.rows import SPACING, ZERO, Rows, State
from actors.runner.cache.shape import PAGE_SIZE, CacheShape, cache_shape
from kernels.dtype import DType

PAGE = 4


def cache_of(
    n_pages: int, n_window_pages: int = 0, window: int = 0, n_rows: int = 0, chunk: int = 0
) -> Cache:
    shape = CacheShape(n_pages * PAGE, PAGE, DType.F16, n_window_pages * PAGE, window, chunk, n_rows)
    return Cache(shape)


def filled(cache: Cache, tokens: list[int], n_batch: int = 99) -> Slot:
    """A slot after these tokens, in batches that end where the cache wants it."""
    slot = cache.open(tokens)
    while (n_pending := len(tokens) - slot.n_cells) > 0:
        n_inputs = cache.n_inputs(slot, min(n_batch, n_pending), n_pending)
        assert cache.extend(slot, n_inputs)
        cache.advance(slot, tokens[slot.n_cells : slot.n_cells + n_inputs])
    return slot


def test_a_second_sequence_shares_whole_pages_of_an_equal_beginning() -> None:
    cache = cache_of(8)
    first = filled(cache, [1, 2, 3, 4, 5, 6, 7, 8, 9])
    second = cache.open([1, 2, 3, 4, 5, 6, 7, 8, 100, 101])
    assert second.table.pages == first.table.pages[:2]
    assert second.n_cells == 8


def test_the_last_token_is_never_taken_from_the_cache() -> None:
    cache = cache_of(8)
    filled(cache, [1, 2, 3, 4])
    assert cache.open([1, 2, 3, 4]).n_cells == 0


def test_an_equal_page_after_another_beginning_is_not_shared() -> None:
    cache = cache_of(8)
    filled(cache, [1, 2, 3, 4, 5, 6, 7, 8, 9])
    assert cache.open([0, 2, 3, 4, 5, 6, 7, 8, 9]).n_cells == 0


def test_released_pages_are_found_again_until_their_space_is_needed() -> None:
    cache = cache_of(3)
    cache.release(filled(cache, [1, 2, 3, 4, 5]))
    assert cache.n_held == 0
    again = cache.open([1, 2, 3, 4, 5])
    assert again.n_cells == PAGE
    cache.release(again)
    cache.release(filled(cache, list(range(50, 62))))  # takes all three pages
    assert cache.open([1, 2, 3, 4, 5]).n_cells == 0


def test_extend_refuses_without_changing_anything_when_there_is_no_room() -> None:
    cache = cache_of(2)
    slot = filled(cache, [1, 2, 3])
    assert not cache.extend(slot, 6)
    assert (len(slot.table.pages), cache.n_free) == (1, 1)
    assert cache.extend(slot, 5)


def test_extend_refuses_where_the_window_has_no_room() -> None:
    cache = cache_of(8, n_window_pages=2, window=2)
    slot = filled(cache, [1, 2, 3])
    assert not cache.extend(slot, 6)
    assert (len(slot.table.pages), len(slot.window.pages)) == (1, 1)
    assert cache.extend(slot, 5)


def test_cells_follow_the_pages_in_order() -> None:
    cache = cache_of(4)
    slot = cache.open([7] * 6)
    assert cache.extend(slot, 6)
    first, second = slot.table.pages
    assert cache.pages.cells(slot.table, 0, 6) == [
        *(first * 4 + i for i in range(4)), second * 4, second * 4 + 1
    ]  # fmt: skip


def test_a_window_keeps_what_the_next_row_sees_and_no_page_more() -> None:
    cache = cache_of(8, n_window_pages=8, window=5)
    assert cache.window is not None
    slot = filled(cache, list(range(17)))  # the next row sees 12 to 16 before its own
    assert (slot.window.n_gone, len(slot.window.pages)) == (3, 5)
    assert cache.window.pool.n_free == 6


@pytest.mark.parametrize(
    ("n_tokens", "n_gone", "n_held"),
    # the next row is the first of a chunk of 10, in its middle, its last, and the first of another
    [(10, 2, 1), (15, 2, 2), (19, 2, 3), (20, 5, 0), (21, 5, 1)],
)
def test_a_chunk_keeps_what_the_next_row_sees_and_no_page_more(
    n_tokens: int, n_gone: int, n_held: int
) -> None:
    cache = cache_of(8, n_window_pages=8, chunk=10)
    assert cache.window is not None
    slot = filled(cache, list(range(n_tokens)))
    assert slot.window.n_gone == n_gone
    assert cache.window.pool.n - cache.window.pool.n_free == n_held


def test_a_turn_goes_on_after_a_chunk_that_is_still_there() -> None:
    cache = cache_of(16, n_window_pages=4, chunk=8)
    first = list(range(14))
    cache.release(filled(cache, first))
    assert cache.open([*first, 99]).n_cells == 12
    # 8 begins a chunk: what comes after needs nothing of the one before
    assert cache.open([*first[:9], 99]).n_cells == 8


def test_a_turn_goes_on_after_a_window_that_is_still_there() -> None:
    cache = cache_of(16, n_window_pages=6, window=5)
    first = list(range(18))
    cache.release(filled(cache, first))
    assert cache.open([*first, 99]).n_cells == 16
    assert cache.open([*first[:13], 99]).n_cells == 12


def test_where_a_window_is_gone_the_prompt_is_computed_anew() -> None:
    cache = cache_of(32, n_window_pages=4, window=5)
    first, second = list(range(18)), list(range(100, 140))
    cache.release(filled(cache, first, PAGE))
    cache.release(filled(cache, second, PAGE))
    assert cache.open([*second, 1]).n_cells == 40  # newest, still there
    slot = cache.open([*first, 99])
    assert slot.n_cells == 0
    assert slot.table.pages.tolist() == []


@pytest.mark.parametrize(
    ("window", "present", "n_cells"),
    # BEHAVIOUR T7, in pages: with a window of 4 whatever is stored from max(0, p - 4) on can be gone on after
    [(4, [0, 1, 2], 12), (4, [1, 2], 12), (4, [0, 2], 12), (5, [0, 2], 4), (5, [2], 0), (9, [0, 1], 8)],
)
def test_what_a_window_can_go_on_after(window: int, present: list[int], n_cells: int) -> None:
    pages = Pages(8, PAGE, window)
    digests = [bytes([i]) for i in range(3)]
    for i in present:
        pages.pool.publish(pages.pool.take(), digests[i])
    assert pages.n_known(digests, 3) * PAGE == n_cells


@pytest.mark.parametrize(
    ("chunk", "present", "n_cells"),
    # in pages of 4: p can be gone on after where all from the begin of its chunk on is stored
    [(8, [], 8), (8, [2], 12), (8, [0], 8), (12, [], 12), (12, [0, 1], 12), (16, [0, 1, 2], 12),
     (16, [0, 2], 4), (16, [1, 2], 0), (6, [1, 2], 12), (6, [0, 1], 12), (10, [0, 1], 8), (10, [2], 12)],
)  # fmt: skip
def test_what_a_chunk_can_go_on_after(chunk: int, present: list[int], n_cells: int) -> None:
    pages = Pages(8, PAGE, chunk=chunk)
    digests = [bytes([i]) for i in range(3)]
    for i in present:
        pages.pool.publish(pages.pool.take(), digests[i])
    assert pages.n_known(digests, 3) * PAGE == n_cells


def test_a_prompt_leaves_a_checkpoint_that_the_same_prompt_goes_on_after() -> None:
    for n in (9, 12, 13):  # also where it ends with a page: its last token is wanted again
        cache = cache_of(8, n_rows=20)
        tokens = list(range(n))
        cache.release(filled(cache, tokens))
        again = cache.open(tokens)
        assert again.n_cells == (n - 1) // PAGE * PAGE
        assert again.state.current not in (ZERO, again.state.work)


def test_a_next_turn_goes_on_within_a_page_of_the_answers_end() -> None:
    cache = cache_of(16, n_rows=20)
    tokens = list(range(10))
    slot = filled(cache, tokens)
    for token in range(100, 113):
        assert cache.extend(slot, 1)
        cache.advance(slot, [token])
        tokens.append(token)
    cache.release(slot)
    assert cache.open([*tokens, 1, 2]).n_cells == len(tokens) // PAGE * PAGE
    assert cache.open([*tokens[:10], 1, 2]).n_cells == 8  # another answer to the same prompt


def test_checkpoints_within_an_answer_give_way_to_the_next_but_for_some() -> None:
    size = SPACING // 2
    rows = Rows(20, size)
    state = State()
    rows.open(state, [])
    digests = [bytes([i]) for i in range(1, 6)]
    for i, digest in enumerate(digests):
        for n_cells in range(i * size + 1, (i + 1) * size + 1):
            rows.advance(state, 1, n_cells, digest)
    assert [rows.pool.find(digest) is not None for digest in digests] == [False, True, False, True, True]


def test_checkpoints_are_the_best_at_or_before_what_is_wanted() -> None:
    # BEHAVIOUR T8, in pages: of 2 kept of (1, 2, 3), for 1 there is none, for 3 and more the third
    rows = Rows(1 + 2 + 2, PAGE)
    state = State()
    rows.open(state, [])
    digests = [bytes([i]) for i in range(1, 5)]
    for i in range(3):
        rows.advance(state, PAGE, (i + 1) * PAGE, digests[i])
    assert [rows.n_known(digests, n) for n in (1, 2, 3, 4)] == [0, 2, 3, 3]


def test_a_model_has_window_pages_for_all_its_sequences_and_no_more_than_cells() -> None:
    def n_window_pages(n_pages: int, n_parallel: int) -> int:
        shape = cache_shape(
            n_pages, DType.F16, window=512, is_recurrent=False, n_parallel=n_parallel, n_batch=512
        )
        return shape.n_window_cells // PAGE_SIZE

    assert n_window_pages(4096, 1) == 2 * (16 + 2) + 2 * 16
    assert n_window_pages(4096, 4) == 2 * 4 * (16 + 2) + 2 * 16
    assert n_window_pages(40, 4) == 40


def test_a_chunk_has_the_pages_of_a_window_as_wide() -> None:
    def shape(window: int, chunk: int) -> CacheShape:
        return cache_shape(
            4096, DType.F16, window=window, chunk=chunk, is_recurrent=False, n_parallel=3, n_batch=512
        )

    assert shape(0, 8192).n_window_cells == shape(8192, 0).n_window_cells > 0


class Lives(RuleBasedStateMachine):
    """Random lives of sequences over few tokens, so that prefixes meet often.

    Beside the cache it keeps what a device would have: the history that each page and row was written with.
    """

    @initialize(
        mask=st.sampled_from([(0, 0), (1, 0), (3, 0), (6, 0), (0, 1), (0, 4), (0, 6), (0, 11)]),
        is_recurrent=st.booleans(),
        n_window_pages=st.integers(8, 14),
    )
    def make(self, mask: tuple[int, int], is_recurrent: bool, n_window_pages: int) -> None:
        n_rows = 1 + 3 * 8 if is_recurrent else 0
        self.window, self.chunk = mask
        self.cache = cache_of(12, n_window_pages if any(mask) else 0, self.window, n_rows, self.chunk)
        self.slots: list[tuple[Slot, list[int]]] = []
        self.in_pages: dict[int, list[int]] = {}
        self.in_window: dict[int, list[int]] = {}
        self.in_rows: dict[int, list[int]] = {ZERO: []}

    def compute(self, slot: Slot, tokens: list[int], n_inputs: int) -> bool:
        """A batch of one sequence: reads and writes as a device would."""
        if not self.cache.extend(slot, n_inputs):
            return False
        begin, end = slot.n_cells, slot.n_cells + n_inputs
        tables = [(slot.table, self.in_pages, False)]
        if self.cache.window is not None:
            tables.append((slot.window, self.in_window, True))
        for table, content, is_masked in tables:
            for row in range(begin, end):
                content[table.pages[row // PAGE]] = tokens[: row + 1]
                first = self.first_seen(row) if is_masked else 0
                for seen in range(first // PAGE, row // PAGE + 1):
                    stop = min((seen + 1) * PAGE, row + 1)
                    assert content[table.pages[seen]][:stop] == tokens[:stop]
        if self.cache.rows is not None:
            assert self.in_rows[slot.state.current] == tokens[:begin]
            target = self.cache.rows.target(slot.state, end)
            assert target != ZERO
            self.in_rows[target] = tokens[:end]
        self.cache.advance(slot, tokens[begin:end])
        return True

    def first_seen(self, row: int) -> int:
        """The first cell that a row reads where not all are seen."""
        return row // self.chunk * self.chunk if self.chunk else max(0, row - self.window)

    @precondition(lambda self: len(self.slots) < 8)
    @rule(tokens=st.lists(st.integers(0, 1), min_size=1, max_size=20), n_most=st.integers(1, 20))
    def open(self, tokens: list[int], n_most: int) -> None:
        slot = self.cache.open(tokens)
        assert slot.n_cells < len(tokens)
        while (n_pending := len(tokens) - slot.n_cells) > 0:
            n_inputs = self.cache.n_inputs(slot, min(n_most, n_pending), n_pending)
            assert 1 <= n_inputs <= n_most
            if not self.compute(slot, tokens, n_inputs):
                self.cache.release(slot)
                return
        self.slots.append((slot, tokens))

    @rule(token=st.integers(0, 1), which=st.integers(0, 20))
    def grow(self, token: int, which: int) -> None:
        if self.slots:
            slot, tokens = self.slots[which % len(self.slots)]
            tokens.append(token)
            if not self.compute(slot, tokens, 1):
                tokens.pop()

    @rule(which=st.integers(0, 20))
    def release(self, which: int) -> None:
        if self.slots:
            slot, _ = self.slots.pop(which % len(self.slots))
            self.cache.release(slot)
            self.cache.release(slot)

    @invariant()
    def what_is_held_is_what_slots_list(self) -> None:
        slots = [slot for slot, _ in self.slots]
        assert self.cache.n_held == len({page for slot in slots for page in slot.table.pages})
        if self.cache.window is not None:
            pool = self.cache.window.pool
            listed = {p for s in slots for p in s.window.pages[s.window.n_gone :]}
            assert pool.n - pool.n_free == len(listed)
        if self.cache.rows is not None:
            pool = self.cache.rows.pool
            listed = {row for s in slots for row in (s.state.current, s.state.work, s.state.spare)}
            assert pool.n - pool.n_free == len(listed | {ZERO})
            own = [row for s in slots for row in (s.state.work, s.state.spare)]
            assert len(own) == len(set(own))


TestLives = Lives.TestCase


@given(st.lists(st.integers(0, 3), min_size=1, max_size=30))
def test_opening_never_claims_more_than_all_but_one_input(tokens: list[int]) -> None:
    cache = cache_of(16)
    cache.release(filled(cache, tokens))
    assert cache.open(tokens).n_cells <= len(tokens) - 1
