"""The paged causal cache: pages in use equal pages held, prefixes are shared, room is decided beforehand."""

import hypothesis.strategies as st
from hypothesis import given
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from actors.runner.cache.causal import CausalCache, Slot

PAGE = 4


def filled(cache: CausalCache, tokens: list[int]) -> Slot:
    slot = cache.open(tokens)
    assert cache.extend(slot, len(tokens) - slot.n_cells)
    cache.advance(slot, tokens[slot.n_cells :])
    return slot


def test_a_second_sequence_shares_whole_pages_of_an_equal_beginning() -> None:
    cache = CausalCache(8, PAGE)
    first = filled(cache, [1, 2, 3, 4, 5, 6, 7, 8, 9])
    second = cache.open([1, 2, 3, 4, 5, 6, 7, 8, 100, 101])
    assert second.pages == first.pages[:2]
    assert second.n_cells == 8


def test_the_last_token_is_never_taken_from_the_cache() -> None:
    cache = CausalCache(8, PAGE)
    filled(cache, [1, 2, 3, 4])
    assert cache.open([1, 2, 3, 4]).n_cells == 0


def test_an_equal_page_after_another_beginning_is_not_shared() -> None:
    cache = CausalCache(8, PAGE)
    filled(cache, [1, 2, 3, 4, 5, 6, 7, 8, 9])
    assert cache.open([0, 2, 3, 4, 5, 6, 7, 8, 9]).n_cells == 0


def test_released_pages_are_found_again_until_their_space_is_needed() -> None:
    cache = CausalCache(3, PAGE)
    cache.release(filled(cache, [1, 2, 3, 4, 5]))
    assert cache.n_held == 0
    again = cache.open([1, 2, 3, 4, 5])
    assert again.n_cells == PAGE
    cache.release(again)
    cache.release(filled(cache, list(range(50, 62))))  # takes all three pages
    assert cache.open([1, 2, 3, 4, 5]).n_cells == 0


def test_extend_refuses_without_changing_anything_when_there_is_no_room() -> None:
    cache = CausalCache(2, PAGE)
    slot = filled(cache, [1, 2, 3])
    assert not cache.extend(slot, 6)
    assert (len(slot.pages), cache.n_free) == (1, 1)
    assert cache.extend(slot, 5)


def test_cells_follow_the_pages_in_order() -> None:
    cache = CausalCache(4, PAGE)
    slot = cache.open([7] * 6)
    assert cache.extend(slot, 6)
    first, second = slot.pages
    assert cache.cells(slot, 6) == [first * 4 + i for i in range(4)] + [second * 4, second * 4 + 1]


class PagesInUse(RuleBasedStateMachine):
    """Random lives of sequences over few tokens, so that prefixes meet often."""

    def __init__(self) -> None:
        super().__init__()
        self.cache = CausalCache(12, PAGE)
        self.slots: list[tuple[Slot, list[int]]] = []

    @rule(tokens=st.lists(st.integers(0, 1), min_size=1, max_size=20))
    def open(self, tokens: list[int]) -> None:
        slot = self.cache.open(tokens)
        if self.cache.extend(slot, len(tokens) - slot.n_cells):
            self.cache.advance(slot, tokens[slot.n_cells :])
            self.slots.append((slot, tokens))
        else:
            self.cache.release(slot)

    @rule(token=st.integers(0, 1), which=st.integers(0, 20))
    def grow(self, token: int, which: int) -> None:
        if self.slots:
            slot, tokens = self.slots[which % len(self.slots)]
            if self.cache.extend(slot, 1):
                self.cache.advance(slot, [token])
                tokens.append(token)

    @rule(which=st.integers(0, 20))
    def release(self, which: int) -> None:
        if self.slots:
            slot, _ = self.slots.pop(which % len(self.slots))
            self.cache.release(slot)
            self.cache.release(slot)

    @invariant()
    def held_pages_are_those_of_the_slots(self) -> None:
        assert self.cache.n_held == len({page for slot, _ in self.slots for page in slot.pages})

    @invariant()
    def a_page_has_one_content(self) -> None:
        content: dict[int, list[int]] = {}
        for slot, tokens in self.slots:
            assert slot.n_cells == len(tokens)
            for i, page in enumerate(slot.pages[: slot.n_cells // PAGE]):
                assert content.setdefault(page, tokens[: (i + 1) * PAGE]) == tokens[: (i + 1) * PAGE]


TestPagesInUse = PagesInUse.TestCase


@given(st.lists(st.integers(0, 3), min_size=1, max_size=30))
def test_opening_never_claims_more_than_all_but_one_input(tokens: list[int]) -> None:
    cache = CausalCache(16, PAGE)
    cache.release(filled(cache, tokens))
    assert cache.open(tokens).n_cells <= len(tokens) - 1
